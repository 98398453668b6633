"""Heat maps that see neither the image nor the network: what every explainer has to beat.

Photographs tend to have their subject in the middle, so that a blob there can look faithful; noise cannot.
"""

import torch
from torch import Tensor

from deploytool.attacks.checks import check_images

CENTER_SIGMA = 0.25  # of the image's height and width


def random_maps(image: Tensor, seed: int = 0) -> Tensor:
    """Noise, uniform in [0, 1), another for each image.

    Args:
        image: (N, C, H, W) float32 in [0, 1]; its shape and device are used, nothing else.
        seed: of the noise, which is the same on all devices.

    Returns:
        (N, H, W) float32.

    Raises:
        InputError: the image is not as above.
    """
    _check(image)
    count, _, height, width = image.shape
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(seed)).to(image.device)


def center_maps(image: Tensor) -> Tensor:
    """A Gaussian around the middle of the image, the same for all images.

        map(i, j) = exp(-1/2 ((i - (H - 1)/2)^2 / (H/4)^2 + (j - (W - 1)/2)^2 / (W/4)^2))

    Args:
        image: (N, C, H, W) float32 in [0, 1]; its shape and device are used, nothing else.

    Returns:
        (N, H, W) float32 in (0, 1].

    Raises:
        InputError: the image is not as above.
    """
    _check(image)
    count, _, height, width = image.shape
    rows, columns = (
        torch.exp(-0.5 * ((torch.arange(side) - (side - 1) / 2) / (CENTER_SIGMA * side)) ** 2)
        for side in (height, width)
    )
    return torch.outer(rows, columns).to(image.device).repeat(count, 1, 1)


def _check(image: Tensor) -> None:
    check_images(image, torch.zeros(len(image), dtype=torch.int64, device=image.device))
