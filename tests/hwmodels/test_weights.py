"""Fillers of run-length codes, against the papers' examples and a walk along the weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodels.weights import fillers_between


def walk(values: list[bool], longest: int) -> int:
    """Store a zero whenever `longest` zeros went by and one more comes before the next weight."""
    fillers = waiting = pending = 0
    for value in values:
        if value:
            fillers, pending, waiting = fillers + pending, 0, 0
        elif waiting == longest:
            pending, waiting = pending + 1, 0  # this zero is stored, should a weight follow
        else:
            waiting += 1
    return fillers


def test_the_example_of_eie() -> None:
    """Section 3.2: [0, 0, 1, 2, (18 zeros), 3] is v = [1, 2, 0, 3], z = [2, 0, 15, 2]: one filler."""
    assert fillers_between(np.array([0, 0, 1, 2, *[0] * 18, 3]) != 0) == 1


def test_the_example_of_deep_compression() -> None:
    """Fig. 2: weights at 1, 4, 15 and steps of 3 bits: the step of 11 exceeds 8, so one zero is stored."""
    mask = np.zeros(16, bool)
    mask[[1, 4, 15]] = True
    assert fillers_between(mask, run_bits=3) == 1


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 5), st.integers(0, 60), st.integers(0, 60))
def test_fillers_are_those_of_a_walk(values: list[bool], run_bits: int, before: int, after: int) -> None:
    values = [False] * before + values + [False] * after
    assert fillers_between(np.array(values, bool), run_bits) == walk(values, 2**run_bits - 1)


@pytest.mark.parametrize("density", [0.001, 0.05, 0.3, 0.6, 0.97])
def test_few_and_many_zeros_are_counted_alike(density: float) -> None:
    mask = np.random.default_rng(0).random(20_000) < density
    assert fillers_between(mask) == walk(mask.tolist(), 15)


def test_a_tensor_of_zeros_needs_none() -> None:
    assert fillers_between(np.zeros(1000, bool)) == fillers_between(np.zeros(0, bool)) == 0
