"""Workloads read from graphs: hand-made ones, ours, and torchvision's against torch's own FLOP counter."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from hwmodels.errors import WorkloadError
from hwmodels.workload import read_workload

OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("com.acme", 1)]


def save(
    folder: Path, nodes: list, weights: dict, image: list, output: str = "y", inputs=(), kind=TensorProto.FLOAT
) -> Path:
    """A file with one image input `x`; `weights` are arrays, or shapes of float32 ones."""
    arrays = {name: np.ones(w, np.float32) if isinstance(w, tuple) else w for name, w in weights.items()}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, image), *inputs],
        [helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    file = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=OPSETS), file)
    return file


def test_what_other_operators_store_is_counted_apart(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["c"]),
        helper.make_node("Conv", ["c", "w"], ["k"]),
        helper.make_node("BatchNormalization", ["k", "g", "b", "m", "v"], ["y"]),
    ]
    norm = dict.fromkeys("gbmv", (4,))
    workload = read_workload(save(tmp_path, nodes, {"mean": (3, 1, 1), "w": (4, 3, 1, 1), **norm}, ["N", 3, 2, 2]))
    assert workload.other_values == 3 and workload.norms == (4,)


def test_a_conditional_weight_is_followed_to_what_is_stored(tmp_path: Path) -> None:
    knob = helper.make_tensor_value_info("knob", TensorProto.FLOAT, [])
    nodes = [
        helper.make_node("Mul", ["knob", "noise"], ["shift"]),
        helper.make_node("Add", ["conv.weight", "shift"], ["hat"]),
        helper.make_node("Conv", ["x", "hat"], ["y"]),
    ]
    weights = {"noise": (1, 1, 1, 1), "conv.weight": (4, 3, 3, 3)}
    workload = read_workload(save(tmp_path, nodes, weights, ["N", 3, 8, 8], inputs=[knob]))
    assert [layer.name for layer in workload.layers] == ["conv"]
    assert workload.free == {} and workload.not_counted == {}  # the transform is no work on images
    assert workload.transforms == {"Mul": 1, "Add": 1}
    assert (workload.layers[0].weight_bits, workload.layers[0].nonzero) == (32, 4 * 27)


def test_what_is_not_covered_is_said(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["t"]),
        helper.make_node("Relu", ["t"], ["r"]),
        helper.make_node("Transpose", ["r"], ["s"]),
        helper.make_node("MatMul", ["r", "s"], ["y"]),
        helper.make_node("Conv", ["x", "y"], ["made"]),  # a filter made from the image
        helper.make_node("Fancy", ["y"], ["z"], domain="com.acme"),
    ]
    workload = read_workload(save(tmp_path, nodes, {"w": (4, 3, 2, 2)}, [1, 3, 8, 8]))
    assert workload.not_counted == {"MatMul": 1, "Conv": 1, "Fancy": 1}
    assert workload.free == {"Relu": 1, "Transpose": 1} and len(workload.layers) == 1


def test_recurrent_layers_are_not_counted(tmp_path: Path) -> None:
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4)
    workload = read_workload(save(tmp_path, [node], {"w": (1, 16, 3), "r": (1, 16, 4)}, [6, 1, 3]))
    assert workload.not_counted == {"LSTM": 1} and workload.layers == ()


def test_layers_in_a_branch_are_not_passed_over(tmp_path: Path) -> None:
    """An If whose branches read the image from outside; its condition is a knob."""

    def branch(name: str):
        return helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], [name])], name, [], [helper.make_empty_tensor_value_info(name)]
        )

    knob = helper.make_tensor_value_info("knob", TensorProto.BOOL, [])
    node = helper.make_node("If", ["knob"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    workload = read_workload(save(tmp_path, [node], {"w": (4, 3, 1, 1)}, [1, 3, 4, 4], inputs=[knob]))
    assert workload.not_counted == {"If": 1}


def test_film_on_lambda_is_no_layer(tmp_path: Path) -> None:
    """OAT: two Gemms of lambda scale and shift the batch norm; only the convolution works on the image."""
    nodes = [
        helper.make_node("Reshape", ["lambda", "one"], ["code"]),
        helper.make_node("Gemm", ["code", "hidden.weight"], ["h"]),
        helper.make_node("LeakyRelu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "out.weight"], ["f"]),
        helper.make_node("Reshape", ["f", "flat"], ["v"]),
        helper.make_node("Split", ["v"], ["gamma", "beta"], num_outputs=2),
        helper.make_node("Conv", ["x", "conv.weight"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"]),
    ]
    tensors = {
        "one": np.array([1, 1]), "flat": np.array([-1]), "hidden.weight": (1, 8), "out.weight": (8, 8),
        "conv.weight": (4, 3, 1, 1), "mean": (4,), "var": (4,),
    }  # fmt: skip
    knob = helper.make_tensor_value_info("lambda", TensorProto.FLOAT, [])
    workload = read_workload(save(tmp_path, nodes, tensors, ["N", 3, 2, 2], inputs=[knob]))
    assert [layer.name for layer in workload.layers] == ["conv"] and workload.norms == (4,)
    assert workload.transforms == {"Reshape": 2, "Gemm": 2, "LeakyRelu": 1, "Split": 1}
    assert workload.free == {"BatchNormalization": 1} and workload.not_counted == {} and workload.other_values == 0


def test_our_resnet34_is_known_layer_by_layer(resnet34_file: Path) -> None:
    """He et al. 2016: 1.16 GMACs and 21.28 M weights on CIFAR; OAT leaves out the three shortcuts."""
    workload = read_workload(resnet34_file)
    convolutions = [layer for layer in workload.layers if layer.kind == "conv"]
    assert len(convolutions) == 36 and sum(layer.film for layer in convolutions) == 33
    assert [layer.name for layer in convolutions if not layer.film] == [f"layer{i}.0.shortcut.0" for i in (2, 3, 4)]
    assert [layer.name for layer in workload.layers][-1] == "linear"
    assert sum(layer.weights for layer in workload.layers) == 21_265_088
    blocks = {"layer4.0.conv1": (256, 512, 16), "layer1.2.conv2": (64, 64, 1024), "conv1": (3, 64, 1024)}
    for layer in workload.layers:
        if layer.name in blocks:
            assert (layer.in_channels_per_group, layer.out_channels, layer.positions) == blocks[layer.name]
    assert workload.not_counted == {} and set(workload.inputs) == {"image", "lambda"}


def test_a_specialised_file_has_the_same_layers(resnet34_file: Path, tmp_path: Path) -> None:
    from deploytool.runtime.specialize import specialize

    specialize(resnet34_file, 0.5, tmp_path / "plain.onnx")
    before, after = read_workload(resnet34_file), read_workload(tmp_path / "plain.onnx")
    assert [(a.name, a.macs, a.weights, a.film) for a in after.layers] == [
        (b.name, b.macs, b.weights, b.film) for b in before.layers
    ]


@pytest.mark.parametrize(
    ("arch", "size", "dynamo", "shortcuts"),
    [
        ("resnet18", 64, True, 3),
        ("resnet18", 64, False, 3),
        ("resnet50", 64, False, 4),
        ("mobilenet_v2", 64, True, 0),
        ("mobilenet_v2", 64, False, 0),
        ("vgg16", 224, False, 0),
    ],
)
def test_graphs_that_we_did_not_write_agree_with_torchs_flop_counter(tmp_path, arch, size, dynamo, shortcuts) -> None:
    known = {"init_weights": False} if arch == "vgg16" else {}
    network = getattr(torchvision.models, arch)(weights=None, **known).eval()
    file = tmp_path / "net.onnx"
    try:
        torch.onnx.export(network, (torch.zeros(1, 3, size, size),), file, dynamo=dynamo, verbose=False)
    except Exception as error:
        if dynamo:
            raise
        pytest.skip(f"this torch has no TorchScript exporter: {error}")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta")(torch.zeros(1, 3, size, size, device="meta"))
    workload = read_workload(file)
    file.unlink()  # half a gigabyte
    modules = {name for name, each in network.named_modules() if isinstance(each, torch.nn.Conv2d | torch.nn.Linear)}
    assert 2 * sum(layer.macs for layer in workload.layers) == counter.get_total_flops()
    assert workload.not_counted == {} and workload.images == {workload.inputs[0]: (1, 3, size, size)}
    assert sum(layer.kind == "conv" and not layer.film for layer in workload.layers) == shortcuts
    assert {layer.name for layer in workload.layers} == modules
    counts = {name: each.weight.numel() for name, each in network.named_modules() if name in modules}
    assert {layer.name: layer.weights for layer in workload.layers} == counts


def test_files_that_are_no_networks_are_refused(tmp_path: Path) -> None:
    for name, content in [("empty.onnx", b""), ("text.onnx", b"hello"), ("noise.onnx", bytes(range(256)) * 40)]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WorkloadError, match="no ONNX model"):
            read_workload(tmp_path / name)
    with pytest.raises(WorkloadError, match="No such file"):
        read_workload(tmp_path / "absent.onnx")
    with pytest.raises(WorkloadError, match="directory"):
        read_workload(tmp_path)
    with pytest.raises(WorkloadError, match="nothing to price"):
        read_workload(save(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], {}, [1, 3, 4, 4]))


def test_shapes_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path, [helper.make_node("Conv", ["x", "w"], ["y"])], {"w": (4, 3, 9, 9)}, [1, 3, 4, 4])
    with pytest.raises(WorkloadError):
        read_workload(file)
    file = save(tmp_path, [helper.make_node("Conv", ["x", "w"], ["y"])], {"w": (4, 3)}, [1, 3, 4, 4])
    with pytest.raises(WorkloadError):
        read_workload(file)


def test_weights_kept_beside_the_file_are_never_opened(tmp_path: Path) -> None:
    file = save(tmp_path, [helper.make_node("Conv", ["x", "w"], ["y"])], {"w": (4, 3, 3, 3)}, [1, 3, 8, 8])
    model = onnx.load(file)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    file.write_bytes(model.SerializeToString())
    assert read_workload(file).layers[0].macs == 4 * 27 * 36  # shapes are enough


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_end_in_one_clear_error(plain_file: Path, tmp_path: Path, data) -> None:
    content = bytearray(plain_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, 4000))] = data.draw(st.integers(0, 255))
    file = tmp_path / "damaged.onnx"
    file.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        read_workload(file)
    except WorkloadError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def slimmable_files(wide_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Freshly initialised networks of two widths: dense and at the half width alone; with masks, and compressed."""
    from deploytool.export.artefact import export_untrained
    from deploytool.export.compress import compress_weights
    from deploytool.recipe import load_recipe

    folder = tmp_path_factory.mktemp("slimmable")
    base = Path(__file__).parents[2] / "recipes" / "digits-float.yaml"
    masked = folder / "recipe.yaml"
    masked.write_text(f"{base.read_text()}\nsparsity: {{kind: irregular, density: 0.1}}\n")
    chosen = ["model.arch=resnet8", "model.widths=[0.5, 1.0]"]
    export_untrained(load_recipe(base, chosen), folder / "half.onnx", width=0.5)
    export_untrained(load_recipe(masked, chosen), folder / "masked.onnx")
    model = onnx.load(folder / "masked.onnx")
    compress_weights(model)
    onnx.save(model, folder / "compressed.onnx")
    return {"both": wide_file, **{file.stem: file for file in folder.glob("*.onnx")}}


