"""DeepFool: the nearest point beyond the decision boundary, by linearising the network again and again."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deploytool.attacks.checks import check_between, check_counts, check_radius
from deploytool.attacks.draws import Draws
from deploytool.attacks.geometry import TINY, per_image
from deploytool.attacks.goal import Goal
from deploytool.attacks.losses import of_class, other_classes
from deploytool.attacks.names import Norm
from deploytool.attacks.standing import Found
from deploytool.attacks.victim import Victim


@dataclass(frozen=True)
class DeepFool:
    """A DeepFool attack.

    Attributes:
        eps: the radius at which robust accuracy is counted; None: any. The search does not depend on it.
        steps: linearisations at most.
        overshoot: by which share the perturbation goes beyond the boundary of the linearised network.
        candidates: how many other classes to consider, those of largest logit on the image as it is.
        norm: that is made small, `l2` or `linf`.
    """

    eps: float | None = None
    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 9
    norm: Norm = "l2"
    targeted: ClassVar[bool] = False
    minimal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_radius(0.0 if self.eps is None else self.eps, self.norm)
        check_counts({"steps": self.steps, "candidates": self.candidates})
        check_between("overshoot", self.overshoot, 0, 10)

    def search(self, victim: Victim, image: Tensor, goal: Goal, draws: Draws) -> Found:
        """Look for the smallest perturbation; see `deepfool`."""
        return Found(deepfool(victim, image, goal, self))


def deepfool(victim: Victim, image: Tensor, goal: Goal, attack: DeepFool) -> Tensor:
    """Walk over the nearest face of the polyhedron that the linearised network decides by, until the class changes.

        f_k = z_k - z_y,   w_k = grad f_k                      for the candidates k, at x_i
        l = argmin_k |f_k| / ||w_k||_q                         q = 2 for L2, 1 for L-infinity
        x_{i+1} = clip( x_i + |f_l| / ||w_l||_2^2 * w_l )      L2
        x_{i+1} = clip( x_i + |f_l| / ||w_l||_1 * sign(w_l) )  L-infinity
        answer: x_0 + (1 + overshoot) * (x_i - x_0), clipped, of the first i at which its class has changed

    On a linear network one step finds the smallest perturbation exactly, up to overshoot and clipping to [0, 1].
    Images whose class has changed leave the batch.

    Args:
        victim: the network.
        image: (N, C, H, W) in [0, 1].
        goal: of each image, untargeted.
        attack: the budget.

    Returns:
        (N, C, H, W) adversarial images; the image itself where none was found within `steps`.

    Reference: S.-M. Moosavi-Dezfooli, A. Fawzi, P. Frossard, DeepFool: a simple and accurate method to fool deep neural
    networks, 2016, Algorithm 2 and eqs. 8 to 12. Clipping to [0, 1] is ours.
    """
    result = image.clone()
    rows = torch.arange(len(image), device=image.device)
    candidates = other_classes(victim.logits(image), goal.label, attack.candidates)
    point = image
    for _ in range(attack.steps):
        point = (point + _to_nearest_face(victim, point, goal.label, candidates, attack.norm)).clamp_(0, 1)
        beyond = (image + (1 + attack.overshoot) * (point - image)).clamp_(0, 1)
        fooled = goal.reached(victim.logits(beyond))
        if fooled.any():
            result[rows[fooled]] = beyond[fooled]
            rows, image, point, candidates = (each[~fooled] for each in (rows, image, point, candidates))
            goal = goal[~fooled]
            if not len(rows):
                break
    return result


def _to_nearest_face(victim: Victim, point: Tensor, label: Tensor, candidates: Tensor, norm: Norm) -> Tensor:
    """The perturbation (N, C, H, W) to the nearest boundary of the network linearised at each point."""

    def differences(logits: Tensor) -> list[Tensor]:
        own = of_class(logits, label)
        return [of_class(logits, candidate) - own for candidate in candidates.unbind(1)]

    _, values, gradients = victim.gradients(point, differences)
    flat = gradients.flatten(2)
    dual = torch.linalg.vector_norm(flat, 2 if norm == "l2" else 1, dim=2).clamp_(min=TINY)
    nearest = (values.abs() / dual).argmin(0)
    index = torch.arange(len(point), device=point.device)
    length = per_image(values[nearest, index].abs() / dual[nearest, index])
    gradient = gradients[nearest, index]
    return length * (gradient / per_image(dual[nearest, index]) if norm == "l2" else gradient.sign())
