"""`specialize`: write the plain ONNX file of one lambda, in float32 or INT8.

The result is compared with the generic graph on random images before it is written. Float32 logits agree to 1e-3.
INT8 ones cannot: rounding activations to 8 bits moved the logits of trained networks by 0.5 to 5 % of their range (the
largest minus the smallest over the images); activation ranges wrong by a factor of two moved them by 34 %. So INT8
logits have to agree to a quarter of that range: the check finds a network that is broken, and accuracy is what `export`
measures.

Probabilities of reasoning labels agree to 1e-3 too in float32. In INT8 they are compared as what they are before the
sigmoid, log(p / (1 - p)), to which the same rule applies: a probability near 0.5 moves by a quarter of what its logit
does, one near 0 or 1 not at all, so that no tolerance of probabilities fits both.

Saliency maps are computed in float32 in INT8 files too, and agree to 1e-3 in both.

CPL is computed in float32 too, from INT8 activity in INT8 files. Of two stored patterns that are equally near but for
rounding either may be among the nearest, and then an image's CPL is another: what has to agree is the median of the
images' differences, to 1e-3 in float32, and in INT8 to a quarter of [-1, 1].
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deploytool.atomic import atomic_path
from deploytool.errors import ArtefactError, InputError
from deploytool.runtime.artefact import Artefact, artefact_of, read_artefact
from deploytool.runtime.library import CPL
from deploytool.runtime.partial import specialized_model
from deploytool.runtime.ranges import Precision
from deploytool.runtime.saliency import SALIENCY
from deploytool.runtime.session import Session

TOLERANCE = 1e-3
INT8_TOLERANCE = 0.25  # of the range of the logits
SURE = 1e-4  # probabilities nearer to 0 or 1 are as good as there

Array = np.ndarray[Any, Any]


def specialize(
    file: str | os.PathLike[str],
    lam: float | None,
    out: str | os.PathLike[str] | None = None,
    lambda_threshold: float | None = None,
    width: float | None = None,
    precision: Precision | None = None,
) -> dict[str, Any]:
    """Write the plain ONNX file of one lambda and width, and measure it against the generic graph.

    Args:
        file: a model that `deploytool export` wrote.
        lam: lambda in [0, 1]; None where the file takes none.
        out: where to write; `NAME-lambda-L-width-W.onnx` beside the file where None.
        lambda_threshold: used instead of the file's own.
        width: one of the file's widths; the widest where None.
        precision: `int8` or `float32`; int8 where None and the file was exported with `--quantize int8`.

    Returns:
        `file`, `size_mb` (10^6 bytes), `precision`, `max_abs_error` of logits, of probabilities of reasoning labels, of
        saliency maps and of CPL on random images against onnxruntime running the generic graph.

    Raises:
        ArtefactError: the file is no model of deploytool, or the result does not answer as it does.
        InputError: lambda or width is out of range, the file is plain already, or it cannot have this precision.
    """
    artefact = read_artefact(file)
    model = specialized_model(artefact, lam, lambda_threshold, width, precision=precision)
    path = Path(out) if out is not None else _default_path(artefact, lam, lambda_threshold, width, precision)
    if path.exists() and path.samefile(artefact.path):
        raise InputError(f"{path} is the file to specialise; name another one with -o")
    specialized = artefact_of(path, model)
    images = np.random.default_rng(0).random((4, *artefact.metadata.shape), np.float32)
    outputs = [value.name for value in artefact.graph.outputs]
    session = Session(artefact, threads=1, lambda_threshold=lambda_threshold, outputs=outputs)
    want = session.run_generic(images, lam, width)
    answers = Session(specialized, threads=1, outputs=outputs).run(images)
    off = too_far_off(answers, want, int8=specialized.metadata.precision == "int8")
    if off is not None:
        raise ArtefactError(
            f"{path} was not written: its {off.output} differ from those of {artefact.path} by {off.error:.2e}, "
            f"allowed {off.allowed:.0e}; please report this with the file"
        )
    with atomic_path(path) as aside:
        aside.write_bytes(model.SerializeToString())
    return {
        "file": str(path),
        "size_mb": round(path.stat().st_size / 1e6, 6),
        "precision": specialized.metadata.precision,
        "max_abs_error": max(float(np.abs(answers[name] - want[name]).max()) for name in outputs),
    }


def _default_path(
    artefact: Artefact, lam: float | None, threshold: float | None, width: float | None, precision: str | None
) -> Path:
    knobs = [("lambda", lam), ("threshold", threshold), ("width", width)]
    suffix = "".join(f"-{name}-{float(value):g}" for name, value in knobs if value is not None)
    suffix = (suffix or "-plain") + (f"-{precision}" if precision else "")
    return artefact.path.with_name(f"{artefact.path.stem}{suffix}.onnx")


class Difference(NamedTuple):
    """The largest difference of a value of an output, and the largest that is allowed."""

    output: str
    error: float
    allowed: float


def too_far_off(answers: Mapping[str, Array], want: Mapping[str, Array], *, int8: bool) -> Difference | None:
    """The first output of a network that differs by more than its precision allows; None where none does.

    Args:
        answers, want: outputs by name: `logits` (N, K), `reasoning` (N, R) probabilities, `saliency` (N, 1, H, W),
            `cpl` (N,).
        int8: whether the answers are an INT8 network's, and not a float32 one's.
    """
    for name, expected in want.items():
        answer, allowed = answers[name], TOLERANCE
        if int8 and name != SALIENCY:
            least = 0.0
            if name == "reasoning":
                answer, expected, least = _log_odds(answer), _log_odds(expected), 1.0  # of an undecided head
            allowed = INT8_TOLERANCE * (2.0 if name == CPL else max(float(np.ptp(expected)), least))
        differences = np.abs(answer - expected)
        error = float(np.median(differences) if name == CPL else differences.max())
        if not error <= allowed:
            return Difference(name, error, allowed)
    return None


def _log_odds(probability: Array) -> Array:
    clipped = np.clip(probability.astype(np.float64), SURE, 1 - SURE)
    return np.log(clipped / (1 - clipped))
