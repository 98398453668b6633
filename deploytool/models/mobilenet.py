"""MobileNetV2 for small images.

Reference: M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen, MobileNetV2: inverted residuals and linear
bottlenecks, 2018, table 2. Where ImageNet's network shrinks an image 32 times, ours shrinks it 8 times, as is usual
for CIFAR: stem and second stage have stride 1. There is no dropout before the classifier.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from deploytool.models.layers import Normalize, initialize, scaled

# expansion, channels, blocks, stride of the first block
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM, LAST = 32, 1280


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection; added to the input where shapes agree.

    Args:
        channels_in, channels: before and after.
        hidden: channels in between; the expansion is left out where `expand` is false.
        stride: of the depthwise convolution.
        expand: whether there is an expansion.
        residual: whether the input is added.
    """

    def __init__(self, channels_in: int, hidden: int, channels: int, stride: int, expand: bool, residual: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expand:
            layers += _conv_norm(channels_in, hidden, 1)
        layers += _conv_norm(hidden, hidden, 3, stride, groups=hidden)
        layers += [nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.layers = nn.Sequential(*layers)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels, ceil(H / stride), ceil(W / stride))."""
        y = self.layers(x)
        return x + y if self.residual else y  # type: ignore[no-any-return]


class MobileNet(nn.Module):
    """Stem, seven stages of inverted residuals, 1x1 convolution, global average, linear layer.

    Args:
        channels, classes, mean, std: as in `ResNet`.
        width: multiplier in (0, 1] of all channel counts but the image's and the classes'; without the paper's
            rounding to multiples of 8.
    """

    def __init__(
        self, channels: int, classes: int, mean: Sequence[float], std: Sequence[float], width: float = 1.0
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.stem = nn.Sequential(*_conv_norm(channels, scaled(STEM, width), 3))
        previous = STEM  # channels of the full network, which decides where the input is added
        blocks = []
        for expansion, current, count, first_stride in STAGES:
            for stride in [first_stride] + [1] * (count - 1):
                before, hidden, after = (scaled(c, width) for c in (previous, expansion * previous, current))
                residual = stride == 1 and previous == current
                blocks.append(InvertedResidual(before, hidden, after, stride, expansion != 1, residual))
                previous = current
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(*_conv_norm(scaled(previous, width), scaled(LAST, width), 1))
        self.linear = nn.Linear(scaled(LAST, width), classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map image (N, C, H, W) float32 in [0, 1] to logits (N, classes)."""
        x = self.last(self.blocks(self.stem(self.normalize(image))))
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def _conv_norm(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU6()]
