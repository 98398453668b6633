"""Hidden layers by name: what a layer gives and is given, in torch modules and ONNX files."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from deploytool.errors import InputError
from deploytool.explain.target import module_target, open_target
from deploytool.export.artefact import export
from deploytool.library.taps import default_layers, feature_name, joined, parts_of, watch, watch_file, watch_module
from deploytool.models.setting import Setting

IMAGE = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """Every kind of trouble: an in-place activation, a module that runs twice, a layer that gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unused = nn.Linear(3, 3)
        self.linear = nn.Linear(64, 5)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.relu(self.first(image))
        hidden = self.relu(self.second(hidden))
        hidden, _ = self.pool(hidden)
        return self.linear(hidden.flatten(1))


def by_hand(network: Small, image: Tensor) -> dict[str, Tensor]:
    """The same activities, nothing in place."""
    first = F.conv2d(image, network.first.weight, network.first.bias, padding=1)
    second = F.conv2d(first.relu(), network.second.weight, network.second.bias, padding=1)
    pooled = F.max_pool2d(second.relu(), 2).flatten(1)
    logits = F.linear(pooled, network.linear.weight, network.linear.bias)
    found = {
        "first": first,
        "first:input": image,
        "second": second,
        "second:input": first.relu(),
        "relu": second.relu(),  # its last run
        "linear:input": pooled,
        "linear": logits,
        "logits": logits,
    }
    found["first+logits"] = torch.cat([first.flatten(1), logits], 1)
    found["second:input+linear:input+first"] = torch.cat([first.relu().flatten(1), pooled, first.flatten(1)], 1)
    return found


def test_every_kind_of_name() -> None:
    """Also what comes before an activation in place: what the layer gave, not what became of it."""
    network = Small().eval()
    expected = by_hand(network, IMAGE)
    logits, found = watch_module(network, list(expected))(IMAGE)
    assert list(found) == list(expected)
    torch.testing.assert_close(logits, expected["logits"])
    for name, activity in expected.items():
        torch.testing.assert_close(found[name], activity, msg=lambda text, name=name: f"{name}: {text}")
    assert (found["first"] < 0).any()


@pytest.mark.parametrize("name", ["first", "second:input", "linear"])
def test_names_alone(name: str) -> None:
    network = Small().eval()
    _, found = watch_module(network, [name])(IMAGE)
    assert list(found) == [name]
    torch.testing.assert_close(found[name], by_hand(network, IMAGE)[name])


def test_what_an_activation_in_place_is_given() -> None:
    network = Small().eval()
    _, found = watch_module(network, ["relu:input"])(IMAGE)
    torch.testing.assert_close(found["relu:input"], by_hand(network, IMAGE)["second"])


