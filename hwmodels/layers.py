"""Layers: the convolutions and linear layers of a graph, one node each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx

from hwmodels.errors import WorkloadError
from hwmodels.graph import Graph, integer, integers, is_standard
from hwmodels.inputs import Sizes
from hwmodels.weights import SEARCH, Weights


@dataclass(frozen=True)
class _Operands:
    """Where an operator has its weight: positions of activation, weight, bias and the weight's zero point."""

    data: int = 0
    weight: int = 1
    bias: int | None = None
    zero_point: int | None = None


CONVOLUTIONS: Mapping[str, _Operands] = {
    "Conv": _Operands(bias=2),
    "ConvInteger": _Operands(zero_point=3),
    "ConvTranspose": _Operands(bias=2),
    "QLinearConv": _Operands(weight=3, bias=8, zero_point=5),
}
PRODUCTS: Mapping[str, _Operands] = {
    "Gemm": _Operands(bias=2),
    "MatMul": _Operands(),
    "MatMulInteger": _Operands(zero_point=3),
    "QLinearMatMul": _Operands(weight=3, zero_point=5),
}
SWAPPED: Mapping[str, _Operands] = {  # the same with the weight as first operand
    "Gemm": _Operands(data=1, weight=0, bias=2),
    "MatMul": _Operands(data=1, weight=0),
    "MatMulInteger": _Operands(data=1, weight=0, zero_point=2),
    "QLinearMatMul": _Operands(data=3, weight=0, zero_point=2),
}


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer.

    Attributes:
        name: of its weight, without `.weight`; else of the module that the exporter names, or of the node. A layer
            that shares another's weight has `#2` after the name.
        kind: `conv`, `conv-transpose`, or `linear` (Gemm, or MatMul with a weight). Quantised ones are of these too.
        out_channels: C_o.
        in_channels_per_group: C_i / groups, the channels that one filter reads.
        kernel: spatial size of a filter, () for a linear layer.
        positions: how often each weight is used for one image. For a convolution the output positions, H_o W_o
            (1 for a linear layer on a vector); for `conv-transpose` the input positions, H_i W_i: every input pixel
            is multiplied with the whole filter and added into the output, products that padding cuts off included.
        groups: of the convolution.
        biases: number of bias values.
        film: whether OAT puts a FiLM layer after it: convolutions but for those of shortcuts.
        nonzero: weights that are not zero in the file, as they reach the layer; all of them where they are computed
            from an input, or not in the file, and where a number below 0 is given.
        fillers: zeros that a run-length code with 4-bit runs stores between those weights, in the file's order (see
            `hwmodels.weights.fillers_between`); None where unknown.
        in_values, out_values: activation elements read and written for one image.
        weight_bits: of a weight as stored: 32, 16, 8, ...; None where that is unknown.
        dilation: of the filter, () for a linear layer.
        node_name: of the ONNX node, as onnxruntime's profile names it.
    """

    name: str
    kind: str
    out_channels: int
    in_channels_per_group: int
    kernel: tuple[int, ...]
    positions: int
    groups: int = 1
    biases: int = 0
    film: bool = False
    nonzero: int = -1
    fillers: int | None = None
    in_values: int = 0
    out_values: int = 0
    weight_bits: int | None = None
    dilation: tuple[int, ...] = ()
    node_name: str = ""

    def __post_init__(self) -> None:
        if self.nonzero < 0:
            object.__setattr__(self, "nonzero", self.weights)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.out_channels * self.in_channels_per_group * prod(self.kernel)

    @property
    def params(self) -> int:
        """Number of weights and biases."""
        return self.weights + self.biases

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image; biases are not counted."""
        return self.weights * self.positions


