"""Networks that draw noise with every answer."""

import torch
from torch import Tensor

from deploytool.attacks.victim import Network
from deploytool.models.conditional import ConditionalModel
from deploytool.models.setting import Setting


def redrawn_network(
    model: ConditionalModel, setting: Setting, generator: torch.Generator | None = None, reasoning: bool = False
) -> Network:
    """A model that draws its noise anew for every batch it answers, as `noise="redrawn"` trains it.

    `ConditionalModel.network` draws once and keeps that: attacked so, a randomised defence is attacked as a frozen
    one. Attack this with `eot_iter` above 1 (`autoattack-rand`).

    Args:
        model: a model with redrawn noise.
        setting: the knobs; its noise should be `redrawn`.
        generator: source of the noise, on the model's device; torch's default where None.
        reasoning: answer (N, K + R) instead of logits (N, K), for a model with reasoning labels.
    """

    def network(image: Tensor) -> Tensor:
        with model.network(setting, generator, reasoning) as drawn:
            return drawn(image)

    return network


@torch.no_grad()
def is_randomised(network: Network, image: Tensor, draws: int = 4) -> bool:
    """Whether a network answers the same images (N, C, H, W) differently from one time to the next."""
    first = network(image)
    return any(not torch.equal(first, network(image)) for _ in range(draws - 1))
