"""Balls around images: distances, projections, starts and steepest steps, in L-infinity and L2.

All tensors are (N, C, H, W) float32; every image has a ball of its own, and no function mixes images.
"""

import torch
from torch import Tensor

from deploytool.attacks.draws import Draws
from deploytool.attacks.names import Norm

TINY = 1e-12
SMALLEST = torch.finfo(torch.float32).tiny


def per_image(values: Tensor) -> Tensor:
    """Make (N,) values broadcast over images (N, C, H, W)."""
    return values.view(-1, 1, 1, 1)


def distance(difference: Tensor, norm: Norm) -> Tensor:
    """The norm of each image's perturbation, (N,)."""
    flat = difference.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(flat, dim=1)


def slack(eps: float) -> float:
    """How far float32 rounding may carry a perturbation beyond its radius."""
    return 1e-6 + 1e-5 * eps


def project(point: Tensor, image: Tensor, eps: float, norm: Norm) -> Tensor:
    """Bring points into the ball of radius eps around their images, and into [0, 1].

    For L2 points are clipped, then brought to the radius on the straight line to their images, which stays in [0, 1].
    It is the nearest such point where no pixel is clipped; the other way round, clipping would give radius away.
    """
    if norm == "linf":
        return torch.clamp(point, (image - eps).clamp_(min=0), (image + eps).clamp_(max=1))
    perturbation = point.clamp(0, 1) - image
    scale = (eps / distance(perturbation, norm).clamp_(min=TINY)).clamp_(max=1)
    return perturbation.mul_(per_image(scale)).add_(image).clamp_(0, 1)  # clips rounding errors alone


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of norm 1 in which a linear function of this gradient grows most; 0 where the gradient is 0.

    L-infinity: `sign(g)`. L2: `g / ||g||`, of g over its largest value: squares of the gradients of a confident network
    would be 0 in float32, and the attack would stand still.
    """
    if norm == "linf":
        return gradient.sign()
    scaled = gradient / per_image(distance(gradient, "linf").clamp_(min=SMALLEST))
    return scaled / per_image(distance(scaled, norm).clamp_(min=TINY))


def uniform_in_ball(image: Tensor, eps: float, norm: Norm, draws: Draws) -> Tensor:
    """A uniform point of each image's ball, then clipped to [0, 1].

    L2: a direction of the normal distribution, at radius `eps * u^(1/d)` with u uniform and d values per image.
    """
    if norm == "linf":
        start = draws.uniform(*image.shape[1:])
        return torch.clamp(
            image + start.mul_(2).sub_(1).mul_(eps), (image - eps).clamp_(min=0), (image + eps).clamp_(max=1)
        )
    direction = steepest(draws.normal(*image.shape[1:]), norm)
    radius = eps * draws.uniform() ** (1 / image[0].numel())
    return project(image + per_image(radius) * direction, image, eps, norm)


def on_sphere(image: Tensor, eps: float, norm: Norm, draws: Draws) -> Tensor:
    """A random point at distance eps from each image, then clipped to [0, 1]: where APGD and FAB start.

    L-infinity: uniform in the cube, scaled until its largest value is eps. L2: uniform on the sphere.
    """
    shape = image.shape[1:]
    direction = draws.uniform(*shape).mul_(2).sub_(1) if norm == "linf" else draws.normal(*shape)
    scale = eps / distance(direction, norm).clamp_(min=TINY)
    return project(image + per_image(scale) * direction, image, eps, norm)
