"""`bench --sweep`: every combination of lambda, width, precision and threads of a file, measured in turns."""

import os
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from deploytool.errors import InputError
from deploytool.progress import progress_bar
from deploytool.runtime.artefact import Artefact, read_artefact
from deploytool.runtime.bench import Inference, latency_figures, random_images
from deploytool.runtime.partial import (
    check_file_lambda,
    check_file_width,
    check_outputs,
    check_precision,
    file_precisions,
)
from deploytool.runtime.ranges import Precision
from deploytool.runtime.session import Session
from deploytool.runtime.threads import available_threads, check_threads
from deploytool.timing import MIN_ROUNDS, interleaved, processor

LAMBDAS = (0.0, 0.5, 1.0)
MAX_COMBINATIONS = 128
MAX_ROUNDS = 2_000
MEMORY_BYTES = 2 << 30  # of networks that are open at once
WARM_UP = 3


class Combination(NamedTuple):
    """One line of the table."""

    width: float
    precision: Precision
    threads: int
    lam: float | None


def sweep(
    file: str | os.PathLike[str],
    lambdas: Sequence[float] | None = None,
    widths: Sequence[float] | None = None,
    precisions: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    batch: int = 1,
    seconds: float = 0.5,
) -> dict[str, Any]:
    """Measure every combination of a file's settings against the first one.

    All of them take turns in one process, specialised as `Session` runs them, all outputs computed; where they do
    not fit into memory at once, some after others, the first one being among each group.

    Args:
        file: a model that `deploytool export` or `specialize` wrote.
        lambdas: 0, 0.5 and 1 where None; a plain file takes none.
        widths: all of the file's where None.
        precisions: `float32`, `int8`; all of the file's where None.
        threads: threads of one inference; powers of two up to what affinity and cgroup quota allow where None.
        batch: images per inference.
        seconds: time to spend on each combination; at least 30 runs are made.

    Returns:
        `file`, `batch`, `outputs` (those computed), `onnxruntime` (its version), `processor`, `cpus` (that this process
        may use), `rows`: from the widest on, float32 before int8, with `lambda`, `width`, `precision`, `threads`,
        `p50_ms`, `p90_ms`, `p99_ms`, `throughput_ips` (images per second), `ratio` (the median over rounds of its time
        / the first row's in that round) and `runs`.

    Raises:
        ArtefactError: the file is no model of deploytool, or onnxruntime refuses it.
        InputError: an argument is out of range, or there are more than 128 combinations.
    """
    if batch < 1:
        raise InputError(f"batch (={batch}) must be at least 1")
    if not 0 < seconds <= 3600:
        raise InputError(f"seconds (={seconds:g}) must be in (0, 3600]")
    artefact = read_artefact(file)
    combinations = _combinations(artefact, lambdas, widths, precisions, threads)
    image = random_images((batch, *artefact.metadata.shape))
    first, rows = combinations[0], []
    for group in _groups(artefact, combinations):
        timed = group if group[0] == first else [first, *group]
        times = _measure(_networks(artefact, timed, image), seconds)
        ratios = np.median(times / times[:, :1], axis=0)
        for index in range(len(timed) - len(group), len(timed)):
            rows.append(
                {
                    "lambda": timed[index].lam,
                    "width": timed[index].width,
                    "precision": timed[index].precision,
                    "threads": timed[index].threads,
                    **latency_figures(times[:, index], batch),
                    "ratio": float(ratios[index]),
                    "runs": len(times),
                }
            )
    return {
        "file": str(artefact.path),
        "batch": batch,
        "outputs": list(check_outputs(artefact, None)),
        "onnxruntime": onnxruntime.__version__,
        "processor": processor(),
        "cpus": available_threads(),
        "rows": rows,
    }


def _combinations(
    artefact: Artefact,
    lambdas: Sequence[float] | None,
    widths: Sequence[float] | None,
    precisions: Sequence[str] | None,
    threads: Sequence[int] | None,
) -> list[Combination]:
    """What to measure, checked: the widest network first, then float32, then the fewest threads."""
    if threads is None:
        threads = [2**power for power in range(available_threads().bit_length())]
    wanted: Sequence[float | None] = lambdas or (LAMBDAS if artefact.metadata.conditional else [None])
    lams = dict.fromkeys(check_file_lambda(artefact, lam) for lam in wanted)
    wide = dict.fromkeys(check_file_width(artefact, width) for width in widths or artefact.metadata.widths)
    kinds = dict.fromkeys(check_precision(artefact, kind) for kind in precisions or file_precisions(artefact))
    counts = dict.fromkeys(check_threads(count) for count in threads)
    total = len(lams) * len(wide) * len(kinds) * len(counts)
    if total > MAX_COMBINATIONS:
        each = f"{len(lams)} lambdas, {len(wide)} widths, {len(kinds)} precisions, {len(counts)} threads"
        raise InputError(f"{total} combinations ({each}) are too many; name fewer, {MAX_COMBINATIONS} at most")
    ordered = product(sorted(wide, reverse=True), sorted(kinds), sorted(counts), lams)  # "float32" < "int8"
    return [Combination(*each) for each in ordered]


def _groups(artefact: Artefact, combinations: list[Combination]) -> list[list[Combination]]:
    """The combinations in groups whose networks fit into memory together, were each as large as the whole file."""
    each = 4 * sum(value.size for value in artefact.graph.constants.values())
    size = max(1, MEMORY_BYTES // max(each, 1))
    return [combinations[start : start + size] for start in range(0, len(combinations), size)]


def _networks(artefact: Artefact, combinations: Sequence[Combination], image: np.ndarray[Any, Any]) -> list[Inference]:
    """One inference of each combination; those that differ in lambda or width alone share a session's memory."""
    sessions: dict[tuple[str, int], Session] = {}
    runs: list[Inference] = []
    with progress_bar("specialising", len(combinations)) as progress:
        for width, precision, threads, lam in combinations:
            if (precision, threads) not in sessions:
                sessions[precision, threads] = Session(
                    artefact,
                    threads=threads,
                    cache_mb=1e9,
                    background=False,
                    precision=precision,
                    outputs=check_outputs(artefact, None),
                )
            sessions[precision, threads].warm([lam], [width])
            runs.append(_inference(sessions[precision, threads], image, lam, width))
            progress.advance()
    return runs


def _inference(session: Session, image: np.ndarray[Any, Any], lam: float | None, width: float) -> Inference:
    return lambda: session.run(image, lam, width)


def _measure(runs: list[Inference], seconds: float) -> np.ndarray[Any, Any]:
    """Seconds (rounds, runs), in so many rounds as the time allows."""
    one_round = float(interleaved(runs, rounds=WARM_UP, warm_up=1).sum(axis=1).min())
    rounds = int(np.clip(seconds * len(runs) / one_round, MIN_ROUNDS, MAX_ROUNDS))
    with progress_bar("measuring", rounds) as progress:
        return interleaved(runs, rounds=rounds, warm_up=0, after_round=progress.advance)
