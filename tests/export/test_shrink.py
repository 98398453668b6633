"""Channels that no mask lets anything read leave the network and the file; no answer changes."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deploytool.cli import cli
from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import InputError
from deploytool.export.artefact import build_graph, export, export_untrained
from deploytool.export.parity import check_parity
from deploytool.export.shrink import shrink, weight_count
from deploytool.models.conditional import ConditionalModel, FloatModel, weight_names
from deploytool.models.factory import build_model, recipe_setting
from deploytool.models.masks import channel_density_of, density_of, initial_masks
from deploytool.models.oat import OatModel
from deploytool.models.registry import build_backbone
from deploytool.models.setting import Setting
from deploytool.models.wrn import WideResNet
from deploytool.recipe import Recipe, make_recipe
from deploytool.runtime.session import Session
from deploytool.runtime.specialize import specialize
from deploytool.training.run import Run
from hwmodels import read_workload

DIGITS = CATALOGUE["digits"]
CHANNEL = {"kind": "channel", "density": 0.3}
METHODS = {
    "switch": {"name": "float", "noise": "frozen", "conditioning": "switch"},
    "interpolate": {"name": "float", "noise": "frozen", "conditioning": "interpolate"},
    "oat": {"name": "oat"},
    "pgd-at": {"name": "pgd-at", "lambda": 0.5},
}


def recipe(method: str = "switch", sparsity: dict | None = CHANNEL, arch: str = "resnet8") -> Recipe:
    widths = [0.5, 1.0] if arch == "resnet8" else [1.0]
    model = {"arch": arch, "widths": widths}
    return make_recipe({"name": "x", "model": model, "method": METHODS[method], "sparsity": sparsity})


def with_statistics(model: ConditionalModel) -> ConditionalModel:
    """Random batch norms whose statistics fit the data, as training leaves them: logits depend on the image."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d) and not norm.weight.is_meta:
                norm.momentum = 1.0
                norm.weight.uniform_(0.5, 1.5, generator=generator)
                norm.bias.normal_(0, 0.1, generator=generator)
        for film in model.films.values() if isinstance(model, OatModel) else ():
            film.out.bias[: film.channels].uniform_(0.5, 1.5, generator=generator)
            film.out.bias[film.channels :].normal_(0, 0.1, generator=generator)
        model.train()
        for width in model.widths:
            for lam in (0.0, 1.0):
                model(images(64), Setting(lam, width=width))
    return model.eval()


def masked(backbone: nn.Module, density: float = 0.3, model: type[ConditionalModel] = FloatModel) -> ConditionalModel:
    weights = {name: backbone.get_parameter(name).detach() for name in weight_names(backbone)}
    made = model(backbone)
    made.set_masks(initial_masks(weights, density, "channel", torch.Generator().manual_seed(0), 1))
    return with_statistics(made)


def images(count: int = 7, shape: tuple[int, ...] = (1, 8, 8)) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(count))


def stored(file: Path) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in onnx.load(file).graph.initializer}


class TwoConvolutions(nn.Module):
    """A chain whose only group is that of `first`'s four output channels."""

    def __init__(self, readers: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.readers = nn.ModuleList(nn.Conv2d(4, 3, 3, padding=1) for _ in range(readers))

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(image)))
        total = self.readers[0](x)
        for reader in self.readers[1:]:
            total = total + reader(x)
        return total.mean(dim=(2, 3))


