"""Budgets are checked when built, images and networks before an attack: one clear line each."""

import dataclasses

import pytest
import torch

from deploytool.attacks.apgd import Apgd, ApgdTargeted
from deploytool.attacks.autoattack import AutoAttack
from deploytool.attacks.carlini import CarliniWagner
from deploytool.attacks.deepfool import DeepFool
from deploytool.attacks.fab import Fab
from deploytool.attacks.pgd import Pgd
from deploytool.attacks.run import run_attack
from deploytool.attacks.square import Square
from deploytool.errors import InputError

GOOD = [
    Pgd(8 / 255, 2 / 255, 7), DeepFool(0.5), CarliniWagner(0.5), Square(0.1), Apgd(0.1), ApgdTargeted(0.1), Fab(0.1),
    AutoAttack(0.1),
]  # fmt: skip


@pytest.mark.parametrize("attack", GOOD, ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize("eps", [-1e-9, -8 / 255, float("nan"), float("inf"), True, "8/255"])
def test_a_radius_is_a_number_from_0_up(attack, eps) -> None:
    with pytest.raises(InputError, match=r"eps \(=.*\) must be"):
        dataclasses.replace(attack, eps=eps)


@pytest.mark.parametrize("attack", GOOD, ids=lambda attack: type(attack).__name__)
def test_budgets_cannot_be_changed(attack) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.eps = 1.0


@pytest.mark.parametrize(
    ("attack", "change", "message"),
    [
        (GOOD[0], {"eps": 8.0}, r"eps \(=8\) must be at most 1: .*8/255 rather than 8"),
        (GOOD[0], {"steps": 0}, r"steps \(=0\) must be an integer in 1\.\."),
        (GOOD[0], {"steps": 2.0}, r"steps \(=2.0\)"),
        (GOOD[0], {"step_size": -0.1}, r"step_size \(=-0.1\)"),
        (GOOD[0], {"norm": "l1"}, r"norm \(='l1'\) must be linf or l2"),
        (GOOD[0], {"restarts": 2, "random_start": False}, "need random_start"),
        (GOOD[0], {"eot_iter": 0}, "eot_iter"),
        (GOOD[0], {"iterate": "best"}, r"iterate \(='best'\) must be first or last"),
        (GOOD[1], {"overshoot": -1}, "overshoot"),
        (GOOD[1], {"candidates": 0}, "candidates"),
        (GOOD[2], {"kappa": -1}, "kappa"),
        (GOOD[2], {"c": 0}, r"c \(=0\) must be in \(0, "),
        (GOOD[2], {"lr": float("nan")}, "lr"),
        (GOOD[3], {"p": 1.5}, r"p \(=1.5\) must be in \(0, 1\]"),
        (GOOD[3], {"queries": -1}, "queries"),
        (GOOD[4], {"loss": "hinge"}, "must be ce or dlr"),
        (GOOD[4], {"rho": 2}, "rho"),
        (GOOD[5], {"targets": 0}, "targets"),
        (GOOD[6], {"beta": 2}, "beta"),
        (GOOD[7], {"version": "plus"}, "must be standard or rand"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(attack, change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(attack, **change)


IMAGE = torch.full((2, 2, 3, 4), 0.5)
LABEL = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (IMAGE * 255, LABEL, "values from 127.5 to 127.5; expected .* in .0, 1., normalisation in the model"),
        (IMAGE - 1, LABEL, "values from -0.5"),
        (IMAGE.where(IMAGE < 0, torch.nan), LABEL, "values from nan"),
        (IMAGE[0], LABEL, r"shape \(2, 3, 4\)"),
        (IMAGE[:0], LABEL[:0], "no size 0"),
        (IMAGE.double(), LABEL, "dtype torch.float64"),
        ((IMAGE * 255).to(torch.uint8), LABEL, "divide by 255"),
        (IMAGE.numpy(), LABEL, "ndarray; expected a torch tensor"),
        (IMAGE, LABEL[:1], r"label is torch.int64 \(1,\); expected int64 \(2,\)"),
        (IMAGE, LABEL.float(), "label is torch.float32"),
        (IMAGE, [0, 1], "label is list"),
        (IMAGE, LABEL - 1, "label holds -1; classes count from 0"),
        (IMAGE, LABEL + 4, r"label holds 5; the network has classes 0\.\.4"),
    ],
)  # fmt: skip
def test_unusable_images_and_labels_are_refused(linear, image, label, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_attack(linear, image, label, GOOD[0])


@pytest.mark.parametrize(
    ("attack", "target", "message"),
    [
        (Pgd(0.1, 0.1, 1, targeted=True), None, "a targeted attack needs a target class"),
        (CarliniWagner(targeted=True), None, "a targeted attack needs a target class"),
        (Square(0.1, targeted=True), None, "a targeted attack needs a target class"),
        (Pgd(0.1, 0.1, 1), torch.tensor([1, 2]), "is not targeted, but targets are given"),
        (DeepFool(), torch.tensor([1, 2]), "is not targeted"),
        (Pgd(0.1, 0.1, 1, targeted=True), torch.tensor([1, 1]), "target is the label of image 1"),
        (Pgd(0.1, 0.1, 1, targeted=True), torch.tensor([1, 9]), r"target holds 9; the network has classes 0\.\.4"),
        (Pgd(0.1, 0.1, 1, targeted=True), torch.tensor([1.0, 2.0]), "target is torch.float32"),
    ],
)  # fmt: skip
def test_targets_and_attack_must_fit(linear, attack, target, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_attack(linear, IMAGE, LABEL, attack, target=target)


@pytest.mark.parametrize("attack", GOOD, ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda logits: logits * torch.nan, "answers NaN or infinity to 2 of 2 images"),
        (lambda logits: logits / 0, "answers NaN or infinity"),
        (lambda logits: logits[:, 0], r"answers \(2,\) to 2 images; expected logits \(N, K\)"),
        (lambda logits: logits[:1], r"answers \(1, 5\) to 2 images"),
        (lambda logits: logits[:, :1], "K at least 2"),
        (lambda logits: logits.detach().numpy(), "answers ndarray"),
    ],
)  # fmt: skip
def test_networks_that_do_not_answer_logits_are_refused(linear, attack, answer, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_attack(lambda image: answer(linear(image)), IMAGE, LABEL, attack)


@pytest.mark.parametrize("attack", [a for a in GOOD if not isinstance(a, Square)], ids=lambda a: type(a).__name__)
def test_gradients_that_are_missing_or_nan_are_refused(linear, attack) -> None:
    label = linear(IMAGE).argmax(1)
    with pytest.raises(InputError, match="has no gradient .*black-box attack, such as square"):
        run_attack(lambda image: linear(image).detach(), IMAGE, label, attack)
    bent = lambda image: linear(image) + (image - image.detach()).sum((1, 2, 3)).sqrt()[:, None]  # noqa: E731
    with pytest.raises(InputError, match="gradient is NaN or infinite"):
        run_attack(bent, IMAGE, label, attack)


def test_a_network_in_training_mode_is_refused(linear) -> None:
    with pytest.raises(InputError, match=r"training mode.*call \.eval\(\)"):
        run_attack(linear.train(), IMAGE, LABEL, GOOD[0])


@pytest.mark.parametrize(("keyword", "value"), [("batch", 0), ("seed", -1), ("seed", 2**31), ("batch", 1.5)])
def test_batch_and_seed_are_checked(linear, keyword: str, value) -> None:
    with pytest.raises(InputError, match=rf"{keyword} \(="):
        run_attack(linear, IMAGE, LABEL, GOOD[0], **{keyword: value})
