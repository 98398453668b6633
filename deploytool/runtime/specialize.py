"""`specialize`: write the plain ONNX file of one lambda, in float32 or INT8.

The result is compared with the generic graph on random images before it is written. Float32 logits agree to 1e-3.
INT8 ones cannot: rounding activations to 8 bits moved the logits of trained networks by 0.5 to 5 % of their range (the
largest minus the smallest over the images); activation ranges wrong by a factor of two moved them by 34 %. So INT8
logits have to agree to a quarter of that range: the check finds a network that is broken, and accuracy is what `export`
measures.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from deploytool.atomic import atomic_path
from deploytool.errors import ArtefactError, InputError
from deploytool.runtime.artefact import Artefact, artefact_of, read_artefact
from deploytool.runtime.partial import specialized_model
from deploytool.runtime.ranges import Precision
from deploytool.runtime.session import Session

TOLERANCE = 1e-3
INT8_TOLERANCE = 0.25  # of the range of the logits


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
        `file`, `size_mb` (10^6 bytes), `precision`, `max_abs_error` of the logits on random images against onnxruntime
        running the generic graph.

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
    error, allowed = _error_against(artefact, specialized, lam, lambda_threshold, width)
    if not error <= allowed:
        raise ArtefactError(
            f"{path} was not written: its logits differ from those of {artefact.path} by {error:.2e}, allowed "
            f"{allowed:.0e}; please report this with the file"
        )
    with atomic_path(path) as aside:
        aside.write_bytes(model.SerializeToString())
    return {
        "file": str(path),
        "size_mb": round(path.stat().st_size / 1e6, 6),
        "precision": specialized.metadata.precision,
        "max_abs_error": error,
    }


def _default_path(
    artefact: Artefact, lam: float | None, threshold: float | None, width: float | None, precision: str | None
) -> Path:
    knobs = [("lambda", lam), ("threshold", threshold), ("width", width)]
    suffix = "".join(f"-{name}-{float(value):g}" for name, value in knobs if value is not None)
    suffix = (suffix or "-plain") + (f"-{precision}" if precision else "")
    return artefact.path.with_name(f"{artefact.path.stem}{suffix}.onnx")


def _error_against(
    artefact: Artefact, specialized: Artefact, lam: float | None, threshold: float | None, width: float | None
) -> tuple[float, float]:
    """The largest difference of a logit from the generic graph's, and the largest that is allowed."""
    images = np.random.default_rng(0).random((4, *artefact.metadata.shape), np.float32)
    generic = Session(artefact, threads=1, lambda_threshold=threshold).generic(images, lam, width)
    error = float(np.abs(generic - Session(specialized, threads=1)(images)).max())
    int8 = specialized.metadata.precision == "int8"
    return error, INT8_TOLERANCE * float(np.ptp(generic)) if int8 else TOLERANCE
