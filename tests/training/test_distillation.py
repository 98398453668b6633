"""The losses of paper 3, against numbers worked by hand and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from deploytool.training.distillation import distillation_loss, explanation_loss, soft_loss

LOGITS = np.array([[1.0, 2.0, 0.5], [-1.0, 0.0, 3.0]]), np.array([[0.0, 1.5, 1.0], [2.0, -0.5, 1.0]])


def tensors() -> list[torch.Tensor]:
    return [torch.from_numpy(logits) for logits in LOGITS]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_soft_loss_is_the_divergence_of_the_student_from_the_target(temperature: float) -> None:
    student, target = LOGITS
    p, q = softmax(target / temperature, 1), softmax(student / temperature, 1)
    expected = temperature**2 * np.mean([entropy(*pair) for pair in zip(p, q, strict=True)])
    s, t = tensors()
    assert soft_loss(s, t, temperature).item() == pytest.approx(expected)
    assert soft_loss(t, t, temperature).item() == pytest.approx(0, abs=1e-12)


def test_alpha_weighs_soft_against_hard() -> None:
    student, target = tensors()
    label = torch.tensor([1, 0])
    probabilities = softmax(LOGITS[0], 1)
    hard = -(math.log(probabilities[0, 1]) + math.log(probabilities[1, 0])) / 2
    soft = soft_loss(student, target).item()
    for alpha in (0.0, 0.25, 1.0):
        found = distillation_loss(student, target, label, alpha, 1.0).item()
        assert found == pytest.approx(alpha * soft + (1 - alpha) * hard)


def test_the_penalty_is_the_sum_of_a_map() -> None:
    """Eq. 8: |H|_1 over all pixels of an image, the mean over images: (0.5 * 4 + 0.25 * 4) / 2 = 1.5."""
    student, target = tensors()
    saliency = torch.stack([torch.full((1, 2, 2), 0.5), torch.full((1, 2, 2), 0.25)])
    found = explanation_loss(student, target, saliency, 0.1).item()
    assert found == pytest.approx(soft_loss(student, target).item() + 0.1 * 1.5, rel=1e-6)
