"""From a name and a base budget to an attack."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from deploytool.attacks.apgd import Apgd, ApgdTargeted
from deploytool.attacks.autoattack import AutoAttack
from deploytool.attacks.carlini import CarliniWagner
from deploytool.attacks.checks import check_between, check_radius
from deploytool.attacks.consistent import Consistent
from deploytool.attacks.deepfool import DeepFool
from deploytool.attacks.fab import Fab
from deploytool.attacks.names import Norm, parse_name, split_name
from deploytool.attacks.pgd import Pgd
from deploytool.attacks.run import Attack
from deploytool.attacks.square import Square
from deploytool.attacks.targets import RULES, TargetRule
from deploytool.errors import InputError
from deploytool.recipe import Recipe, parse_fraction

FIXED = ("norm", "targeted", "version")  # the name says them, or `run_attack` needs more than a budget


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


def recipe_base(recipe: Recipe, eps: float | None = None, eps_l2: float | None = None) -> AttackBase:
    """The base that a recipe gives; another eps than the recipe's takes the step size along, in proportion."""
    section = recipe.attack
    radius = section.eps if eps is None else eps
    check_radius(radius)
    step_size = section.step_size * radius / section.eps
    return AttackBase(radius, step_size, section.random_start, recipe.evaluate.eps_l2 if eps_l2 is None else eps_l2)


def make_attack(name: str, base: AttackBase) -> Attack:
    """Make the attack of a name; see `deploytool.attacks.names` for the names and their options.

    FGSM is one step of length eps from the image itself (Goodfellow et al. 2015). Budgets that the base does not say
    are those of the attacks' authors where evaluations use them (APGD, FAB, Square, AutoAttack), else the defaults
    of the attacks' classes.

    Raises:
        InputError: no attack has that name, or no such option; the message holds the nearest one.
    """
    name, options = split_name(name)
    parsed = parse_name(name)
    norm, eps = parsed.norm, base.radius(parsed.norm)
    if parsed.reasoned:
        return _with_options(Consistent(eps, norm, parsed.steps or 1), name, options)
    if parsed.steps is not None:
        share = base.step_size / base.eps if base.eps else 0.0
        step_size = base.step_size if norm == "linf" else share * eps
        return _with_options(Pgd(eps, step_size, parsed.steps, base.random_start, norm), name, options)
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
    return _with_options(made[parsed.kind], name, options)


def target_rule(name: str) -> TargetRule | None:
    """The rule of `pgd-20:target=random`; None for an attack without target.

    Raises:
        InputError: there is no such rule.
    """
    for option in split_name(name)[1].split(","):
        key, _, value = (part.strip() for part in option.partition("="))
        if key == "target":
            if value not in RULES:
                raise InputError(f"attack {name[:60]}: target (={value[:40]!r}) must be {', '.join(RULES)}")
            return value
    return None


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


def _with_options(attack: Attack, name: str, options: str) -> Attack:
    """The attack with fields set as in `restarts=5,eps=4/255`."""
    known = {each.name: getattr(attack, each.name) for each in fields(attack) if each.name not in FIXED}  # type: ignore[arg-type]
    if any(each.name == "targeted" for each in fields(attack)):  # type: ignore[arg-type]
        known["target"] = "random"
    chosen: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, equals, text = (part.strip() for part in option.partition("="))
        if key not in known or not equals:
            near = difflib.get_close_matches(key, known, 1)
            advice = f"did you mean {near[0]}? " if near and key not in known else ""
            raise InputError(
                f"attack {name}: option (={option[:40]!r}) must be key=value; {advice}keys: {', '.join(known)}"
            )
        if key == "target":
            key, value = "targeted", target_rule(f"{name}:{option}") is not None
        else:
            value = _option(name, key, text, known[key])
        chosen[key] = value
    if parse_name(name).kind == "fgsm" and "eps" in chosen:
        chosen.setdefault("step_size", chosen["eps"])  # its one step goes as far as it may
    return replace(attack, **chosen) if chosen else attack  # type: ignore[type-var]


def _option(name: str, key: str, text: str, default: Any) -> Any:
    """An option's value, of the type that its default has."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, str):
            return text
        return int(text) if isinstance(default, int) else float(parse_fraction(text))
    except (ValueError, KeyError):
        kind = {bool: "true or false", int: "a whole number"}.get(type(default), "a number, such as 0.5 or 8/255")
        raise InputError(f"attack {name}: {key} (={text[:40]!r}) must be {kind}") from None
