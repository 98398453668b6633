"""Auto-PGD: the schedule of the paper, closed forms, and its three losses on a trained network."""

import pytest

from deploytool.attacks.apgd import Apgd, ApgdTargeted, _checkpoints
from deploytool.attacks.pgd import Pgd
from deploytool.attacks.run import run_attack

DUAL = {"linf": 1, "l2": 2}


def test_checkpoints_of_a_hundred_steps() -> None:
    # p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), worked by hand
    assert sorted(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(_checkpoints(5)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["ce", "dlr", "targeted"])
def test_labels_flip_exactly_where_the_ball_reaches_the_boundary(linear, grey, boundary_distance, norm, kind) -> None:
    image, label = grey
    exact = boundary_distance(image, label, DUAL[norm])
    for factor, flips in ((0.999, False), (1.01, True)):
        for eps, x, y in zip(factor * exact, image, label, strict=True):
            attack = ApgdTargeted(float(eps), norm, 30) if kind == "targeted" else Apgd(float(eps), norm, kind, 30)
            assert bool(run_attack(linear, x[None], y[None], attack).fooled) is flips


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.45)])
def test_it_beats_pgd_and_restarts_only_add(plain_network, digits, norm: str, eps: float) -> None:
    image, label = digits
    ours = run_attack(plain_network, image, label, Apgd(eps, norm, steps=40))
    pgd = run_attack(plain_network, image, label, Pgd(eps, eps / 4, 40, norm=norm))
    assert ours.robust_accuracy() <= pgd.robust_accuracy() + 0.005
    again = run_attack(plain_network, image, label, Apgd(eps, norm, steps=40, restarts=3))
    assert not bool((ours.fooled & ~again.fooled).any())


def test_scaling_the_logits_blinds_cross_entropy_but_not_dlr(plain_network, digits) -> None:
    # softmax of logits a thousand times as large is 0 or 1 in float32: cross-entropy has no gradient left
    image, label = digits
    sharp = lambda x: 1000 * plain_network(x)  # noqa: E731
    plain, ce, dlr = (
        run_attack(net, image, label, Apgd(0.1, loss=loss, steps=20)).robust_accuracy()
        for net, loss in ((plain_network, "dlr"), (sharp, "ce"), (sharp, "dlr"))
    )
    assert dlr == pytest.approx(plain, abs=0.01)
    assert ce > dlr + 0.1


def test_targets_are_tried_on_what_stands(plain_network, digits) -> None:
    image, label = digits
    one, four = (run_attack(plain_network, image, label, ApgdTargeted(0.1, steps=15, targets=n)) for n in (1, 4))
    assert not bool((one.fooled & ~four.fooled).any())
    assert four.backwards < 4 * 16 * int((plain_network(image).argmax(1) == label).sum())


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_are_attacked_too(linear, grey, boundary_distance, classes: int) -> None:
    linear.weight, linear.bias = linear.weight[:classes], linear.bias[:classes]
    image = grey[0]
    label = linear(image).argmax(1)
    eps = float(boundary_distance(image, label, 1).max()) * 1.05
    for attack in (Apgd(eps, loss="dlr"), ApgdTargeted(eps)):
        assert bool(run_attack(linear, image, label, attack).fooled.all())
