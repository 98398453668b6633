"""Auto-PGD: gradient ascent with momentum that chooses its own step sizes, on cross-entropy or DLR, or targeted.

Reference: F. Croce, M. Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks, 2020, Algorithm 1 and eqs. 6 and 7.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from deploytool.attacks.checks import check_between, check_counts, check_radius
from deploytool.attacks.draws import Draws
from deploytool.attacks.geometry import on_sphere, per_image, project, steepest
from deploytool.attacks.goal import Goal
from deploytool.attacks.losses import cross_entropy, dlr, other_classes, targeted_dlr
from deploytool.attacks.names import Norm
from deploytool.attacks.standing import Found, in_turn
from deploytool.attacks.victim import Victim
from deploytool.errors import InputError

MOMENTUM = 0.75  # alpha of the paper


class RowLoss(Protocol):
    """What a run climbs."""

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Losses (M,) of the images at these indices (M,), from their logits (M, K)."""
        ...


@dataclass(frozen=True)
class Apgd:
    """Untargeted Auto-PGD.

    Attributes:
        eps: radius of the ball, in units of the image's [0, 1].
        norm: of the ball.
        loss: `ce` for cross-entropy, `dlr` for the difference of logits ratio.
        steps: of one run.
        restarts: runs, each from a random start of its own.
        eot_iter: forward passes per gradient to average over, for a randomised network.
        rho: share of steps that must raise the loss, or the step size is halved.
    """

    eps: float
    norm: Norm = "linf"
    loss: Literal["ce", "dlr"] = "ce"
    steps: int = 100
    restarts: int = 1
    eot_iter: int = 1
    rho: float = 0.75
    targeted: ClassVar[bool] = False
    minimal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_radius(self.eps, self.norm)
        check_counts({"steps": self.steps, "restarts": self.restarts, "eot_iter": self.eot_iter})
        check_between("rho", self.rho, 0, 1)
        if self.loss not in ("ce", "dlr"):
            raise InputError(f"loss (={str(self.loss)[:40]!r}) must be ce or dlr")

    def search(self, victim: Victim, image: Tensor, goal: Goal, draws: Draws) -> Found:
        """Run as often as `restarts` says on the images that stand."""

        def run(image: Tensor, goal: Goal, draws: Draws, rows: Tensor) -> tuple[Tensor, Tensor]:
            def loss(logits: Tensor, rows: Tensor) -> Tensor:
                return cross_entropy(logits, goal[rows]) if self.loss == "ce" else dlr(logits, goal.label[rows])

            return climb(victim, image, goal, loss, self, draws)

        return Found(in_turn(image, goal, draws, [run] * self.restarts))


@dataclass(frozen=True)
class ApgdTargeted:
    """APGD-T: for each of the most likely other classes, a run of Auto-PGD on the targeted DLR loss towards it.

    An image is fooled as soon as it leaves its class, wherever to.

    Attributes:
        eps, norm, steps, eot_iter, rho: see `Apgd`.
        targets: how many classes to try, those of largest logit on the image as it is.
    """

    eps: float
    norm: Norm = "linf"
    steps: int = 100
    targets: int = 9
    eot_iter: int = 1
    rho: float = 0.75
    targeted: ClassVar[bool] = False
    minimal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_radius(self.eps, self.norm)
        check_counts({"steps": self.steps, "targets": self.targets, "eot_iter": self.eot_iter})
        check_between("rho", self.rho, 0, 1)

    def search(self, victim: Victim, image: Tensor, goal: Goal, draws: Draws) -> Found:
        """One run for each target, on the images that stand."""
        targets = other_classes(victim.logits(image, self.eot_iter), goal.label, self.targets)

        def towards(number: int, image: Tensor, goal: Goal, draws: Draws, rows: Tensor) -> tuple[Tensor, Tensor]:
            target = targets[rows, number]

            def loss(logits: Tensor, rows: Tensor) -> Tensor:
                return targeted_dlr(logits, goal.label[rows], target[rows])

            return climb(victim, image, goal, loss, self, draws)

        return Found(in_turn(image, goal, draws, [partial(towards, number) for number in range(targets.shape[1])]))


@dataclass(frozen=True)
class _State:
    """Where the run stands with each image; every field is a tensor (M, ...)."""

    rows: Tensor
    image: Tensor
    point: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step_size: Tensor
    rises: Tensor
    halved: Tensor
    checked_loss: Tensor

    def keep(self, mask: Tensor) -> "_State":
        """The state of some images."""
        return replace(self, **{each.name: getattr(self, each.name)[mask] for each in fields(self)})


