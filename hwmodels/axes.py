"""The axes of a sweep: their names, the values that each may take, and the command line's way of writing them."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hwmodels.errors import SweepError
from hwmodels.scaling import MAX_WIDTH

MAX_CONFIGURATIONS = 100_000
MAX_COUNT = 1 << 20  # multipliers or banks

Axes = dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Axis:
    """What one axis may hold: values in (0, `largest`], whole ones where `whole`."""

    largest: int
    whole: bool = False

    @property
    def allowed(self) -> str:
        """In words."""
        return f"a whole number in 1..{self.largest}" if self.whole else f"in (0, {self.largest}]"


# From the slowest to the fastest changing in a table: the network first, then the chip.
AXES: Mapping[str, Axis] = {
    "width": Axis(MAX_WIDTH),
    "density": Axis(1),
    "bits": Axis(64, whole=True),
    "n_bank": Axis(MAX_COUNT, whole=True),
    "n_mult": Axis(MAX_COUNT, whole=True),
}
ALIASES = {"b_w": "bits"}


def parse_axes(texts: Iterable[str]) -> Axes:
    """Read the values of `--sweep`.

    Each is `key=value,value,...`; a value may be a range `first:last:step`, last included. Several keys in one text
    are told apart by their `=`: `n_mult=64,128 n_bank=1,2`, with spaces, commas or semicolons between all of them.

    Raises:
        SweepError: as `check_axes`; or there is no key, a key twice, or something that is no number.
    """
    axes: dict[str, list[float]] = {}
    for text in texts:
        key = ""
        for token in re.split(r"[\s,;]+", re.sub(r"\s*=\s*", "=", text.strip())):
            name, separator, value = token.rpartition("=")
            if separator:
                key = _known(name)
                if key in axes:
                    raise SweepError(f"--sweep names {key} twice; give all of its values at once, as {key}=1,2")
                axes[key] = []
            if not key:
                raise SweepError(f"--sweep {text!r} must have the form key=value,value, as n_mult=64,128,175")
            if value:
                axes[key] += _values(key, value)
    return check_axes(axes)


def check_axes(axes: Mapping[str, Sequence[float]]) -> Axes:
    """The axes in the order of `AXES`, each value once, in the order given.

    Raises:
        SweepError: a key is unknown, a list is empty, a value is out of range, or there are too many configurations.
    """
    known = {_known(key): values for key, values in axes.items()}
    if not known:
        raise SweepError(f"there is nothing to sweep; give at least one of {', '.join(AXES)}")
    found = {key: _checked(key, known[key]) for key in AXES if key in known}
    check_number({key: len(values) for key, values in found.items()})
    return found


def check_number(lengths: Mapping[str, int]) -> None:
    """Refuse more than `MAX_CONFIGURATIONS`, with `SweepError`."""
    number = math.prod(lengths.values())
    if number > MAX_CONFIGURATIONS:
        sizes = " x ".join(f"{length:,} {key}" for key, length in lengths.items())
        raise SweepError(
            f"the sweep has {number:,} configurations ({sizes}), at most {MAX_CONFIGURATIONS:,}; leave out values, or "
            "take wider steps"
        )


def _known(name: str) -> str:
    key = ALIASES.get(name, name)
    if key in AXES:
        return key
    near = difflib.get_close_matches(name, [*AXES, *ALIASES], n=1)
    advice = f"did you mean {near[0]}? " if near else ""
    raise SweepError(f"--sweep {name!r} is unknown; {advice}known: {', '.join(AXES)}")


def _checked(key: str, values: Sequence[float]) -> tuple[float, ...]:
    axis = AXES[key]
    if not len(values):
        raise SweepError(f"--sweep {key} has no values; give some, as {key}=1,2 or {key}=1:8:1")
    for value in values:
        if not 0 < value <= axis.largest or (axis.whole and value != int(value)):
            raise SweepError(f"--sweep {key} (={value:.15g}) must be {axis.allowed}")
    return tuple(dict.fromkeys(int(value) if axis.whole else float(value) for value in values))


def _values(key: str, text: str) -> list[float]:
    """One number, or the numbers of a range."""
    parts = text.split(":")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2, 3) or not all(map(math.isfinite, numbers)):
        raise SweepError(f"--sweep {key} (={text}) must be a number, or a range as 32:512:32")
    if len(numbers) == 1:
        return numbers
    first, last, step = numbers if len(numbers) == 3 else [*numbers, 1.0]
    if step <= 0 or last < first:
        raise SweepError(f"--sweep {key} (={text}) must go up: first:last:step, the step positive")
    steps = math.floor(min((last - first) / step, 1e12) + 1e-9)
    check_number({key: steps + 1})
    return [round(first + index * step, 12) for index in range(steps + 1)]
