"""Technology profiles: constants with unit and source, as YAML files.

A profile holds times (for `hwmodels.delay`), energies (for `hwmodels.energy`), or both, and says what it cannot
answer. Names of constants carry their unit:

    b_w                          bits per weight and activation; every profile has it
    b_io, n_bank, n_mult, tau_read_ns, tau_mult_ns     times: all five or none
    mult_FORMAT_pj, add_FORMAT_pj                      energies of one operation; FORMAT is int8, fp16 and the like
    read_LEVEL_pj                                      energy of one 64-bit access to a memory, any name
"""

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from hwmodels.delay import Chip
from hwmodels.errors import ProfileError

FOLDER = Path(__file__).parent / "profiles"
MAX_PROFILE_BYTES = 1 << 20
TIMES = ("b_io", "n_bank", "n_mult", "tau_read_ns", "tau_mult_ns")
COUNTS = ("b_io", "b_w", "n_bank", "n_mult")
UNITS = {
    "b_io": "bit",
    "b_w": "bit",
    "n_bank": "memory banks",
    "n_mult": "multipliers",
    "tau_read_ns": "ns",
    "tau_mult_ns": "ns",
}
FORMATS = ("int4", "int8", "int16", "int32", "bf16", "fp16", "fp32", "fp64")
OPERATION = re.compile(rf"(mult|add)_({'|'.join(FORMATS)})_pj")
ACCESS = re.compile(r"read_([a-z0-9_]{1,40})_pj")
ACCESS_BITS = 64
LEVELS = ("weights_from", "activations_in")


@dataclass(frozen=True)
class Profile:
    """The constants of a technology, checked when it is built; `load_profile` reads one from a file.

    Attributes:
        name: of the profile.
        b_w: B_W, bits per weight, 1 to 64; activations have as many.
        b_io: B_IO, bits that one memory bank delivers per read; None, as the next four, in a profile without times.
        n_bank: N_bank, memory banks read in parallel.
        n_mult: N_mult, multipliers.
        tau_read_ns, tau_mult_ns: time of one read and of one multiplication, in ns.
        energies: energies by name; empty in a profile without.
        weights_from, activations_in: memory level (LEVEL of a `read_LEVEL_pj`) that holds weights and activations.
        remarks: what a reader must know to use the figures.
        sources: where each constant comes from.

    Raises:
        ProfileError: a constant is not positive and finite, a count is no integer, b_w is not in 1..64, times are
            incomplete, or a level has no energy.
    """

    name: str
    b_w: int
    b_io: int | None = None
    n_bank: int | None = None
    n_mult: int | None = None
    tau_read_ns: float | None = None
    tau_mult_ns: float | None = None
    energies: Mapping[str, float] = field(default_factory=dict)
    weights_from: str | None = None
    activations_in: str | None = None
    remarks: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for key, value in self.constants().items():
            allowed = "a positive integer" if key in COUNTS else "a positive number"
            kind = int if key in COUNTS else int | float
            if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value <= 2**40:
                raise ProfileError(f"{key} (={value}) must be {allowed} ({unit(key)}); see profile {self.name}")
        if self.b_w > 64:
            raise ProfileError(f"b_w (={self.b_w}) must be in 1..64 bit; 32 is float32, 8 is int8")
        missing = [key for key in TIMES if getattr(self, key) is None]
        if missing and (len(missing) < len(TIMES) or not self.energies):
            raise ProfileError(f"profile {self.name} lacks {', '.join(missing)}; add them with value, unit and source")
        self._check_levels()

    def _check_levels(self) -> None:
        levels = self.levels()
        for key in LEVELS if self.energies else ():
            level = getattr(self, key)
            if level not in levels:
                known = f"one of {', '.join(levels)}" if levels else "a level, which needs a constant read_LEVEL_pj"
                raise ProfileError(f"{key} (={level}) must be {known}; see profile {self.name}")

    def completed_by(self, other: "Profile") -> "Profile":
        """Return the profile with the times or energies that it lacks taken from another; `b_w` stays."""
        taken: dict[str, Any] = {}
        if self.b_io is None and other.b_io is not None:
            taken |= {key: getattr(other, key) for key in TIMES}
        if not self.energies and other.energies:
            taken |= {key: getattr(other, key) for key in ("energies", *LEVELS)}
        if not taken:
            return self
        return replace(
            self,
            **taken,
            name=f"{self.name}+{other.name}",
            remarks=self.remarks + other.remarks,
            sources={**other.sources, **self.sources},
        )

    def chip(self) -> Chip | None:
        """The constants of the delay model; None where the profile has no times."""
        if self.b_io is None:
            return None
        return Chip(self.b_io, self.b_w, self.n_bank, self.n_mult, self.tau_read_ns, self.tau_mult_ns)

    def levels(self) -> tuple[str, ...]:
        """Names of the memories whose access energy is known."""
        return tuple(found[1] for found in map(ACCESS.fullmatch, self.energies) if found)

    def constants(self) -> dict[str, float]:
        """All constants that the profile has, by name."""
        numbers = {key: getattr(self, key) for key in UNITS}
        return {key: value for key, value in numbers.items() if value is not None} | dict(self.energies)

    def settings(self) -> dict[str, float | str]:
        """The constants, and the memory levels in use."""
        return {**self.constants(), **{key: getattr(self, key) for key in LEVELS if getattr(self, key) is not None}}

    def to_dict(self) -> dict[str, Any]:
        """Name, settings and sources as JSON."""
        return {"name": self.name, **self.settings(), "sources": dict(self.sources)}

    def override(self, values: Mapping[str, str | float]) -> "Profile":
        """Return the profile with some constants replaced or added; strings are read as numbers.

        `weights_from` and `activations_in` take the name of a memory level.

        Raises:
            ProfileError: a key is unknown, or a value is not physical.
        """
        changes: dict[str, Any] = {}
        energies = dict(self.energies)
        for key, value in values.items():
            if key in LEVELS:
                changes[key] = str(value)
            elif key in UNITS:
                changes[key] = _number(key, value)
            elif key in energies or OPERATION.fullmatch(key):
                energies[key] = _number(key, value)
            else:
                raise ProfileError(_unknown(key, [*UNITS, *LEVELS, *energies]))
        sources = {**self.sources, **dict.fromkeys(values, "set by the caller")}
        return replace(self, **changes, energies=energies, sources=sources)


