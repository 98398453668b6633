"""INT8 networks: scales worked out by hand, integer arithmetic in numpy as the oracle, and what onnxruntime fuses."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.graph import Graph, assemble, take_apart
from deploytool.runtime.partial import evaluate, specialized_graph
from deploytool.runtime.quantized import int8_weights, measured_tensors, quantized_graph, with_pooled_means
from deploytool.runtime.rounding import activation_scale, layer_scales, rounded_bias, rounded_weight, weight_scales

Array = np.ndarray[Any, Any]

LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, Array], channels: int = 2, size: int = 4) -> Graph:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", channels, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "g", [image], [logits]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    return replace(take_apart(model), constants=constants)


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def answers(graph: Graph, image: Array, level: str = "all", dump: Path | None = None) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = LEVELS[level]
    if dump is not None:
        options.optimized_model_filepath = str(dump)
    model = assemble(graph).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": image})[0]


def optimized_ops(graph: Graph, shape: tuple[int, ...], folder: Path) -> Counter[str]:
    answers(graph, np.zeros(shape, np.float32), dump=folder / "optimized.onnx")
    return Counter(each.op_type for each in onnx.load(folder / "optimized.onnx").graph.node)


# scale = (high - low) / 255 with 0 within; zero point = round(-low / scale): 63.75 is 64, 127.5 is 128, half to even
@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [
        (0, 2.55, 0.01, 0),
        (-1, 3, 4 / 255, 64),
        (-1.275, 1.275, 0.01, 128),
        (1, 3, 3 / 255, 0),
        (-2, -1, 2 / 255, 255),
        (0, 0, 1, 0),
    ],
)
def test_scale_and_zero_point_of_an_activation(low: float, high: float, scale: float, zero: int) -> None:
    found, point = activation_scale(low, high)
    assert (found.dtype, point.dtype, found.shape, point.shape) == (np.float32, np.uint8, (), ())
    assert found == pytest.approx(scale, rel=1e-6) and point == zero


def test_a_weight_is_rounded_by_the_largest_of_its_channel() -> None:
    weight = np.array([[1.27, -0.5, 0.014], [0, 0, 0], [-2.54, 0.03, 2.54]], np.float32)
    scales = weight_scales(weight)
    np.testing.assert_allclose(scales, [0.01, 1, 0.02], rtol=1e-6)
    np.testing.assert_array_equal(rounded_weight(weight, scales), [[127, -50, 1], [0, 0, 0], [-127, 2, 127]])
    across = weight_scales(weight.T, axis=1)
    np.testing.assert_array_equal(rounded_weight(weight.T, across, axis=1), rounded_weight(weight, scales).T)


def test_a_bias_that_would_not_fit_makes_the_step_larger() -> None:
    # 1 / (0.5 * 2^30) is above 1e-9 / 127; the second channel has no weights, the third nothing at all
    weight, bias = np.array([[1e-9], [0], [0], [1.27]], np.float32), np.array([1, -3, 0, 0.5], np.float32)
    scales = layer_scales(weight, bias, np.float32(0.5))
    np.testing.assert_allclose(scales, [2**-29, 3 * 2**-29, 1, 0.01], rtol=1e-6)
    steps = rounded_bias(bias, np.float32(0.5) * scales)
    assert steps.dtype == np.int32 and steps.tolist() == [2**30, -(2**30), 0, 100]


floats = st.floats(-1000, 1000, width=32).map(lambda x: x if abs(x) > 1e-6 else 0.0)
weights = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=floats)


@given(weights)
def test_a_weight_is_off_by_half_a_step_at_most_and_zeros_stay(weight: Array) -> None:
    scales = weight_scales(weight)
    steps = rounded_weight(weight, scales)
    column = scales.reshape(-1, *[1] * (weight.ndim - 1)).astype(np.float64)
    assert (np.abs(steps * column - weight) <= 0.5001 * column).all()  # a float32 division in between
    assert (steps[weight == 0] == 0).all() and steps.dtype == np.int8 and steps.min() >= -127


@given(weights, st.floats(0.0625, 64, width=32))
def test_what_was_rounded_once_and_scaled_is_rounded_to_the_same_integers(weight: Array, factor: float) -> None:
    """As a batch norm does to a stored INT8 weight: folding it costs no second rounding."""
    scales = weight_scales(weight)
    steps = rounded_weight(weight, scales)
    scaled = steps.astype(np.float32) * (scales * np.float32(factor)).reshape(-1, *[1] * (weight.ndim - 1))
    np.testing.assert_array_equal(rounded_weight(scaled, weight_scales(scaled)), steps)


@given(st.floats(-50, 0, width=32), st.floats(0, 50, width=32))
def test_zero_is_exact_and_the_ends_of_a_range_are_within_a_step(low: float, high: float) -> None:
    scale, zero = (float(each) for each in activation_scale(low, high))
    assert 0 <= zero <= 255
    if high - low > 1e-6:
        assert -zero * scale == pytest.approx(low, abs=0.51 * scale)
        assert (255 - zero) * scale == pytest.approx(high, abs=0.51 * scale)


def test_one_convolution_worked_out_by_hand() -> None:
    # image 0.5, 0.2 in steps of 1/255: 127.5 -> 128 (half to even), 51. Weight 2 in steps of 2/127: 127.
    # Bias -0.3 in steps of 2/127 * 1/255 = 2/32385: -4857.75 -> -4858.
    # 128 * 127 - 4858 = 11398 and 51 * 127 - 4858 = 1619 such steps are 0.7039 and 0.09998, in steps of 0.01: 70, 10.
    # 0.1 gives less than 0, where the Relu and the lower end of the range are.
    nodes = [node("Conv", "image w b", "c"), node("Relu", "c", "r"), node("Flatten", "r", "logits")]
    constants = {"w": np.full((1, 1, 1, 1), 2, np.float32), "b": np.array([-0.3], np.float32)}
    graph = graph_of(nodes, constants, 1, 1)
    assert measured_tensors(graph) == ["image", "r"]
    made = quantized_graph(graph, {"image": (0, 1), "r": (0, 2.55)})
    assert made.constants["w.q"].item() == 127 and made.constants["b.q"].item() == -4858
    image = np.array([0.5, 0.2, 0.1, 1], np.float32).reshape(4, 1, 1, 1)
    for level in LEVELS:
        np.testing.assert_allclose(answers(made, image, level).ravel()[:3], [0.7, 0.1, 0], atol=1e-6)
    assert "Relu" not in {each.op_type for each in made.nodes}


def tiny_network() -> tuple[Graph, dict[str, tuple[float, float]]]:
    """Two convolutions, a sum, a pool, a mean, a linear layer. Scales are powers of two, so that floats are exact."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Array:
        values = rng.uniform(-0.9, 0.9, shape).astype(np.float32)
        values.reshape(shape[0], -1)[:, 0] = 127 / 128  # step 2^-7
        return values

    constants = {"w1": weight(3, 2, 3, 3), "b1": rng.uniform(-1, 1, 3).astype(np.float32), "w2": weight(3, 3, 1, 1)}
    constants |= {"w3": weight(2, 3), "b3": rng.uniform(-1, 1, 2).astype(np.float32), "axes": np.array([2, 3])}
    nodes = [
        node("Conv", "image w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2", "c2"),
        node("Add", "c2 r1", "s"),
        node("Relu", "s", "r2"),
        node("MaxPool", "r2", "m", kernel_shape=[2, 2], strides=[2, 2]),
        node("ReduceMean", "m axes", "mean", keepdims=0),
        node("Gemm", "mean w3 b3", "logits", transB=1),
    ]
    ranges = {"image": (0.0, 255 / 256), "r1": (0.0, 255 / 32), "c2": (-8.0, 127 / 16)}
    return graph_of(nodes, constants), {**ranges, "r2": (0.0, 255 / 32), "mean.pooled": (0.0, 255 / 64)}


