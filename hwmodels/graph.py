"""Reading an ONNX file: every shape it computes with, and which of its nodes work on images.

    data       nodes that an image reaches: inference work
    sizes      nodes that only the size of an image reaches, through Shape: computed once, no work on pixels
    knobs      all others, on weights and knobs as `lambda`: weight transforms

What only the outputs `saliency` and `cpl` of a deploytool file need, an explainer and libraries, is left out: its
classifier can do without.

Shapes come from ONNX shape inference with sizes worked out by `hwmodels.constants`; large tensors take no part in it.
Files are untrusted: nothing beside the file is opened, nothing large is computed.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from hwmodels.constants import STANDARD_DOMAINS, evaluate
from hwmodels.contrib import in_onnx_terms
from hwmodels.errors import WorkloadError
from hwmodels.inputs import Sizes, fix_images, fix_width

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

MAX_FILE_BYTES = 2**31 - 1  # a protobuf message holds no more
MAX_NODES = 200_000
SMALL_TENSOR = 64  # values of tensors up to this size may be sizes, and are computed
SMALL_INTEGERS = 4096  # the same for integers: tables of sizes, such as those of all widths of a network
MEASURES = ("Shape", "Size")  # operators that read a tensor's size alone
BESIDE = {"saliency": "deploytool.explainer", "cpl": "deploytool.library"}  # outputs, and metadata that come with them
MAX_ROUNDS = 64  # of shape inference and constants by turns


@dataclass(frozen=True)
class Graph:
    """A graph with fixed input sizes.

    Attributes:
        path: of the file.
        data, sizes, knobs: its nodes, in the file's order; see the module.
        stored: initializers, and results of Constant nodes, by name.
        sparse: initializers in ONNX's own sparse format, by name.
        shapes: by tensor; 0 where a dimension is unknown, absent where even the rank is.
        values: small tensors that depend on no image and no knob.
        reached: all tensors that an image reaches, its own included.
        images: shapes of the image inputs, by name.
        batch: images in a run.
        width: the chosen width of a slimmable file.
        inputs, outputs: their names; what is left out is not among the outputs.
        properties: the file's metadata.
        left_out: outputs that are not priced.
    """

    path: Path
    data: tuple[onnx.NodeProto, ...]
    sizes: tuple[onnx.NodeProto, ...]
    knobs: tuple[onnx.NodeProto, ...]
    stored: Mapping[str, TensorProto]
    sparse: Mapping[str, onnx.SparseTensorProto]
    shapes: Mapping[str, Shape]
    values: Mapping[str, Array]
    reached: frozenset[str]
    images: Mapping[str, Shape]
    batch: int
    width: float | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    properties: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node that makes each tensor."""
        return {name: node for nodes in (self.data, self.sizes, self.knobs) for node in nodes for name in node.output}

    def shape(self, tensor: str) -> Shape | None:
        """A tensor's shape where all of it is known."""
        shape = self.shapes.get(tensor)
        return shape if shape is not None and all(size > 0 for size in shape) else None


def read_graph(
    file: str | os.PathLike[str], shape: Sizes | Mapping[str, Sizes] | None = None, width: float | None = None
) -> Graph:
    """Read an ONNX file; arguments as in `read_workload`.

    Raises:
        WorkloadError: the file is absent, too large or no ONNX, its inputs' sizes are not all known, or shape
            inference fails.
    """
    path = Path(file)
    model = _parse(path)
    graph = model.graph
    nodes = list(in_onnx_terms(graph.node))
    del graph.node[:]
    graph.node.extend(nodes)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    stored |= {node.output[0]: value for node in graph.node if (value := _constant(node)) is not None}
    sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    nodes = [node for node in graph.node if node.output and not (is_standard(node) and node.op_type == "Constant")]
    _check_operands(path, model)
    _check_order(path, graph)
    inputs = [value for value in graph.input if value.name not in stored and value.name not in sparse]
    properties = {each.key: each.value for each in model.metadata_props}
    outputs = [value.name for value in graph.output]
    left_out = [name for name in outputs if BESIDE.get(name, "") in properties]
    left_out = left_out if len(left_out) < len(outputs) else []
    if left_out:
        outputs = [name for name in outputs if name not in left_out]
        nodes = _needed(nodes, outputs)
    images, batch = fix_images(path, inputs, shape)
    chosen = fix_width(path, inputs, properties, width)
    reached = set(images)
    sizes: set[str] = set()
    on_data: list[onnx.NodeProto] = []
    on_sizes: list[onnx.NodeProto] = []
    on_both: list[onnx.NodeProto] = []
    knobs: list[onnx.NodeProto] = []
    for node in nodes:
        reads = operands(node)
        touched = not reached.isdisjoint(reads)
        if not touched and sizes.isdisjoint(reads):
            knobs.append(node)
            continue
        measured = node.op_type in MEASURES or not touched
        on_both.append(node)
        (on_sizes if measured else on_data).append(node)
        (sizes if measured else reached).update(name for name in node.output if name)
    if not on_data:
        raise WorkloadError(f"{path}: no node depends on an image input; cost needs a network on images")
    shapes = _Shapes(path, model, {**images, **_scalars(inputs)}, stored, sparse)
    if chosen is not None:
        shapes.values["width"] = np.array(chosen, np.float32)
    shapes.infer(knobs, data_prop=False)  # it would spell out whole tables of noise
    shapes.infer(on_both, data_prop=True)
    return Graph(
        path=path,
        data=tuple(on_data),
        sizes=tuple(on_sizes),
        knobs=tuple(knobs),
        stored=stored,
        sparse=sparse,
        shapes=shapes.shapes,
        values=shapes.values,
        reached=frozenset(reached),
        images=images,
        batch=batch,
        width=chosen,
        inputs=tuple(value.name for value in inputs),
        outputs=tuple(outputs),
        properties=properties,
        left_out=tuple(left_out),
    )


