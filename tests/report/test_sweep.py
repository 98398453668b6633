"""A sweep's table, JSON and figure: the numbers of its rows, whole files, and no figure without matplotlib."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deploytool import extras
from deploytool.report.sweep import render, write_sweep


def row(lam: float | None, width: float, threads: int, p50: float, ratio: float, precision: str = "float32") -> dict:
    return {
        "lambda": lam, "width": width, "precision": precision, "threads": threads, "p50_ms": p50, "p90_ms": p50 * 1.1,
        "p99_ms": p50 * 1.2, "throughput_ips": 1000 / p50, "ratio": ratio, "runs": 54,
    }  # fmt: skip


def result(*rows: dict) -> dict[str, Any]:
    about = {"file": "folder/model.onnx", "batch": 4, "outputs": ["logits"], "onnxruntime": "1.2.3"}
    about |= {"processor": "Abacus 3", "cpus": 2}
    return {**about, "rows": list(rows)}


SWEPT = result(row(0.0, 1.0, 1, 8.0, 1.0), row(0.25, 1.0, 2, 10.0, 1.25), row(0.25, 0.5, 2, 2.0, 0.256, "int8"))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_the_table_holds_every_row_under_what_was_measured_where() -> None:
    made, _, *table = render(SWEPT, "github").splitlines()
    for words in ("model.onnx", "batch 4", "onnxruntime 1.2.3", "Abacus 3", "2 CPUs", "54 rounds"):
        assert words in made
    heads = ["width", "precision", "threads", "lambda", "p50 ms", "p90 ms", "p99 ms", "images/s", "ratio"]
    assert cells(table[0]) == heads
    assert [cells(line) for line in table[2:]] == [
        ["1", "float32", "1", "0", "8.000", "8.800", "9.600", "125.0", "1.000"],
        ["1", "float32", "2", "0.25", "10.000", "11.000", "12.000", "100.0", "1.250"],
        ["0.5", "int8", "2", "0.25", "2.000", "2.200", "2.400", "500.0", "0.256"],
    ]


def test_a_plain_file_has_no_column_for_lambda() -> None:
    assert "lambda" not in render(result(row(None, 1.0, 1, 8.0, 1.0)))


def test_files_are_written_and_can_be_read(tmp_path: Path) -> None:
    said: list[str] = []
    files = write_sweep(SWEPT, tmp_path / "new" / "folder", said.append)
    assert {kind: Path(file).name for kind, file in files.items()} == {
        kind: f"sweep.{kind}" for kind in ("json", "md", "png", "svg")
    }
    assert sorted(map(str, (tmp_path / "new" / "folder").iterdir())) == sorted(files.values()) and said == []
    assert json.loads(Path(files["json"]).read_text()) == SWEPT
    assert Path(files["md"]).read_text() == render(SWEPT, "github") + "\n"
    with Image.open(files["png"]) as picture:
        picture.load()
        assert picture.format == "PNG"


def test_without_matplotlib_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "matplotlib" else object())
    said: list[str] = []
    assert list(write_sweep(SWEPT, tmp_path, said.append)) == ["json", "md"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["sweep.json", "sweep.md"]
    (line,) = said
    assert "matplotlib" in line and line.endswith("pip install 'deploytool[train]'") and "\n" not in line


def test_a_full_disk_keeps_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_sweep(SWEPT, tmp_path, print)
    before = {file: Path(file).read_bytes() for file in files.values()}

    def full(self: Path, *arguments: Any, **options: Any) -> None:
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_sweep(result(row(0.0, 1.0, 1, 1.0, 1.0)), tmp_path, print)
    assert {str(file): file.read_bytes() for file in tmp_path.iterdir()} == before
