"""ResNets for small images: the digits network, CIFAR ResNet-20 and CIFAR ResNet-34.

Reference: K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition, 2016 (section 4.2 for
CIFAR's 6n+2 layers with option A shortcuts; the 34-layer network with a 3x3 stem as used by paper 5).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from deploytool.models.layers import Normalize, PadShortcut, initialize


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int, shortcut: Literal["A", "B"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            if shortcut == "A":
                self.shortcut = PadShortcut(channels - channels_in, stride)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
                )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels, ceil(H / stride), ceil(W / stride))."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network for small images: 3x3 stem, stages of basic blocks, global average, linear layer.

    Args:
        blocks: basic blocks per stage; every stage but the first halves height and width.
        widths: channels per stage, same length as `blocks`; the stem has `widths[0]`.
        channels: channels of the image.
        classes: number of logits.
        mean, std: normalisation per image channel.
        shortcut: "A" (subsample and pad, no parameters) or "B" (1x1 convolution with batch norm).
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        channels: int,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        shortcut: Literal["A", "B"] = "B",
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages: list[str] = []
        previous = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            strides = [1 if stage == 0 else 2] + [1] * (count - 1)
            layer = []
            for stride in strides:
                layer.append(BasicBlock(previous, width, stride, shortcut))
                previous = width
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*layer))
        self.linear = nn.Linear(previous, classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map image (N, C, H, W) float32 in [0, 1] to logits (N, classes)."""
        x = torch.relu(self.bn1(self.conv1(self.normalize(image))))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]
