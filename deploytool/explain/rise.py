"""RISE: heat maps by averaging random masks, each weighted by what the classifier says of the image under it.

The network is a black box: any callable will do, an ONNX session as well as a torch module.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from deploytool.attacks.checks import check_between, check_classes, check_counts, check_images
from deploytool.attacks.victim import Network, Victim
from deploytool.explain.attribution import images_at_once


def rise(
    network: Network,
    image: Tensor,
    target: Tensor,
    masks: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
    seed: int = 0,
) -> Tensor:
    r"""Heat maps of randomized input sampling, RISE.

        map(i, j) = 1 / (E[M] B) * sum over b = 1..B of  p_t(x * M_b) M_b(i, j)          (eq. 6)

    p_t is the softmax probability of class t, x the image, M_b one of B masks, the same for all channels. A mask is a
    grid of cells x cells, each 1 with probability E[M] = `keep` or else 0, upsampled bilinearly to (cells + 1) C_H x
    (cells + 1) C_W pixels, with C_H = ceil(H / cells) and C_W likewise, of which H x W are cut out, from 0..C_H - 1
    pixels below the top and 0..C_W - 1 from the left, all equally likely. All images meet the same masks.

    At the grid's own border the upsampling repeats the outermost cells, as torch does; the authors' code mirrors.

    Args:
        network: image (N, C, H, W) float32 in [0, 1] -> logits (N, K), in evaluation mode; no gradient is needed.
        image: (N, C, H, W) float32 in [0, 1].
        target: (N,) int64, the class to explain.
        masks: B, forward passes for each image; the paper's 4000 is for VGG-16, it has 8000 for ResNet-50.
        cells: side of the grid, at most the image's height and width.
        keep: probability in (0, 1] that a cell shows the image.
        seed: of the masks.

    Returns:
        (N, H, W) float32 from 0 to about 1: an estimate of p_t, given that the pixel is seen.

    Raises:
        InputError: an argument is not as above, or the network answers NaN or infinity.

    Reference: V. Petsiuk, A. Das, K. Saenko, RISE: randomized input sampling for explanation of black-box models,
    2018, section 3.
    """
    victim = Victim(network)
    check_images(image, target, "target")
    height, width = image.shape[2:]
    check_counts({"masks": masks})
    check_counts({"cells": cells}, high=min(height, width))
    check_between("keep", keep, 0, 1, open_low=True)
    total = torch.zeros(len(image), height, width, dtype=torch.float64, device=image.device)
    for block in _masks((height, width), masks, cells, keep, seed, images_at_once(image)):
        mask = block.to(image.device)
        for index, picture in enumerate(image):
            logits = victim.logits(picture * mask[:, None])
            check_classes(target, logits.shape[1], "target")
            total[index] += torch.tensordot(logits.softmax(1)[:, target[index]], mask, 1)
    return (total / (keep * masks)).float()


def _masks(size: tuple[int, int], count: int, cells: int, keep: float, seed: int, block: int) -> Iterator[Tensor]:
    """Masks (B, H, W) float32 in [0, 1], `count` in all, at most `block` at a time; the same whatever the block.

    Bilinear upsampling is a matrix on each side of the grid; a mask takes those of its rows that it is cut from.
    """
    generator = torch.Generator().manual_seed(seed)
    axes = []
    for side in size:
        cell = -(-side // cells)
        matrix = F.interpolate(torch.eye(cells)[None], (cells + 1) * cell, mode="linear")[0].T
        axes.append((matrix, torch.randint(cell, (count, 1), generator=generator) + torch.arange(side)))
    (rows, i), (columns, j) = axes
    for start in range(0, count, block):
        part = slice(start, min(start + block, count))
        grid = (torch.rand(part.stop - start, cells, cells, generator=generator) < keep).float()
        yield rows[i[part]] @ grid @ columns[j[part]].mT
