"""Partial evaluation: from a graph with `lambda` as an input to a plain network for one lambda.

    before:  lambda, theta, noise_table ...  --(Slice, Mul, Add, Where, Split ...)-->  theta.hat, gamma, beta, ...
             Conv(x, theta.hat) -> BatchNormalization(., gamma, beta, mean, var)

    after:   Conv(x, W, B)       W = theta.hat * a,   B = beta + (bias - mean) * a,   a = gamma / sqrt(var + epsilon)

Nodes that depend on no image are computed once in numpy, so that the result is the same bits on every machine of one
numpy; then batch norms fold into the convolutions before them, and what the wanted outputs do not need is dropped.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from deploytool.errors import ArtefactError, InputError
from deploytool.models.setting import as_single, check_lambda, check_threshold_value, check_width
from deploytool.runtime.artefact import Artefact
from deploytool.runtime.graph import Graph, assemble, select_outputs
from deploytool.runtime.library import CPL, LIBRARY
from deploytool.runtime.operators import MAX_HELD_BYTES, OPERATORS, evaluate_node
from deploytool.runtime.quantized import int8_weights, quantized_graph, with_pooled_means
from deploytool.runtime.ranges import PRECISION, QUANTIZATION, Precision
from deploytool.runtime.reasoning import LABELS, THRESHOLD, VECTORS
from deploytool.runtime.saliency import EXPLAINER, SALIENCY
from deploytool.runtime.validation import check_graph

Array = np.ndarray[Any, Any]


def specialized_model(
    artefact: Artefact,
    lam: float | None,
    lambda_threshold: float | None = None,
    width: float | None = None,
    outputs: Sequence[str] | None = None,
    precision: Precision | None = None,
) -> onnx.ModelProto:
    """Return the plain model of one lambda and width.

    Its metadata say so, as `deploytool.lambda`, `.widths` and `.precision`.

    Args:
        artefact: a conditional or slimmable model, or one whose weights are stored sparse: the result's are not.
        lam: lambda in [0, 1]; None where the model takes none.
        lambda_threshold: 0 or 0.5, used instead of the file's own.
        width: one of the file's; the widest where None.
        outputs: the outputs to keep, all where None; nodes that only others need are dropped.
        precision: `int8` or `float32`; int8 where None and the file has activation ranges.

    Raises:
        InputError: lambda, threshold or width is out of range, or the model takes none; the file has no ranges.
        ArtefactError: the graph is damaged and cannot be evaluated.
    """
    if artefact.metadata.fixed and not artefact.metadata.stored_sparse:
        raise InputError(f"{artefact.path} has no input `lambda` and no `width`: it is a plain model already")
    lam, width = check_file_lambda(artefact, lam), check_file_width(artefact, width)
    if lambda_threshold is not None:
        check_threshold(artefact, lambda_threshold)
    outputs, precision = check_outputs(artefact, outputs), check_precision(artefact, precision)
    graph = specialized_graph(artefact, lam, lambda_threshold, width, outputs, precision)
    reasons = () if "reasoning" in outputs else (LABELS, VECTORS, THRESHOLD)
    maps = () if SALIENCY in outputs else (EXPLAINER,)
    libraries = () if CPL in outputs else (LIBRARY,)
    dropped = "deploytool.storage", QUANTIZATION, *reasons, *maps, *libraries
    properties = {key: value for key, value in artefact.properties.items() if key not in dropped}
    properties[PRECISION] = precision
    if len(artefact.metadata.widths) > 1:
        properties["deploytool.widths"] = json.dumps([width])
    if lam is not None:
        properties["deploytool.lambda"] = json.dumps(lam)
    if lambda_threshold is not None:
        properties["deploytool.lambda_threshold"] = json.dumps(float(lambda_threshold))
    return assemble(graph, properties)


def specialized_graph(
    artefact: Artefact,
    lam: float | None,
    lambda_threshold: float | None,
    width: float,
    outputs: Sequence[str] | None = None,
    precision: Precision | None = None,
) -> Graph:
    """The graph of `specialized_model`; arguments as there, already checked. Raises ArtefactError.

    The artefact's graph may have been evaluated in part before; a threshold that it was evaluated with is to be named
    here too, since activation ranges depend on it.
    """
    metadata = artefact.metadata
    knobs = {"lambda": lam, "width": width, "lambda_threshold": lambda_threshold}
    given = {name: np.array(value, np.float32) for name, value in knobs.items() if value is not None}
    try:
        graph = artefact.graph if outputs is None else select_outputs(artefact.graph, outputs)
        graph = fold_batch_norms(evaluate(graph, given))
        if metadata.ranges is not None and precision != "float32":
            threshold = metadata.lambda_threshold if lambda_threshold is None else lambda_threshold
            graph = quantized_graph(with_pooled_means(graph), metadata.ranges.at(lam, threshold, width))
        check_graph(graph)
        return graph
    except Exception as error:  # whatever numpy and protobuf say of a damaged graph
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ArtefactError(f"{artefact.path} cannot be specialised ({reason}); export it again") from None


def check_file_lambda(artefact: Artefact, lam: float | None) -> float | None:
    """Return lambda if the model accepts it, None where it takes none; raise InputError otherwise."""
    metadata, path = artefact.metadata, artefact.path
    if not metadata.conditional:
        if lam is not None and (metadata.lam is None or as_single(check_lambda(lam)) != as_single(metadata.lam)):
            made = f"specialised for {metadata.lam:g}" if metadata.lam is not None else "plain"
            raise InputError(f"lambda (={lam}) was given, but {path} is {made}; leave it out")
        return None
    if lam is None:
        raise InputError(f"{path} needs a lambda in [0, 1]; 0 is for clean images, 1 for attacked ones")
    return check_lambda(lam)


def check_file_width(artefact: Artefact, width: float | None) -> float:
    """Return a width that the file holds, the widest where None; raise InputError otherwise."""
    widths = artefact.metadata.widths
    if width is None:
        return widths[-1]
    width = check_width(width)
    if width not in widths:
        known = ", ".join(f"{each:g}" for each in widths)
        raise InputError(f"width (={width:g}) is not in {artefact.path}; it holds {known}")
    return width


def check_threshold(artefact: Artefact, threshold: float) -> float:
    """Return a lambda threshold that the file can be run with: 0 or 0.5.

    Raises:
        InputError: another value, or the file's conditioning has no threshold.
    """
    if "lambda_threshold" not in artefact.graph.constants:
        raise InputError(f"{artefact.path} has no lambda threshold (conditioning {artefact.metadata.conditioning})")
    return check_threshold_value(threshold)


def file_precisions(artefact: Artefact) -> tuple[Precision, ...]:
    """The precisions that the file's plain networks can have, the fastest first."""
    if artefact.metadata.precision == "int8":
        return ("int8",)
    return ("float32",) if artefact.metadata.ranges is None else ("int8", "float32")


