"""What a network computes: its convolutions and linear layers, read from any ONNX file.

Shapes come from ONNX shape inference; weights are never loaded from beside the file, nor computed. A weight may be
an initializer or the result of nodes that no image reaches (a weight conditioned on a knob, a dequantised one): such
nodes transform weights and are no inference work.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from hwmodels.errors import WorkloadError

MAX_FILE_BYTES = 2**31 - 1  # a protobuf message holds no more
MAX_NODES = 200_000
SEARCH = 512  # tensors looked at between a fork and its Add, or between a computed weight and the stored one
SMALL_TENSOR = 64  # initializers up to this many elements may be shapes, and keep their values

# Work on activations that the delay model leaves out by design; everything else unpriced makes a report incomplete.
FREE = frozenset(
    {
        # activations
        "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "LogSoftmax", "PRelu", "Relu",
        "Sigmoid", "Softmax", "Softplus", "Tanh",
        # normalisation and pooling
        "AveragePool", "BatchNormalization", "GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "LRN",
        "LayerNormalization", "MaxPool",
        # elementwise
        "Abs", "Add", "Ceil", "Div", "Exp", "Floor", "Greater", "Less", "Max", "Min", "Mul", "Neg", "Pow", "Round",
        "Sign", "Sqrt", "Sub", "Sum", "Where",
        # reductions
        "ArgMax", "ReduceMax", "ReduceMean", "ReduceSum",
        # shapes and copies
        "Cast", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Dropout", "Expand", "Flatten",
        "Gather", "Identity", "Pad", "QuantizeLinear", "Reshape", "Resize", "Shape", "Slice", "Split", "Squeeze",
        "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer.

    Attributes:
        name: of its weight, without `.weight`; the node's where the weight has none.
        kind: `conv`, or `linear` (Gemm, or MatMul with a weight).
        out_channels: C_o.
        in_channels_per_group: C_i / groups, the channels that one filter reads.
        kernel: spatial size of a filter, () for a linear layer.
        positions: output positions of one image, H_o W_o; 1 for a linear layer on a vector.
        groups: of the convolution.
        biases: number of bias values.
        film: whether OAT puts a FiLM layer after it: convolutions but for those of shortcuts.
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


@dataclass(frozen=True)
class Workload:
    """A network as the cost models see it.

    Attributes:
        file: where it was read.
        layers: in the order of computation.
        free: operators on the image path that the delay model leaves out by design, with their number.
        not_counted: operators whose work is not covered, with their number; empty when the workload is complete.
        inputs: names of the graph's inputs.
        properties: the file's metadata.
    """

    file: str
    layers: tuple[Layer, ...]
    free: dict[str, int]
    not_counted: dict[str, int]
    inputs: tuple[str, ...]
    properties: dict[str, str]


def read_workload(file: str | os.PathLike[str]) -> Workload:
    """Read the layers of an ONNX file; a dynamic batch counts as 1.

    Args:
        file: any ONNX file with a network on images in it.

    Raises:
        WorkloadError: the file is absent, too large or no ONNX, or a layer's shapes are unknown.
    """
    path = Path(file)
    model = _parse(path)
    _check_order(path, model.graph)
    initializers = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes = _infer_shapes(path, model)
    producers = {name: node for node in model.graph.node for name in node.output if name}
    on_image = _image_path(model.graph, initializers)
    if not on_image:
        raise WorkloadError(f"{path}: no node depends on an image input; cost needs a network on images")
    slimmable = any(value.name == "width" for value in model.graph.input)
    reader = _LayerReader(path, shapes, initializers, producers, on_image, slimmable)
    layers: list[Layer] = []
    free: Counter[str] = Counter()
    not_counted: Counter[str] = Counter()
    shortcuts = _shortcut_convolutions(model.graph.node, producers)
    for node in model.graph.node:
        if not any(name in on_image for name in node.output):
            continue
        layer = reader.read(node, film=node.output[0] not in shortcuts)
        if layer is not None:
            layers.append(layer)
        elif node.op_type in FREE and node.domain in ("", "ai.onnx"):
            free[node.op_type] += 1
        else:
            not_counted[node.op_type] += 1
    if not layers and not not_counted:
        raise WorkloadError(f"{path} has no convolution and no linear layer; there is nothing to price")
    return Workload(
        file=str(path),
        layers=tuple(layers),
        free=dict(free),
        not_counted=dict(not_counted),
        inputs=tuple(value.name for value in model.graph.input if value.name not in initializers),
        properties={p.key: p.value for p in model.metadata_props},
    )


def _parse(path: Path) -> onnx.ModelProto:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise WorkloadError(f"{path} has {path.stat().st_size} bytes; at most {MAX_FILE_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise WorkloadError(f"{path} cannot be read: {error.strerror}; give the path of an ONNX file") from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        model.Clear()
    if not model.graph.node or not model.opset_import:
        raise WorkloadError(f"{path} is no ONNX model, or it is damaged")
    if len(model.graph.node) > MAX_NODES:
        raise WorkloadError(f"{path} has {len(model.graph.node)} nodes; at most {MAX_NODES}")
    return model


def _check_order(path: Path, graph: onnx.GraphProto) -> None:
    """Refuse a graph whose nodes are out of order, cycles included: nothing here could walk it to an end."""
    made = {name for node in graph.node for name in node.output if name}
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        early = [name for name in node.input if name in made and name not in known]
        if early:
            raise WorkloadError(f"{path}: node {node.name or node.op_type} reads {early[0]} before it is made")
        known.update(node.output)


def _infer_shapes(path: Path, model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name, 0 where a dimension is unknown. Drops the values of large tensors from `model`."""
    graph = model.graph
    for tensor in graph.initializer:
        if prod(tensor.dims) > SMALL_TENSOR:
            for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(field)
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if len(dims) >= 2 and not dims[0].dim_value:
            dims[0].dim_value = 1
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:  # onnx raises bare RuntimeError, ValueError and its own kinds alike
        reason = " ".join(str(error).split())[:160]
        raise WorkloadError(f"{path}: shape inference fails ({reason}); check the file with onnx.checker") from None
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        if value.type.tensor_type.HasField("shape"):
            shapes.setdefault(value.name, tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim))
    return shapes


