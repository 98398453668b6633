"""The report shows what the stages found, and holds the recipe it came from."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploytool.recipe import Recipe, make_recipe
from deploytool.report.summary import sections, summary, write_report


def row(attack: str, lam: float, clean: float, robust: float, **more: Any) -> dict[str, Any]:
    return {
        "attack": attack, "width": 1.0, "lambda": lam, "lambda_threshold": 0.0, "conditioning": "switch", "n": 77,
        "clean_accuracy": clean, "robust_accuracy": robust, **more,
    }  # fmt: skip


def measured(p50: float) -> dict[str, Any]:
    return {"threads": 2, "batch": 1, "p50_ms": p50, "p99_ms": 2 * p50, "peak_rss_mb": 61.4}


def results(**changes: Any) -> dict[str, Any]:
    rows = [row("fgsm", 0, 0.9, 0.5), row("pgd-7", 0, 0.9, 0.25)]
    whole = {
        "evaluate": {"rows": rows, "warnings": [], "alphas": {"conv1": 0.125}},
        "compare": {
            "key": "method.noise",
            "attack": "pgd-7",
            "rows": [row("pgd-7", 0, 0.9, 0.25, value="frozen"), row("pgd-7", 0, 0.8, 0.125, value="none")],
            "alphas": {"none": {}, "frozen": {"conv1": 0.125}},
        },
        "export": {"file": "/run/model.onnx", "size_mb": 0.1234, "parity": {"max_abs_error": 2.5e-6, "cases": 20}},
        "bench": {"specialized": measured(0.5), "generic": measured(1.25)},
        "cost": {
            "method": "float",
            "report": {"totals": {"macs": 1234567, "params": 4321}},
            "totals": {name: {"delay_ns": ns} for name, ns in (("plain", 2e6), ("float", 2.5e6), ("oat", 3e6))},
        },
        "report": {"markdown": "/run/report.md", "plot": "/run/tradeoff.png"},
        **changes,
    }
    return {stage: result for stage, result in whole.items() if result is not None}


def table(found: dict[str, Any], title: str) -> list[list[str]]:
    """Lines of the one section whose title starts so, under the head."""
    (text,) = [text for name, text in sections(found, "github") if name.startswith(title)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


@pytest.fixture
def recipe() -> Recipe:
    return make_recipe({"name": "shown", "seed": 3, "method": {"name": "float"}, "evaluate": {"attacks": "fgsm,pgd-7"}})


def test_warnings_stand_right_below_the_figures() -> None:
    warned = {**results()["evaluate"], "warnings": [{"check": "frozen-noise", "message": "noise is frozen"}]}
    assert sections(results(evaluate=warned), "simple")[1] == ("Before you trust these figures", "- noise is frozen")


def test_every_stage_has_its_section() -> None:
    titles = [title for title, _ in sections(results(), "simple")]
    assert titles == [
        "Accuracy on 77 test images",
        "Side by side: clean / robust (pgd-7) accuracy",
        "Learned noise scaling factors",
        "Exported model on this machine",
        "Predicted delay on the 65 nm ASIC (paper 5, eqs. 7 to 9)",
    ]
    unfinished = results(compare=None, export=None, bench=None, cost=None, report=None)
    assert [title for title, _ in sections(unfinished, "simple")] == titles[:1]


def test_delays_are_in_ms_and_relative_to_the_plain_network() -> None:
    lines = table(results(), "Predicted delay")
    assert [line[1:] for line in lines[:3]] == [["2.0000", "1.000"], ["2.5000", "1.250"], ["3.0000", "1.500"]]
    assert [re.search(r"eq\. \d", line[0])[0] for line in lines[:3]] == ["eq. 7", "eq. 8", "eq. 9"]
    assert lines[3][0] == "1,234,567 MACs, 4,321 parameters"


def test_measurements_have_their_units() -> None:
    assert table(results(), "Exported model") == [
        ["file size", "0.123 MB"],
        ["parity: largest logit error", "2.5e-06 in 20 cases"],
        ["latency p50 / p99 (specialized, 2 threads, batch 1)", "0.500 / 1.000 ms"],
        ["peak memory (specialized)", "61 MB"],
        ["latency p50 / p99 (generic, 2 threads, batch 1)", "1.250 / 2.500 ms"],
        ["peak memory (generic)", "61 MB"],
    ]


def test_alphas_are_shown_where_there_are_any_whatever_value_comes_first() -> None:
    assert table(results(), "Learned") == [["conv1", "0.125"]]
    compared = {**results()["compare"], "alphas": {"none": {}, "other": {}}}
    assert not any(title.startswith("Learned") for title, _ in sections(results(compare=compared), "github"))


def test_the_summary_shows_the_tables_and_ends_with_the_files() -> None:
    found = results()
    stages = [{"stage": stage, "result": result, "skipped": False} for stage, result in found.items()]
    text = summary({"run": "/run", "stages": stages})
    lines = text.splitlines()
    for title, rendered in sections(found, "simple"):
        assert rendered in text and lines[lines.index(title) + 1] == "-" * len(title)
    assert [line.split() for line in lines[-4:]] == [
        ["run", "/run"], ["report", "/run/report.md"], ["plot", "/run/tradeoff.png"], ["model.onnx", "/run/model.onnx"],
    ]  # fmt: skip


def test_the_report_holds_tables_figure_and_the_whole_recipe(recipe: Recipe, tmp_path: Path) -> None:
    written = write_report(recipe, tmp_path, results())
    assert written == {"markdown": str(tmp_path / "report.md"), "plot": str(tmp_path / "tradeoff.png")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md", "tradeoff.png", "tradeoff.svg"]
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# shown\n") and recipe.digest() in text and "seed 3" in text
    for title, rendered in sections(results(), "github"):
        assert f"## {title}\n\n{rendered}\n" in text
    assert re.search(r"!\[[^]]+\]\(tradeoff\.png\)", text)
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert make_recipe(yaml.safe_load(block)) == recipe


def test_without_a_comparison_the_figure_shows_the_run_itself(recipe: Recipe, tmp_path: Path, monkeypatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("deploytool.report.summary.tradeoff_figure", lambda *arguments: seen.append(arguments))
    write_report(recipe, tmp_path, results(compare=None))
    ((rows, key, attack, alphas, path),) = seen
    assert (key, attack, path) == ("method", "pgd-7", tmp_path / "tradeoff.png")
    assert rows == [row("pgd-7", 0, 0.9, 0.25, value="float")] and alphas == {"float": {"conv1": 0.125}}
