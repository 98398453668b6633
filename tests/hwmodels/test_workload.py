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
    if form == "QOperator":  # its Add, pooling and Gemm are onnxruntime's own, which ONNX knows no shapes of
        with pytest.raises(WorkloadError, match="shape of"):
            read_workload(file)
        return
    after = read_workload(file)
    assert {(a.name, a.macs, a.film) for a in after.layers} == {(b.name, b.macs, b.film) for b in before.layers}
    assert {layer.weight_bits for layer in after.layers} == {8} and after.not_counted == {}


def sparse_array(shape: tuple[int, ...], positions: list[int]) -> np.ndarray:
    array = np.zeros(shape, np.float32)
    array.flat[positions] = 2.0
    array.flat[positions[0] + 1] = -0.0  # a zero too
    return array


def test_zeros_are_counted_where_the_weight_is_stored(tmp_path: Path) -> None:
    """Runs of zeros before the weights at 0, 16, 17, 40, 80: 0, 15, 0, 22, 39; 0, 0, 0, 1, 2 fillers; 108 - 5 zeros."""
    weight = sparse_array((4, 3, 3, 3), [0, 16, 17, 40, 80])
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    (layer,) = read_workload(save(tmp_path, [node], {"w": weight}, [1, 3, 8, 8])).layers
    assert (layer.weights, layer.nonzero, layer.fillers) == (108, 5, 3)


def test_zeros_survive_what_keeps_them(tmp_path: Path) -> None:
    """A masked weight conditioned on a knob, at the leading block of its filters."""
    weight = sparse_array((4, 3, 3, 3), [0, 16, 17, 40, 80])
    nodes = [
        helper.make_node("Mul", ["noise", "knob"], ["shift"]),
        helper.make_node("Add", ["w", "shift"], ["noisy"]),
        helper.make_node("Cast", ["w"], ["active"], to=TensorProto.BOOL),
        helper.make_node("Where", ["active", "noisy", "w"], ["hat"]),
        helper.make_node("Slice", ["hat", "zero", "two", "zero"], ["half"]),
        helper.make_node("Conv", ["x", "half"], ["y"]),
        helper.make_node("Conv", ["x", "noisy"], ["z"]),
    ]
    knob = helper.make_tensor_value_info("knob", TensorProto.FLOAT, [])
    tensors = {"w": weight, "noise": (4, 3, 3, 3), "zero": np.array([0]), "two": np.array([2])}
    half, noisy = read_workload(save(tmp_path, nodes, tensors, [1, 3, 8, 8], inputs=[knob])).layers
    assert (half.weights, half.nonzero, half.fillers) == (54, 4, 1)
    assert (noisy.nonzero, noisy.fillers) == (108, None)  # noise is added to the zeros as well


def test_weights_in_onnxs_sparse_format(tmp_path: Path) -> None:
    file = save(tmp_path, [helper.make_node("Conv", ["x", "w"], ["y"])], {}, [1, 3, 8, 8])
    model = onnx.load(file)
    values = numpy_helper.from_array(np.array([1, 0, 3], np.float32), "w")
    indices = numpy_helper.from_array(np.array([5, 20, 100]))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3, 3, 3]))
    file.write_bytes(model.SerializeToString())
    (layer,) = read_workload(file).layers
    assert (layer.macs, layer.nonzero, layer.weight_bits) == (4 * 27 * 36, 2, 32)
    assert layer.fillers == 5 // 16 + 94 // 16  # runs of 5 and 94 zeros


SPARSE = "sparsity: {kind: irregular, density: 0.1}"


@pytest.fixture(scope="module")
def slimmable_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Freshly initialised networks of two widths: dense and at the half width alone; with masks, and compressed."""
    from deploytool.export.artefact import export_untrained
    from deploytool.recipe import load_recipe

    folder = tmp_path_factory.mktemp("sparse")
    base = Path(__file__).parents[2] / "recipes" / "digits-float.yaml"
    masked = folder / "recipe.yaml"
    masked.write_text(f"{base.read_text()}\n{SPARSE}\n")
    chosen = ["model.arch=resnet8", "model.widths=[0.5, 1.0]"]
    export_untrained(load_recipe(base, chosen), folder / "both.onnx")
    export_untrained(load_recipe(base, chosen), folder / "half.onnx", width=0.5)
    export_untrained(load_recipe(masked, chosen), folder / "masked.onnx")
    export_untrained(load_recipe(masked, chosen), folder / "compressed.onnx", compress=True)
    return {file.stem: file for file in folder.glob("*.onnx")}


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


def test_film_on_lambda_is_no_layer(tmp_path: Path) -> None:
    from deploytool.export.artefact import export_untrained
    from deploytool.recipe import load_recipe

    base = (Path(__file__).parents[2] / "recipes" / "digits-float.yaml").read_text().splitlines()
    recipe = tmp_path / "oat.yaml"
    recipe.write_text("\n".join("method: {name: oat}" if line.startswith("method:") else line for line in base))
    export_untrained(load_recipe(recipe, ["model.arch=resnet8"]), tmp_path / "oat.onnx")
    workload = read_workload(tmp_path / "oat.onnx")
    assert len(workload.layers) == 10 and workload.transforms["Gemm"] == 2 * 7 and workload.not_counted == {}