def _image_path(graph: onnx.GraphProto, initializers: Iterable[str]) -> set[str]:
    """Names of all tensors that depend on an image: on an input of two or more dimensions, not on scalar knobs."""
    fixed = set(initializers)
    reached = {
        value.name for value in graph.input if value.name not in fixed and len(value.type.tensor_type.shape.dim) >= 2
    }
    names: set[str] = set()
    for node in graph.node:
        if any(name in reached for name in node.input):
            reached.update(node.output)
            names.update(name for name in node.output if name)
    return names


@dataclass(frozen=True)
class _LayerReader:
    """Turns nodes into layers."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    initializers: dict[str, tuple[int, ...]]
    producers: dict[str, onnx.NodeProto]
    on_image: set[str]
    slimmable: bool

    def read(self, node: onnx.NodeProto, film: bool) -> Layer | None:
        """The layer of a node on the image path; None for anything but Conv, and Gemm or MatMul with a weight."""
        if node.domain not in ("", "ai.onnx") or len(node.input) < 2 or node.input[1] in self.on_image:
            return None
        if node.op_type == "Conv":
            return self._conv(node, film)
        if node.op_type in ("Gemm", "MatMul"):
            return self._linear(node)
        return None

    def _conv(self, node: onnx.NodeProto, film: bool) -> Layer:
        name = self._name(node)
        weight, output = self._shape(name, node.input[1]), self._shape(name, node.output[0])
        if len(weight) < 3 or len(output) != len(weight):
            raise WorkloadError(f"{self.path}: {name} has weight {weight} and output {output}; that is no convolution")
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        return Layer(
            name=name,
            kind="conv",
            out_channels=weight[0],
            in_channels_per_group=weight[1],
            kernel=weight[2:],
            positions=prod(output[2:]),
            groups=groups,
            biases=weight[0] if len(node.input) > 2 and node.input[2] else 0,
            film=film,
        )

    def _linear(self, node: onnx.NodeProto) -> Layer:
        name = self._name(node)
        weight, output = self._shape(name, node.input[1]), self._shape(name, node.output[0])
        if len(weight) != 2:
            raise WorkloadError(f"{self.path}: {name} has weight {weight}; a linear layer's has two dimensions")
        transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
        inputs, outputs = weight[::-1] if transposed else weight
        return Layer(
            name=name,
            kind="linear",
            out_channels=outputs,
            in_channels_per_group=inputs,
            kernel=(),
            positions=prod(output[1:-1]),
            biases=outputs if len(node.input) > 2 and node.input[2] else 0,
        )

    def _shape(self, layer: str, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor, its first (batch or filter) dimension included; all must be known."""
        shape = self.shapes.get(tensor, ())
        if not shape or not all(size > 0 for size in shape):
            known = " x ".join(str(size) if size > 0 else "?" for size in shape) or "unknown"
            advice = "specialise it to one width first" if self.slimmable else "export with fixed height and width"
            raise WorkloadError(f"{self.path}: the shape of {tensor} in layer {layer} is {known}; {advice}")
        return shape

    def _name(self, node: onnx.NodeProto) -> str:
        """The name of the stored weight that the node's weight is made from, as people know it."""
        stored = self._stored_weight(node.input[1])
        if ".weight" in stored:
            return stored.rsplit(".weight", 1)[0]
        return node.name or stored or node.output[0]

    def _stored_weight(self, tensor: str) -> str:
        """Follow a computed weight back to the initializer of its own shape (theta of `theta + noise`)."""
        if tensor in self.initializers:
            return tensor
        shape, queue, seen = self.shapes.get(tensor), [tensor], {tensor}
        while queue and len(seen) < SEARCH:
            node = self.producers.get(queue.pop(0))
            for name in node.input if node else ():
                if name in self.initializers and self.initializers[name] == shape:
                    return name
                if name not in seen:
                    seen.add(name)
                    queue.append(name)
        return ""


def _shortcut_convolutions(nodes: Sequence[onnx.NodeProto], producers: dict[str, onnx.NodeProto]) -> set[str]:
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


def _last_convolution(tensor: str, producers: dict[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    node = producers.get(tensor)
    while node is not None and node.op_type in ("BatchNormalization", "Identity", "Cast"):
        node = producers.get(node.input[0])
    return node if node is not None and node.op_type == "Conv" else None


def _made_from(tensor: str, source: str, producers: dict[str, onnx.NodeProto], apart_from: str) -> bool:
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