def climb(
    victim: Victim,
    image: Tensor,
    goal: Goal,
    loss: RowLoss,
    attack: Apgd | ApgdTargeted,
    draws: Draws,
    direction: Callable[[Tensor, Norm], Tensor] = steepest,
) -> tuple[Tensor, Tensor]:
    """One run of Auto-PGD from a random start; images that are fooled leave it.

        z       = Proj( x_k + eta * s(grad f(x_k)) )
        x_{k+1} = Proj( x_k + a * (z - x_k) + (1 - a) * (x_k - x_{k-1}) )        a = 0.75, in the first step 1

    s is the sign (L-infinity) or the gradient over its norm (L2), f the loss. eta begins at 2 * eps. At checkpoints
    w_j it is halved, image by image, and the search goes on from the best point so far, if fewer than
    `rho * (w_j - w_{j-1})` of the steps since the last checkpoint raised f, or eta was not halved there and the best
    f has not risen since.

    Args:
        victim: the network.
        image: (N, C, H, W) in [0, 1].
        goal: of each image.
        loss: f.
        attack: eps, norm, steps, eot_iter, rho.
        draws: of the images.
        direction: s, from gradients (N, C, H, W) and the norm.

    Returns:
        The first iterate that reaches the goal, or else the one of highest f (N, C, H, W); who was fooled (N,) bool.
    """
    eps, norm = attack.eps, attack.norm
    result, fooled = image.clone(), torch.zeros_like(goal.label, dtype=torch.bool)
    start = on_sphere(image, eps, norm, draws)
    rows = torch.arange(len(image), device=image.device)
    logits, value, gradient = victim.gradient(start, partial(loss, rows=rows), attack.eot_iter)
    state = _State(
        rows, image, start, start, gradient, value, start, gradient, value, torch.full_like(value, 2 * eps),
        torch.zeros_like(value), torch.ones_like(fooled), value,
    )  # fmt: skip
    state = _without_fooled(state, logits, goal, result, fooled)
    checkpoints, last = _checkpoints(attack.steps), 0
    for step in range(1, attack.steps + 1):
        if not len(state.rows):
            break
        share = 1.0 if step == 1 else MOMENTUM
        ahead = state.point + per_image(state.step_size) * direction(state.gradient, norm)
        ahead = project(ahead, state.image, eps, norm)
        moved = state.point + share * (ahead - state.point) + (1 - share) * (state.point - state.previous)
        moved = project(moved, state.image, eps, norm)
        logits, value, gradient = victim.gradient(moved, partial(loss, rows=state.rows), attack.eot_iter)
        state = replace(
            state, point=moved, previous=state.point, gradient=gradient, loss=value,
            rises=state.rises + (value > state.loss),
        )  # fmt: skip
        state = _with_best(_without_fooled(state, logits, goal, result, fooled))
        if step in checkpoints:
            state, last = _at_checkpoint(state, attack.rho * (step - last)), step
    result[state.rows] = state.best
    return result, fooled


def _checkpoints(steps: int) -> set[int]:
    """The steps w_1, w_2, ...: 0.22 of all, then windows shorter by 0.03 of all each, down to 0.06 of all."""
    window, shrink, shortest = (max(1, steps * percent // 100) for percent in (22, 3, 6))
    found, at = set(), window
    while at <= steps:
        found.add(at)
        window = max(window - shrink, shortest)
        at += window
    return found


def _without_fooled(state: _State, logits: Tensor, goal: Goal, result: Tensor, fooled: Tensor) -> _State:
    """Note the images whose point reaches the goal, and drop them."""
    hit = goal[state.rows].reached(logits)
    if not hit.any():
        return state
    result[state.rows[hit]], fooled[state.rows[hit]] = state.point[hit], True
    return state.keep(~hit)


def _with_best(state: _State) -> _State:
    """Remember the points that are better than the best so far."""
    better = state.loss > state.best_loss
    return replace(
        state,
        best=state.point.where(per_image(better), state.best),
        best_gradient=state.gradient.where(per_image(better), state.best_gradient),
        best_loss=state.loss.where(better, state.best_loss),
    )


def _at_checkpoint(state: _State, enough: float) -> _State:
    """Halve step sizes and go back to the best points where too few steps raised the loss."""
    stuck = (state.rises < enough) | (~state.halved & (state.best_loss <= state.checked_loss))
    return replace(
        state,
        step_size=state.step_size.where(~stuck, state.step_size / 2),
        point=state.best.where(per_image(stuck), state.point),
        gradient=state.best_gradient.where(per_image(stuck), state.gradient),
        loss=state.best_loss.where(stuck, state.loss),
        rises=torch.zeros_like(state.rises),
        halved=stuck,
        checked_loss=state.best_loss,
    )
