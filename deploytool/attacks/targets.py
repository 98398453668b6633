"""Which class a targeted attack is to reach, where nobody names one for each image."""

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from deploytool.attacks.draws import Draws
from deploytool.attacks.run import batch_seed
from deploytool.attacks.victim import Network, Victim

TargetRule = Literal["random", "next", "least-likely"]
RULES: tuple[TargetRule, ...] = ("random", "next", "least-likely")


def choose_targets(network: Network, image: Tensor, label: Tensor, rule: TargetRule, draws: Draws) -> Tensor:
    """A class for each image, never its own, (N,) int64.

    `random`: uniform over the others; `next`: label + 1, and 0 after the last; `least-likely`: the one of smallest
    logit on the image as it is.

    Args:
        network: image (N, C, H, W) -> logits (N, K).
        image: (N, C, H, W) float32 in [0, 1].
        label: (N,) int64.
        rule: which.
        draws: of the batch; used by `random`.
    """
    logits = Victim(network).logits(image)
    classes = logits.shape[1]
    if rule == "next":
        return (label + 1) % classes
    if rule == "random":
        step = 1 + (draws.uniform() * (classes - 1)).long().clamp_(max=classes - 2)
        return (label + step) % classes
    return logits.scatter(1, label[:, None], torch.inf).argmin(1)


def with_targets(
    network: Network, parts: Iterable[tuple[Tensor, Tensor]], rule: TargetRule | None, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Batches (image, label) with their targets, None where there is no rule; see `run.attack_batches`."""
    first = 0
    for image, label in parts:
        draws = Draws.seeded(batch_seed(seed, first), len(image), image.device)
        yield image, label, None if rule is None else choose_targets(network, image, label, rule, draws)
        first += len(image)