def integer_logits(image: Array, constants: dict[str, Array]) -> Array:
    """The same network in integers; steps are 2^-8, 2^-5, 2^-4, 2^-5, 2^-6 for the activations and 2^-7 for weights."""

    def stored(x: Array, step: float, zero: int = 0) -> Array:
        return np.clip(np.rint(x / step) + zero, 0, 255).astype(np.int64)

    def layer(name: str) -> Array:
        return np.rint(constants[name].astype(np.float64) * 128).astype(np.int64)

    x = stored(image.astype(np.float64), 2**-8)
    bias = np.rint(constants["b1"].astype(np.float64) * 2**15).astype(np.int64)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    total = np.einsum("nchwyx,ocyx->nohw", windows, layer("w1")) + bias[:, None, None]
    r1 = stored(total * 2.0**-15, 2**-5)
    c2 = stored(np.einsum("nchw,oc->nohw", r1, layer("w2")[..., 0, 0]) * 2.0**-12, 2**-4, 128)
    r2 = stored((c2 - 128) * 2**-4 + r1 * 2**-5, 2**-5)
    pooled = r2.reshape(len(x), 3, 2, 2, 2, 2).max((3, 5))
    mean = stored(pooled.mean((2, 3)) * 2**-5, 2**-6)
    offset = np.rint(constants["b3"].astype(np.float64) * 2**13)
    return (mean @ layer("w3").T + offset) * 2.0**-13


