"""Sparse storage: every weight comes back as it was, in stock onnxruntime and in ours, from a much smaller file."""

import json
import time
from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from deploytool.cli import cli
from deploytool.data.datasets import dataset_info
from deploytool.errors import ArtefactError, InputError, ParityError
from deploytool.export import artefact
from deploytool.export.artefact import build_graph, export_setting, random_images, write_artefact
from deploytool.export.compress import compress_weights, stored_positions
from deploytool.export.quantize import quantizer_of_untrained
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import build_model
from deploytool.recipe import Recipe, load_recipe
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.bench import bench
from deploytool.runtime.graph import take_apart
from deploytool.runtime.operators import MAX_VALUES
from deploytool.runtime.partial import evaluate
from deploytool.runtime.predict import predict
from deploytool.runtime.session import Session
from deploytool.runtime.specialize import specialize
from hwmodels.workload import read_workload

Array = np.ndarray[Any, Any]
RECIPES = Path(__file__).parents[2] / "recipes"
SPARSE = ["model.arch=resnet8", "sparsity={kind: irregular, density: 0.1}"]
KINDS = {
    "switch": [*SPARSE, "method.conditioning=switch"],
    "slim": [*SPARSE, "model.widths=[0.5, 1.0]"],
    "int8": SPARSE,
    "fixed": [*SPARSE, "method={name: pgd-at, lambda: 0.5}"],
}
LEVELS = onnxruntime.GraphOptimizationLevel


def model_of(*weights: Array) -> onnx.ModelProto:
    """A model whose outputs y0, y1, ... are its weights w0, w1, ..."""
    kinds = [helper.np_dtype_to_tensor_dtype(weight.dtype) for weight in weights]
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"w{i}"], [f"y{i}"]) for i in range(len(weights))],
        "g",
        [],
        [helper.make_tensor_value_info(f"y{i}", kinds[i], weights[i].shape) for i in range(len(weights))],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run_stock(model: onnx.ModelProto | Path, feed: dict[str, Array] | None = None, level: Any = None) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS.ORT_ENABLE_ALL if level is None else level
    source = model if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, feed or {})


