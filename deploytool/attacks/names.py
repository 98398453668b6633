"""Names of evaluation attacks: which exist, what is likely meant, which need no gradient. No torch here.

    fgsm   pgd-K   deepfool   cw   square   apgd-ce   apgd-dlr   apgd-t   fab-t   autoattack   autoattack-rand
    consistent-K

K is the number of steps. All but `deepfool` and `cw`, which measure in L2 anyway, are L-infinity attacks, and their
L2 versions with `-l2` appended: `pgd-20-l2`. Behind a colon follow fields of the budget: `pgd-20:restarts=5,eps=4/255`.
PGD, Square and Carlini-Wagner are targeted with `pgd-20:target=random`, `next` (class) or `least-likely`.
`consistent-K` attacks networks with reasoning labels: a wrong class is not enough, its reasons must be accepted too.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from deploytool.errors import InputError

Norm = Literal["linf", "l2"]

MAX_STEPS = 9999
BOTH_NORMS = ("fgsm", "square", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "autoattack", "autoattack-rand")
L2_ALONE = ("deepfool", "cw")
BLACK_BOX = ("square",)
MINIMAL = ("deepfool", "cw", "fab-t")

STEPPED = ("pgd", "consistent")
REASONED = ("consistent",)

ATTACK_PATTERN = rf"^((({'|'.join(STEPPED)})-[1-9][0-9]{{0,3}}|{'|'.join(BOTH_NORMS)})(-l2)?|{'|'.join(L2_ALONE)})$"
KNOWN = ", ".join(
    ["fgsm", "pgd-K with K steps in 1..9999", "consistent-K", *BOTH_NORMS[1:5], *L2_ALONE, *BOTH_NORMS[5:]]
)


@dataclass(frozen=True)
class AttackName:
    """What a name says.

    Attributes:
        kind: the name without number and norm, as in `pgd`.
        norm: in which the perturbation is measured.
        steps: K of `pgd-K` and `consistent-K`, else None.
    """

    kind: str
    norm: Norm
    steps: int | None = None

    @property
    def black_box(self) -> bool:
        """Whether the attack needs logits alone, so that an ONNX file can be attacked."""
        return self.kind in BLACK_BOX

    @property
    def minimal(self) -> bool:
        """Whether the attack looks for the smallest perturbation rather than for any within a radius."""
        return self.kind in MINIMAL

    @property
    def reasoned(self) -> bool:
        """Whether the attack needs reasoning labels: its goal is a wrong answer that is accepted."""
        return self.kind in REASONED


def parse_name(name: str) -> AttackName:
    """Read an attack's name.

    Raises:
        InputError: no attack has that name; the message holds the nearest one.
    """
    if not isinstance(name, str) or not re.fullmatch(ATTACK_PATTERN, name):
        raise InputError(f"attack (={str(name)[:40]!r}) is unknown{_advice(str(name)[:40])}; known: {KNOWN}")
    stem = name.removesuffix("-l2")
    norm: Norm = "l2" if stem != name or name in L2_ALONE else "linf"
    kind, _, steps = stem.rpartition("-")
    if kind in STEPPED:
        return AttackName(kind, norm, int(steps))
    return AttackName(stem, norm)


def split_name(text: str) -> tuple[str, str]:
    """The name and the options of `pgd-20:restarts=5`; the options are empty where there are none."""
    name, _, options = str(text).partition(":")
    return name, options


def is_reasoned(text: str) -> bool:
    """Whether an attack, named with or without options, is on class and reasoning labels together."""
    return parse_name(split_name(text)[0]).reasoned


def black_box_names() -> tuple[str, ...]:
    """Names of the attacks that need logits alone."""
    return (*BLACK_BOX, *(f"{name}-l2" for name in BLACK_BOX))


def _advice(name: str) -> str:
    stems = ["pgd-7", "pgd-20", "pgd-50", "consistent-20", *BOTH_NORMS]
    near = difflib.get_close_matches(name.lower().strip(), [*stems, *(f"{s}-l2" for s in stems), *L2_ALONE], 1, 0.6)
    return f", did you mean {near[0]}?" if near else ""
