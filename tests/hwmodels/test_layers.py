"""Layers worked by hand, operator by operator: shapes, multiply-accumulates, biases, names, quantised forms."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from hwmodels.errors import WorkloadError
from hwmodels.workload import read_workload

OPSETS = [helper.make_opsetid(name, version) for name, version in [("", 18), ("com.acme", 1), ("com.microsoft", 1)]]


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


@pytest.mark.parametrize(
    ("weight", "attributes", "channels", "positions", "macs"),
    [
        ((8, 3, 3, 3), {"pads": [1, 1, 1, 1]}, 3, 12 * 10, 8 * 27 * 120),
        ((8, 3, 3, 3), {}, 3, 10 * 8, 8 * 27 * 80),
        ((8, 3, 5, 3), {"strides": [2, 3], "pads": [2, 0, 1, 1]}, 3, 6 * 3, 8 * 45 * 18),  # (12+3-5)/2+1, (10+1-3)/3+1
        ((6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}, 6, 120, 6 * 9 * 120),  # depthwise
        ((8, 2, 1, 1), {"group": 2}, 4, 120, 8 * 2 * 120),
        ((4, 3, 3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}, 3, 120, 4 * 27 * 120),
        ((4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, 3, 6 * 5, 4 * 27 * 30),
        ((4, 3, 3, 3), {"auto_pad": "SAME_LOWER", "strides": [3, 3]}, 3, 4 * 4, 4 * 27 * 16),  # ceil(12/3), ceil(10/3)
        ((4, 3, 3, 3), {"auto_pad": "VALID", "strides": [2, 2]}, 3, 5 * 4, 4 * 27 * 20),  # (12-3)//2+1, (10-3)//2+1
        ((4, 3, 3, 3), {"dilations": [2, 3]}, 3, 8 * 4, 4 * 27 * 32),  # 12 - 2*2, 10 - 3*2
    ],
)
@pytest.mark.parametrize("batch", ["N", 1, 5])
def test_convolutions_by_hand(tmp_path, weight, attributes, channels, positions, macs, batch) -> None:
    node = helper.make_node("Conv", ["x", "stem.weight"], ["y"], **attributes)
    (layer,) = read_workload(save(tmp_path, [node], {"stem.weight": weight}, [batch, channels, 12, 10])).layers
    assert (layer.name, layer.kind, layer.groups) == ("stem", "conv", attributes.get("group", 1))
    assert layer.positions == positions and layer.macs == macs and layer.params == np.prod(weight)
    assert (layer.in_values, layer.out_values) == (channels * 120, weight[0] * positions)
    assert layer.dilation == tuple(attributes.get("dilations", [1, 1]))
    assert (layer.weight_bits, layer.nonzero, layer.fillers) == (32, layer.weights, 0)


@pytest.mark.parametrize(
    ("op", "weight", "attributes"), [("Gemm", (5, 7), {}), ("Gemm", (7, 5), {"transB": 1}), ("MatMul", (5, 7), {})]
)
def test_linear_layers_by_hand(tmp_path, op: str, weight: tuple, attributes: dict) -> None:
    node = helper.make_node(op, ["x", "head.weight"], ["y"], **attributes)
    (layer,) = read_workload(save(tmp_path, [node], {"head.weight": weight}, ["N", 5])).layers
    assert (layer.name, layer.kind, layer.out_channels, layer.in_channels_per_group) == ("head", "linear", 7, 5)
    assert layer.macs == layer.weights == 35 and layer.positions == 1 and not layer.film


@pytest.mark.parametrize(
    ("weight", "image", "attributes", "positions"),
    [
        ((6, 4, 3), [4, 20], {}, 18),  # one dimension
        ((6, 4, 3), [4, 20], {"strides": [2], "pads": [2, 0]}, 10),  # (20 + 2 - 3) / 2 + 1
        ((6, 2, 3, 3, 3), [4, 5, 6, 7], {"group": 2}, 3 * 4 * 5),  # three
    ],
)
def test_convolutions_of_signals_and_volumes(tmp_path, weight, image, attributes, positions) -> None:
    file = save(tmp_path, [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)], {"w": weight}, ["N", *image])
    (layer,) = read_workload(file).layers
    assert layer.positions == positions and layer.macs == np.prod(weight) * positions


@pytest.mark.parametrize(
    ("weight", "attributes", "out_channels", "out"),
    [
        ((6, 4, 2, 2), {"strides": [2, 2]}, 4, 24 * 20),
        ((6, 2, 3, 3), {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, 4, 24 * 20),
        ((6, 4, 3, 3), {}, 4, 14 * 12),
    ],
)
def test_transposed_convolutions_by_hand(tmp_path, weight, attributes, out_channels, out) -> None:
    """Each of the 12 x 10 input pixels of 6 channels meets every filter weight of its channel once."""
    node = helper.make_node("ConvTranspose", ["x", "up.weight"], ["y"], **attributes)
    (layer,) = read_workload(save(tmp_path, [node], {"up.weight": weight}, ["N", 6, 12, 10])).layers
    assert (layer.name, layer.kind, layer.film, layer.positions) == ("up", "conv-transpose", False, 120)
    assert (layer.out_channels, layer.weights, layer.macs) == (out_channels, np.prod(weight), 120 * np.prod(weight))
    assert (layer.in_values, layer.out_values) == (6 * 120, out_channels * out)


def test_transposed_convolutions_agree_with_torchs_flop_counter(tmp_path: Path) -> None:
    network = torch.nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, groups=2).eval()
    image = torch.zeros(1, 6, 7, 5)
    torch.onnx.export(network, (image,), tmp_path / "net.onnx", dynamo=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    (layer,) = read_workload(tmp_path / "net.onnx").layers
    assert 2 * layer.macs == counter.get_total_flops() and layer.biases == 4


@pytest.mark.parametrize(
    ("op", "weight", "image", "attributes", "expected"),  # expected: C_o, C_i, positions
    [
        ("MatMul", (5, 7), [11, 5], {}, (7, 5, 11)),  # a sequence
        ("MatMul", (5, 7), [2, 11, 5], {}, (7, 5, 22)),
        ("MatMul", (5,), [11, 5], {}, (1, 5, 11)),
        ("MatMul", (2, 5, 7), [2, 11, 5], {}, (14, 5, 11)),  # a matrix for each of two heads
        ("first MatMul", (7, 5), [5, 11], {}, (7, 5, 11)),
        ("first MatMul", (7, 5), [2, 5, 11], {}, (7, 5, 22)),
    ],
)
def test_products_with_a_weight_of_any_rank(tmp_path, op, weight, image, attributes, expected) -> None:
    names = ["w", "x"] if op.startswith("first") else ["x", "w"]
    node = helper.make_node(op.split()[-1], names, ["y"], name="mixer", **attributes)
    (layer,) = read_workload(save(tmp_path, [node], {"w": weight}, ["N", *image])).layers
    assert (layer.out_channels, layer.in_channels_per_group, layer.positions) == expected
    assert layer.macs == np.prod(expected) and layer.name == layer.node_name == "mixer"
    assert layer.in_values == np.prod(image)


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_with_the_weight_first(tmp_path: Path, transposed: int) -> None:
    weight = (5, 7) if transposed else (7, 5)
    nodes = [
        helper.make_node("Squeeze", ["x", "axis"], ["tokens"]),
        helper.make_node("Gemm", ["w", "tokens", "b"], ["y"], transA=transposed),
    ]
    tensors = {"w": weight, "b": (7, 1), "axis": np.array([0])}
    (layer,) = read_workload(save(tmp_path, nodes, tensors, ["N", 5, 3])).layers
    assert (layer.out_channels, layer.in_channels_per_group, layer.positions, layer.biases) == (7, 5, 3, 7)


def test_rows_of_one_image_are_positions(tmp_path: Path) -> None:
    """A Gemm on (batch * tokens, channels): 2 images of 11 tokens."""
    nodes = [
        helper.make_node("Reshape", ["x", "size"], ["rows"]),
        helper.make_node("Gemm", ["rows", "w"], ["y"]),
    ]
    file = save(tmp_path, nodes, {"size": np.array([-1, 5]), "w": (5, 7)}, [2, 11, 5])
    (layer,) = read_workload(file).layers
    assert (layer.positions, layer.in_values, layer.out_values) == (11, 55, 77)


def test_biases_count_as_parameters_not_as_work(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="c")
    (layer,) = read_workload(save(tmp_path, [node], {"w": (4, 3, 1, 1), "b": (4,)}, [1, 3, 2, 2])).layers
    assert layer.params == 16 and layer.weights == 12 and layer.macs == 48


def test_the_add_after_a_matmul_is_its_bias(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["b", "m"], ["y"])]
    workload = read_workload(save(tmp_path, nodes, {"w": (5, 7), "b": (7,)}, ["N", 5]))
    assert workload.layers[0].biases == 7 and workload.other_values == 0 and workload.free == {"Add": 1}


def test_layers_that_share_a_weight_have_names_of_their_own(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "c.weight"], ["a"]),
        helper.make_node("Conv", ["a", "c.weight"], ["y"]),
    ]
    workload = read_workload(save(tmp_path, nodes, {"c.weight": (3, 3, 1, 1)}, [1, 3, 4, 4]))
    assert [layer.name for layer in workload.layers] == ["c", "c#2"]


def test_names_that_torchs_older_exporter_gives(tmp_path: Path) -> None:
    names = ["/features/features.1/conv/conv.0/conv.0.0/Conv", "/layer4/layer4.0/conv1/Conv", "Conv_7"]
    nodes = [helper.make_node("Conv", ["x", "onnx::Conv_9"], [f"y{i}"], name=name) for i, name in enumerate(names)]
    workload = read_workload(save(tmp_path, nodes, {"onnx::Conv_9": (3, 3, 1, 1)}, [1, 3, 4, 4], "y0"))
    assert [layer.name for layer in workload.layers] == ["features.1.conv.0.0", "layer4.0.conv1", "Conv_7"]
    assert [layer.node_name for layer in workload.layers] == names


ZERO, SCALE = np.array(0, np.uint8), np.array(0.1, np.float32)


def test_quantised_layers_by_hand(tmp_path: Path) -> None:
    """int8 weights with zero points: 2 of the 8 * 27 weights of the convolution are zero, 3 of the linear layer's."""
    conv = np.full((8, 3, 3, 3), 5, np.int8)
    conv[0, 0, 0, 0] = conv[7, 2, 2, 2] = 1
    linear = np.full((120, 4), 7, np.uint8)
    linear[:3, 1] = 9
    tensors = {
        "s": SCALE, "z": ZERO, "c.weight": conv, "cz": np.array(1, np.int8), "b": np.zeros(8, np.int32),
        "size": np.array([-1, 120]), "l.weight": linear, "lz": np.array(9, np.uint8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QLinearConv", ["x", "s", "z", "c.weight", "s", "cz", "s", "z", "b"], ["c"], pads=[1] * 4),
        helper.make_node("Reshape", ["c", "size"], ["r"]),
        helper.make_node("QLinearMatMul", ["r", "s", "z", "l.weight", "s", "lz", "s", "z"], ["y"]),
    ]
    workload = read_workload(save(tmp_path, nodes, tensors, [1, 3, 12, 10], kind=TensorProto.UINT8))
    first, second = workload.layers
    assert (first.kind, first.macs, first.biases, first.weight_bits) == ("conv", 8 * 27 * 120, 8, 8)
    assert (first.nonzero, second.nonzero) == (8 * 27 - 2, 480 - 3)
    assert (second.kind, second.macs, second.positions, second.weight_bits) == ("linear", 8 * 480, 8, 8)
    assert workload.not_counted == {}


@pytest.mark.parametrize("op", ["ConvInteger", "MatMulInteger"])
def test_integer_layers(tmp_path: Path, op: str) -> None:
    weight = np.zeros((4, 3, 3, 3) if op == "ConvInteger" else (8, 5), np.uint8)
    weight.flat[7] = 3
    node = helper.make_node(op, ["x", "w"], ["y"])
    (layer,) = read_workload(save(tmp_path, [node], {"w": weight}, [1, 3, 8, 8], kind=TensorProto.UINT8)).layers
    assert layer.weights == weight.size and layer.nonzero == 1 and layer.weight_bits == 8
    assert layer.macs == weight.size * (36 if op == "ConvInteger" else 24)


@pytest.mark.parametrize("per_channel", [False, True])
def test_layers_between_quantize_and_dequantize(tmp_path: Path, per_channel: bool) -> None:
    weight = np.zeros((4, 3, 1, 1), np.int8)
    weight[0], weight[1, 0] = 3, 5
    zeros = np.array([3, 0, 0, 0], np.int8) if per_channel else np.array(0, np.int8)  # 3 means 0 in channel 0
    scales = np.full(zeros.shape, 0.5, np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["conv.weight.q", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "ws"], ["bd"], axis=0),
        helper.make_node("Conv", ["d", "wd", "bd"], ["y"], name="conv"),
    ]
    tensors = {"s": SCALE, "z": ZERO, "conv.weight.q": weight, "ws": scales, "wz": zeros, "bias": np.ones(4, np.int32)}
    workload = read_workload(save(tmp_path, nodes, tensors, ["N", 3, 2, 2]))
    (layer,) = workload.layers
    assert (layer.name, layer.macs, layer.weight_bits, layer.biases) == ("conv", 48, 8, 4)
    assert layer.nonzero == (1 if per_channel else 4)
    assert workload.free == {"QuantizeLinear": 1, "DequantizeLinear": 1}
    assert workload.transforms == {"DequantizeLinear": 2}


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_files_that_onnxruntime_quantised(plain_file: Path, tmp_path: Path, form: str) -> None:
    from onnxruntime import quantization

    class Images(quantization.CalibrationDataReader):
        left = 2

        def get_next(self) -> dict | None:
            self.left -= 1
            return {"image": np.random.default_rng(0).random((1, 1, 8, 8), np.float32)} if self.left >= 0 else None

    file = tmp_path / "int8.onnx"
    quantization.quantize_static(plain_file, file, Images(), quant_format=quantization.QuantFormat[form])
    before = read_workload(plain_file)
    after = read_workload(file)
    told = [{(each.name, each.macs, each.film, each.biases) for each in work.layers} for work in (before, after)]
    assert told[0] == told[1]
    assert {layer.weight_bits for layer in after.layers} == {8} and after.not_counted == {}


def test_operators_that_onnx_knows_no_shapes_of_are_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Fancy", ["x"], ["f"], domain="com.acme"), helper.make_node("Conv", ["f", "w"], ["y"])]
    with pytest.raises(WorkloadError, match=r"shape of f in layer w is unknown; ONNX knows no shapes of Fancy \(com.a"):
        read_workload(save(tmp_path, nodes, {"w": (4, 3, 1, 1)}, [1, 3, 4, 4]))


def test_layers_that_onnxruntime_fused(tmp_path: Path) -> None:
    own = {"domain": "com.microsoft"}
    nodes = [
        helper.make_node("FusedConv", ["x", "c.weight", "b"], ["c"], activation="Relu", pads=[1] * 4, **own),
        helper.make_node("QLinearConcat", ["s", "z", "c", "s", "z", "x", "s", "z"], ["k"], axis=1, **own),
        helper.make_node("Conv", ["k", "d.weight"], ["y"]),
        helper.make_node("QLinearAveragePool", ["k", "s", "z", "s", "z"], ["n"], channels_last=1, **own),
    ]
    tensors = {"c.weight": (4, 3, 3, 3), "b": (4,), "d.weight": (5, 7, 1, 1), "s": SCALE, "z": ZERO}
    workload = read_workload(save(tmp_path, nodes, tensors, ["N", 3, 6, 5]))
    assert [(each.name, each.macs, each.biases) for each in workload.layers] == [("c", 108 * 30, 4), ("d", 35 * 30, 0)]
    assert workload.free == {"Concat": 1} and workload.not_counted == {"QLinearAveragePool": 1}
