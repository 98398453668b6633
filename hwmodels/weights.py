"""Where a layer's weight comes from: the stored tensor, its bits, and its zeros.

A weight is stored, or made of stored tensors by nodes that no image reaches:

    theta -> DequantizeLinear                                        an int8 weight
    values, positions -> ScatterElements -> Reshape                  a sparse weight, restored
    theta, noise, lambda -> Mul, Add (-> Where theta is not 0)       a weight conditioned on lambda (and masked)
    ... -> Slice to the leading block                                a width of a slimmable network

Zeros are counted where each step keeps them in their place; a weight that anything is added to counts as dense.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from hwmodels.constants import Inputs, evaluate
from hwmodels.errors import WorkloadError
from hwmodels.graph import Graph, integer, is_standard, operands

Array = np.ndarray[Any, Any]

SEARCH = 512  # tensors looked at between a computed weight and the stored one
DEPTH = 32  # nodes between them, at most, when zeros are followed
LARGEST = 1 << 28  # values computed on the way, at most, to count the zeros of one weight
RUN_BITS = 4
BITS: Mapping[int, int] = {
    TensorProto.DOUBLE: 64, TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
    TensorProto.FLOAT8E4M3FN: 8, TensorProto.FLOAT8E5M2: 8, TensorProto.INT8: 8, TensorProto.UINT8: 8,
    TensorProto.INT4: 4, TensorProto.UINT4: 4,
}  # fmt: skip
ARRANGING = frozenset({"Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True)
class Source:
    """What is known of a weight.

    Attributes:
        name: of the stored tensor, "" where none was found.
        bits: of each stored value, None where unknown.
        nonzero: weights that are not zero; None where they are computed, or not in the file.
        fillers: zeros that a run-length code of `RUN_BITS` stores between them; None where unknown.
    """

    name: str
    bits: int | None
    nonzero: int | None
    fillers: int | None


def fillers_between(mask: Array, run_bits: int = RUN_BITS) -> int:
    """Zeros to store on the way between weights that are not zero.

    A run-length code stores each weight with the number of zeros before it, 0 to 2^b - 1. A longer run is split by
    storing a zero, which stands for 2^b positions: floor(run / 2^b) of them. Zeros at the end need none. (S. Han,
    H. Mao, W. J. Dally, Deep compression, ICLR 2016, Fig. 2; with b = 4: S. Han et al., EIE, ISCA 2016, section III-B.)

    Args:
        mask: bool, flat, in the order of storage.
    """
    zeros = mask.size - np.count_nonzero(mask)
    if zeros < 1 << run_bits:
        return 0
    if 2 * zeros > mask.size:
        runs = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    else:  # the same from the zeros, which are fewer
        positions = np.flatnonzero(~mask)
        first = np.flatnonzero(np.diff(positions, prepend=-2) > 1)
        runs = np.diff(first, append=len(positions))
        runs = runs[:-1] if positions[-1] == mask.size - 1 else runs
    return int((runs >> run_bits).sum())


class Weights:
    """Follows the weights of a graph to what is stored."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers: Mapping[str, onnx.NodeProto] = graph.producers()
        self.constant = {*graph.stored, *graph.values}  # what depends on no input
        for node in graph.knobs:
            if self.constant.issuperset(operands(node)):
                self.constant.update(node.output)
        self.masks: dict[str, Array | None] = {}  # of the weight at hand
        self.restored: dict[str, Array | None] = {}
        self.left = LARGEST

    def source(self, tensor: str, zero_point: str = "", axis: int = 0) -> Source:
        """Where a weight comes from.

        Args:
            tensor: as a layer reads it.
            zero_point: for a layer that reads integers: the tensor that says which integer means 0, one for all or
                one for each index of `axis`.
        """
        name = self.stored(tensor)
        bits = self.bits(name)
        mask = self._integers_mask(tensor, zero_point, axis) if zero_point else self._mask(tensor, DEPTH)
        self.masks.clear()  # large, and of no use to other layers
        self.restored.clear()
        self.left = LARGEST
        if mask is None:
            return Source(name, bits, None, None)
        nonzero = int(np.count_nonzero(mask))
        return Source(name, bits, nonzero, fillers_between(mask.reshape(-1)) if nonzero < mask.size else 0)

    def bits(self, name: str) -> int | None:
        """Bits of each value of a stored tensor; None where it is none, or holds no numbers to compute with."""
        proto = self._proto(name)
        return BITS.get(proto.data_type) if proto is not None else None

    def _proto(self, name: str) -> TensorProto | None:
        sparse = self.graph.sparse.get(name)
        return self.graph.stored.get(name) if sparse is None else sparse.values

    def stored(self, tensor: str) -> str:
        """The stored tensor of the weight's own shape (theta of `theta + noise`), or the nearest with weights in it."""
        shape, queue, seen, nearest = self.graph.shapes.get(tensor), [tensor], {tensor}, ""
        while queue and len(seen) < SEARCH:
            name = queue.pop(0)
            proto = self._proto(name)
            if proto is not None and proto.data_type in BITS:
                if self.graph.shapes[name] == shape:
                    return name
                nearest = nearest or (name if prod(proto.dims) > 1 else "")
            node = self.producers.get(name)
            for each in operands(node) if node else ():
                if each not in seen:
                    seen.add(each)
                    queue.append(each)
        return nearest

    def _array(self, name: str) -> Array | None:
        """A stored tensor's values; None where the file does not hold them."""
        proto = self.graph.stored.get(name)
        if proto is None or proto.data_location == TensorProto.EXTERNAL or not _has_values(proto):
            return None
        try:
            return numpy_helper.to_array(proto)
        except Exception as error:  # whatever numpy and onnx say of damaged bytes
            raise self._damaged(name, error) from None

    def _mask(self, tensor: str, depth: int) -> Array | None:
        """Where a weight is not zero (bool, its shape); None where that cannot be told."""
        if tensor not in self.masks:
            self.masks[tensor] = self._new_mask(tensor, depth) if depth else None
        return self.masks[tensor]

    def _new_mask(self, tensor: str, depth: int) -> Array | None:
        if tensor in self.graph.sparse:
            return self._sparse_mask(tensor)
        stored = self._array(tensor)
        if stored is not None:
            return np.asarray(stored != 0)
        node = self.producers.get(tensor)
        if node is None or not is_standard(node):
            return None
        if node.op_type == "Where":
            return self._where_mask(node, depth)
        if node.op_type == "DequantizeLinear":
            blocks = integer(node, "block_size", 0)
            zero = node.input[2] if len(node.input) > 2 else ""
            return None if blocks else self._integers_mask(node.input[0], zero, integer(node, "axis", 1))
        if node.op_type == "Mul":  # zeros of an operand that is as large as the product stay
            whole = [each for each in node.input if self.graph.shapes.get(each) == self.graph.shapes.get(tensor)]
            masks = [mask for each in whole if (mask := self._mask(each, depth - 1)) is not None]
            return None if not masks else masks[0] & masks[-1]
        if node.op_type in ("Cast", "Neg"):
            return self._mask(node.input[0], depth - 1)
        if node.op_type in ARRANGING:
            data = self._mask(node.input[0], depth - 1)
            others = [self._restore(each, depth - 1) if each else None for each in node.input[1:]]
            return None if data is None else self._computed(node, [data, *others])
        value = self._restore(tensor, depth)
        return None if value is None else np.asarray(value != 0)

    def _sparse_mask(self, tensor: str) -> Array | None:
        """Of ONNX's own sparse format: positions in the flat tensor, or one row of indices for each value."""
        sparse = self.graph.sparse[tensor]
        shape = tuple(sparse.dims)
        if not 0 < prod(shape) <= LARGEST:
            return None
        try:
            indices, values = numpy_helper.to_array(sparse.indices), numpy_helper.to_array(sparse.values)
            flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
            mask = np.zeros(prod(shape), bool)
            mask[flat[values != 0]] = True
        except Exception as error:  # whatever numpy and onnx say of damaged bytes
            raise self._damaged(tensor, error) from None
        return mask.reshape(shape)

    def _where_mask(self, node: onnx.NodeProto, depth: int) -> Array | None:
        """Of `Where(Cast(theta), noisy, theta)`: those of theta."""
        condition = self.producers.get(node.input[0])
        if condition is None or condition.op_type != "Cast" or condition.input[0] != node.input[2]:
            return None
        return self._mask(node.input[2], depth - 1)

    def _integers_mask(self, tensor: str, zero_point: str, axis: int) -> Array | None:
        """Where integers are not their zero point."""
        values = self._restore(tensor, DEPTH)
        zero = self._array(zero_point) if zero_point else np.zeros(())
        if values is None or zero is None:
            return None
        if zero.size == 1:
            return np.asarray(values != zero.reshape(()))
        if zero.ndim != 1 or not -values.ndim <= axis < values.ndim or values.shape[axis] != zero.size:
            return None
        shape = [1] * values.ndim
        shape[axis] = zero.size
        return np.asarray(values != zero.reshape(shape))

    def _restore(self, tensor: str, depth: int) -> Array | None:
        """The values of a tensor that depends on stored ones alone, as in sparse storage."""
        if tensor not in self.restored:
            self.restored[tensor] = self._new_values(tensor, depth) if depth and tensor in self.constant else None
        return self.restored[tensor]

    def _new_values(self, tensor: str, depth: int) -> Array | None:
        known = self.graph.values.get(tensor)
        if known is None:
            known = self._array(tensor)
        node = self.producers.get(tensor)
        if known is not None or node is None or len(node.output) != 1:
            return known
        inputs = [self._restore(each, depth - 1) if each else None for each in node.input]
        if any(each and value is None for each, value in zip(node.input, inputs, strict=True)):
            return None
        return self._computed(node, inputs)

    def _computed(self, node: onnx.NodeProto, inputs: Inputs) -> Array | None:
        """A node's result, as long as all of them together are not too large."""
        results = evaluate(node, inputs, self.left)
        if not results:
            return None
        self.left -= 0 if node.op_type in ARRANGING else results[0].size
        return results[0]

    def _damaged(self, name: str, error: Exception) -> WorkloadError:
        return WorkloadError(f"{self.graph.path}: tensor {name} is damaged ({' '.join(str(error).split())[:120]})")


def _has_values(proto: TensorProto) -> bool:
    if proto.HasField("raw_data"):  # its length would be that of a copy
        return True
    fields = proto.float_data, proto.int32_data, proto.int64_data, proto.double_data, proto.uint64_data
    return any(len(field) for field in fields)
