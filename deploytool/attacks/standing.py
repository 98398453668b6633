"""Attacks made of several runs: each run meets the images that still stand after those before it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deploytool.attacks.draws import Draws
from deploytool.attacks.goal import Goal


@dataclass(frozen=True)
class Found:
    """What an attack made of a batch.

    Attributes:
        image: (N, C, H, W) the adversarial images; where none was found, the last attempt or the image itself.
        by: of attacks that try others in turn, each one's name and how many images it fooled.
    """

    image: Tensor
    by: dict[str, int] = field(default_factory=dict)


Run = Callable[[Tensor, Goal, Draws, Tensor], tuple[Tensor, Tensor]]
"""(image, goal, draws, indices in the batch) of images that stand -> (image after the run, whether it is fooled)."""


def in_turn(image: Tensor, goal: Goal, draws: Draws, runs: Iterable[Run]) -> Tensor:
    """Let runs attack one after another, each the images that still stand.

    Returns:
        (N, C, H, W) what fooled, or else the last run's last attempt.
    """
    result = image.clone()
    standing = torch.arange(len(image), device=image.device)
    for run in runs:
        part, fooled = run(image[standing], goal[standing], draws[standing], standing)
        result[standing] = part
        standing = standing[~fooled]
        if not len(standing):
            break
    return result
