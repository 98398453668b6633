"""Losses against numbers worked by hand."""

import math

import torch

from deploytool.attacks.goal import Goal
from deploytool.attacks.losses import cross_entropy, dlr, goal_margin, margin, other_classes, targeted_dlr

LOGITS = torch.tensor([[5.0, 3.0, 2.0, 1.0], [5.0, 3.0, 2.0, 1.0]])
LABEL = torch.tensor([0, 1])


def test_margins() -> None:
    assert margin(LOGITS, LABEL).tolist() == [2, -2]
    assert goal_margin(LOGITS, Goal(LABEL)).tolist() == [2, -2]
    assert goal_margin(LOGITS, Goal(LABEL, targeted=True)).tolist() == [-2, 2]


def test_difference_of_logits_ratio() -> None:
    # (z_1 - z_3) = 3; image 0: -(5 - 3) / 3, image 1: -(3 - 5) / 3
    torch.testing.assert_close(dlr(LOGITS, LABEL), torch.tensor([-2 / 3, 2 / 3]))
    torch.testing.assert_close(dlr(7 * LOGITS + 2, LABEL), dlr(LOGITS, LABEL))


def test_targeted_difference_of_logits_ratio() -> None:
    # denominator 5 - (2 + 1) / 2 = 3.5; targets 2 and 3
    found = targeted_dlr(LOGITS, LABEL, torch.tensor([2, 3]))
    torch.testing.assert_close(found, torch.tensor([-3 / 3.5, -2 / 3.5]))


def test_few_classes_have_no_denominator() -> None:
    assert dlr(LOGITS[:, :2], LABEL).tolist() == [-2, 2]
    assert targeted_dlr(LOGITS[:, :3], LABEL, torch.tensor([2, 2])).tolist() == [-3, -1]


def test_cross_entropy_of_both_goals() -> None:
    logits = torch.tensor([[0.0, math.log(3)]])
    torch.testing.assert_close(cross_entropy(logits, Goal(torch.tensor([0]))), torch.tensor([math.log(4)]))
    torch.testing.assert_close(cross_entropy(logits, Goal(torch.tensor([0]), True)), torch.tensor([-math.log(4)]))


def test_other_classes_come_in_falling_order() -> None:
    assert other_classes(LOGITS, LABEL, 2).tolist() == [[1, 2], [0, 2]]
    assert other_classes(LOGITS, LABEL, 9).tolist() == [[1, 2, 3], [0, 2, 3]]


def test_goals() -> None:
    assert Goal(LABEL).reached(LOGITS).tolist() == [False, True]
    assert Goal(LABEL, targeted=True).reached(LOGITS).tolist() == [True, False]
    assert len(Goal(LABEL)[torch.tensor([True, False])]) == 1
