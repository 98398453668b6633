"""`specialize`: write the plain ONNX file of one lambda."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from deploytool.atomic import atomic_path
from deploytool.errors import ArtefactError, InputError
from deploytool.runtime.artefact import Artefact, read_artefact, read_metadata
from deploytool.runtime.partial import specialized_model
from deploytool.runtime.session import Session

TOLERANCE = 1e-3


def specialize(
    file: str | os.PathLike[str],
    lam: float | None,
    out: str | os.PathLike[str] | None = None,
    lambda_threshold: float | None = None,
    width: float | None = None,
) -> dict[str, Any]:
    """Write the plain ONNX file of one lambda and width, and measure it against the generic graph.

    Args:
        file: a model that `deploytool export` wrote.
        lam: lambda in [0, 1]; None where the file takes none.
        out: where to write; `NAME-lambda-L-width-W.onnx` beside the file where None.
        lambda_threshold: used instead of the file's own.
        width: one of the file's widths; the widest where None.

    Returns:
        `file`, `size_mb` (10^6 bytes), `max_abs_error` of the logits on random images against onnxruntime running
        the generic graph.

    Raises:
        ArtefactError: the file is no model of deploytool, or the result does not answer as it does.
        InputError: lambda or width is out of range, or the file is plain already.
    """
    artefact = read_artefact(file)
    model = specialized_model(artefact, lam, lambda_threshold, width)
    path = Path(out) if out is not None else _default_path(artefact, lam, width)
    if path.exists() and path.samefile(artefact.path):
        raise InputError(f"{path} is the file to specialise; name another one with -o")
    specialized = Artefact(path, model, read_metadata(path, model))
    error = _error_against(artefact, specialized, lam, lambda_threshold, width)
    if not error <= TOLERANCE:
        raise ArtefactError(
            f"{path} was not written: its logits differ from those of {artefact.path} by {error:.2e}, allowed "
            f"{TOLERANCE:.0e}; please report this with the file"
        )
    with atomic_path(path) as aside:
        aside.write_bytes(model.SerializeToString())
    return {"file": str(path), "size_mb": round(path.stat().st_size / 1e6, 6), "max_abs_error": error}


def _default_path(artefact: Artefact, lam: float | None, width: float | None) -> Path:
    knobs = [("lambda", lam), ("width", width)]
    suffix = "".join(f"-{name}-{float(value):g}" for name, value in knobs if value is not None)
    return artefact.path.with_name(f"{artefact.path.stem}{suffix or '-plain'}.onnx")


def _error_against(
    artefact: Artefact, specialized: Artefact, lam: float | None, threshold: float | None, width: float | None
) -> float:
    images = np.random.default_rng(0).random((4, *artefact.metadata.shape), np.float32)
    generic = Session(artefact, lambda_threshold=threshold).generic(images, lam, width)
    return float(np.abs(generic - Session(specialized)(images)).max())
