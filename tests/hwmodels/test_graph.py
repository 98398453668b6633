"""Reading graphs: sizes and widths, constants against ONNX's reference, and files that must not be believed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hwmodels import weights
from hwmodels.constants import OPERATORS, evaluate
from hwmodels.errors import WorkloadError
from hwmodels.graph import read_graph
from hwmodels.inputs import parse_shape, parse_shapes
from hwmodels.workload import read_workload

INTEGERS = np.array([[7, -3, 5], [-8, 2, 6]])
FLOATS = np.array([[0.5, 1.5, -2.5], [4.0, 0.0, 9.0]], np.float32)


def value(name: str, shape: list | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def save(folder: Path, nodes: list, inputs: list, tensors: dict, properties: dict | None = None) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_empty_tensor_value_info(nodes[-1].output[0])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, properties or {})
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def convolution(folder: Path, *shape: int | str | None) -> Path:
    weight = np.ones((4, 3, *[3] * (len(shape) - 2)), np.float32)
    return save(folder, [helper.make_node("Conv", ["x", "w"], ["y"])], [value("x", [*shape])], {"w": weight})


@pytest.mark.parametrize("shape", [(3, 12, 10), (1, 3, 12, 10), (7, 3, 12, 10), {"x": (3, 12, 10)}])
def test_a_shape_fixes_what_the_file_leaves_open(tmp_path: Path, shape) -> None:
    file = convolution(tmp_path, "N", 3, "H", "W")
    (layer,) = read_workload(file, shape).layers
    assert layer.positions == 80 and layer.in_values == 360
    assert read_workload(file, shape).images["x"][1:] == (3, 12, 10)


@pytest.mark.parametrize(
    ("shape", "example"),
    [
        (("N", 3, "H", "W"), "--shape 3x224x224"),
        ((1, None, None, 20), "--shape 3x224x20"),
        (("N", 3, "L"), "--shape 3x224"),
        (("N", 3, 16, "H", "W"), "--shape 3x16x224x224"),
    ],
)
def test_a_size_left_open_is_one_line_that_names_shape(tmp_path: Path, shape: tuple, example: str) -> None:
    with pytest.raises(WorkloadError, match=r"\?.*fixed height and width") as caught:
        read_workload(convolution(tmp_path, *shape))
    assert str(caught.value).endswith(example) and "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 12), (3, 12, 10, 10, 10), (4, 12, 10), (3, 0, 10), (3, -1, 10)])
def test_shapes_that_contradict_the_file_are_refused(tmp_path: Path, shape: tuple) -> None:
    with pytest.raises(WorkloadError, match="does not fit input x, \\? x 3 x \\? x \\?"):
        read_workload(convolution(tmp_path, "N", 3, "H", "W"), shape)


def test_a_fixed_size_can_be_repeated_not_changed(tmp_path: Path) -> None:
    file = convolution(tmp_path, "N", 3, 12, 10)
    assert read_workload(file, (3, 12, 10)) == read_workload(file)
    with pytest.raises(WorkloadError, match="does not fit"):
        read_workload(file, (3, 24, 20))


def test_several_images_need_names(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["a", "w"], ["c"]), helper.make_node("Conv", ["b", "w"], ["y"])]
    inputs = [value("a", ["N", 3, "H", "W"]), value("b", ["N", 3, "H", "W"])]
    file = save(tmp_path, nodes, inputs, {"w": np.ones((4, 3, 1, 1), np.float32)})
    first, second = read_workload(file, {"a": (3, 4, 5), "b": (3, 6, 7)}).layers
    assert (first.positions, second.positions) == (20, 42)
    with pytest.raises(WorkloadError, match="--shape a=3x224x224"):
        read_workload(file)
    with pytest.raises(WorkloadError, match="images are a, b"):
        read_workload(file, (3, 4, 5))
    with pytest.raises(WorkloadError, match="'c', which is no image"):
        read_workload(file, {"c": (3, 4, 5)})


def test_an_image_without_a_batch_is_one_image(tmp_path: Path) -> None:
    nodes = [helper.make_node("Unsqueeze", ["x", "axis"], ["b"]), helper.make_node("Conv", ["b", "w"], ["y"])]
    tensors = {"w": np.ones((4, 3, 1, 1), np.float32), "axis": np.array([0])}
    (layer,) = read_workload(save(tmp_path, nodes, [value("x", [3, 6, 5])], tensors)).layers
    assert layer.positions == 30


def test_shapes_as_they_are_typed() -> None:
    assert parse_shape("3x224x224") == (3, 224, 224) and parse_shape("7") == (7,)
    assert parse_shapes([]) is None and parse_shapes(["1x3x8x8"]) == (1, 3, 8, 8)
    assert parse_shapes(["a=3x8x8", "b=1x4"]) == {"a": (3, 8, 8), "b": (1, 4)}
    for text in ["", "x", "3x", "3x-1", "3x0x1", "axb", "3*4", "3x224x9999999999", "3 x 4", "²x3"]:
        with pytest.raises(WorkloadError, match="3x224x224"):
            parse_shape(text)
    with pytest.raises(WorkloadError, match="name the input"):
        parse_shapes(["3x8x8", "b=1x4"])


def test_a_network_that_torch_exported_with_free_sizes(tmp_path: Path) -> None:
    """Global pooling over whatever size there is, and a size that is worked out in the graph."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, stride=2)
            self.head = torch.nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.nn.functional.interpolate(self.conv(x), scale_factor=2.0)
            return self.head(y.flatten(2).mean(2))

    axes = {"x": {0: "n", 2: "h", 3: "w"}}
    arguments = {"input_names": ["x"], "dynamic_axes": axes, "dynamo": False}
    torch.onnx.export(Net().eval(), (torch.zeros(2, 3, 16, 16),), tmp_path / "net.onnx", **arguments)
    conv, head = read_workload(tmp_path / "net.onnx", (3, 33, 21)).layers
    assert (conv.name, conv.positions, conv.biases) == ("conv", 16 * 10, 8)
    assert (head.name, head.positions, head.macs) == ("head", 1, 40)


