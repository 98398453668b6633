"""Files appear whole or not at all, also when the writer fails or is killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploytool.atomic import atomic_path, remove_leftovers, writable_folder, write_json, write_text
from deploytool.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_with_what_was_written(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "new.bin") as aside:
        aside.write_bytes(b"\x00new")
        assert names(tmp_path) == [aside.name] and aside.parent == tmp_path
    assert names(tmp_path) == ["new.bin"] and (tmp_path / "new.bin").read_bytes() == b"\x00new"


def test_the_old_content_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with atomic_path(target) as aside:
        aside.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "file", "text")
    assert (tmp_path / "a" / "b" / "file").read_text() == "text"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_inside_keeps_the_old_content_and_leaves_nothing(tmp_path: Path, failure: type) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(failure), atomic_path(target) as aside:
        aside.write_text("half")
        raise failure
    assert target.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_failure_before_anything_is_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early"), atomic_path(tmp_path / "file"):
        raise ValueError("early")
    assert names(tmp_path) == []


def test_a_writer_that_writes_nothing_is_an_error_and_no_empty_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file"):
        pass
    assert names(tmp_path) == []


def test_text_is_utf_8_and_json_keeps_the_order_of_keys(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "λ = ½\n")
    assert (tmp_path / "t").read_bytes() == b"\xce\xbb = \xc2\xbd\n"
    write_json(tmp_path / "j", {"b": [1, 0.5, None], "a": "λ"})
    text = (tmp_path / "j").read_text(encoding="utf-8")
    assert json.loads(text) == {"b": [1, 0.5, None], "a": "λ"}
    assert text.index('"b"') < text.index('"a"') and text.endswith("}\n")


@pytest.mark.parametrize("document", [{"x": float("nan")}, {"x": float("inf")}, {"x": object()}])
def test_what_json_does_not_know_leaves_the_old_file(tmp_path: Path, document: dict) -> None:
    write_json(tmp_path / "j", {"old": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "j", document)
    assert json.loads((tmp_path / "j").read_text()) == {"old": 1} and names(tmp_path) == ["j"]


KILLED_WRITER = """
import os, signal, sys
from deploytool.atomic import atomic_path
with atomic_path(sys.argv[1]) as aside:
    with aside.open("w") as file:
        file.write("half of the new")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_damages_nothing_and_its_leftover_can_be_removed(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    target.write_text("old")
    (tmp_path / ".hidden").write_text("a user's own file")
    (tmp_path / "notes.tmp").write_text("another")
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    (leftover,) = set(names(tmp_path)) - {"model.onnx", ".hidden", "notes.tmp"}
    assert (tmp_path / leftover).read_text() == "half of the new"

    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", "model.onnx", "notes.tmp"] and target.read_text() == "old"
    remove_leftovers(tmp_path)


def test_two_processes_write_to_different_files_aside(tmp_path: Path) -> None:
    code = "import sys\nfrom deploytool.atomic import atomic_path\nwith atomic_path(sys.argv[1]) as aside:\n"
    code += "    print(aside.name)\n    aside.write_text('theirs')"
    with atomic_path(tmp_path / "file") as aside:
        aside.write_text("ours")
        other = subprocess.check_output([sys.executable, "-c", code, str(tmp_path / "file")], text=True).strip()
        assert other != aside.name and str(os.getpid()) in aside.name
        assert (tmp_path / "file").read_text() == "theirs" and aside.read_text() == "ours"
    assert (tmp_path / "file").read_text() == "ours" and names(tmp_path) == ["file"]


def test_concurrent_readers_never_see_a_part(tmp_path: Path) -> None:
    target = tmp_path / "file"
    code = "import sys\nfrom deploytool.atomic import write_text\n"
    code += "for i in range(150): write_text(sys.argv[1], str(i % 10) * 20000)"
    write_text(target, "x" * 20000)
    writer = subprocess.Popen([sys.executable, "-c", code, str(target)])
    reads = 0
    while writer.poll() is None or reads == 0:
        text = target.read_text()
        assert len(text) == 20000 and len(set(text)) == 1
        reads += 1
    assert writer.returncode == 0 and target.read_text() == "9" * 20000


def test_a_folder_is_made_and_tried_without_a_trace(tmp_path: Path) -> None:
    for _ in range(2):
        assert names(writable_folder(tmp_path / "a" / "b", "choose another")) == []


def test_a_folder_that_cannot_be_written_to_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    unwritable = [tmp_path / "file", tmp_path / "file" / "below", Path("/proc/self/fd")]
    for folder in unwritable if Path("/proc/self/fd").is_dir() else unwritable[:2]:
        with pytest.raises(InputError, match=f"^cannot write to folder {folder} .*; choose another with -o$"):
            writable_folder(folder, "choose another with -o")
