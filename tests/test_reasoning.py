"""The study of reasoning labels: rows against the networks, files, going on after an interruption, bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import deploytool.units as units
from deploytool.cli import cli
from deploytool.data.datasets import load_dataset
from deploytool.errors import InputError
from deploytool.evaluation.accuracy import clean_accuracy
from deploytool.models.setting import Setting
from deploytool.reasoning import reasoning
from deploytool.report.reasoning import render
from deploytool.training.consistency import answers_to, consistency_settings
from deploytool.training.run import Run, load_run

ARGUMENTS = ["--alpha", "0.5,0.75", "--attack", "fgsm", "--attack", "consistent-3", "--images", "60"]


@pytest.fixture(scope="module")
def run(reasoned_run: Run, tmp_path_factory) -> Run:
    """A copy, since the study writes into it."""
    folder = tmp_path_factory.mktemp("study") / "run"
    shutil.copytree(reasoned_run.path, folder)
    return load_run(folder)


@pytest.fixture(scope="module")
def document(run: Run) -> dict[str, Any]:
    arguments = ["reasoning", str(run.path), *ARGUMENTS, "--device", "cpu", "--threads", "1", "--json"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_there_is_a_row_for_each_alpha_threshold_and_attack(document) -> None:
    found = [(row["alpha"], row["attack"], row["t_rsn"]) for row in document["rows"]]
    assert found == [(a, name, t) for a in (0.5, 0.75) for name in (None, "fgsm", "consistent-3") for t in (0.9, 1.0)]
    contract = {"alpha", "t_rsn", "coverage", "accuracy_consistent", "accuracy_base", "attack", "detection_rate"}
    assert all(contract | {"auroc", "auroc_max_softmax"} <= set(row) for row in document["rows"])
    assert all(row["n"] == 60 for row in document["rows"])
    for row in document["rows"]:
        if row["attack"]:
            assert row["evasion_rate"] + row["detection_rate"] <= 1
            assert row["evasion_rate"] <= row["class_changed"]


def test_figures_are_those_of_the_networks(document, run: Run) -> None:
    test = load_dataset(run.recipe.data).test.head(60)
    base = load_run(run.path / "reasoning" / "base")
    assert base.recipe.reasoning is None and base.labels is None
    with base.model.network(Setting()) as network:
        assert document["rows"][0]["accuracy_base"] == clean_accuracy(network, test)
    other = load_run(run.path / "reasoning" / "alpha-0.75")
    assert other.recipe.reasoning.alpha == 0.75
    for each in (run, other):
        (setting,) = consistency_settings(each.recipe, each.model)
        found = answers_to(each.model, setting, test)
        alpha = each.recipe.reasoning.alpha
        rows = [row for row in document["rows"] if row["alpha"] == alpha and row["attack"] is None]
        assert [row["coverage"] for row in rows] == [found.coverage(t) for t in (0.9, 1.0)]
        assert [row["accuracy_consistent"] for row in rows] == [found.accuracy_consistent(t) for t in (0.9, 1.0)]
        assert {row["accuracy"] for row in rows} == {found.accuracy}
        for row in rows:  # the softmax rule, by sorting; those as sure as the last are accepted, too
            least = sorted(found.confidence, reverse=True)[round(row["coverage"] * 60) - 1]
            assert row["accuracy_max_softmax"] == pytest.approx(found.right[found.confidence >= least].mean())
    assert {(row["alpha"], row["epoch"]) for row in document["epochs"]} == {
        (alpha, epoch) for alpha in (0.5, 0.75) for epoch in (1, 2, 3)
    }
    for line in document["curves"]:
        assert line["agreement"][-1]["coverage"] == line["max_softmax"][-1]["coverage"] == 1


def test_files_are_written(document) -> None:
    assert {"json", "md", "csv", "fig-1", "fig-2", "coverage"} == set(document["files"])
    for file in document["files"].values():
        assert Path(file).stat().st_size > 100
    text = Path(document["files"]["md"]).read_text()
    assert "evasion" in text and "consistent-3" in text and text.startswith("digits-reasoning: resnet8")
    assert render(document).count("fgsm") == 4


def test_a_second_call_computes_nothing_and_an_interrupted_one_goes_on(document, run: Run, monkeypatch) -> None:
    done: list[str] = []
    train = units.train
    monkeypatch.setattr(units, "train", lambda *a, **k: done.append(str(a[1])) or train(*a, **k))
    call = ((0.5, 0.75), (0.9, 1.0), ("fgsm", "consistent-3"), 60)
    again = reasoning(run, *call)
    assert done == [] and again["rows"] == document["rows"]
    (run.path / "reasoning" / "alpha-0.5.json").write_text("{")  # cut off
    assert reasoning(run, *call)["rows"] == document["rows"] and done == []
    shutil.rmtree(run.path / "reasoning" / "alpha-0.75")
    assert reasoning(run, *call)["rows"] == document["rows"]
    assert [Path(folder).name for folder in done] == ["alpha-0.75"]


@pytest.mark.parametrize("alphas, thresholds, words", [
    ([1.5], [0.9], r"alpha \(=1.5\) must be between 0 and 1"), ([float("nan")], [0.9], "alpha"),
    ([0.5], [1.5], r"t_rsn \(=1.5\) must be in \[0, 1\]"), ([], [0.9], "no alpha"), ([0.5], [], "no t_rsn"),
])  # fmt: skip
def test_bad_numbers_are_refused_before_training(alphas, thresholds, words: str, run: Run) -> None:
    with pytest.raises(InputError, match=words):
        reasoning(run, alphas, thresholds)


def test_a_run_without_labels_is_refused(plain_run: Run) -> None:
    with pytest.raises(InputError, match="was trained without reasoning labels; add a section reasoning"):
        reasoning(plain_run)
    result = CliRunner().invoke(cli, ["reasoning", str(plain_run.path)])
    assert result.exit_code == 1 and result.output.count("\n") == 1
    result = CliRunner().invoke(cli, ["reasoning", str(plain_run.path), "--set", "seed=1"])
    assert result.exit_code == 2


def test_an_unknown_attack_is_refused_before_training(run: Run) -> None:
    with pytest.raises(InputError, match="unknown"):
        reasoning(run, attacks=["pgdd-3"])
