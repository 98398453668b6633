"""`bench --sweep`: which combinations, in which order, against which; how fast this machine is, is not tested."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploytool.errors import ArtefactError, InputError
from deploytool.export.artefact import export_untrained
from deploytool.recipe import load_recipe
from deploytool.report.sweep import conditions
from deploytool.runtime import sweep as sweep_module
from deploytool.runtime.session import Session
from deploytool.runtime.sweep import sweep

RECIPES = Path(__file__).parents[2] / "recipes"
KEYS = [
    "lambda", "width", "precision", "threads", "p50_ms", "p90_ms", "p99_ms", "throughput_ips", "ratio", "runs",
]  # fmt: skip
QUICK: dict[str, Any] = {"threads": [1], "seconds": 0.001}


@pytest.fixture(scope="module")
def int8_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slimmable FLOAT network that can be specialised to INT8, too."""
    file = tmp_path_factory.mktemp("int8") / "model.onnx"
    changes = ["model.arch=resnet8", "model.widths=[0.5, 1.0]"]
    export_untrained(load_recipe(RECIPES / "digits-float.yaml", changes), file, quantize="int8", calibration_images=4)
    return file


def settings(result: dict[str, Any], *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(row[key] for key in keys) for row in result["rows"]]


def test_all_combinations_of_a_slimmable_file_the_widest_first(wide_file: Path) -> None:
    result = sweep(wide_file, threads=[2, 1], batch=2, seconds=0.001)
    expected = [(w, "float32", t, lam) for w in (1.0, 0.5) for t in (1, 2) for lam in (0.0, 0.5, 1.0)]
    assert settings(result, "width", "precision", "threads", "lambda") == expected
    assert all(list(row) == KEYS for row in result["rows"])
    for row in result["rows"]:
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] and row["ratio"] > 0
        assert row["throughput_ips"] > 0 and row["runs"] >= 30
    assert result["rows"][0]["ratio"] == 1
    assert (result["file"], result["batch"]) == (str(wide_file), 2)
    assert result["cpus"] >= 1 and result["onnxruntime"] and result["processor"]
    json.dumps(result, allow_nan=False)


def test_both_precisions_of_a_file_that_has_them(int8_file: Path) -> None:
    result = sweep(int8_file, [0.5], **QUICK)
    expected = [(1.0, "float32"), (1.0, "int8"), (0.5, "float32"), (0.5, "int8")]
    assert settings(result, "width", "precision") == expected
    assert settings(sweep(int8_file, [0.5], [1.0], ["int8"], **QUICK), "width", "precision") == [(1.0, "int8")]


def test_chosen_combinations_alone_each_once(wide_file: Path) -> None:
    result = sweep(wide_file, [0.7, 0.2, 0.7], [0.5, 0.5], ["float32"], **QUICK)
    assert settings(result, "lambda", "width", "precision") == [(0.7, 0.5, "float32"), (0.2, 0.5, "float32")]
    assert result["rows"][0]["ratio"] == 1


def test_a_plain_file_has_threads_alone(plain_file: Path) -> None:
    result = sweep(plain_file, threads=[1, 2], seconds=0.001)
    assert settings(result, "lambda", "width", "threads") == [(None, 1.0, 1), (None, 1.0, 2)]


@pytest.mark.parametrize(("available", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4]), (8, [1, 2, 4, 8])])
def test_threads_are_powers_of_two_up_to_what_there_is(
    available: int, expected: list[int], plain_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "available_threads", lambda: available)
    assert [row["threads"] for row in sweep(plain_file, seconds=0.001)["rows"]] == expected


