"""`export --quantize int8`: what the file holds, what it costs in accuracy, and the INT8 networks made from it."""

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from torch import nn

from deploytool.cli import cli
from deploytool.data.catalogue import CATALOGUE, DatasetInfo
from deploytool.data.datasets import load_dataset
from deploytool.errors import ArtefactError, InputError, ParityError
from deploytool.export import quantize
from deploytool.export.artefact import (
    build_graph,
    export,
    export_setting,
    export_untrained,
    random_images,
    write_artefact,
)
from deploytool.export.quantize import (
    lost_accuracy,
    moved_coverage,
    quantizer_of_untrained,
    store_int8,
    verdict_columns,
)
from deploytool.models.conditional import ConditionalModel, FloatModel
from deploytool.models.factory import build_model
from deploytool.models.layers import Normalize
from deploytool.models.mobilenet import InvertedResidual
from deploytool.models.setting import Setting
from deploytool.models.wrn import WideResNet
from deploytool.recipe import Recipe, make_recipe
from deploytool.report.tables import export_table
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.graph import assemble
from deploytool.runtime.partial import evaluate, specialized_graph, specialized_model
from deploytool.runtime.reasoning import Reasoning
from deploytool.runtime.session import Session
from deploytool.runtime.specialize import specialize
from deploytool.training.run import Run

Array = np.ndarray[Any, Any]

DIGITS = CATALOGUE["digits"]
SHARED = Path(__file__).parents[3] / "shared" / "data"
STEP = 1e-6
METHODS: dict[str, dict[str, Any]] = {
    "float": {"name": "float", "conditioning": "switch"},
    "interpolate": {"name": "float", "conditioning": "interpolate"},
    "oat": {"name": "oat", "encoding": "onehot", "encoding_size": 8},
    "pgd-at": {"name": "pgd-at", "lambda": 0.5},
}


def recipe_of(method: str, arch: str = "resnet8", **sections: Any) -> Recipe:
    widths = sections.pop("widths", [1.0])
    return make_recipe({"name": "x", "model": {"arch": arch, "widths": widths}, "method": METHODS[method], **sections})


def fitted(model: ConditionalModel) -> ConditionalModel:
    """Batch norms fitted to images, the conditions apart: with fresh ones, logits hardly depend on the image."""
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
    networks = [model.skeleton(width).modules() for width in model.widths]
    norms = [norm for norm in itertools.chain(*networks) if isinstance(norm, nn.BatchNorm2d)]
    with torch.no_grad():
        for momentum in (1.0, 0.1):  # once to forget the start; the exported operator names the other
            for norm in norms:
                norm.momentum = momentum
            for width, lam in itertools.product(model.widths, (0.0, 1.0)):
                model.train()(torch.from_numpy(pictures(64)), Setting(lam, width=width))
    return model.eval()


def write(recipe: Recipe, file: Path, model: ConditionalModel | None = None, **options: Any) -> dict[str, Any]:
    """Export a fitted model, the recipe's where None, calibrated on random images."""
    model = model or fitted(build_model(recipe, DIGITS))
    width = options.pop("width", None)
    setting = replace(export_setting(recipe, None, None), width=width or 1.0)
    narrow = model.widths[:-1] if width is None else ()
    quantizer = quantizer_of_untrained(model, recipe, DIGITS, setting, narrow, 16)
    images = random_images(DIGITS)
    return write_artefact(
        model, recipe, DIGITS, images, file, setting, False, narrow=narrow, quantizer=quantizer, **options
    )


def stock(model: onnx.ModelProto | Path, image: Array, **knobs: float) -> Array:
    """Logits by stock onnxruntime, default options."""
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    feed = {name.replace("lam", "lambda"): np.array(value, np.float32) for name, value in knobs.items()}
    return session.run(["logits"], {"image": image, **feed})[0]


def pictures(count: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).random((count, *DIGITS.shape), np.float32)


def tensors(file: Path) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}


def close(answer: Array, want: Array, share: float) -> bool:
    return bool(np.abs(answer - want).max() <= share * np.ptp(want)) and bool(np.ptp(want) > 1e-3)


