"""Checks that tell robustness from a weak attack; each finding is one line that a reader has to know.

A defence can look robust because it hides its gradients. Then attacks without gradients, or with fewer steps, do better
than the stronger ones; larger radii do not help; even an attack without bound fails. A defence that draws noise looks
robust to attacks that see one draw only.

Reference: N. Carlini et al., On evaluating adversarial robustness, 2019, section 4; A. Athalye et al., Obfuscated
gradients give a false sense of security, 2018, section 3.1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deploytool.attacks.names import is_reasoned, parse_name, split_name
from deploytool.attacks.pgd import Pgd
from deploytool.attacks.run import run_attack
from deploytool.attacks.victim import Network, Victim

Row = Mapping[str, Any]

TOLERANCE = 0.005  # robust accuracies nearer than that, or than two images, are not told apart
CHECKED_IMAGES = 64
STEPS = 20
EOT = 10  # for networks that draw noise
RADII = (0.5, 1.0, 2.0, 4.0)  # of eps


@dataclass(frozen=True)
class Finding:
    """A warning.

    Attributes:
        check: its name.
        message: one line for people.
    """

    check: str
    message: str

    def to_dict(self) -> dict[str, str]:
        """For a JSON document."""
        return asdict(self)


def check_rows(rows: Sequence[Row]) -> list[Finding]:
    """Compare the attacks of each setting that share norm and radius, and look at how noise was treated.

    Args:
        rows: of `evaluate_model`.
    """
    untargeted = [row for row in rows if row["target_rate"] is None]  # fewer images reach a target than any class
    groups: dict[Any, dict[str, Row]] = {}
    for row in untargeted:
        groups.setdefault((_setting(row), row["norm"], row["eps"]), {})[row["attack"]] = row
    findings = []
    for group in groups.values():
        reasoned = {name: row for name, row in group.items() if is_reasoned(name)}
        findings += _compared({name: row for name, row in group.items() if name not in reasoned})
        findings += _adaptive(group, reasoned)
    return [*findings, *_over_eps(untargeted), *_noise(rows)]


def check_network(
    network: Network, image: Tensor, label: Tensor, eps: float, seed: int, at: str = "", eot_iter: int = 1
) -> "Ladder":
    """Attack a few images with growing radii, and without bound.

    Args:
        network: image (N, C, H, W) -> logits, with gradient, in evaluation mode.
        image: (N, C, H, W) float32 in [0, 1]; the first 64 are used.
        label: (N,) int64.
        eps: L-infinity radius that the evaluation is about.
        seed: of the starts.
        at: the setting, for the messages.
        eot_iter: passes to average over, for a network that draws noise.
    """
    image, label = image[:CHECKED_IMAGES], label[:CHECKED_IMAGES]
    radii = sorted({min(share * eps, 1.0) for share in RADII})
    attacks = [*(Pgd(radius, radius / 8, STEPS, eot_iter=eot_iter) for radius in radii if radius < 1)]
    attacks.append(Pgd(1.0, 0.1, 40, eot_iter=eot_iter))  # every image is in reach
    robust = {attack.eps: run_attack(network, image, label, attack, seed).robust_accuracy() for attack in attacks}
    return Ladder(robust, len(image), _blind(network, image, label), at)


@dataclass(frozen=True)
class Ladder:
    """Robust accuracy under PGD of growing radius.

    Attributes:
        robust: accuracy in [0, 1] by L-infinity radius, ascending; the last one is 1, where nothing is out of reach.
        n: images.
        blind: share of correctly classified images at which the gradient of the loss is exactly 0.
        at: the setting.
    """

    robust: dict[float, float]
    n: int
    blind: float
    at: str = ""

    def findings(self) -> list[Finding]:
        """What a reader has to know."""
        found, at = [], f" ({self.at})" if self.at else ""
        tolerance = _tolerance(self.n)
        pairs = list(self.robust.items())
        for (small, before), (large, after) in pairwise(pairs):
            if after > before + tolerance:
                found.append(
                    Finding(
                        "rises-with-eps",
                        f"robust accuracy rises from {before:.3f} at eps {small:.4g} to {after:.3f} at {large:.4g} on "
                        f"{self.n} images{at}: the attack loses its way, gradients are masked",
                    )
                )
        bounded = [accuracy for eps, accuracy in pairs[:-1] if eps < 1]
        if len(bounded) > 1 and bounded[0] > tolerance and bounded[-1] >= bounded[0]:
            found.append(
                Finding(
                    "does-not-fall-with-eps",
                    f"robust accuracy stays at {bounded[0]:.3f} while eps grows {RADII[-1] / RADII[0]:g}-fold on "
                    f"{self.n} images{at}: gradients are masked, or eps is too small to matter",
                )
            )
        if pairs[-1][1] > tolerance:
            found.append(
                Finding(
                    "unbounded-attack-fails",
                    f"PGD without bound leaves {pairs[-1][1]:.3f} robust accuracy on {self.n} images{at}, where 0 is "
                    "in reach: gradients are masked, and the robust accuracies above them are not to be trusted",
                )
            )
        if self.blind > TOLERANCE:
            found.append(
                Finding(
                    "zero-gradient",
                    f"the gradient of the loss is exactly 0 at {self.blind:.3f} of the correct images{at}: attacks on "
                    "cross-entropy are blind there; use apgd-dlr, fab-t or square",
                )
            )
        return found

    def to_rows(self) -> list[dict[str, Any]]:
        """One row per radius, for a JSON document."""
        return [
            {"setting": self.at, "eps": eps, "robust_accuracy": value, "n": self.n}
            for eps, value in self.robust.items()
        ]


def check_randomness(randomised: bool, attacks: Iterable[Row], at: str = "") -> list[Finding]:
    """Warn of attacks without expectation on a network that answers differently every time, and of the reverse.

    Args:
        randomised: whether the network does, see `is_randomised`.
        attacks: `attack` and `budget` of each, as in rows.
        at: the setting.
    """
    plain: list[str] = []
    averaged: list[str] = []
    for row in attacks:
        eot = max(row["budget"].get("eot_iter", 1), 1) if row["budget"].get("version", "rand") == "rand" else 1
        (averaged if eot > 1 else plain).append(row["attack"])
    where = f" ({at})" if at else ""
    if randomised:
        return [
            Finding(
                "no-expectation",
                f"the network draws noise with every answer{where}, and {', '.join(plain)} attacked one draw at a "
                "time: that overstates robustness; use autoattack-rand, or pgd-20:eot_iter=20",
            )
        ] if plain else []  # fmt: skip
    return [
        Finding(
            "needless-expectation",
            f"{', '.join(averaged)} averages over noise, but the network answers the same every time{where}: the "
            "deterministic version (autoattack) is stronger at equal cost",
        )
    ] if averaged else []  # fmt: skip


def _compared(group: Mapping[str, Row]) -> list[Finding]:
    """One setting, norm and radius: the attacks that should be stronger, and whether they were."""
    if not group:
        return []
    kinds = {name: parse_name(split_name(name)[0]) for name in group}
    robust = {name: row["robust_accuracy"] for name, row in group.items()}
    n = min(row["n"] for row in group.values())
    tolerance, at = _tolerance(n), describe(next(iter(group.values())))
    white = {  # deepfool and cw look for the smallest perturbation, not for any within eps
        name: robust[name]
        for name, kind in kinds.items()
        if not kind.black_box and kind.kind not in ("fgsm", "deepfool", "cw")
    }
    black = {name: robust[name] for name, kind in kinds.items() if kind.black_box}
    single = {name: robust[name] for name, kind in kinds.items() if kind.kind == "fgsm" or kind.steps == 1}
    several = {name: value for name, value in white.items() if kinds[name].steps != 1}
    found = []
    if black and white and min(black.values()) < min(white.values()) - tolerance:
        found.append(
            Finding(
                "black-box-beats-white-box",
                f"{_best(black)} without gradients, {_best(white)} with them{at}: "
                "gradients are masked; the lower one counts",
            )
        )
    for name, row in group.items():
        alone = row["found_by"].get("square", 0)
        if alone > max(2, TOLERANCE * row["n"]):
            found.append(
                Finding(
                    "black-box-beats-white-box",
                    f"{name}: square fooled {alone} of {row['n']} images that no attack by gradients had{at}: "
                    "gradients are masked",
                )
            )
    if single and several and min(single.values()) < min(several.values()) - tolerance:
        found.append(
            Finding(
                "one-step-beats-many",
                f"{_best(single)} with one step, {_best(several)} with many{at}: gradients are masked",
            )
        )
    ladders: dict[str, list[tuple[int, str]]] = {}
    for name, kind in kinds.items():
        if kind.kind == "pgd" and kind.steps:  # restarts or another step size would make it another attack
            alike = {key: value for key, value in group[name]["budget"].items() if key != "steps"}
            ladders.setdefault(repr(sorted(alike.items())), []).append((kind.steps, name))
    for (_, few), (_, many) in (pair for ladder in ladders.values() for pair in pairwise(sorted(ladder))):
        if robust[many] > robust[few] + tolerance:
            found.append(
                Finding(
                    "more-steps-do-worse",
                    f"{few} leaves {robust[few]:.3f}, {many} {robust[many]:.3f}{at}: more steps should not do worse",
                )
            )
    return found


def _adaptive(group: Mapping[str, Row], reasoned: Mapping[str, Row]) -> list[Finding]:
    """One setting, norm and radius of a run with reasoning labels: is the rule attacked, and as well as it can be?"""
    undetected = {name: row["undetected_rate"] for name, row in group.items() if "undetected_rate" in row}
    if not undetected:
        return []
    at, tolerance = describe(next(iter(group.values()))), _tolerance(min(row["n"] for row in group.values()))
    unaware = {name: rate for name, rate in undetected.items() if name not in reasoned}
    if not reasoned:
        return [
            Finding(
                "not-adaptive",
                f"no attack{at} knew of the rule of acceptance: detection rates are upper bounds; use --adaptive",
            )
        ]
    name = max(reasoned, key=lambda name: undetected[name])
    luckier = max(unaware, key=lambda name: unaware[name], default=name)
    if undetected[luckier] <= undetected[name] + tolerance:
        return []
    return [
        Finding(
            "adaptive-attack-is-weak",
            f"{luckier} gets {undetected[luckier]:.3f} wrong answers accepted without knowing the rule{at}, {name} "
            f"{undetected[name]:.3f} with it: the rule is attacked too weakly; use more steps or restarts",
        )
    ]


def _over_eps(rows: Sequence[Row]) -> list[Finding]:
    """One attack at several radii: a larger one must not leave more."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        name = parse_name(split_name(row["attack"])[0])
        if not name.minimal:
            budget = {key: value for key, value in row["budget"].items() if key not in ("eps", "step_size")}
            groups.setdefault((_setting(row), name, repr(sorted(budget.items()))), []).append(row)
    found = []
    for group in groups.values():
        for small, large in pairwise(sorted(group, key=lambda row: row["eps"])):
            before, after = small["robust_accuracy"], large["robust_accuracy"]
            if small["eps"] < large["eps"] and after > before + _tolerance(small["n"]):
                found.append(
                    Finding(
                        "rises-with-eps",
                        f"{small['attack']} leaves {before:.3f}, {large['attack']} {after:.3f} in a larger ball"
                        f"{describe(small)}: the attack loses its way, gradients are masked",
                    )
                )
    return found


