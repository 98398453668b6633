"""From a specialised float network to a static INT8 one.

    before:  y = Relu(Conv(x, W, b))
    after:   y.q = Q(Conv(DQ(x.q), DQ(W.q), DQ(b.q)))

`Q` and `DQ` are QuantizeLinear and DequantizeLinear with the numbers of `deploytool.runtime.rounding`; onnxruntime
fuses what stands between them to QLinearConv, QLinearAdd, QLinearGlobalAveragePool and QGemm.

- Inputs and outputs of Conv, Gemm, Add, Concat and of pools that average are quantised. Graph outputs stay float32,
  and so does what a Sigmoid makes one of: 8 bits between a head and its threshold would move answers for nothing.
- A Relu or Clip after a Conv, Gemm or Add goes: the range of `y` lies within its bounds, and Q saturates there.
- What moves values and leaves them as they are (MaxPool, Flatten, Pad with zeros ...) keeps the scale of its input.
- All else computes in float32 between a DQ and a Q: normalisation of the image, batch norms that do not fold.
- The mean over height and width becomes a GlobalAveragePool, which has an INT8 form.
- What the output `saliency` alone needs stays as it is: an explainer computes in float32 beside an INT8 classifier.
  So do the libraries that `cpl` alone needs; the activity that they read is the INT8 classifier's, as after its DQ.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
import onnx
from onnx import helper

from deploytool.runtime.graph import Graph, select_outputs
from deploytool.runtime.ranges import Range
from deploytool.runtime.rounding import activation_scale, layer_scales, rounded_bias, rounded_weight

Array = np.ndarray[Any, Any]

CARRIERS = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
FLOAT_OUTPUTS = frozenset({"saliency", "cpl"})
KEEP_RANK = frozenset({"Add", "BatchNormalization", "Clip", "Relu", "MaxPool", "AveragePool"})


@dataclass(frozen=True)
class Plan:
    """What of a graph is computed in INT8.

    Attributes:
        nodes: the graph's, in topological order, without activations that a Q takes the place of.
        sources: quantised tensor -> the tensor whose range it has: itself, or what a MaxPool and the like carried on.
        bounds: of the activation that a Q takes the place of, by tensor.
        beside: nodes that follow those, and stay as they are; an activation that they read is its DQ where it has one.
    """

    nodes: tuple[onnx.NodeProto, ...]
    sources: Mapping[str, str]
    bounds: Mapping[str, Range]
    beside: tuple[onnx.NodeProto, ...] = ()


def measured_tensors(graph: Graph) -> list[str]:
    """The activations whose ranges `quantized_graph` needs, in the order of computation.

    Args:
        graph: a float graph of one setting, batch norms folded, as `with_pooled_means` returns it. Names are those
            of the backbone's tensors: the same for every setting, whatever was evaluated on the way.
    """
    return list(dict.fromkeys(make_plan(graph).sources.values()))


def quantized_graph(graph: Graph, ranges: Mapping[str, Range]) -> Graph:
    """Quantise a float graph.

    Args:
        graph: as in `measured_tensors`.
        ranges: low and high of each of `measured_tensors`.

    Returns:
        The graph with int8 weights, int32 biases and pairs of Q and DQ; with other values than the float one's, but
        inputs and outputs alike.

    Raises:
        KeyError: the range of a tensor is missing. ValueError: a weight is NaN or infinite.
    """
    plan = make_plan(graph)
    numbers: dict[str, tuple[Array, Array]] = {}
    for tensor, source in plan.sources.items():
        (low, high), (least, most) = ranges[source], plan.bounds.get(source, (-inf, inf))
        numbers[tensor] = activation_scale(max(low, least), min(high, most))
    with np.errstate(all="ignore"):
        return _Writer(graph, plan, numbers).write()


def with_pooled_means(graph: Graph) -> Graph:
    """The same float graph; where it takes the mean over height and width, it has a GlobalAveragePool."""
    producer = {name: node for node in graph.nodes for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if not _is_spatial_mean(node, graph, producer):
            nodes.append(node)
            continue
        result = node.output[0]
        flat = not _attribute(node, "keepdims", 1)
        pooled = f"{result}.pooled" if flat else result
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], node.name))
        if flat:
            nodes.append(helper.make_node("Flatten", [pooled], [result], f"{node.name}.flat", axis=1))
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.outputs}
    constants = {name: value for name, value in graph.constants.items() if name in used}
    return replace(graph, nodes=tuple(nodes), constants=constants)


def int8_weights(graph: Graph) -> set[str]:
    """The weights and biases of layers between a DQ and a Q, results of a DQ themselves: to stay integers."""
    results = {name for node in graph.nodes if node.op_type == "DequantizeLinear" for name in node.output}
    layers = [node for node in graph.nodes if node.op_type in ("Conv", "Gemm") and node.input[0] in results]
    return {name for node in layers for name in node.input[1:]}


def make_plan(graph: Graph) -> Plan:
    """Decide what of a graph is computed in INT8."""
    graph, beside = _without_float_outputs(graph)
    outputs = {value.name for value in graph.outputs}
    read = {name for node in beside for name in node.input}
    outputs |= {node.input[0] for node in graph.nodes if node.op_type == "Sigmoid" and node.output[0] in outputs}
    nodes, bounds = _without_activations(graph, outputs, read)
    own = {name for node in nodes if is_int8(node, graph) for name in _data(node, graph)}
    own |= {name for node in nodes if is_int8(node, graph) for name in node.output if name not in outputs}
    sources = {value.name: value.name for value in graph.inputs if value.name in own}
    for node in nodes:
        for name in node.output:
            if name not in outputs and _carries(node, graph) and node.input[0] in sources:
                sources[name] = sources[node.input[0]]
            elif name in own:
                sources[name] = name
    return Plan(nodes, sources, bounds, beside)


def is_int8(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether a node of the float graph is one that INT8 kernels compute."""
    constants = graph.constants
    if node.op_type in ("Conv", "Gemm"):
        tensors = [constants.get(name) for name in node.input[1:]]
        if any(tensor is None or tensor.dtype != np.float32 for tensor in tensors) or node.input[0] in constants:
            return False
        weight = tensors[0]
        assert weight is not None
        if node.op_type == "Conv":
            return weight.ndim == 4
        usual = {"transA": 0, "alpha": 1.0, "beta": 1.0}
        channels = weight.shape[_output_axis(node)]
        return (
            weight.ndim == 2
            and all(_attribute(node, key, value) == value for key, value in usual.items())
            and all(tensor is not None and tensor.size == channels for tensor in tensors[1:])
        )
    if node.op_type in ("Add", "Concat"):
        return not any(name in constants for name in node.input)
    return node.op_type == "GlobalAveragePool" or (node.op_type == "AveragePool" and not _carries(node, graph))


