"""Timing in turns: who runs when, what a clock by hand says, how many rounds are made."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from deploytool import timing
from deploytool.errors import InputError
from deploytool.timing import MAX_ROUNDS, MIN_ROUNDS, interleaved, processor


class Clock:
    """Time that passes only where a candidate says so, and a record of who ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def candidate(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            self.now += seconds

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_columns_are_candidates_whoever_runs_first(clock: Clock) -> None:
    times = interleaved([clock.candidate("a", 4.0), clock.candidate("b", 2.0), clock.candidate("c", 1.0)], rounds=5)
    assert times.shape == (5, 3) and times.dtype == np.float64
    np.testing.assert_array_equal(times, [[4, 2, 1]] * 5)


@pytest.mark.parametrize(
    ("names", "rounds"),
    [("a", ["a", "a"]), ("ab", ["ab", "ba", "ab"]), ("abc", ["abc", "bca", "cab", "acb", "bac", "cba", "abc"])],
)
def test_each_round_starts_with_the_next_candidate(names: str, rounds: list[str], clock: Clock) -> None:
    interleaved([clock.candidate(name, 1.0) for name in names], rounds=len(rounds), warm_up=0)
    assert "".join(clock.calls) == "".join(rounds)


@pytest.mark.parametrize("count", [2, 3, 5, 7, 13])
def test_each_candidate_runs_once_a_round_and_follows_every_other_equally_often(count: int, clock: Clock) -> None:
    """Exactly so for a prime number of candidates, after n (n - 1) rounds."""
    names = "abcdefghijklm"[:count]
    interleaved([clock.candidate(name, 1.0) for name in names], rounds=count * (count - 1), warm_up=0)
    rounds = [clock.calls[start : start + count] for start in range(0, len(clock.calls), count)]
    assert all(sorted(calls) == list(names) for calls in rounds)
    follows = Counter(pair for calls in rounds for pair in pairwise(calls))
    assert len(follows) == count * (count - 1) and set(follows.values()) == {count - 1}


@pytest.mark.parametrize("count", [4, 6, 12])
def test_any_number_of_candidates_has_more_than_one_order(count: int, clock: Clock) -> None:
    names = "abcdefghijkl"[:count]
    interleaved([clock.candidate(name, 1.0) for name in names], rounds=4 * count, warm_up=0)
    before_first = {first for first, second in pairwise(clock.calls) if second == "a"}
    assert len(before_first) > 1
    assert all(clock.calls.count(name) == 4 * count for name in names)


@pytest.mark.parametrize("warm_up", [0, 1, 4])
def test_warming_up_does_not_count(warm_up: int, clock: Clock) -> None:
    seconds = iter([100.0] * warm_up + [1.0] * 3)

    def gets_faster() -> None:
        clock.calls.append("a")
        clock.now += next(seconds)

    np.testing.assert_array_equal(interleaved([gets_faster], rounds=3, warm_up=warm_up), np.ones((3, 1)))
    assert len(clock.calls) == warm_up + 3


def test_rounds_fill_the_seconds(clock: Clock) -> None:
    times = interleaved([clock.candidate("a", 0.004), clock.candidate("b", 0.002)], seconds=0.6, warm_up=3)
    assert len(times) == pytest.approx(100, abs=1)


def test_slow_candidates_run_often_enough_and_fast_ones_end(clock: Clock) -> None:
    assert len(interleaved([clock.candidate("a", 10.0)], seconds=0.1)) == MIN_ROUNDS
    assert len(interleaved([clock.candidate("a", 0.0)], seconds=0.1)) == MAX_ROUNDS


def test_what_is_called_after_a_round_is_not_timed(clock: Clock) -> None:
    rest = clock.candidate("rest", 50.0)
    times = interleaved([clock.candidate("a", 1.0)], rounds=2, warm_up=1, after_round=rest)
    assert clock.calls == ["a", "a", "rest", "a", "rest"]
    np.testing.assert_array_equal(times, [[1], [1]])


def test_a_candidate_that_fails_ends_it(clock: Clock) -> None:
    def fails() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        interleaved([clock.candidate("a", 1.0), fails], rounds=3)


def test_real_time_is_measured() -> None:
    times = interleaved([lambda: None, lambda: sum(range(20_000))], rounds=20)
    assert (times >= 0).all() and np.median(times[:, 1]) > np.median(times[:, 0])


@pytest.mark.parametrize(
    ("count", "arguments", "words"),
    [
        (0, {"rounds": 1}, "at least one candidate"),
        (1, {}, "rounds .*or seconds"),
        (1, {"rounds": 2, "seconds": 1.0}, "not both"),
        (1, {"rounds": 0}, r"rounds \(=0\) must be at least 1"),
        (1, {"rounds": -3}, r"rounds \(=-3\)"),
    ],
)
def test_bad_arguments_are_refused(count: int, arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        interleaved([lambda: None] * count, **arguments)


def test_the_processor_has_a_name_of_one_line() -> None:
    assert processor() and "\n" not in processor()
