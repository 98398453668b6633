"""onnxruntime's optimised graph, learned once and fed with the weights of any setting.

    before:  for each setting: parse, copy the weights, optimise, reorder the weights into blocks of channels
    after:   once for each width: optimise a graph whose weights are numbered 1, 2, 3 ..., and see where each number
             went; then for each setting: arrange its weights the same way and bind them as inputs of the one session

The settings of a file differ in their weights alone, so the optimised graph is the same for all of them. Numbers are
stored as the bit patterns of float32, which reorders copy and arithmetic does not: an optimisation that computes with
weights is noticed, and the network is then opened as a session of its own. No constant of onnxruntime is known here
but the blocked layouts themselves (NCHWc: "OIHWBiBo" and "OIHWBo"), and a layout is used only where it explains every
number.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from deploytool.errors import ArtefactError
from deploytool.runtime.graph import Graph, assemble, take_apart
from deploytool.runtime.network import FedNetwork, open_graph, open_session, session_options
from deploytool.runtime.partial import is_inference_norm, norm_scale_and_shift

Array = np.ndarray[Any, Any]

BLOCKS = (16, 8, 4)
ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class Arrangement:
    """How a tensor of the optimised graph comes from a constant of the plain one.

    Attributes:
        source: name of the constant.
        shape: of the tensor; larger than the constant's where channels are filled up with zeros to whole blocks.
        block: channels in a block; 0 where the tensor is the constant, filled up.
        both: whether input channels are in blocks too ("OIHWBiBo"), or output channels alone ("OIHWBo").
    """

    source: str
    shape: tuple[int, ...]
    block: int
    both: bool

    def apply(self, constant: Array) -> Array:
        """Arrange a constant; the result is C-contiguous and aligned."""
        filled = constant
        if constant.shape != self.shape:
            filled = np.zeros(self.shape, constant.dtype)
            filled[tuple(slice(size) for size in constant.shape)] = constant
        result = _aligned(self.shape, constant.dtype)
        if not self.block:
            result[...] = filled
        elif self.both:
            outs, ins, *window = self.shape
            split = filled.reshape(outs // self.block, self.block, ins // self.block, self.block, *window)
            blocks = split.transpose(0, 2, 4, 5, 3, 1)
            result.reshape(blocks.shape)[...] = blocks
        else:
            outs, *rest = self.shape
            blocks = filled.reshape(outs // self.block, self.block, *rest).transpose(0, 2, 3, 4, 1)
            result.reshape(blocks.shape)[...] = blocks
        return result


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array at the start of a cache line, as onnxruntime's own are: others cost 2 to 4 % of an inference."""
    size = prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + size].view(dtype).reshape(shape)


@dataclass
class Layout:
    """The optimised graph of a network and how to feed it.

    Attributes:
        graph: optimised, without the fed tensors among its constants.
        model: its ONNX file's bytes, the fed tensors being inputs.
        arrangements: by name of the fed tensor.
        fixed: constants of the plain graph that are built in; a network with other ones has another layout.
    """

    graph: Graph
    model: bytes
    arrangements: dict[str, Arrangement]
    fixed: dict[str, Array]
    sessions: dict[int, onnxruntime.InferenceSession] = field(default_factory=dict)

    def fits(self, graph: Graph) -> bool:
        """Whether a plain graph, of the structure that was learned, can be fed."""
        return all(np.array_equal(value, graph.constants.get(name, ())) for name, value in self.fixed.items())

    def arrange(self, graph: Graph) -> dict[str, Array]:
        """The tensors to feed for a plain graph."""
        constants = _norms_as_convolutions(graph).constants
        return {name: each.apply(constants[each.source]) for name, each in self.arrangements.items()}

    def keep_session(self, threads: int) -> None:
        """Let go of sessions of other numbers of threads, which were opened to be measured."""
        self.sessions = {count: session for count, session in self.sessions.items() if count == threads}

    def network(self, constants: Mapping[str, Array], threads: int, name: str) -> FedNetwork:
        """A network of arranged tensors, as `arrange` returns them."""
        if threads not in self.sessions:
            options = session_options(threads)
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            self.sessions[threads] = open_session(self.model, threads, name, options=options)
        return FedNetwork(self.sessions[threads], constants, [value.name for value in self.graph.outputs], name)