class _Writer:
    """Writes the graph of a plan, given scale and zero point of every quantised tensor."""

    def __init__(self, graph: Graph, plan: Plan, numbers: Mapping[str, tuple[Array, Array]]) -> None:
        self.graph = graph
        self.plan = plan
        self.numbers = numbers
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def write(self) -> Graph:
        for value in self.graph.inputs:
            self.pair(value.name)
        for node in self.plan.nodes:
            written = onnx.NodeProto()
            written.CopyFrom(node)
            written.input[:] = [f"{name}.dq" if name in self.numbers else name for name in node.input]
            if node.op_type in ("Conv", "Gemm") and is_int8(node, self.graph):
                written.input[1:] = self.weights(node)
            self.constants.update((n, self.graph.constants[n]) for n in written.input if n in self.graph.constants)
            self.nodes.append(written)
            for name in node.output:
                self.pair(name)
        images = {value.name for value in self.graph.inputs}
        for node in self.plan.beside:
            written = onnx.NodeProto()
            written.CopyFrom(node)
            written.input[:] = [
                f"{name}.dq" if name in self.numbers and name not in images else name for name in node.input
            ]
            self.nodes.append(written)
        read = {name for node in self.plan.beside for name in node.input}
        self.constants.update((name, value) for name, value in self.graph.constants.items() if name in read)
        return replace(self.graph, nodes=tuple(self.nodes), constants=self.constants)

    def pair(self, tensor: str) -> None:
        """Q and DQ of an activation, where it is quantised."""
        if tensor not in self.numbers:
            return
        source = self.plan.sources[tensor]
        scale, zero = f"{source}.scale", f"{source}.zero"
        self.constants[scale], self.constants[zero] = self.numbers[tensor]
        self.node("QuantizeLinear", [tensor, scale, zero], f"{tensor}.q")
        self.node("DequantizeLinear", [f"{tensor}.q", scale, zero], f"{tensor}.dq")

    def weights(self, node: onnx.NodeProto) -> list[str]:
        """Weight and bias of a layer as DQ of integers; return their names."""
        weight, axis = self.graph.constants[node.input[1]], _output_axis(node)
        biased = len(node.input) > 2
        bias = self.graph.constants[node.input[2]].reshape(-1) if biased else np.zeros(1, np.float32)
        activation, _ = self.numbers[node.input[0]]
        scales = layer_scales(weight, bias, activation, axis)
        if not np.isfinite(scales).all():  # as integers they would go unnoticed
            raise ValueError(f"{node.input[1]} or its bias holds NaN or infinity")
        names = [self.dequantized(node.input[1], rounded_weight(weight, scales, axis), scales, axis)]
        if biased:
            steps = activation * scales
            names.append(self.dequantized(node.input[2], rounded_bias(bias, steps), steps, 0))
        return names

    def dequantized(self, name: str, values: Array, scales: Array, axis: int) -> str:
        while f"{name}.q" in self.constants:  # layers that share a tensor have scales of their own
            name += "_"
        made = {f"{name}.q": values, f"{name}.scale": scales, f"{name}.zero": np.zeros_like(scales, values.dtype)}
        self.constants |= made
        return self.node("DequantizeLinear", list(made), f"{name}.dq", axis=axis)

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output


