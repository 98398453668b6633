"""Evaluation: rows against a naive count, grids, equal starts, and work done once."""

from dataclasses import replace

import pytest
import torch

from deploytool.attacks.pgd import Pgd, pgd
from deploytool.attacks.run import run_attack
from deploytool.data.datasets import load_dataset
from deploytool.errors import InputError
from deploytool.evaluation import evaluate, evaluate_model, evaluation_settings
from deploytool.evaluation.accuracy import without_images
from deploytool.models.setting import Setting
from deploytool.recipe import make_recipe


def test_a_row_agrees_with_a_count_by_hand(trained_run) -> None:
    setting = Setting(1.0, 0.0, "switch", "frozen")
    (row,) = evaluate(trained_run, ["pgd-3"], [setting], images=100).rows
    image, label = load_dataset(trained_run.recipe.data).test.batch(slice(0, 100))
    recipe = trained_run.recipe
    budget = Pgd(recipe.attack.eps, recipe.attack.step_size, 3)
    budgets = [replace(budget, step_size=0.0, steps=1), *(replace(budget, steps=steps) for steps in (1, 2, 3))]
    with trained_run.model.network(setting) as network:
        seed = recipe.seed * 1_000_003
        iterates = [pgd(network, image, label, each, torch.Generator().manual_seed(seed)) for each in budgets]
        right = [
            [int(network(x[None]).argmax()) == y for x, y in zip(xs, label, strict=True)] for xs in (image, *iterates)
        ]
    clean, robust = int(sum(right[0])), sum(map(all, zip(*right, strict=True)))  # one iterate that fools is enough
    adversarial = iterates[-1]
    assert row["clean_accuracy"] == clean / 100 and row["robust_accuracy"] == robust / 100 and row["n"] == 100
    assert float((adversarial - image).abs().max()) <= 0.2 + 1e-6


def test_the_grid_of_a_recipe(float_recipe) -> None:
    settings = evaluation_settings(float_recipe)
    assert [(s.conditioning, s.lambda_threshold, s.lam) for s in settings] == [
        *[("switch", t, lam) for t in (0.0, 0.5) for lam in (0.0, 0.2, 0.7, 1.0)],
        *[("interpolate", 0.0, lam) for lam in (0.0, 0.2, 0.7, 1.0)],
    ]


def test_redrawn_noise_is_evaluated_as_it_is_deployed() -> None:
    recipe = make_recipe({"name": "x", "method": {"name": "float", "noise": "redrawn"}})
    assert {setting.noise for setting in evaluation_settings(recipe)} == {"frozen"}


def test_methods_without_lambda_have_one_setting(plain_run) -> None:
    rows = evaluate(plain_run, ["fgsm", "pgd-2"], images=50).rows
    assert [(row["attack"], row["lambda"], row["lambda_threshold"], row["conditioning"]) for row in rows] == [
        ("fgsm", None, None, None),
        ("pgd-2", None, None, None),
    ]


def test_settings_of_one_state_are_computed_once(trained_run, monkeypatch) -> None:
    import deploytool.evaluation.accuracy as accuracy

    attacks = []
    run = accuracy.attack_batches
    monkeypatch.setattr(accuracy, "attack_batches", lambda *a: attacks.append(1) or run(*a))
    same = [Setting(0.0, 0.0), Setting(0.0, 0.5), Setting(0.0, conditioning="interpolate")]
    rows = evaluate(trained_run, ["fgsm"], [*same, Setting(1.0, 0.0), Setting(1.0, 0.5)], images=40).rows
    assert len(attacks) == 2 and len(rows) == 5
    assert len({row["robust_accuracy"] for row in rows[:3]}) == 1


def test_every_setting_meets_the_same_starts_and_repeats(trained_run) -> None:
    first, second = (evaluate(trained_run, ["pgd-2"], [Setting(0.5)], images=60).rows for _ in range(2))
    assert first == second


def test_more_steps_never_look_safer_by_much(trained_run) -> None:
    """PGD-20 must be at least as strong as one step: otherwise the attack, not the model, is weak."""
    rows = evaluate(trained_run, ["fgsm", "pgd-20"], [Setting(1.0)], images=200).rows
    assert rows[1]["robust_accuracy"] <= rows[0]["robust_accuracy"] <= rows[0]["clean_accuracy"]


def test_an_unbounded_attack_reaches_zero(trained_run) -> None:
    recipe = trained_run.recipe.model_copy(
        update={"attack": trained_run.recipe.attack.model_copy(update={"eps": 1.0, "step_size": 0.1})}
    )
    test = load_dataset(recipe.data).test.head(100)
    (row,) = evaluate_model(trained_run.model, test, recipe, ["pgd-40"], [Setting(1.0)])
    assert row["robust_accuracy"] <= 0.02


@pytest.mark.parametrize(("lambdas", "thresholds"), [([1.1], None), ([0.5], [0.3]), ([float("nan")], None)])
def test_values_out_of_range_are_refused(float_recipe, lambdas, thresholds) -> None:
    with pytest.raises(InputError):
        evaluation_settings(float_recipe, lambdas, thresholds, ["switch"])


def test_images_that_nobody_wants_are_not_held(plain_run) -> None:
    image, label = load_dataset(plain_run.recipe.data).test.batch(slice(0, 50))
    with plain_run.model.network(Setting()) as network:
        result = without_images(run_attack(network, image, label, Pgd(0.1, 0.1, 1)))
    assert result.image.untyped_storage().nbytes() == 0 and len(result) == 50