class LayerReader:
    """Turns nodes into layers."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.weights = Weights(graph)
        self.producers = self.weights.producers
        self.added_biases: set[str] = set()  # biases of MatMuls that other nodes add
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.data:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def read(self, node: onnx.NodeProto, film: bool) -> Layer | None:
        """The layer of a node on the image path; None for anything but a convolution or a product with a weight."""
        if not is_standard(node):
            return None
        if node.op_type in CONVOLUTIONS:
            where = CONVOLUTIONS[node.op_type]
            return self._conv(node, where, film) if self._has_weight(node, where) else None
        for table in (PRODUCTS, SWAPPED):
            if node.op_type in table and self._has_weight(node, table[node.op_type]):
                return self._linear(node, table[node.op_type], first=table is SWAPPED)
        return None

    def channels(self, norm: onnx.NodeProto) -> int:
        """Channels of a BatchNormalization, 0 where unknown."""
        image, scale = (self.graph.shapes.get(name, ()) for name in norm.input[:2])
        return image[1] if len(image) > 1 else prod(scale)

    def _has_weight(self, node: onnx.NodeProto, where: _Operands) -> bool:
        last = max(where.data, where.weight)
        return (
            len(node.input) > last
            and node.input[where.data] in self.graph.reached
            and node.input[where.weight] not in self.graph.reached
        )

    def _conv(self, node: onnx.NodeProto, where: _Operands, film: bool) -> Layer:
        name, image, weight, output = self._shapes(node, where)
        if len(weight) < 3 or not len(output) == len(image) == len(weight):
            raise WorkloadError(
                f"{self.graph.path}: {name} has weight {weight} and output {output}; that is no convolution"
            )
        groups = integer(node, "group", 1)
        if groups < 1 or weight[0] % groups:
            raise WorkloadError(f"{self.graph.path}: {name} has {groups} groups for {weight[0]} filters")
        transposed = node.op_type == "ConvTranspose"
        channels = (weight[1] * groups, weight[0] // groups) if transposed else weight[:2]
        return Layer(
            name=name,
            kind="conv-transpose" if transposed else "conv",
            out_channels=channels[0],
            in_channels_per_group=channels[1],
            kernel=weight[2:],
            positions=self._per_image(name, prod(image if transposed else output), weight[0]),
            groups=groups,
            biases=self._biases(node, where, channels[0]),
            film=film and not transposed,
            dilation=integers(node, "dilations", (1,) * len(weight[2:])),
            **self._traffic(name, node, where, image, output),
        )

    def _linear(self, node: onnx.NodeProto, where: _Operands, first: bool) -> Layer:
        name, image, weight, output = self._shapes(node, where)
        transposed = bool(integer(node, "transA" if first else "transB", 0))
        inputs = weight[-1] if len(weight) == 1 or first is not transposed else weight[-2]
        outputs = prod(weight) // inputs
        return Layer(
            name=name,
            kind="linear",
            out_channels=outputs,
            in_channels_per_group=inputs,
            kernel=(),
            positions=self._per_image(name, prod(output), outputs),
            biases=self._biases(node, where, outputs),
            **self._traffic(name, node, where, image, output),
        )

    def _shapes(self, node: onnx.NodeProto, where: _Operands) -> tuple[str, Sizes, Sizes, Sizes]:
        """Name of a layer, and shapes of activation, weight and output; all must be known."""
        name = self._name(node, node.input[where.weight])
        tensors = node.input[where.data], node.input[where.weight], node.output[0]
        image, weight, output = (self._shape(name, tensor) for tensor in tensors)
        return name, image, weight, output

    def _shape(self, layer: str, tensor: str) -> Sizes:
        shape = self.graph.shape(tensor)
        if shape is None:
            sizes = self.graph.shapes.get(tensor, ())
            known = " x ".join(str(size) if size > 0 else "?" for size in sizes) or "unknown"
            foreign = [f"{node.op_type} ({node.domain})" for node in self.graph.data if not is_standard(node)]
            advice = f"ONNX knows no shapes of {foreign[0]}" if foreign else "fold the file's constants first"
            raise WorkloadError(f"{self.graph.path}: the shape of {tensor} in layer {layer} is {known}; {advice}")
        return shape

    def _per_image(self, layer: str, values: int, share: int) -> int:
        """`values` of a whole run, for each image and each of `share` parts."""
        result, rest = divmod(values, share * self.graph.batch)
        if rest:
            raise WorkloadError(
                f"{self.graph.path}: layer {layer} has {values} values for a batch of {self.graph.batch}, which is no "
                "whole number for each image; export with a batch of 1"
            )
        return result

    def _biases(self, node: onnx.NodeProto, where: _Operands, outputs: int) -> int:
        """Number of bias values: of the operand, or of the Add that alone reads a MatMul."""
        if where.bias is not None:
            bias = node.input[where.bias] if len(node.input) > where.bias else ""
            return 0 if not bias or bias in self.graph.reached else prod(self.graph.shape(bias) or (outputs,))
        readers = self.readers.get(node.output[0], [])
        if len(readers) != 1 or readers[0].op_type != "Add":
            return 0
        others = [name for name in readers[0].input if name != node.output[0] and name not in self.graph.reached]
        if [self.graph.shape(name) for name in others] != [(outputs,)]:
            return 0
        self.added_biases.update(others)
        return outputs

    def _traffic(
        self, name: str, node: onnx.NodeProto, where: _Operands, image: Sizes, output: Sizes
    ) -> dict[str, Any]:
        """What a layer reads and writes."""
        tensor = node.input[where.weight]
        point = where.zero_point if where.zero_point is not None and len(node.input) > where.zero_point else None
        channel_axis = 0 if node.op_type in CONVOLUTIONS else -1
        source = self.weights.source(tensor, node.input[point] if point is not None else "", channel_axis)
        return {
            "nonzero": -1 if source.nonzero is None else source.nonzero,
            "fillers": source.fillers,
            "in_values": self._per_image(name, prod(image), 1),
            "out_values": self._per_image(name, prod(output), 1),
            "weight_bits": source.bits,
            "node_name": node.name,
        }

    def _name(self, node: onnx.NodeProto, weight: str) -> str:
        """As people know the layer: by its weight, by its module, else by its node."""
        stored = self.weights.stored(weight)
        for tensor in (weight, stored):
            if ".weight" in tensor:
                return tensor.rsplit(".weight", 1)[0]
        return _module(node) or node.name or stored or node.output[0]


def _module(node: onnx.NodeProto) -> str:
    """The module that a node belongs to, as torch's exporters say it; "" where they do not.

    The newer one writes all scopes into metadata: `['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d_1']`. The
    older one names nodes `/layer1/layer1.0/conv1/Conv`: children of a Sequential repeat their parent's name.
    """
    for each in node.metadata_props:
        if each.key == "pkg.torch.onnx.name_scopes":
            scopes = re.findall(r"'([^']*)'", each.value)
            return scopes[-2] if len(scopes) > 1 else ""
    if not node.name.startswith("/"):
        return ""
    parts: list[str] = []
    for scope in node.name.split("/")[1:-1]:
        if parts and scope.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(scope)
    return ".".join(parts)


def shortcut_convolutions(nodes: Sequence[onnx.NodeProto], producers: Mapping[str, onnx.NodeProto]) -> set[str]:
    """Outputs of the convolutions on shortcuts.

    A convolution is on a shortcut when its result goes (through batch norm at most) into an Add whose other operand
    is also made from that convolution's input, past that convolution. (In a network of linear bottlenecks the last
    convolution of a block feeds both operands of the next Add; it is no shortcut.)
    """
    found = set()
    for node in nodes:
        if node.op_type != "Add" or len(node.input) != 2:
            continue
        for branch, other in (node.input, reversed(node.input)):
            conv = _last_convolution(branch, producers)
            if conv is not None and _made_from(other, conv.input[0], producers, apart_from=conv.output[0]):
                found.add(conv.output[0])
    return found


def _last_convolution(tensor: str, producers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    node = producers.get(tensor)
    while node is not None and node.op_type in (
        "BatchNormalization", "Cast", "DequantizeLinear", "Identity", "QuantizeLinear",
    ):  # fmt: skip
        node = producers.get(node.input[0])
    return node if node is not None and node.op_type in ("Conv", "QLinearConv") else None


def _made_from(tensor: str, source: str, producers: Mapping[str, onnx.NodeProto], apart_from: str) -> bool:
    """Whether `source` is a near ancestor of `tensor` on a path that avoids `apart_from`; weights are left aside."""
    queue, seen = [tensor], {tensor, apart_from}
    while queue and len(seen) < SEARCH:
        node = producers.get(queue.pop(0))
        if node is None:
            continue
        images = node.input if node.op_type in ("Add", "Concat", "Mul", "Sub", "Sum") else node.input[:1]
        for name in images:
            if name == source:
                return True
            if name not in seen:
                seen.add(name)
                queue.append(name)
    return False
