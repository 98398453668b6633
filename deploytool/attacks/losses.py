"""Losses that attacks climb: one value per image, larger is worse for the network.

z are the logits of an image, y its label, t a target, pi_1, pi_2, ... the classes in falling order of their logits.
"""

from torch import Tensor
from torch.nn import functional as F

from deploytool.attacks.geometry import TINY
from deploytool.attacks.goal import Goal


def cross_entropy(logits: Tensor, goal: Goal) -> Tensor:
    """Cross-entropy of the label, or minus that of the target, (N,)."""
    value = F.cross_entropy(logits, goal.label, reduction="none")
    return -value if goal.targeted else value


def of_class(logits: Tensor, label: Tensor) -> Tensor:
    """`z_y` of each image, (N,)."""
    return logits.gather(1, label[:, None]).squeeze(1)


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """`z_y - max_{k != y} z_k`, (N,): above 0 where y is the answer."""
    others = logits.scatter(1, label[:, None], -float("inf")).amax(1)
    return of_class(logits, label) - others


def goal_margin(logits: Tensor, goal: Goal) -> Tensor:
    """How far an image is from its goal, (N,): below 0 where it is reached."""
    value = margin(logits, goal.label)
    return -value if goal.targeted else value


def dlr(logits: Tensor, label: Tensor) -> Tensor:
    """Difference of logits ratio: cross-entropy's rival that scaling or shifting the logits cannot blind.

        DLR = -(z_y - max_{k != y} z_k) / (z_{pi_1} - z_{pi_3})

    With two classes there is no third logit; the difference alone is taken, whose gradient has the same direction.

    Reference: F. Croce, M. Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks, 2020, eq. 6.
    """
    difference = margin(logits, label).neg()
    if logits.shape[1] < 3:
        return difference
    top = logits.topk(3, dim=1).values
    return difference / (top[:, 0] - top[:, 2] + TINY)


def targeted_dlr(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """Targeted DLR: moves from y towards t.

        DLR_t = -(z_y - z_t) / (z_{pi_1} - (z_{pi_3} + z_{pi_4}) / 2)

    With fewer than four classes the difference alone is taken, see `dlr`.

    Reference: Croce and Hein 2020, eq. 7.
    """
    difference = of_class(logits, target) - of_class(logits, label)
    if logits.shape[1] < 4:
        return difference
    top = logits.topk(4, dim=1).values
    return difference / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + TINY)


def other_classes(logits: Tensor, label: Tensor, count: int) -> Tensor:
    """The `count` classes of largest logit beside the label's, best first, (N, at most count) int64."""
    others = logits.scatter(1, label[:, None], -float("inf"))
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices
