"""An ONNX model taken apart: its nodes, and its tensors as numpy arrays that sessions and settings can share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Graph:
    """A model of one graph without subgraphs.

    Attributes:
        nodes: in topological order; never changed in place.
        constants: the initializers by name; never changed in place.
        inputs, outputs: what the model takes and gives.
        header: everything of the model but its graph and its metadata: opsets, IR version, producer.
        name: of the graph.
    """

    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, Array]
    inputs: tuple[onnx.ValueInfoProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]
    header: onnx.ModelProto
    name: str


def take_apart(model: onnx.ModelProto) -> Graph:
    """Take a model apart. Raises ValueError and the like where a tensor's data do not fit its shape."""
    header = onnx.ModelProto()
    header.ir_version, header.producer_name = model.ir_version, model.producer_name
    header.opset_import.extend(model.opset_import)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    # An initializer may be listed as an input too (IR version 3); what a caller has to give are the others.
    rest = onnx.GraphProto()  # copies: a node of the model would keep the whole model in memory, weights included
    rest.node.extend(model.graph.node)
    rest.input.extend(value for value in model.graph.input if value.name not in constants)
    rest.output.extend(model.graph.output)
    return Graph(tuple(rest.node), constants, tuple(rest.input), tuple(rest.output), header, model.graph.name)


def assemble(graph: Graph, properties: Mapping[str, str] | None = None, fed: Iterable[str] = ()) -> onnx.ModelProto:
    """Put a model together again.

    Args:
        graph: what `take_apart` returned, or a rewritten one.
        properties: metadata of the model.
        fed: constants that become inputs, so that they can be given at each run.
    """
    fed = set(fed)
    inputs = list(graph.inputs)
    tensors = []
    for name, value in graph.constants.items():
        if name in fed:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, list(value.shape)))
        else:
            tensors.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
    model = onnx.ModelProto()
    model.CopyFrom(graph.header)
    model.graph.CopyFrom(helper.make_graph(graph.nodes, graph.name, inputs, graph.outputs, tensors))
    helper.set_model_props(model, dict(properties or {}))
    return model


def select_outputs(graph: Graph, outputs: Sequence[str]) -> Graph:
    """The graph with these outputs alone, and with no node that they do not need."""
    needed = set(outputs)
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(name for name in node.input if name)
    return replace(
        graph,
        nodes=tuple(reversed(nodes)),
        constants={name: value for name, value in graph.constants.items() if name in needed},
        outputs=tuple(value for value in graph.outputs if value.name in outputs),
    )
