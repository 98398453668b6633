"""The study of reasoning labels: rows by hand and against the networks, files, going on, bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import deploytool.reasoning as study
import deploytool.units as units
from deploytool.attacks.acceptance import AcceptanceRule
from deploytool.attacks.detection import measure_detection
from deploytool.attacks.registry import make_attack, recipe_base
from deploytool.cli import cli
from deploytool.data.datasets import load_dataset
from deploytool.errors import InputError, RunError
from deploytool.evaluation.accuracy import clean_accuracy
from deploytool.explain.consistency import Answers
from deploytool.models.setting import Setting
from deploytool.reasoning import Grid, reasoning
from deploytool.recipe import make_recipe
from deploytool.report.reasoning import render, write_reasoning
from deploytool.training.consistency import answers_to, consistency_settings, of_right
from deploytool.training.loop import train
from deploytool.training.run import Run, load_run

ARGUMENTS = ["--alpha", "0.5,0.75", "--attack", "fgsm", "--attack", "consistent-3", "--images", "60"]
GRID = Grid((0.5, 0.75), (0.9, 1.0), ("fgsm", "consistent-3"), 60)
WHERE = {"alpha": 0.5, "width": 1.0, "lambda": None}


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


def of(label: list[int], predicted: list[int], agreements: list[int], confidence: list[float]) -> Answers:
    return Answers(np.array(label), np.array(predicted), np.array(agreements), np.array(confidence), 10)


BEFORE = of([0, 0, 0, 0, 1], [0, 0, 0, 1, 1], [10, 9, 8, 7, 10], [0.9, 0.8, 0.4, 0.7, 0.6])
AFTER = of([0, 0, 0, 1], [1, 1, 0, 0], [9, 6, 9, 10], [0.9, 0.5, 0.7, 0.95])  # of the four that were right


def test_a_row_of_images_by_hand() -> None:
    row = study._row(WHERE, 0.9, BEFORE)
    assert (row["coverage"], row["accuracy_consistent"], row["accuracy"]) == (0.6, 1.0, 0.8)
    assert row["accuracy_max_softmax"] == 2 / 3  # 0.9, 0.8 and 0.7, whose class is wrong
    assert row["auroc"] == 1.0 and row["auroc_max_softmax"] == 2 / 4  # 0.9 and 0.8 are above 0.7, 0.6 and 0.4 below
    assert row["attack"] is None and row["detection_rate"] is None and row["n"] == 5 and row["n_attacked"] is None


def test_a_row_of_an_attack_by_hand() -> None:
    row = study._row(WHERE, 0.9, BEFORE, "fgsm", AFTER)
    assert row["n_attacked"] == 4 and row["coverage_right"] == 3 / 4 and row["class_changed"] == 3 / 4
    assert row["detection_rate"] == 1 / 4 and row["detection_rate_changed"] == 1 / 3
    assert row["rejected_rate"] == 1 / 3  # of three that were accepted before, one is rejected
    assert row["evasion_rate"] == 2 / 4
    # softmax accepts as many of all images from 0.7 up: of the right ones 0.9 and 0.8, then 0.9, 0.7 and 0.95
    assert row["detection_rate_max_softmax"] == 1 / 4 and row["evasion_rate_max_softmax"] == 2 / 4
    before, after = [10, 9, 8, 10], [9, 6, 9, 10]
    pairs = [(b > a) + 0.5 * (b == a) for b in before for a in after]
    assert row["auroc"] == sum(pairs) / 16
    before, after = [0.9, 0.8, 0.4, 0.6], [0.9, 0.5, 0.7, 0.95]
    assert row["auroc_max_softmax"] == sum((b > a) + 0.5 * (b == a) for b in before for a in after) / 16


def test_an_attack_that_knows_one_rule_says_nothing_of_the_other() -> None:
    row = study._row(WHERE, 0.9, BEFORE, "consistent-5:restarts=1", AFTER)
    assert row["evasion_rate"] == 0.5 and row["auroc"] is not None
    assert all(row[f"{name}_max_softmax"] is None for name in ("detection_rate", "evasion_rate", "auroc"))
    assert study._row(WHERE, 0.9, BEFORE, "fgsm", None)["detection_rate"] is None


def test_there_is_a_row_for_each_alpha_threshold_and_attack(document) -> None:
    found = [(row["alpha"], row["attack"], row["t_rsn"]) for row in document["rows"]]
    assert found == [(a, name, t) for a in (0.5, 0.75) for name in (None, "fgsm", "consistent-3") for t in (0.9, 1.0)]
    contract = {"alpha", "t_rsn", "coverage", "accuracy_consistent", "accuracy_base", "attack", "detection_rate"}
    assert all(contract | {"auroc", "auroc_max_softmax"} <= set(row) for row in document["rows"])
    assert all(row["n"] == 60 for row in document["rows"])


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
    assert {(row["alpha"], row["epoch"]) for row in document["epochs"]} == {
        (alpha, epoch) for alpha in (0.5, 0.75) for epoch in (1, 2, 3)
    }
    for line in document["curves"]:
        assert line["agreement"][-1]["coverage"] == line["max_softmax"][-1]["coverage"] == 1


@pytest.mark.parametrize("name", ["fgsm", "consistent-3"])
def test_detection_is_that_of_the_attacks_own_measure(name: str, document, run: Run) -> None:
    test = load_dataset(run.recipe.data).test.head(60)
    (setting,) = consistency_settings(run.recipe, run.model)
    image, label = of_right(test, answers_to(run.model, setting, test)).batch(slice(None))
    attack = make_attack(name, recipe_base(run.recipe))
    for t in (0.9, 1.0):
        rule = AcceptanceRule(run.model.reason_vectors, t)
        with run.model.network(setting, reasoning=True) as network:
            _, found = measure_detection(network, image, label, attack, rule, run.recipe.seed)
        (row,) = (r for r in document["rows"] if (r["alpha"], r["attack"], r["t_rsn"]) == (0.5, name, t))
        assert row["detection_rate"] == found.detection_rate and row["evasion_rate"] == found.undetected_rate
        assert row["coverage_right"] == found.before.coverage and row["rejected_rate"] == found.rejected_rate


def test_files_are_written(document) -> None:
    assert {"json", "md", "csv", "fig-1", "fig-2", "coverage"} == set(document["files"])
    for file in document["files"].values():
        assert Path(file).stat().st_size > 100
    text = Path(document["files"]["md"]).read_text()
    assert "evasion" in text and "consistent-3" in text and text.startswith("digits-reasoning: resnet8")
    assert render(document).count("fgsm") == 4


def test_a_second_call_computes_nothing_and_an_interrupted_one_goes_on(document, run: Run, monkeypatch) -> None:
    done: list[str] = []
    train, attack = units.train, study.answers_under_attack
    monkeypatch.setattr(units, "train", lambda *a, **k: done.append(Path(a[1]).name) or train(*a, **k))
    monkeypatch.setattr(study, "answers_under_attack", lambda *a: done.append(f"{a[4]} {a[5]}") or attack(*a))
    assert reasoning(run, GRID)["rows"] == document["rows"] and done == []
    less = reasoning(run, Grid((0.5,), (1.0,), ("fgsm",), 60))
    assert done == [] and len(less["rows"]) == 2
    files = sorted((run.path / "reasoning" / "answers").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:100])  # cut off
    files[1].write_bytes(files[2].read_bytes())  # another's
    assert reasoning(run, GRID)["rows"] == document["rows"] and len(done) <= 2
    done.clear()
    shutil.rmtree(run.path / "reasoning" / "alpha-0.75")
    assert reasoning(run, GRID)["rows"] == document["rows"]
    assert done == ["alpha-0.75"]  # to the same bits, so that the answers are still its own


def test_other_alphas_are_trained_on_the_runs_own_labels(reasoned_run: Run, tmp_path: Path, monkeypatch) -> None:
    """Whatever has become of the file that the recipe names."""
    file = tmp_path / "labels.yaml"
    file.write_text("\n".join(f'"{c}": [all, even{c % 2}, only{c}]' for c in range(10)))
    document = reasoned_run.recipe.model_dump(mode="json", by_alias=True)
    document["reasoning"]["labels"], document["optimizer"]["epochs"] = "labels.yaml", 1
    monkeypatch.chdir(tmp_path)
    train(make_recipe(document), "run")
    file.write_text("\n".join(f'"{c}": [only{c}]' for c in range(10)))
    grid = Grid((0.25,), (0.9,), (), 20)
    reasoning(load_run("run"), grid)
    other = load_run("run/reasoning/alpha-0.25")
    assert other.labels.to_dict() == load_run("run").labels.to_dict() and other.model.reasons == 13
    shutil.rmtree("run/reasoning/alpha-0.25")
    train(other.recipe, "run/reasoning/alpha-0.25")  # on the file as it is now
    with pytest.raises(RunError, match="was trained with other reasoning labels"):
        reasoning(load_run("run"), grid)


def test_a_run_that_was_interrupted_goes_on_first(reasoned_run: Run, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        saved: list[Any] = []

        def stop(*arguments: Any) -> None:
            if saved:
                raise KeyboardInterrupt
            saved.append(arguments)
            keep(*arguments)

        from deploytool.training import loop

        keep = loop.save_checkpoint
        patch.setattr(loop, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            train(reasoned_run.recipe, folder)
    assert load_run(folder).checkpoint.epochs == 1
    result = reasoning(load_run(folder), Grid((0.5,), (0.9,), ("fgsm",), 20))
    assert load_run(folder).checkpoint.epochs == result["epochs_trained"] == 3
    assert [row["epoch"] for row in result["epochs"]] == [1, 2, 3]
    assert result["warnings"] == [
        "no attack knew of the rule of acceptance: detection rates are upper bounds; add consistent-20"
    ]


def test_a_slim_conditional_recipe_is_measured_at_every_width_and_both_ends(reasoned_run: Run, tmp_path: Path) -> None:
    changes = {"method": {"name": "float"}, "evaluate": {"images": 30, "attacks": ["fgsm", "consistent-2"]}}
    document = reasoned_run.recipe.model_dump(mode="json", by_alias=True) | changes
    document["model"]["widths"], document["optimizer"]["epochs"] = [0.5, 1.0], 1
    result = reasoning(make_recipe(document), Grid((0.5,), (0.9,), ("fgsm",)), tmp_path / "run")
    assert {(row["width"], row["lambda"]) for row in result["rows"]} == {(0.5, 0), (0.5, 1), (1, 0), (1, 1)}
    base = {(row["width"], row["lambda"]): row["accuracy_base"] for row in result["rows"]}
    plain = load_run(tmp_path / "run" / "reasoning" / "base")
    test = load_dataset(plain.recipe.data).test.head(30)
    for setting in consistency_settings(plain.recipe, plain.model, (0.5, 1.0)):
        with plain.model.network(setting) as network:
            assert base[setting.width, setting.lam] == clean_accuracy(network, test)
    files = write_reasoning(result, tmp_path)
    assert {"fig-1-lambda-0", "fig-2-lambda-1", "coverage-lambda-0", "coverage-lambda-1-width-0.5"} <= set(files)
    assert "width 0.5, lambda 1" in render(result)


@pytest.mark.parametrize("alphas, thresholds, words", [
    ([1.5], [0.9], r"alpha \(=1.5\) must be between 0 and 1"), ([float("nan")], [0.9], "alpha"),
    ([0.5], [1.5], r"t_rsn \(=1.5\) must be in \[0, 1\]"), ([], [0.9], "no alpha"), ([0.5], [], "no t_rsn"),
])  # fmt: skip
def test_bad_numbers_are_refused(alphas, thresholds, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Grid(alphas, thresholds)


def test_what_stands_twice_is_measured_once() -> None:
    grid = Grid((0.5, 0.5), (1, 1.0), ("fgsm", "fgsm"))
    assert (grid.alphas, grid.thresholds, grid.attacks) == ((0.5,), (1.0,), ("fgsm",))


def test_bad_input_is_refused_in_one_line_before_training(plain_run: Run, tmp_path: Path, monkeypatch) -> None:
    recipes = Path(__file__).parents[1] / "recipes"
    monkeypatch.chdir(tmp_path)
    for arguments, words in [
        ([str(plain_run.path)], "has no reasoning labels; add a section reasoning"),
        ([str(recipes / "digits-standard.yaml")], "digits-standard has no reasoning labels"),
        ([str(recipes / "digits-reasoning.yaml"), "--t-rsn", "1.5"], "t_rsn (=1.5) must be in [0, 1]"),
        ([str(recipes / "digits-reasoning.yaml"), "--attack", "pgdd-3"], "attack (='pgdd-3') is unknown"),
        ([str(recipes / "digits-reasoning.yaml")], f"(from {tmp_path}) cannot be read"),
        (["absent"], "absent is no run"),
    ]:
        result = CliRunner().invoke(cli, ["reasoning", *arguments])
        lines = [line for line in result.output.splitlines() if not line.endswith("...")]
        assert result.exit_code == 1 and len(lines) == 1 and words in lines[0], result.output
        assert list(tmp_path.iterdir()) == []
    assert CliRunner().invoke(cli, ["reasoning", str(plain_run.path), "--set", "seed=1"]).exit_code == 2


def test_warnings_name_the_attack_that_is_too_weak() -> None:
    rows = [
        {**WHERE, "t_rsn": 0.9, "attack": name, "evasion_rate": rate, "n_attacked": 100}
        for name, rate in ((None, None), ("fgsm", 0.2), ("pgd-20", 0.9), ("consistent-5", 0.5))
    ]
    (line,) = study._warnings(rows)
    assert line.startswith("pgd-20 evades the rule at 0.900") and "at 0.500" in line
    assert study._warnings(rows[:2] + rows[3:]) == [] and study._warnings(rows[:1]) == []
