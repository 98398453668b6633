"""Partial evaluation: from a graph with `lambda` as an input to a plain network for one lambda.

    before:  lambda, theta, noise_table ...  --(Slice, Mul, Add, Where, Split ...)-->  theta.hat, gamma, beta, ...
             Conv(x, theta.hat) -> BatchNormalization(., gamma, beta, mean, var)

    after:   Conv(x, W, B)       W = theta.hat * a,   B = beta + (bias - mean) * a,   a = gamma / sqrt(var + epsilon)

Nodes that depend on no image are computed once with the ONNX reference implementation (numpy), so that the result
is the same bits on every machine of one numpy; then batch norms fold into the convolutions before them.
"""

import json
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deploytool.errors import ArtefactError, InputError
from deploytool.models.setting import check_lambda, check_threshold_value, check_width
from deploytool.runtime.artefact import Artefact

Array = np.ndarray[Any, Any]

KNOBS = frozenset({"lambda", "width"})
RANDOM_OPS = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
        "Dropout",
    }
)


def specialized_model(
    artefact: Artefact, lam: float | None, lambda_threshold: float | None = None, width: float | None = None
) -> onnx.ModelProto:
    """Return the plain model of one lambda and width, its metadata saying so as `deploytool.lambda` and `.widths`.

    Args:
        artefact: a conditional or slimmable model.
        lam: lambda in [0, 1]; None where the model takes none.
        lambda_threshold: 0 or 0.5, used instead of the file's own.
        width: one of the file's; the widest where None.

    Raises:
        InputError: lambda, threshold or width is out of range, or the model takes none.
        ArtefactError: the graph is damaged and cannot be evaluated.
    """
    if artefact.metadata.fixed:
        raise InputError(f"{artefact.path} has no input `lambda` and no `width`: it is a plain model already")
    lam, width = check_file_lambda(artefact, lam), check_file_width(artefact, width)
    constants = {tensor.name: tensor for tensor in artefact.model.graph.initializer}
    for name, value in (("lambda", lam), ("width", width)):
        if value is not None:
            constants[name] = numpy_helper.from_array(np.array(value, np.float32), name)
    if lambda_threshold is not None:
        threshold = check_threshold(artefact, lambda_threshold)
        constants["lambda_threshold"] = numpy_helper.from_array(np.array(threshold, np.float32), "lambda_threshold")
    try:
        return _plain_model(artefact, constants, lam, lambda_threshold, width)
    except Exception as error:  # whatever numpy, protobuf and the reference implementation say of a damaged graph
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ArtefactError(f"{artefact.path} cannot be specialised ({reason}); export it again") from None


def _plain_model(
    artefact: Artefact,
    constants: dict[str, onnx.TensorProto],
    lam: float | None,
    lambda_threshold: float | None,
    width: float,
) -> onnx.ModelProto:
    nodes = evaluate_constant_part(artefact.model, constants)
    outputs = {value.name for value in artefact.model.graph.output}
    nodes = fold_batch_norms(nodes, constants, outputs)
    used = {name for node in nodes for name in node.input} | outputs
    graph = helper.make_graph(
        nodes,
        artefact.model.graph.name,
        [value for value in artefact.model.graph.input if value.name not in KNOBS],
        list(artefact.model.graph.output),
        [tensor for name, tensor in constants.items() if name in used],
    )
    model = helper.make_model(
        graph,
        opset_imports=list(artefact.model.opset_import),
        ir_version=artefact.model.ir_version,
        producer_name=artefact.model.producer_name,
    )
    properties = {p.key: p.value for p in artefact.model.metadata_props}
    if len(artefact.metadata.widths) > 1:
        properties["deploytool.widths"] = json.dumps([width])
    if lam is not None:
        properties["deploytool.lambda"] = json.dumps(lam)
    if lambda_threshold is not None:
        properties["deploytool.lambda_threshold"] = json.dumps(float(lambda_threshold))
    helper.set_model_props(model, properties)
    return model


def check_file_lambda(artefact: Artefact, lam: float | None) -> float | None:
    """Return lambda if the model accepts it, None where it takes none; raise InputError otherwise."""
    metadata, path = artefact.metadata, artefact.path
    if not metadata.conditional:
        if lam is not None and lam != metadata.lam:
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
    if check_width(width) not in widths:
        known = ", ".join(f"{each:g}" for each in widths)
        raise InputError(f"width (={width:g}) is not in {artefact.path}; it holds {known}")
    return width


