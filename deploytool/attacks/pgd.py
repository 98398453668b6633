"""Fast gradient sign and projected gradient descent, L-infinity: the hot path of adversarial training."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deploytool.errors import InputError
from deploytool.recipe import check_attack_name

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pgd:
    """An L-infinity attack.

    Attributes:
        eps: radius of the ball, in units of the image's [0, 1].
        step_size: length of a step, same unit.
        steps: number of steps.
        random_start: start at a uniform point of the ball instead of the image.
    """

    eps: float
    step_size: float
    steps: int
    random_start: bool = True


def pgd(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    label: Tensor,
    attack: Pgd,
    generator: torch.Generator | None = None,
    loss: Loss = F.cross_entropy,
) -> Tensor:
    r"""Maximise the loss within an L-infinity ball by projected gradient ascent.

        x_k = Proj( x_{k-1} + step_size * sign(grad_x loss(network(x_{k-1}), label)) )

    Proj clips to [x - eps, x + eps] and to [0, 1]. The network is taken as it is: give it in evaluation mode,
    without gradients for its weights (`ConditionalModel.network` does).

    Args:
        network: image (N, C, H, W) -> logits (N, K).
        image: (N, C, H, W) float32 in [0, 1].
        label: (N,) int64.
        attack: radius, step size, number of steps, start.
        generator: source of the random start, on the image's device.
        loss: mean loss over a batch; its sign alone matters.

    Returns:
        Adversarial images, shape and dtype of `image`, detached.

    Reference: A. Madry et al., Towards deep learning models resistant to adversarial attacks, 2017; paper 5, eq. 2.
    """
    low, high = (image - attack.eps).clamp_(min=0), (image + attack.eps).clamp_(max=1)
    adversarial = image.detach().clone()
    if attack.random_start:
        start = torch.rand(image.shape, generator=generator, device=image.device, dtype=image.dtype)
        adversarial = torch.clamp(adversarial.add_(start.mul_(2).sub_(1).mul_(attack.eps)), low, high)
    for _ in range(attack.steps):
        adversarial.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(network(adversarial), label), adversarial)
        adversarial = torch.clamp(adversarial.detach().add(gradient.sign_(), alpha=attack.step_size), low, high)
    return adversarial.detach()


def named_attack(name: str, base: Pgd) -> Pgd:
    """Make `fgsm` or `pgd-K` with the radius (and, for PGD, the step size and start) of a base attack.

    FGSM is one step of length eps from the image itself (Goodfellow et al. 2015).

    Raises:
        InputError: no attack has that name.
    """
    if name == "fgsm":
        return Pgd(base.eps, base.eps, 1, random_start=False)
    try:
        check_attack_name(name)
    except ValueError as error:
        raise InputError(f"attack (={name!r}) {error}") from None
    return Pgd(base.eps, base.step_size, int(name.removeprefix("pgd-")), base.random_start)