def tensors_of(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def assert_same_bits(found: Array, weight: Array) -> None:
    """Equal bit by bit; for a stored -0.0, either zero will do."""
    assert found.dtype == weight.dtype and found.shape == weight.shape
    integers = {1: np.uint8, 4: np.uint32}[weight.itemsize]
    bits = found.view(integers)[weight != 0]
    np.testing.assert_array_equal(bits, weight.view(integers)[weight != 0])
    assert not found[weight == 0].any()


def random_weight(shape: tuple[int, ...], density: float, kind: str, blocks: int, seed: int) -> Array:
    """Any bits where something is stored, NaN and infinity included; zeros of both signs in runs of `blocks`."""
    generator = np.random.default_rng(seed)
    bits = np.frombuffer(generator.bytes(4 * prod(shape)), np.float32 if kind == "float32" else np.int8)
    weight = bits[: prod(shape)].reshape(shape).copy()
    hidden = np.repeat(generator.random(-(-weight.size // blocks)) >= density, blocks)[: weight.size].reshape(shape)
    weight[hidden] = -0.0 if kind == "float32" else 0
    return weight


@settings(max_examples=60)
@given(
    st.one_of(
        st.lists(st.integers(1, 3), min_size=2, max_size=4), st.lists(st.integers(5, 13), min_size=3, max_size=4)
    ),
    st.one_of(st.sampled_from([0.0, 0.001, 0.1, 1.0]), st.floats(0, 1)),
    st.sampled_from(["float32", "int8"]),
    st.sampled_from([1, 1, 27, 300]),
    st.integers(0, 1 << 32),
)
@example([64, 33, 3, 3], 0.1, "float32", 1, 0)
@example([64, 33, 3, 3], 0.1, "int8", 1, 0)
@example([101, 103], 0.0, "float32", 1, 0)
@example([101, 103], 0.0, "int8", 1, 0)
@example([101, 103], 0.3, "float32", 300, 0)
@example([101, 103], 0.0005, "int8", 1, 0)
def test_a_weight_comes_back_bit_by_bit(shape, density: float, kind: str, blocks: int, seed: int) -> None:
    weight = random_weight(tuple(shape), density, kind, blocks, seed)
    model = model_of(weight)
    before = model.ByteSize()
    report = compress_weights(model)
    assert model.ByteSize() < before if report["tensors"] else model.ByteSize() == before
    if np.count_nonzero(weight) * 6 < weight.nbytes - 1500:  # steps of a byte, some on the way, and the chain
        assert report["tensors"] == 1
    onnx.checker.check_model(model, full_check=True)
    for level in (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL):
        assert_same_bits(run_stock(model, level=level)[0], weight)
    graph = evaluate(take_apart(model))
    assert [node.op_type for node in graph.nodes] == ["Identity"] and list(graph.constants) == ["w0"]
    assert_same_bits(graph.constants["w0"], weight)


@given(st.lists(st.integers(0, 700), max_size=20), st.integers(0, 600), st.sampled_from([4, 8]))
def test_stored_positions_hold_every_value_and_never_step_too_far(steps, tail: int, bits: int) -> None:
    needed = np.cumsum([step + 1 for step in steps], dtype=int) - 1
    flat = np.zeros((needed[-1] if len(needed) else 0) + 2 + tail, np.float32)
    flat[needed] = 1
    stored = stored_positions(flat, bits)
    assert stored[0] == 0 and stored[-1] < len(flat) and set(needed) <= set(stored)
    assert (np.diff(stored) > 0).all() and (np.diff(stored) < 2**bits).all()
    assert len(stored) * bits % 8 == 0
    least = 1 + sum(-(-step // (2**bits - 1)) for step in np.diff([0, *needed]))
    assert len(stored) in (least, least + 1)


# Of 40,000 values every s-th is stored: 40,000 / s values of b bytes, and 1 byte (or 1/2, steps up to 15) for each.
@pytest.mark.parametrize(
    ("step", "kind", "stored", "gap_bytes"),
    [(10, "float32", 4000, 2000), (100, "float32", 400, 400), (4, "int8", 10000, 5000), (100, "int8", 400, 400)],
)
def test_the_bytes_worked_out_by_hand(step: int, kind: str, stored: int, gap_bytes: int) -> None:
    weight = np.zeros(40_000, kind)
    weight[::step] = 7
    model = model_of(weight.reshape(200, 200))
    report = compress_weights(model)
    tensors = tensors_of(model)
    assert tensors["w0.values"].nbytes == stored * weight.itemsize and tensors["w0.gaps"].nbytes == gap_bytes
    overhead = model.ByteSize() - stored * weight.itemsize - gap_bytes
    assert 0 < overhead < 1000
    assert report == {"tensors": 1, "dense_mb": pytest.approx(weight.nbytes / 1e6, abs=2e-4),
                      "sparse_mb": round(model.ByteSize() / 1e6, 6)}  # fmt: skip


def test_what_would_not_be_smaller_stays_as_it_is() -> None:
    generator = np.random.default_rng(0)
    dense = generator.standard_normal((64, 64)).astype(np.float32)
    half = np.where(generator.random((64, 64)) < 0.5, dense, 0).astype(np.float32)
    bias, small, shape = np.zeros(5000, np.float32), np.zeros((4, 4), np.float32), np.zeros((50, 50), np.int64)
    model = model_of(dense, bias, small, shape)
    before = model.SerializeToString()
    assert compress_weights(model)["tensors"] == 0
    assert model.SerializeToString() == before
    for signed, tensors in ((half, 1), (half.astype(np.float64), 0), (np.sign(half).astype(np.int8), 1)):
        assert compress_weights(model_of(signed))["tensors"] == tensors


def test_what_weights_of_one_shape_need_is_stored_once() -> None:
    weights = [random_weight((30, 40), 0.1, "float32", 1, seed) for seed in range(3)]
    sizes = []
    for count in (1, 2, 3):
        model = model_of(*weights[:count])
        compress_weights(model)
        sizes.append(model.ByteSize() - sum(t.nbytes for name, t in tensors_of(model).items() if name[0] == "w"))
    assert Counter(node.op_type for node in model.graph.node)["ConstantOfShape"] == 1
    assert len({tensor.name for tensor in model.graph.initializer}) == len(model.graph.initializer)
    second, third = np.diff(sizes)
    assert abs(second - third) < 10 and second < sizes[0] - 200  # the first pays for the others


def test_shape_inference_knows_the_restored_weights() -> None:
    weight = random_weight((20, 30, 3, 3), 0.1, "int8", 1, 0)
    model = model_of(weight, random_weight((20, 30), 0.1, "float32", 1, 0))
    compress_weights(model)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*inferred.value_info, *inferred.output]
    }
    assert all(all(shape) for shape in shapes.values())  # every size, so that onnxruntime folds every node
    assert shapes["w0"] == shapes["y0"] == [20, 30, 3, 3] and shapes["w1"] == shapes["y1"] == [20, 30]


@pytest.mark.parametrize("per_channel", [False, True])
def test_an_int8_weight_behind_dequantizelinear(per_channel: bool) -> None:
    generator = np.random.default_rng(0)
    weight = np.where(generator.random((16, 12, 3, 3)) < 0.1, generator.integers(-127, 128, (16, 12, 3, 3)), 0)
    scale = generator.random(16 if per_channel else (), np.float32)
    zero = np.zeros(16 if per_channel else (), np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["theta"], axis=0),
        helper.make_node("Conv", ["x", "theta"], ["y"]),
    ]
    tensors = {"w": weight.astype(np.int8), "scale": scale, "zero": zero}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
              for name, shape in (("x", [1, 12, 8, 8]), ("y", [1, 16, 6, 6]))]  # fmt: skip
    constants = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    feed = {"x": generator.random((1, 12, 8, 8), np.float32)}
    expected = run_stock(model, feed)
    assert compress_weights(model)["tensors"] == 1
    np.testing.assert_array_equal(run_stock(model, feed), expected)
    theta = evaluate(take_apart(model)).constants["theta"]
    np.testing.assert_array_equal(theta, (weight * scale.reshape(-1, 1, 1, 1)).astype(np.float32))


def trained_like(recipe: Recipe) -> ConditionalModel:
    """Batch norms of a shape that lets the weights show in the logits."""
    model = build_model(recipe, dataset_info(recipe.data))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d) and not norm.weight.is_meta:
                norm.running_mean.normal_(0, 0.1, generator=generator)
                norm.running_var.uniform_(0.05, 0.2, generator=generator)
                norm.weight.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, dict[str, Any]]]:
    """Each kind stored sparse, the same model before it was stored so, and what the export said."""
    torch.set_num_threads(1)  # fixtures come before that of a test
    folder, made = tmp_path_factory.mktemp("storage"), {}
    for kind, overrides in KINDS.items():
        recipe = load_recipe(RECIPES / "digits-float.yaml", overrides)
        model, info, setting = trained_like(recipe), dataset_info(recipe.data), export_setting(recipe, None, None)
        narrow, sparse, dense = model.widths[:-1], folder / f"{kind}.onnx", folder / f"{kind}-dense.onnx"
        quantizer = quantizer_of_untrained(model, recipe, info, setting, narrow, 8) if kind == "int8" else None

        def keeping_the_dense_one(graph: onnx.ModelProto, dense: Path = dense) -> dict[str, float]:
            onnx.save(graph, dense)
            return compress_weights(graph)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(artefact, "compress_weights", keeping_the_dense_one)
            made[kind] = sparse, dense, write_artefact(
                model, recipe, info, random_images(info), sparse, setting, False, 1, narrow, True, quantizer
            )  # fmt: skip
    return made


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, files) -> tuple[Path, Path, dict[str, Any]]:
    return files[request.param]


