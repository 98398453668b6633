"""The surrogate of a classifier: an attentive student that imitates it, and a decoder that draws what it attends to.

    student:      image -> stages of residual blocks -> logits            attention (CBAM) in the last three stages:
                      f_o = residual(x),   f_hat = CBAM(f_o),   y = relu(f_hat + shortcut(x)),   D = f_hat - f_o
    explanation:  D_3 -> upsample -> [., D_2] -> upsample -> [., D_1] -> upsample -> conv -> sigmoid -> H in [0, 1]

Each block of the last three stages has an attention module (3 to 6 of them in ResNet-50, as in the paper), or the last
block of each alone, which is cheaper; a stage delivers D of its last one. `upsample` is convolution, batch norm, ReLU
and interpolation to the next scale; where that scale is as large already, the interpolation has nothing to do. A map
may be coarser than the image: finer D are averaged down to its grid, and what is drawn there is interpolated.

Reference: H. Lee, S. Kim, Explaining neural networks using attentive knowledge distillation, 2021 ("paper 3"), sections
3.3 and 3.4, figs. 3 and 4. The paper leaves open: the decoder's channels, and that neighbouring scales are joined by
concatenation, as in the U-Net to which it compares itself.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploytool.data.catalogue import DatasetInfo
from deploytool.errors import RecipeError
from deploytool.models.attention import CBAM
from deploytool.models.layers import initialize
from deploytool.models.registry import BACKBONES, build_backbone
from deploytool.models.resnet import BasicBlock, Bottleneck, ResNet

SCALES = 3


class AttentiveBlock(nn.Module):
    """A residual block with attention on what it adds to its shortcut."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        self.block = block
        self.attention = CBAM(block_channels(block))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x (N, C, H, W) to the block's answer and the attentive features D, both (N, C', H', W')."""
        f = self.block.residual(x)
        attended = self.attention(f)
        return torch.relu(attended + self.block.shortcut(x)), attended - f


class AttentiveStudent(nn.Module):
    """A ResNet with attention in its last three stages.

    Args:
        resnet: whose blocks get the attention, in place.
        everywhere: in each block of these stages; else in the last of each.
    """

    def __init__(self, resnet: ResNet, everywhere: bool = True) -> None:
        super().__init__()
        self.resnet = resnet
        self.channels: list[int] = []  # of the attentive features, the finest scale first
        for name in resnet.stages[-SCALES:]:
            stage = cast(nn.Sequential, resnet.get_submodule(name))
            for index in range(len(stage)) if everywhere else (len(stage) - 1,):
                stage[index] = AttentiveBlock(cast(BasicBlock | Bottleneck, stage[index]))
            self.channels.append(block_channels(cast(AttentiveBlock, stage[-1]).block))

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map image (N, C, H, W) to logits (N, K) and D at three scales, the finest first."""
        x = self.resnet.stem(image)
        for name in self.resnet.stages[:-SCALES]:
            x = self.resnet.get_submodule(name)(x)
        features = []
        for name in self.resnet.stages[-SCALES:]:
            stage = cast(nn.Sequential, self.resnet.get_submodule(name))
            for block in stage[:-1]:
                x = block(x)[0] if isinstance(block, AttentiveBlock) else block(x)
            x, attentive = stage[-1](x)
            features.append(attentive)
        return self.resnet.linear(x.mean(dim=(2, 3))), features


class Upsample(nn.Module):
    """Convolution, batch norm, ReLU, and bilinear interpolation to a given size, left out where it is reached."""

    def __init__(self, channels_in: int, channels: int, resized: bool = True) -> None:
        super().__init__()
        self.resized = resized
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """Map (N, channels_in, h, w) to (N, channels, *size)."""
        x = torch.relu(self.bn(self.conv(x)))
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False) if self.resized else x


