"""`predict`: class names and probabilities for picture files."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from deploytool.errors import InputError
from deploytool.runtime.images import load_image
from deploytool.runtime.session import Session

BATCH = 64


def predict(
    model: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    lam: float | None = None,
    lambda_threshold: float | None = None,
    top: int = 3,
    threads: int | None = None,
    width: float | None = None,
    precision: str | None = None,
) -> list[dict[str, Any]]:
    """Classify picture files.

    Args:
        model: a file that `deploytool export` or `specialize` wrote.
        images: PNG or JPEG files; see `load_image`.
        lam: lambda in [0, 1]; required by a conditional model.
        lambda_threshold: 0 or 0.5, instead of the file's own.
        top: how many classes to list.
        threads: threads of one inference.
        width: one of the file's widths; the widest where None.
        precision: `int8` or `float32`; int8 where None and the file was exported for it.

    Returns:
        Per image, in order: `image`, `class`, `probability` in [0, 1], `top: [{class, probability}]`, `lambda`.

    Raises:
        InputError: a picture, lambda or `top` is not acceptable. ArtefactError: the model is not.
    """
    if top < 1:
        raise InputError(f"top (={top}) must be at least 1")
    session = Session(model, threads=threads, lambda_threshold=lambda_threshold, precision=precision, background=False)
    lam, width = session.check_lambda(lam), session.check_width(width)
    predictions = []
    for start in range(0, len(images), BATCH):
        paths = images[start : start + BATCH]
        batch = np.concatenate([load_image(path, session.metadata) for path in paths])
        for path, probabilities in zip(paths, softmax(session(batch, lam, width)), strict=True):
            best = np.argsort(-probabilities, kind="stable")[:top]
            ranked = [{"class": session.metadata.classes[i], "probability": float(probabilities[i])} for i in best]
            predictions.append(
                {"image": str(path), **ranked[0], "top": ranked, "lambda": session.metadata.lam if lam is None else lam}
            )
    return predictions


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Map logits (N, K) to probabilities (N, K) float64 that sum to 1 per row."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
