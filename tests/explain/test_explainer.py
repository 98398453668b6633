"""Loading explainers: strict, bit-equal, and refused where they are damaged."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import CheckpointError, RecipeError, RunError
from deploytool.explain.explainer import load_explainer
from deploytool.explain.recipe import ExplainerRecipe, PhaseSection
from deploytool.models.setting import Setting
from deploytool.models.surrogate import build_surrogate

SHIPPED = sorted((Path(__file__).parents[2] / "recipes" / "explainers").glob("*.yaml"))
IMAGE = torch.rand(70, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_maps_are_those_of_the_model(float_explainer) -> None:
    again = load_explainer(float_explainer.path)
    for lam in (0.0, 0.4, 1.0):
        setting = Setting(lam, conditioning="interpolate", noise="none")
        logits, maps = again.explain(IMAGE, setting)
        with torch.no_grad():
            expected = float_explainer.model(IMAGE, setting)
        torch.testing.assert_close(logits, expected[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(maps, expected[1][:, 0], rtol=1e-3, atol=1e-4)
        assert maps.shape == (70, 8, 8) and maps.min() >= 0 and maps.max() <= 1


def test_folders_that_are_none(float_explainer, trained_run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is no explainer \(no explainer.yaml\); make one: deploytool explain train"):
        load_explainer(trained_run.path)
    copy = tmp_path / "copy"
    shutil.copytree(float_explainer.path, copy)
    recipe = (copy / "explainer.yaml").read_text()
    (copy / "explainer.yaml").write_text(recipe.replace("l1: 0.01", "l1: 0.02"))
    with pytest.raises(CheckpointError, match=r"its checkpoint is of another recipe than its explainer.yaml"):
        load_explainer(copy)
    (copy / "explainer.yaml").write_text(recipe)
    data = bytearray((copy / "checkpoint.safetensors").read_bytes())
    (copy / "checkpoint.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="checkpoint.safetensors is damaged"):
        load_explainer(copy)
    (copy / "checkpoint.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no checkpoint.safetensors"):
        load_explainer(copy)


def test_a_target_that_moved(float_explainer, trained_run, plain_run, tmp_path: Path, monkeypatch) -> None:
    """It is known by its absolute path, whatever folder one stands in; elsewhere it has to be named."""
    monkeypatch.chdir(tmp_path)
    assert float_explainer.open_target().name == str(trained_run.path)
    moved = tmp_path / "moved"
    shutil.copytree(trained_run.path, moved)
    assert float_explainer.open_target("moved").name == str(moved)
    with pytest.raises(RunError, match="is not what .* was trained to explain"):
        float_explainer.open_target(plain_run.path)
    lost = float_explainer.recipe.model_copy(update={"target": "/nowhere/run"})
    with pytest.raises(RunError, match=r"explains /nowhere/run, which is not there; say where .* --target"):
        replace(float_explainer, recipe=lost).open_target()


def test_the_papers_schedule() -> None:
    """Section 4.1: 0.1 for 100 epochs, a tenth three times every 30; for the explanation network 10 and 2."""
    schedule = ExplainerRecipe.make({"name": "x"}).schedule
    (_, student), (_, explanation) = schedule.phases
    assert (student.epochs, explanation.epochs) == (190, 16)
    rates = [student.rate(epoch) for epoch in (0, 99, 100, 129, 130, 159, 160, 189)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 1e-4, 1e-4])
    assert [explanation.rate(epoch) for epoch in (9, 10, 11, 12, 15)] == pytest.approx([0.1, 0.01, 0.01, 1e-3, 1e-4])
    assert PhaseSection(first=3, then=0).epochs == 3 and PhaseSection(first=3, then=0).rate(2) == 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": {"arhc": "x"}}, "unknown key student.arhc; did you mean arch"),
        ({"explanation": {"l1": -1}}, r"explanation.l1 \(=-1\)"),
        ({"distillation": {"temperature": 0}}, r"distillation.temperature \(=0\)"),
        ({"condition": {"lambdas": [0, 0]}}, "must not hold a lambda twice"),
        ({"schedule": {"student": {"then": 1}}}, "key schedule.student.first is missing"),
        (
            {"schedule": {part: {"first": 0, "then": 0} for part in ("student", "explanation")}},
            "schedule has no epochs: nothing would be learned",
        ),
    ],
)
def test_recipes_say_what_is_wrong(change: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ExplainerRecipe.make({"name": "x", **change})


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_recipes_are_valid(file: Path, tmp_path: Path) -> None:
    recipe = ExplainerRecipe.load(file)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert ExplainerRecipe.load(tmp_path / "again.yaml") == recipe and recipe.target is None
    assert build_surrogate(recipe.student.arch, CATALOGUE["cifar10"], recipe.student.multiplier) is not None
