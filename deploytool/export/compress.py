"""Sparse storage: weights that are mostly zeros, stored as their values and the steps between them.

    before:  w                                                    n values, most of them 0

    after:   gaps, values                                         k values, 4 or 8 bits for each step
             gap      = Cast(gaps)                                8 bits
                      = Cast(Reshape(BitwiseAnd(BitShift(gaps, [4, 0]), 15)))         4 bits, two in a byte
             w        = Reshape(ScatterElements(zeros_n, CumSum(gap), values), shape)

`values[i]` is at position `gap_0 + ... + gap_i` of the flat tensor. A step longer than 15 or 255 is split by storing a
zero on the way. A byte for each value is less than a bit for each weight where fewer than one in eight is left, and
half a byte is about as much up to one in four; each tensor takes what is smallest, dense storage included.

The restored tensor has the name of the stored one, and depends on no input. Every shape is static, so that
onnxruntime folds the chain when it opens the file: since 1.27 it folds no operator whose result's size is not known
beforehand, NonZero and Compress among them. A bitmap without those needs a CumSum and a Gather over all n weights:
for 21 million, onnxruntime 1.31 then took 630 MB instead of 260, and three times as long. ONNX's own SparseTensor
spends 8 bytes on each position.

What is not 0 is restored bit by bit, NaN included. -0.0 is stored as a zero: most masked weights are -0.0, and no
answer changes.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

STORED_TYPES = (TensorProto.FLOAT, TensorProto.INT8)
GAP_BITS = (4, 8)


def compress_weights(model: onnx.ModelProto) -> dict[str, float]:
    """Store weights sparse where that makes a model smaller, in place, and say so as `deploytool.storage`.

    Weights are the initializers of two or more dimensions, float32 or int8; biases and batch norms stay.

    Args:
        model: any model of opset 18 or later; its metadata are complete but for this.

    Returns:
        `tensors`, the number of them now stored sparse; `dense_mb` and `sparse_mb`, the sizes of the model before and
        after (10^6 bytes).
    """
    graph, before = model.graph, model.ByteSize()
    note = onnx.StringStringEntryProto(key="deploytool.storage", value="sparse")
    saved = -_added_bytes([note])
    made: dict[str, TensorProto | onnx.NodeProto] = {}
    dense = []
    for tensor in graph.initializer:
        chain = _chain(tensor)
        new = {name: each for name, each in chain.items() if name not in made}
        gain = tensor.ByteSize() - _added_bytes(new.values())
        if chain and gain > 0:
            made |= new
            saved += gain
        else:
            dense.append(tensor)
    count = len(graph.initializer) - len(dense) if saved > 0 else 0
    if count:
        rest = list(graph.node)
        del graph.initializer[:], graph.node[:]
        graph.initializer.extend([*dense, *(each for each in made.values() if isinstance(each, TensorProto))])
        graph.node.extend([*(each for each in made.values() if isinstance(each, onnx.NodeProto)), *rest])
        model.metadata_props.append(note)
    return {"tensors": count, "dense_mb": round(before / 1e6, 6), "sparse_mb": round(model.ByteSize() / 1e6, 6)}


def _added_bytes(parts: Iterable[Message]) -> int:
    """At most so many bytes are added to a model by these parts: each has a tag and its length before it."""
    return sum(part.ByteSize() + 6 for part in parts)


def _chain(tensor: TensorProto) -> dict[str, TensorProto | onnx.NodeProto]:
    """The tensors and nodes that restore a weight, by name of what they make; none where they cannot be smaller.

    Those that start with `storage.` depend on its shape alone, and serve all weights of that shape.
    """
    if len(tensor.dims) < 2 or tensor.data_type not in STORED_TYPES:
        return {}
    weight = numpy_helper.to_array(tensor)
    least = 8 * weight.itemsize + min(GAP_BITS)
    if (np.count_nonzero(weight) + 1) * least >= 8 * weight.nbytes:
        return {}
    made: dict[str, TensorProto | onnx.NodeProto] = {}

    def constant(name: str, value: Array) -> str:
        made[name] = numpy_helper.from_array(value, name)
        return name

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        made[output] = helper.make_node(op, inputs, [output], **attributes)
        return output

    name, size, kind = tensor.name, weight.size, str(weight.dtype)
    stored = {bits: stored_positions(weight.ravel(), bits) for bits in GAP_BITS}
    bits = min(GAP_BITS, key=lambda bits: len(stored[bits]) * (8 * weight.itemsize + bits))
    gap = np.diff(stored[bits], prepend=0).astype(np.uint8)
    if bits == 8:
        steps = constant(f"{name}.gaps", gap)
    else:
        pairs = constant(f"{name}.gaps", gap[0::2, None] << 4 | gap[1::2, None])
        shifts = constant("storage.shifts", np.array([4, 0], np.uint8))
        shifted = node("BitShift", [pairs, shifts], f"{name}.shifted", direction="RIGHT")
        halves = node("BitwiseAnd", [shifted, constant("storage.low_bits", np.array(15, np.uint8))], f"{name}.halves")
        steps = node("Reshape", [halves, constant("storage.flat", np.array([-1]))], f"{name}.steps")
    numbers = node("Cast", [steps], f"{name}.gap", to=TensorProto.INT32)
    positions = node("CumSum", [numbers, constant("storage.axis", np.array(0))], f"{name}.positions")
    values = constant(f"{name}.values", weight.ravel()[stored[bits]])
    zero = numpy_helper.from_array(np.zeros(1, weight.dtype))
    length = constant(f"storage.size{size}", np.array([size]))
    zeros = node("ConstantOfShape", [length], f"storage.{kind}_zeros{size}", value=zero)
    flat = node("ScatterElements", [zeros, positions, values], f"{name}.flat")
    shape = constant("storage.shape" + "x".join(map(str, weight.shape)), np.array(weight.shape))
    node("Reshape", [flat, shape], name)
    return made


def stored_positions(flat: Array, bits: int) -> Array:
    """The positions of a flat tensor (n,) to store, ascending: (k,) int64, k even where `bits` is 4.

    They are the first one, those of all values that are not 0, and so many others in between that none is more than
    2^bits - 1 after the one before.
    """
    longest = (1 << bits) - 1
    needed = np.flatnonzero(flat)
    if not len(needed) or needed[0]:
        needed = np.insert(needed, 0, 0)
    times = np.append((np.diff(needed) - 1) // longest, 0) + 1  # each one, and those on the way to the next
    ends = np.cumsum(times)
    rank = np.arange(ends[-1]) - np.repeat(ends - times, times)
    positions = np.repeat(needed, times) + longest * rank
    if len(positions) * bits % 8:
        holes = np.flatnonzero(positions != np.arange(len(positions)))
        first = holes[0] if len(holes) else len(positions)
        positions = np.insert(positions, first, first)
    return positions  # type: ignore[no-any-return]
