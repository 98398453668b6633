"""Does the exported graph answer as the trained model does?"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor

from deploytool.export.heads import LOGITS, REASONING
from deploytool.export.library import Libraries, chosen_nodes, expected_cpl
from deploytool.export.saliency import Companion
from deploytool.models.conditional import ConditionalModel
from deploytool.models.setting import Setting
from deploytool.runtime.library import CPL
from deploytool.runtime.saliency import SALIENCY

Array = np.ndarray[Any, Any]

LAMBDAS = (0.0, 0.2, 0.5, 0.7, 1.0)
THRESHOLDS = (0.0, 0.5)


@dataclass(frozen=True)
class Parity:
    """How far the values of a file are from the model's.

    Attributes:
        max_abs_error: the largest absolute difference over all cases.
        worst: the case it happened in.
        cases: how many there were.
        outputs: the largest difference of each output.
    """

    max_abs_error: float
    worst: str
    cases: int
    outputs: dict[str, float] = field(default_factory=dict)


def check_parity(
    path: Path,
    model: ConditionalModel,
    setting: Setting,
    images: Tensor,
    narrow: Sequence[float] = (),
    surrogate: Companion | None = None,
    libraries: Libraries | None = None,
) -> Parity:
    """Compare a file, run by stock onnxruntime, with the model over lambdas, thresholds, widths and batch sizes.

    Values are logits, the probabilities of a model with reasoning labels, those of maps, and CPL, with the similarities
    that it comes from; see `deploytool.export.library.expected_cpl`.

    Args:
        path: the exported file.
        model: the trained model; evaluated in evaluation mode with its trained batch-norm statistics.
        setting: width, conditioning and noise mode of the file.
        narrow: further widths in the file.
        surrogate: what draws the file's maps, beside the model. A model that is a surrogate itself draws its own.
        libraries: of a file with CPL.
        images: (7, C, H, W) float32 in [0, 1]; used as a batch of 7 and a batch of 1.

    Returns:
        The largest error; NaN where either side gave one.
    """
    proto = onnx.load(str(path))
    thresholds = THRESHOLDS if any(t.name == "lambda_threshold" for t in proto.graph.initializer) else (0.0,)
    chosen = [] if libraries is None else chosen_nodes(proto, len(libraries.layers[0]))
    worst, where, cases = -1.0, "", 0
    outputs: dict[str, float] = {}
    for threshold in thresholds:
        set_threshold(proto, threshold)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        lambdas = LAMBDAS if model.is_conditional else (0.0,)
        for lam, width in itertools.product(lambdas, (*narrow, setting.width)):
            at = replace(setting, lam=lam, lambda_threshold=threshold, width=width)
            for batch in (1, len(images)):
                expected = _expected(model, at, images[:batch], surrogate)
                feed = {"image": images[:batch].cpu().numpy()}
                if model.is_conditional:
                    feed["lambda"] = np.array(lam, np.float32)
                if narrow:
                    feed["width"] = np.array(width, np.float32)
                cases += 1
                asked = [*expected, *([] if libraries is None else [CPL])]
                answers = dict(zip([*asked, *chosen], session.run([*asked, *chosen], feed), strict=True))
                errors = {name: _difference(answers[name], expected[name]) for name in expected}
                if libraries is not None:
                    nodes = [answers[name] for name in chosen]
                    cpl, error = expected_cpl(model, at, images[:batch], libraries, nodes)
                    errors[CPL] = float(np.maximum(error, _difference(answers[CPL], cpl.numpy())))
                for name, error in errors.items():
                    outputs[name] = float(np.maximum(outputs.get(name, error), error))  # NaN stays
                    if error > worst or np.isnan(error):
                        case = f"lambda {lam:g}, threshold {threshold:g}, width {width:g}, batch {batch}"
                        worst, where = error, f"{name} at {case}"
    return Parity(worst, where, cases, outputs)


def max_difference(one: bytes, other: bytes, images: Tensor) -> float:
    """The largest absolute difference between the outputs of two files in stock onnxruntime, lambda and width being 1.

    Args:
        one, other: files with the same inputs and outputs.
        images: (N, C, H, W) float32 in [0, 1].
    """
    answers = []
    for file in (one, other):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        knobs = {value.name: np.array(1, np.float32) for value in session.get_inputs() if value.name != "image"}
        answers.append(session.run(None, {"image": images.cpu().numpy(), **knobs}))
    return max(_difference(*pair) for pair in zip(*answers, strict=True))


@torch.no_grad()
def _expected(model: ConditionalModel, at: Setting, images: Tensor, surrogate: Companion | None) -> dict[str, Array]:
    """The outputs of a file by name, from what torch answers."""
    with model.network(at, reasoning=True) as network:
        answer: Tensor | tuple[Tensor, Tensor] = network(images)
    if isinstance(answer, tuple):  # a surrogate's
        outputs = dict(zip((LOGITS, SALIENCY), answer, strict=True))
    else:
        outputs = {LOGITS: model.logits(answer)}
        if model.reasons:
            outputs[REASONING] = answer[:, -model.reasons :].sigmoid()
    if surrogate is not None:
        with surrogate.explainer.model.network(surrogate.at(at)) as network:
            outputs[SALIENCY] = network(images)[1]
    return {name: value.cpu().numpy() for name, value in outputs.items()}


def _difference(one: Array, other: Array) -> float:
    return float(np.abs(one - other).max())


def set_threshold(proto: onnx.ModelProto, threshold: float) -> None:
    """Overwrite the initializer `lambda_threshold`, where the graph has one."""
    for tensor in proto.graph.initializer:
        if tensor.name == "lambda_threshold":
            tensor.CopyFrom(numpy_helper.from_array(np.array(threshold, np.float32), tensor.name))
