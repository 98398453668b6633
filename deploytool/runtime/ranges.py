"""The activation ranges that a file carries, so that it can be made INT8 for any lambda without torch and without data.

The metadata property `deploytool.quantization` is one JSON document:

    {"version": 1,
     "images": 256,                        number of calibration images
     "tensors": ["div", "relu", ...],      names of the backbone's activations
     "sets": [                             one for each lambda threshold and width that the file can be run with
       {"lambda_threshold": 0.0,           null where the file's conditioning has none
        "width": 1.0,
        "lambdas": [0.0, 1e-06, 0.2, ...], ascending; [0.0] where the file takes no lambda
        "low": [[0, -1.25, ...], ...],     per tensor, per lambda
        "high": [[2.75, 3.5, ...], ...]}]}

Between two calibration lambdas a range is linear in lambda. Where lambda switches the batch norms at a threshold t,
both sides of the step are calibrated, t and t + `SWITCH_STEP`: a lambda above t never takes part of a range below it.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from deploytool.models.setting import as_single

QUANTIZATION = "deploytool.quantization"
PRECISION = "deploytool.precision"

SWITCH_STEP = 1e-6
LARGEST = 1e30
MAX_CHARACTERS, MAX_TENSORS, MAX_SETS, MAX_LAMBDAS, MAX_NAME = 1 << 24, 20_000, 64, 1024, 1024

Range = tuple[float, float]
Precision = Literal["int8", "float32"]


@dataclass(frozen=True)
class RangeSet:
    """The ranges at one lambda threshold and width.

    Attributes:
        lambda_threshold: None where the conditioning has none.
        width: the width multiplier.
        lambdas: where it was calibrated, ascending.
        low, high: per tensor, per lambda.
    """

    lambda_threshold: float | None
    width: float
    lambdas: tuple[float, ...]
    low: tuple[tuple[float, ...], ...]
    high: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Ranges:
    """All activation ranges of a file.

    Attributes:
        images: number of calibration images.
        tensors: names of the activations.
        sets: one for each lambda threshold and width.
    """

    images: int
    tensors: tuple[str, ...]
    sets: tuple[RangeSet, ...]

    def at(self, lam: float | None, lambda_threshold: float | None, width: float) -> dict[str, Range]:
        """Low and high of every tensor at a setting.

        Args:
            lam: lambda in [0, 1]; None where the file takes none.
            lambda_threshold: the one in force, the file's own or what is used instead; ignored without a switch.
            width: one of the file's.

        Raises:
            ValueError: there are no ranges for this threshold and width.
        """
        chosen = [s for s in self.sets if s.width == width and s.lambda_threshold in (None, lambda_threshold)]
        if not chosen:
            raise ValueError(f"no activation ranges for lambda threshold {lambda_threshold} and width {width:g}")
        at, threshold = as_single(lam or 0.0), chosen[0].lambda_threshold
        if threshold is not None and at > threshold:
            at = max(at, threshold + SWITCH_STEP)
        low, high = (
            [float(np.interp(at, chosen[0].lambdas, v)) for v in sides] for sides in (chosen[0].low, chosen[0].high)
        )
        return dict(zip(self.tensors, zip(low, high, strict=True), strict=True))

    def cover(self, thresholds: Sequence[float | None], widths: Sequence[float]) -> bool:
        """Whether there is exactly one set for each of these thresholds at each of these widths."""
        settings = sorted((str(each.lambda_threshold), each.width) for each in self.sets)
        return settings == sorted((str(threshold), width) for threshold in thresholds for width in widths)

    def to_json(self) -> str:
        """The metadata property."""
        sets = [
            {
                "lambda_threshold": each.lambda_threshold,
                "width": each.width,
                "lambdas": list(each.lambdas),
                "low": [[_short(value) for value in row] for row in each.low],
                "high": [[_short(value) for value in row] for row in each.high],
            }
            for each in self.sets
        ]
        document = {"version": 1, "images": self.images, "tensors": list(self.tensors), "sets": sets}
        return json.dumps(document, separators=(",", ":"), allow_nan=False)


def read_ranges(text: str) -> Ranges:
    """Read the metadata property.

    Raises:
        ValueError: it is not as the module says, in one line.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"quantization has {len(text)} characters; at most {MAX_CHARACTERS}")
    document = _mapping(json.loads(text), {"version", "images", "tensors", "sets"}, "quantization")
    if document["version"] != 1:
        raise ValueError(f"quantization version {str(document['version'])[:40]} is unknown")
    images = document["images"]
    if isinstance(images, bool) or not isinstance(images, int) or not 1 <= images <= 1 << 53:
        raise ValueError("quantization images must be a whole number from 1 up")
    tensors = _list(document["tensors"], "tensors", MAX_TENSORS)
    if not all(isinstance(name, str) and 0 < len(name) <= MAX_NAME for name in tensors):
        raise ValueError(f"quantization tensors must be names of at most {MAX_NAME} characters")
    if len(set(tensors)) < len(tensors):
        raise ValueError("quantization tensors has a name twice")
    sets = tuple(_read_set(each, len(tensors)) for each in _list(document["sets"], "sets", MAX_SETS))
    keys = [(each.lambda_threshold, each.width) for each in sets]
    if len(set(keys)) < len(keys):
        raise ValueError("quantization sets has a lambda threshold and width twice")
    return Ranges(images, tuple(tensors), sets)