def check_threshold(artefact: Artefact, threshold: float) -> float:
    """Return a lambda threshold that the file can be run with: 0 or 0.5.

    Raises:
        InputError: another value, or the file's conditioning has no threshold.
    """
    if not any(tensor.name == "lambda_threshold" for tensor in artefact.model.graph.initializer):
        raise InputError(f"{artefact.path} has no lambda threshold (conditioning {artefact.metadata.conditioning})")
    return check_threshold_value(threshold)


def evaluate_constant_part(model: onnx.ModelProto, constants: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """Compute every node that depends on `constants` alone.

    Args:
        model: any model whose nodes are in topological order, as ONNX requires.
        constants: tensors by name; the results that remaining nodes read are added.

    Returns:
        The nodes that remain.
    """
    known = set(constants)
    constant_part: list[onnx.NodeProto] = []
    rest: list[onnx.NodeProto] = []
    for node in model.graph.node:
        subgraphs = any(attribute.HasField("g") for attribute in node.attribute)
        if all(not name or name in known for name in node.input) and not subgraphs and node.op_type not in RANDOM_OPS:
            constant_part.append(node)
            known.update(node.output)
        else:
            rest.append(node)
    needed = {name for node in rest for name in node.input} | {value.name for value in model.graph.output}
    wanted = sorted({name for node in constant_part for name in node.output if name and name in needed})
    if wanted:
        read = {name for node in constant_part for name in node.input}
        graph = helper.make_graph(
            constant_part,
            "constant-part",
            [],
            [helper.make_empty_tensor_value_info(name) for name in wanted],
            [tensor for name, tensor in constants.items() if name in read],
        )
        part = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
        values = ReferenceEvaluator(part).run(None, {})
        for name, value in zip(wanted, values, strict=True):
            constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
    return rest


def fold_batch_norms(
    nodes: list[onnx.NodeProto], constants: dict[str, onnx.TensorProto], outputs: Collection[str] = ()
) -> list[onnx.NodeProto]:
    """Fold each BatchNormalization into the Conv that alone feeds it, where all their tensors are constant.

    A batch norm that follows anything else (as in pre-activation networks), or a convolution whose output is read
    elsewhere too, stays as it is.

    Args:
        nodes: in topological order; not changed.
        constants: tensors by name; folded weights and biases are added.
        outputs: of the graph; a convolution that gives one stays as it is.

    Returns:
        The nodes that remain, in the same order.
    """
    readers = Counter(name for node in nodes for name in node.input)
    producer = {name: node for node in nodes for name in node.output}
    replaced: dict[int, onnx.NodeProto] = {}
    dropped: set[int] = set()
    for node in nodes:
        if node.op_type != "BatchNormalization" or len([name for name in node.output if name]) != 1:
            continue
        if any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute):
            continue
        conv = producer.get(node.input[0])
        if conv is None or conv.op_type != "Conv" or readers[node.input[0]] != 1 or conv.output[0] in outputs:
            continue
        if not all(name in constants for name in [*conv.input[1:], *node.input[1:]]):
            continue
        replaced[id(conv)] = _folded(conv, node, constants)
        dropped.add(id(node))
    return [replaced.get(id(node), node) for node in nodes if id(node) not in dropped]


def _folded(conv: onnx.NodeProto, norm: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> onnx.NodeProto:
    gamma, beta, mean, variance = (numpy_helper.to_array(constants[name]) for name in norm.input[1:])
    weight = numpy_helper.to_array(constants[conv.input[1]])
    bias = numpy_helper.to_array(constants[conv.input[2]]) if len(conv.input) > 2 else np.float32(0)
    epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
    a = gamma / np.sqrt(variance + np.float32(epsilon))
    shape = (-1,) + (1,) * (weight.ndim - 1)
    stem = conv.name or conv.output[0]
    names = f"{stem}.weight.folded", f"{stem}.bias.folded"
    constants[names[0]] = numpy_helper.from_array(weight * a.reshape(shape), names[0])
    constants[names[1]] = numpy_helper.from_array(beta + (bias - mean) * a, names[1])
    folded = onnx.NodeProto()
    folded.CopyFrom(conv)
    folded.input[:] = [conv.input[0], *names]
    folded.output[:] = [norm.output[0]]
    return folded
