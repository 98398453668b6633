"""Honesty checks: each finds the fault it is for, and a plain network has none."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploytool.attacks.randomised import is_randomised
from deploytool.data.datasets import load_dataset
from deploytool.evaluation import evaluate
from deploytool.evaluation.honesty import Ladder, check_network, check_randomness, check_rows
from deploytool.models.setting import Setting


@pytest.fixture(scope="module")
def digits(plain_run) -> tuple[Tensor, Tensor]:
    return load_dataset(plain_run.recipe.data).test.batch(slice(0, 64))


@pytest.fixture(scope="module")
def network(plain_run) -> nn.Module:
    return plain_run.model.plain_network(Setting())


def row(attack: str, robust: float, **changes: Any) -> dict[str, Any]:
    return {
        "attack": attack, "lambda": None, "lambda_threshold": None, "conditioning": None, "noise": None, "width": 1.0,
        "clean_accuracy": 0.9, "robust_accuracy": robust, "n": 1000, "norm": "linf", "eps": 0.1, "seed": 0,
        "budget": {}, "target_rate": None, "found_by": {}, "median_distance": None, **changes,
    }  # fmt: skip


def checks(rows: list[dict[str, Any]]) -> list[str]:
    return [finding.check for finding in check_rows(rows)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("pgd-20", 0.5), row("square", 0.51)], []),
        ([row("pgd-20", 0.5), row("square", 0.496)], []),  # nearer than the tolerance of half a point
        ([row("pgd-20", 0.5), row("square", 0.45)], ["black-box-beats-white-box"]),
        ([row("pgd-20", 0.5), row("apgd-t", 0.44), row("square", 0.45)], []),
        ([row("pgd-20", 0.5), row("square", 0.45, eps=0.2)], []),  # a larger ball
        ([row("pgd-20", 0.5), row("square-l2", 0.45, norm="l2")], []),
        ([row("pgd-20", 0.5, n=100), row("square", 0.485, n=100)], []),  # less than two images of 100
        ([row("fgsm", 0.4), row("square", 0.3)], []),  # one step proves nothing
        ([row("autoattack", 0.3, found_by={"apgd-ce": 500, "square": 20})], ["black-box-beats-white-box"]),
        ([row("autoattack", 0.3, found_by={"apgd-ce": 500, "square": 4})], []),
        ([row("fgsm", 0.4), row("pgd-20", 0.5)], ["one-step-beats-many"]),
        ([row("fgsm", 0.5), row("pgd-20", 0.4)], []),
        ([row("fgsm", 0.4), row("pgd-20:target=next", 0.5, target_rate=0.3)], []),  # it wants one class alone
        ([row("pgd-1:restarts=5", 0.4), row("pgd-20", 0.5)], ["one-step-beats-many", "more-steps-do-worse"]),
        ([row("pgd-7", 0.4), row("pgd-20", 0.5)], ["more-steps-do-worse"]),
        ([row("pgd-7", 0.4, budget={"steps": 7}), row("pgd-20", 0.5, budget={"steps": 20})], ["more-steps-do-worse"]),
        ([row("pgd-7:restarts=9", 0.4, budget={"restarts": 9}), row("pgd-20", 0.5, budget={"restarts": 1})], []),
        ([row("pgd-20:eps=0.1", 0.3), row("pgd-20:eps=0.2", 0.4, eps=0.2)], ["rises-with-eps"]),
        ([row("pgd-20:eps=0.1", 0.3), row("pgd-20:eps=0.2", 0.2, eps=0.2)], []),
        ([row("pgd-20", 0.3), row("pgd-20-l2", 0.4, eps=0.5, norm="l2")], []),
        ([row("pgd-20", 0.3), row("pgd-7", 0.4, eps=0.2)], []),  # fewer steps may leave more
        ([row("deepfool", 0.5, norm="l2"), row("fgsm-l2", 0.4, norm="l2")], []),  # not after the same thing
        ([row("pgd-7", 0.5, **{"lambda": 0.0}), row("pgd-20", 0.6, **{"lambda": 1.0})], []),  # two settings
        ([row("pgd-7", 0.5, **{"lambda": 0.0}, noise="frozen")], []),  # no noise at lambda 0
        ([row("pgd-7", 0.5, **{"lambda": 0.2}, noise="frozen")], ["frozen-noise"]),
        ([row("pgd-7", 0.5, **{"lambda": 0.2}, noise="none")], []),
    ],
)
def test_rows_that_contradict_each_other(rows, expected) -> None:
    assert checks(rows) == expected


def test_messages_name_attack_accuracy_and_setting() -> None:
    at = {"lambda": 0.2, "width": 0.5, "noise": "none"}
    (finding,) = check_rows([row("pgd-20", 0.5, **at), row("square", 0.3, **at)])
    for word in ("square", "0.300", "pgd-20", "0.500", "lambda 0.2", "width 0.5"):
        assert word in finding.message
    assert "\n" not in finding.message


@pytest.mark.parametrize(
    ("robust", "blind", "expected"),
    [
        ({0.1: 0.6, 0.2: 0.3, 0.4: 0.1, 0.8: 0.0, 1.0: 0.0}, 0.0, []),
        ({0.1: 0.6, 0.2: 0.3, 0.4: 0.5, 0.8: 0.0, 1.0: 0.0}, 0.0, ["rises-with-eps"]),
        ({0.1: 0.6, 0.2: 0.6, 0.4: 0.6, 0.8: 0.6, 1.0: 0.0}, 0.0, ["does-not-fall-with-eps"]),
        ({0.1: 0.6, 0.2: 0.3, 0.4: 0.1, 0.8: 0.1, 1.0: 0.1}, 0.0, ["unbounded-attack-fails"]),
        ({0.1: 0.0, 0.2: 0.0, 0.4: 0.0, 0.8: 0.0, 1.0: 0.0}, 0.0, []),
        ({0.1: 0.6, 0.2: 0.3, 0.4: 0.1, 0.8: 0.0, 1.0: 0.0}, 0.2, ["zero-gradient"]),
        ({1.0: 0.0}, 0.0, []),
    ],
)
def test_a_ladder_that_does_not_fall(robust, blind, expected) -> None:
    assert [finding.check for finding in Ladder(robust, 100, blind).findings()] == expected


def test_a_plain_network_is_found_sound(network, digits) -> None:
    ladder = check_network(network, *digits, 0.1, seed=0)
    assert ladder.findings() == [] and list(ladder.robust) == sorted(ladder.robust) and ladder.robust[1.0] == 0
    assert [each["eps"] for each in ladder.to_rows()] == [0.05, 0.1, 0.2, 0.4, 1.0]


class Rounded(nn.Module):
    """A defence that is none: rounding the image leaves no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network((image * 4).round() / 4)  # type: ignore[no-any-return]


