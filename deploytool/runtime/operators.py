"""The ONNX operators that a conditional weight is made of, in numpy.

Partial evaluation runs these on tensors that depend on no image. Slices, reshapes and splits are views: a stored
tensor is in memory once. An operator that is not here stays in the graph, where onnxruntime runs it. Semantics are
those of opset 18 (https://onnx.ai/onnx/operators); a tensor that a damaged or hostile file would blow up is refused.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]
Attributes = dict[str, Any]
Operator = Callable[[Sequence[Array | None], Attributes], Any]

MAX_VALUES = 1 << 28
MAX_HELD_BYTES = 1 << 32  # of all tensors of a graph at a time


def evaluate_node(node: onnx.NodeProto, inputs: Sequence[Array | None]) -> list[Array]:
    """Compute one node of an operator in `OPERATORS`.

    Args:
        node: the node.
        inputs: its inputs in order, None for one left out.

    Returns:
        Its outputs in order.

    Raises:
        ValueError and other errors of numpy: shapes or attributes do not fit, or a result is over `MAX_VALUES`.
    """
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    with np.errstate(all="ignore"):  # a damaged weight is found where logits are checked
        results = OPERATORS[node.op_type](inputs, {**attributes, "outputs": len(node.output)})
    return [np.asarray(result) for result in (results if isinstance(results, list) else [results])]


def _bounded(shape: Sequence[int]) -> None:
    if min(shape, default=0) < 0 or prod(max(1, size) for size in shape) > MAX_VALUES:  # 0 x 10**12 is a bomb, too
        raise ValueError(f"a tensor of shape {tuple(shape)} is too large")


def _elementwise(function: Callable[..., Any]) -> Operator:
    def operator(inputs: Sequence[Any], attributes: Attributes) -> Any:
        _bounded(np.broadcast_shapes(*(x.shape for x in inputs)))
        return function(*inputs)

    return operator


def _variadic(function: Callable[[Any, Any], Any]) -> Operator:
    def operator(inputs: Sequence[Any], attributes: Attributes) -> Any:
        _bounded(np.broadcast_shapes(*(x.shape for x in inputs)))
        result = inputs[0]
        for x in inputs[1:]:
            result = function(result, x)
        return result

    return operator


def _divide(x: Array, y: Array) -> Any:
    if x.dtype.kind == "f":
        return np.divide(x, y)
    if not np.all(y):
        raise ValueError("an integer is divided by zero")
    return x // y + ((x % y != 0) & ((x < 0) != (y < 0)))  # towards zero, exact for every int64


def _slice(inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, starts, ends = inputs[:3]
    axes = inputs[3] if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = inputs[4] if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    window = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step <= 0:
            raise ValueError(f"a step of {step}")
        window[int(axis)] = slice(int(start), int(end), int(step))
    return x[tuple(window)]


def _split(inputs: Sequence[Any], attributes: Attributes) -> list[Any]:
    x, axis = inputs[0], attributes.get("axis", 0)
    if len(inputs) > 1 and inputs[1] is not None:
        sizes = [int(size) for size in inputs[1]]
    else:
        parts, length = attributes["outputs"], x.shape[axis]
        size = -(-length // parts)
        sizes = [size] * (parts - 1) + [length - size * (parts - 1)]
    if sum(sizes) != x.shape[axis] or len(sizes) != attributes["outputs"] or min(sizes) < 0:
        raise ValueError(f"{sizes} do not split {x.shape[axis]}")
    return np.split(x, np.cumsum(sizes[:-1]), axis)


def _reshape(inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, shape = inputs
    wanted = [int(size) for size in shape]
    if not attributes.get("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


def _tile(inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, repeats = inputs
    _bounded([size * int(count) for size, count in zip(x.shape, repeats, strict=True)])
    return np.tile(x, [int(count) for count in repeats])


def _gather(inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, indices = inputs
    axis = attributes.get("axis", 0)
    _bounded([*indices.shape, prod(x.shape[:axis]), prod(x.shape[axis:][1:])])
    return np.take(x, indices, axis)


def _cast(inputs: Sequence[Any], attributes: Attributes) -> Any:
    kind = helper.tensor_dtype_to_np_dtype(attributes["to"])
    if kind.kind == "O":
        raise ValueError("a cast to strings")
    return inputs[0].astype(kind)


def _matmul(inputs: Sequence[Any], attributes: Attributes) -> Any:
    a, b = inputs
    _bounded([*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *a.shape[-2:], *b.shape[-1:]])  # multiplications
    return np.matmul(a, b)


def _gemm(inputs: Sequence[Any], attributes: Attributes) -> Any:
    a = inputs[0].T if attributes.get("transA", 0) else inputs[0]
    b = inputs[1].T if attributes.get("transB", 0) else inputs[1]
    result = _matmul((a, b), {}) * a.dtype.type(attributes.get("alpha", 1.0))
    if len(inputs) > 2 and inputs[2] is not None:
        if np.broadcast_shapes(result.shape, inputs[2].shape) != result.shape:
            raise ValueError(f"a bias of shape {inputs[2].shape} does not fit {result.shape}")
        result = result + inputs[2] * a.dtype.type(attributes.get("beta", 1.0))
    return result


def _leaky_relu(inputs: Sequence[Any], attributes: Attributes) -> Any:
    x = inputs[0]
    return np.where(x >= 0, x, x * x.dtype.type(attributes.get("alpha", 0.01)))


def _argmin(inputs: Sequence[Any], attributes: Attributes) -> Any:
    if attributes.get("select_last_index", 0):
        raise ValueError("ArgMin of the last index")
    return np.argmin(inputs[0], attributes.get("axis", 0), keepdims=bool(attributes.get("keepdims", 1)))


def _dequantize(inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, scale, *zero = inputs
    shape = [1] * x.ndim
    if scale.size > 1:
        shape[attributes.get("axis", 1)] = scale.size
        if x.shape != np.broadcast_shapes(x.shape, tuple(shape)):
            raise ValueError(f"{scale.size} scales do not fit {x.shape}")
    steps = x.astype(scale.dtype)
    if zero and zero[0] is not None:
        steps -= zero[0].astype(scale.dtype).reshape(shape if zero[0].size > 1 else ())
    return steps * scale.reshape(shape if scale.size > 1 else ())


def _cumsum(inputs: Sequence[Any], attributes: Attributes) -> Any:
    if attributes.get("exclusive", 0) or attributes.get("reverse", 0):
        raise ValueError("an exclusive or reversed CumSum")
    return np.cumsum(inputs[0], inputs[1].item(), dtype=inputs[0].dtype)


def _bit_shift(inputs: Sequence[Any], attributes: Attributes) -> Any:
    shift = np.right_shift if attributes["direction"] == b"RIGHT" else np.left_shift
    return _elementwise(shift)(inputs, attributes)


def _constant_of_shape(inputs: Sequence[Any], attributes: Attributes) -> Any:
    shape = [int(size) for size in inputs[0]]
    _bounded(shape)
    value = numpy_helper.to_array(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    return np.broadcast_to(value.reshape(()), shape)


def _scatter_elements(inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, indices, updates = inputs
    if x.ndim != 1 or attributes.get("axis", 0) not in (0, -1) or attributes.get("reduction", b"none") != b"none":
        raise ValueError("ScatterElements with a reduction, or of more than one dimension")
    if indices.shape != updates.shape or x.dtype != updates.dtype:
        raise ValueError(f"{updates.size} values do not fit {indices.size} positions")
    result = x.copy()
    result[indices] = updates
    return result


OPERATORS: dict[str, Operator] = {
    "Abs": _elementwise(np.abs),
    "Add": _elementwise(np.add),
    "ArgMin": _argmin,
    "BitShift": _bit_shift,
    "BitwiseAnd": _elementwise(np.bitwise_and),
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumsum,
    "DequantizeLinear": _dequantize,
    "Div": _elementwise(_divide),
    "Gather": _gather,
    "Gemm": _gemm,
    "Greater": _elementwise(np.greater),
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "Max": _variadic(np.maximum),
    "Min": _variadic(np.minimum),
    "Mul": _elementwise(np.multiply),
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "Slice": _slice,
    "Split": _split,
    "Sub": _elementwise(np.subtract),
    "Tile": _tile,
    "Where": _elementwise(np.where),
}