@pytest.fixture(scope="module")
def switched(trained_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The trained FLOAT run with the paper's switch, and the result of its export."""
    file = tmp_path_factory.mktemp("int8") / "model.onnx"
    return file, export(trained_run, file, conditioning="switch", quantize="int8")


def test_the_file_keeps_its_graph_and_holds_weights_of_a_byte(
    switched: tuple[Path, dict[str, Any]], trained_file: Path, trained_run: Run
) -> None:
    file, _ = switched
    onnx.checker.check_model(str(file), full_check=True)
    small, plain = tensors(file), tensors(trained_file)
    names = set(trained_run.model.conditioned)
    assert names and set(small) == (set(plain) - names) | {f"{n}.{part}" for n in names for part in ("int8", "scale")}
    for name in names:
        scale = np.abs(plain[name]).reshape(len(plain[name]), -1).max(1) / 127
        np.testing.assert_allclose(small[f"{name}.scale"], scale, rtol=1e-6)
        assert small[f"{name}.int8"].dtype == np.int8
        column = scale.reshape(-1, *[1] * (plain[name].ndim - 1))
        assert (np.abs(small[f"{name}.int8"] * column - plain[name]) <= 0.5001 * column).all()
    for name in set(plain) - names:
        np.testing.assert_array_equal(small[name], plain[name])
    old, new = ([each.op_type for each in onnx.load(f).graph.node] for f in (trained_file, file))
    assert new == ["DequantizeLinear"] * len(names) + old


def test_stock_onnxruntime_runs_the_file(switched: tuple[Path, dict[str, Any]], trained_file: Path) -> None:
    image = pictures(8)
    for lam in (0.0, 0.3, 1.0):
        assert close(stock(switched[0], image, lam=lam), stock(trained_file, image, lam=lam), 0.05)


def test_the_result_says_what_it_costs(switched: tuple[Path, dict[str, Any]], trained_file: Path) -> None:
    file, result = switched
    numbers = result["quantization"]
    assert set(numbers) == {"precision", "size_ratio", "calibration_images", "rows"}
    assert (numbers["precision"], numbers["calibration_images"]) == ("int8", 256)
    assert numbers["size_ratio"] == pytest.approx(file.stat().st_size / trained_file.stat().st_size, abs=1e-4)
    assert [(row["lambda"], row["width"], row["n"]) for row in numbers["rows"]] == [(0, 1, 500), (1, 1, 500)]
    for row in numbers["rows"]:
        assert not {"coverage", "coverage_int8", "same_verdict"} & set(row)  # of files with reasoning labels
        for kind in ("clean", "robust"):
            # 1 of 50 answers may differ between the two; the difference of their accuracies then has a standard
            # deviation of sqrt(0.02 / 500) = 0.0063 or less. Two of them beside the half point that is allowed.
            assert row[f"{kind}_accuracy_int8"] >= row[f"{kind}_accuracy"] - 0.018
    assert numbers["rows"][0]["clean_accuracy"] > 0.8


def test_accuracies_are_those_of_the_two_networks(
    switched: tuple[Path, dict[str, Any]], trained_file: Path, trained_run: Run
) -> None:
    image, label = load_dataset(trained_run.recipe.data).test.batch(slice(0, 500))
    for row in switched[1]["quantization"]["rows"]:
        with torch.no_grad():
            logits = trained_run.model(image, Setting(row["lambda"]))
        # an image whose two best logits are equal up to rounding may fall either way
        assert row["clean_accuracy"] == pytest.approx(float((logits.argmax(1) == label).float().mean()), abs=0.0021)
        int8 = specialized_model(read_artefact(switched[0]), row["lambda"])
        assert row["clean_accuracy_int8"] == float((stock(int8, image.numpy()).argmax(1) == label.numpy()).mean())
        assert row["robust_accuracy"] < row["clean_accuracy"]


def test_ranges_are_of_the_training_images_at_every_setting(
    switched: tuple[Path, dict[str, Any]], trained_run: Run
) -> None:
    found = read_artefact(switched[0]).metadata.ranges
    assert found is not None and found.images == 256
    points = {each.lambda_threshold: each.lambdas for each in found.sets}
    assert points == {0.0: (0, STEP, 0.2, 0.7, 1), 0.5: (0, 0.2, 0.5, 0.5 + STEP, 0.7, 1)}
    pixels = load_dataset(trained_run.recipe.data).train.images
    mean, std = DIGITS.mean[0], DIGITS.std[0]
    limits = (float(pixels.min()) - mean) / std, (float(pixels.max()) - mean) / std
    for lam in (0.0, 0.5, 1.0):
        ranges = found.at(lam, 0.5, 1.0)
        assert next(iter(ranges)) == "div" and ranges["div"] == pytest.approx(limits, rel=1e-4)  # black and white occur
        assert ranges["relu"][0] == 0 and ranges["mean.pooled"][1] > 0
    assert found.at(0.5, 0.5, 1.0) != found.at(0.5 + STEP, 0.5, 1.0)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.5])