def learn_layout(graph: Graph, stored: Mapping[str, Array], name: str) -> Layout | None:
    """Learn the optimised graph of a plain network.

    Args:
        graph: a specialised graph, batch norms folded.
        stored: constants that all settings have in common; small ones among them are built in.
        name: of the model, for messages.

    Returns:
        The layout, or None where onnxruntime computes with the weights, arranges them in a way not known here, or
        refuses the graph, and where there is no folder to write its graph to for a moment.
    """
    graph = _norms_as_convolutions(graph)
    numbered: dict[str, Array] = {}
    starts: dict[str, int] = {}
    count = 1
    for key, value in graph.constants.items():
        if value.dtype == np.float32 and (key not in stored or value.size >= BLOCKS[0]):
            starts[key] = count
            numbered[key] = np.arange(count, count + value.size, dtype=np.uint32).view(np.float32).reshape(value.shape)
            count += value.size
    fixed = {key: value for key, value in graph.constants.items() if key not in numbered}
    arrangements: dict[str, Arrangement] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="deploytool-") as folder:
            optimized = _optimized(replace(graph, constants={**fixed, **numbered}), Path(folder), name)
            for key, value in optimized.constants.items():
                if value.dtype != np.float32 or _is_built_in(value, fixed):
                    continue
                arrangement = _explain(value, starts, numbered)
                if arrangement is None:
                    return None
                arrangements[key] = arrangement
            model = assemble(optimized, fed=arrangements).SerializeToString()
    except (ArtefactError, OSError):
        return None
    rest = {key: value for key, value in optimized.constants.items() if key not in arrangements}
    return Layout(replace(optimized, constants=rest), model, arrangements, fixed)


def _norms_as_convolutions(graph: Graph) -> Graph:
    """What onnxruntime makes of a batch norm that no convolution takes in, made here, where its numbers show.

    before:  BatchNormalization(x, gamma, beta, mean, var)
    after:   Conv(x, a, beta - mean * a), 1 x 1 and each channel by itself;   a = gamma / sqrt(var + epsilon)
    """
    constants, nodes = dict(graph.constants), []
    for node in graph.nodes:
        if not is_inference_norm(node) or not all(name in constants for name in node.input[1:]):
            nodes.append(node)
            continue
        a, shift = norm_scale_and_shift(node, constants)
        names = f"{node.output[0]}.scale", f"{node.output[0]}.shift"
        constants |= {names[0]: a.reshape(-1, 1, 1, 1), names[1]: shift}
        conv = helper.make_node("Conv", [node.input[0], *names], [node.output[0]], kernel_shape=[1, 1], group=a.size)
        nodes.append(conv)
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.outputs}
    return replace(graph, nodes=tuple(nodes), constants={k: v for k, v in constants.items() if k in used})


def _optimized(graph: Graph, folder: Path, name: str) -> Graph:
    """The graph as onnxruntime would run it, its large constants mapped from a file in the folder."""
    options, file = session_options(1), folder / "optimized.onnx"
    options.optimized_model_filepath = str(file)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    open_graph(graph, name, options)
    model = onnx.ModelProto()
    model.ParseFromString(file.read_bytes())
    mapped: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            kind, shape = helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
            mapped[tensor.name] = np.memmap(folder / "weights", kind, "r", int(place["offset"]), shape)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in mapped]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    small = take_apart(model)
    return replace(small, constants={**small.constants, **mapped})


def _explain(tensor: Array, starts: Mapping[str, int], numbered: Mapping[str, Array]) -> Arrangement | None:
    """The arrangement that makes a tensor of numbers, or None."""
    first = int(tensor.view(np.uint32).flat[0])
    source = next((key for key, start in starts.items() if start <= first < start + numbered[key].size), None)
    if source is None:
        return None
    bits, constant = tensor.view(np.uint32), numbered[source]
    candidates = _arrangements(source, constant, tensor.shape)
    return next((each for each in candidates if np.array_equal(each.apply(constant).view(np.uint32), bits)), None)


def _is_built_in(tensor: Array, fixed: Mapping[str, Array]) -> bool:
    """Whether a tensor is a constant that is not fed, as it stands or arranged."""
    return any(
        np.array_equal(each.apply(constant), tensor)
        for name, constant in fixed.items()
        for each in _arrangements(name, constant, tensor.shape)
    )


def _arrangements(source: str, constant: Array, shape: tuple[int, ...]) -> list[Arrangement]:
    """The ways to make a tensor of a shape from a constant, filled up where it is smaller."""
    if len(shape) != constant.ndim or any(size < own for size, own in zip(shape, constant.shape, strict=True)):
        return []
    found = [Arrangement(source, shape, 0, False)]
    if len(shape) == 4:
        blocks = [block for block in BLOCKS if shape[0] % block == 0]
        found += [Arrangement(source, shape, block, False) for block in blocks]
        found += [Arrangement(source, shape, block, True) for block in blocks if shape[1] % block == 0]
    return found