def _setting(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("lambda", "lambda_threshold", "conditioning", "noise", "width"))


def _noise(rows: Sequence[Row]) -> list[Finding]:
    """Say of frozen noise that it is frozen."""
    lambdas = sorted({row["lambda"] for row in rows if row["noise"] == "frozen" and row["lambda"]})
    if not lambdas:
        return []
    return [
        Finding(
            "frozen-noise",
            f"at lambda {', '.join(f'{lam:g}' for lam in lambdas)} the noise is one frozen draw, which the attacker "
            "knows: robust accuracy is that of this deployed network, not of a defence that redraws (--noise redrawn)",
        )
    ]


@torch.no_grad()
def _right(network: Network, image: Tensor, label: Tensor) -> Tensor:
    return network(image).argmax(1) == label


def _blind(network: Network, image: Tensor, label: Tensor) -> float:
    """Share of correctly classified images without any gradient."""
    right = _right(network, image, label)
    if not right.any():
        return 0.0
    image, label = image[right], label[right]
    _, _, gradient = Victim(network).gradient(image, lambda logits: F.cross_entropy(logits, label, reduction="none"))
    return float((gradient.flatten(1).abs().amax(1) == 0).float().mean())


def describe(row: Row) -> str:
    """A row's setting in parentheses, or nothing where the method has none."""
    parts = [] if row["lambda"] is None else [f"lambda {row['lambda']:g}"]
    if row["lambda_threshold"]:
        parts.append(f"threshold {row['lambda_threshold']:g}")
    if row["width"] not in (None, 1):
        parts.append(f"width {row['width']:g}")
    return f" ({', '.join(parts)})" if parts else ""


def _best(robust: Mapping[str, float]) -> str:
    name = min(robust, key=lambda name: robust[name])
    return f"{name} leaves {robust[name]:.3f} robust accuracy"


def _tolerance(n: int) -> float:
    return max(TOLERANCE, 2 / n)
