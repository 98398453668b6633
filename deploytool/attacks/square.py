"""Square: a random search with localised, square changes at the ball's surface; logits alone, no gradient.

Reference: M. Andriushchenko, F. Croce, N. Flammarion, M. Hein, Square attack: a query-efficient black-box adversarial
attack via random search, 2020, Algorithms 1 to 3.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deploytool.attacks.checks import check_between, check_counts, check_radius
from deploytool.attacks.draws import Draws
from deploytool.attacks.geometry import TINY, distance, per_image
from deploytool.attacks.goal import Goal
from deploytool.attacks.losses import cross_entropy, goal_margin
from deploytool.attacks.names import Norm
from deploytool.attacks.standing import Found, in_turn
from deploytool.attacks.victim import Victim

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries
SCHEDULE = 10_000
TILES = 5  # per side, at the start in L2


@dataclass(frozen=True)
class Square:
    """A Square attack.

    Attributes:
        eps: radius of the ball, in units of the image's [0, 1].
        norm: of the ball.
        queries: of the network for each image, per restart, after the start's.
        p: share of the image's pixels in the first squares.
        rescale: stretch the schedule of square sizes, which is made for 10,000 queries, over `queries`.
        restarts: runs.
        targeted: reach a target class instead of leaving the label.
    """

    eps: float
    norm: Norm = "linf"
    queries: int = 5000
    p: float = 0.8
    rescale: bool = True
    restarts: int = 1
    targeted: bool = False
    minimal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_radius(self.eps, self.norm)
        check_counts({"queries": self.queries, "restarts": self.restarts})
        check_between("p", self.p, 0, 1, open_low=True)

    def search(self, victim: Victim, image: Tensor, goal: Goal, draws: Draws) -> Found:
        """Run as often as `restarts` says on the images that stand."""

        def run(image: Tensor, goal: Goal, draws: Draws, rows: Tensor) -> tuple[Tensor, Tensor]:
            return random_search(victim, image, goal, self, draws)

        return Found(in_turn(image, goal, draws, [run] * self.restarts))


def random_search(victim: Victim, image: Tensor, goal: Goal, attack: Square, draws: Draws) -> tuple[Tensor, Tensor]:
    """One run: propose a change in a random square, keep it where the loss falls or the goal is reached.

    The loss is the margin `z_y - max_{k != y} z_k`, of a targeted attack the target's cross-entropy. Square i has
    `p_i * H * W` pixels; p_i starts at p and is halved at queries 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000
    of 10,000. Place and size of a square are the same for all images of a batch, its signs are each image's own.
    Fooled images leave.

    Args:
        victim: the network.
        image: (N, C, H, W) in [0, 1].
        goal: of each image.
        attack: the budget.
        draws: of the images.

    Returns:
        The best images (N, C, H, W), and who was fooled (N,) bool.
    """
    start, propose = (stripes, paint) if attack.norm == "linf" else (tiles, move_bump)
    result, fooled = image.clone(), torch.zeros_like(goal.label, dtype=torch.bool)
    rows = torch.arange(len(image), device=image.device)
    best = start(image, attack.eps, draws)
    loss = torch.full((len(image),), torch.inf, device=image.device)
    candidate = best
    for query in range(attack.queries + 1):
        logits = victim.logits(candidate)
        value, hit = _loss(logits, goal), goal.reached(logits)
        better = hit | (value < loss)
        best, loss = candidate.where(per_image(better), best), value.where(better, loss)
        if hit.any():
            result[rows[hit]], fooled[rows[hit]] = best[hit], True
            rows, image, best, loss, goal, draws = (
                rows[~hit], image[~hit], best[~hit], loss[~hit], goal[~hit], draws[~hit],
            )  # fmt: skip
            if not len(rows):
                return result, fooled
        if query < attack.queries:
            share = share_of_pixels(query, attack.p, attack.queries if attack.rescale else SCHEDULE)
            candidate = propose(image, best, attack.eps, share, draws)
    result[rows] = best
    return result, fooled


def share_of_pixels(query: int, p: float, queries: int) -> float:
    """The schedule of p_i: how large the square of a query is, from 0 to `queries` - 1."""
    return float(p * 0.5 ** bisect_left(HALVED_AFTER, query * SCHEDULE // queries))


def stripes(image: Tensor, eps: float, draws: Draws) -> Tensor:
    """The start in L-infinity: each column of each channel at plus or minus eps."""
    _, channels, _, width = image.shape
    return (image + eps * draws.signs(channels, 1, width)).clamp_(0, 1)


def paint(image: Tensor, best: Tensor, eps: float, share: float, draws: Draws) -> Tensor:
    """A step in L-infinity: one square, each channel at plus or minus eps."""
    channels, height, width = image.shape[1:]
    size = min(max(round(math.sqrt(share * height * width)), 1), height, width)
    window = _window(height, width, size, draws)
    candidate = best.clone()
    candidate[window] = (image[window] + eps * draws.signs(channels, 1, 1)).clamp_(0, 1)
    return candidate


def tiles(image: Tensor, eps: float, draws: Draws) -> Tensor:
    """The start in L2: bumps on a grid of 5 x 5 tiles, each channel's with a sign of its own."""
    channels, height, width = image.shape[1:]
    size = max(min(height, width) // TILES, 1)
    delta = torch.zeros_like(image)
    for top in range(0, height - size + 1, size):
        for left in range(0, width - size + 1, size):
            bump = two_bumps(size, draws).to(image.device)
            delta[:, :, top : top + size, left : left + size] = bump * draws.signs(channels, 1, 1)
    return _at_radius(image, delta, eps)


def move_bump(image: Tensor, best: Tensor, eps: float, share: float, draws: Draws) -> Tensor:
    """A step in L2: take the mass of one window, add it to that of another, in a bump of random sign.

    nu = eta * sign + delta_W1 / ||delta_W1||_2         per channel; eta is `two_bumps`
    delta_W2 = 0
    delta_W1 = nu / ||nu||_2 * sqrt( ||delta_{W1 u W2}||_2^2 + max(eps^2 - ||delta||_2^2, 0) / C )
    x + delta is then brought to radius eps and into [0, 1]
    """
    channels, height, width = image.shape[1:]
    largest = min(height, width)
    size = min(max(round(math.sqrt(share * height * width)), 3), largest)
    size = size if size % 2 or size == 1 else size + 1 if size < largest else size - 1
    to, source = _window(height, width, size, draws), _window(height, width, size, draws)
    delta = best - image
    unused = (eps**2 - distance(delta, "l2").square()).clamp_(min=0)
    either = torch.zeros_like(delta[:1])
    either[to], either[source] = 1, 1
    mass = (delta * either).square().sum((2, 3), keepdim=True) + per_image(unused) / channels
    there = delta[to]
    bump = two_bumps(size, draws).to(image.device) * draws.signs(channels, 1, 1)
    fresh = bump + there / _norm(there)
    fresh = fresh / _norm(fresh) * mass.sqrt()
    delta[source] = 0
    delta[to] = fresh
    return _at_radius(image, delta, eps)


def two_bumps(size: int, draws: Draws) -> Tensor:
    """eta: a bump in one half of a square and its negative in the other, of norm 1, (size, size).

        bump(r, c) = sum_k 1 / (k + 1)^2

    over the squares of 2 k + 1 rows and columns around the half's centre that hold (r, c); one of the two directions
    is taken at random.
    """
    half = size // 2
    upper, lower = _bump(half, size), -_bump(size - half, size)
    both = torch.cat([upper, lower])
    eta: Tensor = both / torch.linalg.vector_norm(both)
    return eta.T if draws.integer(2) else eta


def _bump(height: int, width: int) -> Tensor:
    """A bump of norm 1, (height, width); empty where height is 0."""
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    ring = torch.maximum(rows[:, None], columns[None])  # the first rectangle that holds this pixel
    sums = (1 / torch.arange(1, max(height, width) // 2 + 2).square()).flip(0).cumsum(0).flip(0)
    bump: Tensor = sums[ring] / torch.linalg.vector_norm(sums[ring]).clamp(min=TINY)
    return bump


def _window(height: int, width: int, size: int, draws: Draws) -> tuple[slice, slice, slice, slice]:
    """A random square window of every channel."""
    top, left = draws.integer(height - size + 1), draws.integer(width - size + 1)
    return slice(None), slice(None), slice(top, top + size), slice(left, left + size)


def _norm(values: Tensor) -> Tensor:
    """Norms per channel (N, C, 1, 1), not 0."""
    norm: Tensor = torch.linalg.vector_norm(values, dim=(2, 3), keepdim=True)
    return norm.clamp(min=TINY)


def _at_radius(image: Tensor, delta: Tensor, eps: float) -> Tensor:
    """Images at distance eps in the direction of delta, clipped to [0, 1]."""
    return (image + eps * delta / per_image(distance(delta, "l2").clamp(min=TINY))).clamp_(0, 1)


def _loss(logits: Tensor, goal: Goal) -> Tensor:
    """What the search lowers, (N,)."""
    return -cross_entropy(logits, goal) if goal.targeted else goal_margin(logits, goal)
