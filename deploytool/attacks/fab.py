"""FAB: fast adaptive boundary attack, the smallest perturbation in L-infinity or L2, towards one class at a time."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from deploytool.attacks.checks import check_between, check_counts, check_radius
from deploytool.attacks.draws import Draws
from deploytool.attacks.geometry import TINY, distance, on_sphere, per_image
from deploytool.attacks.goal import Goal
from deploytool.attacks.losses import of_class, other_classes
from deploytool.attacks.names import Norm
from deploytool.attacks.standing import Found
from deploytool.attacks.victim import Victim

LARGEST = 1e200


@dataclass(frozen=True)
class Fab:
    """FAB-T: for each of the most likely other classes, a search along the boundary to it.

    Attributes:
        eps: the radius at which robust accuracy is counted; random starts lie in half of it.
        norm: that is made small.
        steps: of one run.
        targets: how many classes to try, those of largest logit on the image as it is.
        restarts: runs for each class; the first starts at the image itself.
        alpha: largest weight of the step from the image, beside the step from the current point.
        eta: overshoot beyond the hyperplane.
        beta: how far to go back towards the image after a success.
        early_stop: let images leave that are fooled within eps. For robust accuracy at eps that is enough; without,
            every image's smallest perturbation is looked for to the end.
    """

    eps: float
    norm: Norm = "linf"
    steps: int = 100
    targets: int = 9
    restarts: int = 1
    alpha: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    early_stop: bool = False
    targeted: ClassVar[bool] = False
    minimal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_radius(self.eps, self.norm)
        check_counts({"steps": self.steps, "targets": self.targets, "restarts": self.restarts})
        check_between("alpha", self.alpha, 0, 1)
        check_between("eta", self.eta, 1, 10)
        check_between("beta", self.beta, 0, 1)

    def search(self, victim: Victim, image: Tensor, goal: Goal, draws: Draws) -> Found:
        """Search towards each class in turn; every image keeps its smallest perturbation."""
        result, best = image.clone(), torch.full((len(image),), torch.inf, device=image.device)
        targets = other_classes(victim.logits(image), goal.label, self.targets)
        rows = torch.arange(len(image), device=image.device)
        for number in range(targets.shape[1]):
            for restart in range(self.restarts):
                part, size = boundary_search(
                    victim, image[rows], goal[rows], targets[rows, number], self, draws[rows] if restart else None
                )
                closer = size < best[rows]
                result[rows[closer]], best[rows[closer]] = part[closer], size[closer]
                if self.early_stop:
                    rows = rows[best[rows] > self.eps]
                    if not len(rows):
                        return Found(result)
        return Found(result)


def boundary_search(
    victim: Victim, image: Tensor, goal: Goal, target: Tensor, attack: Fab, draws: Draws | None
) -> tuple[Tensor, Tensor]:
    """One run towards one class.

    At each point the boundary between label y and target t is linearised to a hyperplane pi: <w, x> = b with
    `w = grad(z_t - z_y)`. The point and the image are both projected onto it, within [0, 1], and mixed:

        x_{i+1} = clip( (1 - a) * (x_i + eta * d_i) + a * (x_0 + eta * d_0) )
        d_i = proj_pi(x_i) - x_i,   d_0 = proj_pi(x_0) - x_0,   a = min( ||d_i|| / (||d_i|| + ||d_0||), alpha )

    When the class has changed, the point is kept if it is the nearest so far, and the search goes back towards the
    image: `x_0 + beta * (x_{i+1} - x_0)`.

    Args:
        victim: the network.
        image: x_0 (N, C, H, W) in [0, 1].
        goal: of each image, untargeted: any other class is a success.
        target: t, (N,) int64.
        attack: the budget.
        draws: of a random start within eps / 2; None: start at the image.

    Returns:
        The nearest success (N, C, H, W) or the image, and its distance (N,) or infinity.

    Reference: F. Croce, M. Hein, Minimally distorted adversarial examples with a fast adaptive boundary attack, 2020,
    Algorithm 1; its targeted version as in AutoAttack (Croce and Hein 2020).
    """
    norm = attack.norm
    result, best = image.clone(), torch.full((len(image),), torch.inf, device=image.device)
    rows = torch.arange(len(image), device=image.device)
    point = image if draws is None else on_sphere(image, attack.eps / 2, norm, draws)
    for _ in range(attack.steps):
        _, gap, w = victim.gradient(point, partial(_lead, label=goal.label, target=target))
        b = (w * point).flatten(1).sum(1) - gap
        from_point, from_image = (
            to_hyperplane(start.flatten(1), w.flatten(1), b, norm).view_as(image) for start in (point, image)
        )
        a_point, a_image = distance(from_point, norm), distance(from_image, norm)
        share = per_image((a_point / (a_point + a_image).clamp_(min=TINY)).clamp_(max=attack.alpha))
        moved = (1 - share) * (point + attack.eta * from_point) + share * (image + attack.eta * from_image)
        point = moved.clamp_(0, 1)
        hit = goal.reached(victim.logits(point))
        size = distance(point - image, norm)
        closer = hit & (size < best[rows])
        result[rows[closer]], best[rows[closer]] = point[closer], size[closer]
        point = torch.where(per_image(hit), image + attack.beta * (point - image), point)
        if attack.early_stop:
            going = best[rows] > attack.eps
            rows, image, point, target = (each[going] for each in (rows, image, point, target))
            goal = goal[going]
            if not len(rows):
                break
    return result, best


def to_hyperplane(point: Tensor, w: Tensor, b: Tensor, norm: Norm) -> Tensor:
    """The smallest d with `<w, x + d> = b` and x + d in [0, 1]; the largest possible step towards it where none is.

    Every value moves by `min(lam * s_i, room_i)` in the direction that closes the gap, `s = 1` for L-infinity and
    `|w|` for L2, until it meets its bound after `room_i`. What they close together,

        g(lam) = sum_i |w_i| * min(lam * s_i, room_i),

    is concave and piecewise linear in lam: with the values sorted by `room_i / s_i`, where each stops, lam follows
    from the piece in which g reaches the gap.

    Args:
        point: x (N, D) in [0, 1].
        w: normal of the hyperplane (N, D).
        b: its offset (N,).
        norm: of d.

    Returns:
        d (N, D).
    """
    w, b, x = w.double(), b.double(), point.double()
    gap = b - (w * x).sum(1)
    w = torch.where(gap[:, None] < 0, -w, w)
    gap = gap.abs()
    weight = w.abs()
    room = torch.where(w > 0, 1 - x, x).where(w != 0, 0.0)
    speed = torch.ones_like(weight) if norm == "linf" else weight
    stop, order = (room / speed.clamp(min=1e-300)).sort(dim=1)
    gain = (weight * room).gather(1, order)
    pull = (weight * speed).gather(1, order)
    done = gain.cumsum(1) - gain  # closed by the values that stop before this one
    left = pull.flip(1).cumsum(1).flip(1)  # rate of those that do not
    piece = torch.searchsorted(done + stop * left, gap[:, None]).clamp_(max=stop.shape[1] - 1)
    lam = (gap[:, None] - done.gather(1, piece)) / left.gather(1, piece).clamp(min=1e-300)
    lam = lam.clamp(0, LARGEST)  # infinite times a speed of 0 would be no number
    return (torch.minimum(lam * speed, room) * w.sign()).to(point.dtype)


def _lead(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """`z_t - z_y` of each image."""
    return of_class(logits, target) - of_class(logits, label)
