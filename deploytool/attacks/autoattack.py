"""AutoAttack: an ensemble of attacks without parameters to tune, one after another on what still stands.

Reference: F. Croce, M. Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks, 2020, section 5; the versions are those of the authors' evaluation.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from deploytool.attacks.apgd import Apgd, ApgdTargeted
from deploytool.attacks.checks import check_counts, check_radius
from deploytool.attacks.draws import Draws
from deploytool.attacks.fab import Fab
from deploytool.attacks.geometry import distance, slack
from deploytool.attacks.goal import Goal
from deploytool.attacks.names import Norm
from deploytool.attacks.run import Attack
from deploytool.attacks.square import Square
from deploytool.attacks.standing import Found
from deploytool.attacks.victim import Victim
from deploytool.errors import InputError


@dataclass(frozen=True)
class AutoAttack:
    """AutoAttack in one of two versions.

    `standard`: APGD on cross-entropy, APGD-T, FAB-T, Square. `rand`, for randomised networks: APGD on cross-entropy
    and on DLR, gradients averaged over `eot_iter` passes.

    Attributes:
        eps: radius of the ball, in units of the image's [0, 1].
        norm: of the ball.
        version: which attacks.
        steps: of each run of APGD and FAB.
        targets: classes that APGD-T and FAB-T try.
        queries: of Square, which keeps the schedule for 10,000.
        eot_iter: passes per gradient in `rand`.
    """

    eps: float
    norm: Norm = "linf"
    version: Literal["standard", "rand"] = "standard"
    steps: int = 100
    targets: int = 9
    queries: int = 5000
    eot_iter: int = 20
    targeted: ClassVar[bool] = False
    minimal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_radius(self.eps, self.norm)
        check_counts({name: getattr(self, name) for name in ("steps", "targets", "queries", "eot_iter")})
        if self.version not in ("standard", "rand"):
            raise InputError(f"version (={str(self.version)[:40]!r}) must be standard or rand")

    def members(self) -> dict[str, Attack]:
        """The attacks in their order, by name."""
        eps, norm = self.eps, self.norm
        if self.version == "rand":
            return {
                "apgd-ce": Apgd(eps, norm, "ce", self.steps, eot_iter=self.eot_iter),
                "apgd-dlr": Apgd(eps, norm, "dlr", self.steps, eot_iter=self.eot_iter),
            }
        return {
            "apgd-ce": Apgd(eps, norm, "ce", self.steps),
            "apgd-t": ApgdTargeted(eps, norm, self.steps, self.targets),
            "fab-t": Fab(eps, norm, self.steps, self.targets, early_stop=True),
            "square": Square(eps, norm, self.queries, rescale=False),
        }

    @property
    def passes(self) -> int:
        """Forward passes whose mean decides whether an image is fooled: `eot_iter` in `rand`, else one."""
        return self.eot_iter if self.version == "rand" else 1

    def search(self, victim: Victim, image: Tensor, goal: Goal, draws: Draws) -> Found:
        """Let the members attack in turn; `by` says how many images each one fooled.

        In `rand` the mean of `eot_iter` answers decides who is fooled, as inside of the members: were it one answer, a
        lucky draw of the noise would end the attack on an image that the network mostly gets right.

        Every member meets the random numbers that it would meet if it were run alone with the same seed.
        """
        result, by = image.clone(), {}
        standing = torch.arange(len(image), device=image.device)
        for name, member in self.members().items():
            by[name] = 0
            if not len(standing):
                continue
            part = member.search(victim, image[standing], goal[standing], draws[standing].rewound()).image
            within = distance(part - image[standing], self.norm) <= self.eps + slack(self.eps)
            fooled = goal[standing].reached(victim.logits(part, self.passes)) & within
            result[standing[within]] = part[within]
            by[name] = int(fooled.sum())
            standing = standing[~fooled]
        return Found(result, by)
