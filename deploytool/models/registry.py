"""Backbones by name."""

import difflib
from typing import Protocol

from torch import nn

from deploytool.data.catalogue import DatasetInfo
from deploytool.errors import RecipeError
from deploytool.models.lenet import LeNet
from deploytool.models.mobilenet import MobileNet
from deploytool.models.resnet import ResNet, Shortcut
from deploytool.models.single import SingleLayerCNN
from deploytool.models.vgg import VGG16
from deploytool.models.wrn import WideResNet


class Build(Protocol):
    """Builds one backbone for a data set at a width multiplier in (0, 1]."""

    def __call__(self, data: DatasetInfo, width: float = 1.0) -> nn.Module:
        """Return the network, freshly initialised."""


def _resnet(
    blocks: list[int], widths: list[int], shortcut: Shortcut = "B", bottleneck: bool = False, small: bool = True
) -> Build:
    def build(data: DatasetInfo, width: float = 1.0) -> nn.Module:
        return ResNet(
            blocks, widths, data.shape[0], len(data.classes), data.mean, data.std, shortcut, bottleneck, width, small
        )

    return build


def _wrn(depth: int, factor: int) -> Build:
    def build(data: DatasetInfo, width: float = 1.0) -> nn.Module:
        return WideResNet(depth, factor, data.shape[0], len(data.classes), data.mean, data.std, width)

    return build


def _vgg16(data: DatasetInfo, width: float = 1.0) -> nn.Module:
    return VGG16(data.shape[0], len(data.classes), data.mean, data.std, width)


def _mobilenet(data: DatasetInfo, width: float = 1.0) -> nn.Module:
    return MobileNet(data.shape[0], len(data.classes), data.mean, data.std, width)


def _single_layer(data: DatasetInfo, width: float = 1.0) -> nn.Module:
    return SingleLayerCNN(data.shape, len(data.classes), data.mean, data.std, width)


def _lenet(data: DatasetInfo, width: float = 1.0) -> nn.Module:
    return LeNet(data.shape, len(data.classes), data.mean, data.std, width)


BACKBONES: dict[str, Build] = {
    "digits-resnet": _resnet([1, 1, 1], [32, 64, 128]),
    "lenet": _lenet,
    "mobilenet": _mobilenet,
    "resnet8": _resnet([1, 1, 1], [16, 32, 64]),
    "resnet20": _resnet([3, 3, 3], [16, 32, 64], shortcut="A"),
    "resnet34": _resnet([3, 4, 6, 3], [64, 128, 256, 512]),
    "resnet50": _resnet([3, 4, 6, 3], [64, 128, 256, 512], bottleneck=True),
    "resnet50-imagenet": _resnet([3, 4, 6, 3], [64, 128, 256, 512], bottleneck=True, small=False),
    "single-layer-cnn": _single_layer,
    "vgg16": _vgg16,
    "wrn16-8": _wrn(16, 8),
    "wrn40-2": _wrn(40, 2),
}


def build_backbone(arch: str, data: DatasetInfo, width: float = 1.0) -> nn.Module:
    """Build a plain backbone for a data set: image (N, C, H, W) float32 in [0, 1] -> logits (N, classes).

    Args:
        arch: a name of `BACKBONES`.
        data: image channels, classes and normalisation.
        width: multiplier in (0, 1] of every channel count but the image's and the classes'. A narrow backbone has
            the full one's tensors by name, each in the shape of its leading block.

    Raises:
        RecipeError: no backbone has that name, the width is out of range, or the images are too small for it.
    """
    if arch not in BACKBONES:
        near = difflib.get_close_matches(arch, BACKBONES, n=1)
        advice = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(f"model.arch (={arch!r}) is unknown; {advice}known: {', '.join(sorted(BACKBONES))}")
    if not 0 < width <= 1:
        raise RecipeError(f"width (={width:g}) must be in (0, 1]; 1 builds the full backbone")
    return BACKBONES[arch](data, width)
