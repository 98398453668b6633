"""The attack on class and reasons: exact answers on linear networks, and every success judged again."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor
from torch.nn import functional as F

from deploytool.attacks.acceptance import AcceptanceRule
from deploytool.attacks.consistent import Consistent, acceptance_loss, answer_scale, soft_steepest
from deploytool.attacks.geometry import distance, slack, steepest
from deploytool.attacks.names import Norm
from deploytool.attacks.pgd import Pgd, pgd
from deploytool.attacks.run import run_attack
from deploytool.errors import InputError

THRESHOLDS = (0, 0.8, 0.9, 1)


def fooled(network, image: Tensor, label: Tensor, vectors: Tensor, threshold: float, naive_verdict) -> Tensor:
    """Who is answered wrongly and accepted, (N,), by the naive rule."""
    verdicts = naive_verdict(network(image), vectors, threshold)
    return torch.tensor([named != own and ok for (named, ok), own in zip(verdicts, label.tolist(), strict=True)])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_successes_hold_by_the_naive_rule_and_stay_in_the_ball(two_heads, naive_verdict, norm: Norm, threshold) -> None:
    network, vectors, image, label = two_heads
    attack = Consistent({"linf": 0.12, "l2": 0.6}[norm], norm, steps=10, targets=4)
    result = run_attack(network, image, label, attack, rule=AcceptanceRule(vectors, threshold))
    assert torch.equal(result.fooled, fooled(network, result.image, label, vectors, threshold, naive_verdict))
    assert 0 < result.robust_accuracy() < 1
    answers = naive_verdict(network(result.image), vectors, threshold)
    assert result.accepted.tolist() == [ok for _, ok in answers]
    assert result.correct.tolist() == [named == own for (named, _), own in zip(answers, label.tolist(), strict=True)]
    assert torch.equal(result.distance, distance(result.image - image, norm))
    assert bool((result.distance <= attack.eps + slack(attack.eps)).all())
    assert float(result.image.min()) >= 0 and float(result.image.max()) <= 1
    assert result.record["acceptance"]["threshold"] == threshold


def test_a_stricter_rule_is_harder(two_heads) -> None:
    network, vectors, image, label = two_heads
    robust = [
        run_attack(network, image, label, Consistent(0.12, steps=10), rule=AcceptanceRule(vectors, t)).robust_accuracy()
        for t in THRESHOLDS
    ]
    assert robust == sorted(robust) and robust[0] < robust[-1] - 0.1


def test_without_a_threshold_it_is_an_attack_on_the_class(two_heads) -> None:
    network, vectors, image, label = two_heads
    rule = AcceptanceRule(vectors, 0)
    for eps in (0.06, 0.1):
        ours = run_attack(network, image, label, Consistent(eps, steps=20), rule=rule)
        plain = run_attack(network, image, label, Pgd(eps, eps / 4, 20), rule=rule)
        assert ours.robust_accuracy() <= plain.robust_accuracy() and bool(ours.accepted.all())


def joint(answer: Tensor, target: Tensor, vectors: Tensor) -> Tensor:
    """Eq. 3 of the paper at alpha 0.5, towards a class and its reasons."""
    reasoning = F.binary_cross_entropy_with_logits(answer[:, 10:], vectors[target].float())
    return F.cross_entropy(answer[:, :10], target) + reasoning


@pytest.mark.parametrize("threshold", [0.9, 1])
def test_it_beats_the_class_loss_and_eq_3(two_heads, naive_verdict, threshold) -> None:
    network, vectors, image, label = two_heads
    eps, steps = 0.12, 20
    ours = run_attack(network, image, label, Consistent(eps, steps=steps), rule=AcceptanceRule(vectors, threshold))
    losses = {
        "class": lambda answer, target: F.cross_entropy(answer[:, :10], target),
        "eq. 3": partial(joint, vectors=vectors),
    }
    for name, loss in losses.items():
        theirs = torch.zeros(len(label), dtype=torch.bool)
        for step in range(
            1, 10
        ):  # towards each of the other classes, as ours; the best of three numbers of steps counts
            for count in (5, 10, steps):
                attack = Pgd(eps, eps / 4, count, targeted=True)
                generator = torch.Generator().manual_seed(0)
                point = pgd(network, image, (label + step) % 10, attack, generator, loss)
                theirs |= fooled(network, point, label, vectors, threshold, naive_verdict)
        assert int(ours.fooled.sum()) >= int(theirs.sum()), name
        assert int(ours.fooled.sum()) > 0


class LinearHeads:
    """Answers weight . image + bias, of (1, 3, 4) images."""

    def __init__(self, answers: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(answers, 12, generator=generator)
        self.bias = torch.randn(answers, generator=generator) * 0.1 - 0.5 * self.weight.sum(1)

    def __call__(self, image: Tensor) -> Tensor:
        return image.flatten(1) @ self.weight.T + self.bias


def exact_radius(network: LinearHeads, vectors: Tensor, image: Tensor, label: int) -> float:
    """The least L-infinity radius at which a wrong class with all of its reasons is in reach: a linear programme.

    min e  so that  |d_i| <= e, x + d in [0, 1], z_t >= z_k for all k, and every reason on the side of t's vector.
    """
    weight, bias = (each.double().numpy() for each in (network.weight, network.bias))
    classes, x, best = len(vectors), image.flatten().double().numpy(), np.inf
    for target in set(range(classes)) - {label}:
        rows = [weight[k] - weight[target] for k in range(classes) if k != target]
        limits = [bias[target] - bias[k] for k in range(classes) if k != target]
        for reason, wanted in enumerate(vectors[target].tolist(), classes):
            sign = 1 if wanted else -1
            rows.append(-sign * weight[reason])
            limits.append(sign * bias[reason])
        slopes = np.array(rows)
        inside = np.hstack([slopes, np.zeros((len(rows), 1))])
        eye, ones = np.eye(len(x)), np.ones((len(x), 1))
        upper = np.vstack([inside, np.hstack([eye, -ones]), np.hstack([-eye, -ones])])
        bounds = [*zip(-x, 1 - x, strict=True), (0, 1)]
        limit = np.concatenate([np.array(limits) - slopes @ x, np.zeros(2 * len(x))])
        found = linprog(np.append(np.zeros(len(x)), 1), upper, limit, bounds=bounds)
        best = min(best, found.fun) if found.success else best
    return float(best)


@settings(max_examples=4)
@given(st.integers(0, 1000))
def test_linear_networks_are_fooled_exactly_where_a_linear_programme_says(seed: int) -> None:
    network = LinearHeads(3 + 4, seed)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randint(2, (3, 4), generator=generator)
    image = 0.3 + 0.4 * torch.rand(2, 1, 3, 4, generator=generator)
    label, rule = network(image)[:, :3].argmax(1), AcceptanceRule(vectors, 1)
    for x, y in zip(image, label, strict=True):
        exact = exact_radius(network, vectors, x, int(y))
        for factor, flips in ((0.99, False), (1.1, True)):
            radius = min(1.0, factor * exact)
            if exact < 0.5 or not flips:
                result = run_attack(network, x[None], y[None], Consistent(radius, steps=100), rule=rule)
                assert bool(result.fooled) is flips


def corner(image: Tensor) -> Tensor:
    """Class 1 from 0.5 up in the first pixel; reasons: the second pixel above 0.5, and, of the opposite sign, below."""
    a, b = (image.flatten(1) - 0.5).unbind(1)
    return torch.stack([-a, a, b, -b], 1)


@pytest.mark.parametrize(("norm", "exact"), [("linf", 0.3), ("l2", 0.13**0.5)])
def test_two_pixels_by_hand(norm: Norm, exact: float) -> None:
    # wrong and accepted is the quarter a > 0.5, b > 0.5, which is 0.2 and 0.3 away
    image, label = torch.tensor([0.3, 0.2]).view(1, 1, 1, 2), torch.tensor([0])
    rule = AcceptanceRule(torch.tensor([[0, 1], [1, 0]]), 1)
    for factor, flips in ((0.99, False), (1.03, True)):
        result = run_attack(corner, image, label, Consistent(factor * exact, norm, steps=50), rule=rule)
        assert bool(result.fooled) is flips


@pytest.mark.parametrize(("threshold", "flips"), [(1, False), (0.5, True)])
def test_reasons_that_contradict_each_other_are_never_accepted_all(threshold, flips: bool) -> None:
    image, label = torch.tensor([0.3, 0.2]).view(1, 1, 1, 2), torch.tensor([0])
    rule = AcceptanceRule(torch.tensor([[0, 1], [1, 1]]), threshold)  # the second pixel above 0.5, and below
    result = run_attack(corner, image, label, Consistent(1.0, steps=50), rule=rule)
    assert bool(result.fooled) is flips


def test_the_loss_is_0_exactly_at_success(two_heads) -> None:
    network, vectors, image, label = two_heads
    noisy = (image + 0.3 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    answer = network(noisy)
    for threshold in THRESHOLDS:
        rule = AcceptanceRule(vectors, threshold)
        for target in range(10):
            aim = torch.full_like(label, target)
            loss = acceptance_loss(answer, aim, rule, answer_scale(answer, rule), 0.0)
            success = (answer[:, :10].argmax(1) == target) & rule.accepted(answer)
            assert torch.equal(loss == 0, success) and bool((loss <= 0).all())


def test_scaling_a_head_changes_nothing(two_heads) -> None:
    # neither head starves the other, whatever their scales: powers of two are exact
    network, vectors, image, label = two_heads
    rule = AcceptanceRule(vectors, 0.9)
    scale = torch.cat([torch.full((10,), 64.0), torch.full((12,), 1 / 16)])
    ours, scaled = (
        run_attack(net, image, label, Consistent(0.12, steps=5, targets=2), rule=rule)
        for net in (network, lambda x: network(x) * scale)
    )
    assert torch.equal(ours.image, scaled.image)


def test_numbers_depend_on_the_seed_alone(two_heads) -> None:
    network, vectors, image, label = two_heads
    rule, attack = AcceptanceRule(vectors, 0.9), Consistent(0.1, steps=4, targets=2, restarts=2)
    first, again, other = (run_attack(network, image, label, attack, seed, rule=rule) for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, other.image)


def test_restarts_and_targets_only_add(two_heads) -> None:
    network, vectors, image, label = two_heads
    rule = AcceptanceRule(vectors, 0.9)
    one, more, again = (
        run_attack(network, image, label, Consistent(0.1, steps=6, targets=t, restarts=r), rule=rule).fooled
        for t, r in ((1, 1), (4, 1), (4, 2))
    )
    assert not bool((one & ~more).any()) and not bool((more & ~again).any()) and int(one.sum()) < int(again.sum())


def test_images_that_are_fooled_as_they_are_are_left_alone(two_heads) -> None:
    network, vectors, image, _ = two_heads
    named = network(image)[:, :10].argmax(1)
    rule = AcceptanceRule(vectors, 0.9)
    wrong = (named + 1) % 10
    result = run_attack(network, image, wrong, Consistent(0.0, steps=1), rule=rule)
    accepted = rule.accepted(network(image))
    assert torch.equal(result.fooled, accepted) and 0 < int(accepted.sum()) < len(image)
    assert torch.equal(result.image, image)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_soft_steps_are_clipped_shares_of_the_mean(scale: float) -> None:
    gradient = scale * torch.tensor([[1.0, -2, 3, -10], [0, 0, 0, 0]]).view(2, 1, 2, 2)
    expected = torch.tensor([[0.125, -0.25, 0.375, -1], [0, 0, 0, 0]]).view(2, 1, 2, 2)  # twice the mean size is 8
    torch.testing.assert_close(soft_steepest(gradient, "linf"), expected)
    assert torch.equal(soft_steepest(gradient, "l2"), steepest(gradient, "l2"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 8.0}, r"eps \(=8\) must be at most 1"),
        ({"eps": float("nan")}, "eps"),
        ({"norm": "l1"}, "linf or l2"),
        ({"steps": 0}, r"steps \(=0\)"),
        ({"targets": 0}, "targets"),
        ({"restarts": 0}, "restarts"),
        ({"eot_iter": 0}, "eot_iter"),
        ({"kappa": -0.1}, "kappa"),
        ({"rho": 2}, "rho"),
    ],
)
def test_budgets_out_of_range_are_refused(change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Consistent(**{"eps": 0.1, **change})


@pytest.mark.parametrize(
    ("rule", "label", "message"),
    [
        (None, 0, "Consistent attacks reasoning labels together with the class, and this network has none"),
        (AcceptanceRule(torch.eye(10, 5), 0.9), 0, r"10 classes and 5 reasoning labels: expected \(N, 15\)"),
        (AcceptanceRule(torch.eye(10, 12), 0.9), 10, r"label holds 10; the network has classes 0\.\.9"),
    ],
)
def test_what_does_not_fit_is_refused(two_heads, rule, label: int, message: str) -> None:
    network, _, image, _ = two_heads
    with pytest.raises(InputError, match=message) as caught:
        run_attack(network, image[:2], torch.tensor([0, label]), Consistent(0.1, steps=1), rule=rule)
    assert "\n" not in str(caught.value)
