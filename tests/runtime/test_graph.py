"""Taking a model apart and putting it together: nothing is lost, nothing shared; what does not fit is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from deploytool.errors import ArtefactError
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.graph import Graph, assemble, take_apart

Array = np.ndarray[Any, Any]
KINDS = ("float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool")


def answers(model: onnx.ModelProto, **feed: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def small_model() -> onnx.ModelProto:
    """y = (x @ W + b) * s, with a scalar s."""
    nodes = [
        helper.make_node("Gemm", ["x", "W", "b"], ["z"], name="linear", doc_string="the layer"),
        helper.make_node("Mul", ["z", "s"], ["y"]),
    ]
    arrays = {"W": [[1, 2], [3, 4], [5, 6]], "b": [0.5, -0.5], "s": 2}
    tensors = [numpy_helper.from_array(np.array(array, np.float32), name) for name, array in arrays.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name="tests")
    helper.set_model_props(model, {"key": "value", "other": ""})
    return model


X = np.array([[1, 0, -1], [0.25, 2, 3]], np.float32)
Y = [[-7, -9], [43.5, 52]]  # ((1 - 5 + 0.5) * 2, ...), ((0.25 + 6 + 15 + 0.5) * 2, (0.5 + 8 + 18 - 0.5) * 2)


def test_the_small_model_answers_as_worked_out_by_hand() -> None:
    np.testing.assert_array_equal(answers(small_model(), x=X)[0], Y)


def test_a_model_put_together_again_is_the_model() -> None:
    model = small_model()
    again = assemble(take_apart(model), {"key": "value", "other": ""})
    onnx.checker.check_model(again, full_check=True)
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", ["trained_file", "trained_interpolate_file", "plain_file", "wide_file"])
def test_an_exported_file_put_together_again_answers_alike(name: str, request: pytest.FixtureRequest) -> None:
    file = request.getfixturevalue(name)
    model, artefact = onnx.load(str(file)), read_artefact(file)
    again = assemble(artefact.graph, artefact.properties)
    onnx.checker.check_model(again, full_check=True)
    assert list(again.metadata_props) == list(model.metadata_props) and again.opset_import == model.opset_import
    assert (again.ir_version, again.producer_name, again.graph.name) == (
        model.ir_version,
        model.producer_name,
        model.graph.name,
    )
    assert list(again.graph.node) == list(model.graph.node)
    assert list(again.graph.input) == list(model.graph.input) and list(again.graph.output) == list(model.graph.output)
    feed = {"image": np.random.default_rng(0).random((3, 1, 8, 8), np.float32)}
    feed |= {each.name: np.array(0.5, np.float32) for each in model.graph.input if each.name != "image"}
    np.testing.assert_array_equal(answers(again, **feed)[0], answers(model, **feed)[0])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    array=st.sampled_from(KINDS).flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
    ),
    layout=st.sampled_from(["as it is", "transposed", "every second", "backwards", "repeated"]),
)
def test_a_tensor_of_any_type_and_layout_keeps_its_bits(array: Array, layout: str) -> None:
    if layout == "transposed":
        array = array.T
    elif layout == "repeated":
        array = np.broadcast_to(array, (2, *array.shape))
    elif layout != "as it is" and array.ndim:
        array = array[:: 2 if layout == "every second" else -1]
    graph = replace(take_apart(small_model()), constants={"t": array})
    back = take_apart(assemble(graph)).constants["t"]
    assert back.dtype == array.dtype and back.shape == array.shape and back.tobytes() == array.tobytes()


def test_a_tensor_in_the_fields_of_its_type_is_read() -> None:
    """Other writers of ONNX store numbers one by one instead of as raw bytes."""
    model = small_model()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.ravel().tolist()))
    again = assemble(take_apart(model))
    assert all(tensor.raw_data for tensor in again.graph.initializer)
    np.testing.assert_array_equal(answers(again, x=X)[0], Y)


@pytest.mark.parametrize("ir_version", [3, 10])
def test_initializers_that_are_inputs_too_are_no_inputs(ir_version: int) -> None:
    """As files of IR version 3 have them."""
    model = small_model()
    model.ir_version = ir_version
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    graph = take_apart(model)
    assert [value.name for value in graph.inputs] == ["x"] and set(graph.constants) == {"W", "b", "s"}
    assert assemble(graph).ir_version == ir_version
    np.testing.assert_array_equal(answers(assemble(graph), x=X)[0], Y)


@pytest.mark.parametrize("fed", [["W"], ["s", "b"], ["W", "b", "s"], ["no such constant"], []])
def test_fed_constants_become_inputs(fed: list[str]) -> None:
    graph = take_apart(small_model())
    model = assemble(graph, fed=(name for name in fed))
    onnx.checker.check_model(model, full_check=True)
    known = [name for name in ("W", "b", "s") if name in fed]
    assert [value.name for value in model.graph.input] == ["x", *known]
    assert {tensor.name for tensor in model.graph.initializer} == {"W", "b", "s"} - set(fed)
    for value in model.graph.input[1:]:
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
        assert tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) == graph.constants[value.name].shape
    np.testing.assert_array_equal(answers(model, x=X, **{name: graph.constants[name] for name in known})[0], Y)


def test_a_fed_constant_can_be_another_at_each_run() -> None:
    model = assemble(take_apart(small_model()), fed=["s"])
    for factor in (2.0, -1.0):
        got = answers(model, x=X, s=np.array(factor, np.float32))[0]
        np.testing.assert_array_equal(got, np.array(Y) * factor / 2)


def test_neither_side_sees_what_becomes_of_the_other() -> None:
    """A node that belonged to the model would keep the whole model in memory, its weights included."""
    model = small_model()
    graph = take_apart(model)
    whole = assemble(graph).SerializeToString(deterministic=True)
    model.graph.node[0].op_type = model.graph.input[0].name = model.graph.output[0].name = "changed"
    model.opset_import[0].version = 1
    model.graph.initializer[0].Clear()
    again = assemble(graph)
    assert again.SerializeToString(deterministic=True) == whole
    again.graph.node[0].op_type = again.graph.input[0].name = again.graph.output[0].name = "changed"
    again.opset_import[0].version = 1
    assert assemble(graph).SerializeToString(deterministic=True) == whole


def test_what_is_not_the_graph_nor_its_metadata_is_left_out() -> None:
    model = small_model()
    model.training_info.add()
    model.graph.value_info.append(helper.make_tensor_value_info("z", TensorProto.INT8, [99]))  # a lie, ignored
    graph: Graph = take_apart(model)
    again = assemble(graph)
    assert not again.metadata_props and not again.training_info and not again.graph.value_info
    np.testing.assert_array_equal(answers(again, x=X)[0], Y)


def dims(*sizes: int) -> Callable[[TensorProto], None]:
    def damage(tensor: TensorProto) -> None:
        tensor.dims[:] = sizes

    return damage


def shorter(tensor: TensorProto) -> None:
    tensor.raw_data = tensor.raw_data[:-1]


def longer(tensor: TensorProto) -> None:
    tensor.raw_data += b"\0\0\0\0"


def no_data(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")


def one_number(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.float_data.append(1.0)


def of_type(kind: int) -> Callable[[TensorProto], None]:
    def damage(tensor: TensorProto) -> None:
        tensor.data_type = kind

    return damage


def strings(tensor: TensorProto) -> None:
    """Adding and multiplying strings in numpy makes them longer without end."""
    words = numpy_helper.from_array(np.full(tuple(tensor.dims), "ha", object), tensor.name)
    tensor.CopyFrom(words)


def a_segment(tensor: TensorProto) -> None:
    tensor.segment.end = 1


@pytest.mark.parametrize(
    "damage",
    [
        dims(),
        dims(-1),
        dims(-1, -1),
        dims(2, -1, 3, 3),
        dims(-16, -1, 3, 3),
        dims(2**40),
        dims(2**62, 2**62),
        dims(2**63 - 1),
        dims(*[1] * 70),
        dims(0, 2**62),
        shorter,
        longer,
        no_data,
        one_number,
        of_type(TensorProto.UNDEFINED),
        of_type(TensorProto.DOUBLE),
        of_type(TensorProto.STRING),
        of_type(TensorProto.COMPLEX64),
        of_type(TensorProto.BFLOAT16),
        of_type(TensorProto.FLOAT8E4M3FN),
        of_type(TensorProto.INT4),
        of_type(99),
        of_type(-1),
        strings,
        a_segment,
    ],
)
def test_a_damaged_tensor_is_refused_when_the_file_is_read(
    damage: Callable[[TensorProto], None], trained_file: Path, tmp_path: Path
) -> None:
    model = onnx.load(str(trained_file))
    damage(next(tensor for tensor in model.graph.initializer if tensor.name == "conv1.weight"))
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match=r"x\.onnx: damaged graph \(.*\); export it again") as caught:
        read_artefact(tmp_path / "x.onnx")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