class Adding(nn.Module):
    """As residual networks are often written."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        out = self.conv(image)
        out += image
        return F.relu(out, inplace=True).flatten(2).mean(2).repeat(1, 3)


def test_what_a_function_changes_in_place() -> None:
    network = Adding().eval()
    _, found = watch_module(network, ["conv"])(IMAGE)
    torch.testing.assert_close(found["conv"], F.conv2d(IMAGE, network.conv.weight, network.conv.bias, padding=1))


def test_activities_have_gradients_to_the_image() -> None:
    network = Small().eval()
    image = IMAGE.clone().requires_grad_(True)
    _, found = watch_module(network, ["first"])(image)
    (gradient,) = torch.autograd.grad(found["first"].square().sum(), image)
    again = IMAGE.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(by_hand(network, again)["first"].square().sum(), again)
    torch.testing.assert_close(gradient, expected)


def test_hooks_are_on_during_a_call_alone() -> None:
    network = Small().eval()
    watched = watch_module(network, ["first", "relu"])
    assert not any(module._forward_hooks for module in network.modules())
    watched(IMAGE)
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(RuntimeError):
        watched(IMAGE[:, :, :3])
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("frist", r"layer \(='frist'\) is unknown; near are first"),
        ("frist:input", r"layer \(='frist:input'\) is unknown; near are .*first"),
        ("first+secnd", r"layer \(='secnd'\) is unknown; near are second"),
        ("", r"layer \(=''\) is unknown; near are .*logits"),
        (":input", r"layer \(=':input'\) is unknown"),
        ("logit", r"near are logits"),
        ("zzz", r"near are .*linear, logits"),
        ("unused", "layer unused is never run by its network"),
        ("pool", "layer pool gives a tuple, no tensor of numbers"),
    ],
)
def test_names_that_are_no_layers(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        watch(module_target(Small()), [name], IMAGE)
    assert "\n" not in str(caught.value)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.whole, self.mean = nn.Identity(), nn.Flatten(0)
        self.kind = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        self.kind((image > 0.5).long())
        self.mean(image)
        return self.whole(image.flatten(1).sum(1, keepdim=True)).repeat(1, 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [("kind", "layer kind gives a Tensor, no tensor of numbers"), ("mean", r"layer mean gives \(128,\) for 2 images")],
)
def test_activity_has_to_be_numbers_of_each_image(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        watch(module_target(Odd()), [name], IMAGE)


def test_parts() -> None:
    assert parts_of(["a+b", "b", "c:input+a"]) == ["a", "b", "c:input"]
    found = {"a": torch.ones(2, 3, 2), "b": torch.zeros(2, 1)}
    assert joined("b+a", found).tolist() == [[0, *[1] * 6]] * 2 and joined("a", found) is found["a"]


def foreign_file(folder: Path, network: Small, count: int | str = "N") -> Path:
    """The same network as one would write it elsewhere: nodes with names, an output that is not called logits."""
    weights = {
        f"{name}.{part}": getattr(getattr(network, name), part).detach().numpy()
        for name in ("first", "second", "linear")
        for part in ("weight", "bias")
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "first.weight", "first.bias"], ["a"], "conv_a", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu_a"),
        helper.make_node("Conv", ["b", "second.weight", "second.bias"], ["c"], "conv_b", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MaxPool", ["d"], ["e"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["e"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "linear.weight", "linear.bias"], ["scores"], "head", transB=1),
        helper.make_node("ArgMax", ["scores"], ["best"], "argmax", axis=1),
        helper.make_node("Constant", [], ["unit"], "constant", value=numpy_helper.from_array(np.ones(1, np.float32))),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [count, 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [count, 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    file = folder / "foreign.onnx"
    onnx.save(model, file)
    return file


def test_a_foreign_file(tmp_path: Path) -> None:
    """By tensor, by node, and what a node is given."""
    network = Small().eval()
    own = by_hand(network, IMAGE)
    expected = {
        "a": own["first"],
        "conv_a": own["first"],
        "conv_a:input": IMAGE,
        "relu_a": own["second:input"],
        "conv_b:input": own["second:input"],
        "c": own["second"],
        "head:input": own["linear:input"],
        "head": own["logits"],
        "logits": own["logits"],
        "conv_a+f": torch.cat([own["first"].flatten(1), own["linear:input"]], 1),
    }
    target = open_target(foreign_file(tmp_path, network))
    logits, found = watch(target, list(expected), IMAGE)(IMAGE)
    torch.testing.assert_close(logits, own["logits"], rtol=1e-4, atol=1e-5)
    assert list(found) == list(expected)
    for name, activity in expected.items():
        torch.testing.assert_close(found[name], activity, rtol=1e-4, atol=1e-5)
    assert default_layers(target, IMAGE) == ["d", "e", "logits"]
    assert feature_name(target, IMAGE) == "f"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_file_of_a_fixed_number_of_images(count: int, tmp_path: Path) -> None:
    """It is given groups of them, the last one filled up; feature maps are found all the same."""
    network = Small().eval()
    own = by_hand(network, IMAGE)
    target = open_target(foreign_file(tmp_path, network, count))
    assert default_layers(target, IMAGE) == ["d", "e", "logits"]
    logits, found = watch(target, ["d", "a+f", "logits"], IMAGE)(IMAGE)
    torch.testing.assert_close(logits, own["logits"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["d"], own["relu"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["a+f"], torch.cat([own["first"].flatten(1), own["linear:input"]], 1))
    with pytest.raises(InputError, match=r"layer unit gives \(\d,\) for \d images"):
        watch(target, ["unit"], IMAGE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_as_torch_exports_it(tmp_path: Path) -> None:
    """With the N of its example, 2 here, and three images."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)).eval()
    torch.onnx.export(network, (IMAGE[:2],), str(tmp_path / "x.onnx"), dynamo=False)
    target = open_target(tmp_path / "x.onnx")
    *layers, _ = default_layers(target, IMAGE)
    name = feature_name(target, IMAGE)
    logits, found = watch(target, [*layers, name], IMAGE)(IMAGE)
    torch.testing.assert_close(logits, network(IMAGE), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[layers[-1]], network[:2](IMAGE), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[name], network[:3](IMAGE), rtol=1e-4, atol=1e-5)