class Noisy(nn.Module):
    """A network that draws noise with every answer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network(image)
        return logits + 0.1 * torch.randn_like(logits)  # type: ignore[no-any-return]


def test_masked_gradients_are_found_out(network, digits) -> None:
    found = [finding.check for finding in check_network(Rounded(network).eval(), *digits, 0.1, seed=0).findings()]
    assert {"unbounded-attack-fails", "zero-gradient"} <= set(found)


@pytest.mark.parametrize(
    ("attack", "budget", "noisy", "expected"),
    [
        ("pgd-20", {"eot_iter": 1}, True, ["no-expectation"]),
        ("pgd-20:eot_iter=20", {"eot_iter": 20}, True, []),
        ("square", {}, True, ["no-expectation"]),
        ("autoattack", {"version": "standard", "eot_iter": 20}, True, ["no-expectation"]),
        ("autoattack-rand", {"version": "rand", "eot_iter": 20}, True, []),
        ("autoattack-rand", {"version": "rand", "eot_iter": 20}, False, ["needless-expectation"]),
        ("autoattack", {"version": "standard", "eot_iter": 20}, False, []),
        ("pgd-20", {"eot_iter": 1}, False, []),
    ],
)
def test_expectation_goes_with_noise(network, digits, attack, budget, noisy, expected) -> None:
    torch.manual_seed(0)
    victim = Noisy(network) if noisy else network
    rows = [{"attack": attack, "budget": budget}]
    assert [finding.check for finding in check_randomness(is_randomised(victim, digits[0][:8]), rows)] == expected


def test_every_evaluation_of_a_run_is_checked(trained_run) -> None:
    found = evaluate(trained_run, ["pgd-2"], [Setting(0.0), Setting(1.0)], images=64)
    assert "frozen-noise" in [finding.check for finding in found.findings]
    assert [ladder.at for ladder in found.ladders] == ["lambda 0", "lambda 1"]
    redrawn = evaluate(trained_run, ["pgd-2"], [Setting(1.0, noise="redrawn")], images=64)
    checks = [finding.check for finding in redrawn.findings]
    assert "no-expectation" in checks and "frozen-noise" not in checks
    document = redrawn.to_dict()
    assert document["rows"][0]["noise"] == "redrawn" and document["warnings"][0].keys() == {"check", "message"}
    assert {"setting", "eps", "robust_accuracy", "n"} == document["checks"][0].keys()