def test_each_row_is_the_network_of_its_setting(wide_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed are the specialised networks; their answers tell them apart."""
    answers: list[Any] = []

    def call_once(runs: Sequence[Any], seconds: float) -> np.ndarray[Any, Any]:
        answers.extend(run() for run in runs)
        return np.ones((1, len(runs)))

    monkeypatch.setattr(sweep_module, "_measure", call_once)
    result = sweep(wide_file, [0.0, 0.8], batch=3, **QUICK)
    image = sweep_module.random_images((3, 1, 8, 8))
    stored = Session(wide_file, threads=1)
    assert result["outputs"] == ["logits"] and all(list(answer) == ["logits"] for answer in answers)
    for (lam, width), answer in zip(settings(result, "lambda", "width"), answers, strict=True):
        np.testing.assert_allclose(answer["logits"], stored.generic(image, lam, width), atol=1e-4)
    assert len({answer["logits"].tobytes() for answer in answers}) == 4


def test_each_precision_is_its_own_network(int8_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = []
    monkeypatch.setattr(
        sweep_module, "_measure", lambda runs, seconds: answers.extend(run() for run in runs) or np.ones((1, len(runs)))
    )
    result = sweep(int8_file, [0.5], [1.0], batch=3, **QUICK)
    image = sweep_module.random_images((3, 1, 8, 8))
    for (precision,), answer in zip(settings(result, "precision"), answers, strict=True):
        session = Session(int8_file, threads=1, precision=precision, background=False)
        np.testing.assert_array_equal(answer["logits"], session(image, 0.5))
    assert not np.array_equal(*(answer["logits"] for answer in answers))


def test_reasons_are_computed_too_and_the_result_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = []
    monkeypatch.setattr(
        sweep_module, "_measure", lambda runs, seconds: answers.extend(run() for run in runs) or np.ones((1, len(runs)))
    )
    labels = f"reasoning.labels={RECIPES / 'labels' / 'digits.yaml'}"
    export_untrained(
        load_recipe(RECIPES / "digits-reasoning.yaml", ["model.arch=resnet8", labels]), tmp_path / "m.onnx"
    )
    result = sweep(tmp_path / "m.onnx", **QUICK)
    assert result["outputs"] == ["logits", "reasoning"] and [list(answer) for answer in answers] == [result["outputs"]]
    assert "m.onnx, batch 1, logits and reasoning; " in conditions(result)


def test_ratios_are_medians_over_rounds_against_the_first(wide_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds by hand, on a machine that gets slower: the ratio of medians would be another number."""
    times = np.array([[1.0, 2.0, 0.5, 1.0], [2.0, 4.0, 3.0, 1.0], [4.0, 8.0, 4.0, 1.0]]) / 1000
    monkeypatch.setattr(sweep_module, "_measure", lambda runs, seconds: times)
    rows = sweep(wide_file, [0.0, 1.0], batch=5, **QUICK)["rows"]
    assert [row["ratio"] for row in rows] == [1.0, 2.0, 1.0, 0.5]
    assert [row["p50_ms"] for row in rows] == pytest.approx([2, 4, 3, 1])
    assert rows[3]["throughput_ips"] == pytest.approx(5 * 3 / 0.003)


def test_what_does_not_fit_into_memory_is_measured_in_groups(wide_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One combination at a time, each beside the first: its column of times comes first in every group."""
    sizes: list[int] = []

    def by_position(runs: Sequence[Any], seconds: float) -> np.ndarray[Any, Any]:
        sizes.append(len(runs))
        return np.tile([2.0, 6.0][: len(runs)], (4, 1))

    monkeypatch.setattr(sweep_module, "MEMORY_BYTES", 1)
    monkeypatch.setattr(sweep_module, "_measure", by_position)
    rows = sweep(wide_file, [0.0, 1.0], **QUICK)["rows"]
    assert sizes == [1, 2, 2, 2]
    assert [row["ratio"] for row in rows] == [1.0, 3.0, 3.0, 3.0]
    assert [row["p50_ms"] for row in rows] == [2000.0, 6000.0, 6000.0, 6000.0]


def test_settings_of_one_number_of_threads_share_a_session(wide_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    class Counted(Session):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            opened.append(options["threads"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(sweep_module, "Session", Counted)
    sweep(wide_file, threads=[1, 2], seconds=0.001)
    assert opened == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lambdas": [0.0, 1.5]}, r"lambda \(=1.5\)"),
        ({"lambdas": [float("nan")]}, "lambda"),
        ({"widths": [0.75]}, r"width \(=0.75\) is not in .*holds 0.5, 1"),
        ({"precisions": ["int4"]}, r"precision \(='int4'\) must be int8 or float32"),
        ({"precisions": ["int8"]}, "--quantize int8"),
        ({"threads": [0]}, r"threads \(=0\)"),
        ({"threads": [5000]}, r"threads \(=5000\)"),
        ({"batch": 0}, r"batch \(=0\)"),
        ({"batch": 1 << 25}, "at most"),
        ({"seconds": 0.0}, r"seconds \(=0\)"),
        ({"seconds": float("nan")}, "seconds"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], words: str, wide_file: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        sweep(wide_file, **{**QUICK, **arguments})
    assert "\n" not in str(caught.value)


def test_too_many_combinations_are_refused_before_anything_is_made(
    wide_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "_measure", lambda *arguments: pytest.fail("measured"))
    words = r"130 combinations \(65 lambdas, 2 widths, 1 precisions, 1 threads\) .* fewer, 128 at most"
    with pytest.raises(InputError, match=words):
        sweep(wide_file, np.linspace(0, 1, 65).tolist(), **QUICK)


def test_a_plain_file_takes_no_lambda_and_no_width(plain_file: Path) -> None:
    with pytest.raises(InputError, match=r"lambda \(=0.5\) was given"):
        sweep(plain_file, [0.5], **QUICK)
    with pytest.raises(InputError, match=r"width \(=0.5\)"):
        sweep(plain_file, widths=[0.5], **QUICK)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    for file in (tmp_path / "x.onnx", tmp_path / "absent.onnx"):
        with pytest.raises(ArtefactError):
            sweep(file, **QUICK)
