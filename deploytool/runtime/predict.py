"""`predict`: class names and probabilities for picture files, with reasons, verdict and maps where there are any."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from deploytool.atomic import writable_folder
from deploytool.errors import InputError
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.images import load_image
from deploytool.runtime.library import CPL
from deploytool.runtime.overlay import overlay_paths, overlay_png, write_overlay
from deploytool.runtime.saliency import SALIENCY
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
    reasoning_threshold: float | None = None,
    saliency: str | os.PathLike[str] | None = None,
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
        reasoning_threshold: t_rsn in [0, 1], instead of the file's own.
        saliency: folder for the pictures' saliency maps, laid over them (`deploytool.runtime.overlay`); they are
            written once every picture has been answered.

    Returns:
        Per image, in order: `image`, `class`, `probability` in [0, 1], `top: [{class, probability}]`, `lambda`. Where
        the file has reasoning labels also what `deploytool.runtime.reasoning.Verdict.to_dict` returns, and where it has
        libraries `cpl`, `cpl_threshold` and `doubtful`; with `saliency` also the path of the overlay, as `saliency`.

    Raises:
        InputError: a picture, lambda or `top` is not acceptable, or t_rsn is not, or the file has no reasoning labels
            to apply it to, or no maps to draw, or their folder cannot be written to.
        ArtefactError: the model is not acceptable.
    """
    if top < 1:
        raise InputError(f"top (={top}) must be at least 1")
    artefact = read_artefact(model)
    if saliency is not None and artefact.metadata.explainer is None:
        raise InputError(
            f"{model} has no output `saliency`; export it with --explainer, or leave --saliency (={saliency}) out"
        )
    judging = () if artefact.metadata.reasoning is None else ("reasoning",)
    agreeing = () if artefact.metadata.library is None else (CPL,)
    session = Session(
        artefact,
        threads=threads,
        lambda_threshold=lambda_threshold,
        outputs=("logits", *judging, *agreeing, *(() if saliency is None else (SALIENCY,))),
        precision=precision,
        background=False,
    )
    if reasoning_threshold is not None:
        session.check_reasoning(reasoning_threshold)
    reasoning = session.metadata.reasoning
    lam, width = session.check_lambda(lam), session.check_width(width)
    if saliency is not None:
        writable_folder(saliency, "choose another folder with --saliency FOLDER")
    overlays: list[bytes] = []
    predictions: list[dict[str, Any]] = []
    for start in range(0, len(images), BATCH):
        paths = images[start : start + BATCH]
        batch = np.concatenate([load_image(path, session.metadata) for path in paths])
        answers = session.run(batch, lam, width)
        verdicts: list[dict[str, Any]] = [{}] * len(paths)
        if reasoning is not None:
            judged = reasoning.judge(answers["logits"], answers["reasoning"], reasoning_threshold)
            verdicts = [verdict.to_dict() for verdict in judged]
        if agreeing:
            doubts = session.doubts(answers[CPL], [lam] * len(paths))
            verdicts = [{**verdict, **doubt.to_dict()} for verdict, doubt in zip(verdicts, doubts, strict=True)]
        for path, probabilities, verdict in zip(paths, softmax(answers["logits"]), verdicts, strict=True):
            best = np.argsort(-probabilities, kind="stable")[:top]
            ranked = [{"class": session.metadata.classes[i], "probability": float(probabilities[i])} for i in best]
            at = session.metadata.lam if lam is None else lam
            predictions.append({"image": str(path), **ranked[0], "top": ranked, "lambda": at, **verdict})
        if saliency is not None:
            overlays += map(overlay_png, batch, answers[SALIENCY][:, 0])
    if saliency is not None:
        for prediction, file, png in zip(predictions, overlay_paths(saliency, images), overlays, strict=True):
            write_overlay(file, png)
            prediction["saliency"] = str(file)
    return predictions


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Map logits (N, K) to probabilities (N, K) float64 that sum to 1 per row."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
