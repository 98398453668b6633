"""What a model must satisfy before onnxruntime, which is native code, gets to see it.

A damaged file can end the process that opens it: onnxruntime 1.31 and onnx 1.23 abort on a Split with too few
`num_outputs`, on a RandomNormal without variance, on a LayerNormalization without bias, and ask for whatever memory a
shape says. So operators are those that deploytool writes, or may well write one day, each of them run on tens of
thousands of damaged graphs; then comes what `export` asks of every file that it writes, onnx's checker with strict
shape inference, without the weights, in a millisecond or two for each width; and then what onnx does not ask: that
tensors are numbers, and that an image does not need all of memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, checker, helper, shape_inference

from deploytool.runtime.graph import Graph, assemble
from deploytool.runtime.operators import OPERATORS, evaluate_node

Array = np.ndarray[Any, Any]

FLOATING = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
KINDS = FLOATING | {
    TensorProto.BOOL,
    TensorProto.INT8,
    TensorProto.INT16,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.UINT8,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.UINT64,
}
GROWING = {"ConstantOfShape", "Tile"}  # may make large tensors of small ones; onnx infers their shapes
OPSET = 18  # whose semantics `deploytool.runtime.operators` has
ON_IMAGES = {
    "AveragePool",
    "BatchNormalization",
    "Clip",
    "Concat",
    "Conv",
    "Exp",
    "Flatten",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "MaxPool",
    "Neg",
    "Pad",
    "QuantizeLinear",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
    "Relu",
    "Resize",
    "Sigmoid",
    "Softmax",
    "Sqrt",
    "Squeeze",
    "Tanh",
    "TopK",
    "Transpose",
    "Unsqueeze",
}
RESIZE = {"mode": b"linear", "coordinate_transformation_mode": b"half_pixel"}  # the one kind; all else as by default
DEFAULTS = {
    "antialias": 0,
    "cubic_coeff_a": -0.75,
    "exclude_outside": 0,
    "extrapolation_value": 0.0,
    "keep_aspect_ratio_policy": b"stretch",
}
MAX_SCALE = 64
SMALL = 1024  # constants that shapes are computed from have no more values
LARGEST = 1 << 31  # of a stride, a pad ...
MAX_NODES = 10_000
MAX_ACTIVATIONS = 1 << 30  # values of all tensors together, for one image
MAX_TOP = 1024  # of TopK
WORK_PER_VALUE = 16  # tensors that a conditional weight passes through, and more


def check_tensors(model: onnx.ModelProto) -> None:
    """Raise ValueError where a stored tensor is no array of numbers, or a name is no text or stored twice."""
    for tensor in model.graph.initializer:
        if tensor.data_type not in KINDS or tensor.HasField("segment") or min(tensor.dims, default=0) < 0:
            raise ValueError(f"tensor {tensor.name!r} of type {tensor.data_type} and shape {list(tensor.dims)}")
    if len({tensor.name for tensor in model.graph.initializer}) < len(model.graph.initializer):
        raise ValueError("two tensors of one name")
    if not all(isinstance(text, str) for text in _names(model)):  # protobuf gives bytes for broken UTF-8
        raise ValueError("a name that is no UTF-8")


def _names(model: onnx.ModelProto) -> Iterator[str]:
    graph = model.graph
    yield from (graph.name, model.producer_name, *(opset.domain for opset in model.opset_import))
    yield from (value.name for values in (graph.initializer, graph.input, graph.output) for value in values)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def check_graph(graph: Graph, widths: Sequence[float] = ()) -> None:
    """Raise an error of onnx or numpy, or ValueError, where a graph is inconsistent or too large to run.

    Shapes have to follow from an image's and from `width` alone, as they do in every file that deploytool writes.

    Args:
        graph: without subgraphs.
        widths: of the file that the graph stands in; none for a specialised graph, where nothing is left to compute
            and so nothing may be empty.
    """
    empty = next((name for name, value in graph.constants.items() if not value.size), None)
    if empty is not None and not widths:
        raise ValueError(f"{empty} is empty")
    if len(graph.nodes) > MAX_NODES:
        raise ValueError(f"{len(graph.nodes)} operators; at most {MAX_NODES}")
    if len({value.name for value in graph.outputs}) < len(graph.outputs):
        raise ValueError("two outputs of one name")
    opsets = {opset.domain: opset.version for opset in graph.header.opset_import}
    if opsets != {"": OPSET}:
        raise ValueError(f"opsets {str(opsets)[:80]}; deploytool writes {OPSET}")
    for node in graph.nodes:
        if node.domain or node.op_type not in OPERATORS.keys() | ON_IMAGES:
            raise ValueError(f"operator {node.domain} {node.op_type}, which deploytool never writes")
        parts = [attribute.i for attribute in node.attribute if attribute.name == "num_outputs"]
        if any(abs(number) >= LARGEST for attribute in node.attribute for number in attribute.ints):
            raise ValueError(f"an attribute of {node.op_type} is too large")
        if node.op_type == "Split" and any(count != len(node.output) for count in parts):  # onnx does not mind
            raise ValueError(f"a Split in {parts[0]} parts has {len(node.output)} outputs")
        if node.op_type == "Resize":
            _check_resize(node, graph.constants)
        if node.op_type == "TopK":
            _check_top(node, graph.constants)
    limit = MAX_ACTIVATIONS + WORK_PER_VALUE * sum(value.size for value in graph.constants.values())
    for number, width in enumerate(widths or [1.0]):
        skeleton = _skeleton(graph, width)
        if not number:
            checker.check_model(skeleton)
        total = sum(_sizes(skeleton, graph.constants))
        if total > limit:
            raise ValueError(f"its tensors have {total} values for one image; at most {limit}")


def _check_resize(node: onnx.NodeProto, constants: Mapping[str, Array]) -> None:
    """Raise ValueError unless a node is bilinear, and enlarges the last two of four axes by 1 to 64, by constants.

    Either `scales` (1, 1, a, b), whole numbers, or `sizes` (H, W) with axes [2, 3].
    """
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    axes = attributes.pop("axes", None)
    attributes.pop("nearest_mode", None)  # of another mode
    rest = {name: value for name, value in attributes.items() if value != DEFAULTS.get(name, ())}
    if rest != RESIZE:
        raise ValueError(f"a Resize of another kind ({str(rest)[:80]})")
    _, *given = [*node.input, "", "", ""][:4]
    roi, scales, sizes = given
    value = constants.get(scales or sizes)
    if roi or bool(scales) == bool(sizes) or value is None:
        raise ValueError("a Resize whose size is no constant")
    if scales:
        whole = value.dtype == np.float32 and value.shape == (4,) and axes is None and (value[:2] == 1).all()
        if not whole or not all(1 <= scale <= MAX_SCALE and scale == round(scale) for scale in value.tolist()):
            raise ValueError(f"a Resize by {str(value.tolist())[:80]}")
    elif (
        value.dtype != np.int64 or value.shape != (2,) or axes != [2, 3] or not ((value > 0) & (value < LARGEST)).all()
    ):
        raise ValueError(f"a Resize to {str(value.tolist())[:80]}")


def _check_top(node: onnx.NodeProto, constants: Mapping[str, Array]) -> None:
    """Raise ValueError unless a node finds the k largest of each row, in order, k being a constant in 1..1024."""
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    rest = {name: value for name, value in attributes.items() if name != "axis" and value != 1}
    if rest or attributes.get("axis", -1) not in (-1, 1):
        raise ValueError(f"a TopK of another kind ({str(attributes)[:80]})")
    count = constants.get(node.input[1]) if len(node.input) > 1 else None
    if count is None or count.dtype != np.int64 or count.shape != (1,) or not 1 <= int(count[0]) <= MAX_TOP:
        raise ValueError(f"a TopK whose k is no constant in 1..{MAX_TOP}")


def _check_places(
    node: onnx.NodeProto, shapes: Mapping[str, list[int]], constants: Mapping[str, Array], tops: Mapping[str, str]
) -> None:
    """Raise ValueError where a Gather surely reads beyond its data, or a TopK has less to choose from than k, in rows.

    Indices that an image decides come from a TopK, whose k nodes are then rows of the data.

    Args:
        node: any node.
        shapes: of tensors.
        constants: of the whole graph.
        tops: indices that a TopK makes -> the tensor that they are of.
    """
    if node.op_type == "TopK":
        rows = shapes.get(node.input[0], [])
        if len(rows) != 2 or rows[1] < int(constants[node.input[1]][0]):
            raise ValueError(f"a TopK of {rows}")
    if node.op_type != "Gather" or node.input[0] not in shapes:
        return
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    size, places = shapes[node.input[0]][axis], constants.get(node.input[1])
    if places is not None and places.size and not -size <= places.min() <= places.max() < size:
        raise ValueError(f"a Gather from {places.min()} to {places.max()} of {size}")
    if node.input[1] in tops and shapes.get(tops[node.input[1]], [0])[-1] > size:
        raise ValueError(f"a Gather of the places of a TopK, of {size}")


def _skeleton(graph: Graph, width: float) -> onnx.ModelProto:
    """The model for one image, its small tensors computed as far as they are known, the large ones inputs."""
    values = {name: value for name, value in graph.constants.items() if value.size <= SMALL}
    if any(value.name == "width" for value in graph.inputs):
        values["width"] = np.array(width, np.float32)
    rest = []
    for node in graph.nodes:
        results: list[Array] = []
        if node.op_type in OPERATORS and node.op_type not in GROWING and all(not n or n in values for n in node.input):
            results = evaluate_node(node, [values[name] if name else None for name in node.input])
        if results and all(result.size <= SMALL for result in results):
            values.update((name, value) for name, value in zip(node.output, results, strict=True) if name)
        else:
            rest.append(node)
    read = {name for node in rest for name in node.input} | {value.name for value in graph.outputs}
    constants = {name: value for name, value in {**graph.constants, **values}.items() if name in read}
    inputs = tuple(value for value in graph.inputs if value.name not in values)
    fed = [name for name in constants if name not in values]
    model = assemble(replace(graph, nodes=tuple(rest), constants=constants, inputs=inputs), fed=fed)
    model.ir_version = max(model.ir_version, 4)  # earlier ones list small tensors as inputs
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name == "image" and dims:
            dims[0].dim_value = 1
    return model


def _sizes(model: onnx.ModelProto, constants: Mapping[str, Array]) -> Iterator[int]:
    """Values of what each node computes, or of what a pool reads for them; ValueError where a shape is unknown."""
    inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.output)}
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    shapes |= {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input}
    shapes |= {name: [dim.dim_value for dim in kind.shape.dim] for name, kind in types.items()}
    tops = {node.output[1]: node.input[0] for node in model.graph.node if node.op_type == "TopK" and node.output[1:]}
    for node in model.graph.node:
        _check_places(node, shapes, constants, tops)
        windows = [attribute.ints for attribute in node.attribute if attribute.name == "kernel_shape"]
        read = prod(abs(size) for window in windows for size in window) if node.op_type != "Conv" else 1
        for name in (name for name in node.output if name):
            if name not in types or not all(dim.HasField("dim_value") for dim in types[name].shape.dim):
                raise ValueError(f"the shape of {name} is unknown")
            if node.op_type == "Div" and types[name].elem_type not in FLOATING:  # -2**31 / -1 ends the process
                raise ValueError(f"{name} is a quotient of integers")
            shape = [dim.dim_value for dim in types[name].shape.dim]
            if min(shape, default=0) < 0:
                raise ValueError(f"{name} has shape {shape}")
            yield prod(shape) * read
