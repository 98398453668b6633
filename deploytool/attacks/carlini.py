"""The Carlini-Wagner attack in L2: the smallest perturbation, as an optimisation without constraints."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from deploytool.attacks.checks import check_between, check_counts, check_radius
from deploytool.attacks.draws import Draws
from deploytool.attacks.geometry import per_image
from deploytool.attacks.goal import Goal
from deploytool.attacks.losses import goal_margin
from deploytool.attacks.names import Norm
from deploytool.attacks.standing import Found
from deploytool.attacks.victim import Victim

INSIDE = 0.999999  # keeps atanh finite at pixels of 0 and 1
LARGEST_C = 1e10
CHECKS = 10  # of progress in one optimisation
PROGRESS = 0.9999
FINEST = 0.01  # the last learning rate, as a share of the first
BETA1, BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class CarliniWagner:
    """A Carlini-Wagner L2 attack.

    Attributes:
        eps: the radius at which robust accuracy is counted; None: any. The search does not depend on it.
        kappa: confidence: by how much another class (the target) has to beat the label (all others), in logits.
        steps: of Adam, for each c.
        lr: Adam's learning rate at the start; small ones hardly move pixels of 0 and 1, where tanh is flat. It falls
            geometrically to a hundredth: Adam's steps are as long as its rate, and would miss small perturbations.
        search_steps: values of c tried.
        c: the first of them.
        targeted: reach a target class instead of leaving the label.
    """

    eps: float | None = None
    kappa: float = 0.0
    steps: int = 100
    lr: float = 0.1
    search_steps: int = 9
    c: float = 0.1
    targeted: bool = False
    norm: ClassVar[Norm] = "l2"
    minimal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_radius(0.0 if self.eps is None else self.eps, "l2")
        check_counts({"steps": self.steps, "search_steps": self.search_steps})
        check_between("kappa", self.kappa, 0, 1e6)
        check_between("lr", self.lr, 0, 100, open_low=True)
        check_between("c", self.c, 0, LARGEST_C, open_low=True)

    def search(self, victim: Victim, image: Tensor, goal: Goal, draws: Draws) -> Found:
        """Look for the smallest perturbation; see `carlini_wagner`."""
        return Found(carlini_wagner(victim, image, goal, self))


def carlini_wagner(victim: Victim, image: Tensor, goal: Goal, attack: CarliniWagner) -> Tensor:
    """Search c, image by image, and for each c minimise distance and margin together.

        min_w  ||x' - x||_2^2 + c * f(x')        x' = (tanh(w) + 1) / 2, always in [0, 1]
        f(x') = max( z_y - max_{k != y} z_k + kappa, 0 )          untargeted
        f(x') = max( max_{k != t} z_k - z_t + kappa, 0 )          towards t

    The smallest c that works gives the smallest perturbation. c is halved between the largest that failed and the
    smallest that worked, and multiplied by 10 while none has worked. Of all iterates of all c, the nearest that
    succeeds is kept. An image leaves an optimisation whose loss has stopped falling; nobody else's changes by that.

    Args:
        victim: the network.
        image: (N, C, H, W) in [0, 1].
        goal: of each image.
        attack: the budget.

    Returns:
        (N, C, H, W) adversarial images; the image itself where none was found.

    Reference: N. Carlini, D. Wagner, Towards evaluating the robustness of neural networks, 2017, sections V and VI
    (their f_6, and the L2 attack). The default number of steps, the learning rate and that it falls are ours.
    """
    result = image.clone()
    best = torch.full((len(image),), torch.inf, device=image.device)
    low, high = torch.zeros_like(best), torch.full_like(best, torch.inf)
    c = torch.full_like(best, attack.c)
    for _ in range(attack.search_steps):
        rows = (c < LARGEST_C).nonzero().squeeze(1)
        if not len(rows):
            break
        nearest, distance = _minimise(victim, image[rows], goal[rows], c[rows], attack)
        closer = distance < best[rows]
        result[rows[closer]], best[rows[closer]] = nearest[closer], distance[closer]
        worked = torch.zeros_like(c, dtype=torch.bool)
        worked[rows] = distance < torch.inf
        high, low = high.where(~worked, torch.minimum(high, c)), low.where(worked, torch.maximum(low, c))
        c = ((low + high) / 2).where(high < torch.inf, 10 * c)
    return result


def _minimise(victim: Victim, image: Tensor, goal: Goal, c: Tensor, attack: CarliniWagner) -> tuple[Tensor, Tensor]:
    """Adam for one c per image: the nearest successes (N, C, H, W), and their squared distance (N,) or infinity."""
    result, best = image.clone(), torch.full_like(c, torch.inf)
    rows = torch.arange(len(image), device=image.device)
    w = ((2 * image - 1) * INSIDE).atanh_()
    first, second, last_loss = torch.zeros_like(w), torch.zeros_like(w), torch.full_like(c, torch.inf)
    interval = max(1, attack.steps // CHECKS)
    for step in range(1, attack.steps + 1):
        tanh = w.tanh()
        point = (tanh + 1) / 2
        logits, margin, gradient = victim.gradient(point, partial(_clipped_margin, goal=goal, kappa=attack.kappa))
        squared = (point - image).flatten(1).square().sum(1)
        closer = goal.reached(logits) & (margin <= 0) & (squared < best[rows])
        result[rows[closer]], best[rows[closer]] = point[closer], squared[closer]
        slope = (2 * (point - image) + per_image(c) * gradient) * (1 - tanh.square()) / 2
        first.lerp_(slope, 1 - BETA1)
        second.lerp_(slope.square(), 1 - BETA2)
        size = attack.lr * FINEST ** (step / attack.steps) / (1 - BETA1**step)
        w = w - size * first / ((second / (1 - BETA2**step)).sqrt_() + ADAM_EPSILON)
        if step % interval == 0:
            loss = squared + c * margin
            going = loss <= PROGRESS * last_loss
            rows, w, first, second, image, c, loss = (each[going] for each in (rows, w, first, second, image, c, loss))
            goal, last_loss = goal[going], loss
            if not len(rows):
                break
    return result, best


def _clipped_margin(logits: Tensor, goal: Goal, kappa: float) -> Tensor:
    """f of each image, (N,)."""
    return (goal_margin(logits, goal) + kappa).clamp(min=0)
