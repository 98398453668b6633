"""Wide residual networks (pre-activation).

Reference: S. Zagoruyko, N. Komodakis, Wide residual networks, 2016; paper 5 uses WRN-16-8 and WRN-40-2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deploytool.models.layers import Normalize, initialize, scaled


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions; a 1x1 shortcut where `project` says so."""

    def __init__(self, channels_in: int, channels: int, stride: int, project: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels, ceil(H / stride), ceil(W / stride))."""
        activated = torch.relu(self.bn1(x))
        y = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
        return y + (x if self.shortcut is None else self.shortcut(activated))  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN-depth-factor for small images.

    Args:
        depth: 6n + 4 layers.
        factor: widening factor; the stages have 16, 32 and 64 times that many channels.
        channels, classes, mean, std: as in `ResNet`.
        width: multiplier in (0, 1] of all channel counts but the image's and the classes'.
    """

    def __init__(
        self,
        depth: int,
        factor: int,
        channels: int,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"depth (={depth}) of a wide ResNet must be 6n + 4")
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(channels, scaled(16, width), 3, 1, 1, bias=False)
        previous = 16  # channels of the full network, which decides where shortcuts are
        blocks = []
        for stage in range(3):
            for index in range((depth - 4) // 6):
                current, stride = 16 * factor * 2**stage, 2 if stage and not index else 1
                project = stride != 1 or previous != current
                blocks.append(PreActivationBlock(scaled(previous, width), scaled(current, width), stride, project))
                previous = current
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(scaled(previous, width))
        self.linear = nn.Linear(scaled(previous, width), classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map image (N, C, H, W) float32 in [0, 1] to logits (N, classes)."""
        x = self.blocks(self.conv1(self.normalize(image)))
        x = torch.relu(self.bn(x))
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]
