"""Fair timing: candidates take turns, so that whatever else the machine does meets them alike."""

import platform
import time
from collections.abc import Callable, Sequence
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from deploytool.errors import InputError

MIN_ROUNDS, MAX_ROUNDS = 30, 20_000

Candidate = Callable[[], object]


def interleaved(
    candidates: Sequence[Candidate],
    rounds: int | None = None,
    seconds: float | None = None,
    warm_up: int = 5,
    after_round: Callable[[], object] = lambda: None,
) -> np.ndarray[Any, Any]:
    """Time every candidate once in each round, in an order that rotates.

    Round r starts with candidate r, modulo their number n. After n rounds the step from one candidate to the next
    changes, to another number that has no divisor in common with n: a candidate that always followed the same other one
    would always find the caches as that one leaves them.

    Compare candidates round by round (`np.median(times / times[:, :1], axis=0)`): two times of one round were measured
    on the machine in nearly the same state, two medians over all rounds were not.

    Args:
        candidates: what to time; at least one.
        rounds: how many rounds to make; or else
        seconds: make as many as fit, at least 30 and at most 20,000.
        warm_up: rounds before those, which do not count.
        after_round: called after every round, outside of what is timed.

    Returns:
        Seconds (rounds, candidates) float64.

    Raises:
        InputError: there is no candidate, no round to make, or both or neither of `rounds` and `seconds` are given.
    """
    if not candidates:
        raise InputError("there is nothing to time; name at least one candidate")
    if (rounds is None) == (seconds is None):
        raise InputError(f"rounds (={rounds}) or seconds (={seconds}) must be given, and not both")
    if rounds is not None and rounds < 1:
        raise InputError(f"rounds (={rounds}) must be at least 1")
    for number in range(warm_up):
        _one_round(candidates, number)
    times: list[list[float]] = []
    deadline = time.perf_counter() + (seconds or 0)
    while len(times) < (rounds or MIN_ROUNDS) or (
        rounds is None and len(times) < MAX_ROUNDS and time.perf_counter() < deadline
    ):
        times.append(_one_round(candidates, len(times)))
        after_round()
    return np.array(times)


def _one_round(candidates: Sequence[Candidate], number: int) -> list[float]:
    """Seconds of each candidate, in the order of the candidates, whichever ran first."""
    row = [0.0] * len(candidates)
    for index in _order(len(candidates), number):
        candidate = candidates[index]
        began = time.perf_counter()
        candidate()
        row[index] = time.perf_counter() - began
    return row


def _order(count: int, number: int) -> list[int]:
    """Who runs when in a round."""
    steps = [step for step in range(1, count + 1) if gcd(step, count) == 1]
    step = steps[number // count % len(steps)]
    return [(number + position * step) % count for position in range(count)]


def processor() -> str:
    """What times were measured on: the processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
