"""Does the exported graph answer as the trained model does?"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor

from deploytool.export.heads import LOGITS, REASONING
from deploytool.models.conditional import ConditionalModel
from deploytool.models.setting import Setting

Array = np.ndarray[Any, Any]

LAMBDAS = (0.0, 0.2, 0.5, 0.7, 1.0)
THRESHOLDS = (0.0, 0.5)


@dataclass(frozen=True)
class Parity:
    """The largest absolute difference of a value over all cases, the case it happened in, and how many there were."""

    max_abs_error: float
    worst: str
    cases: int


def check_parity(
    path: Path, model: ConditionalModel, setting: Setting, images: Tensor, narrow: Sequence[float] = ()
) -> Parity:
    """Compare a file, run by stock onnxruntime, with the model over lambdas, thresholds, widths and batch sizes.

    Values are logits, and the probabilities of a model with reasoning labels.

    Args:
        path: the exported file.
        model: the trained model; evaluated in evaluation mode with its trained batch-norm statistics.
        setting: width, conditioning and noise mode of the file.
        narrow: further widths in the file.
        images: (7, C, H, W) float32 in [0, 1]; used as a batch of 7 and a batch of 1.

    Returns:
        The largest error; NaN where either side gave one.
    """
    proto = onnx.load(str(path))
    thresholds = THRESHOLDS if any(t.name == "lambda_threshold" for t in proto.graph.initializer) else (0.0,)
    worst, where, cases = -1.0, "", 0
    for threshold in thresholds:
        set_threshold(proto, threshold)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        lambdas = LAMBDAS if model.is_conditional else (0.0,)
        for lam, width in itertools.product(lambdas, (*narrow, setting.width)):
            at = replace(setting, lam=lam, lambda_threshold=threshold, width=width)
            for batch in (1, len(images)):
                with model.network(at, reasoning=True) as network, torch.no_grad():
                    expected = _outputs(model, network(images[:batch]))
                feed = {"image": images[:batch].cpu().numpy()}
                if model.is_conditional:
                    feed["lambda"] = np.array(lam, np.float32)
                if narrow:
                    feed["width"] = np.array(width, np.float32)
                answers = session.run(list(expected), feed)
                error = max(_difference(*pair) for pair in zip(answers, expected.values(), strict=True))
                cases += 1
                if not error <= worst:
                    worst, where = error, f"lambda {lam:g}, threshold {threshold:g}, width {width:g}, batch {batch}"
    return Parity(worst, where, cases)


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


def _outputs(model: ConditionalModel, answer: Tensor) -> dict[str, Array]:
    """The outputs of a file by name, from a model's whole answer (N, K + R)."""
    outputs = {LOGITS: model.logits(answer)}
    if model.reasons:
        outputs[REASONING] = answer[:, -model.reasons :].sigmoid()
    return {name: value.cpu().numpy() for name, value in outputs.items()}


def _difference(one: Array, other: Array) -> float:
    return float(np.abs(one - other).max())


def set_threshold(proto: onnx.ModelProto, threshold: float) -> None:
    """Overwrite the initializer `lambda_threshold`, where the graph has one."""
    for tensor in proto.graph.initializer:
        if tensor.name == "lambda_threshold":
            tensor.CopyFrom(numpy_helper.from_array(np.array(threshold, np.float32), tensor.name))