def numbers(file: Path, **chosen: float) -> list:
    layers = read_workload(file, **chosen).layers
    return [(each.name, each.macs, each.weights, each.film, each.in_values, each.out_values) for each in layers]


def zeros(file: Path, **chosen: float) -> list:
    return [(layer.nonzero, layer.fillers, layer.weight_bits) for layer in read_workload(file, **chosen).layers]


def test_a_slimmable_file_is_priced_at_a_width(slimmable_files: dict[str, Path]) -> None:
    both, half = slimmable_files["both"], slimmable_files["half"]
    assert numbers(both, width=0.5) == numbers(half)
    assert numbers(both) == numbers(both, width=1.0) != numbers(half)
    assert read_workload(both).width == 1.0 and read_workload(half).width is None
    assert read_workload(both, width=0.5).norms == read_workload(half).norms


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_zeros_of_a_width_are_those_of_its_block(slimmable_files: dict[str, Path], width: float) -> None:
    masked, compressed = slimmable_files["masked"], slimmable_files["compressed"]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(masked).graph.initializer}
    for layer in read_workload(masked, width=width).layers:
        block = stored[f"{layer.name}.weight"][: layer.out_channels, : layer.in_channels_per_group]
        assert block.size == layer.weights
        assert layer.nonzero == np.count_nonzero(block) and layer.weight_bits == 32
    assert numbers(masked, width=width) == numbers(compressed, width=width)
    assert zeros(masked, width=width) == zeros(compressed, width=width)
    assert "ScatterElements" in read_workload(compressed).transforms