def _parse(path: Path) -> onnx.ModelProto:
    """Read a file as an ONNX model, its local functions inlined; raise WorkloadError if it is none."""
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
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception as error:  # onnx raises bare RuntimeError and its own kinds alike
            raise WorkloadError(f"{path}: its functions cannot be inlined ({_line(error)})") from None
    if len(model.graph.node) > MAX_NODES:
        raise WorkloadError(f"{path} has {len(model.graph.node)} nodes; at most {MAX_NODES}")
    if not all(isinstance(name, str) for name in _names(model)):  # protobuf hands out bytes where UTF-8 is broken
        raise WorkloadError(f"{path} is damaged: some of its names are no text")
    return model


def _check_operands(path: Path, model: onnx.ModelProto) -> None:
    """Refuse nodes that lack operands which their operators must have."""
    version = max((each.version for each in model.opset_import if each.domain in STANDARD_DOMAINS), default=1)
    least: dict[str, int] = {}
    for node in model.graph.node:
        if not is_standard(node):
            continue
        if node.op_type not in least:
            known = onnx.defs.has(node.op_type, version)
            least[node.op_type] = onnx.defs.get_schema(node.op_type, version).min_input if known else 0
        if len(node.input) < least[node.op_type]:
            raise WorkloadError(
                f"{path}: node {node.name or node.op_type} reads {len(node.input)} tensors; {node.op_type} needs "
                f"{least[node.op_type]}"
            )


def _names(model: onnx.ModelProto) -> Iterator[str]:
    graph = model.graph
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    for named in (graph.input, graph.output, graph.initializer):
        yield from (each.name for each in named)
    for each in model.metadata_props:
        yield from (each.key, each.value)