@pytest.mark.parametrize("level", LEVELS)
def test_a_network_computes_the_integers_of_numpy(level: str) -> None:
    graph, ranges = tiny_network()
    pooled = with_pooled_means(graph)
    assert measured_tensors(pooled) == list(ranges)
    image = np.random.default_rng(1).random((16, 2, 4, 4), np.float32)
    want = integer_logits(image, dict(graph.constants))
    np.testing.assert_allclose(answers(quantized_graph(pooled, ranges), image, level), want, atol=1e-6)
    assert np.abs(answers(graph, image) - want).max() < 0.1 < np.ptp(want)  # and the oracle is the float network's


def test_what_carries_values_on_keeps_their_scale() -> None:
    graph, ranges = tiny_network()
    made = quantized_graph(with_pooled_means(graph), ranges)
    scales = {each.output[0]: each.input[1:] for each in made.nodes if each.op_type == "QuantizeLinear"}
    assert scales["m.q"] == scales["r2.q"] and scales["mean.q"] == scales["mean.pooled.q"]


@pytest.mark.parametrize(("value", "kept"), [(0.0, True), (1.0, False)])
def test_padding_keeps_the_scale_where_it_pads_zeros(value: float, kept: bool) -> None:
    nodes = [
        node("Relu", "image", "r"),
        node("AveragePool", "r", "a", kernel_shape=[1, 1], strides=[2, 2]),
        node("Pad", "a pads value", "p"),
        node("Conv", "p w", "logits"),
        node("Conv", "r v", "unused"),
    ]
    constants = {"pads": np.array([0, 1, 0, 0, 0, 1, 0, 0]), "value": np.array(value, np.float32)}
    constants |= {"w": np.ones((1, 4, 1, 1), np.float32), "v": np.ones((1, 2, 1, 1), np.float32)}
    graph = graph_of(nodes, constants)
    assert ("p" not in measured_tensors(graph)) == kept and "a" not in measured_tensors(graph)
    ranges = dict.fromkeys(measured_tensors(graph), (0.0, 1.0))
    image = np.random.default_rng(0).random((2, 2, 4, 4), np.float32)
    made = quantized_graph(graph, ranges)
    np.testing.assert_allclose(answers(made, image), answers(graph, image), atol=4 / 255)


