"""Projected gradient descent and the fast gradient sign method: training's hot path, and the evaluation attack."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from deploytool.attacks.checks import check_between, check_counts, check_radius
from deploytool.attacks.draws import Draws
from deploytool.attacks.geometry import project, steepest, uniform_in_ball
from deploytool.attacks.goal import Goal
from deploytool.attacks.losses import cross_entropy
from deploytool.attacks.names import Norm
from deploytool.attacks.standing import Found, in_turn
from deploytool.attacks.victim import Victim
from deploytool.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pgd:
    """A PGD attack; with one step of length eps from the image itself, FGSM.

    Attributes:
        eps: radius of the ball, in units of the image's [0, 1].
        step_size: length of a step in the same norm and unit.
        steps: number of steps.
        random_start: start at a uniform point of the ball instead of the image.
        norm: of the ball and of a step.
        targeted: move towards a target class instead of away from the label.
        restarts: runs, each from a random start of its own.
        early_stop: let images that are fooled leave the batch. They are the same ones without, at more work.
        eot_iter: forward passes per gradient to average over, for a randomised network.
        iterate: what is kept of a run: the `first` iterate that reaches the goal, or the `last` one, whatever it does.
            The first has only just crossed the boundary: enough to fool a network, and easy to detect. Whoever
            measures a detector must meet the last one too, which went on for all of its steps.

    Raises:
        InputError: a number is outside its range, or several restarts have no random start.
    """

    eps: float
    step_size: float
    steps: int
    random_start: bool = True
    norm: Norm = "linf"
    targeted: bool = False
    restarts: int = 1
    early_stop: bool = True
    eot_iter: int = 1
    iterate: Literal["first", "last"] = "first"
    minimal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_radius(self.eps, self.norm)
        check_between("step_size", self.step_size, 0, 1e6)
        check_counts({"steps": self.steps, "restarts": self.restarts, "eot_iter": self.eot_iter})
        if self.restarts > 1 and not self.random_start:
            raise InputError(f"restarts (={self.restarts}) need random_start; without it all of them are the same")
        if self.iterate not in ("first", "last"):
            raise InputError(f"iterate (={str(self.iterate)[:40]!r}) must be first or last")

    def search(self, victim: Victim, image: Tensor, goal: Goal, draws: Draws) -> Found:
        """Attack for evaluation; see `evaluation_pgd`."""
        return Found(evaluation_pgd(victim, image, goal, self, draws))


def pgd(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    label: Tensor,
    attack: Pgd,
    generator: torch.Generator | None = None,
    loss: Loss = F.cross_entropy,
) -> Tensor:
    r"""Maximise the loss within a ball by projected gradient ascent: one run, all of its steps, for training.

        x_k = Proj( x_{k-1} + step_size * sign(grad_x loss(network(x_{k-1}), label)) )

    Proj clips to [x - eps, x + eps] and to [0, 1]; in L2 the gradient is divided by its norm instead of taking its
    sign, and Proj scales the perturbation. A targeted attack minimises the loss; `label` is then the target. The
    network is taken as it is: give it in evaluation mode, without gradients for its weights
    (`ConditionalModel.network` does). Nothing is checked or counted here, and nobody leaves the batch; `run_attack`
    does all that, with restarts.

    Args:
        network: image (N, C, H, W) -> logits (N, K).
        image: (N, C, H, W) float32 in [0, 1].
        label: (N,) int64.
        attack: radius, step size, number of steps, start, norm; its restarts, early stop and EOT are not used.
        generator: source of the random start, on the image's device.
        loss: mean loss over a batch; only the direction of its gradient matters.

    Returns:
        Adversarial images, shape and dtype of `image`, detached.

    Reference: A. Madry et al., Towards deep learning models resistant to adversarial attacks, 2017; paper 5, eq. 2.
    """
    length = -attack.step_size if attack.targeted else attack.step_size
    low, high = (image - attack.eps).clamp_(min=0), (image + attack.eps).clamp_(max=1)
    adversarial = image.detach().clone()
    if attack.random_start:
        adversarial = uniform_in_ball(adversarial, attack.eps, attack.norm, Draws(len(image), generator, image.device))
    for _ in range(attack.steps):
        adversarial.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(network(adversarial), label), adversarial)
        if attack.norm == "linf":
            adversarial = torch.clamp(adversarial.detach().add(gradient.sign_(), alpha=length), low, high)
        else:
            moved = adversarial.detach() + length * steepest(gradient, attack.norm)
            adversarial = project(moved, image, attack.eps, attack.norm)
    return adversarial.detach()


def evaluation_pgd(victim: Victim, image: Tensor, goal: Goal, attack: Pgd, draws: Draws) -> Tensor:
    """PGD for evaluation: an image is fooled by the first iterate of any restart that reaches the goal.

    With `iterate="last"` none but the last iterate of a restart counts, and nobody leaves a restart before.

    The start and the last iterate count too. Since a fooling iterate is looked for among the same ones with and
    without early stop, and random starts are drawn for the whole batch (`Draws`), early stop changes nobody's result
    but for the rounding of batches of another size. Images fooled in one restart never enter the next.

    Args:
        victim: the network.
        image: (N, C, H, W) in [0, 1].
        goal: of each image.
        attack: the budget.
        draws: of the images.

    Returns:
        (N, C, H, W) the first iterate that reaches the goal (of last iterates, the first one that does), or the last
        iterate of the last restart.
    """

    def run(image: Tensor, goal: Goal, draws: Draws, rows: Tensor) -> tuple[Tensor, Tensor]:
        return _one_run(victim, image, goal, attack, draws)

    return in_turn(image, goal, draws, [run] * attack.restarts)


def _one_run(victim: Victim, image: Tensor, goal: Goal, attack: Pgd, draws: Draws) -> tuple[Tensor, Tensor]:
    """One restart: its first fooling iterates or else its last ones (those alone, if asked), and who was fooled."""
    result, fooled = image.clone(), torch.zeros_like(goal.label, dtype=torch.bool)
    rows = torch.arange(len(image), device=image.device)
    point = uniform_in_ball(image, attack.eps, attack.norm, draws) if attack.random_start else image
    for _ in range(attack.steps):
        logits, _, gradient = victim.gradient(point, partial(cross_entropy, goal=goal), attack.eot_iter)
        hit = goal.reached(logits) & ~fooled[rows]
        if attack.iterate == "first" and hit.any():
            result[rows[hit]], fooled[rows[hit]] = point[hit], True
            if attack.early_stop:
                rows, point, image, gradient = (each[~hit] for each in (rows, point, image, gradient))
                goal = goal[~hit]
                if not len(rows):
                    return result, fooled
        moved = point + attack.step_size * steepest(gradient, attack.norm)
        point = project(moved, image, attack.eps, attack.norm)
    late = ~fooled[rows]
    result[rows[late]] = point[late]
    fooled[rows] |= goal.reached(victim.logits(point, attack.eot_iter))
    return result, fooled