def calibration_lambdas(wanted: Sequence[float], threshold: float | None) -> tuple[float, ...]:
    """Where to calibrate: the lambdas that are wanted, 0, 1, and both sides of the threshold; ascending."""
    sides = () if threshold is None else (threshold, threshold + SWITCH_STEP)
    return tuple(sorted({*map(float, wanted), 0.0, 1.0, *sides}))


def _read_set(value: Any, tensors: int) -> RangeSet:
    document = _mapping(value, {"lambda_threshold", "width", "lambdas", "low", "high"}, "sets")
    threshold = document["lambda_threshold"]
    lambdas = [_number(lam, "lambdas", 0, 1) for lam in _list(document["lambdas"], "lambdas", MAX_LAMBDAS)]
    if any(after <= before for before, after in itertools.pairwise(lambdas)):
        raise ValueError("quantization lambdas must ascend")
    sides: dict[str, tuple[tuple[float, ...], ...]] = {}
    for side in ("low", "high"):
        rows = _list(document[side], side, tensors)
        if len(rows) != tensors or not all(isinstance(row, list) and len(row) == len(lambdas) for row in rows):
            raise ValueError(f"quantization {side} must hold {len(lambdas)} numbers for each of {tensors} tensors")
        sides[side] = tuple(tuple(_number(v, side, -LARGEST, LARGEST) for v in row) for row in rows)
    if (np.array(sides["low"]) > np.array(sides["high"])).any():
        raise ValueError("quantization low must be at most high")
    return RangeSet(
        None if threshold is None else _number(threshold, "lambda_threshold", 0, 1),
        _number(document["width"], "width", 0, 1),
        tuple(lambdas),
        sides["low"],
        sides["high"],
    )


def _mapping(value: Any, keys: set[str], name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or set(value) != keys:
        raise ValueError(f"{name} must have the keys {', '.join(sorted(keys))}")
    return value


def _list(value: Any, name: str, longest: int) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= longest:
        raise ValueError(f"quantization {name} must be a list of 1 to {longest}")
    return value


def _number(value: Any, name: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"quantization {name} holds what is no number")
    if not (low <= value <= high and math.isfinite(value)):  # also false for NaN
        raise ValueError(f"quantization {name} holds {str(value)[:40]}, outside [{low:g}, {high:g}]")
    return float(value)


def _short(value: float) -> float | int:
    """Six digits are far finer than the steps of 8 bits; whole numbers lose their `.0`."""
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e6 else rounded
