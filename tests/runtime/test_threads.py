"""How many threads: CPU affinity and the quotas of both versions of control groups."""

import os
from pathlib import Path

import pytest

from deploytool.errors import InputError
from deploytool.runtime.threads import available_threads, check_threads


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def version_1(root: Path, quota: str, period: str) -> Path:
    folder = root / "cpu"
    folder.mkdir()
    (folder / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu.cfs_period_us").write_text(period)
    return root


@pytest.mark.parametrize(
    ("content", "threads"),
    [
        ("max 100000\n", 16),
        ("400000 100000\n", 4),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("9900000 100000\n", 16),
        ("100000 50000\n", 2),
        ("", 16),
        ("max", 16),
        ("nonsense here\n", 16),
        ("400000 0\n", 16),
        ("-1 100000\n", 1),
    ],
)
def test_version_2_quota_limits_the_threads(content: str, threads: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert available_threads(tmp_path) == threads


@pytest.mark.parametrize(
    ("quota", "period", "threads"),
    [
        ("-1\n", "100000\n", 16),
        ("300000\n", "100000\n", 3),
        ("150000\n", "100000\n", 1),
        ("10000\n", "100000\n", 1),
        ("6400000\n", "100000\n", 16),
        ("300000\n", "0\n", 16),
        ("", "", 16),
    ],
)
def test_version_1_quota_limits_the_threads(quota: str, period: str, threads: int, tmp_path: Path) -> None:
    assert available_threads(version_1(tmp_path, quota, period)) == threads


def test_no_control_groups_leave_the_affinity(tmp_path: Path) -> None:
    assert available_threads(tmp_path / "absent") == 16


def test_unreadable_bytes_leave_the_affinity(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_bytes(b"\xff\xfe\x00 \x80")
    assert available_threads(tmp_path) == 16


def test_version_2_goes_before_version_1(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert available_threads(version_1(tmp_path, "500000", "100000")) == 2


def test_without_affinity_the_cores_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_threads(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_threads(tmp_path) == 1


def test_this_machine_has_at_least_one_thread() -> None:
    assert 1 <= available_threads() <= 16


def test_a_number_given_is_taken_and_none_means_those_available() -> None:
    assert [check_threads(n) for n in (1, 3, 1024)] == [1, 3, 1024]
    assert check_threads(None) == available_threads()


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_a_number_out_of_range_is_refused(threads: int) -> None:
    with pytest.raises(InputError, match=r"must be in 1\.\.1024"):
        check_threads(threads)
