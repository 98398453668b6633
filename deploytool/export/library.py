"""From the libraries of a run to the output `cpl` of its file.

    before:  image, lambda -> logits             hidden activities a_l are in between, and none of the outputs

    after:   f     = (Flatten(a_l)[index] - mean) / std                  index and modulation where asked for
             f'    = f / max(max |f|, tiny)
             h     = (f' W_l^T) / max(||f'||, tiny)                          similarities to M patterns (eq. 1)
             h_a   = TopK(h, k),  P_l = sum_a h_a C_l[a]                     connections C_l (M, K) (eq. 3)
             P     = Concat_l(P_l),  u_l = P_l / ||P_l|| as above
             cpl   = (||sum_l u_l||^2 - sum_l ||u_l||^2) / (L (L - 1))       (eq. 5)

A pattern of 0 gives h = 0, P_l = 0 and cosines of 0; what is divided by is never 0.

Libraries of several lambdas lie end to end, in one tensor; `lambda` chooses rows of it:

             c     = ArgMin(lambda > b)                                      b: what lies between two conditions
             W_l   = (Cast(codes) * scales)[rows[c]],   C_l = C_l,all[rows[c]]

so that a runtime that knows lambda folds the choice away and keeps the patterns of one. A pattern is a row, copied as a
whole where nothing is folded (columns took 10 to 20 times as long), and the product is a Gemm with `transB`. Where
batch norms switch, b is the file's `lambda_threshold`, and moves with it. Shapes must not depend on lambda, so the rows
of a smaller library are filled up with its first one, whose similarity is made less by 4: it is below -2, and is never
among the k largest.

Codes are stored as the libraries store them, in 4, 2 or 1 byte per value; a runtime computes with float32, and so does
a specialised file. Patterns contain every channel of their layer: where a file has libraries, no channel is cut.

Reference: J. H. Lee, Library network, a possible path to explainable neural networks, 2019 ("paper 4").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from deploytool.errors import InputError
from deploytool.export.backbone import backbone_to_onnx
from deploytool.export.heads import LOGITS
from deploytool.library.folder import Library
from deploytool.library.networks import TINY, LayerLibrary, consistency, predictions
from deploytool.library.recipe import LOGITS as LOGITS_LAYER
from deploytool.library.taps import JOINED, parts_of, watch_module
from deploytool.models.conditional import ConditionalModel
from deploytool.models.setting import Setting
from deploytool.runtime.library import CPL, Calibration, LibraryNote, boundaries, choose
from deploytool.training.run import Run

Array = np.ndarray[Any, Any]

PREFIX = "library/"
NETWORK = "network"
BELOW = -4.0  # added to similarities, in [-1, 1], of rows that fill up
BEYOND = 2.0  # above every lambda


@dataclass(frozen=True)
class Libraries:
    """The libraries of a run as part of a file.

    Attributes:
        library: what was built, and from what.
        layers: of each condition, the library of each layer.
        lambdas: those that the conditions were built at; none of a run that takes none.
        switches: whether the file's batch norms switch at its lambda threshold.
    """

    library: Library
    layers: tuple[tuple[LayerLibrary, ...], ...]
    lambdas: tuple[float, ...]
    switches: bool

    @property
    def active(self) -> int:
        """k of eq. 3."""
        return self.library.recipe.active

    @property
    def parts(self) -> list[str]:
        """The single layers whose activity is read."""
        return parts_of(layer.layer for layer in self.layers[0])

    def at(self, lam: float, lambda_threshold: float) -> tuple[LayerLibrary, ...]:
        """The libraries that answer at a lambda and threshold of the file."""
        if len(self.layers) == 1:
            return self.layers[0]
        return self.layers[choose(self.lambdas, lam, lambda_threshold if self.switches else None)]


def libraries_of(run: Run, library: Library, setting: Setting, narrow: Sequence[float] = ()) -> Libraries:
    """The libraries of a run, to go into its file.

    Args:
        run: a trained run.
        library: of this run, at the file's width.
        setting: of the file.
        narrow: further widths of the file.

    Raises:
        RunError: they are of another network.
        InputError: the file has another width or several, a layer has fewer patterns than are active, or there is a
            single layer, or no threshold.
    """
    width = library.recipe.width
    if narrow or setting.width != width:
        held = ", ".join(f"{each:g}" for each in (*narrow, setting.width))
        raise InputError(f"{library.path} has libraries of width {width:g}, the file of {held}; add --width {width:g}")
    library.open_target(run.path)
    switches = run.model.is_conditional and setting.conditioning == "switch"
    return make_libraries(library, switches)


def make_libraries(library: Library, switches: bool) -> Libraries:
    """Libraries whose network is known to be the right one; errors as `libraries_of`."""
    lambdas = tuple(lam for lam in library.lambdas if lam is not None)
    built = library.lambdas if len(library.conditions) > 1 else library.lambdas[:1]
    layers = tuple(tuple(library.at(lam)) for lam in built)
    if len(layers[0]) < 2:
        raise InputError(f"{library.path} has libraries of one layer, and consistency is between layers; build it of 2")
    for layer in (layer for each in layers for layer in each):
        layer.check_active(library.recipe.active)
    if len(library.calibration) != len(library.lambdas):
        raise InputError(f"{library.path} has no threshold for its verdicts; build it anew: deploytool library build")
    return Libraries(library, layers, lambdas, switches)


def library_note(libraries: Libraries, setting: Setting) -> LibraryNote:
    """What a file says of its libraries; `setting` is the file's."""
    library = libraries.library
    return LibraryNote(
        library.recipe.name,
        library.recipe.digest(),
        tuple(layer.title for layer in libraries.layers[0]),
        libraries.active,
        libraries.lambdas,
        setting.lambda_threshold if libraries.switches else None,
        tuple(Calibration(each.threshold, each.false_alarm_rate, each.images) for each in library.calibration),
    )