class Flattened(nn.Module):
    """Every channel of the convolution is four inputs of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 1)
        self.linear = nn.Linear(12, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(torch.relu(self.conv(image)).flatten(1))


def columns(layer: nn.Conv2d | nn.Linear, active: list[int]) -> Tensor:
    """A mask that lets a layer read these input channels alone."""
    mask = torch.zeros_like(layer.weight, dtype=torch.bool)
    mask[:, active] = True
    return mask


def test_exactly_the_channels_that_the_reader_masks_go() -> None:
    network = TwoConvolutions()
    model = ConditionalModel(network)
    model.set_masks({"readers.0.weight": columns(network.readers[0], [1, 3])})
    model = with_statistics(model)
    shrunk = shrink(model, Setting())
    assert {name: kept.tolist() for name, kept in shrunk.kept_out.items()} == {"first": [1, 3]}
    assert {name: kept.tolist() for name, kept in shrunk.kept_in.items()} == {"readers.0": [1, 3]}
    assert {name: kept.tolist() for name, kept in shrunk.kept_norm.items()} == {"norm": [1, 3]}
    small = shrunk.network
    torch.testing.assert_close(small.first.weight, network.first.weight[[1, 3]])
    torch.testing.assert_close(small.first.bias, network.first.bias[[1, 3]])
    torch.testing.assert_close(small.norm.running_var, network.norm.running_var[[1, 3]])
    torch.testing.assert_close(small.readers[0].weight, network.readers[0].weight[:, [1, 3]])
    torch.testing.assert_close(small(images()), model(images()))
    assert not any(parameter.requires_grad for parameter in small.parameters())


def test_a_channel_stays_while_one_reader_reads_it() -> None:
    network = TwoConvolutions(readers=2)
    model = ConditionalModel(network)
    model.set_masks(
        {
            "readers.0.weight": columns(network.readers[0], [0]),
            "readers.1.weight": columns(network.readers[1], [0, 2]),
        }
    )
    shrunk = shrink(with_statistics(model), Setting())
    assert shrunk.kept_out["first"].tolist() == [0, 2]
    torch.testing.assert_close(shrunk.network(images()), model(images()))


def test_a_reader_without_a_mask_keeps_every_channel() -> None:
    network = TwoConvolutions(readers=2)
    model = ConditionalModel(network)
    model.set_masks({"readers.0.weight": columns(network.readers[0], [0])})
    shrunk = shrink(model.eval(), Setting())
    assert (shrunk.kept_out, shrunk.kept_in, shrunk.kept_norm) == ({}, {}, {})


def test_one_channel_stays_where_all_could_go() -> None:
    network = TwoConvolutions()
    model = ConditionalModel(network)
    model.set_masks({"readers.0.weight": columns(network.readers[0], [])})
    shrunk = shrink(with_statistics(model), Setting())
    assert len(shrunk.kept_out["first"]) == 1
    torch.testing.assert_close(shrunk.network(images()), model(images()))


def test_a_channel_that_is_flattened_goes_when_all_its_inputs_are_masked() -> None:
    network = Flattened()
    model = ConditionalModel(network)
    model.set_masks({"linear.weight": columns(network.linear, [4, 8, 9, 10, 11])})
    shrunk = shrink(model.eval(), Setting(), shape=(1, 2, 2))
    assert shrunk.kept_out["conv"].tolist() == [1, 2]
    assert shrunk.kept_in["linear"].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    image = images(3, (1, 2, 2))
    torch.testing.assert_close(shrunk.network(image), model(image))


@pytest.mark.parametrize("multiple", [1, 8, 16])
def test_widths_are_rounded_up(multiple: int) -> None:
    model = masked(build_backbone("resnet8", DIGITS))
    shrunk = shrink(model, Setting(), multiple)
    whole = {name: module for name, module in model.backbone.named_modules() if isinstance(module, nn.Conv2d)}
    assert shrunk.kept_out
    for name, kept in shrunk.kept_out.items():
        assert len(kept) % multiple == 0 and len(kept) < whole[name].out_channels
    if multiple == 1:
        assert any(len(kept) % 8 for kept in shrunk.kept_out.values())
    with torch.no_grad():
        torch.testing.assert_close(shrunk.network(images()), model(images()), rtol=1e-4, atol=1e-4)


def test_rounding_reads_the_whole_width_of_an_odd_layer_as_enough() -> None:
    network = TwoConvolutions()
    model = ConditionalModel(network)
    model.set_masks({"readers.0.weight": columns(network.readers[0], [1])})
    assert shrink(model.eval(), Setting(), 8).kept_out == {}  # 4 channels are no block of 8


@pytest.mark.parametrize("wrong", [0, 2, 32, -1])
def test_other_roundings_are_refused(tmp_path: Path, wrong: int) -> None:
    with pytest.raises(InputError, match=f"round_channels \\(={wrong}\\) must be 1, 8 or 16"):
        export_untrained(recipe(), tmp_path / "m.onnx", round_channels=wrong, width=1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("method", "width"), [*((name, 1.0) for name in METHODS), ("switch", 0.5), ("oat", 0.5)])
def test_parity_of_methods_and_widths_with_fewer_weights(tmp_path: Path, method: str, width: float) -> None:
    model = with_statistics(build_model(recipe(method), DIGITS))
    setting = recipe_setting(recipe(method), width=width)
    file = tmp_path / "m.onnx"
    file.write_bytes(build_graph(model, DIGITS, setting).SerializeToString())
    assert check_parity(file, model, setting, images()).max_abs_error <= 1e-4
    onnx.checker.check_model(str(file), full_check=True)
    assert [value.name for value in onnx.load(file).graph.input] == ["image", "lambda"][: 1 + model.is_conditional]
    held = sum(math.prod(shape) for name, shape in stored(file).items() if name in weight_names(model.backbone))
    assert held < 0.6 * weight_count(model.plain_network(setting))


@pytest.mark.parametrize(("method", "multiple"), [("switch", 16), ("oat", 8)])
def test_parity_of_rounded_files(tmp_path: Path, method: str, multiple: int) -> None:
    model = with_statistics(build_model(recipe(method), DIGITS))
    setting = recipe_setting(recipe(method))
    file = tmp_path / "m.onnx"
    file.write_bytes(build_graph(model, DIGITS, setting, multiple).SerializeToString())
    assert check_parity(file, model, setting, images()).max_abs_error <= 1e-4
    assert stored(file)["layer3.0.conv2.weight"][1] in range(multiple, 64, multiple)


BACKBONES = {
    "resnet20": lambda: build_backbone("resnet20", DIGITS),
    "wrn10-1": lambda: WideResNet(10, 1, 1, 10, DIGITS.mean, DIGITS.std),
    "vgg16": lambda: build_backbone("vgg16", DIGITS, 0.25),
    "mobilenet": lambda: build_backbone("mobilenet", DIGITS),
    "lenet": lambda: build_backbone("lenet", DIGITS),
}


@pytest.mark.parametrize("arch", list(BACKBONES))
def test_parity_of_every_kind_of_backbone(tmp_path: Path, arch: str) -> None:
    backbone = BACKBONES[arch]()
    model = masked(backbone)
    setting = Setting(noise="frozen")
    file = tmp_path / "m.onnx"
    file.write_bytes(build_graph(model, DIGITS, setting).SerializeToString())
    assert check_parity(file, model, setting, images()).max_abs_error <= 1e-3
    held = sum(math.prod(shape) for name, shape in stored(file).items() if name in weight_names(backbone))
    assert held < 0.9 * weight_count(backbone)


def test_film_rows_and_depthwise_filters_follow_their_channels(tmp_path: Path) -> None:
    model = masked(build_backbone("mobilenet", DIGITS, 0.25), model=OatModel)
    setting = Setting(noise="none")
    file = tmp_path / "m.onnx"
    file.write_bytes(build_graph(model, DIGITS, setting).SerializeToString())
    assert check_parity(file, model, setting, images()).max_abs_error <= 1e-3
    shrunk = shrink(model, setting)
    (depthwise,) = [m for name, m in shrunk.network.named_modules() if name == "blocks.1.layers.3"]
    kept = shrunk.kept_out["blocks.1.layers.3"]
    assert depthwise.groups == depthwise.in_channels == len(kept) and "blocks.1.layers.3" not in shrunk.kept_in
    assert torch.equal(shrunk.kept_in["blocks.1.layers.6"], kept)
    assert stored(file)["blocks.1.layers.4.film.out.weight"][:2] == (2, len(kept))


def test_streams_with_padded_channels_stay_whole() -> None:
    """Option A adds channels between stages: which channel is which is not the dependency graph's to know."""
    model = masked(build_backbone("resnet20", DIGITS), density=0.1)
    shrunk = shrink(model, Setting())
    stream = {"conv1", "linear"} | {f"layer{stage}.{block}.conv2" for stage in (1, 2, 3) for block in range(3)}
    assert not stream & set(shrunk.kept_out)
    assert set(shrunk.kept_in) == {f"layer{stage}.{block}.conv2" for stage in (1, 2, 3) for block in range(3)}
    with torch.no_grad():
        torch.testing.assert_close(shrunk.network(images()), model(images()), rtol=1e-4, atol=1e-4)


