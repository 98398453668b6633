"""Reading model.onnx: the graph, and the metadata that says what it means."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from deploytool.errors import ArtefactError
from deploytool.runtime.graph import Graph, take_apart
from deploytool.runtime.library import CPL, LibraryNote, is_cpl, read_library
from deploytool.runtime.ranges import Ranges, read_ranges
from deploytool.runtime.reasoning import Reasoning, read_reasoning
from deploytool.runtime.saliency import SALIENCY, ExplainerNote, is_map, read_explainer
from deploytool.runtime.validation import check_graph, check_tensors

MAX_FILE_BYTES = 2**31 - 1  # a protobuf message holds no more
MAX_CLASSES = 1_000_000
MAX_IMAGE_VALUES = 1 << 26
MAX_WIDTHS = 64
SUBGRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)  # of If, Loop and Scan, which may never end


@dataclass(frozen=True)
class Metadata:
    """What a file says of itself.

    Attributes:
        name, method, recipe: name, training method and digest of the recipe.
        classes: class names in the order of the logits.
        shape: (C, H, W) of an image.
        mode: `L` or `RGB`, how an image file is read.
        conditional: whether the graph takes `lambda`.
        lam: the lambda of a specialised file, else None.
        widths: the widths that the file holds, ascending.
        lambda_threshold, conditioning, noise: as built in; None for a plain model.
        stored_sparse: whether weights are to be restored from sparse ones (`deploytool.export.compress`).
        ranges: of the activations, in a file to specialise that was exported with `--quantize int8`.
        precision: of a plain network: `int8`, `float32`, or None where the file does not say.
        reasoning: what the output `reasoning` means; None where the file has none.
        explainer: where the output `saliency` comes from; None where the file has none.
        library: where the output `cpl` comes from, and which images are doubtful; None where the file has none.
    """

    name: str
    method: str
    recipe: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mode: str
    conditional: bool
    lam: float | None
    widths: tuple[float, ...]
    lambda_threshold: float | None
    conditioning: str | None
    noise: str | None
    stored_sparse: bool = False
    ranges: Ranges | None = None
    precision: str | None = None
    reasoning: Reasoning | None = None
    explainer: ExplainerNote | None = None
    library: LibraryNote | None = None

    @property
    def fixed(self) -> bool:
        """Whether the graph takes nothing but images."""
        return not self.conditional and len(self.widths) == 1


@dataclass(frozen=True)
class Artefact:
    """An exported model in memory.

    Attributes:
        path: where it came from, for messages.
        graph: its graph, and what of it depends on no input already computed.
        properties: its metadata as they stand in the file.
        metadata: what they mean.
    """

    path: Path
    graph: Graph
    properties: dict[str, str]
    metadata: Metadata


def read_onnx(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read any ONNX file that keeps its weights inside.

    Raises:
        ArtefactError: it is absent, too large, no ONNX, damaged, or refers to files beside it.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ArtefactError(f"{file} has {size} bytes; a single ONNX file holds at most {MAX_FILE_BYTES}")
        data = file.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{file} cannot be read: {error.strerror}; give the path of a model.onnx") from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        model.Clear()
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise ArtefactError(f"{file} is no ONNX model, or it is damaged; make one with deploytool export")
    tensors = [*_tensors([model.graph]), *_node_tensors(node for function in model.functions for node in function.node)]
    external = [tensor.name for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if external:
        raise ArtefactError(f"{file} keeps weights in other files ({external[0]}); save it as one file")
    return model


def read_artefact(path: str | os.PathLike[str]) -> Artefact:
    """Read a file that `deploytool export` or `deploytool specialize` wrote.

    Raises:
        ArtefactError: as `read_onnx`, or the metadata is absent, damaged or does not fit the graph.
    """
    return artefact_of(Path(path), read_onnx(path))


def artefact_of(path: Path, model: onnx.ModelProto) -> Artefact:
    """Take a model apart into an artefact; `path` is for messages. Raises ArtefactError as `read_artefact` does."""
    metadata = read_metadata(path, model)
    nested = [node for node in model.graph.node if any(a.type in SUBGRAPHS for a in node.attribute)]
    if nested or model.functions or model.graph.sparse_initializer:
        what = nested[0].op_type if nested else "a function" if model.functions else "a sparse tensor"
        raise ArtefactError(f"{path} contains {what}, which deploytool never writes; export it again")
    try:
        check_tensors(model)
        graph = take_apart(model)
        check_graph(graph, metadata.widths)
    except Exception as error:  # whatever numpy, protobuf and onnx say of a damaged graph
        raise ArtefactError(f"{path}: damaged graph ({' '.join(str(error).split())[:160]}); export it again") from None
    return Artefact(path, graph, {p.key: p.value for p in model.metadata_props}, metadata)


def _tensors(graphs: Iterable[onnx.GraphProto]) -> Iterator[onnx.TensorProto]:
    """Every tensor of some graphs: initializers, attributes of nodes, and those of subgraphs."""
    for graph in graphs:
        yield from graph.initializer
        yield from _sparse_tensors(graph.sparse_initializer)
        yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            yield from _sparse_tensors((attribute.sparse_tensor, *attribute.sparse_tensors))
            yield from _tensors((attribute.g, *attribute.graphs))


def _sparse_tensors(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for tensor in tensors:
        yield from (tensor.values, tensor.indices)


def read_metadata(path: Path, model: onnx.ModelProto) -> Metadata:
    """Read and check a model's metadata; `path` is for messages. Raises ArtefactError."""
    pairs = [(p.key, p.value) for p in model.metadata_props]
    if not all(isinstance(text, str) for pair in pairs for text in pair):  # protobuf gives bytes for broken UTF-8
        raise ArtefactError(f"{path}: damaged metadata (not UTF-8); export it again")
    own = [key for key, _ in pairs if key.startswith("deploytool.")]
    doubled = [key for key, count in Counter(own).items() if count > 1]
    if doubled:
        name = " ".join(doubled[0].split())[:80]
        raise ArtefactError(f"{path}: damaged metadata ({name} stands there twice); export it again")
    properties = {key.removeprefix("deploytool."): value for key, value in pairs if key.startswith("deploytool.")}
    if "version" not in properties or "classes" not in properties:
        raise ArtefactError(f"{path} was not exported by deploytool (no deploytool.* metadata); use deploytool export")
    inputs = {value.name: value for value in model.graph.input}
    outputs = {value.name: value for value in model.graph.output}
    if "image" not in inputs or "logits" not in outputs:
        raise ArtefactError(f"{path} has no input `image` and output `logits`; export it again with deploytool export")
    dims = inputs["image"].type.tensor_type.shape.dim
    shape = tuple(dim.dim_value for dim in dims[1:])
    if len(shape) != 3 or not all(size > 0 for size in shape) or prod(shape) > MAX_IMAGE_VALUES:
        raise ArtefactError(
            f"{path}: input `image` must be (N, C, H, W) with fixed C, H, W, at most {MAX_IMAGE_VALUES} values; "
            f"got {str(shape)[:80]}"
        )
    try:
        classes = tuple(str(name) for name in _json(properties["classes"], list))
        mode = _json(properties["preprocessing"], dict)["mode"]
        lam, threshold = _number(properties.get("lambda")), _number(properties.get("lambda_threshold"))
        widths = tuple(_number(str(width)) or 0.0 for width in _json(properties.get("widths", "[1.0]"), list))
        ranges = read_ranges(properties["quantization"]) if "quantization" in properties else None
        reasoning = read_reasoning(dict(pairs), classes)
        explainer = read_explainer(dict(pairs))
        library = read_library(dict(pairs))
        if properties.get("precision") not in (None, "int8", "float32"):
            raise ValueError(f"precision {properties['precision'][:40]}")
        if properties.get("conditioning") not in (None, "switch", "interpolate"):
            raise ValueError(f"conditioning {properties['conditioning'][:40]}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ArtefactError(f"{path}: damaged metadata ({reason}); export it again") from None
    ascending = 1 <= len(widths) <= MAX_WIDTHS and all(widths) and list(widths) == sorted(set(widths))
    if not ascending or (len(widths) > 1) != ("width" in inputs):
        raise ArtefactError(f"{path}: metadata does not fit the graph (widths {str(widths)[:80]}); export it again")
    if not 2 <= len(classes) <= MAX_CLASSES or mode != ("L" if shape[0] == 1 else "RGB"):
        raise ArtefactError(f"{path}: metadata does not fit the graph (classes, colour mode); export it again")
    reasons = outputs.get("reasoning", onnx.ValueInfoProto()).type.tensor_type.shape.dim
    expected = [] if reasoning is None else [len(reasoning.labels)]
    if ("reasoning" in outputs) != bool(expected) or [dim.dim_value for dim in reasons[1:]] != expected:
        raise ArtefactError(f"{path}: metadata does not fit the graph (reasoning labels); export it again")
    drawn = SALIENCY in outputs
    if drawn != (explainer is not None) or (drawn and not is_map(outputs[SALIENCY], shape)):
        raise ArtefactError(f"{path}: metadata does not fit the graph (saliency maps); export it again")
    agreed = CPL in outputs
    if agreed != (library is not None) or (agreed and not is_cpl(outputs[CPL])):
        raise ArtefactError(f"{path}: metadata does not fit the graph (libraries); export it again")
    if library is not None and bool(library.lambdas) != ("lambda" in inputs or lam is not None):
        raise ArtefactError(f"{path}: metadata does not fit the graph (lambdas of libraries); export it again")
    thresholds = (0.0, 0.5) if any(t.name == "lambda_threshold" for t in model.graph.initializer) else (None,)
    if ranges is not None and not ranges.cover(thresholds, widths):
        raise ArtefactError(f"{path}: metadata does not fit the graph (activation ranges); export it again")
    return Metadata(
        name=properties.get("name", path.stem),
        method=properties.get("method", ""),
        recipe=properties.get("recipe", ""),
        classes=classes,
        shape=shape,
        mode=mode,
        conditional="lambda" in inputs,
        lam=lam,
        widths=widths,
        lambda_threshold=threshold,
        conditioning=properties.get("conditioning"),
        noise=properties.get("noise"),
        stored_sparse=properties.get("storage") == "sparse",
        ranges=ranges,
        precision=properties.get("precision"),
        reasoning=reasoning,
        explainer=explainer,
        library=library,
    )


def _json(text: str, kind: type) -> Any:
    value = json.loads(text)
    if not isinstance(value, kind):
        raise ValueError(f"expected a {kind.__name__}, got {text[:40]}")
    return value


def _number(text: str | None) -> float | None:
    if text is None:
        return None
    value = float(text)
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise ValueError(f"{text} is outside [0, 1]")
    return value
