"""What is let through to onnxruntime: every file that deploytool writes, and little else.

Files that once did harm are in `tests/runtime/hostile/found.py`; these are the rules one by one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, defs, helper, numpy_helper

from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.graph import Graph, take_apart
from deploytool.runtime.operators import OPERATORS
from deploytool.runtime.partial import specialized_graph
from deploytool.runtime.validation import (
    MAX_ACTIVATIONS,
    MAX_NODES,
    ON_IMAGES,
    WORK_PER_VALUE,
    check_graph,
    check_tensors,
)

Array = np.ndarray[Any, Any]


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array] | None = None,
    inputs: Sequence[str] = (),
    opset: int = 18,
    batch: int | str = "N",
) -> Graph:
    """A graph from `image` (N, 1, 8, 8), and perhaps scalars, to what the last node makes."""
    taken = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 8, 8])]
    taken += [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in inputs]
    given = [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [None] * 4)]
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "g", taken, given, tensors)
    return take_apart(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def node(op: str, *inputs: str, out: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [out], **attributes)


@pytest.mark.parametrize(
    "name", ["trained_file", "trained_interpolate_file", "plain_file", "wide_file", "resnet34_file"]
)
def test_what_deploytool_writes_is_let_through(name: str, request: pytest.FixtureRequest) -> None:
    artefact = read_artefact(request.getfixturevalue(name))
    check_graph(artefact.graph, artefact.metadata.widths)
    if not artefact.metadata.fixed:
        for width in artefact.metadata.widths:
            check_graph(specialized_graph(artefact, 0.3 if artefact.metadata.conditional else None, None, width))


def test_every_operator_let_through_is_one_of_onnx() -> None:
    """A name misspelt would never be missed."""
    for op in OPERATORS.keys() | ON_IMAGES:
        assert not defs.get_schema(op, 18, "").deprecated
    assert not OPERATORS.keys() & ON_IMAGES


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node("Relu", "image", domain="com.microsoft")], "operator com.microsoft Relu, which deploytool never writes"),
        ([node("Relu", "image", domain="ai.onnx")], "operator ai.onnx Relu"),
        ([node("RandomNormalLike", "image")], "operator  RandomNormalLike, which deploytool never writes"),
        ([node("Relu", "absent")], "absent"),
        ([node("Relu", "x"), node("Abs", "image", out="x")], "topologically"),
        ([node("Relu", "y")], "topologically"),
        ([node("Relu", "image"), node("Abs", "image")], "SSA"),
        ([node("Relu", "image", slope=1)], "slope"),
        ([node("Softmax", "image", axis=4)], "axis"),
        ([node("Conv", "image", "image", group=1, strides=[0, 0])], "stride"),
        ([node("Relu", "image", "image")], "input"),
        ([node("MaxPool", "image", kernel_shape=[1, 1], strides=[1, 2**31])], "an attribute of MaxPool is too large"),
        ([node("Cast", "image", out="whole", to=TensorProto.INT32), node("Add", "whole", "image")], "type"),
    ],
)
def test_what_onnx_calls_invalid_is_refused(nodes: list[onnx.NodeProto], said: str) -> None:
    with pytest.raises(Exception, match=f"(?i){said}"):  # onnx has an exception of its own for each kind
        check_graph(graph_of(nodes))


def resize(scales: Sequence[float] | None = None, sizes: Sequence[int] | None = None, **attributes: Any) -> Graph:
    """An image resized by one node, bilinearly unless attributes say otherwise."""
    kind = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", **attributes}
    if scales is not None:
        nodes, constants = [node("Resize", "image", "", "by", **kind)], {"by": np.array(scales, np.float32)}
    else:
        nodes, constants = [node("Resize", "image", "", "", "to", **kind)], {"to": np.array(sizes, np.int64)}
    return graph_of(nodes, constants)


def test_a_bilinear_resize_by_constants_is_let_through() -> None:
    for scale in (1, 2, 64):
        check_graph(resize([1, 1, scale, 1]))
    check_graph(resize(sizes=[5, 40], axes=[2, 3]))
    check_graph(resize([1, 1, 2, 2], antialias=0, cubic_coeff_a=-0.75, exclude_outside=0, nearest_mode="floor"))


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (resize([1, 1, 65, 2]), "a Resize by"),
        (resize([1, 1, 1.5, 2]), "a Resize by"),
        (resize([1, 2, 1, 1]), "a Resize by"),
        (resize([1, 1, float("nan"), 1]), "a Resize by"),
        (resize([2, 2], axes=[2, 3]), "a Resize by"),
        (resize(sizes=[0, 8], axes=[2, 3]), "a Resize to"),
        (resize(sizes=[8, 8], axes=[1, 2]), "a Resize to"),
        (resize(sizes=[1, 1, 8, 8]), "a Resize to"),
        (resize([1, 1, 2, 2], mode="cubic"), "of another kind .*cubic"),
        (resize([1, 1, 2, 2], coordinate_transformation_mode="tf_crop_and_resize"), "of another kind .*crop"),
        (resize([1, 1, 2, 2], antialias=1), "of another kind .*antialias"),
        (graph_of([node("Resize", "image", "", "image", mode="linear")]), "of another kind"),
        (
            graph_of([node("Resize", "image", "", "by", mode="linear", coordinate_transformation_mode="half_pixel")]),
            "no constant",
        ),
    ],
)
def test_another_resize_is_refused(graph: Graph, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_graph(graph)


def test_sizes_of_a_resize_count_as_activations() -> None:
    side = int(MAX_ACTIVATIONS**0.5)
    check_graph(resize(sizes=[side // 2, side], axes=[2, 3]))
    with pytest.raises(ValueError, match="values for one image"):
        check_graph(resize(sizes=[side, 2 * side], axes=[2, 3]))


def nearest(k: Any = (3,), rows: int = 4, kind: type = np.int64, **attributes: Any) -> Graph:
    """Rows of a table at the places of the k largest of each row of 64 pixels, or as many as there are rows."""
    nodes = [
        node("Flatten", "image", out="flat"),
        node("MatMul", "flat", "weight", out="h"),
        helper.make_node("TopK", ["h", "k"], ["near", "places"], **attributes),
        node("Gather", "table", "places"),
    ]
    constants = {"weight": np.ones((64, 4), np.float32), "k": np.array(k, kind), "table": np.ones((rows, 2, 2))}
    return graph_of(nodes, {**constants, "table": constants["table"].astype(np.float32)})


def test_the_nearest_rows_by_a_constant_are_let_through() -> None:
    for k, attributes in (([1], {}), ([4], {"axis": 1}), ([3], {"axis": -1, "largest": 1, "sorted": 1})):
        check_graph(nearest(k, **attributes))


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (nearest([0]), "k is no constant"),
        (nearest([-1]), "k is no constant"),
        (nearest([1025]), "k is no constant"),
        (nearest([3, 3]), "k is no constant"),
        (nearest(3), "k is no constant"),
        (nearest([3], kind=np.int32), "k is no constant"),
        (graph_of([helper.make_node("TopK", ["image", "image"], ["y", "z"])]), "k is no constant"),
        (nearest([5]), "(?i)k"),
        (nearest([3], rows=3), "places of a TopK, of 3"),
        (nearest(axis=0), "a TopK of another kind"),
        (nearest(largest=0), "a TopK of another kind"),
        (nearest(sorted=0), "a TopK of another kind"),
    ],
)
def test_other_nearest_rows_are_refused(graph: Graph, said: str) -> None:
    with pytest.raises(Exception, match=said):
        check_graph(graph)


@pytest.mark.parametrize("place", [-9, 8, 2**62])
def test_no_row_that_is_not_there_is_gathered(place: int) -> None:
    nodes = [node("Gather", "image", "places", axis=3)]
    check_graph(graph_of(nodes, {"places": np.array([7, -8, 0])}))
    with pytest.raises(ValueError, match=r"a Gather from .* of 8"):
        check_graph(graph_of(nodes, {"places": np.array([0, place])}))


@pytest.mark.parametrize("opset", [6, 17, 19, 2**40])
def test_another_operator_set_is_refused(opset: int) -> None:
    """The operators in numpy are those of opset 18."""
    with pytest.raises(ValueError, match=f"opsets .*{opset}.*; deploytool writes 18"):
        check_graph(graph_of([node("Relu", "image")], opset=opset))


def test_a_second_operator_set_is_refused() -> None:
    graph = graph_of([node("Relu", "image")])
    graph.header.opset_import.add(domain="com.microsoft", version=1)
    with pytest.raises(ValueError, match="opsets"):
        check_graph(graph)


@pytest.mark.parametrize("parts", [1, 3, 2**28])
def test_a_split_has_as_many_outputs_as_parts(parts: int) -> None:
    """onnxruntime 1.31 writes past the end of a list otherwise."""
    split = helper.make_node("Split", ["image"], ["y", "z"], axis=2, num_outputs=parts)
    with pytest.raises(ValueError, match=f"a Split in {parts} parts has 2 outputs"):
        check_graph(graph_of([node("Relu", "image", out="x"), split]))


def test_whole_numbers_of_the_image_are_not_divided() -> None:
    """-2**31 / -1 ends the process."""
    nodes = [
        node("Cast", "image", out="whole", to=TensorProto.INT32),
        node("Div", "whole", "whole", out="one"),
        node("Cast", "one", to=TensorProto.FLOAT),
    ]
    with pytest.raises(ValueError, match="one is a quotient of integers"):
        check_graph(graph_of(nodes))
    check_graph(graph_of([node("Div", "image", "image")]))


@pytest.mark.parametrize(("inputs", "name"), [([], "image"), (["lambda"], "lambda")])
def test_a_shape_that_an_image_or_lambda_decides_is_refused(inputs: list[str], name: str) -> None:
    """What would have to be allocated is known only when it is too late."""
    constants = {"factor": np.full(4, 1e9, np.float32), "four": np.array([4]), "zero": np.array([0])}
    nodes = [
        node("Reshape", name, "minus", out="flat"),
        node("Slice", "flat", "zero", "four", out="some"),
        node("Mul", "some", "factor", out="many"),
        node("Cast", "many", out="repeats", to=TensorProto.INT64),
        node("Tile", "image", "repeats"),
    ]
    with pytest.raises(ValueError, match="the shape of y is unknown"):
        check_graph(graph_of(nodes, {**constants, "minus": np.array([-1])}, inputs))


def tiled(rows: int, batch: int | str = "N") -> Graph:
    """An image repeated until it is (1, 1, rows, 8)."""
    return graph_of([node("Tile", "image", "repeats")], {"repeats": np.array([1, 1, rows // 8, 1])}, batch=batch)


@pytest.mark.parametrize("batch", ["N", 1, 7])
def test_the_tensors_of_one_image_have_a_largest_size(batch: int | str) -> None:
    limit = MAX_ACTIVATIONS + 4 * WORK_PER_VALUE
    check_graph(tiled(limit // 8, batch))
    with pytest.raises(ValueError, match=f"values for one image; at most {limit}"):
        check_graph(tiled(limit // 8 + 8, batch))


def test_all_tensors_count_not_the_largest_alone() -> None:
    rows = MAX_ACTIVATIONS // 8 // 2 + 64
    graph = graph_of(
        [node("Tile", "image", "repeats", out="x"), node("Relu", "x")], {"repeats": np.array([1, 1, rows // 8, 1])}
    )
    with pytest.raises(ValueError, match="values for one image"):
        check_graph(graph)


def test_what_a_pool_reads_counts_not_what_it_writes() -> None:
    """Windows of 2**20 x 2**20 on an image padded to match would be read for hours."""
    for side, ok in ((3, True), (2**11, True), (2**20, False)):
        graph = graph_of([node("MaxPool", "image", kernel_shape=[side, side], auto_pad="SAME_UPPER")])
        if ok:
            check_graph(graph)
        else:
            with pytest.raises(ValueError, match="values for one image"):
                check_graph(graph)


@pytest.mark.parametrize("bad", [0, 1])
def test_every_width_of_a_file_is_checked(bad: int) -> None:
    """Widths choose rows of a table; the row of one of them asks for too much."""
    table = np.array([[1, 1, 1, 1], [1, 1, 1, 1]])
    table[bad, 2] = 10**9
    nodes = [
        node("Sub", "width", "widths", out="difference"),
        node("Abs", "difference", out="distance"),
        node("ArgMin", "distance", out="index", keepdims=0),
        node("Gather", "table", "index", out="repeats"),
        node("Tile", "image", "repeats"),
    ]
    constants = {"widths": np.array([0.5, 1.0], np.float32), "table": table}
    graph = graph_of(nodes, constants, ["width"])
    check_graph(graph, [(0.5, 1.0)[1 - bad]])
    with pytest.raises(ValueError, match="values for one image"):
        check_graph(graph, [0.5, 1.0])


def test_only_a_file_to_specialise_may_hold_empty_tensors() -> None:
    """As those of a sparse weight that has no weight left; nothing computed from them may be."""
    graph = graph_of([node("Relu", "image")], {"none": np.zeros(0, np.float32)})
    check_graph(graph, [1.0])
    with pytest.raises(ValueError, match="none is empty"):
        check_graph(graph)


def test_a_graph_has_so_many_operators_at_most() -> None:
    """Each is looked at once for each width."""
    with pytest.raises(ValueError, match=f"{MAX_NODES + 1} operators; at most {MAX_NODES}"):
        check_graph(graph_of([node("Relu", "image")] * (MAX_NODES + 1)))


def test_two_outputs_of_one_name_are_refused() -> None:
    graph = graph_of([node("Relu", "image")])
    with pytest.raises(ValueError, match="two outputs of one name"):
        check_graph(Graph(**{**vars(graph), "outputs": graph.outputs * 2}))


def test_two_tensors_of_one_name_are_refused() -> None:
    model = onnx.ModelProto()
    model.graph.initializer.extend([numpy_helper.from_array(np.zeros(1, np.float32), "twice")] * 2)
    with pytest.raises(ValueError, match="two tensors of one name"):
        check_tensors(model)


def test_the_graph_is_not_changed(trained_file: Path) -> None:
    artefact = read_artefact(trained_file)
    before = [value.SerializeToString() for value in (*artefact.graph.nodes, *artefact.graph.inputs)]
    check_graph(artefact.graph)
    assert before == [value.SerializeToString() for value in (*artefact.graph.nodes, *artefact.graph.inputs)]