def test_a_residual_stream_loses_one_set_of_channels() -> None:
    shrunk = shrink(masked(build_backbone("resnet34", DIGITS, 0.25), density=0.1), Setting())
    stream = [shrunk.kept_out[name].tolist() for name in ("layer4.0.conv2", "layer4.0.shortcut.0", "layer4.2.conv2")]
    assert stream[0] == stream[1] == stream[2]
    assert stream[0] == shrunk.kept_in["linear"].tolist() == shrunk.kept_norm["layer4.1.bn2"].tolist()


def test_nothing_goes_where_nothing_is_masked(tmp_path: Path) -> None:
    for sparsity in (None, {"kind": "channel", "density": 1.0}):
        model = build_model(recipe(sparsity=sparsity), DIGITS).eval()
        shrunk = shrink(model, Setting(noise="none"))
        assert (shrunk.kept_out, shrunk.kept_in, shrunk.kept_norm) == ({}, {}, {})
        assert weight_count(shrunk.network) == weight_count(model.backbone)
    result = export_untrained(recipe(sparsity=None), tmp_path / "m.onnx", width=1.0)
    assert set(result) == {"file", "size_mb", "parity"}
    assert not any(node.op_type == "Gather" for node in onnx.load(tmp_path / "m.onnx").graph.node)