class _Watched(nn.Module):
    """A network whose hidden activities are further outputs."""

    def __init__(self, network: nn.Module, parts: Sequence[str]) -> None:
        super().__init__()
        self.add_module(NETWORK, network)
        self.parts = parts
        self.watched = watch_module(network, parts)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map image (N, C, H, W) to what the network answers, and activities (N, ...)."""
        answer, found = self.watched(image)
        return answer, *(found[part] for part in self.parts)


def watched_graph(network: nn.Module, shape: tuple[int, int, int], libraries: Libraries) -> onnx.ModelProto:
    """As `backbone_to_onnx`, of a network whose layers' activities are flattened, for `add_cpl`, beside its answer.

    Raises:
        InputError: a layer is unknown, never run, or gives no activity (N, ...) of numbers.
    """
    parts = [part for part in libraries.parts if part != LOGITS_LAYER]
    watched = _Watched(network, parts)
    with torch.no_grad():
        watched(torch.zeros(2, *shape))  # says what is wrong with a layer in one line; the exporter would in many
    model = backbone_to_onnx(watched, shape)
    graph = model.graph
    for tensor in graph.initializer:
        tensor.name = tensor.name.removeprefix(f"{NETWORK}.")
    for node in graph.node:
        node.name = node.name.removeprefix(f"{NETWORK}.")
        node.input[:] = [name.removeprefix(f"{NETWORK}.") for name in node.input]
    answer, *activities = [output.name for output in graph.output]
    del graph.output[1:]
    for part, name in zip(parts, activities, strict=True):
        graph.node.append(helper.make_node("Flatten", [name], [_flat(part)], _flat(part), axis=1))
    if answer != LOGITS:  # it is a layer's activity, too, and was named after that
        _rename(graph, answer, LOGITS)
    return model


def _flat(part: str) -> str:
    return f"{PREFIX}{part}"


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for output in graph.output:
        output.name = new if output.name == old else output.name


def add_cpl(model: onnx.ModelProto, libraries: Libraries) -> None:
    """Add the output `cpl` to the graph of a network, in place.

    Args:
        model: as `watched_graph` returned it, its heads split and its conditions added since.
        libraries: those that the graph was watched for.
    """
    graph = model.graph
    if LOGITS_LAYER in libraries.parts:
        graph.node.append(helper.make_node("Flatten", [LOGITS], [_flat(LOGITS_LAYER)], _flat(LOGITS_LAYER), axis=1))
    builder = _Builder(graph, libraries)
    inputs = [builder.predictions(place) for place in range(len(libraries.layers[0]))]
    builder.consistency(inputs)
    output = helper.make_tensor_value_info(CPL, TensorProto.FLOAT, [None])
    output.type.tensor_type.shape.dim[0].CopyFrom(graph.output[0].type.tensor_type.shape.dim[0])
    graph.output.append(output)


class _Builder:
    """Appends nodes and initializers to a graph."""

    def __init__(self, graph: onnx.GraphProto, libraries: Libraries) -> None:
        self.graph = graph
        self.libraries = libraries
        self.tiny = self.constant("tiny", np.array(TINY, np.float32))
        self.condition = self.which() if len(libraries.layers) > 1 else None

    def constant(self, name: str, value: Array | Tensor) -> str:
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        self.graph.initializer.append(numpy_helper.from_array(array, PREFIX + name))
        return PREFIX + name

    def axes(self, *values: int) -> str:
        name = "axes" + "".join(map(str, values))
        if not any(tensor.name == PREFIX + name for tensor in self.graph.initializer):
            self.constant(name, np.array(values, np.int64))
        return PREFIX + name

    def node(self, op: str, inputs: Sequence[str], name: str, more: Sequence[str] = (), **attributes: Any) -> str:
        outputs = [PREFIX + each if each != CPL else CPL for each in (name, *more)]
        self.graph.node.append(helper.make_node(op, inputs, outputs, outputs[0], **attributes))
        return outputs[0]

    def which(self) -> str:
        """The index of the condition that answers at lambda, as `deploytool.runtime.library.choose` says."""
        known = self.libraries.lambdas
        pairs = [*zip(known, known[1:], boundaries(known, None), strict=False), (BEYOND,) * 3]
        low, high, middle = (np.array(values, np.float32) for values in zip(*pairs, strict=True))
        boundary = self.constant("middle", middle)
        if self.libraries.switches:
            upper = self.node("Greater", [self.constant("high", high), "lambda_threshold"], "below_high")
            lower = self.node("Greater", [self.constant("low", low), "lambda_threshold"], "below_low")
            inside = self.node("Where", [lower, boundary, "lambda_threshold"], "above_low")
            boundary = self.node("Where", [upper, inside, boundary], "boundaries")
        above = self.node("Greater", ["lambda", boundary], "above")
        whole = self.node("Cast", [above], "passed", to=TensorProto.INT32)
        return self.node("ArgMin", [whole], "condition", axis=0, keepdims=0)

    def chosen(self, name: str, values: Sequence[Any]) -> str:
        """The tensor of the condition in use, of one for each of them."""
        arrays = [np.asarray(value) for value in values]
        if self.condition is None or all(np.array_equal(array, arrays[0]) for array in arrays):
            return self.constant(name, arrays[0])
        stored = self.constant(f"{name}.all", np.stack(arrays))
        return self.node("Gather", [stored, self.condition], name, axis=0)

    def predictions(self, place: int) -> str:
        """P of a layer, (N, 1, K), eq. 3."""
        layers = [each[place] for each in self.libraries.layers]
        stem = f"{place}."
        pattern, length = self.unit(self.pattern(layers, stem), f"{stem}pattern", 1)
        sizes = [len(layer) for layer in layers]
        rows, below = self.rows(sizes, stem)
        stored = self.patterns(layers, stem)
        connections = self.constant(f"{stem}connections", torch.cat([layer.connections for layer in layers]))
        if rows is not None:
            stored = self.node("Gather", [stored, rows], f"{stem}patterns.chosen", axis=0)
            connections = self.node("Gather", [connections, rows], f"{stem}connections.chosen", axis=0)
        products = self.node("Gemm", [pattern, stored], f"{stem}products", transB=1)
        similarity = self.node("Div", [products, length], f"{stem}similarity")
        if below is not None:
            similarity = self.node("Add", [similarity, below], f"{stem}similarity.own")
        count = self.constant(f"{stem}active", np.array([self.libraries.active], np.int64))
        near = self.node("TopK", [similarity, count], f"{stem}near", [f"{stem}nodes"], axis=1, largest=1, sorted=1)
        own = self.node("Gather", [connections, f"{PREFIX}{stem}nodes"], f"{stem}connections.near", axis=0)
        row = self.node("Unsqueeze", [near, self.axes(1)], f"{stem}row")
        return self.node("MatMul", [row, own], f"{stem}prediction")

    def pattern(self, layers: Sequence[LayerLibrary], stem: str) -> str:
        """The pattern of a layer's activity, (N, F)."""
        parts = [_flat(part) for part in layers[0].layer.split(JOINED)]
        value = parts[0] if len(parts) == 1 else self.node("Concat", parts, f"{stem}activity", axis=1)
        readings = [layer.reading for layer in layers]
        if readings[0].index is not None:
            places = self.chosen(f"{stem}index", [each.index for each in readings])
            value = self.node("Gather", [value, places], f"{stem}sampled", axis=1)
        if readings[0].mean is not None:
            mean = self.chosen(f"{stem}mean", [each.mean for each in readings])
            std = self.chosen(f"{stem}std", [each.std for each in readings])
            value = self.node("Div", [self.node("Sub", [value, mean], f"{stem}centred"), std], f"{stem}modulated")
        return value

    def patterns(self, layers: Sequence[LayerLibrary], stem: str) -> str:
        """The stored patterns of all conditions, (sum of M, F) float32, each of length 1."""
        codes = torch.cat([layer.codes for layer in layers])
        scales = torch.cat([layer.scales for layer in layers])[:, None]
        if codes.dtype == torch.float32:
            return self.constant(f"{stem}patterns", codes * scales)
        whole = self.node("Cast", [self.constant(f"{stem}codes", codes)], f"{stem}cast", to=TensorProto.FLOAT)
        return self.node("Mul", [whole, self.constant(f"{stem}scales", scales)], f"{stem}patterns")

    def rows(self, sizes: Sequence[int], stem: str) -> tuple[str | None, str | None]:
        """Which stored patterns are those of the condition in use, and what is added to their similarities."""
        if self.condition is None:
            return None, None
        most = max(sizes)
        starts = np.cumsum([0, *sizes[:-1]])
        place = np.arange(most)
        table = [start + np.where(place < size, place, 0) for start, size in zip(starts, sizes, strict=True)]
        rows = self.chosen(f"{stem}rows", table)
        if min(sizes) == most:
            return rows, None
        fill = [np.where(place < size, 0, BELOW).astype(np.float32) for size in sizes]
        return rows, self.chosen(f"{stem}fill", fill)

    def unit(self, value: str, name: str, axis: int) -> tuple[str, str]:
        """A tensor whose largest magnitude along an axis is 1, or it is 0; and its length, never 0, to divide by."""
        axes = self.axes(axis)
        largest = self.node("ReduceMax", [self.node("Abs", [value], f"{name}.abs"), axes], f"{name}.max", keepdims=1)
        scaled = self.node("Div", [value, self.node("Max", [largest, self.tiny], f"{name}.safe")], f"{name}.scaled")
        squares = self.node("Mul", [scaled, scaled], f"{name}.squares")
        total = self.node("ReduceSum", [squares, axes], f"{name}.sum", keepdims=1)
        length = self.node("Max", [self.node("Sqrt", [total], f"{name}.root"), self.tiny], f"{name}.length")
        return scaled, length

    def consistency(self, inputs: Sequence[str]) -> None:
        """Eq. 5 of the layers' predictions (N, 1, K) each."""
        count = len(inputs)
        scaled, length = self.unit(self.node("Concat", inputs, "predictions", axis=1), "directions", 2)
        units = self.node("Div", [scaled, length], "units")
        total = self.node("ReduceSum", [units, self.axes(1)], "together", keepdims=0)
        together = self.node(
            "ReduceSum", [self.node("Mul", [total, total], "together.squares"), self.axes(1)], "all", keepdims=0
        )
        each = self.node(
            "ReduceSum", [self.node("Mul", [units, units], "units.squares"), self.axes(1, 2)], "each", keepdims=0
        )
        share = self.constant("share", np.array(1 / (count * (count - 1)), np.float32))
        self.node("Mul", [self.node("Sub", [together, each], "pairs"), share], CPL)


