"""The verdict's threshold: images of a lower CPL are doubtful.

    threshold = the k-th smallest CPL of n clean images, k = floor(rate (n + 1))

Then a further clean image of the same kind is called doubtful with a probability of at most `rate`, whatever the
distribution of CPL. The images must be new to the network and its libraries: test images, drawn by the recipe's seed,
which no measurement of detection uses.

Reference: V. Vovk, A. Gammerman, G. Shafer, Algorithmic learning in a random world, 2005, section 2.2.
"""

import math

import torch
from torch import Tensor

from deploytool.data.images import Images
from deploytool.errors import InputError
from deploytool.library.recipe import CalibrationSection


def split(images: Images, section: CalibrationSection, seed: int) -> tuple[Images, Images]:
    """Test images to calibrate on, and those to measure on.

    Raises:
        InputError: one of them would be empty.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    count = round(len(images) * section.share)
    if not 0 < count < len(images):
        raise InputError(
            f"calibration.share (={section.share:g}) of {len(images)} test images leaves none to "
            f"{'calibrate' if not count else 'measure'} on; change it, or take more images"
        )
    first, second = order[:count].sort().values, order[count:].sort().values
    return tuple(Images(images.images[rows], images.labels[rows]) for rows in (first, second))  # type: ignore[return-value]


def lower_threshold(score: Tensor, rate: float) -> float:
    """The threshold below which at most a share `rate` of clean images is to fall.

    Args:
        score: (n,) of clean images, low where doubtful.
        rate: in (0, 1).

    Returns:
        The k-th smallest score, see the module; -1 (no CPL is below) where there are too few images for such a rate.
    """
    k = math.floor(rate * (len(score) + 1))
    return float(score.sort().values[k - 1]) if k else -1.0


def rank_value(clean: Tensor, score: Tensor) -> Tensor:
    """How unusual scores are among clean ones: (N,) in (0, 1], small where hardly a clean one is as low (a p-value)."""
    below = torch.searchsorted(clean.sort().values, score, right=True)
    return (below + 1) / (len(clean) + 1)
