"""From a name and a base budget to an attack."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deploytool.attacks.apgd import Apgd, ApgdTargeted
from deploytool.attacks.autoattack import AutoAttack
from deploytool.attacks.carlini import CarliniWagner
from deploytool.attacks.checks import check_between, check_radius
from deploytool.attacks.deepfool import DeepFool
from deploytool.attacks.fab import Fab
from deploytool.attacks.names import Norm, parse_name
from deploytool.attacks.pgd import Pgd
from deploytool.attacks.run import Attack
from deploytool.attacks.square import Square
from deploytool.recipe import AttackSection


@dataclass(frozen=True)
class AttackBase:
    """What a recipe says of attacks, from which named ones take their budgets.

    Attributes:
        eps: radius in L-infinity, in units of the image's [0, 1].
        step_size: of PGD in L-infinity; in L2 it is the same share of the radius.
        random_start: whether PGD starts at a random point of the ball.
        eps_l2: radius in L2; `same_volume` gives one that fits eps.
    """

    eps: float
    step_size: float
    random_start: bool = True
    eps_l2: float = 0.5

    def __post_init__(self) -> None:
        check_radius(self.eps)
        check_radius(self.eps_l2, "l2", "eps_l2")
        check_between("step_size", self.step_size, 0, 2)

    def radius(self, norm: Norm) -> float:
        """The radius in a norm."""
        return self.eps if norm == "linf" else self.eps_l2


def recipe_base(section: AttackSection) -> AttackBase:
    """The base that a recipe's `attack` section gives."""
    return AttackBase(section.eps, section.step_size, section.random_start)


def make_attack(name: str, base: AttackBase) -> Attack:
    """Make the attack of a name; see `deploytool.attacks.names` for the names.

    FGSM is one step of length eps from the image itself (Goodfellow et al. 2015). Budgets that the base does not say
    are those of the attacks' authors where evaluations use them (APGD, FAB, Square, AutoAttack), else the defaults
    of the attacks' classes.

    Raises:
        InputError: no attack has that name; the message holds the nearest one.
    """
    parsed = parse_name(name)
    norm, eps = parsed.norm, base.radius(parsed.norm)
    if parsed.steps is not None:
        share = base.step_size / base.eps if base.eps else 0.0
        step_size = base.step_size if norm == "linf" else share * eps
        return Pgd(eps, step_size, parsed.steps, base.random_start, norm)
    made: dict[str, Attack] = {
        "fgsm": Pgd(eps, eps, 1, random_start=False, norm=norm),
        "deepfool": DeepFool(base.eps_l2),
        "cw": CarliniWagner(base.eps_l2),
        "square": Square(eps, norm),
        "apgd-ce": Apgd(eps, norm),
        "apgd-dlr": Apgd(eps, norm, "dlr"),
        "apgd-t": ApgdTargeted(eps, norm),
        "fab-t": Fab(eps, norm),
        "autoattack": AutoAttack(eps, norm),
        "autoattack-rand": AutoAttack(eps, norm, "rand"),
    }
    return made[parsed.kind]


def same_volume(eps: float, shape: Sequence[int]) -> float:
    """The radius of the L2 ball that has the volume of an L-infinity ball.

        (2 eps)^d = pi^(d/2) / Gamma(d/2 + 1) * r^d        d = C * H * W

    With many dimensions r is about `eps * sqrt(2 d / (pi e))`: 0.84 for eps 8/255 and CIFAR's 3072 values.

    Args:
        eps: radius in L-infinity.
        shape: (C, H, W) of an image.
    """
    d = math.prod(shape)
    return 2 * eps * math.exp(math.lgamma(d / 2 + 1) / d) / math.sqrt(math.pi)
