"""Faithfulness of saliency maps: insertion and deletion, and how much of an image a map marks.

Insertion starts from a blurred image and puts its pixels back, the most important first: the sooner the class returns,
the better the map. Deletion takes them away from the image: the sooner the class goes, the better.

    A1: D = blur(I),  C = {p_c(D)};    repeat D[next n pixels] = I[...],  C += {p_c(D)}  until D = I;    score = AUC(C)
    A2: D = I,        C = {p_c(D)};    repeat D[next n pixels] = 0,       C += {p_c(D)}  until D = 0;    score = AUC(C)

The algorithms stop where the image is complete; further steps would change nothing, so all images take the same number
of steps here, and one forward pass holds many of them (`deploytool.explain.fast` makes these passes faster still). A2
as printed alters I and records p_c(0) all the time; here it records the altered image, as in the paper that both are
from. The area is over the share of pixels changed, which a last step of fewer than n pixels enters as what it is.

Reference: H. Lee, S. Kim, Explaining neural networks using attentive knowledge distillation, 2021 ("paper 3"),
Algorithms A1 and A2, section 4.2.1; V. Petsiuk, A. Das, K. Saenko, RISE: randomized input sampling for explanation of
black-box models, 2018.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from deploytool.attacks.checks import check_between, check_classes, check_counts, check_images
from deploytool.attacks.victim import Network, Victim
from deploytool.errors import InputError
from deploytool.explain.attribution import images_at_once

KERNEL, SIGMA = 11, 5.0  # of the blur, RISE's; a small image's kernel is smaller


@dataclass(frozen=True)
class Curves:
    """The explained class's probability while pixels are changed.

    Attributes:
        share: (S + 1,) float64, the share of pixels changed so far, 0 to 1.
        probability: (N, S + 1) float32.
    """

    share: Tensor
    probability: Tensor

    @property
    def auc(self) -> Tensor:
        """Area under each curve by trapezoids, (N,) float64 in [0, 1]."""
        return torch.trapezoid(self.probability.double(), self.share)


def insertion(
    network: Network,
    image: Tensor,
    maps: Tensor,
    target: Tensor | None = None,
    pixels: int | None = None,
    kernel: int | None = None,
    sigma: float = SIGMA,
) -> Curves:
    """Put pixels back into blurred images, the most important first (Algorithm A1); a larger area is better.

    Args:
        network: image (N, C, H, W) float32 in [0, 1] -> logits (N, K), in evaluation mode; no gradient is needed.
        image: (N, C, H, W) float32 in [0, 1].
        maps: (N, H, W), how important each pixel is, on any scale; among equal pixels the first in reading order wins.
        target: (N,) int64, the class to watch; where None, the one that the network predicts for the image.
        pixels: n, changed in each step; the image's width where None.
        kernel, sigma: of `blurred`.

    Returns:
        A curve for each image.

    Raises:
        InputError: an argument is not as above, or the network answers NaN.
    """
    return _curves(network, image, blurred(image, kernel, sigma), maps, target, pixels, inserted=True)


def deletion(
    network: Network, image: Tensor, maps: Tensor, target: Tensor | None = None, pixels: int | None = None
) -> Curves:
    """Set pixels to 0, the most important first (Algorithm A2); a smaller area is better. Arguments as `insertion`."""
    return _curves(network, image, torch.zeros_like(image[:1]), maps, target, pixels, inserted=False)


def blurred(image: Tensor, kernel: int | None = None, sigma: float = SIGMA) -> Tensor:
    """Blur images, so that little is left of what they show: where insertion starts.

    Args:
        image: (N, C, H, W) float32 in [0, 1].
        kernel: side of the Gaussian kernel in pixels, odd, its half below the image's height and width; where None, 11,
            or the largest that the image allows: 2 min(H, W) - 1.
        sigma: of the blur in pixels.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        InputError: an argument is not as above.
    """
    if image.dim() != 4 or not image.numel():
        raise InputError(f"image has shape {tuple(image.shape)}; expected (N, C, H, W), none of them 0")
    most = 2 * min(image.shape[2:]) - 1
    kernel = min(KERNEL, most) if kernel is None else kernel
    check_counts({"kernel": kernel})
    if kernel % 2 == 0 or kernel > most:
        raise InputError(f"kernel (={kernel}) must be odd and at most {most}, for images of {tuple(image.shape[2:])}")
    check_between("sigma", sigma, 0, 1e6, open_low=True)
    return gaussian_blur(image, [kernel, kernel], [sigma, sigma])  # type: ignore[no-any-return]


def mean_intensity(maps: Tensor) -> float:
    """Mean pixel intensity of maps (N, H, W) in [0, 1]: the less of an image is marked, the smaller.

    Reference: paper 3, section 4.2.1, E[|H_x|_1]; over the number of pixels, as its table 3 has it.

    Raises:
        InputError: a value is outside [0, 1], or NaN.
    """
    low, high = float(maps.min()), float(maps.max())
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise InputError(f"maps have values from {low:g} to {high:g}; scale them to [0, 1]")
    return float(maps.double().mean())


def _curves(
    network: Network,
    image: Tensor,
    other: Tensor,
    maps: Tensor,
    target: Tensor | None,
    pixels: int | None,
    inserted: bool,
) -> Curves:
    """Curves from `image` to `other`, where one may do for all, or back where pixels are inserted.

    Both ends have their own passes: the image's says which class to watch, and deletion's end is one for all images.
    """
    victim, rows = Victim(network), images_at_once(image)
    check_images(
        image, torch.zeros(len(image), dtype=torch.int64, device=image.device) if target is None else target, "target"
    )
    if maps.shape != (len(image), *image.shape[2:]) or not maps.isfinite().all():
        expected = (len(image), *image.shape[2:])
        raise InputError(f"maps have shape {tuple(maps.shape)}; expected {expected}, a finite value for each pixel")
    count, width = maps[0].numel(), image.shape[3]
    step = width if pixels is None else pixels
    check_counts({"pixels": step})
    whole, gone = (torch.cat([victim.logits(part) for part in torch.split(each, rows)]) for each in (image, other))
    classes = whole.argmax(1) if target is None else target
    check_classes(classes, whole.shape[1], "target")
    ends = [_probability(logits.expand(len(image), -1), classes)[:, None] for logits in (whole, gone)]
    first, last = (other, image) if inserted else (image, other)

    changed = torch.tensor([*range(0, count, step), count], device=image.device)
    rank = maps.flatten(1).argsort(dim=1, stable=True, descending=True).argsort(dim=1)  # 0: the most important
    passes = torch.cartesian_prod(torch.arange(len(image), device=image.device), changed[1:-1])
    between = torch.empty(len(passes), device=image.device)
    for start in range(0, len(passes), rows):
        index, number = passes[start : start + rows].T
        ready = (rank[index] < number[:, None]).view(len(index), 1, *image.shape[2:])
        here, there = (each.expand_as(image)[index] for each in (first, last))
        logits = victim.logits(torch.where(ready, there, here))
        between[start : start + rows] = _probability(logits, classes[index])
    begin, end = reversed(ends) if inserted else ends
    curve = torch.cat([begin, between.view(len(image), -1), end], 1)
    return Curves((changed.double() / count).cpu(), curve.cpu())


def _probability(logits: Tensor, target: Tensor) -> Tensor:
    """The softmax probability (N,) of class target (N,)."""
    return logits.softmax(1).gather(1, target[:, None])[:, 0]