def test_names_that_a_foreign_file_has_not(tmp_path: Path) -> None:
    target = open_target(foreign_file(tmp_path, Small()))
    with pytest.raises(InputError, match=r"layer \(='conv_c'\) is unknown; near are conv_"):
        watch(target, ["conv_c"], IMAGE)
    with pytest.raises(InputError, match=r"layer \(='conv_c:input'\) is unknown; near are conv_"):
        watch(target, ["conv_c:input"], IMAGE)
    with pytest.raises(InputError, match="layer argmax is no float32 tensor|layer best is no float32 tensor"):
        watch(target, ["argmax"], IMAGE)
    with pytest.raises(InputError, match=r"layer unit gives \(1,\) for 2 images"):
        watch(target, ["unit"], IMAGE)


def test_a_node_without_input(tmp_path: Path) -> None:
    target = open_target(foreign_file(tmp_path, Small()))
    with pytest.raises(InputError):
        watch(target, ["constant:input"], IMAGE)


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("conditioning", ["switch", "interpolate"])
def test_our_own_files_at_every_lambda(lam, conditioning, trained_run, trained_file, trained_interpolate_file) -> None:
    """Feature maps, features and logits are the torch network's under the same conditioning."""
    file = trained_file if conditioning == "switch" else trained_interpolate_file
    target = open_target(file)
    layers = [name for name in default_layers(target, IMAGE) if name != "logits"]
    names = [*layers, feature_name(target, IMAGE), "logits"]
    logits, found = watch(target, names, IMAGE, lam)(IMAGE)
    setting = Setting(lam, target.setting.lambda_threshold, conditioning, "frozen")
    network = trained_run.model.plain_network(setting)
    with torch.no_grad():
        expected_logits, expected = watch_module(network, ["layer1", "layer2", "layer3", "linear:input"])(IMAGE)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found["logits"], logits)
    torch.testing.assert_close(found[names[-2]].flatten(1), expected["linear:input"], rtol=1e-3, atol=1e-3)
    assert [found[name].shape for name in layers] == [expected[name].shape for name in ("layer1", "layer2", "layer3")]
    for name, own in zip(layers, ("layer1", "layer2", "layer3"), strict=True):
        torch.testing.assert_close(found[name], expected[own], rtol=1e-3, atol=1e-3)


def test_lambda_where_it_is_taken(trained_interpolate_file: Path, plain_file: Path) -> None:
    """None stands for 0; a file without lambda refuses one."""
    conditional, plain = open_target(trained_interpolate_file), open_target(plain_file)
    name = feature_name(conditional, IMAGE)
    at = {lam: watch(conditional, [name], IMAGE, lam)(IMAGE)[1][name] for lam in (None, 0.0, 1.0)}
    assert torch.equal(at[None], at[0.0]) and not torch.equal(at[0.0], at[1.0])
    assert watch(plain, ["logits"], IMAGE)(IMAGE)[1]["logits"].shape == (3, 10)
    with pytest.raises(InputError, match="takes no lambda"):
        watch(plain, ["logits"], IMAGE, 0.5)