def settings_of(file: Path) -> list[dict[str, float]]:
    metadata = read_artefact(file).metadata
    lambdas = [{"lam": lam} for lam in (0.0, 0.3, 1.0)] if metadata.conditional else [{}]
    widths = [{"width": width} for width in metadata.widths] if len(metadata.widths) > 1 else [{}]
    return [lam | width for lam in lambdas for width in widths]


def images() -> Array:
    return np.random.default_rng(1).random((5, 1, 8, 8), np.float32)


def test_the_export_is_small_and_says_so(pair) -> None:
    sparse, dense, result = pair
    assert result["parity"]["max_abs_error"] <= 1e-4
    assert result["storage"]["dense_mb"] == pytest.approx(dense.stat().st_size / 1e6, abs=2e-6)
    assert result["storage"]["sparse_mb"] == result["size_mb"] == pytest.approx(sparse.stat().st_size / 1e6, abs=2e-6)
    assert 6 <= result["storage"]["tensors"] <= 10  # the layers of ResNet-8 but for the smallest
    onnx.checker.check_model(str(sparse), full_check=True)
    model = onnx.load(sparse)
    assert {p.key: p.value for p in model.metadata_props}["deploytool.storage"] == "sparse"
    stored = {node.output[0] for node in model.graph.node if node.op_type == "Reshape"}
    biases_and_norms = [name for name, value in tensors_of(onnx.load(dense)).items() if value.ndim < 2]
    assert not stored & set(biases_and_norms)