def chosen_nodes(proto: onnx.ModelProto, layers: int) -> list[str]:
    """Make the nodes that a file with libraries chooses its outputs, too, in place; similarities, indices by turns."""
    names = [f"{PREFIX}{place}.{kind}" for place in range(layers) for kind in ("near", "nodes")]
    kinds = (TensorProto.FLOAT, TensorProto.INT64)
    for number, name in enumerate(names):
        proto.graph.output.append(helper.make_tensor_value_info(name, kinds[number % 2], None))
    return names


@torch.no_grad()
def expected_cpl(
    model: ConditionalModel, at: Setting, images: Tensor, libraries: Libraries, chosen: Sequence[Array]
) -> tuple[Tensor, float]:
    """CPL by torch, and how far the similarities of a file's nodes are from the model's.

    Of two stored patterns that are equally near but for rounding, either may be among the k nearest, and their
    connections need not be alike. So the nodes are the file's own, as long as they are as near as any others.

    Args:
        model: the trained model.
        at: lambda, threshold, width and noise.
        images: (N, C, H, W).
        libraries: those of the file.
        chosen: what the file gives for `chosen_nodes`.

    Returns:
        (N,), and the largest difference between the k largest similarities, or those of the file's nodes, and what the
        file says of them.
    """
    network = model.plain_network(at)
    _, found = watch_module(network, [layer.layer for layer in libraries.layers[0]])(images)
    inputs, worst = [], 0.0
    for place, layer in enumerate(libraries.at(at.lam, at.lambda_threshold)):
        near, nodes = (torch.from_numpy(np.array(each)) for each in chosen[2 * place : 2 * place + 2])
        pattern = layer.reading(found[layer.layer]).double()
        stored = layer.codes.double() * layer.scales[:, None]
        similarity = torch.nn.functional.normalize(pattern, dim=1, eps=TINY) @ stored.T
        if int(nodes.max()) >= len(layer):
            return torch.full((len(images),), torch.nan), torch.inf
        own = similarity.gather(1, nodes)
        for other in (own, similarity.topk(libraries.active).values):
            worst = float(np.maximum(worst, float((other - near).abs().max())))  # NaN stays
        inputs.append(predictions(own.float(), layer.connections[nodes]))
    return consistency(inputs), worst