def test_files_answer_as_sessions_do(plain_file: Path) -> None:
    target = open_target(plain_file)
    logits, found = watch_file(plain_file, ["logits"], None)(IMAGE)
    torch.testing.assert_close(logits, target.network()(IMAGE), rtol=1e-4, atol=1e-4)
    assert torch.equal(found["logits"], logits)


def test_default_layers_of_modules(plain_run) -> None:
    """The last of each size of feature map, in the order of execution, single pixels left out."""
    assert default_layers(module_target(Small()), IMAGE) == ["relu", "logits"]  # the pool gives a tuple
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 3, 1),
        nn.Upsample(scale_factor=2),
        nn.Sigmoid(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 5),
    )
    assert default_layers(module_target(network), IMAGE) == ["2", "4", "logits"]
    assert feature_name(module_target(network), IMAGE) == "7:input"
    found = default_layers(open_target(plain_run.path), IMAGE)
    assert found == ["layer1", "layer2", "layer3", "logits"]
    assert feature_name(open_target(plain_run.path), IMAGE) == "linear:input"


def test_a_network_without_linear_layer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="target module has no linear layer"):
        feature_name(module_target(nn.Sequential(nn.Conv2d(1, 5, 8), nn.Flatten())), IMAGE)


class Twisted(nn.Module):
    """Linear layers defined in another order than they run in, and one beside the answer that runs last."""

    def __init__(self, detached: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.body, self.beside = nn.Linear(6, 5), nn.Linear(64, 6), nn.Linear(5, 2)
        self.detached = detached

    def forward(self, image: Tensor) -> Tensor:
        image -= 0.5
        logits = self.head(F.relu(self.body(image.flatten(1)), inplace=True))
        self.beside(logits)
        return logits.detach() if self.detached else logits


def test_features_are_those_of_the_linear_layer_that_ran_last_before_the_answer() -> None:
    kept = IMAGE.clone()
    target = module_target(Twisted())
    assert feature_name(target, IMAGE) == "head:input" and torch.equal(IMAGE, kept)
    network = target.network()
    assert isinstance(network, nn.Module) and not any(module._forward_hooks for module in network.modules())
    assert feature_name(module_target(Twisted(detached=True)), IMAGE) == "beside:input"  # nothing says what it is of


def test_features_of_files_with_products_beside_the_answer(tmp_path: Path) -> None:
    """As of libraries, which come after the network's own nodes."""
    file = foreign_file(tmp_path, Small())
    model = onnx.load(file)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 1), np.float32), "patterns"))
    model.graph.node.append(helper.make_node("MatMul", ["d_flat", "patterns"], ["cpl"], "product"))
    model.graph.node.insert(8, helper.make_node("Flatten", ["e"], ["d_flat"]))
    model.graph.node.append(helper.make_node("Identity", ["scores"], ["logits"]))
    model.graph.output.insert(0, helper.make_tensor_value_info("cpl", TensorProto.FLOAT, ["N", 1]))
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5]))
    onnx.save(model, file)
    assert feature_name(open_target(file), IMAGE) == "f"


def test_features_of_a_file_that_answers_cpl(trained_run, float_library, tmp_path: Path) -> None:
    """They are the network's, at every lambda."""
    file = Path(export(trained_run, tmp_path / "x.onnx", library=float_library)["file"])
    target = open_target(file)
    assert "cpl" in {value.name for value in onnx.load(file).graph.output}
    name = feature_name(target, IMAGE)
    setting = Setting(1.0, target.setting.lambda_threshold, "switch", "frozen")
    with torch.no_grad():
        _, expected = watch_module(trained_run.model.plain_network(setting), ["linear:input"])(IMAGE)
    _, found = watch(target, [name], IMAGE, 1.0)(IMAGE)
    torch.testing.assert_close(found[name].flatten(1), expected["linear:input"], rtol=1e-3, atol=1e-3)
