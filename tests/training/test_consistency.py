"""What training notes of consistency, against the finished network asked once more."""

import numpy as np
import pytest
import torch

from deploytool.attacks.pgd import Pgd, pgd
from deploytool.data.datasets import load_dataset
from deploytool.explain.consistency import read_tally
from deploytool.models.setting import Setting
from deploytool.training.consistency import answers_to, answers_under_attack, consistency_settings, of_right
from deploytool.training.loop import due


def naive(run, answer: torch.Tensor, threshold: float) -> list[bool]:
    """Section 3.3 with loops."""
    vectors, accepted = run.labels.vectors(), []
    for row in answer.tolist():
        predicted = max(range(10), key=lambda k: row[k])
        said = [int(value > 0) for value in row[10:]]
        agreeing = sum(a == b for a, b in zip(said, vectors[predicted].tolist(), strict=True))
        accepted.append(agreeing / len(said) >= threshold)
    return accepted


def test_the_last_note_is_the_networks_own(reasoned_run) -> None:
    run, test = reasoned_run, load_dataset(reasoned_run.recipe.data).test.head(120)
    assert [metrics["epoch"] for metrics in run.checkpoint.history if "consistency" in metrics] == [1, 2, 3]
    metrics = run.checkpoint.history[-1]
    (counts,) = metrics["consistency"]
    image, label = test.batch(slice(None))
    with torch.no_grad():
        answer = run.model(image, reasoning=True)
    right = answer[:, :10].argmax(1) == label
    with run.model.network(Setting(noise="none")) as network:
        eps = run.recipe.attack.eps
        attacked = pgd(network, image[right], label[right], Pgd(eps, eps, 1, random_start=False))
    with torch.no_grad():
        after = run.model(attacked, reasoning=True)
    for threshold in (0.8, 0.9, 1.0):
        read = read_tally(counts, threshold)
        accepted = np.array(naive(run, answer, threshold))
        assert read["coverage"] == accepted.mean()
        assert read["coverage_right"] == accepted[right.numpy()].mean()
        assert read["coverage_attacked"] == pytest.approx(np.mean(naive(run, after, threshold)), abs=0.02)
    assert metrics["test_accuracy"] == float(right.double().mean())
    assert metrics["test_coverage"] == read_tally(counts, run.recipe.reasoning.threshold)["coverage"]
    assert counts["lambda"] is None


def test_consistent_answers_of_an_attack_are_those_its_rule_accepts(reasoned_run) -> None:
    run, test = reasoned_run, load_dataset(reasoned_run.recipe.data).test.head(40)
    (setting,) = consistency_settings(run.recipe, run.model)
    right = of_right(test, answers_to(run.model, setting, test))
    undetected = {}
    for name in ("fgsm", "consistent-10"):
        after = answers_under_attack(run.model, setting, right, run.recipe, name, 0.9)
        assert after.label.tolist() == right.labels.tolist()
        undetected[name] = (~after.right & after.accepted(0.9)).mean()
    assert undetected["consistent-10"] >= undetected["fgsm"]


@pytest.mark.parametrize("every, epochs, expected", [(0, 4, []), (1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (9, 2, [2])])
def test_when_training_measures(every: int, epochs: int, expected: list[int]) -> None:
    assert [epoch for epoch in range(1, epochs + 1) if due(epoch, epochs, every)] == expected