def test_the_file_is_smaller_and_the_result_says_by_how_much(tmp_path: Path) -> None:
    small, whole = tmp_path / "small.onnx", tmp_path / "whole.onnx"
    result = export_untrained(recipe(), small, width=1.0)
    export_untrained(recipe(sparsity=None), whole, width=1.0)
    assert small.stat().st_size < 0.6 * whole.stat().st_size
    masks = build_model(recipe(), DIGITS).masks
    assert result["density"] == pytest.approx(density_of(masks), abs=1e-6)
    assert result["compression_ratio"] == pytest.approx(1 / density_of(masks), abs=1e-5)
    assert result["channel_density"] == pytest.approx(channel_density_of(masks), abs=1e-6)
    assert result["channel_reduction_factor"] == pytest.approx(1 / channel_density_of(masks), abs=1e-5)
    before, after = read_workload(whole), read_workload(small)
    assert [layer.name for layer in before.layers] == [layer.name for layer in after.layers]
    assert sum(layer.macs for layer in after.layers) < 0.6 * sum(layer.macs for layer in before.layers)
    weights = sum(layer.weights for layer in before.layers), sum(layer.weights for layer in after.layers)
    assert result["params_ratio"] == pytest.approx(weights[0] / weights[1], abs=1e-5)
    properties = {p.key: p.value for p in onnx.load(small).metadata_props}
    assert float(properties["deploytool.density"]) == pytest.approx(density_of(masks), abs=1e-6)


def test_a_masked_file_that_lost_no_channel_has_no_params_ratio(tmp_path: Path) -> None:
    result = export_untrained(recipe(sparsity={"kind": "irregular", "density": 0.9}), tmp_path / "m.onnx", width=1.0)
    assert result["compression_ratio"] == pytest.approx(1 / 0.9, abs=0.01) and result["channel_density"] == 1
    assert "params_ratio" not in result


