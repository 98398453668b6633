"""What a rule of acceptance makes of attacked images: who is detected, and which wrong answers get through."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deploytool.attacks.acceptance import AcceptanceRule
from deploytool.attacks.checks import check_classes
from deploytool.attacks.run import BATCH, Attack, AttackResult, batches, passes, run_attack
from deploytool.attacks.victim import Network, Victim
from deploytool.errors import InputError


@dataclass(frozen=True)
class Judged:
    """Answers of a network with reasoning labels to some images.

    Attributes:
        right: (N,) bool, the class is the label.
        accepted: (N,) bool, the reasons are those of the class, as far as the rule asks.
    """

    right: Tensor
    accepted: Tensor

    def __len__(self) -> int:
        return len(self.right)

    @property
    def accuracy(self) -> float:
        """Share of images whose class is right, accepted or not, in [0, 1]."""
        return int(self.right.sum()) / len(self)

    @property
    def coverage(self) -> float:
        """Share of images whose answer is accepted, in [0, 1]."""
        return int(self.accepted.sum()) / len(self)

    @property
    def accuracy_accepted(self) -> float | None:
        """Share of right classes among accepted answers; None where none is accepted."""
        return _share(self.right, self.accepted)


@dataclass(frozen=True)
class Detection:
    """Images before and after an attack, in one order.

    The paper counts the images that were classified rightly before the attack, whether or not they were accepted then,
    and calls an attacked one detected where its answer is rejected, whether or not the attack changed its class.
    `detection_rate` does so. It flatters twice: images that the rule rejects anyway count as detected, and attacks
    that stop at the first wrong class are easy to detect. So the rates beside it say more.

    Attributes:
        before: the answers to the images as they are.
        after: the answers to the attacked ones.
    """

    before: Judged
    after: Judged

    def __post_init__(self) -> None:
        if len(self.before) != len(self.after):
            raise InputError(f"{len(self.before)} images before the attack, {len(self.after)} after it; they differ")

    @property
    def detection_rate(self) -> float | None:
        """Of the images that were right before, the share rejected after; None where none was right.

        Reference: paper 1, section 4.2 and figure 2, which shows its complement.
        """
        return _share(~self.after.accepted, self.before.right)

    @property
    def detection_rate_changed(self) -> float | None:
        """The same, of those whose class the attack did change; None where it changed none."""
        return _share(~self.after.accepted, self.before.right & ~self.after.right)

    @property
    def undetected_rate(self) -> float:
        """Of all images, the share answered with a wrong class that is accepted, after the attack."""
        return int((~self.after.right & self.after.accepted).sum()) / len(self.after)

    @property
    def robust_accuracy_accepted(self) -> float:
        """Of all images, the share that are right and accepted as they are, and not wrong and accepted after.

        What is rejected as it is counts against the network here, so that rejecting everything gives 0; what is
        rejected under attack alone does not.
        """
        fooled = ~self.after.right & self.after.accepted
        return int((self.before.right & self.before.accepted & ~fooled).sum()) / len(self.after)

    @property
    def rejected_rate(self) -> float | None:
        """Of the images right and accepted as they are, the share rejected after: what an attack denies.

        None where no image was right and accepted. An attack that aims at it would reach more.
        """
        return _share(~self.after.accepted, self.before.right & self.before.accepted)

    def to_dict(self) -> dict[str, Any]:
        """Every rate by name, for a JSON document; `coverage` and `accuracy_accepted` of the images as they are."""
        names = (
            "detection_rate", "detection_rate_changed", "undetected_rate", "robust_accuracy_accepted", "rejected_rate"
        )  # fmt: skip
        return {
            "coverage": self.before.coverage,
            "accuracy_accepted": self.before.accuracy_accepted,
            **{name: getattr(self, name) for name in names},
        }


def judge(network: Network, parts: Iterable[tuple[Tensor, Tensor]], rule: AcceptanceRule, eot_iter: int = 1) -> Judged:
    """Classes and acceptance of images, batch by batch.

    Args:
        network: image (N, C, H, W) float32 in [0, 1] -> (N, K + R), in evaluation mode.
        parts: (image, label (N,) int64) of each batch, at least one.
        rule: of acceptance.
        eot_iter: answers to average over, for a randomised network.

    Raises:
        InputError: the network answers NaN, or does not fit the rule; a label is no class.
    """
    victim, right, accepted = Victim(network), [], []
    for image, label in parts:
        own = rule.to(image.device)
        check_classes(label, rule.classes)
        answer = victim.logits(image, eot_iter)
        right.append(own.class_logits(answer).argmax(1) == label)
        accepted.append(own.accepted(answer))
    return Judged(torch.cat(right), torch.cat(accepted))


def measure_detection(
    network: Network,
    image: Tensor,
    label: Tensor,
    attack: Attack,
    rule: AcceptanceRule,
    seed: int = 0,
    target: Tensor | None = None,
    name: str | None = None,
    batch: int = BATCH,
) -> tuple[AttackResult, Detection]:
    """Attack a network with reasoning labels, and say what the rule detects.

    An attack on the class alone is run on the class logits, as the paper does; `Consistent` on class and reasons. PGD
    keeps the first iterate of a wrong class, which has only just crossed the boundary and is the easiest to detect;
    with `Pgd(..., iterate="last")` it goes on for all of its steps. Report both.

    Args:
        network: image (N, C, H, W) float32 in [0, 1] -> (N, K + R), in evaluation mode.
        image, label, attack, rule, seed, target, name, batch: as in `run_attack`.

    Returns:
        The attack's result, and the answers before and after.

    Raises:
        InputError: as `run_attack`.

    Reference: paper 1, section 4.2.
    """
    result = run_attack(network, image, label, attack, seed, target, name, batch, rule=rule)
    parts = ((image[rows], label[rows]) for rows in batches(len(image), batch))
    return result, detection(judge(network, parts, rule, passes(attack)), result)


def detection(before: Judged, result: AttackResult) -> Detection:
    """What an attack's result says beside the answers before it.

    Raises:
        InputError: the attack was run without a rule, or on other images.
    """
    if result.accepted is None:
        raise InputError("the attack's result does not say what was accepted; attack with a rule")
    return Detection(before, Judged(result.correct, result.accepted))


def _share(of: Tensor, among: Tensor) -> float | None:
    """Share of some images among others; None where there are no others."""
    count = int(among.sum())
    return int((of & among).sum()) / count if count else None