def test_every_session_answers_as_from_the_dense_file(pair) -> None:
    sparse, dense, _ = pair
    ours, theirs = (Session(file, threads=1, background=False) for file in (sparse, dense))
    answers = []
    for setting in settings_of(sparse):
        np.testing.assert_array_equal(ours(images(), **setting), theirs(images(), **setting))
        generic = {"lam": None, **setting}
        np.testing.assert_array_equal(ours.generic(images(), **generic), theirs.generic(images(), **generic))
        feed = {"lambda" if name == "lam" else name: np.array(value, np.float32) for name, value in setting.items()}
        np.testing.assert_array_equal(*(run_stock(file, {"image": images(), **feed}) for file in (sparse, dense)))
        answers.append(ours(images(), **setting))
    assert all(np.abs(answer).max() > 1e-2 for answer in answers)
    assert all(np.abs(answer - answers[0]).max() > 1e-3 for answer in answers[1:])


def optimized_operators(file: Path, folder: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 3
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_stock_onnxruntime_restores_when_it_opens_the_file(pair, tmp_path: Path) -> None:
    """Its optimised graph is that of the dense file, so nothing is restored again at each inference."""
    operators = optimized_operators(pair[0], tmp_path)
    assert operators == optimized_operators(pair[1], tmp_path) and operators.total() > 10


def test_the_noise_stays_where_weights_are(files) -> None:
    """Where(Cast(theta to bool), ...) reads the restored theta."""
    name = "layer2.0.conv1.weight"
    model, dense = onnx.load(files["switch"][0]), tensors_of(onnx.load(files["switch"][1]))
    model.graph.output.append(helper.make_empty_tensor_value_info(f"{name}.hat"))
    feed = {"image": images(), "lambda": np.array(1, np.float32)}
    hat = run_stock(model, feed)[-1]
    np.testing.assert_array_equal(hat != 0, dense[name] != 0)
    assert not np.array_equal(hat, dense[name])


@pytest.mark.parametrize("kind", ["switch", "slim", "int8"])
def test_specialising_writes_a_plain_dense_file(files, kind: str, tmp_path: Path) -> None:
    sparse, dense, _ = files[kind]
    width = 0.5 if kind == "slim" else None
    made = [specialize(file, 0.3, tmp_path / f"{n}.onnx", width=width) for n, file in enumerate((sparse, dense))]
    assert made[0]["max_abs_error"] == made[1]["max_abs_error"] and made[0]["precision"] == made[1]["precision"]
    models = [onnx.load(each["file"]) for each in made]
    assert [node.op_type for node in models[0].graph.node] == [node.op_type for node in models[1].graph.node]
    ours, theirs = map(tensors_of, models)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
    metadata = read_artefact(made[0]["file"]).metadata
    assert metadata.fixed and not metadata.stored_sparse
    np.testing.assert_array_equal(*(run_stock(Path(each["file"]), {"image": images()}) for each in made))


def test_a_fixed_model_stored_sparse_is_restored_to_a_plain_file(files, tmp_path: Path) -> None:
    sparse, dense, _ = files["fixed"]
    assert read_artefact(sparse).metadata.fixed and read_artefact(sparse).metadata.stored_sparse
    result = specialize(sparse, None, tmp_path / "plain.onnx")
    assert result["max_abs_error"] <= 1e-4
    assert result["size_mb"] == pytest.approx(dense.stat().st_size / 1e6, rel=0.05)
    plain = onnx.load(tmp_path / "plain.onnx")
    assert not {node.op_type for node in plain.graph.node} & {"ScatterElements", "CumSum", "ConstantOfShape"}
    expected = run_stock(dense, {"image": images()})[0]
    np.testing.assert_allclose(run_stock(plain, {"image": images()})[0], expected, atol=1e-5)
    for file, lam, message in ((tmp_path / "plain.onnx", None, "plain model already"), (sparse, 0.3, "leave it out")):
        with pytest.raises(InputError, match=message):
            specialize(file, lam, tmp_path / "again.onnx")
    assert not (tmp_path / "again.onnx").exists()


def test_predict_bench_and_cost_take_the_file(pair, tmp_path: Path) -> None:
    sparse, dense, _ = pair
    Image.fromarray((images()[0, 0] * 255).astype(np.uint8)).save(tmp_path / "x.png")
    lam = 0.3 if read_artefact(sparse).metadata.conditional else None
    ranked = [predict(file, [tmp_path / "x.png"], lam, threads=1)[0]["top"] for file in (sparse, dense)]
    assert ranked[0] == ranked[1]
    if lam is None:
        assert bench(sparse, threads=1, seconds=0.1)["size_mb"] < 0.3 * bench(dense, threads=1, seconds=0.1)["size_mb"]
    if "width" not in [value.name for value in onnx.load(sparse).graph.input]:
        ours, theirs = (
            [(layer.name, layer.kind, layer.weights, layer.macs) for layer in read_workload(file).layers]
            for file in (sparse, dense)
        )
        assert ours == theirs and len(ours) >= 9
        assert not read_workload(sparse).not_counted


def test_the_command_line_for_a_fixed_int8_network(tmp_path: Path) -> None:
    recipe, file = str(RECIPES / "digits-pgd-at.yaml"), tmp_path / "m.onnx"
    overrides = [part for override in SPARSE for part in ("--set", override)]
    command = ["export", recipe, "--untrained", "-o", str(file), "--quantize", "int8", "--compress", *overrides]
    result = CliRunner().invoke(cli, [*command, "--json"])
    assert result.exit_code == 0, result.output
    storage = json.loads(result.stdout)["storage"]
    assert set(storage) == {"tensors", "dense_mb", "sparse_mb"} and storage["sparse_mb"] < 0.5 * storage["dense_mb"]
    assert CliRunner().invoke(cli, ["specialize", str(file)]).exit_code == 0
    plain = tmp_path / "m-plain.onnx"
    assert not read_artefact(plain).metadata.stored_sparse and read_artefact(plain).metadata.precision == "int8"
    np.testing.assert_array_equal(*(run_stock(each, {"image": images()}) for each in (file, plain)))
    assert "QLinearConv" in optimized_operators(file, tmp_path)  # the weights are int8 when the session is open
    assert optimized_operators(file, tmp_path) == optimized_operators(plain, tmp_path)


@pytest.mark.parametrize("quantize", [False, True])
def test_a_weight_restored_wrongly_is_not_let_out(quantize: bool, tmp_path: Path, monkeypatch) -> None:
    recipe = load_recipe(RECIPES / "digits-float.yaml", SPARSE)
    model, info, setting = trained_like(recipe), dataset_info(recipe.data), export_setting(recipe, None, None)
    quantizer = quantizer_of_untrained(model, recipe, info, setting, (), 8) if quantize else None

    def wrong(graph: onnx.ModelProto) -> dict[str, float]:
        report = compress_weights(graph)
        with_tensor(".values", lambda values: values[::-1])(graph)
        return report

    monkeypatch.setattr(artefact, "compress_weights", wrong)
    arguments = (model, recipe, info, random_images(info), tmp_path / "m.onnx", setting, False, 1, (), True, quantizer)
    with pytest.raises(ParityError, match="was not written"):
        write_artefact(*arguments)
    assert list(tmp_path.iterdir()) == []


Edit = Callable[[onnx.ModelProto], None]


def with_tensor(prefix: str, change: Callable[[Array], Array]) -> Edit:
    """Replace the first tensor whose name starts or ends so."""

    def edit(model: onnx.ModelProto) -> None:
        found = (t for t in model.graph.initializer if t.name.startswith(prefix) or t.name.endswith(prefix))
        tensor = next(found)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))

    return edit


