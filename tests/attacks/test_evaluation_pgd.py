"""PGD for evaluation: closed forms, early stop, restarts, targets, and the bits of training's hot path."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from deploytool.attacks.pgd import Pgd, pgd
from deploytool.attacks.registry import AttackBase, make_attack
from deploytool.attacks.run import batch_seed, run_attack
from deploytool.models.setting import Setting

DUAL = {"linf": 1, "l2": 2}
LINF = Pgd(0.1, 0.025, 20)
L2 = Pgd(0.5, 0.125, 20, norm="l2")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_step_on_two_linear_classes_by_hand(linear, grey, norm: str) -> None:
    # two classes: the loss grows along d = w_other - w_y; FGSM steps eps * sign(d), or eps * d / ||d||
    linear.weight, linear.bias = linear.weight[:2], linear.bias[:2]
    image, label = grey[0], linear(grey[0]).argmax(1)
    eps = 0.01
    attack = make_attack("fgsm" if norm == "linf" else "fgsm-l2", AttackBase(eps, eps, eps_l2=eps))
    direction = linear.weight[1 - label] - linear.weight[label]
    step = direction.sign() if norm == "linf" else F.normalize(direction.flatten(1)).view_as(direction)
    result = run_attack(linear, image, label, attack)
    robust = ~result.fooled
    assert robust.any()
    torch.testing.assert_close(result.image[robust], (image + eps * step)[robust])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("restarts", [1, 2])
def test_labels_flip_exactly_where_the_ball_reaches_the_boundary(
    linear, grey, boundary_distance, norm, restarts
) -> None:
    linear.weight, linear.bias = linear.weight[:2], linear.bias[:2]
    image, label = grey[0], linear(grey[0]).argmax(1)
    exact = boundary_distance(image, label, DUAL[norm])
    for factor, flips in ((0.999, False), (1.001, True)):
        for eps, x, y in zip(factor * exact, image, label, strict=True):
            attack = Pgd(float(eps), float(eps) / 2, 25, norm=norm, restarts=restarts)
            assert bool(run_attack(linear, x[None], y[None], attack).fooled) is flips


@pytest.mark.parametrize("attack", [LINF, L2, replace(LINF, restarts=3), replace(LINF, random_start=False)], ids=str)
def test_early_stop_fools_the_same_images(robust_network, digits, attack: Pgd) -> None:
    image, label = digits
    stopped = run_attack(robust_network, image, label, attack)
    whole = run_attack(robust_network, image, label, replace(attack, early_stop=False))
    assert torch.equal(stopped.fooled, whole.fooled) and 0 < int(stopped.fooled.sum()) < len(label)
    torch.testing.assert_close(stopped.distance[stopped.fooled], whole.distance[whole.fooled], atol=1e-4, rtol=0)
    assert stopped.backwards < whole.backwards


def test_it_fools_at_least_whom_training_s_loop_fools(robust_network, digits) -> None:
    # the same starts, steps and last iterates; an image counts that was fooled on the way as well
    image, label = digits
    generator = torch.Generator().manual_seed(0)
    last = robust_network(pgd(robust_network, image, label, LINF, generator)).argmax(1) != label
    ours = run_attack(robust_network, image, label, LINF, seed=0).fooled
    assert float((last & ~ours).float().mean()) <= 0.005  # rounding of smaller batches
    assert float((ours & ~last).float().mean()) <= 0.02


@pytest.mark.parametrize("attack", [LINF, L2], ids=["linf", "l2"])
def test_restarts_only_add(plain_network, digits, attack: Pgd) -> None:
    image, label = digits
    weak = replace(attack, steps=2)
    fooled = [run_attack(plain_network, image, label, replace(weak, restarts=n), batch=100).fooled for n in (1, 3, 8)]
    for fewer, more in pairwise(fooled):
        assert not bool((fewer & ~more).any())
    assert int(fooled[-1].sum()) > int(fooled[0].sum())


@pytest.mark.parametrize("attack", [LINF, L2], ids=["linf", "l2"])
def test_targets_are_reached(plain_network, digits, attack: Pgd) -> None:
    image, label = digits
    target = (label + 1 + torch.arange(len(label)) % 8) % 10
    large = replace(attack, eps=1 if attack.norm == "linf" else 6, step_size=0.1, steps=40, targeted=True)
    result = run_attack(plain_network, image, label, large, target=target)
    assert float(result.fooled.float().mean()) > 0.95
    assert torch.equal(plain_network(result.image[result.fooled]).argmax(1), target[result.fooled])
    assert result.record["targeted"] is True


def test_targeted_training_loop_lowers_the_target_s_loss(plain_network, digits) -> None:
    image, label = digits[0][:20], digits[1][:20]
    target = (label + 3) % 10
    before = F.cross_entropy(plain_network(image), target)
    for norm in ("linf", "l2"):
        moved = pgd(plain_network, image, target, Pgd(0.2, 0.05, 5, norm=norm, targeted=True))
        assert float(F.cross_entropy(plain_network(moved), target)) < float(before) - 1
        size = (moved - image).flatten(1).norm(dim=1, p=2 if norm == "l2" else float("inf"))
        assert float(size.max()) <= 0.2 + 1e-5


def test_training_s_loop_gives_the_bits_it_always_gave(plain_network, digits) -> None:
    # the loop as it was before other norms and targets came, operation by operation
    image, label = digits[0][:16], digits[1][:16]
    attack, generator = Pgd(0.1, 0.03, 4), torch.Generator().manual_seed(2)
    low, high = (image - attack.eps).clamp_(min=0), (image + attack.eps).clamp_(max=1)
    start = torch.rand(image.shape, generator=generator)
    expected = torch.clamp(image.clone().add_(start.mul_(2).sub_(1).mul_(attack.eps)), low, high)
    for _ in range(attack.steps):
        expected.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(plain_network(expected), label), expected)
        expected = torch.clamp(expected.detach().add(gradient.sign_(), alpha=attack.step_size), low, high)
    found = pgd(plain_network, image, label, attack, torch.Generator().manual_seed(2))
    assert torch.equal(found, expected)


def test_a_run_is_attacked_through_its_own_network(trained_run, robust_network, digits) -> None:
    image, label = digits
    with trained_run.model.network(Setting(1.0)) as network:  # batch norms folded
        folded = run_attack(network, image, label, LINF).robust_accuracy()
    assert folded == pytest.approx(run_attack(robust_network, image, label, LINF).robust_accuracy(), abs=0.01)


def test_the_last_iterate_is_what_training_s_loop_ends_at(plain_network, digits) -> None:
    image, label = digits
    right = plain_network(image).argmax(1) == label
    image, label = image[right], label[right]  # others are not attacked
    attack = Pgd(0.1, 0.025, 10, iterate="last")
    result = run_attack(plain_network, image, label, attack, seed=0)
    generator = torch.Generator().manual_seed(batch_seed(0, 0))
    assert torch.equal(result.image, pgd(plain_network, image, label, attack, generator))
    assert torch.equal(result.fooled, plain_network(result.image).argmax(1) != label)
    first = run_attack(plain_network, image, label, Pgd(0.1, 0.025, 10), seed=0)
    assert not bool((result.fooled & ~first.fooled).any())


def test_restarts_of_last_iterates_only_add(plain_network, digits) -> None:
    image, label = digits
    one, three = (
        run_attack(plain_network, image, label, Pgd(0.06, 0.03, 3, restarts=n, iterate="last")).fooled for n in (1, 3)
    )
    assert not bool((one & ~three).any())
