"""Targets by rule: never an image's own class, the same for the same seed, and attacks that reach them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploytool.attacks.draws import Draws
from deploytool.attacks.pgd import Pgd
from deploytool.attacks.registry import AttackBase, make_attack, target_rule
from deploytool.attacks.run import attack_batches, merge, run_attack
from deploytool.attacks.targets import RULES, choose_targets, with_targets
from deploytool.errors import InputError


@given(classes=st.integers(2, 12), seed=st.integers(0, 1000), rule=st.sampled_from(RULES))
def test_no_target_is_the_label(classes: int, seed: int, rule) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(20, classes, generator=generator)
    label = torch.randint(classes, (20,), generator=generator)
    image = torch.zeros(20, 1, 2, 2)
    target = choose_targets(lambda _: logits, image, label, rule, Draws.seeded(seed, 20))
    assert (target != label).all() and target.min() >= 0 and target.max() < classes
    again = choose_targets(lambda _: logits, image, label, rule, Draws.seeded(seed, 20))
    assert torch.equal(target, again)


def test_random_targets_are_uniform_over_the_others() -> None:
    label = torch.full((3000,), 2)
    target = choose_targets(
        lambda x: torch.zeros(len(x), 4), torch.zeros(3000, 1, 1, 1), label, "random", Draws.seeded(0, 3000)
    )
    counts = target.bincount(minlength=4)
    assert counts[2] == 0 and (counts[[0, 1, 3]] - 1000).abs().max() < 120  # 4.6 standard deviations


def test_rules_by_hand() -> None:
    logits = torch.tensor([[0.0, -1.0, 2.0], [0.0, -1.0, 2.0]])
    label = torch.tensor([2, 1])
    image, draws = torch.zeros(2, 1, 1, 1), Draws.seeded(0, 2)
    assert choose_targets(lambda _: logits, image, label, "next", draws).tolist() == [0, 2]
    assert choose_targets(lambda _: logits, image, label, "least-likely", draws).tolist() == [1, 0]


def test_a_named_attack_takes_a_target() -> None:
    attack = make_attack("pgd-20:target=next,restarts=2", AttackBase(0.1, 0.02))
    assert attack == Pgd(0.1, 0.02, 20, targeted=True, restarts=2)
    assert target_rule("pgd-20:target=next,restarts=2") == "next" and target_rule("pgd-20:restarts=2") is None
    for name in ("pgd-20:target=worst", "pgd-20:target=", "pgd-20:target"):
        with pytest.raises(InputError, match="target"):
            make_attack(name, AttackBase(0.1, 0.02))
    with pytest.raises(InputError, match="key=value"):
        make_attack("deepfool:target=next", AttackBase(0.1, 0.02))


def test_batches_are_attacked_towards_their_targets(plain_network, digits) -> None:
    image, label = digits[0][:50], digits[1][:50]
    attack = Pgd(0.4, 0.1, 20, targeted=True)
    parts = with_targets(plain_network, [(image[:30], label[:30]), (image[30:], label[30:])], "next", 0)
    result = merge(list(attack_batches(plain_network, parts, attack)))
    assert torch.equal(result.target, (label + 1) % 10)
    whole = run_attack(plain_network, image[:30], label[:30], attack, target=(label[:30] + 1) % 10)
    assert torch.equal(whole.image, result.image[:30])
    answers = plain_network(result.image).argmax(1)
    assert torch.equal(result.fooled, answers == result.target) and torch.equal(result.correct, answers == label)
    assert result.fooled.float().mean() > 0.5
