"""AutoAttack: the members in their order, each on what still stands, never weaker than one of them."""

import pytest
import torch
from torch import Tensor

from deploytool.attacks.apgd import Apgd, ApgdTargeted
from deploytool.attacks.autoattack import AutoAttack
from deploytool.attacks.draws import Draws
from deploytool.attacks.fab import Fab
from deploytool.attacks.geometry import slack
from deploytool.attacks.goal import Goal
from deploytool.attacks.run import run_attack
from deploytool.attacks.square import Square
from deploytool.attacks.victim import Victim

SMALL = {"steps": 10, "targets": 3, "queries": 60, "eot_iter": 2}


def test_members_are_those_of_the_authors_evaluation() -> None:
    eps = 8 / 255
    standard = AutoAttack(eps).members()
    assert list(standard) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert standard["apgd-ce"] == Apgd(eps, "linf", "ce", 100, restarts=1)
    assert standard["apgd-t"] == ApgdTargeted(eps, "linf", 100, 9)
    assert standard["fab-t"] == Fab(eps, "linf", 100, 9, restarts=1, alpha=0.1, eta=1.05, beta=0.9, early_stop=True)
    assert standard["square"] == Square(eps, "linf", 5000, p=0.8, rescale=False)
    rand = AutoAttack(0.5, "l2", "rand").members()
    assert rand == {
        "apgd-ce": Apgd(0.5, "l2", "ce", 100, eot_iter=20),
        "apgd-dlr": Apgd(0.5, "l2", "dlr", 100, eot_iter=20),
    }


@pytest.mark.parametrize(
    ("norm", "eps", "version"), [("linf", 0.1, "standard"), ("l2", 0.45, "standard"), ("linf", 0.1, "rand")]
)
def test_nobody_stands_whom_a_member_alone_fools(plain_network, digits, norm, eps, version) -> None:
    image, label = digits[0][:100], digits[1][:100]
    attack = AutoAttack(eps, norm, version, **SMALL)
    whole = run_attack(plain_network, image, label, attack, seed=5)
    for name, member in attack.members().items():
        alone = run_attack(plain_network, image, label, member, seed=5)
        assert whole.robust_accuracy() <= alone.robust_accuracy(), name
        assert not bool((~alone.robust() & whole.robust()).any()), name
    wrong = int((plain_network(image).argmax(1) != label).sum())
    assert sum(whole.found_by.values()) + wrong == int(whole.fooled.sum())
    assert list(whole.found_by) == list(attack.members())
    assert float(whole.distance.max()) <= eps + slack(eps)


def test_members_meet_only_what_still_stands(plain_network, digits) -> None:
    image, label = digits[0][:60], digits[1][:60]
    calls: list[int] = []

    def network(image: Tensor) -> Tensor:
        calls.append(len(image))
        return plain_network(image)

    found = run_attack(network, image, label, AutoAttack(0.5, **SMALL))
    assert found.robust_accuracy() == 0 and found.found_by["square"] == 0
    assert calls.count(60) <= 3  # the clean images, perhaps APGD's start, and the check


def test_no_defence_by_noise_withstands_the_rand_version(linear, grey, boundary_distance) -> None:
    image, label = grey
    generator = torch.Generator().manual_seed(0)

    def noisy(image: Tensor) -> Tensor:
        return linear(image + 0.05 * torch.randn(image.shape, generator=generator))

    eps = float(boundary_distance(image, label, 1).max()) * 1.5
    found = run_attack(noisy, image, label, AutoAttack(eps, version="rand", steps=10, eot_iter=8))
    assert float((linear(found.image).argmax(1) != label).float().mean()) > 0.9


def test_a_lucky_draw_of_the_noise_does_not_end_the_rand_version(linear, grey) -> None:
    # right on average at every point of the ball; wrong in three of ten answers
    image, label = grey
    generator = torch.Generator().manual_seed(0)

    def network(x: Tensor) -> Tensor:
        upset = 1 - 2 * (torch.rand((), generator=generator) < 0.3).float()
        return upset * 10 * torch.eye(5)[label[: len(x)]] + 0 * linear(x)

    attack = AutoAttack(0.1, version="rand", steps=1, eot_iter=80)
    for seed in range(4):
        found = attack.search(Victim(network), image, Goal(label), Draws.seeded(seed, len(label)))
        assert found.by == {"apgd-ce": 0, "apgd-dlr": 0}