def unit(key: str) -> str | None:
    """The unit that a constant has; None for a name that is no constant."""
    if OPERATION.fullmatch(key):
        return "pJ"
    return f"pJ per {ACCESS_BITS} bit" if ACCESS.fullmatch(key) else UNITS.get(key)


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with the package, in order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_profile(name: str | os.PathLike[str]) -> Profile:
    """Load a profile by the name of a shipped one, or from a YAML file (a path with a suffix or a separator).

    Raises:
        ProfileError: no such profile, or a constant is missing, unknown, not physical, or without unit and source.
    """
    text = os.fspath(name)
    if re.fullmatch(r"[A-Za-z0-9_-]+", text):
        file = FOLDER / f"{text}.yaml"
        shipped = shipped_profiles()
        if text not in shipped:
            near = difflib.get_close_matches(text.lower(), shipped, n=1)
            advice = f"did you mean {near[0]}? " if near else ""
            known = ", ".join(shipped)
            raise ProfileError(f"profile (={text!r}) is unknown; {advice}shipped: {known}; or give a YAML file's path")
    else:
        file = Path(text)
    try:
        if file.stat().st_size > MAX_PROFILE_BYTES:
            raise ProfileError(f"profile {file} has {file.stat().st_size} bytes; at most {MAX_PROFILE_BYTES}")
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"profile {file} cannot be read: {error.strerror}; give the path of a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: impossible dates, and what is no UTF-8
        raise ProfileError(f"profile {file} is no valid YAML") from None
    return _from_document(document, file)


def _from_document(document: Any, file: Path) -> Profile:
    constants = document.get("constants") if isinstance(document, dict) else None
    if not isinstance(constants, dict):
        raise ProfileError(f"profile {file} must have a mapping `constants`")
    keys = ("name", "description", "constants", "remarks", *LEVELS)
    for key in document:
        if key not in keys:
            raise ProfileError(f"profile {file}: {_unknown(str(key), keys)}")
    values = {str(key): _constant(str(key), entry, file) for key, entry in constants.items()}
    if "b_w" not in values:
        raise ProfileError(f"profile {file} lacks b_w; add it with value, unit and source")
    remarks = document.get("remarks", [])
    if not isinstance(remarks, list) or not all(isinstance(remark, str) for remark in remarks):
        raise ProfileError(f"profile {file}: remarks must be a list of texts")
    known = {item.name for item in fields(Profile)}
    levels: dict[str, Any] = {key: str(document[key]) for key in LEVELS if key in document}
    return Profile(
        name=str(document.get("name", file.stem)),
        **{key: value for key, value in values.items() if key in known},
        energies={key: value for key, value in values.items() if key not in known},
        **levels,
        remarks=tuple(" ".join(remark.split()) for remark in remarks),
        sources={str(key): " ".join(str(entry["source"]).split()) for key, entry in constants.items()},
    )


def _constant(key: str, entry: Any, file: Path) -> Any:
    """The value of one entry of a file, once its name, unit and source have been looked at."""
    if unit(key) is None:
        operations = [f"{operation}_{name}_pj" for operation in ("mult", "add") for name in FORMATS]
        patterns = f"mult_FORMAT_pj, add_FORMAT_pj (FORMAT: {', '.join(FORMATS)}), read_LEVEL_pj"
        raise ProfileError(f"profile {file}: {_unknown(key, [*UNITS, *operations], [*UNITS, patterns])}")
    if not isinstance(entry, dict) or not {"value", "unit", "source"} <= set(entry):
        raise ProfileError(f"profile {file}: {key} must have value, unit and source")
    if entry["unit"] != unit(key):
        raise ProfileError(f"profile {file}: {key} has unit {entry['unit']!r}; it must be {unit(key)!r}")
    if not isinstance(entry["source"], str) or not entry["source"].strip():
        raise ProfileError(f"profile {file}: the source of {key} is empty; say where its value comes from")
    return _number(key, entry["value"])


def _unknown(key: str, known: Sequence[str], shown: Sequence[str] = ()) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    advice = f"did you mean {near[0]}? " if near else ""
    return f"{key!r} is unknown; {advice}known: {', '.join(shown or known)}"


def _number(key: str, value: Any) -> Any:
    """Read a number; counts must be whole, so that 4.0 is 4 and 4.5 is refused."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ProfileError(f"{key} (={value}) must be a number ({unit(key)})")
    return int(number) if key in COUNTS and number.is_integer() else number