def with_zeros_of(value: Array) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "ConstantOfShape")
        node.attribute[0].t.CopyFrom(numpy_helper.from_array(value))

    return edit


DAMAGE: dict[str, Edit] = {
    "a value is missing": with_tensor(".values", lambda values: values[:-1]),
    "a value too many": with_tensor(".values", lambda values: np.append(values, values[:1])),
    "one value alone": with_tensor(".values", lambda values: values[:1]),
    "no value": with_tensor(".values", lambda values: values[:0]),
    "values of another type": with_tensor(".values", lambda values: values.astype(np.float64)),
    "steps out of the weight": with_tensor(".gaps", lambda gaps: np.full_like(gaps, 255)),
    "a step is missing": with_tensor(".gaps", lambda gaps: gaps[:-1]),
    "no steps": with_tensor(".gaps", lambda gaps: gaps[:0]),
    "a size too small": with_tensor("storage.size", lambda size: size // 2),
    "a size too large": with_tensor("storage.size", lambda size: size + 1),
    "no size": with_tensor("storage.size", lambda size: size * 0),
    "a negative size": with_tensor("storage.size", lambda size: -size),
    "a huge size": with_tensor("storage.size", lambda size: np.array([1 << 40])),
    "a size beyond int64": with_tensor("storage.size", lambda size: np.array([1 << 62] * 4)),
    "a size just too large": with_tensor("storage.size", lambda size: np.array([MAX_VALUES + 1])),
    "another shape": with_tensor("storage.shape", lambda shape: shape * 2),
    "an axis": with_tensor("storage.axis", lambda axis: axis + 3),
    "zeros of two values": with_zeros_of(np.zeros(2, np.float32)),
    "zeros of another type": with_zeros_of(np.zeros(1, np.int8)),
}


@pytest.mark.parametrize("kind", ["switch", "fixed"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_does_not_fit_is_one_clear_error(files, kind: str, damage: str, tmp_path: Path) -> None:
    model = onnx.load(files[kind][0])
    DAMAGE[damage](model)
    file = tmp_path / "m.onnx"
    onnx.save(model, file)
    for use in (lambda: specialize(file, 0.3 if kind == "switch" else None), lambda: Session(file, threads=1)):
        with pytest.raises(ArtefactError, match="export it again") as caught:
            use()
        assert "\n" not in str(caught.value) and str(file) in str(caught.value) and len(str(caught.value)) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@settings(max_examples=40)
@given(
    st.binary(min_size=1, max_size=8),
    st.floats(0, 1),
    st.sampled_from([".gaps", ".values", "storage.size", "storage.shape"]),
)
def test_damaged_bytes_answer_or_are_refused(files, noise: bytes, where: float, part: str) -> None:
    model = onnx.load(files["fixed"][0])

    def change(tensor: Array) -> Array:
        data = bytearray(tensor.tobytes())
        start = int(where * (len(data) - 1))
        data[start : start + len(noise)] = noise[: len(data) - start]
        return np.frombuffer(bytes(data), tensor.dtype).reshape(tensor.shape)

    with_tensor(part, change)(model)
    file = files["fixed"][0].with_name("damaged.onnx")
    onnx.save(model, file)
    try:
        answer = Session(file, threads=1)(images())
    except ArtefactError:
        return
    assert np.isfinite(answer).all()


def test_a_small_file_that_would_fill_the_memory_is_refused() -> None:
    """Each tensor is allowed, all together are not; nothing of it is ever written."""
    nodes = [helper.make_node("ConstantOfShape", ["n"], [f"z{i}"]) for i in range(8)]
    nodes.append(helper.make_node("Concat", [f"z{i}" for i in range(8)], ["y"], axis=0))
    constants = [numpy_helper.from_array(np.array([MAX_VALUES]), "n")]
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants)
    with pytest.raises(ValueError, match="too large"):
        evaluate(take_apart(helper.make_model(graph)))


def test_resnet34_ten_times_sparse(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    recipe = load_recipe(RECIPES / "cifar10-resnet34-float.yaml", SPARSE[1:])
    info = dataset_info(recipe.data)
    model = build_graph(build_model(recipe, info), info, export_setting(recipe, None, None))
    report = compress_weights(model)
    assert report["sparse_mb"] <= 0.16 * report["dense_mb"] and report["dense_mb"] > 80
    graph = take_apart(model)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        evaluate(graph)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) <= 0.35
