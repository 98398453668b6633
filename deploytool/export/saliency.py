"""From a surrogate explainer to the output `saliency` of a file.

    before:  image, lambda -> logits                        the target's graph
             image, lambda -> logits, saliency              the surrogate's, its batch norms conditioned as any others

    after:   image, lambda -> logits, saliency              logits from the target alone, saliency from the surrogate

The two share the inputs and `lambda_threshold`; every other name of the surrogate begins with `explainer/`. Its linear
head, which no map needs, is left out. A runtime that is asked for one output computes nothing of the other. The
surrogate was trained on the full width of a slimmable target, and is the same at every other one.

    Resize(x, sizes = Concat(Shape(x)[:2], (H, W)))   ->   Resize(x, scales = (1, 1, H / h, W / w))   whole numbers
                                                      ->   Resize(x, sizes = (H, W), axes = (2, 3))   others

so that every shape is known beforehand, and onnxruntime keeps its blocked layout where the scale is whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from deploytool.explain.explainer import Explainer
from deploytool.export.backbone import backbone_to_onnx
from deploytool.export.condition import add_condition, clean_setting
from deploytool.export.heads import LOGITS
from deploytool.export.shrink import Shrunk
from deploytool.models.setting import Setting
from deploytool.recipe import FloatMethod
from deploytool.runtime.graph import assemble, select_outputs, take_apart
from deploytool.runtime.saliency import SALIENCY, ExplainerNote
from deploytool.runtime.validation import MAX_SCALE
from deploytool.training.run import Run

Array = np.ndarray[Any, Any]

PREFIX = "explainer/"
SHARED = ("image", "lambda", "lambda_threshold", SALIENCY)


class FullWidthWarning(UserWarning):
    """A file draws maps at widths that its explainer was not trained at."""


@dataclass(frozen=True)
class Companion:
    """A trained explainer as part of a file.

    Attributes:
        explainer: the surrogate, and where it comes from.
        follows: whether its batch norms follow lambda as the file's setting says; they interpolate where not.
    """

    explainer: Explainer
    follows: bool

    def at(self, setting: Setting) -> Setting:
        """The surrogate's setting where the file's is this one: the same lambda, no noise, no width of its own."""
        conditioning = setting.conditioning if self.follows else "interpolate"
        return replace(setting, conditioning=conditioning, noise="none", width=1.0)


def surrogate_of(run: Run, explainer: Explainer) -> Companion:
    """The explainer of a run, to go into its file.

    Raises:
        RunError: it was trained to explain something else.
    """
    explainer.open_target(run.path)
    return Companion(explainer, isinstance(run.recipe.method, FloatMethod))


def told_widths(widths: Sequence[float]) -> str | None:
    """What a person should know of maps at a file's widths; None where all of them are full."""
    below = [f"{width:g}" for width in sorted(widths) if width < 1]
    if not below:
        return None
    return (
        f"maps explain the full width; at width{'s' * (len(below) > 1)} {', '.join(below)} they are the full network's"
    )


def explainer_note(explainer: Explainer) -> ExplainerNote:
    """What a file says of its explainer."""
    recipe, target = explainer.recipe, explainer.checkpoint.files[explainer.target]
    return ExplainerNote(recipe.name, recipe.digest(), recipe.explanation.fidelity, target)


def surrogate_graph(explainer: Explainer, setting: Setting, outputs: Sequence[str]) -> onnx.ModelProto:
    """The graph of a surrogate alone: input `lambda` where it has two sets of batch norms; no metadata.

    Args:
        explainer: the surrogate.
        setting: of the surrogate; its lambda does not matter.
        outputs: `logits`, `saliency` or both; what others need is left out.
    """
    network = explainer.model.plain_network(clean_setting(setting))
    model = backbone_to_onnx(network, explainer.info.shape)
    _name_the_map(model.graph)
    _fix_sizes(model)
    if explainer.model.is_conditional:
        add_condition(model, explainer.model, setting, Shrunk(network))
    return assemble(select_outputs(take_apart(model), outputs))


def add_saliency(target: onnx.ModelProto, surrogate: onnx.ModelProto) -> None:
    """Add the output `saliency` to a target's graph, in place.

    Args:
        target: as `build_graph` returns it.
        surrogate: as `surrogate_graph` returns it, with the output `saliency` alone.
    """
    graph, other = target.graph, surrogate.graph
    held = {tensor.name for tensor in graph.initializer}
    for node in other.node:
        node.input[:] = [_prefixed(name) for name in node.input]
        node.output[:] = [_prefixed(name) for name in node.output]
        node.name = _prefixed(node.name)
    for tensor in other.initializer:
        tensor.name = _prefixed(tensor.name)
    graph.node.extend(other.node)
    graph.initializer.extend(tensor for tensor in other.initializer if tensor.name not in held)
    (output,) = other.output
    output.type.tensor_type.shape.dim[0].CopyFrom(graph.output[0].type.tensor_type.shape.dim[0])
    graph.output.append(output)


def _prefixed(name: str) -> str:
    return name if not name or name in SHARED else PREFIX + name


def _name_the_map(graph: onnx.GraphProto) -> None:
    """Call the second output `saliency`."""
    assert [output.name for output in graph.output][:1] == [LOGITS] and len(graph.output) == 2
    old, graph.output[1].name = graph.output[1].name, SALIENCY
    for node in graph.node:
        node.output[:] = [SALIENCY if name == old else name for name in node.output]


def _fix_sizes(model: onnx.ModelProto) -> None:
    """Give every Resize constant scales or sizes; see the module."""
    graph = model.graph
    producer = {name: node for node in graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inferred}
    for node in graph.node:
        if node.op_type != "Resize":
            continue
        size = numpy_helper.to_array(stored[producer[node.input[3]].input[-1]]).astype(np.int64)
        scale = size / shapes[node.input[0]][2:]
        if (scale == scale.round()).all() and scale.max() <= MAX_SCALE:
            scales = np.array([1, 1, *scale], np.float32)
            node.input[:] = [node.input[0], "", _store(graph, f"{node.output[0]}.scales", scales)]
        else:
            node.input[3] = _store(graph, f"{node.output[0]}.sizes", size)
            node.attribute.append(helper.make_attribute("axes", [2, 3]))


def _store(graph: onnx.GraphProto, name: str, value: Array) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name
