"""Technology profiles: constants with unit and source, as YAML files."""

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from hwmodels.errors import ProfileError

FOLDER = Path(__file__).parent / "profiles"
MAX_PROFILE_BYTES = 1 << 20
COUNTS = ("b_io", "b_w", "n_bank", "n_mult")
UNITS = {
    "b_io": "bit",
    "b_w": "bit",
    "n_bank": "memory banks",
    "n_mult": "multipliers",
    "tau_read_ns": "ns",
    "tau_mult_ns": "ns",
}


@dataclass(frozen=True)
class Profile:
    """The constants of the delay model (paper 5, eqs. 7 to 9), checked when it is built.

    Attributes:
        name: of the profile.
        b_io: B_IO, bits that one memory bank delivers per read.
        b_w: B_W, bits per weight, 1 to 64.
        n_bank: N_bank, memory banks read in parallel.
        n_mult: N_mult, multipliers.
        tau_read_ns, tau_mult_ns: time of one read and of one multiplication, in ns.

    Raises:
        ProfileError: a constant is not positive and finite, a count is no integer, or b_w is not in 1..64.
    """

    name: str
    b_io: int
    b_w: int
    n_bank: int
    n_mult: int
    tau_read_ns: float
    tau_mult_ns: float

    def __post_init__(self) -> None:
        for key in UNITS:
            value = getattr(self, key)
            allowed = "a positive integer" if key in COUNTS else "a positive number"
            kind = int if key in COUNTS else int | float
            if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value <= 2**40:
                raise ProfileError(f"{key} (={value}) must be {allowed} ({UNITS[key]}); see profile {self.name}")
        if self.b_w > 64:
            raise ProfileError(f"b_w (={self.b_w}) must be in 1..64 bit; 32 is float32, 8 is int8")

    def constants(self) -> dict[str, float]:
        """The constants by name."""
        return {key: value for key, value in asdict(self).items() if key != "name"}

    def override(self, values: Mapping[str, str | float]) -> "Profile":
        """Return the profile with some constants replaced; strings are read as numbers.

        Raises:
            ProfileError: a key is unknown, or a value is not physical.
        """
        return replace(self, **{_known(key): _number(key, value) for key, value in values.items()})


def load_profile(name: str | os.PathLike[str]) -> Profile:
    """Load a profile by the name of a shipped one, or from a YAML file (a path with a suffix or a separator).

    Raises:
        ProfileError: no such profile, or a constant is missing, unknown, not physical, or without unit and source.
    """
    text = os.fspath(name)
    if re.fullmatch(r"[a-z0-9-]+", text):
        file = FOLDER / f"{text}.yaml"
        if not file.is_file():
            shipped = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
            raise ProfileError(f"profile (={text!r}) is unknown; shipped: {shipped}; or give the path of a YAML file")
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
    values = {}
    for key, entry in constants.items():
        _known(str(key))
        if not isinstance(entry, dict) or not {"value", "unit", "source"} <= set(entry):
            raise ProfileError(f"profile {file}: {key} must have value, unit and source")
        if entry["unit"] != UNITS[key]:
            raise ProfileError(f"profile {file}: {key} has unit {entry['unit']!r}; it must be {UNITS[key]!r}")
        values[str(key)] = _number(str(key), entry["value"])
    missing = [key for key in UNITS if key not in values]
    if missing:
        raise ProfileError(f"profile {file} lacks {', '.join(missing)}; add them with value, unit and source")
    return Profile(name=str(document.get("name", file.stem)), **values)


def _known(key: str) -> str:
    if key not in UNITS:
        near = difflib.get_close_matches(key, UNITS, n=1)
        advice = f"did you mean {near[0]}? " if near else ""
        raise ProfileError(f"constant {key!r} is unknown; {advice}known: {', '.join(sorted(UNITS))}")
    return key


def _number(key: str, value: Any) -> Any:
    """Read a number; counts must be whole, so that 4.0 is 4 and 4.5 is refused."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ProfileError(f"{key} (={value}) must be a number ({UNITS[key]})")
    return int(number) if key in COUNTS and number.is_integer() else number