def check_precision(artefact: Artefact, precision: str | None) -> Precision:
    """Return a precision that the file's plain networks can have; the faster one where None.

    Raises:
        InputError: another one, the file has no activation ranges for INT8, or is an INT8 network already.
    """
    can = file_precisions(artefact)
    if precision is not None and precision not in ("int8", "float32"):
        raise InputError(f"precision (={precision!r}) must be int8 or float32")
    if precision is not None and precision not in can:
        reason = "has no activation ranges" if precision == "int8" else "is an int8 network"
        advice = " with --quantize int8" if precision == "int8" else ""
        raise InputError(f"{artefact.path} {reason}, so its precision cannot be {precision}; export it again{advice}")
    return next(each for each in can if precision in (None, each))


def check_outputs(artefact: Artefact, outputs: Sequence[str] | None) -> tuple[str, ...]:
    """Return names of outputs that the file has, at least one, all where None; raise InputError otherwise."""
    known = [value.name for value in artefact.graph.outputs]
    if outputs is None:
        return tuple(known)
    outputs = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    unknown = [name for name in outputs if name not in known]
    if unknown or not outputs:
        wrong = f"output {unknown[0]!r} is not in {artefact.path}" if unknown else "no output was named"
        raise InputError(f"{wrong}; it has {', '.join(known)}")
    return outputs