def widths_file(folder: Path, properties: dict) -> Path:
    nodes = [
        helper.make_node("Sub", ["widths", "width"], ["d"]),
        helper.make_node("Abs", ["d"], ["a"]),
        helper.make_node("ArgMin", ["a"], ["i"], keepdims=0),
        helper.make_node("Gather", ["sizes", "i"], ["size"]),
        helper.make_node("Slice", ["w.weight", "zeros", "size"], ["block"]),
        helper.make_node("Conv", ["x", "block"], ["y"]),
    ]
    tensors = {
        "widths": np.array([0.25, 1.0], np.float32),
        "sizes": np.array([[2, 3, 1, 1], [8, 3, 1, 1]]),
        "zeros": np.zeros(4, np.int64),
        "w.weight": np.ones((8, 3, 1, 1), np.float32),
    }
    return save(folder, nodes, [value("x", ["N", 3, 4, 4]), value("width", [])], tensors, properties)


def test_a_width_is_a_constant_once_chosen(tmp_path: Path) -> None:
    file = widths_file(tmp_path, {"deploytool.widths": "[0.25, 1.0]"})
    for width, filters in ((0.25, 2), (1.0, 8), (None, 8)):
        (layer,) = read_workload(file, width=width).layers
        assert (layer.name, layer.out_channels, layer.nonzero) == ("w", filters, 3 * filters)
    with pytest.raises(WorkloadError, match=r"width \(=0.5\) is not in .* it holds 0.25, 1"):
        read_workload(file, width=0.5)


def test_widths_that_are_not_listed_must_be_named(tmp_path: Path) -> None:
    file = widths_file(tmp_path, {})
    assert read_workload(file, width=0.3).layers[0].out_channels == 2
    with pytest.raises(WorkloadError, match="choose one with --width"):
        read_workload(file)
    for width in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(WorkloadError, match="positive"):
            read_workload(file, width=width)


@pytest.mark.parametrize("text", ["[0.5", '["a"]', "[NaN]", "3", "[-1]", "[[1]]", "[" * 100_000])
def test_widths_that_are_no_numbers_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(WorkloadError, match="are no numbers"):
        read_workload(widths_file(tmp_path, {"deploytool.widths": text}))