def test_a_clip_keeps_its_bounds_whatever_the_range_says() -> None:
    nodes = [node("Conv", "image w", "c"), node("Clip", "c low high", "y"), node("Flatten", "y", "logits")]
    constants = {"w": np.full((1, 1, 1, 1), 10, np.float32)}
    constants |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    graph = graph_of(nodes, constants, 1, 2)
    made = quantized_graph(graph, {"image": (0, 1), "y": (-3, 9)})
    assert made.constants["y.scale"] == np.float32(6 / 255) and made.constants["y.zero"] == 0
    image = np.array([0, 0.3, 0.7, 1], np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(answers(made, image), [[0, 3, 6, 6]], atol=6 / 255)


def test_a_batch_norm_that_does_not_fold_computes_in_float() -> None:
    vectors = {"gamma": [1, 2], "beta": [0.5, -1], "mean": [0.2, 0.1], "var": [1, 4]}
    constants: dict[str, Array] = {name: np.array(values, np.float32) for name, values in vectors.items()}
    constants |= {"w": np.eye(2, dtype=np.float32)[..., None, None], "v": np.ones((3, 2, 1, 1), np.float32)}
    nodes = [
        node("Conv", "image w", "c"),
        node("BatchNormalization", "c gamma beta mean var", "n"),
        node("Relu", "n", "r"),
        node("Conv", "r v", "d"),
        node("Flatten", "d", "logits"),
    ]
    graph = graph_of(nodes, constants)
    assert measured_tensors(graph) == ["image", "c", "r", "d"]
    made = quantized_graph(graph, {"image": (0, 1), "c": (0, 1), "r": (0, 1.5), "d": (0, 3)})
    norm = next(each for each in made.nodes if each.op_type == "BatchNormalization")
    assert norm.input[0] == "c.dq" and list(norm.input[1:]) == list(vectors)
    image = np.random.default_rng(0).random((3, 2, 4, 4), np.float32)
    np.testing.assert_allclose(answers(made, image), answers(graph, image), atol=0.03)


def test_a_convolution_by_channels_has_a_scale_for_each(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2, 1, 3, 3)).astype(np.float32) * np.array([1, 100], np.float32).reshape(2, 1, 1, 1)
    nodes = [node("Conv", "image w", "c", group=2, pads=[1, 1, 1, 1]), node("Flatten", "c", "logits")]
    graph = graph_of(nodes, {"w": weight})
    image = rng.random((3, 2, 4, 4), np.float32)
    want = answers(graph, image)
    made = quantized_graph(graph, {"image": (0, 1), "c": (float(want.min()), float(want.max()))})
    assert made.constants["w.scale"].shape == (2,)
    np.testing.assert_allclose(answers(made, image), want, atol=0.02 * np.ptp(want))
    assert optimized_ops(made, (1, 2, 4, 4), tmp_path)["QLinearConv"] == 1


@pytest.mark.parametrize("trans", [0, 1])
def test_a_linear_layer_of_either_orientation(trans: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 8)).astype(np.float32)
    constants = {"w": weight if trans else weight.T.copy(), "b": rng.normal(size=3).astype(np.float32)}
    nodes = [node("Flatten", "image", "f"), node("Gemm", "f w b", "logits", transB=trans)]
    graph = graph_of(nodes, constants, 2, 2)
    image = rng.random((5, 2, 2, 2), np.float32)
    made = quantized_graph(graph, {"f": (0, 1)})
    assert made.constants["w.q"].shape == constants["w"].shape and made.constants["w.scale"].shape == (3,)
    np.testing.assert_allclose(answers(made, image), image.reshape(5, 8) @ weight.T + constants["b"], atol=0.05)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["w1", "b1"])
def test_a_weight_that_is_no_number_is_refused(name: str, bad: float) -> None:
    """As an integer it would give finite logits that mean nothing."""
    graph, ranges = tiny_network()
    broken = graph.constants[name].copy()
    broken.ravel()[0] = bad
    with pytest.raises(ValueError, match=f"{name} or its bias|w1 or its bias"):
        quantized_graph(with_pooled_means(replace(graph, constants={**graph.constants, name: broken})), ranges)


def test_a_range_that_is_missing_is_named() -> None:
    graph, ranges = tiny_network()
    del ranges["c2"]
    with pytest.raises(KeyError, match="c2"):
        quantized_graph(with_pooled_means(graph), ranges)


def test_an_int8_network_stays_one_when_it_is_evaluated_again() -> None:
    graph, ranges = tiny_network()
    made = quantized_graph(with_pooled_means(graph), ranges)
    assert int8_weights(made) == {"w1.dq", "b1.dq", "w2.dq", "w3.dq", "b3.dq"}
    again = evaluate(made)
    assert list(again.nodes) == list(made.nodes) and set(again.constants) == set(made.constants)
    assert int8_weights(graph) == set()


def test_no_convolution_of_resnet34_is_left_in_float(resnet34_file: Path, tmp_path: Path) -> None:
    graph = with_pooled_means(specialized_graph(read_artefact(resnet34_file), 0.5, None, 1.0))
    made = quantized_graph(graph, dict.fromkeys(measured_tensors(graph), (0.0, 1.0)))
    ops = optimized_ops(made, (1, 3, 32, 32), tmp_path)
    assert ops["QLinearConv"] == 36 and ops["QLinearAdd"] == 16
    assert ops["QLinearGlobalAveragePool"] == 1 and ops["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "Add", "Relu", "DequantizeLinear"} & set(ops)