@pytest.mark.parametrize("lam", [0.0, 0.1, 0.5, 0.5 + STEP, 1.0])
def test_an_int8_network_answers_as_torch_does(
    switched: tuple[Path, dict[str, Any]], trained_run: Run, tmp_path: Path, lam: float, threshold: float | None
) -> None:
    result = specialize(switched[0], lam, tmp_path / "x.onnx", threshold)
    image = load_dataset(trained_run.recipe.data).test.batch(slice(0, 64))[0]
    with torch.no_grad():
        want = trained_run.model(image, Setting(lam, threshold or 0.0)).numpy()
    assert close(stock(tmp_path / "x.onnx", image.numpy()), want, 0.05)
    onnx.checker.check_model(str(tmp_path / "x.onnx"), full_check=True)
    metadata = read_artefact(tmp_path / "x.onnx").metadata
    assert (result["precision"], metadata.precision, metadata.lam, metadata.ranges) == ("int8", "int8", lam, None)
    assert result["size_mb"] * 1e6 < 0.45 * (switched[0].parent / "model.onnx").stat().st_size * 4
    assert 0 < result["max_abs_error"] < 0.25 * np.ptp(want)


def test_float32_of_the_same_file_is_exact(switched: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    result = specialize(switched[0], 0.3, tmp_path / "x.onnx", precision="float32")
    assert result["precision"] == "float32" and result["max_abs_error"] <= 1e-4
    image = pictures(4)
    want = stock(switched[0], image, lam=0.3)
    np.testing.assert_allclose(stock(tmp_path / "x.onnx", image), want, atol=1e-4)


def test_neither_torch_nor_data_are_needed_to_specialise(switched: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, sklearn=None)\n"
        "from deploytool.runtime.specialize import specialize\n"
        "print(specialize(sys.argv[1], 0.33, sys.argv[2])['precision'])"
    )
    command = [sys.executable, "-c", code, str(switched[0]), str(tmp_path / "x.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "int8\n", done.stderr


def test_a_name_is_made_for_each_precision(switched: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(switched[0].read_bytes())
    for precision in (None, "int8", "float32"):
        specialize(source, 0.5, precision=precision)  # type: ignore[arg-type]
    names = {"m-lambda-0.5.onnx", "m-lambda-0.5-int8.onnx", "m-lambda-0.5-float32.onnx", "m.onnx"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "m-lambda-0.5.onnx").read_bytes() == (tmp_path / "m-lambda-0.5-int8.onnx").read_bytes()


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_a_graph_that_was_evaluated_before_gives_the_same_network(
    switched: tuple[Path, dict[str, Any]], threshold: float
) -> None:
    """As a session does it: whatever depends on no knob is computed once."""
    artefact = read_artefact(switched[0])
    given = {"lambda_threshold": np.array(threshold, np.float32)}
    partly = replace(artefact, graph=evaluate(artefact.graph, given))
    for lam in (0.0, 0.4, 0.6):
        one, other = (assemble(specialized_graph(each, lam, threshold, 1.0)) for each in (artefact, partly))
        assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def test_a_session_answers_as_the_specialised_file(switched: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    specialize(switched[0], 0.3, tmp_path / "x.onnx")
    image = pictures(4)
    np.testing.assert_allclose(Session(tmp_path / "x.onnx", threads=1)(image), stock(tmp_path / "x.onnx", image))


def test_a_plain_model_becomes_the_int8_network_itself(plain_run: Run, plain_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    (row,) = export(plain_run, file, quantize="int8")["quantization"]["rows"]
    assert (row["lambda"], row["width"], row["n"]) == (None, 1, 500)
    assert row["clean_accuracy_int8"] >= row["clean_accuracy"] - 0.018
    onnx.checker.check_model(str(file), full_check=True)
    assert read_artefact(file).metadata.precision == "int8" and file.stat().st_size < 0.35 * plain_file.stat().st_size
    image = load_dataset(plain_run.recipe.data).test.batch(slice(0, 32))[0].numpy()
    assert close(stock(file, image), stock(plain_file, image), 0.05)
    np.testing.assert_allclose(Session(file, threads=1)(image), stock(file, image), atol=1e-6)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "o.onnx"), 3
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    ops = {each.op_type for each in onnx.load(tmp_path / "o.onnx").graph.node}
    assert "QLinearConv" in ops and not {"Conv", "FusedConv", "Gemm", "FusedGemm"} & ops
    with pytest.raises(InputError, match="plain model already"):
        specialize(file, None, tmp_path / "x.onnx")


@pytest.mark.parametrize("method", ["float", "oat", "pgd-at"])
def test_every_width_of_a_slimmable_file(tmp_path: Path, method: str) -> None:
    recipe, file = recipe_of(method, widths=[0.5, 1.0]), tmp_path / "m.onnx"
    write(recipe, file)  # equal models each time: seeds decide
    model, image = fitted(build_model(recipe, DIGITS)), pictures(16)
    lambdas = (None,) if method == "pgd-at" else (0.0, 0.4, 1.0)
    for lam, width in itertools.product(lambdas, (0.5, 1.0)):
        specialize(file, lam, tmp_path / "x.onnx", width=width)
        setting = replace(export_setting(recipe, None, None), lam=lam or 0.0, width=width)
        with torch.no_grad():
            want = model(torch.from_numpy(image), setting).numpy()
        assert close(stock(tmp_path / "x.onnx", image), want, 0.1)
        knobs = {"width": width} if lam is None else {"width": width, "lam": lam}
        assert close(stock(file, image, **knobs), want, 0.1)


class Depthwise(nn.Module):
    """The first blocks of a MobileNet; all of it, with random weights, turns any rounding into another answer."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        c = int(16 * width)
        self.normalize = Normalize(DIGITS.mean, DIGITS.std)
        self.stem = nn.Sequential(nn.Conv2d(1, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU6())
        same, smaller = (c, 4 * c, c, 1, True, True), (c, 4 * c, 2 * c, 2, True, False)
        self.blocks = nn.Sequential(InvertedResidual(*same), InvertedResidual(*smaller))
        self.linear = nn.Linear(2 * c, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.linear(self.blocks(self.stem(self.normalize(image))).mean(dim=(2, 3)))


def test_a_mobilenet_of_one_width(tmp_path: Path) -> None:
    """Depthwise convolutions, whose number of groups keeps each width in a file of its own; Clip; linear blocks."""
    recipe, file = recipe_of("interpolate", widths=[0.5, 1.0]), tmp_path / "m.onnx"
    model, image = fitted(FloatModel(Depthwise(), narrow={0.5: Depthwise(0.5)})), pictures(16)
    write(recipe, file, model, width=0.5)
    specialize(file, 0.5, tmp_path / "x.onnx")
    with torch.no_grad():
        want = model(torch.from_numpy(image), Setting(0.5, conditioning="interpolate", width=0.5)).numpy()
    assert close(stock(tmp_path / "x.onnx", image), want, 0.1)
    made = onnx.load(tmp_path / "x.onnx").graph.node
    assert not any(node.op_type == "Clip" for node in made)  # Q saturates in its place
    assert any(each.name == "group" and each.i == 32 for node in made for each in node.attribute)


def test_a_pre_activation_network(tmp_path: Path) -> None:
    """Its batch norms do not fold: they compute in float32 between convolutions of INT8."""
    recipe, file = recipe_of("float", "wrn40-2"), tmp_path / "m.onnx"
    model = fitted(FloatModel(WideResNet(10, 1, 1, 10, DIGITS.mean, DIGITS.std)))
    write(recipe, file, model)
    specialize(file, 0.4, tmp_path / "x.onnx")
    ops = [each.op_type for each in onnx.load(tmp_path / "x.onnx").graph.node]
    assert ops.count("BatchNormalization") == 4  # of 7; the three bn2 of its blocks fold
    image = pictures(16)
    with torch.no_grad():
        want = model(torch.from_numpy(image), Setting(0.4)).numpy()
    assert close(stock(tmp_path / "x.onnx", image), want, 0.1)


def test_masks_survive(tmp_path: Path) -> None:
    """Noise is where weights are: also where one is far below half a step."""
    recipe = recipe_of("float", sparsity={"kind": "irregular", "density": 0.3})
    model = fitted(build_model(recipe, DIGITS))
    with torch.no_grad():
        weight = model.backbone.get_parameter("layer1.0.conv1.weight")
        active = weight[weight != 0]
        weight[weight != 0] = torch.where(active.abs() < active.abs().median(), active * 1e-4, active)
    write(recipe, tmp_path / "m.onnx", model)
    small, image = tensors(tmp_path / "m.onnx"), pictures(8)
    plain = build_graph(model, DIGITS, export_setting(recipe, None, None)).graph.initializer
    thetas = {tensor.name: numpy_helper.to_array(tensor) for tensor in plain}
    for name in model.masks:
        np.testing.assert_array_equal(small[f"{name}.int8"] != 0, thetas[name] != 0)
    with torch.no_grad():
        want = model(torch.from_numpy(image), Setting(1.0)).numpy()
    assert close(stock(tmp_path / "m.onnx", image, lam=1.0), want, 0.1)


@pytest.mark.parametrize("method", ["float", "pgd-at"])
def test_sparse_storage_of_int8_weights_gives_the_same_networks(tmp_path: Path, method: str) -> None:
    recipe, image = recipe_of(method, sparsity={"kind": "irregular", "density": 0.1}), pictures(8)
    for compress in (False, True):
        write(recipe, tmp_path / f"{compress}.onnx", compress=compress)
    dense, sparse = tmp_path / "False.onnx", tmp_path / "True.onnx"
    assert sparse.stat().st_size < 0.7 * dense.stat().st_size
    knobs = {} if method == "pgd-at" else {"lam": 0.7}
    np.testing.assert_allclose(stock(sparse, image, **knobs), stock(dense, image, **knobs), atol=1e-5)
    lam = knobs.get("lam")
    specialize(sparse, lam, tmp_path / "x.onnx")
    if lam is None:
        assert read_artefact(tmp_path / "x.onnx").metadata.precision == "int8"
        np.testing.assert_allclose(stock(tmp_path / "x.onnx", image), stock(dense, image), atol=1e-5)
        with pytest.raises(InputError, match="is an int8 network"):
            specialize(sparse, lam, tmp_path / "y.onnx", precision="float32")
    else:
        want = stock(specialized_model(read_artefact(dense), lam), image)
        np.testing.assert_allclose(stock(tmp_path / "x.onnx", image), want, atol=1e-5)


def test_at_the_size_of_resnet34_the_file_is_a_quarter(resnet34_file: Path) -> None:
    model = onnx.load(resnet34_file)
    names = [tensor.name for tensor in model.graph.initializer if tensor.name.endswith(".weight")]
    before = model.ByteSize()
    store_int8(model, names, set())
    assert model.ByteSize() <= 0.27 * before


def test_an_untrained_file_has_no_accuracy_and_is_the_same_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        result = export_untrained(recipe_of("float"), tmp_path / name, quantize="int8")
        assert result["quantization"]["rows"] == [] and result["quantization"]["calibration_images"] == 32
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_without_ranges_tells_how_to_make_one(trained_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape("has no activation ranges")) as caught:
        specialize(trained_file, 0.5, tmp_path / "x.onnx", precision="int8")
    assert "export it again with --quantize int8" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="must be int8 or float32"):
        specialize(trained_file, 0.5, tmp_path / "x.onnx", precision="int4")  # type: ignore[arg-type]


def tampered(file: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    model = onnx.load(file)
    (entry,) = (each for each in model.metadata_props if each.key == "deploytool.quantization")
    document = json.loads(entry.value)
    change(document)
    entry.value = json.dumps(document)
    out.write_bytes(model.SerializeToString())
    return out


def test_ranges_of_other_tensors_are_one_line(switched: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    def rename(document: dict[str, Any]) -> None:
        document["tensors"][1] = "elsewhere"

    with pytest.raises(ArtefactError, match=r"cannot be specialised \(KeyError: 'relu'\); export it again"):
        specialize(tampered(switched[0], tmp_path / "m.onnx", rename), 0.5, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_ranges_that_are_far_off_are_noticed(
    switched: tuple[Path, dict[str, Any]], tmp_path: Path, factor: float
) -> None:
    def scale(document: dict[str, Any]) -> None:
        for each in document["sets"]:
            for side in ("low", "high"):
                each[side] = [[value * factor for value in row] for row in each[side]]

    with pytest.raises(ArtefactError, match=r"x\.onnx was not written: its logits differ"):
        specialize(tampered(switched[0], tmp_path / "m.onnx", scale), 0.5, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_an_export_that_goes_wrong_leaves_nothing(
    trained_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "weight_scales", lambda weight: np.full(len(weight), 10, np.float32))
    with pytest.raises(ParityError, match="int8 moves logits"):
        export(trained_run, tmp_path / "m.onnx", quantize="int8", calibration_images=8)
    assert list(tmp_path.iterdir()) == []


def row(lam: float | None = 0.0, **accuracies: float) -> dict[str, Any]:
    kinds = ("clean_accuracy", "clean_accuracy_int8", "robust_accuracy", "robust_accuracy_int8")
    return {"lambda": lam, "width": 1.0, **dict.fromkeys(kinds, 0.9), "n": 500, **accuracies}


def test_a_loss_above_half_a_point_is_told() -> None:
    assert lost_accuracy([]) is None and lost_accuracy([row(), row(clean_accuracy_int8=0.895)]) is None
    told = lost_accuracy([row(clean_accuracy_int8=0.894), row(1.0, robust_accuracy_int8=0.88)])
    assert told is not None and "loses 0.020 of robust accuracy at lambda 1, width 1 on 500 images" in told
    assert "2 of 4" in told
    told = lost_accuracy([row(None, clean_accuracy_int8=0.8)])
    assert told is not None and "at width 1 on" in told


def test_verdicts_are_counted_by_class_and_acceptance() -> None:
    """Four images by hand: the same, another class, one reason flipped, rejected by both."""
    vectors = np.array([[1, 1, 0], [0, 1, 1]], bool)
    reasoning = Reasoning(("a", "b"), ("x", "y", "z"), vectors, 1.0)
    a, b = [1.0, 0.0], [0.0, 1.0]
    own, other = [0.9, 0.8, 0.1], [0.1, 0.8, 0.9]
    float32 = {"logits": np.array([a, a, a, b]), "reasoning": np.array([own, own, own, own])}
    int8 = {"logits": np.array([a, b, a, b]), "reasoning": np.array([own, other, [0.9, 0.4, 0.1], [0.4, 0.4, 0.4]])}
    found = verdict_columns(reasoning, float32, int8)
    assert found == {"coverage": 0.75, "coverage_int8": 0.5, "same_verdict": 0.5}
    assert verdict_columns(replace(reasoning, threshold=0.5), float32, int8)["coverage_int8"] == 0.75


def test_a_coverage_that_moves_by_more_than_a_point_is_told() -> None:
    def verdicts(coverage: float, int8: float, **more: Any) -> dict[str, Any]:
        return row(coverage=coverage, coverage_int8=int8, same_verdict=0.97, **more)

    assert moved_coverage([]) is None and moved_coverage([row(), verdicts(0.5, 0.51), verdicts(0.5, 0.49)]) is None
    told = moved_coverage([verdicts(0.5, 0.52), verdicts(0.5, 0.47), verdicts(0.5, 0.5)])
    assert told is not None and "moves coverage by -0.030 at lambda 0, width 1 on 500 images, more than 0.01" in told
    assert "leaves 0.970 of the verdicts" in told and "2 of 3 coverages" in told and "\n" not in told


def test_int8_keeps_most_verdicts_and_the_result_says_how_many(
    reasoned_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows against verdicts of sessions on the same test images, float32 and INT8."""
    monkeypatch.setattr(quantize, "ALLOWED_MOVE", -1.0)  # whatever is measured is a move
    export(reasoned_run, tmp_path / "float32.onnx")
    arguments = ["export", str(reasoned_run.path), "-o", str(tmp_path / "int8.onnx"), "--quantize", "int8"]
    made = CliRunner().invoke(cli, [*arguments, "--json"])
    assert made.exit_code == 0 and "warning: int8 moves coverage by" in made.stderr
    document = json.loads(made.stdout)
    (found,) = document["quantization"]["rows"]
    image, _ = load_dataset(reasoned_run.recipe.data).test.batch(slice(0, 500))
    verdicts = [
        Session(tmp_path / f"{name}.onnx", threads=1, outputs=("logits", "reasoning")).judge(image.numpy())
        for name in ("float32", "int8")
    ]
    for name, own in zip(("coverage", "coverage_int8"), verdicts, strict=True):
        assert found[name] == pytest.approx(np.mean([verdict.accepted for verdict in own]), abs=0.0041)
    same = np.mean([(a.predicted, a.accepted) == (b.predicted, b.accepted) for a, b in zip(*verdicts, strict=True)])
    assert found["same_verdict"] == pytest.approx(same, abs=0.0041) and same > 0.9
    assert 0.1 < found["coverage"] < 1
    table = export_table(document).splitlines()
    assert [cell.strip() for cell in re.split("  +", table[-3].strip())][-3:] == [
        "coverage", "coverage, int8", "same verdict",
    ]  # fmt: skip
    kinds = ("coverage", "coverage_int8", "same_verdict")
    assert table[-1].split()[-3:] == [f"{found[kind]:.3f}" for kind in kinds]


def test_the_command_line(trained_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "ALLOWED_LOSS", -1.0)  # whatever is measured is a loss
    file = tmp_path / "m.onnx"
    arguments = ["export", str(trained_run.path), "-o", str(file), "--quantize", "int8", "--calibration-images", "16"]
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert len(document["quantization"]["rows"]) == 2 and document["quantization"]["calibration_images"] == 16
    assert result.stderr.startswith("warning: int8 loses") and result.stderr.count("\n") == 1
    found = read_artefact(file).metadata.ranges  # interpolate has no threshold
    assert found is not None and [(s.lambda_threshold, s.lambdas) for s in found.sets] == [(None, (0, 0.2, 0.7, 1))]
    table = export_table(document).splitlines()
    assert (
        table[-4].split("  ")[0] == "lambda" and "robust, int8" in table[-4] and "quantization.rows" not in str(table)
    )
    accuracies = [f"{document['quantization']['rows'][1][k]:.3f}" for k in ("clean_accuracy", "robust_accuracy_int8")]
    cells = table[-1].split()
    assert cells[:2] == ["1", "1"] and [cells[2], cells[5]] == accuracies
    made = CliRunner().invoke(cli, ["specialize", str(file), "--lambda", "1", "--precision", "int8", "--json"])
    assert json.loads(made.stdout)["precision"] == "int8"
    alone = CliRunner().invoke(cli, ["export", str(trained_run.path), "--calibration-images", "16"])
    assert alone.exit_code == 2 and "goes with --quantize" in alone.stderr


def test_a_real_network_loses_at_most_half_a_point(tmp_path: Path) -> None:
    """The pretrained CIFAR-10 ResNet-20 on 1,000 original test images."""
    weights, images = SHARED / "cifar10-resnet20-pretrained.npz", SHARED / "cifar10-lossless-6k.npz"
    if not (weights.exists() and images.exists()):
        pytest.skip(f"{SHARED} does not hold the pretrained ResNet-20 and its images")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    info = DatasetInfo("cifar10", (3, 32, 32), CATALOGUE["cifar10"].classes, mean, std)
    recipe = make_recipe({"name": "r20", "model": {"arch": "resnet20"}, "method": {"name": "standard"}})
    model = build_model(recipe, info).eval()
    with np.load(weights) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    assert not model.backbone.load_state_dict(state, strict=False).unexpected_keys
    with np.load(images) as arrays:
        train, test, labels = (arrays[name] for name in ("x_train", "x_test", "y_test"))
    setting = export_setting(recipe, None, None)
    calibration, image = ((pixels / 255).astype(np.float32) for pixels in (train[:256], test[:1000]))
    quantizer = replace(quantizer_of_untrained(model, recipe, info, setting, (), 1), images=calibration)
    file = tmp_path / "m.onnx"
    write_artefact(model, recipe, info, random_images(info), file, setting, quantizer=quantizer)
    with torch.no_grad():
        plain = float((model(torch.from_numpy(image)).numpy().argmax(1) == labels[:1000]).mean())
    assert plain > 0.9 and float((stock(file, image).argmax(1) == labels[:1000]).mean()) >= plain - 0.005
