"""Lines come out as they went in, however the file is packed or cut."""

import gzip
import random
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploytool.labels import lines as module
from deploytool.labels.lines import EndsEarlyError, read_lines, size_in_blocks


def all_lines(file: Path) -> list[bytes]:
    return [line for some in read_lines(file) for line in some]


@settings(max_examples=60)
@given(
    st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line), max_size=12),
    st.integers(1, 40),
    st.booleans(),
    st.integers(0, 3),
)
def test_all_lines_come_out(lines: list[bytes], block: int, ended: bool, packing: int) -> None:
    data = b"\n".join(lines) + b"\n" * ended
    if packing == 1:
        data = gzip.compress(data)
    elif packing == 2:  # members one after the other
        data = b"".join(gzip.compress(data[i : i + 9]) for i in range(0, len(data), 9))
    elif packing == 3:  # padding behind
        data = gzip.compress(data) + b"\0" * 70
    elif data.startswith(b"\x1f\x8b"):
        return
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(module, "BLOCK", max(block, 2))
        file = Path(folder) / "lines"
        file.write_bytes(data)
        expected = b"\n".join(lines).split(b"\n")
        if ended or not expected[-1]:  # an end of line ends a line, it does not start one
            expected = (b"\n".join(lines) + b"\n" * ended).split(b"\n")[:-1]
        assert all_lines(file) == expected


def test_a_line_without_end_takes_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "lines.gz"
    file.write_bytes(gzip.compress(b"a\n" + b"x" * (64 << 20) + b"\nb\n", 1))
    tracemalloc.start()
    assert all_lines(file) == [b"a", b"", b"b"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 << 20


def test_progress_counts_what_is_read_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(random.Random(0).randbytes((2 << 20) + 1))
    calls = []
    list(read_lines(file, lambda: calls.append(1)))
    assert len(calls) == size_in_blocks(file) == 3


@pytest.mark.parametrize("cut", [3, 12, 400, -1, -8])
def test_a_cut_file_gives_what_it_has_and_says_so(cut: int, tmp_path: Path) -> None:
    lines = [random.Random(i).randbytes(20).hex().encode() for i in range(200)]
    file = tmp_path / "lines.gz"
    file.write_bytes(gzip.compress(b"\n".join(lines))[:cut])
    found: list[bytes] = []
    with pytest.raises(EndsEarlyError, match="cut off"):
        for some in read_lines(file):
            found += some
    assert [*lines[: max(0, len(found) - 1)]] == found[:-1] and (cut > 0 or len(found) == 200)


def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(b"line\n" * 1000))
    data[-6] ^= 1  # the checksum
    (tmp_path / "lines.gz").write_bytes(data)
    with pytest.raises(EndsEarlyError, match="damaged"):
        all_lines(tmp_path / "lines.gz")
    (tmp_path / "lines.gz").write_bytes(gzip.compress(b"line\n") + b"trailing rubbish")
    with pytest.raises(EndsEarlyError, match="damaged"):
        all_lines(tmp_path / "lines.gz")
