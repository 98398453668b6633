"""CBAM: attention over channels, then over places.

    c(f) = sigmoid( MLP(mean over H, W of f) + MLP(max over H, W of f) )                 (N, C, 1, 1)
    s(g) = sigmoid( Conv7x7([mean over C of g; max over C of g]) ),   g = c(f) * f       (N, 1, H, W)
    f_hat = s(g) * g

Reference: S. Woo, J. Park, J.-Y. Lee, I. S. Kweon, CBAM: convolutional block attention module, 2018, eqs. 1 to 3;
H. Lee, S. Kim, Explaining neural networks using attentive knowledge distillation, 2021 ("paper 3"), section 3.3.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

REDUCTION, LEAST_HIDDEN, KERNEL = 16, 4, 7


class ChannelAttention(nn.Module):
    """One factor in (0, 1) per channel; the MLP has C / 16 hidden units, at least 4, as 1x1 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(LEAST_HIDDEN, channels // REDUCTION)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, f: Tensor) -> Tensor:
        """Map features (N, C, H, W) to factors (N, C, 1, 1)."""
        pooled = torch.cat([F.adaptive_avg_pool2d(f, 1), F.adaptive_max_pool2d(f, 1)], 2)
        hidden = torch.relu(self.squeeze(pooled)).sum(2, keepdim=True)  # excite is affine: its bias counts once
        return torch.sigmoid(self.excite(hidden))


class SpatialAttention(nn.Module):
    """One factor in (0, 1) per place, from the mean and the maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, KERNEL, padding=KERNEL // 2, bias=False)

    def forward(self, f: Tensor) -> Tensor:
        """Map features (N, C, H, W) to factors (N, 1, H, W)."""
        return torch.sigmoid(self.conv(torch.cat([f.mean(1, keepdim=True), f.amax(1, keepdim=True)], 1)))


class CBAM(nn.Module):
    """Channel attention, then spatial attention, on C channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels)
        self.spatial = SpatialAttention()

    def forward(self, f: Tensor) -> Tensor:
        """Map features f (N, C, H, W) to the attended ones, of the same shape."""
        f = self.channel(f) * f
        return self.spatial(f) * f  # type: ignore[no-any-return]
