"""Small constants computed in numpy: sizes that a graph works out, and weights that it restores from sparse storage.

Shape inference needs values where a size is computed: by `Shape`, `Gather` and `Concat` before a Reshape, or from the
chosen width before a Slice. What cannot be computed here is unknown, and no error: whoever needs it says so.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper

Array = np.ndarray[Any, Any]
Attributes = Mapping[str, Any]
Inputs = Sequence[Array | None]

STANDARD_DOMAINS = ("", "ai.onnx")
BROADCASTING = frozenset(
    {
        "Add", "And", "BitShift", "BitwiseAnd", "Div", "Equal", "Greater", "Less", "Max", "Min", "Mod", "Mul", "Or",
        "Pow", "Sub", "Where",
    }
)  # fmt: skip


def evaluate(node: onnx.NodeProto, inputs: Inputs, limit: int) -> list[Array] | None:
    """Compute a node.

    Args:
        node: any node.
        inputs: its operands in order; None where an optional one is left out.
        limit: values that a result may have.

    Returns:
        Its results; None where the operator is not covered, its operands do not fit, or a result is over the limit.
    """
    operator = OPERATORS.get(node.op_type)
    if operator is None or node.domain not in STANDARD_DOMAINS:
        return None
    try:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if _size(node.op_type, attributes, inputs) > limit:
            return None
        with np.errstate(all="ignore"):
            results = operator(attributes, inputs)
    except (ArithmeticError, AttributeError, IndexError, LookupError, MemoryError, TypeError, ValueError):
        return None  # a damaged graph: numpy has many words for it
    return results if all(result.size <= limit for result in results) else None


def _size(op: str, attributes: Attributes, inputs: Inputs) -> float:
    """Size of the result of an operator that can make much of little; 0 for all others."""
    shapes = [each.shape for each in inputs if each is not None]
    if op == "ConstantOfShape":
        return float(np.prod(_given(inputs[0]), dtype=float))
    if op in ("Expand", "Tile"):
        return float(prod(shapes[0]) * np.prod(_given(inputs[1]), dtype=float))
    if op == "Range":
        start, end, step = (float(_given(each)) for each in inputs)
        return abs((end - start) / step) + 1
    if op == "Gather":
        return float(prod(shapes[0]) / max(shapes[0][attributes.get("axis", 0)], 1) * prod(shapes[1]))
    return prod(np.broadcast_shapes(*shapes)) if op in BROADCASTING else 0


def _given(value: Array | None) -> Array:
    if value is None:
        raise ValueError("an operand is missing")
    return value


def _axes(attributes: Attributes, inputs: Inputs) -> tuple[int, ...] | None:
    """Axes, which older opsets have as an attribute and newer ones as the second operand."""
    given = inputs[1] if len(inputs) > 1 else None
    axes = attributes.get("axes") if given is None else given.reshape(-1).tolist()
    return None if axes is None else tuple(int(axis) for axis in axes)


def _elementwise(function: Callable[..., Any]) -> Callable[[Attributes, Inputs], list[Array]]:
    return lambda attributes, inputs: [np.asarray(function(*(_given(each) for each in inputs)))]


def _folded(function: Callable[..., Any]) -> Callable[[Attributes, Inputs], list[Array]]:
    def operator(attributes: Attributes, inputs: Inputs) -> list[Array]:
        result = _given(inputs[0])
        for each in inputs[1:]:
            result = function(result, _given(each))
        return [np.asarray(result)]

    return operator


def _reduction(function: Callable[..., Any]) -> Callable[[Attributes, Inputs], list[Array]]:
    def operator(attributes: Attributes, inputs: Inputs) -> list[Array]:
        axes = _axes(attributes, inputs)
        if not axes and attributes.get("noop_with_empty_axes"):
            return [_given(inputs[0])]
        keep = bool(attributes.get("keepdims", 1))
        return [np.asarray(function(_given(inputs[0]), axis=axes or None, keepdims=keep))]

    return operator


def _divide(a: Array, b: Array) -> Any:
    """Integers are cut towards zero."""
    if not np.issubdtype(a.dtype, np.integer):
        return a / b
    return a // b + ((a % b != 0) & ((a < 0) != (b < 0)))


def _cast(attributes: Attributes, inputs: Inputs) -> list[Array]:
    return [_given(inputs[0]).astype(helper.tensor_dtype_to_np_dtype(attributes["to"]))]


def _concat(attributes: Attributes, inputs: Inputs) -> list[Array]:
    return [np.concatenate([_given(each) for each in inputs], axis=attributes["axis"])]


def _constant_of_shape(attributes: Attributes, inputs: Inputs) -> list[Array]:
    value = onnx.numpy_helper.to_array(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    return [np.full(_given(inputs[0]).tolist(), value.reshape(())[()], value.dtype)]


def _cumsum(attributes: Attributes, inputs: Inputs) -> list[Array]:
    if attributes.get("exclusive") or attributes.get("reverse"):
        raise ValueError("not covered")
    values = _given(inputs[0])
    return [np.cumsum(values, axis=int(_given(inputs[1]).reshape(())), dtype=values.dtype)]


def _argmin(attributes: Attributes, inputs: Inputs) -> list[Array]:
    axis, keep = attributes.get("axis", 0), bool(attributes.get("keepdims", 1))
    return [np.asarray(np.argmin(_given(inputs[0]), axis=axis, keepdims=keep))]


def _reshape(attributes: Attributes, inputs: Inputs) -> list[Array]:
    data, shape = _given(inputs[0]), _given(inputs[1]).tolist()
    if not attributes.get("allowzero"):
        shape = [size or data.shape[axis] for axis, size in enumerate(shape)]
    return [data.reshape(shape)]


def _slice(attributes: Attributes, inputs: Inputs) -> list[Array]:
    data = _given(inputs[0])
    if len(inputs) == 1:
        starts, ends = attributes["starts"], attributes["ends"]
        axes, steps = attributes.get("axes"), None
    else:
        starts, ends, axes, steps = (None if each is None else each.tolist() for each in (*inputs[1:], None, None)[:4])
    cut = [slice(None)] * data.ndim
    for index, axis in enumerate(axes or range(len(starts))):
        step = steps[index] if steps else 1
        end = None if step < 0 and ends[index] < -data.shape[axis] else ends[index]  # all the way down
        cut[axis] = slice(starts[index], end, step)
    return [data[tuple(cut)]]


def _split(attributes: Attributes, inputs: Inputs) -> list[Array]:
    sizes = attributes["split"] if len(inputs) < 2 else _given(inputs[1]).tolist()
    return np.split(_given(inputs[0]), np.cumsum(sizes)[:-1], axis=attributes.get("axis", 0))


def _unsqueeze(attributes: Attributes, inputs: Inputs) -> list[Array]:
    return [np.expand_dims(_given(inputs[0]), _axes(attributes, inputs) or ())]


def _expand(attributes: Attributes, inputs: Inputs) -> list[Array]:
    data, shape = _given(inputs[0]), tuple(_given(inputs[1]).tolist())
    return [np.broadcast_to(data, np.broadcast_shapes(data.shape, shape))]


def _shift(attributes: Attributes, inputs: Inputs) -> list[Array]:
    function = np.right_shift if attributes["direction"] == b"RIGHT" else np.left_shift
    return [function(_given(inputs[0]), _given(inputs[1]))]


def _scatter(attributes: Attributes, inputs: Inputs) -> list[Array]:
    if attributes.get("reduction", b"none") != b"none":
        raise ValueError("not covered")
    result = _given(inputs[0]).copy()
    np.put_along_axis(result, _given(inputs[1]), _given(inputs[2]), axis=attributes.get("axis", 0))
    return [result]


def _range(attributes: Attributes, inputs: Inputs) -> list[Array]:
    start, end, step = (_given(each) for each in inputs)
    return [np.arange(start.item(), end.item(), step.item(), dtype=start.dtype)]


def _identity(attributes: Attributes, inputs: Inputs) -> list[Array]:
    return [_given(inputs[0])]


OPERATORS: Mapping[str, Callable[[Attributes, Inputs], list[Array]]] = {
    "Abs": _elementwise(np.abs),
    "Add": _elementwise(np.add),
    "And": _elementwise(np.logical_and),
    "ArgMin": _argmin,
    "BitShift": _shift,
    "BitwiseAnd": _elementwise(np.bitwise_and),
    "Cast": _cast,
    "Ceil": _elementwise(np.ceil),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumsum,
    "Div": _elementwise(_divide),
    "Equal": _elementwise(np.equal),
    "Expand": _expand,
    "Floor": _elementwise(np.floor),
    "Gather": lambda attributes, inputs: [
        np.asarray(np.take(_given(inputs[0]), _given(inputs[1]), axis=attributes.get("axis", 0)))
    ],
    "Greater": _elementwise(np.greater),
    "Identity": _identity,
    "Less": _elementwise(np.less),
    "Max": _folded(np.maximum),
    "Min": _folded(np.minimum),
    "Mod": lambda attributes, inputs: [
        (np.fmod if attributes.get("fmod") else np.mod)(_given(inputs[0]), _given(inputs[1]))
    ],
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative),
    "Not": _elementwise(np.logical_not),
    "Or": _elementwise(np.logical_or),
    "Pow": _elementwise(np.power),
    "Range": _range,
    "ReduceMax": _reduction(np.max),
    "ReduceMin": _reduction(np.min),
    "ReduceProd": _reduction(np.prod),
    "ReduceSum": _reduction(np.sum),
    "Reshape": _reshape,
    "ScatterElements": _scatter,
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _elementwise(np.sqrt),
    "Squeeze": lambda attributes, inputs: [np.squeeze(_given(inputs[0]), _axes(attributes, inputs))],
    "Sub": _elementwise(np.subtract),
    "Tile": lambda attributes, inputs: [np.tile(_given(inputs[0]), _given(inputs[1]).tolist())],
    "Transpose": lambda attributes, inputs: [np.transpose(_given(inputs[0]), attributes.get("perm"))],
    "Unsqueeze": _unsqueeze,
    "Where": _elementwise(np.where),
}
