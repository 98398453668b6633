"""Calibration: the fastest number of threads, measured once, remembered per network and machine."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploytool.runtime import Session, calibration
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.calibration import cache_file, calibrated_threads
from deploytool.runtime.graph import Graph


class Clock:
    """Time that passes only when an inference runs."""

    def __init__(self) -> None:
        self.now, self.made = 0.0, list[int]()

    def perf_counter(self) -> float:
        return self.now

    def candidate(self, seconds: dict[int, float]) -> Callable[[int], Callable[[], object]]:
        def candidate(threads: int) -> Callable[[], object]:
            self.made.append(threads)

            def inference() -> None:
                self.now += seconds[threads]

            return inference

        return candidate


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clock = Clock()
    monkeypatch.setattr(calibration.time, "perf_counter", clock.perf_counter)
    return clock


def available(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(calibration, "available_threads", lambda: threads)


@pytest.fixture
def graph(trained_file: Path) -> Graph:
    return read_artefact(trained_file).graph


@pytest.mark.parametrize(
    ("threads", "seconds", "tried", "fastest"),
    [
        (2, {1: 1.0, 2: 2.0}, [1, 2], 1),  # what a machine of two virtual CPUs does
        (2, {1: 1.0, 2: 0.6}, [1, 2], 2),
        (2, {1: 1.0, 2: 0.96}, [1, 2], 1),  # 4 % do not pay for a core
        (6, {1: 4.0, 2: 2.0, 4: 1.5, 6: 1.0}, [1, 2, 4, 6], 6),
        (8, {1: 4.0, 2: 2.0, 4: 1.0, 8: 1.2}, [1, 2, 4, 8], 4),
        (3, {1: 1.0, 2: 3.0, 3: 0.5}, [1, 2, 3], 3),
    ],
)
def test_the_fastest_is_chosen_and_remembered(
    threads: int,
    seconds: dict[int, float],
    tried: list[int],
    fastest: int,
    clock: Clock,
    graph: Graph,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    available(monkeypatch, threads)
    assert calibrated_threads(graph, clock.candidate(seconds)) == fastest
    assert clock.made == tried
    assert calibrated_threads(graph, clock.candidate(seconds)) == fastest
    assert clock.made == tried  # nothing was measured again
    assert list(json.loads(cache_file().read_text()).values()) == [fastest]


def test_one_thread_needs_no_measurement(clock: Clock, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, 1)
    assert calibrated_threads(graph, clock.candidate({})) == 1
    assert clock.made == [] and not cache_file().exists()


def test_a_slow_network_is_measured_briefly(clock: Clock, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, 2)
    assert calibrated_threads(graph, clock.candidate({1: 60.0, 2: 30.0})) == 2
    assert clock.now == 180  # one round to warm up, one to measure


@pytest.mark.parametrize("damage", ["", "{", "[1]", '"x"', "[" * 100_000, '{"KEY": "2"}', '{"KEY": 99}', '{"KEY": 0}'])
def test_a_damaged_file_is_measured_over(
    damage: str, clock: Clock, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    available(monkeypatch, 2)
    assert calibrated_threads(graph, clock.candidate({1: 1.0, 2: 0.5})) == 2
    key = next(iter(json.loads(cache_file().read_text())))
    cache_file().write_text(damage.replace("KEY", key))
    assert calibrated_threads(graph, clock.candidate({1: 1.0, 2: 0.5})) == 2
    assert clock.made == [1, 2, 1, 2]
    assert json.loads(cache_file().read_text()) == {key: 2}


def test_another_network_machine_or_onnxruntime_is_measured_anew(
    clock: Clock, graph: Graph, plain_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    available(monkeypatch, 2)
    candidate = clock.candidate({1: 1.0, 2: 0.5, 4: 9.0})
    calibrated_threads(graph, candidate)
    calibrated_threads(read_artefact(plain_file).graph, candidate)
    monkeypatch.setattr(calibration.onnxruntime, "__version__", "0.0")
    calibrated_threads(graph, candidate)
    monkeypatch.setattr(calibration, "processor", lambda: "another")
    calibrated_threads(graph, candidate)
    available(monkeypatch, 4)
    calibrated_threads(graph, candidate)
    assert len(json.loads(cache_file().read_text())) == 5


def test_the_file_stays_small(clock: Clock, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, 2)
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(json.dumps({f"old{index}": 1 for index in range(1000)}))
    calibrated_threads(graph, clock.candidate({1: 1.0, 2: 0.5}))
    known = json.loads(cache_file().read_text())
    assert len(known) == 256 and "old999" in known and "old0" not in known


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    clock: Clock, graph: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    available(monkeypatch, 2)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert calibrated_threads(graph, clock.candidate({1: 1.0, 2: 0.5})) == 2


@pytest.mark.parametrize("shared_from", [0, 1 << 40])
def test_a_session_uses_what_was_measured(
    shared_from: int, trained_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Really measured, on networks of both kinds; then an answer of either side of the change of threads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("deploytool.runtime.session.SHARED_FROM_BYTES", shared_from)
    available(monkeypatch, 2)
    monkeypatch.setattr("deploytool.runtime.session.available_threads", lambda: 2)
    session, image = Session(trained_file), np.zeros((1, 1, 8, 8), np.float32)
    before = session.generic(image, 0.3)
    session.warm([0.3])
    assert session.threads in (1, 2)
    assert list(json.loads(cache_file().read_text()).values()) == [session.threads]
    np.testing.assert_allclose(session(image, 0.3), before, rtol=0, atol=1e-4)
    np.testing.assert_allclose(session.generic(image, 0.3), before, rtol=0, atol=1e-5)


def test_a_number_given_is_used_and_nothing_measured(trained_file: Path, clock: Clock) -> None:
    session = Session(trained_file, threads=2)
    session.warm([0.3])
    assert session.threads == 2 and not cache_file().exists()
