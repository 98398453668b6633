"""What the output `cpl` (N,) of a file means: whether the network's layers agree on an image, in [-1, 1].

Which library answers at a lambda is decided at boundaries between the lambdas that libraries were built at: where batch
norms switch between two of them, there; else half way. A lambda above a boundary belongs to the upper one.

Reference: J. H. Lee, Library network, a possible path to explainable neural networks, 2019 ("paper 4"), eq. 5.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from deploytool.models.setting import as_single


def boundaries(lambdas: Sequence[float], switch_at: float | None) -> list[float]:
    """What lies between each two neighbours.

    Args:
        lambdas: in [0, 1], ascending.
        switch_at: the lambda above which batch norms are others; None where they interpolate.
    """
    return [
        switch_at if switch_at is not None and low <= switch_at < high else (low + high) / 2
        for low, high in pairwise(lambdas)
    ]


def choose(lambdas: Sequence[float], lam: float | None, switch_at: float | None) -> int:
    """The index of the lambda that answers for `lam`; the first where there is none."""
    if lam is None:
        return 0
    return bisect_left([as_single(each) for each in boundaries(lambdas, switch_at)], as_single(lam))