def test_a_file_of_one_width_takes_no_other(tmp_path: Path) -> None:
    file = convolution(tmp_path, 1, 3, 4, 4)
    with pytest.raises(WorkloadError, match="takes no width"):
        read_workload(file, width=0.5)


def test_the_three_kinds_of_nodes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["w", "knob"], ["hat"]),
        helper.make_node("Conv", ["x", "hat"], ["c"]),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["n"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    tensors = {"w": np.ones((4, 3, 1, 1), np.float32), "one": np.array([1])}
    graph = read_graph(save(tmp_path, nodes, [value("x", ["N", 3, 4, 4]), value("knob", [])], tensors))
    kinds = [[node.op_type for node in part] for part in (graph.knobs, graph.data, graph.sizes)]
    assert kinds == [["Mul"], ["Conv", "Relu"], ["Shape", "Gather"]]
    assert graph.values["n"].tolist() == [4] and graph.shape("y") == (1, 4, 4, 4)


def test_sizes_that_shape_inference_alone_does_not_find(tmp_path: Path) -> None:
    """Sizes out of a Range, a product and a division; ONNX's data propagation follows neither."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("ReduceProd", ["s"], ["all"], keepdims=1),
        helper.make_node("Div", ["all", "five"], ["rows"]),
        helper.make_node("Concat", ["rows", "five"], ["size"], axis=0),
        helper.make_node("Reshape", ["x", "size"], ["r"]),
        helper.make_node("Gemm", ["r", "w"], ["y"]),
    ]
    tensors = {"five": np.array([5]), "w": np.ones((5, 7), np.float32)}
    (layer,) = read_workload(save(tmp_path, nodes, [value("x", ["N", 2, 3, 5])], tensors)).layers
    assert layer.positions == 6


def test_functions_of_the_file_are_inlined(tmp_path: Path) -> None:
    opset = helper.make_opsetid("", 18)
    nodes = [helper.make_node("Conv", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"])]
    function = helper.make_function("own", "Block", ["a", "b"], ["d"], nodes, [opset])
    file = save(
        tmp_path,
        [helper.make_node("Block", ["x", "w"], ["y"], domain="own")],
        [value("x", [1, 3, 4, 4])],
        {"w": np.ones((4, 3, 1, 1), np.float32)},
    )
    model = onnx.load(file)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    file.write_bytes(model.SerializeToString())
    workload = read_workload(file)
    assert len(workload.layers) == 1 and workload.free == {"Relu": 1} and workload.not_counted == {}


def test_a_graph_that_runs_in_circles_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["b"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Add", ["a", "r"], ["y"]),
    ]
    with pytest.raises(WorkloadError, match="before it is made"):
        read_workload(save(tmp_path, nodes, [value("x", [1, 3, 4, 4])], {}))


def test_a_tensor_that_is_made_twice_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["b"]),
        helper.make_node("Relu", ["b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
    ]
    with pytest.raises(WorkloadError, match="exists already"):
        read_workload(save(tmp_path, nodes, [value("x", [1, 3, 4, 4])], {}))


@pytest.mark.parametrize(("op", "count"), [("Conv", 1), ("BatchNormalization", 2), ("Where", 2), ("Shape", 0)])
def test_nodes_that_lack_operands_are_refused(tmp_path: Path, op: str, count: int) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node(op, ["x", "r"][:count], ["y"], name="cut")]
    with pytest.raises(WorkloadError, match=f"node cut reads {count} tensors; {op} needs"):
        read_workload(save(tmp_path, nodes, [value("x", [1, 3, 4, 4])], {}))


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = convolution(tmp_path, 1, 3, 4, 4)
    file.write_bytes(file.read_bytes().replace(b"Conv", b"C\xffnv"))
    with pytest.raises(WorkloadError, match="names are no text"):
        read_workload(file)


def test_stored_values_of_the_wrong_length_are_refused(tmp_path: Path) -> None:
    file = convolution(tmp_path, 1, 3, 4, 4)
    model = onnx.load(file)
    model.graph.initializer[0].raw_data = b"\0" * 7
    file.write_bytes(model.SerializeToString())
    with pytest.raises(WorkloadError, match="tensor w is damaged"):
        read_workload(file)


def test_a_bomb_is_not_set_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight 'restored' by doubling 31 times, and sizes that would take terabytes."""
    monkeypatch.setattr(weights, "LARGEST", 1 << 16)
    nodes = [helper.make_node("Concat", ["w", "w"], ["w0"], axis=0)]
    nodes += [helper.make_node("Concat", [f"w{i}", f"w{i}"], [f"w{i + 1}"], axis=0) for i in range(30)]
    nodes += [
        helper.make_node("ConstantOfShape", ["huge"], ["zeros"]),
        helper.make_node("Expand", ["one", "huge"], ["ones"]),
        helper.make_node("Conv", ["x", "w30"], ["c"]),
        helper.make_node("Conv", ["x", "zeros"], ["d"]),
        helper.make_node("Conv", ["x", "ones"], ["y"]),
    ]
    tensors = {
        "w": np.ones((1, 3, 1, 1), np.float32),
        "huge": np.array([10**9, 3, 1, 1]),
        "one": np.ones(1, np.float32),
    }
    layers = read_workload(save(tmp_path, nodes, [value("x", [1, 3, 4, 4])], tensors)).layers
    assert [layer.out_channels for layer in layers] == [2**31, 10**9, 10**9]
    assert all(layer.nonzero == layer.weights and layer.fillers is None for layer in layers)


CASES = {
    "Abs": ([INTEGERS], {}), "Add": ([INTEGERS, INTEGERS[:1]], {}), "And": ([INTEGERS > 2, INTEGERS > 5], {}),
    "ArgMin": ([FLOATS], {"axis": 1, "keepdims": 0}),
    "BitShift": ([np.array([16, 255], np.uint8), np.array([4, 4], np.uint8)], {"direction": "RIGHT"}),
    "BitwiseAnd": ([INTEGERS, np.array(6)], {}), "Cast": ([FLOATS], {"to": TensorProto.INT64}), "Ceil": ([FLOATS], {}),
    "Concat": ([INTEGERS, INTEGERS], {"axis": 1}),
    "ConstantOfShape": ([np.array([2, 3])], {"value": numpy_helper.from_array(np.array([7]))}),
    "CumSum": ([INTEGERS, np.array(1)], {}), "Div": ([INTEGERS, np.array(3)], {}),
    "Equal": ([INTEGERS, np.array(5)], {}), "Expand": ([INTEGERS[:1], np.array([4, 1])], {}), "Floor": ([FLOATS], {}),
    "Gather": ([INTEGERS, np.array([2, -1])], {"axis": 1}), "Greater": ([FLOATS, np.array(1, np.float32)], {}),
    "Identity": ([FLOATS], {}), "Less": ([INTEGERS, np.array(3)], {}), "Max": ([INTEGERS, np.array(3)], {}),
    "Min": ([INTEGERS, np.array(3)], {}), "Mod": ([INTEGERS, np.array(4)], {}), "Mul": ([FLOATS, FLOATS], {}),
    "Neg": ([INTEGERS], {}), "Not": ([INTEGERS > 2], {}), "Or": ([INTEGERS > 2, INTEGERS < -5], {}),
    "Pow": ([FLOATS, np.array(2, np.float32)], {}), "Range": ([np.array(9), np.array(1), np.array(-3)], {}),
    "ReduceMax": ([INTEGERS, np.array([1])], {}), "ReduceMin": ([INTEGERS, np.array([-1])], {"keepdims": 0}),
    "ReduceProd": ([INTEGERS], {}), "ReduceSum": ([INTEGERS], {"noop_with_empty_axes": 1}),
    "Reshape": ([INTEGERS, np.array([0, -1, 1])], {}),
    "ScatterElements": ([np.zeros(6, np.float32), np.array([5, 1]), np.array([2, 3], np.float32)], {}),
    "Slice": ([INTEGERS, np.array([5]), np.array([-9]), np.array([1]), np.array([-2])], {}),
    "Split": ([INTEGERS, np.array([1, 2])], {"axis": 1}), "Sqrt": ([np.abs(FLOATS)], {}),
    "Squeeze": ([INTEGERS[:1], np.array([0])], {}), "Sub": ([INTEGERS, np.array(3)], {}),
    "Tile": ([INTEGERS, np.array([2, 1])], {}), "Transpose": ([INTEGERS], {"perm": [1, 0]}),
    "Unsqueeze": ([INTEGERS, np.array([0, -1])], {}), "Where": ([INTEGERS > 0, INTEGERS, np.array(0)], {}),
}  # fmt: skip


@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_constants_are_those_of_onnxs_reference(op: str) -> None:
    inputs, attributes = CASES[op]
    results = [f"y{i}" for i in range(2 if op == "Split" else 1)]
    names = [f"x{i}" for i in range(len(inputs))]
    node = helper.make_node(op, names, results, **attributes)
    fed = dict(zip(names, inputs, strict=True))
    kinds = [value(name, list(x.shape), helper.np_dtype_to_tensor_dtype(x.dtype)) for name, x in fed.items()]
    graph = helper.make_graph([node], "g", kinds, [helper.make_empty_tensor_value_info(name) for name in results])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    expected = ReferenceEvaluator(model).run(None, fed)
    found = evaluate(node, inputs, 1000)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype and a.shape == b.shape


def test_older_opsets_have_attributes_where_newer_ones_have_operands() -> None:
    cut = helper.make_node("Slice", ["x"], ["y"], starts=[0], ends=[1], axes=[1])
    assert evaluate(cut, [INTEGERS], 100)[0].tolist() == [[7], [-8]]
    more = helper.make_node("Unsqueeze", ["x"], ["y"], axes=[0])
    assert evaluate(more, [INTEGERS], 100)[0].shape == (1, 2, 3)
    parts = helper.make_node("Split", ["x"], ["a", "b"], axis=1, split=[1, 2])
    assert [part.shape for part in evaluate(parts, [INTEGERS], 100)] == [(2, 1), (2, 2)]


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Tile", [INTEGERS, np.array([10**9, 10**9])], {}),
        ("Range", [np.array(0), np.array(10**12), np.array(1)], {}),
        ("Range", [np.array(0), np.array(5), np.array(0)], {}),
        ("Expand", [INTEGERS, np.array([5])], {}),
        ("Gather", [INTEGERS, np.array([7])], {}),
        ("Add", [INTEGERS, None], {}),
        ("Cast", [INTEGERS], {"to": 999}),
        ("Reshape", [INTEGERS, np.array([0, 0, 0])], {}),
        ("Relu", [FLOATS], {}),
    ],
)
def test_what_cannot_be_computed_is_unknown(op: str, inputs: list, attributes: dict) -> None:
    assert evaluate(helper.make_node(op, ["a", "b", "c"][: len(inputs)], ["y"], **attributes), inputs, 100) is None


@pytest.mark.parametrize("kept", [True, False])
def test_what_libraries_alone_need_is_left_out(tmp_path: Path, kept: bool) -> None:
    """Only where the metadata say that they are libraries, and something else is computed."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["logits"]),
        helper.make_node("Flatten", ["logits"], ["flat"]),
        helper.make_node("MatMul", ["flat", "patterns"], ["products"]),
        helper.make_node("ReduceSum", ["products", "axes"], ["cpl"], keepdims=0),
    ]
    tensors = {"w": np.ones((4, 3, 1, 1), np.float32), "patterns": np.ones((16, 5), np.float32), "axes": np.array([1])}
    properties = {"deploytool.library": "{}"} if kept else {}
    file = save(tmp_path, nodes, [value("x", ["N", 3, 2, 2])], tensors, properties)
    model = onnx.load(str(file))
    model.graph.output.insert(0, value("logits", ["N", 4, 2, 2]))
    onnx.save(model, str(file))
    graph = read_graph(file)
    assert graph.left_out == (("cpl",) if kept else ())
    assert graph.outputs == (("logits",) if kept else ("logits", "cpl"))
    assert ("MatMul" in {node.op_type for node in graph.data}) == (not kept)
