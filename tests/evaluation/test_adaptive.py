"""Evaluation of runs with reasoning labels: the rule in every row, and the attack that knows it."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from deploytool.attacks.registry import AttackBase, make_attack
from deploytool.attacks.store import load_adversarial
from deploytool.cli import cli
from deploytool.data.datasets import load_dataset
from deploytool.errors import InputError
from deploytool.evaluation import evaluate
from deploytool.evaluation.adaptive import acceptance_rule, adaptive_attacks
from deploytool.evaluation.honesty import check_rows
from deploytool.evaluation.saved import verify_examples
from deploytool.models.setting import Setting
from deploytool.recipe import load_recipe
from deploytool.training.loop import train
from deploytool.training.run import Run, load_run

RECIPES = Path(__file__).parents[2] / "recipes"
BASE = AttackBase(0.1, 0.025, eps_l2=0.5)
LAMBDAS = [Setting(lam, conditioning="interpolate") for lam in (0.0, 1.0)]


@pytest.fixture(scope="session")
def reasoned_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small FLOAT run with reasoning labels."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reasoned") / "run"
    small = ["model.arch=resnet8", "optimizer.epochs=2", "attack.steps=2", "reasoning.every=0"]
    labels = f"reasoning.labels={RECIPES / 'labels' / 'digits.yaml'}"
    train(load_recipe(RECIPES / "digits-float.yaml", [*small, labels, "reasoning.threshold=0.8"]), folder)
    return load_run(folder)


def test_rows_agree_with_a_count_by_hand(reasoned_run: Run, naive_count) -> None:
    rows = evaluate(reasoned_run, ["pgd-3"], LAMBDAS, images=30, checks=False, adaptive=True).rows
    assert [row["attack"] for row in rows] == [
        name for name in ("pgd-3", "pgd-3:iterate=last", "consistent-20") for _ in LAMBDAS
    ]
    image, label = load_dataset(reasoned_run.recipe.data).test.batch(slice(0, 30))
    for setting in LAMBDAS:
        own = [row for row in rows if row["lambda"] == setting.lam]
        with reasoned_run.model.network(setting, reasoning=True) as network:
            right, accepted = naive_count(network(image), label, reasoned_run.labels.vectors(), 0.8)
        for row in own:
            assert row["clean_accuracy"] == sum(right) / 30 and row["coverage"] == sum(accepted) / 30
            both = sum(a and b for a, b in zip(right, accepted, strict=True))
            assert row["accuracy_accepted"] == (both / sum(accepted) if any(accepted) else None)
            assert row["reasoning_threshold"] == 0.8 and row["eps"] == reasoned_run.recipe.attack.eps
        adaptive = own[-1]
        assert adaptive["robust_accuracy"] == pytest.approx(1 - adaptive["undetected_rate"])
        assert adaptive["undetected_rate"] >= max(row["undetected_rate"] for row in own[:-1])


@pytest.fixture
def naive_count():
    """Who is right and who is accepted, from answers (N, K + R), by section 3.3 of the paper."""

    def count(answer: torch.Tensor, label: torch.Tensor, vectors, threshold: float) -> tuple[list[bool], list[bool]]:
        right, accepted = [], []
        for row, own in zip(answer.tolist(), label.tolist(), strict=True):
            named = row.index(max(row[: len(vectors)]))
            agreeing = [
                (value > 0) == bool(bit) for value, bit in zip(row[len(vectors) :], vectors[named], strict=True)
            ]
            right.append(named == own)
            accepted.append(sum(agreeing) / len(agreeing) >= threshold)
        return right, accepted

    return count


def test_class_columns_are_those_of_an_evaluation_without(reasoned_run: Run) -> None:
    plain, judged = (
        evaluate(reasoned_run, ["fgsm"], LAMBDAS[1:], images=40, checks=False, adaptive=adaptive).rows[0]
        for adaptive in (False, True)
    )
    assert plain.items() <= judged.items() and "coverage" not in plain


def test_examples_that_were_accepted_are_verified_with_the_rule(reasoned_run: Run, plain_run, tmp_path: Path) -> None:
    name = "consistent-3:targets=2"
    (row,) = evaluate(reasoned_run, [name], LAMBDAS[:1], images=30, save=tmp_path, checks=False).rows
    examples = load_adversarial(row["file"])
    assert examples.acceptance["threshold"] == 0.8 and row["coverage"] > 0
    result, _ = verify_examples(Path(row["file"]), reasoned_run.path)
    assert result.holds and result.robust_accuracy == row["robust_accuracy"] < 1
    with pytest.raises(InputError, match="has no such labels"):
        verify_examples(Path(row["file"]), plain_run.path)


def test_redrawn_noise_is_judged_too(reasoned_run: Run) -> None:
    setting = Setting(1.0, conditioning="interpolate", noise="redrawn")
    (row,) = evaluate(reasoned_run, ["consistent-2:eot_iter=2,targets=1"], [setting], images=16, checks=False).rows
    assert 0 <= row["coverage"] <= 1 and row["budget"]["eot_iter"] == 2


@pytest.mark.parametrize(
    ("names", "added"),
    [
        (["fgsm"], ["consistent-20"]),
        (["pgd-1"], ["consistent-20"]),
        (["pgd-7:restarts=2"], ["pgd-7:restarts=2,iterate=last", "consistent-20"]),
        (["fgsm", "deepfool"], ["consistent-20", "consistent-20-l2"]),
        (["fgsm:eps=0.05"], ["consistent-20:eps=0.050000000000000003"]),
        (["fgsm", "consistent-5:restarts=3"], []),
        (["pgd-2:iterate=last", "consistent-20"], []),
    ],
)
def test_what_is_added(names, added) -> None:
    assert adaptive_attacks(names, BASE) == [*names, *added]


def test_eps_of_an_added_attack_is_the_one_beside_it() -> None:
    names = adaptive_attacks(["fgsm:eps=7/255"], BASE)
    assert len({make_attack(name, BASE).eps for name in names}) == 1


ROW = {
    "attack": "pgd-20", "norm": "linf", "eps": 0.1, "n": 1000, "lambda": None, "lambda_threshold": None,
    "conditioning": None, "noise": None, "width": 1.0, "target_rate": None, "found_by": {}, "budget": {},
    "robust_accuracy": 0.1, "undetected_rate": 0.02,
}  # fmt: skip


@pytest.mark.parametrize(
    ("adaptive", "check"),
    [
        ({"robust_accuracy": 0.6, "undetected_rate": 0.4}, None),  # more robust than against pgd-20, by its own goal
        ({"robust_accuracy": 0.99, "undetected_rate": 0.01}, "adaptive-attack-is-weak"),
        (None, "not-adaptive"),
    ],
)
def test_the_rule_s_own_checks(adaptive, check) -> None:
    rows = [ROW] if adaptive is None else [ROW, {**ROW, "attack": "consistent-20", **adaptive}]
    assert [finding.check for finding in check_rows(rows)] == ([check] if check else [])


def test_at_the_command_line(reasoned_run: Run, plain_run: Run, plain_file: Path) -> None:
    common = ["--threads", "1", "--images", "16", "--lambda", "0", "--conditioning", "interpolate"]
    attacks = ["--attack", "fgsm", "--attack", "consistent-2:targets=1"]
    text = CliRunner().invoke(cli, ["evaluate", str(reasoned_run.path), "--adaptive", *attacks, *common])
    assert text.exit_code == 0 and "of changed" in text.stdout and "t_rsn 0.8" in text.stdout
    found = CliRunner().invoke(cli, ["evaluate", str(reasoned_run.path), "--adaptive", *attacks, *common, "--json"])
    keys = {"coverage", "accuracy_accepted", "detection_rate", "detection_rate_changed", "undetected_rate"}
    assert all(keys <= row.keys() for row in json.loads(found.stdout)["rows"])
    for arguments, words in (
        (
            [str(plain_run.path), "--attack", "consistent-2"],
            "has no reasoning labels; use an attack on the class alone",
        ),
        ([str(plain_run.path), "--adaptive"], "with reasoning labels or a library, and this run has neither"),
        ([str(plain_file), "--data", "digits", "--attack", "consistent-2"], "needs gradients"),
    ):
        refused = CliRunner().invoke(cli, ["evaluate", *arguments, "--threads", "1"])
        assert refused.exit_code == 1 and words in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr


def test_runs_without_labels_have_no_rule(plain_run: Run, reasoned_run: Run) -> None:
    assert acceptance_rule(plain_run.model, plain_run.recipe) is None
    rule = acceptance_rule(reasoned_run.model, reasoned_run.recipe)
    assert rule.vectors.tolist() == (reasoned_run.labels.vectors() != 0).tolist()
