"""Backbones by name."""

import difflib
from collections.abc import Callable

from torch import nn

from deploytool.data.catalogue import DatasetInfo
from deploytool.errors import RecipeError
from deploytool.models.resnet import ResNet
from deploytool.models.wrn import WideResNet

Build = Callable[[DatasetInfo], nn.Module]


def _resnet(blocks: list[int], widths: list[int], shortcut: str = "B") -> Build:
    return lambda data: ResNet(
        blocks,
        widths,
        data.shape[0],
        len(data.classes),
        data.mean,
        data.std,
        shortcut,  # type: ignore[arg-type]
    )


def _wrn(depth: int, factor: int) -> Build:
    return lambda data: WideResNet(depth, factor, data.shape[0], len(data.classes), data.mean, data.std)


BACKBONES: dict[str, Build] = {
    "digits-resnet": _resnet([1, 1, 1], [32, 64, 128]),
    "resnet8": _resnet([1, 1, 1], [16, 32, 64]),
    "resnet20": _resnet([3, 3, 3], [16, 32, 64], shortcut="A"),
    "resnet34": _resnet([3, 4, 6, 3], [64, 128, 256, 512]),
    "wrn16-8": _wrn(16, 8),
    "wrn40-2": _wrn(40, 2),
}


def build_backbone(arch: str, data: DatasetInfo) -> nn.Module:
    """Build a plain backbone for a data set: image (N, C, H, W) float32 in [0, 1] -> logits (N, classes).

    Raises:
        RecipeError: no backbone has that name.
    """
    if arch not in BACKBONES:
        near = difflib.get_close_matches(arch, BACKBONES, n=1)
        advice = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(f"model.arch (={arch!r}) is unknown; {advice}known: {', '.join(sorted(BACKBONES))}")
    return BACKBONES[arch](data)