def test_a_specialised_shrunk_file_is_a_plain_small_network(tmp_path: Path) -> None:
    export_untrained(recipe(), tmp_path / "m.onnx", width=1.0)
    specialize(tmp_path / "m.onnx", 0.7, tmp_path / "plain.onnx")
    assert not {node.op_type for node in onnx.load(tmp_path / "plain.onnx").graph.node} & {"Gather", "Where", "Tile"}
    model = build_model(recipe(), DIGITS).eval()
    with torch.no_grad():
        expected = model(images(), recipe_setting(recipe(), 0.7))
    answer = Session(tmp_path / "plain.onnx")(images().numpy())
    torch.testing.assert_close(torch.from_numpy(answer), expected, rtol=0, atol=1e-3)


def test_round_channels_at_the_prompt(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("name: x\nmodel: {arch: resnet8}\nmethod: {name: float}\nsparsity: {kind: channel, density: 0.3}\n")
    sizes = []
    for option in ([], ["--round-channels", "16"]):
        done = CliRunner().invoke(cli, ["export", str(file), "--untrained", "-o", str(tmp_path / "m.onnx"), *option])
        assert done.exit_code == 0, done.output
        sizes.append(math.prod(stored(tmp_path / "m.onnx")["layer3.0.conv2.weight"]))
    assert sizes[0] < sizes[1] < 64 * 64 * 9
    refused = CliRunner().invoke(
        cli, ["export", str(file), "--untrained", "-o", str(tmp_path / "n.onnx"), "--round-channels", "4"]
    )
    assert refused.exit_code == 2 and "'1', '8', '16'" in refused.output


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**16),
    density=st.sampled_from([0.05, 0.2, 0.5]),
    width=st.sampled_from([0.5, 1.0]),
    lam=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_shrunk_networks_answer_as_masked_ones(seed: int, density: float, width: float, lam: float) -> None:
    model = with_statistics(build_model(recipe(sparsity=None), DIGITS))
    generator = torch.Generator().manual_seed(seed)
    weights = {name: model.backbone.get_parameter(name) for name in weight_names(model.backbone)}
    model.set_masks(
        {
            name: (torch.rand(1, w.shape[1], *[1] * (w.dim() - 2), generator=generator) < density).expand(w.shape)
            for name, w in weights.items()
        }
    )
    setting = Setting(lam, width=width)
    shrunk = shrink(model, setting)
    assert weight_count(shrunk.network) < weight_count(model.plain_network(setting))
    with torch.no_grad():
        torch.testing.assert_close(shrunk.network(images()), model(images(), setting), rtol=1e-4, atol=1e-3)


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**16), lam=st.floats(0, 1, width=32))
def test_specialised_files_of_random_masks_answer_as_the_masked_model(tmp_path: Path, seed: int, lam: float) -> None:
    drawn = make_recipe(recipe().model_dump(by_alias=True) | {"seed": seed})
    export_untrained(drawn, tmp_path / "m.onnx", width=1.0)
    specialize(tmp_path / "m.onnx", lam, tmp_path / "plain.onnx")
    with torch.no_grad():
        expected = build_model(drawn, DIGITS).eval()(images(), recipe_setting(drawn, lam))
    answer = Session(tmp_path / "plain.onnx")(images().numpy())
    torch.testing.assert_close(torch.from_numpy(answer), expected, rtol=0, atol=1e-3)


def test_a_trained_run_with_channel_masks_exports_smaller(trained_run: Run, tmp_path: Path) -> None:
    whole = export(trained_run, tmp_path / "whole.onnx")
    weights = {name: trained_run.model.backbone.get_parameter(name) for name in trained_run.model.noise_windows}
    model = copy.deepcopy(trained_run.model)
    model.set_masks(initial_masks(weights, 0.3, "channel", torch.Generator().manual_seed(0), 1))
    sparse = export(replace(trained_run, model=model), tmp_path / "small.onnx")
    assert sparse["parity"]["max_abs_error"] <= 1e-3 and sparse["size_mb"] < 0.7 * whole["size_mb"]
    assert sparse["params_ratio"] > 1.5 and "density" not in whole
