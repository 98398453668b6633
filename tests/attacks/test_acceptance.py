"""The rule of acceptance in torch, against the paper's formula number by number."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploytool.attacks.acceptance import AcceptanceRule, AcceptedGoal
from deploytool.attacks.goal import Goal
from deploytool.errors import InputError

VECTORS = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])  # panda and bus, section 3.2


@given(st.integers(2, 5), st.integers(1, 12), st.sampled_from([0, 0.1, 0.3, 0.5, 0.9, 0.95, 1]), st.integers(0, 10_000))
def test_it_is_the_paper_s_rule(naive_verdict, classes: int, reasons: int, threshold: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randint(2, (classes, reasons), generator=generator)
    answer = torch.randn(7, classes + reasons, generator=generator)
    own = vectors[answer[:, :classes].argmax(1)]
    near = torch.where(torch.rand(7, reasons, generator=generator) < 0.9, 2 * own - 1, 1 - 2 * own)
    answer[:, classes:] = near * answer[:, classes:].abs()  # most reasons right, so that both verdicts occur
    rule, label = AcceptanceRule(vectors, threshold), torch.zeros(7, dtype=torch.int64)
    expected = naive_verdict(answer, vectors, threshold)
    assert rule.accepted(answer).tolist() == [accepted for _, accepted in expected]
    assert AcceptedGoal(label, rule=rule).reached(answer).tolist() == [named != 0 and ok for named, ok in expected]
    margins = rule.agreement_margins(answer, label)
    assert torch.equal(margins.abs(), answer[:, classes:].abs())
    assert torch.equal(margins > 0, (answer[:, classes:] > 0) == vectors[label].bool())


def test_the_paper_s_example_by_hand() -> None:
    panda = torch.tensor([[2.0, 1, 3, 2, 1, -1, -2, -3], [2.0, 1, 3, 2, -1, -1, -2, -3]])  # the second lacks spots
    for threshold, accepted in ((1, [True, False]), (5 / 6, [True, True]), (0.84, [True, False]), (0, [True, True])):
        assert AcceptanceRule(VECTORS, threshold).accepted(panda).tolist() == accepted


def test_a_reason_of_probability_one_half_is_not_given() -> None:
    answer = torch.tensor([[2.0, 1, 0, 0, 0, 0, 0, 0]])
    assert AcceptanceRule(VECTORS, 0.5).accepted(answer).item()  # r_hat = 000000 agrees with panda in three
    assert not AcceptanceRule(VECTORS, 0.6).accepted(answer).item()


def test_goals_keep_their_kind_when_images_leave() -> None:
    rule = AcceptanceRule(VECTORS, 1)
    some = AcceptedGoal(torch.tensor([0, 1, 0]), rule=rule)[torch.tensor([True, False, True])]
    assert isinstance(some, AcceptedGoal) and some.rule is rule and some.label.tolist() == [0, 0]
    assert Goal(torch.tensor([0, 1]), True)[torch.tensor([1])].targeted


def test_class_logits_are_the_first_columns() -> None:
    answer = torch.arange(16.0).view(2, 8)
    rule = AcceptanceRule(VECTORS, 0.9)
    assert rule.class_network(lambda image: answer)(torch.zeros(2, 1, 1, 1)).tolist() == [[0, 1], [8, 9]]
    assert rule.to_dict() == {"threshold": 0.9, "reasons": 6, "required": 6}


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.bool, "numpy"])
def test_vectors_of_any_type_are_taken(kind) -> None:
    vectors = VECTORS.numpy().astype(np.uint8) if kind == "numpy" else VECTORS.to(kind)
    rule = AcceptanceRule(vectors, 1)
    assert rule.vectors.dtype == torch.bool and (rule.classes, rule.reasons, rule.required) == (2, 6, 6)


@pytest.mark.parametrize(
    ("vectors", "threshold", "message"),
    [
        (VECTORS[0], 0.9, r"shape \(6,\); expected \(K, R\)"),
        (VECTORS[:, :0], 0.9, r"shape \(2, 0\).*R at least 1"),
        (VECTORS[:1], 0.9, "K at least 2"),
        (VECTORS * 2, 0.9, "other values than 0 and 1"),
        (VECTORS * float("nan"), 0.9, "other values than 0 and 1"),
        ([[1, 0]], 0.9, "are a list"),
        (VECTORS, 1.1, r"t_rsn \(=1.1\) must be in \[0, 1\]"),
        (VECTORS, -0.1, "t_rsn"),
        (VECTORS, float("nan"), "t_rsn"),
        (VECTORS, "0.9", "t_rsn"),
        (VECTORS, True, "t_rsn"),
    ],
)
def test_impossible_rules_are_refused(vectors, threshold, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        AcceptanceRule(vectors, threshold)
    assert "\n" not in str(caught.value)


def test_answers_that_do_not_fit_are_refused() -> None:
    rule = AcceptanceRule(VECTORS, 0.9)
    for call in (
        rule.class_logits,
        rule.accepted,
        lambda answer: rule.agreement_margins(answer, torch.zeros(3).long()),
    ):
        with pytest.raises(
            InputError, match=r"answers \(3, 6\); .* 2 classes and 6 reasoning labels: expected \(N, 8\)"
        ):
            call(torch.zeros(3, 6))
