"""What a network computes: its convolutions and linear layers, read from any ONNX file.

Shapes come from ONNX shape inference; weights are never loaded from beside the file. A weight may be an initializer
or the result of nodes that no image reaches (a weight conditioned on a knob, a dequantised one, one restored from
sparse storage): such nodes transform weights and are no inference work.
"""

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import onnx

from hwmodels.activations import Flow, Step
from hwmodels.errors import WorkloadError
from hwmodels.graph import Graph, is_standard, operands, read_graph
from hwmodels.inputs import Sizes
from hwmodels.layers import Layer, LayerReader, shortcut_convolutions
from hwmodels.weights import BITS

__all__ = ["FREE", "Layer", "Workload", "read_workload"]

NOISE_TABLE = "noise_table"  # deploytool's name for the noise that all layers of a FLOAT file share

# Work on activations that the delay model leaves out by design; everything else unpriced makes a report incomplete.
FREE = frozenset(
    {
        # activations
        "Celu", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "LogSoftmax", "Mish", "PRelu",
        "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu",
        # normalisation and pooling
        "AveragePool", "BatchNormalization", "GlobalAveragePool", "GlobalMaxPool", "GroupNormalization",
        "InstanceNormalization", "LRN", "LayerNormalization", "LpNormalization", "MaxPool",
        "MeanVarianceNormalization", "RMSNormalization",
        # elementwise
        "Abs", "Add", "And", "Ceil", "Cos", "Div", "Equal", "Exp", "Floor", "Greater", "GreaterOrEqual", "Less",
        "LessOrEqual", "Log", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Round",
        "Sign", "Sin", "Sqrt", "Sub", "Sum", "Where",
        # reductions
        "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
        "ReduceSumSquare", "TopK",
        # shapes and copies
        "Cast", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "DequantizeLinear", "Dropout",
        "DynamicQuantizeLinear", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad",
        "QuantizeLinear", "Range", "Reshape", "Resize", "ScatterElements", "ScatterND", "Shape", "Size", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Upsample",
    }
)  # fmt: skip


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
        transforms: operators that no image reaches, with their number: they make weights, batch norms and the like
            of stored tensors and knobs, and are no inference work.
        norms: channels of each BatchNormalization on the image path.
        noise_table_values, noise_table_bytes: of a table of noise that layers share (deploytool's `noise_table`), as
            the file stores it; 0 without.
        other_values: stored numbers that other operators read, in tensors of two or more: layer norms, position
            embeddings, input scaling.
        flow: the tensors on the image path, for `hwmodels.activations`.
        images: shapes of the image inputs, as priced.
        width: the chosen width of a slimmable file, None for others.
        left_out: outputs whose own work is not counted: an explainer's maps, libraries' CPL.
    """

    file: str
    layers: tuple[Layer, ...]
    free: dict[str, int]
    not_counted: dict[str, int]
    inputs: tuple[str, ...]
    properties: dict[str, str]
    transforms: dict[str, int] = field(default_factory=dict)
    norms: tuple[int, ...] = ()
    noise_table_values: int = 0
    noise_table_bytes: int = 0
    other_values: int = 0
    flow: Flow = field(default_factory=Flow)
    images: dict[str, tuple[int, ...]] = field(default_factory=dict)
    width: float | None = None
    left_out: tuple[str, ...] = ()


def read_workload(
    file: str | os.PathLike[str], shape: Sizes | Mapping[str, Sizes] | None = None, width: float | None = None
) -> Workload:
    """Read the layers of an ONNX file; a dynamic batch counts as 1, and all numbers are for one image.

    Args:
        file: any ONNX file with a network on images in it.
        shape: size of the images where the file leaves it open: (C, H, W) or (N, C, H, W), or by input name. See
            `hwmodels.inputs.parse_shapes` for the command line's form.
        width: of a file with a scalar input `width` (slimmable networks); the widest of its metadata where None.

    Raises:
        WorkloadError: the file is absent, too large, damaged or no ONNX, a size is not known, or the file does not
            hold that width.
    """
    graph = read_graph(file, shape, width)
    reader = LayerReader(graph)
    layers: dict[int, Layer] = {}
    free: Counter[str] = Counter()
    not_counted: Counter[str] = Counter()
    shortcuts = shortcut_convolutions(graph.data, reader.producers)
    for index, node in enumerate(graph.data):
        layer = reader.read(node, film=node.output[0] not in shortcuts)
        if layer is not None:
            layers[index] = layer
        else:
            (free if _is_free(node) else not_counted)[node.op_type] += 1
    for node in graph.sizes:
        known = all(name in graph.values for name in node.output if name)
        (free if known or _is_free(node) else not_counted)[node.op_type] += 1
    if not layers and not not_counted:
        raise WorkloadError(f"{graph.path} has no convolution and no linear layer; there is nothing to price")
    layers = _told_apart(layers)
    noise = prod(graph.stored[NOISE_TABLE].dims) if NOISE_TABLE in graph.stored else 0
    return Workload(
        file=str(graph.path),
        layers=tuple(layers.values()),
        free=dict(free),
        not_counted=dict(not_counted),
        inputs=graph.inputs,
        properties=dict(graph.properties),
        transforms=dict(Counter(node.op_type for node in graph.knobs)),
        norms=tuple(reader.channels(node) for node in graph.data if node.op_type == "BatchNormalization"),
        noise_table_values=noise,
        noise_table_bytes=noise * (reader.weights.bits(NOISE_TABLE) or 0) // 8,
        other_values=_other_values(graph, {id(graph.data[index]) for index in layers}, reader.added_biases),
        flow=_flow(graph, {index: layer.name for index, layer in layers.items()}),
        images=dict(graph.images),
        width=graph.width,
        left_out=graph.left_out,
    )


def _is_free(node: onnx.NodeProto) -> bool:
    return node.op_type in FREE and is_standard(node)


def _told_apart(layers: Mapping[int, Layer]) -> dict[int, Layer]:
    """The layers with unique names: `#2` after the second that shares a weight, or a module."""
    seen: Counter[str] = Counter()
    result = {}
    for index, layer in layers.items():
        seen[layer.name] += 1
        again = seen[layer.name]
        result[index] = layer if again == 1 else replace(layer, name=f"{layer.name}#{again}")
    return result


def _other_values(graph: Graph, layers: Collection[int], biases: Collection[str]) -> int:
    """See `Workload`; `layers` are ids of nodes."""
    names = {
        name
        for node in graph.data
        if id(node) not in layers and node.op_type != "BatchNormalization"
        for name in node.input
        if name in graph.stored and name not in biases and graph.stored[name].data_type in BITS
    }
    return sum(size for name in names if (size := prod(graph.stored[name].dims)) > 1)


def _flow(graph: Graph, names: Mapping[int, str]) -> Flow:
    steps, values = [], {}
    for index, node in enumerate(graph.data):
        reads = tuple(dict.fromkeys(name for name in operands(node) if name in graph.reached))
        steps.append(Step(names.get(index, ""), node.op_type, reads, tuple(name for name in node.output if name)))
    for name in graph.reached:
        shape = graph.shape(name)
        if shape is not None:
            values[name] = -(-prod(shape) // graph.batch)
    outputs = tuple(name for name in graph.outputs if name in graph.reached)
    return Flow(tuple(steps), values, tuple(graph.images), outputs)
