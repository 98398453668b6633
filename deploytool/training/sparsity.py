"""Sparse learning: masks that move while the network trains, at one global density.

Sparse momentum: after each epoch every layer drops a fixed share of its active units with the smallest magnitude;
as many units are grown back in all, shared between the layers by the mean momentum of their active weights, and
within a layer where the momentum of inactive weights is largest. Grown weights start at 0. Eq. 5 holds at every step:

    sum_l card(theta_l * pi_l)  <=  d * sum_l card(theta_l)

With channels as units, a channel's magnitude is its squared Frobenius norm (FLOATS-c).

Reference: S. Kundu et al. 2022 ("paper 5"), Algorithm 1, eq. 5, section 3.2; T. Dettmers, L. Zettlemoyer, Sparse
networks from scratch: faster training without losing performance, 2019.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deploytool.models.conditional import ConditionalModel
from deploytool.models.masks import Kind, Masks, Units, channel_density_of, density_of, layer_units
from deploytool.recipe import SparsitySection


@torch.no_grad()
def prune_and_regrow(
    weights: Mapping[str, Tensor], momentum: Mapping[str, Tensor], masks: Masks, kind: Kind, rate: float
) -> Masks:
    """One step of sparse momentum; the new masks.

    Args:
        weights: tensors by name; pruned entries are 0.
        momentum: SGD's momentum buffers by name, of the weights' shapes, pruned entries included.
        masks: the current masks.
        kind: of units.
        rate: share of each layer's active units to drop, in [0, 1).

    Returns:
        Masks with at most as many active weights as before.
    """
    units = {name: layer_units(weights[name], kind) for name in masks}
    active = {name: units[name].sums(mask.float()) > 0 for name, mask in masks.items()}
    movable = [
        name for name in masks if int(active[name].sum()) > 1 and (kind == "irregular" or not _whole(masks[name]))
    ]
    kept, freed = dict(active), 0
    for name in movable:
        drop = int(rate * int(active[name].sum()))
        magnitude = units[name].sums(weights[name].square()).masked_fill(~active[name], torch.inf)
        kept[name] = active[name].clone()
        kept[name][torch.topk(magnitude, drop, largest=False).indices] = False
        freed += drop * units[name].size
    grown = _growth(movable, units, weights, momentum, masks, kept, freed)
    new = dict(masks)
    for name in movable:
        wanted = units[name].sums(momentum[name].abs()).masked_fill(kept[name], -1.0)
        chosen = kept[name].clone()
        chosen[torch.topk(wanted, grown[name]).indices] = True
        new[name] = units[name].spread(chosen, weights[name].shape)
    return new


def _whole(mask: Tensor) -> bool:
    return bool(mask.all())


def _growth(
    names: Sequence[str],
    units: Mapping[str, Units],
    weights: Mapping[str, Tensor],
    momentum: Mapping[str, Tensor],
    masks: Masks,
    kept: Mapping[str, Tensor],
    freed: int,
) -> dict[str, int]:
    """Units to grow per layer: by mean momentum of the active weights, full layers passing their surplus on."""
    room = {name: int((~kept[name]).sum()) for name in names}
    share = {name: float(momentum[name][masks[name]].abs().mean()) for name in names}
    grown = dict.fromkeys(names, 0)
    left, open_layers = freed, list(names)
    while open_layers:
        total = sum(share[name] for name in open_layers)
        before = left
        for name in list(open_layers):
            part = share[name] / total if total > 0 else 1 / len(open_layers)
            count = min(room[name] - grown[name], int(part * before / units[name].size), left // units[name].size)
            grown[name] += count
            left -= count * units[name].size
            if grown[name] == room[name] or left < units[name].size:
                open_layers.remove(name)
        if left == before:
            break
    for name in sorted(names, key=lambda name: -share[name]):  # what rounding left over
        count = min(room[name] - grown[name], left // units[name].size)
        grown[name] += count
        left -= count * units[name].size
    return grown


def move_masks(
    model: ConditionalModel, momentum: Mapping[str, Tensor], section: SparsitySection, last: bool
) -> dict[str, float]:
    """Move a model's masks at the end of an epoch, and clear the momentum of what was pruned.

    After the last epoch nothing is grown any more, since it could not be trained.

    Args:
        model: with masks.
        momentum: SGD's buffers by the model's parameter names; changed in place.
        section: kind and rate.
        last: whether no epoch follows.

    Returns:
        `density` and `channel_density` after the move.
    """
    masks = model.masks
    weights = {name: model.backbone.get_parameter(name).detach() for name in masks}
    moments = {name: momentum[f"backbone.{name}"] for name in masks}
    if last:
        new = settled(weights, masks)
    else:
        new = prune_and_regrow(weights, moments, masks, section.kind, section.prune_rate)
    clear_pruned(moments, masks, new)
    model.set_masks(new)
    return {"density": density_of(new), "channel_density": channel_density_of(new)}


@torch.no_grad()
def clear_pruned(momentum: Mapping[str, Tensor], old: Masks, new: Masks) -> None:
    """Forget the momentum of weights that were active and are no more, in place."""
    for name, mask in new.items():
        momentum[name].masked_fill_(old[name] & ~mask, 0.0)


def settled(weights: Mapping[str, Tensor], masks: Masks) -> Masks:
    """The masks without active weights that are exactly 0: grown ones that no gradient ever reached."""
    return {name: mask & (weights[name] != 0) for name, mask in masks.items()}