def _without_float_outputs(graph: Graph) -> tuple[Graph, tuple[onnx.NodeProto, ...]]:
    """The graph of the outputs that INT8 can compute, and the nodes that only the others need."""
    kept = select_outputs(graph, [value.name for value in graph.outputs if value.name not in FLOAT_OUTPUTS])
    if len(kept.outputs) == len(graph.outputs):
        return graph, ()
    ids = set(map(id, kept.nodes))
    return kept, tuple(node for node in graph.nodes if id(node) not in ids)


def _without_activations(
    graph: Graph, outputs: set[str], beside: set[str]
) -> tuple[tuple[onnx.NodeProto, ...], dict[str, Range]]:
    """The nodes without each Relu or Clip that alone reads a Conv, Gemm or Add; its bounds by the result's name.

    One whose operand is read by nodes `beside` stays.
    """
    readers = Counter(name for node in graph.nodes for name in node.input)
    producer = {name: node for node in graph.nodes for name in node.output}
    renamed: dict[str, str] = {}
    bounds: dict[str, Range] = {}
    for node in graph.nodes:
        before = producer.get(node.input[0]) if node.input else None
        limits = _activation_bounds(node, graph)
        if limits is None or before is None or before.op_type not in ("Conv", "Gemm", "Add"):
            continue
        tensor, result = node.input[0], node.output[0]
        if is_int8(before, graph) and readers[tensor] == 1 and not outputs & {tensor, result} and tensor not in beside:
            renamed[tensor], bounds[result] = result, limits
    nodes = []
    for node in graph.nodes:
        if node.output[0] in bounds and node.input[0] in renamed:
            continue
        if node.output[0] in renamed:
            kept = onnx.NodeProto()
            kept.CopyFrom(node)
            kept.output[0] = renamed[node.output[0]]
            node = kept
        nodes.append(node)
    return tuple(nodes), bounds


def _activation_bounds(node: onnx.NodeProto, graph: Graph) -> Range | None:
    """Lower and upper bound of a Relu, or of a Clip that lets 0 through; None of anything else."""
    if node.op_type == "Relu":
        return 0.0, inf
    if node.op_type != "Clip" or not all(name in graph.constants for name in node.input[1:] if name):
        return None
    limits = [float(graph.constants[name]) if name else None for name in [*node.input[1:], "", ""][:2]]
    low, high = -inf if limits[0] is None else limits[0], inf if limits[1] is None else limits[1]
    return (low, high) if low <= 0 <= high else None


def _carries(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether a node's result holds values of its input, or zeros, and no others."""
    if node.op_type == "AveragePool":  # of single pixels: subsampling
        return all(size == 1 for size in _attribute(node, "kernel_shape", [0]))
    if node.op_type == "Pad":
        value = graph.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
        return _attribute(node, "mode", b"constant") != b"constant" or (value is not None and not np.any(value))
    return node.op_type in CARRIERS


def _data(node: onnx.NodeProto, graph: Graph) -> list[str]:
    """The inputs of an INT8 node that are activations."""
    return [name for name in node.input if name and name not in graph.constants]


def _is_spatial_mean(node: onnx.NodeProto, graph: Graph, producer: Mapping[str, onnx.NodeProto]) -> bool:
    if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in graph.constants:
        return False
    source = producer.get(node.input[0])
    while source is not None and source.op_type in KEEP_RANK:
        source = producer.get(source.input[0])
    if source is None or source.op_type != "Conv":
        return False
    weight = graph.constants.get(source.input[1])
    axes = sorted(int(axis) % 4 for axis in graph.constants[node.input[1]].reshape(-1))
    return weight is not None and weight.ndim == 4 and axes == [2, 3]


def _output_axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that counts its outputs."""
    return 1 if node.op_type == "Gemm" and not _attribute(node, "transB", 0) else 0


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)
