"""Labelled images in memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploytool.data.catalogue import DatasetInfo

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Images:
    """Labelled images held in memory.

    Attributes:
        images: (N, C, H, W), uint8 in [0, 255] or float32 in [0, 1].
        labels: (N,) int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return images (n, C, H, W) float32 in [0, 1] and labels (n,) int64 of the given rows."""
        return as_unit(self.images[index]), self.labels[index]

    def head(self, count: int | None) -> "Images":
        """Return the first `count` images, all where None."""
        return self if count is None else Images(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class JoinedImages:
    """Labelled images of several sources one after the other; each keeps its own type, so none grows in memory."""

    parts: tuple[Images, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (n, C, H, W) float32 in [0, 1] and labels (n,) int64 of the given rows (n,), in their order."""
        image = torch.empty(len(index), *self.parts[0].images.shape[1:])
        label = torch.empty(len(index), dtype=torch.int64)
        start = 0
        for part in self.parts:
            own = (index >= start) & (index < start + len(part))
            image[own], label[own] = part.batch(index[own] - start)
            start += len(part)
        return image, label


@dataclass(frozen=True)
class Dataset:
    """A data set's description, its training images and its test images."""

    info: DatasetInfo
    train: Images
    test: Images


def draw(test: Images, count: int, seed: int) -> Tensor:
    """The test images (N, C, H, W) float32 in [0, 1] that a seed draws, none of them twice; all if fewer."""
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
    return test.batch(order[:count])[0]


def as_unit(images: Tensor) -> Tensor:
    """Map uint8 images in [0, 255] to float32 in [0, 1]; pass float32 through."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def from_arrays(x: Array, y: Array) -> Images:
    """Wrap images x (N, C, H, W) uint8 or float32 and labels y (N,) of any integer type."""
    return Images(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64)))


def channel_statistics(x: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel in [0, 1], four digits, of x (N, C, H, W) uint8.

    They come from a histogram per channel: exact, and without a copy of the images in floating point. A channel that
    never changes gets a standard deviation of 1, so that one can divide by it.
    """
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(x.shape[1]):
        share = np.bincount(x[:, channel].ravel(), minlength=256) / x[:, channel].size
        mean = float(share @ values)
        means.append(round(mean, 4))
        stds.append(round(float(share @ (values - mean) ** 2) ** 0.5, 4) or 1.0)
    return tuple(means), tuple(stds)
