"""Small modules that the backbones share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation per channel, inside the model.

    Keeping it here means that images are in [0, 1] everywhere else: in attacks, in files, on the edge.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map image (N, C, H, W) float32 in [0, 1] to the same shape, about zero mean and unit variance."""
        return (image - self.mean) / self.std


class PadShortcut(nn.Module):
    """The parameter-free shortcut of CIFAR ResNets (He et al. 2016, option A): subsample, zero new channels.

    Subsampling is a 1x1 average pool: the same values as slicing with a step, in one ONNX node.
    """

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.before = extra_channels // 2
        self.after = extra_channels - self.before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + extra, ceil(H / stride), ceil(W / stride))."""
        return F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, self.before, self.after))


def scaled(channels: int, width: float) -> int:
    """Channel count at a width multiplier: rounded, at least 1."""
    return max(1, round(channels * width))


def initialize(network: nn.Module) -> None:
    """He initialisation (fan out) of convolutions, unit batch norms; linear layers keep torch's default."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
