"""ResNets: the digits network, CIFAR ResNet-20, CIFAR ResNet-34 and CIFAR ResNet-50, and ImageNet's ResNet-50.

Reference: K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition, 2016 (section 4.2 for
CIFAR's 6n+2 layers with option A shortcuts; table 1 for the 34 and 50 layers, with a 3x3 stem as used by paper 5).
The bottleneck's stride is at its 3x3 convolution, as everyone has it since torchvision, not at its first 1x1.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploytool.models.layers import Normalize, PadShortcut, initialize, scaled

Shortcut = Literal["identity", "A", "B"]

EXPANSION = 4


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = make_shortcut(channels_in, channels, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels, ceil(H / stride), ceil(W / stride))."""
        return torch.relu(self.residual(x) + self.shortcut(x))

    def residual(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut, of the shape that it answers."""
        return self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm, the last to `channels_out`, and a shortcut."""

    def __init__(self, channels_in: int, channels: int, channels_out: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.shortcut = make_shortcut(channels_in, channels_out, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels_out, ceil(H / stride), ceil(W / stride))."""
        return torch.relu(self.residual(x) + self.shortcut(x))

    def residual(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut, of the shape that it answers."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A residual network: stem, stages of blocks, global average, linear layer.

    Args:
        blocks: blocks per stage; every stage but the first halves height and width.
        widths: channels per stage, same length as `blocks`; the stem has `widths[0]`.
        channels: channels of the image.
        classes: number of logits.
        mean, std: normalisation per image channel.
        shortcut: "A" (subsample and pad, no parameters) or "B" (1x1 convolution with batch norm), where a block
            changes its input's shape.
        bottleneck: blocks of three convolutions that end with 4 times the stage's channels.
        width: multiplier in (0, 1] of all channel counts but the image's and the classes'.
        small: the 3x3 stem that keeps height and width; otherwise ImageNet's, 7x7 and a pool, which quarters them.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        channels: int,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        shortcut: Shortcut = "B",
        bottleneck: bool = False,
        width: float = 1.0,
        small: bool = True,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(channels, scaled(widths[0], width), kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(scaled(widths[0], width))
        self.small = small
        self.stages: list[str] = []
        previous = widths[0]  # channels of the full network, which decides where shortcuts are
        for stage, (count, inner) in enumerate(zip(blocks, widths, strict=True)):
            outer = EXPANSION * inner if bottleneck else inner
            layer: list[nn.Module] = []
            for stride in [1 if stage == 0 else 2] + [1] * (count - 1):
                kind: Shortcut = "identity" if stride == 1 and previous == outer else shortcut
                before, between, after = (scaled(c, width) for c in (previous, inner, outer))
                if bottleneck:
                    layer.append(Bottleneck(before, between, after, stride, kind))
                else:
                    layer.append(BasicBlock(before, after, stride, kind))
                previous = outer
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*layer))
        self.linear = nn.Linear(scaled(previous, width), classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map image (N, C, H, W) float32 in [0, 1] to logits (N, classes)."""
        x = self.stem(image)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]

    def stem(self, image: Tensor) -> Tensor:
        """Map image (N, C, H, W) to what the first stage reads."""
        x = torch.relu(self.bn1(self.conv1(self.normalize(image))))
        return x if self.small else F.max_pool2d(x, 3, 2, 1)


def make_shortcut(channels_in: int, channels: int, stride: int, kind: Shortcut) -> nn.Module:
    """Build the shortcut of a block from (N, channels_in, H, W) to (N, channels, ceil(H / stride), ...)."""
    if kind == "identity":
        return nn.Identity()
    if kind == "A":
        return PadShortcut(channels - channels_in, stride)
    return nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
