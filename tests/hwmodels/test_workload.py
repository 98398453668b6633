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


def save(folder: Path, nodes: list, weights: dict[str, tuple], image: list, output: str = "y", inputs=()) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image), *inputs],
        [helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()],
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
    ],
)
@pytest.mark.parametrize("batch", ["N", 1, 5])
def test_convolutions_by_hand(tmp_path, weight, attributes, channels, positions, macs, batch) -> None:
    node = helper.make_node("Conv", ["x", "stem.weight"], ["y"], **attributes)
    (layer,) = read_workload(save(tmp_path, [node], {"stem.weight": weight}, [batch, channels, 12, 10])).layers
    assert (layer.name, layer.kind, layer.groups) == ("stem", "conv", attributes.get("group", 1))
    assert layer.positions == positions and layer.macs == macs and layer.params == np.prod(weight)


@pytest.mark.parametrize(
    ("op", "weight", "attributes"), [("Gemm", (5, 7), {}), ("Gemm", (7, 5), {"transB": 1}), ("MatMul", (5, 7), {})]
)
def test_linear_layers_by_hand(tmp_path, op: str, weight: tuple, attributes: dict) -> None:
    node = helper.make_node(op, ["x", "head.weight"], ["y"], **attributes)
    (layer,) = read_workload(save(tmp_path, [node], {"head.weight": weight}, ["N", 5])).layers
    assert (layer.name, layer.kind, layer.out_channels, layer.in_channels_per_group) == ("head", "linear", 7, 5)
    assert layer.macs == layer.weights == 35 and layer.positions == 1 and not layer.film


def test_a_linear_layer_on_a_sequence_counts_its_positions(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="token_mixer")
    (layer,) = read_workload(save(tmp_path, [node], {"w": (5, 7)}, ["N", 11, 5])).layers
    assert layer.macs == 11 * 35 and layer.name == "token_mixer"


def test_biases_count_as_parameters_not_as_work(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="c")
    (layer,) = read_workload(save(tmp_path, [node], {"w": (4, 3, 1, 1), "b": (4,)}, [1, 3, 2, 2])).layers
    assert layer.params == 16 and layer.weights == 12 and layer.macs == 48


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


def test_what_is_not_covered_is_said(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["t"]),
        helper.make_node("Relu", ["t"], ["r"]),
        helper.make_node("Transpose", ["r"], ["s"]),
        helper.make_node("MatMul", ["r", "s"], ["y"]),
        helper.make_node("Fancy", ["y"], ["z"], domain="com.acme"),
    ]
    workload = read_workload(save(tmp_path, nodes, {"w": (3, 4, 2, 2)}, [1, 3, 8, 8]))
    assert workload.not_counted == {"ConvTranspose": 1, "MatMul": 1, "Fancy": 1}
    assert workload.free == {"Relu": 1, "Transpose": 1}


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


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize(("arch", "shortcuts"), [("resnet18", 3), ("mobilenet_v2", 0)])
def test_graphs_that_we_did_not_write_agree_with_torchs_flop_counter(tmp_path, arch, shortcuts, dynamo) -> None:
    network = getattr(torchvision.models, arch)(weights=None).eval()
    image = torch.zeros(1, 3, 64, 64)
    file = tmp_path / "net.onnx"
    try:
        torch.onnx.export(network, (image,), file, dynamo=dynamo, verbose=False)
    except Exception as error:
        if dynamo:
            raise
        pytest.skip(f"this torch has no TorchScript exporter: {error}")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    workload = read_workload(file)
    assert 2 * sum(layer.macs for layer in workload.layers) == counter.get_total_flops()
    assert workload.not_counted == {}
    assert sum(layer.kind == "conv" and not layer.film for layer in workload.layers) == shortcuts
    assert len({layer.name for layer in workload.layers}) == len(workload.layers)


def test_free_height_and_width_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path, [helper.make_node("Conv", ["x", "w"], ["y"])], {"w": (4, 3, 3, 3)}, ["N", 3, "H", "W"])
    with pytest.raises(WorkloadError, match="fixed height and width"):
        read_workload(file)


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


def test_a_graph_that_runs_in_circles_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["b"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Add", ["a", "r"], ["y"]),
    ]
    with pytest.raises(WorkloadError, match="before it is made"):
        read_workload(save(tmp_path, nodes, {}, [1, 3, 4, 4]))