class ExplanationNetwork(nn.Module):
    """From attentive features at three scales to evidence, the logits of a saliency map.

    Args:
        channels: of the features, the finest scale first.
        strides: pixels of the image from one place of a feature to the next, the finest scale first.
        hidden: channels that each upsample block answers.
        stride: pixels from one value of the map to the next, before it is interpolated to all pixels; 1 draws each.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int] = (1, 2, 4), hidden: int = 16, stride: int = 1
    ) -> None:
        super().__init__()
        self.pools = [max(1, stride // own) for own in strides]
        fine, middle, coarse = (max(stride, own) for own in strides)
        self.upsample3 = Upsample(channels[2], hidden, coarse != middle)
        self.upsample2 = Upsample(hidden + channels[1], hidden, middle != fine)
        self.upsample1 = Upsample(hidden + channels[0], hidden, stride == 1 < fine)
        self.draw = nn.Conv2d(hidden, 1, 3, padding=1)
        self.stride = stride
        initialize(self)

    def forward(self, features: Sequence[Tensor], size: torch.Size) -> Tensor:
        """Map D (N, C_s, h_s, w_s) at three scales, the finest first, to evidence (N, 1, *size)."""
        fine, middle, coarse = (
            F.avg_pool2d(feature, pool) if pool > 1 else feature
            for feature, pool in zip(features, self.pools, strict=True)
        )
        x = self.upsample3(coarse, middle.shape[2:])
        x = self.upsample2(torch.cat([x, middle], 1), fine.shape[2:])
        x = self.upsample1(torch.cat([x, fine], 1), size)
        evidence = self.draw(x)
        if self.stride > 1:
            evidence = F.interpolate(evidence, size=size, mode="bilinear", align_corners=False)
        return evidence  # type: ignore[no-any-return]


class Surrogate(nn.Module):
    """Student and explanation network in one: image -> the student's logits, and saliency."""

    def __init__(self, student: AttentiveStudent, explanation: ExplanationNetwork) -> None:
        super().__init__()
        self.student = student
        self.explanation = explanation

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map image (N, C, H, W) float32 in [0, 1] to logits (N, K) and saliency (N, 1, H, W) in [0, 1]."""
        logits, features = self.student(image)
        return logits, torch.sigmoid(self.explanation(features, image.shape[2:]))


def build_surrogate(
    arch: str,
    data: DatasetInfo,
    multiplier: float = 1.0,
    everywhere: bool = True,
    hidden: int = 16,
    stride: int = 1,
) -> Surrogate:
    """Build a freshly initialised surrogate for a data set.

    Args:
        arch: of the student, a ResNet of `deploytool.models.registry`.
        data: image channels, classes and normalisation.
        multiplier: of the student's channel counts, in (0, 1].
        everywhere: attention in each block of the last three stages; else in the last of each.
        hidden: channels inside the explanation network.
        stride: pixels from one value of a map to the next.

    Raises:
        RecipeError: the architecture is unknown or no ResNet of three stages and more, or the stride is none
            of the strides of its scales, or does not divide the image's sides.
    """
    known = [name for name in BACKBONES if "resnet" in name]
    if arch not in known:
        raise RecipeError(f"student.arch (={arch[:80]}) must be a ResNet: {', '.join(known)}")
    backbone = cast(ResNet, build_backbone(arch, data, multiplier))
    stages = len(backbone.stages)
    strides = [(1 if backbone.small else 4) * 2**stage for stage in range(stages - SCALES, stages)]
    offered = [1, *(own for own in strides if own > 1 and not any(side % own for side in data.shape[1:]))]
    if stride not in offered:
        sides = f"{data.shape[1]}x{data.shape[2]}"
        raise RecipeError(
            f"explanation.stride (={stride}) must be {', '.join(map(str, offered))} for {arch} and images of {sides}"
        )
    student = AttentiveStudent(backbone, everywhere)
    return Surrogate(student, ExplanationNetwork(student.channels, strides, hidden, stride))


def block_channels(block: BasicBlock | Bottleneck) -> int:
    """Channels that a residual block answers."""
    last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
    return last.num_features