def _needed(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """The nodes that some outputs need."""
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            found.append(node)
            wanted.update(operands(node))
    return found[::-1]


def is_standard(node: onnx.NodeProto) -> bool:
    """Whether a node's operator is ONNX's own."""
    return node.domain in STANDARD_DOMAINS


def operands(node: onnx.NodeProto) -> list[str]:
    """Names of all tensors that a node reads, those that its branches and loop bodies take from outside included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():  # GRAPH, GRAPHS
            own = {name for inner in body.node for name in inner.output}
            own |= {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
            names += [name for inner in body.node for name in operands(inner) if name not in own]
            names += [value.name for value in body.output if value.name not in own]
    return names


def integer(node: onnx.NodeProto, name: str, default: int) -> int:
    """An attribute that is an integer."""
    found = [each.i for each in node.attribute if each.name == name and each.type == onnx.AttributeProto.INT]
    return found[0] if found else default


def integers(node: onnx.NodeProto, name: str, default: Shape) -> Shape:
    """An attribute that is a list of integers."""
    found = [each.ints for each in node.attribute if each.name == name and each.type == onnx.AttributeProto.INTS]
    return tuple(found[0]) if found else default


def _constant(node: onnx.NodeProto) -> TensorProto | None:
    """The value of a Constant node; None for others, and for what is no tensor."""
    if node.op_type != "Constant" or not is_standard(node) or not node.attribute or not node.output:
        return None
    each = node.attribute[0]
    if each.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(each.t)
        tensor.name = node.output[0]
        return tensor
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if each.name not in kinds:
        return None
    return numpy_helper.from_array(np.array(helper.get_attribute_value(each), kinds[each.name]), node.output[0])


def _check_order(path: Path, graph: onnx.GraphProto) -> None:
    """Refuse a graph whose nodes are out of order, cycles included: nothing here could walk it to an end."""
    made = {name for node in graph.node for name in node.output if name}
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        early = [name for name in operands(node) if name in made and name not in known]
        if early:
            raise WorkloadError(f"{path}: node {node.name or node.op_type} reads {early[0]} before it is made")
        again = [name for name in node.output if name in known and name]
        if again:
            raise WorkloadError(f"{path}: node {node.name or node.op_type} makes {again[0]}, which exists already")
        known.update(node.output)


def _scalars(inputs: list[onnx.ValueInfoProto]) -> dict[str, Shape]:
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in inputs
        if value.type.tensor_type.HasField("shape") and len(value.type.tensor_type.shape.dim) < 2
    }


class _Shapes:
    """Works out shapes and small values, part by part."""

    def __init__(
        self,
        path: Path,
        model: onnx.ModelProto,
        inputs: Mapping[str, Shape],
        stored: Mapping[str, TensorProto],
        sparse: Mapping[str, onnx.SparseTensorProto],
    ) -> None:
        self.path = path
        self.opsets = list(model.opset_import)
        self.types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        self.types |= {name: tensor.data_type for name, tensor in stored.items()}
        self.types |= {name: tensor.values.data_type for name, tensor in sparse.items()}
        self.shapes: dict[str, Shape] = dict(inputs)
        self.shapes |= {name: tuple(tensor.dims) for name, tensor in stored.items()}
        self.shapes |= {name: tuple(tensor.dims) for name, tensor in sparse.items()}
        self.values: dict[str, Array] = {}
        for name, tensor in stored.items():
            limit = SMALL_INTEGERS if tensor.data_type in (TensorProto.INT32, TensorProto.INT64) else SMALL_TENSOR
            if prod(tensor.dims) <= limit and tensor.data_location != TensorProto.EXTERNAL:
                try:
                    self.values[name] = numpy_helper.to_array(tensor)
                except Exception as error:  # whatever numpy and onnx say of damaged bytes
                    raise WorkloadError(f"{path}: tensor {name} is damaged ({_line(error)})") from None

    def infer(self, nodes: list[onnx.NodeProto], data_prop: bool) -> None:
        """Find shapes and values of what nodes make, in the file's order; earlier parts must have been inferred."""
        for turn in range(MAX_ROUNDS):
            progress = self._evaluate(nodes)
            if turn and not progress:
                return
            unknown = [node for node in nodes if not all(name in self.values for name in node.output)]
            self._infer_once(unknown, data_prop)

    def _evaluate(self, nodes: list[onnx.NodeProto]) -> bool:
        before = len(self.values)
        for node in nodes:
            if all(name in self.values for name in node.output):
                continue
            results = self._measured(node)
            if results is None and all(name in self.values for name in node.input if name):
                results = evaluate(node, [self.values[name] if name else None for name in node.input], SMALL_INTEGERS)
            for name, result in zip(node.output, results or (), strict=False):
                self.values[name] = result
                self.shapes[name] = result.shape
                self.types[name] = helper.np_dtype_to_tensor_dtype(result.dtype)
        return len(self.values) > before

    def _measured(self, node: onnx.NodeProto) -> list[Array] | None:
        """The result of Shape and Size, where it is known."""
        if node.op_type not in MEASURES or not is_standard(node):
            return None
        shape = self.shapes.get(node.input[0])
        if shape is None or not all(size > 0 for size in shape):
            return None
        if node.op_type == "Size":
            return [np.array(prod(shape), np.int64)]
        return [np.array(shape[integer(node, "start", 0) : integer(node, "end", len(shape))], np.int64)]

    def _infer_once(self, nodes: list[onnx.NodeProto], data_prop: bool) -> None:
        made = {name for node in nodes for name in node.output}
        read = dict.fromkeys(name for node in nodes for name in operands(node) if name not in made)
        graph = onnx.GraphProto(name="part", node=nodes)
        for name in read:
            if name in self.values:
                graph.initializer.append(numpy_helper.from_array(self.values[name], name))
            elif name in self.shapes and self.types.get(name):
                shape = [size if size > 0 else None for size in self.shapes[name]]
                graph.input.append(helper.make_tensor_value_info(name, self.types[name], shape))
        model = onnx.ModelProto(ir_version=8, graph=graph, opset_import=self.opsets)
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=data_prop).graph
        except Exception as error:  # onnx raises bare RuntimeError, ValueError and its own kinds alike
            raise WorkloadError(
                f"{self.path}: shape inference fails ({_line(error)}); check the file with onnx.checker"
            ) from None
        for value in inferred.value_info:
            kind = value.type.tensor_type
            self.types[value.name] = kind.elem_type
            if kind.HasField("shape"):
                self.shapes[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