def evaluate(graph: Graph, given: Mapping[str, Array] | None = None) -> Graph:
    """Compute every node that depends on constants and on `given` alone.

    Args:
        graph: any graph; operators that numpy does not compute here stay, with all that depends on them, and so does
            the DequantizeLinear of a weight in an INT8 network.
        given: values by name for some inputs, or for constants to override.

    Returns:
        The nodes that remain, and the constants that they read.

    Raises:
        ValueError and other errors of numpy: the graph is damaged, or its tensors are over `MAX_HELD_BYTES`.
    """
    given = given or {}
    values = {**graph.constants, **given}
    kept = int8_weights(graph)
    held = sum(value.nbytes for value in values.values())
    reads = Counter(name for node in graph.nodes for name in node.input)
    reads.update(value.name for value in graph.outputs)
    rest: list[onnx.NodeProto] = []
    for node in graph.nodes:
        known = all(name in values for name in node.input if name) and kept.isdisjoint(node.output)
        if node.domain or node.op_type not in OPERATORS or not known:
            rest.append(node)
            continue
        results = evaluate_node(node, [values[name] if name else None for name in node.input])
        values.update((name, result) for name, result in zip(node.output, results, strict=True) if name)
        held += sum(result.nbytes for result in results)
        if held > MAX_HELD_BYTES:
            raise ValueError(f"tensors of {held} bytes are too large")
        for name in node.input:  # what nobody reads again makes room at once: weights are large
            reads[name] -= 1
            if not reads[name] and name in values:
                held -= values.pop(name).nbytes
    used = {name for node in rest for name in node.input} | {value.name for value in graph.outputs}
    return replace(
        graph,
        nodes=tuple(rest),
        constants={name: value for name, value in values.items() if name in used},
        inputs=tuple(value for value in graph.inputs if value.name not in given),
    )


def fold_batch_norms(graph: Graph) -> Graph:
    """Fold each BatchNormalization into the Conv that alone feeds it, where all their tensors are constant.

    A batch norm that follows anything else (as in pre-activation networks), or a convolution whose output is read
    elsewhere too, stays as it is.
    """
    constants = dict(graph.constants)
    outputs = {value.name for value in graph.outputs}
    readers = Counter(name for node in graph.nodes for name in node.input)
    producer = {name: node for node in graph.nodes for name in node.output}
    replaced: dict[int, onnx.NodeProto] = {}
    dropped: set[int] = set()
    for node in graph.nodes:
        if not is_inference_norm(node):
            continue
        conv = producer.get(node.input[0])
        if conv is None or conv.op_type != "Conv" or readers[node.input[0]] != 1 or conv.output[0] in outputs:
            continue
        if not all(name in constants for name in [*conv.input[1:], *node.input[1:]]):
            continue
        replaced[id(conv)] = _folded(conv, node, constants)
        dropped.add(id(node))
        for name in [*conv.input[1:], *node.input[1:]]:
            readers[name] -= 1
            if not readers[name] and name not in outputs:
                del constants[name]
    nodes = tuple(replaced.get(id(node), node) for node in graph.nodes if id(node) not in dropped)
    return replace(graph, nodes=nodes, constants=constants)


@np.errstate(all="ignore")
def _folded(conv: onnx.NodeProto, norm: onnx.NodeProto, constants: dict[str, Array]) -> onnx.NodeProto:
    a, shift = norm_scale_and_shift(norm, constants)
    weight = constants[conv.input[1]]
    shape = (-1,) + (1,) * (weight.ndim - 1)
    stem = conv.name or conv.output[0]
    if f"{stem}.weight.folded" in constants:  # two nodes of one name: weights that are used twice
        stem = conv.output[0]
    names = f"{stem}.weight.folded", f"{stem}.bias.folded"
    constants[names[0]] = weight * a.reshape(shape)
    constants[names[1]] = shift + constants[conv.input[2]] * a if len(conv.input) > 2 else shift
    folded = onnx.NodeProto()
    folded.CopyFrom(conv)
    folded.input[:] = [conv.input[0], *names]
    folded.output[:] = [norm.output[0]]
    return folded


def is_inference_norm(node: onnx.NodeProto) -> bool:
    """Whether a node is a BatchNormalization that uses the statistics it is given."""
    if node.op_type != "BatchNormalization" or len([name for name in node.output if name]) != 1:
        return False
    return not any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)


@np.errstate(all="ignore")  # a damaged weight is found where logits are checked
def norm_scale_and_shift(norm: onnx.NodeProto, constants: Mapping[str, Array]) -> tuple[Array, Array]:
    """What a BatchNormalization in evaluation mode does to x: `a * x + shift`, two arrays (C,) float32."""
    gamma, beta, mean, variance = (constants[name] for name in norm.input[1:])
    epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
    a = gamma / np.sqrt(variance + np.float32(epsilon))
    return a, beta - mean * a
