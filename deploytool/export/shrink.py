"""From channel masks to a physically smaller network: channels that nobody reads are cut out.

    before:  y = conv_1(x, W_1) -> BatchNorm -> relu -> conv_2(., W_2 * mask_2)      mask_2 is 0 for channels R
    after:   y = conv_1(x, W_1[K]) -> BatchNorm[K] -> relu -> conv_2(., W_2[:, K])   K: the other channels

Masks are by input channel per layer (FLOATS-c, paper 5, section 3.2), but a channel is made once and may be read
many times: by both branches of a residual block, by every block along a residual stream. The dependency graph of
G. Fang, X. Ma, M. Song, M. B. Mi, X. Wang, DepGraph: towards any structural pruning, 2023 (torch-pruning) finds the
groups of layers that must lose the same channels. A channel of a group goes only if the mask of every reader in the
group hides it, so no answer changes but for the order of sums; masked weights inside channels that stay are zeros.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deploytool.errors import InputError
from deploytool.models.conditional import ConditionalModel, weight_names
from deploytool.models.setting import Setting

ROUNDINGS = (1, 8, 16)

Kept = dict[str, Tensor]


@dataclass(frozen=True)
class Shrunk:
    """A network without the channels that nobody reads, and which ones it kept.

    Indices are (k,) int64, ascending, on the CPU; they count the channels of the setting's width. A layer that lost
    nothing has no entry.

    Attributes:
        network: image (N, C, H, W) float32 in [0, 1] -> logits (N, K), in evaluation mode, on the CPU.
        kept_out: convolution or linear layer -> kept indices on axis 0 of its weight.
        kept_in: convolution or linear layer -> kept indices on axis 1 of its weight; none for depthwise ones.
        kept_norm: batch norm -> kept indices of its channels.
    """

    network: nn.Module
    kept_out: Kept = field(default_factory=dict)
    kept_in: Kept = field(default_factory=dict)
    kept_norm: Kept = field(default_factory=dict)


def shrink(
    model: ConditionalModel, setting: Setting, round_channels: int = 1, shape: tuple[int, int, int] | None = None
) -> Shrunk:
    """Cut every channel that no reader's mask lets through out of the plain network of one setting.

    Groups that torch-pruning cannot follow channel by channel stay whole: streams that a shortcut pads with zero
    channels (option A), concatenations, splits, grouped convolutions that are not depthwise.

    Args:
        model: with masks; one without them comes back whole.
        setting: of the network; at a width below 1, the leading block of the masks counts.
        round_channels: 1, 8 or 16; so many channels stay that a group's width is a multiple of it (or unchanged).
            Hardware that works on blocks of channels gains nothing from odd widths.
        shape: (C, H, W) of an image, for tracing; 32x32 pixels where None. A network that flattens needs its own.

    Returns:
        The smaller network with the setting's tensors, and the kept indices. At least one channel stays per group.

    Raises:
        InputError: `round_channels` is none of these, or the model has no such width.
    """
    if round_channels not in ROUNDINGS:
        raise InputError(f"round_channels (={round_channels}) must be 1, 8 or 16; 1 removes all that can go")
    network = model.plain_network(setting, reasoning=True)
    shrunk = Shrunk(network)
    masked = _masked_channels(model, network)
    if not any(bool(channels.any()) for channels in masked.values()):
        return shrunk
    names = {module: name for name, module in network.named_modules()}
    for group in _whole_groups(network, shape or (_image_channels(network), 32, 32)):
        removed = _removable(group, names, masked, round_channels)
        if removed:
            _remove(group, removed, names, shrunk)
    network.requires_grad_(False)
    return shrunk


def weight_count(network: nn.Module) -> int:
    """Number of weights of all convolutions and linear layers, biases and batch norms aside."""
    return sum(network.get_parameter(name).numel() for name in weight_names(network))


@dataclass(frozen=True)
class _Member:
    """One layer of a group of coupled channels.

    Attributes:
        layer: a convolution, a linear layer, a batch norm, or an operation without tensors.
        prune: removes indices from the layer in place: torch-pruning's own function.
        reads: whether the layer takes the group's channels as input channels that its weights sum over.
        channels: per index of the layer, the group's channel that it belongs to.
    """

    layer: Any
    prune: Any
    reads: bool
    channels: Mapping[int, int]


def _whole_groups(network: nn.Module, shape: tuple[int, int, int]) -> list[list[_Member]]:
    """The groups of coupled channels in which every member has exactly the group's channels."""
    import torch_pruning as tp

    network.requires_grad_(True)  # the graph is read from autograd's
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(network, torch.zeros(1, *shape), verbose=False)
    groups = []
    for found in graph.get_all_groups():
        members = []
        for item in found.items:
            dep = item.dep
            reads = not graph.is_out_channel_pruning_fn(dep.handler)
            members.append(_Member(dep.target.module, dep, reads, dict(zip(item.idxs, item.root_idxs, strict=True))))
        if all(_is_followed(member) for member in members):
            groups.append(members)
    return groups


