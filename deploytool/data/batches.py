"""Shuffled, augmented batches from images in memory."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from deploytool.data.images import Images, JoinedImages
from deploytool.recipe import DataSection


def batches_per_epoch(count: int, batch_size: int) -> int:
    """Number of training batches: whole ones alone, unless there are fewer images than one batch."""
    return max(1, count // batch_size)


def training_batches(
    images: Images | JoinedImages, section: DataSection, generator: torch.Generator, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of (image (B, C, H, W) float32 in [0, 1], label (B,) int64) on `device`.

    The last, smaller batch is left out: its batch-norm statistics would be those of a handful of images.

    Args:
        images: the training images.
        section: batch size and augmentation.
        generator: on the CPU; decides order, crops and flips.
        device: where the batches are wanted.
    """
    order = torch.randperm(len(images), generator=generator)
    for index in range(batches_per_epoch(len(images), section.batch_size)):
        rows = order[index * section.batch_size : (index + 1) * section.batch_size]
        image, label = images.batch(rows)
        if section.crop_padding:
            image = random_crop(image, section.crop_padding, generator)
        if section.flip:
            image = random_flip(image, generator)
        yield image.to(device), label.to(device)


def random_crop(image: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift each image (N, C, H, W) by up to `padding` pixels in both directions, zeros moving in."""
    count, _, height, width = image.shape
    shift = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
    rows = torch.arange(height) + shift[:, :1]
    columns = torch.arange(width) + shift[:, 1:]
    padded = F.pad(image, (padding,) * 4)
    sample = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def random_flip(image: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image (N, C, H, W) left to right with probability one half."""
    flipped = torch.rand(len(image), generator=generator) < 0.5
    return torch.where(flipped[:, None, None, None], image.flip(3), image)
