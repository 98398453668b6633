"""Images that a network was not trained for: those of another data set, in the size and colours of its own."""

import difflib

import torch
from torch import Tensor
from torch.nn import functional as F

from deploytool.data.catalogue import CATALOGUE
from deploytool.data.datasets import load_dataset
from deploytool.data.images import draw
from deploytool.errors import DataError, InputError
from deploytool.recipe import DataSection

NOISE = "noise"
LUMA = (0.299, 0.587, 0.114)  # ITU-R Recommendation BT.601, section 2.5.1: of red, green and blue
SMALLEST, LARGEST = 4, 1024  # pixels per side that `data.image_size` takes


def foreign_images(name: str, shape: tuple[int, int, int], count: int, seed: int) -> Tensor:
    """Draw random test images of another data set, as images of a wanted shape.

    Colours become gray by the luma of ITU-R BT.601, gray becomes colours by repetition; sizes change by bilinear
    interpolation with antialiasing, without regard to the ratio of the sides. Pictures of a folder are made square
    first, as large as the wanted images' longer side, as `data.image_size` does.

    Args:
        name: a data set as in a recipe's `data.name`, or `noise`: pixels uniform in [0, 1).
        shape: (C, H, W) of the images that are wanted.
        count: of images, none of them twice; all test images where there are fewer.
        seed: that draws them.

    Returns:
        (N, C, H, W) float32 in [0, 1], contiguous.

    Raises:
        DataError: the name is unknown, or the data set's files are absent, damaged or of the wrong shape.
        InputError: count, seed or shape is out of range, or channels other than 1 and 3 would have to be changed.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"images (={count}) must be an integer from 1 up")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed (={seed}) must be an integer from 0 up, below 2^63")
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"shape (={shape}) must be (C, H, W), each at least 1")
    if name == NOISE:
        return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))
    image = _recolored(draw(load_dataset(_section(name, shape)).test, count, seed), shape[0], name)
    if image.shape[2:] != shape[1:]:
        image = F.interpolate(image, shape[1:], mode="bilinear", antialias=True)
    return image.clamp(0, 1).contiguous()  # sums of weights are 1 but for rounding


def _section(name: str, shape: tuple[int, int, int]) -> DataSection:
    if name.startswith("imagefolder:"):  # its pictures may differ in size, so they are resized as they are read
        return DataSection(name=name, image_size=min(max(SMALLEST, *shape[1:]), LARGEST))
    if name.startswith("npz:") or name in CATALOGUE:
        return DataSection(name=name)
    known = sorted([*CATALOGUE, NOISE])
    near = difflib.get_close_matches(name, known, n=1)
    advice = f"did you mean {near[0]}? " if near else ""
    raise DataError(
        f"data set (={name[:80]!r}) of foreign images is unknown; {advice}known: {', '.join(known)}, imagefolder:PATH, "
        "npz:PATH"
    )


def _recolored(image: Tensor, channels: int, name: str) -> Tensor:
    """Images (N, C, H, W) with so many channels."""
    found = image.shape[1]
    if found == channels:
        return image
    if (found, channels) == (1, 3):
        return image.expand(-1, 3, -1, -1)
    if (found, channels) == (3, 1):
        return (image * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    raise InputError(
        f"images of {name} have {found} channels and {channels} are wanted; only 1 becomes 3 and 3 becomes 1: "
        "name another data set"
    )
