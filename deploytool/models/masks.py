"""Which weights of a sparse network are active: masks, their units, their density.

A unit is one weight (`irregular`, FLOATS-i) or one input channel with all its C_o k^2 weights (`channel`, FLOATS-c;
paper 5, section 3.2). Channel masks leave the layer alone whose input channels are the image's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deploytool.errors import RecipeError

Kind = Literal["irregular", "channel"]
Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Units:
    """How the weights of one layer are grouped.

    Attributes:
        count: units in the layer.
        size: weights per unit.
        kind: of the units.
    """

    count: int
    size: int
    kind: Kind

    def sums(self, tensor: Tensor) -> Tensor:
        """Sum a tensor of the layer's shape over each unit: (count,)."""
        return tensor.reshape(-1) if self.kind == "irregular" else tensor.transpose(0, 1).flatten(1).sum(1)

    def spread(self, chosen: Tensor, shape: torch.Size) -> Tensor:
        """A mask of the layer's shape from one bool per unit (count,)."""
        if self.kind == "irregular":
            return chosen.view(shape)
        return chosen.view(1, -1, *[1] * (len(shape) - 2)).expand(shape).contiguous()


def layer_units(theta: Tensor, kind: Kind) -> Units:
    """Group the weights of a layer, theta (C_o, C_i, ...)."""
    if kind == "irregular":
        return Units(theta.numel(), 1, kind)
    return Units(theta.shape[1], theta.numel() // theta.shape[1], kind)


def initial_masks(
    weights: Mapping[str, Tensor], density: float, kind: Kind, generator: torch.Generator, image_channels: int
) -> Masks:
    """Draw the initial masks: random units, the same density in every layer, at least one unit each.

    Args:
        weights: the layers' weight tensors by name, in order.
        density: global density d in (0, 1].
        kind: of units.
        generator: on the CPU.
        image_channels: with `channel`, layers that read so many input channels and come first stay whole.

    Raises:
        RecipeError: so few weights cannot keep every layer alive.
    """
    units = {name: layer_units(theta, kind) for name, theta in weights.items()}
    free = [name for index, name in enumerate(weights) if not _reads_image(index, weights[name], kind, image_channels)]
    whole = sum(theta.numel() for name, theta in weights.items() if name not in free)
    budget = density * sum(theta.numel() for theta in weights.values()) - whole
    counts = _counts({name: units[name] for name in free}, budget, density)
    masks = {name: torch.ones_like(theta, dtype=torch.bool) for name, theta in weights.items()}
    for name, count in counts.items():
        order = torch.randperm(units[name].count, generator=generator)[:count]
        chosen = torch.zeros(units[name].count, dtype=torch.bool)
        chosen[order] = True
        masks[name] = units[name].spread(chosen, weights[name].shape).to(weights[name].device)
    return masks


def _reads_image(index: int, theta: Tensor, kind: Kind, image_channels: int) -> bool:
    return kind == "channel" and index == 0 and theta.shape[1] == image_channels


def _counts(units: Mapping[str, Units], budget: float, density: float) -> dict[str, int]:
    """Active units per layer: about the same share everywhere, at least one, the budget (in weights) kept."""
    sizes = sum(unit.count * unit.size for unit in units.values())
    share = min(1.0, budget / sizes) if sizes else 0.0
    counts = {name: max(1, int(share * unit.count)) for name, unit in units.items()}
    used = sum(count * units[name].size for name, count in counts.items())
    for name in sorted(counts, key=lambda name: -units[name].size * units[name].count):
        while used > budget and counts[name] > 1:
            surplus = max(1, min(counts[name] - 1, int((used - budget) / units[name].size)))
            counts[name] -= surplus
            used -= surplus * units[name].size
    if used > budget:
        raise RecipeError(f"sparsity.density (={density:g}) leaves some layer without a weight; choose a larger one")
    return counts


def density_of(masks: Mapping[str, Tensor]) -> float:
    """Active weights as a share of all masked tensors' weights, in [0, 1]; 1 without masks."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / total if total else 1.0


def channel_density_of(masks: Mapping[str, Tensor]) -> float:
    """Input channels with at least one active weight as a share of all input channels, in [0, 1]."""
    present = [mask.transpose(0, 1).flatten(1).any(1) for mask in masks.values()]
    total = sum(len(channels) for channels in present)
    return sum(int(channels.sum()) for channels in present) / total if total else 1.0