def _is_followed(member: _Member) -> bool:
    """Whether a member's channels are the group's, all of them; padding, concatenation and splits break this."""
    from torch_pruning import ops

    layer = member.layer
    if isinstance(layer, nn.Linear):
        size = layer.in_features if member.reads else layer.out_features
    elif isinstance(layer, nn.Conv2d):
        if layer.groups > 1 and not layer.groups == layer.in_channels == layer.out_channels:
            return False
        size = layer.in_channels if member.reads else layer.out_channels
    elif isinstance(layer, nn.BatchNorm2d):
        size = layer.num_features
    else:
        return ops.module2type(layer) in (ops.OPTYPE.ELEMENTWISE, ops.OPTYPE.RESHAPE)
    return set(member.channels) == set(range(size))


def _removable(
    group: list[_Member], names: Mapping[nn.Module, str], masked: Mapping[str, Tensor], multiple: int
) -> set[int]:
    """The channels of a group that every reader masks, less those that stay for a whole number of blocks."""
    count = len(group[0].channels)  # the root makes every channel of the group
    readers = [member for member in group if member.reads]
    if not readers:
        return set()  # logits
    read: set[int] = set()
    for reader in readers:
        channels = masked.get(names[reader.layer])
        read |= {channel for index, channel in reader.channels.items() if channels is None or not channels[index]}
    free = [channel for channel in range(count) if channel not in read]
    width = min(count, -(-max(1, len(read)) // multiple) * multiple)
    return set(free[width - len(read) :])


def _remove(group: list[_Member], removed: set[int], names: Mapping[nn.Module, str], shrunk: Shrunk) -> None:
    """Remove channels from every layer of a group, in place, and note what each one keeps."""
    for member in group:
        if isinstance(member.layer, nn.BatchNorm2d):
            table = shrunk.kept_norm
        elif isinstance(member.layer, nn.Conv2d | nn.Linear):
            table = shrunk.kept_in if member.reads else shrunk.kept_out
        else:
            continue
        parts = sorted(member.channels.items())
        table[names[member.layer]] = torch.tensor([index for index, channel in parts if channel not in removed])
        member.prune([index for index, channel in parts if channel in removed])


def _masked_channels(model: ConditionalModel, network: nn.Module) -> dict[str, Tensor]:
    """Per masked layer, which of its input channels no weight reads: (C_i,) bool, of the network's width."""
    found = {}
    for name, mask in model.masks.items():
        outs, ins = network.get_parameter(name).shape[:2]
        leading = mask[:outs, :ins].cpu()
        found[name.removesuffix(".weight")] = ~leading.transpose(0, 1).flatten(1).any(1)
    return found


def _image_channels(network: nn.Module) -> int:
    """Channels that the first convolution reads."""
    return next(module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d))
