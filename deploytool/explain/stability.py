"""Stability of attribution: how far heat maps move when the method or the image changes a little.

Maps are scaled to [0, 1] per image, then compared by their sum of squared differences (SSD), as paper 2 does. Both maps
of a pair explain the class that the network predicts for the unmodified image: a prediction that the change flips would
otherwise be counted as an unstable map. How often that happens is reported beside it.

Reference: D. Schwartz, Y. Alparslan, E. Kim, Regularization and sparsity for adversarial robustness and stable
attribution, 2020 ("paper 2"), sections 3.3 and 4.3, table 2.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from deploytool.attacks.checks import check_counts
from deploytool.errors import InputError
from deploytool.explain.attribution import check_patch, grad_cam, predicted_class, sliding_patch
from deploytool.explain.layers import feature_layer

BATCH = 64  # images between two steps of a progress bar
LEAST_SIGMA = 0.1  # below, a neighbour's weight is under exp(-50): no blur at all


@dataclass(frozen=True)
class MapPair:
    """Heat maps of the same images, before and after a change.

    Attributes:
        first, second: (N, H, W) float32 in [0, 1].
        image: (N, C, H, W), what the second maps explain.
        target: (N,) int64, the class that both explain.
        changed: (N,) bool, the network predicts another class for `image` than `target`.
    """

    first: Tensor
    second: Tensor
    image: Tensor
    target: Tensor
    changed: Tensor


@dataclass(frozen=True)
class Stability:
    """How N pairs of maps differ, each value (N,) on the CPU.

    Attributes:
        ssd: sum of squared differences, float64 in [0, H * W].
        unrelated: SSD of an image's first map and the second map of the image before it (of the last one, for the
            first image), float64: the scale that `ssd` is to be read against; NaN where there is one image alone.
        correlation: Spearman's rank correlation of the two maps, float64 in [-1, 1]; NaN where one is constant.
        constant: bool, one of the two maps is constant, so that nothing is compared: SSD flatters there.
        changed: bool, the prediction changed.
    """

    ssd: Tensor
    unrelated: Tensor
    correlation: Tensor
    constant: Tensor
    changed: Tensor

    def __len__(self) -> int:
        return len(self.ssd)


def patch_stability(
    network: nn.Module,
    images: Tensor,
    sizes: Sequence[int] = (4, 2),
    stride: int = 2,
    on_batch: Callable[[int], object] = lambda images: None,
) -> Stability:
    """Compare the maps of two sizes of the sliding patch, at one stride; the image stays as it is.

    Args:
        network: in evaluation mode, image -> logits (N, K).
        images: (N, C, H, W) float32 in [0, 1].
        sizes: sides of the two patches in pixels, each from `stride` up.
        stride: pixels from one patch to the next.
        on_batch: called after each batch with the number of images in it, for a progress bar.

    Raises:
        InputError: an argument is not as above, or the network answers NaN or infinity.
    """
    return compare(_each(images, lambda part: patch_maps(network, part, sizes, stride), on_batch))


def blur_stability(
    network: nn.Module,
    images: Tensor,
    sigma: float = 0.5,
    layer: str | None = None,
    on_batch: Callable[[int], object] = lambda images: None,
) -> Stability:
    """Compare the Grad-CAM maps of images and of the same images blurred.

    Args:
        network, images, on_batch: as in `patch_stability`.
        sigma: standard deviation of the Gaussian in pixels, as in `blur`.
        layer: as in `deploytool.explain.attribution.grad_cam`.

    Raises:
        InputError: as `patch_stability`, or there is no such layer.
    """
    return compare(_each(images, lambda part: blur_maps(network, part, sigma, layer), on_batch))


def patch_maps(network: nn.Module, image: Tensor, sizes: Sequence[int] = (4, 2), stride: int = 2) -> MapPair:
    """The maps that `patch_stability` compares, for image (N, C, H, W)."""
    if len(sizes) != 2 or sizes[0] == sizes[1]:
        raise InputError(f"patch (={','.join(map(str, sizes))}) must be two different sizes in pixels, such as 4,2")
    target = predicted_class(network, image)
    for size in sizes:
        check_patch(size, stride, image)
    first, second = (unit_range(sliding_patch(network, image, target, size, stride)) for size in sizes)
    return MapPair(first, second, image, target, torch.zeros_like(target, dtype=torch.bool))


def blur_maps(network: nn.Module, image: Tensor, sigma: float = 0.5, layer: str | None = None) -> MapPair:
    """The maps that `blur_stability` compares, for image (N, C, H, W)."""
    target = predicted_class(network, image)
    blurred = blur(image, sigma)
    chosen = feature_layer(network, image, layer)
    first, second = (unit_range(grad_cam(network, x, target, chosen)) for x in (image, blurred))
    return MapPair(first, second, blurred, target, predicted_class(network, blurred) != target)


def compare(pairs: Iterable[MapPair]) -> Stability:
    """Compare batches of maps, at least one image in all, in memory that does not grow with their number."""
    ssds, unrelated, correlations, constants, changes = [], [], [], [], []
    opening: Tensor | None = None  # the very first map, which has to wait for the last one
    before: Tensor | None = None
    for pair in pairs:
        first, second = pair.first.cpu(), pair.second.cpu()
        shifted = torch.cat([second[:1] if before is None else before, second[:-1]])
        opening = first[:1] if opening is None else opening
        before = second[-1:]
        ssds.append(ssd(first, second))
        unrelated.append(ssd(first, shifted))
        correlations.append(rank_correlation(first, second))
        constants.append(_constant(first) | _constant(second))
        changes.append(pair.changed.cpu())
    scale = torch.cat(unrelated)
    if opening is not None and before is not None:
        scale[:1] = ssd(opening, before) if len(scale) > 1 else torch.nan
    return Stability(torch.cat(ssds), scale, torch.cat(correlations), torch.cat(constants), torch.cat(changes))


def ssd(first: Tensor, second: Tensor) -> Tensor:
    """Sum of squared differences over the pixels of each pair of maps (N, H, W); (N,) float64.

    Raises:
        InputError: the shapes differ.
    """
    if first.shape != second.shape or first.ndim != 3:
        raise InputError(f"maps have shapes {tuple(first.shape)} and {tuple(second.shape)}; expected (N, H, W) twice")
    return (first.double() - second.double()).square().sum((1, 2))


def unit_range(maps: Tensor) -> Tensor:
    """Scale each map (N, H, W) to [0, 1]: (map - min) / (max - min); a constant map becomes 0.

    Paper 2 names no scale. Its SSD of 14 to 27 on maps of 32x32 pixels, a mean squared difference of 0.014 to 0.026,
    is what maps in [0, 1] give; raw differences of probability, or raw logits, would depend on the network's scale.
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    span = high - low
    return ((maps - low) / span.where(span > 0, 1.0)).clamp(0, 1)


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of each pair of maps (N, H, W), ties ranked by their mean; (N,) float64.

    NaN where one of the maps is constant.
    """
    a, b = (_centred_ranks(maps.flatten(1)) for maps in (first, second))
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def blur(image: Tensor, sigma: float = 0.5) -> Tensor:
    """Blur image (N, C, H, W) by a Gaussian, each channel alone, the image mirrored at its border.

    The kernel reaches 4 sigma to each side: what is cut off weighs less than 1e-4.

    Args:
        image: (N, C, H, W) float32 in [0, 1].
        sigma: standard deviation in pixels, from 0.1 up to where the kernel still fits into the image.

    Raises:
        InputError: sigma is out of range.
    """
    most = (min(image.shape[2:]) - 1) / 4
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not LEAST_SIGMA <= sigma <= most:
        height, width = image.shape[2:]
        raise InputError(
            f"sigma (={str(sigma)[:40]}) must be in [{LEAST_SIGMA:g}, {most:g}] pixels for {height}x{width} images; "
            "the paper's is 0.5"
        )
    reach = ceil(4 * sigma)
    blurred: Tensor = gaussian_blur(image, [2 * reach + 1] * 2, [float(sigma)] * 2)
    return blurred.clamp(0, 1)


def _each(images: Tensor, maps: Callable[[Tensor], MapPair], on_batch: Callable[[int], object]) -> Iterator[MapPair]:
    check_counts({"images": len(images)}, 1, 2**31)
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        yield maps(part)
        on_batch(len(part))


def _constant(maps: Tensor) -> Tensor:
    return maps.amax((1, 2)) == maps.amin((1, 2))


def _centred_ranks(values: Tensor) -> Tensor:
    """Ranks (N, P) float64 of values (N, P) within their row, equal values sharing their mean rank, mean 0."""
    order = values.sort(dim=1).values.contiguous()
    below = torch.searchsorted(order, values.contiguous())
    up_to = torch.searchsorted(order, values.contiguous(), right=True)
    return (below + up_to).double() / 2 - values.shape[1] / 2
