"""What the output `cpl` (N,) of a file means: whether the network's layers agree on an image, in [-1, 1].

Which library answers at a lambda is decided at boundaries between the lambdas that libraries were built at: where batch
norms switch between two of them, there; else half way. A lambda above a boundary belongs to the upper one.

An image whose CPL is below a threshold is doubtful. The threshold was chosen on held-out clean images, of which a
stated share lies below it, at each of the lambdas; one metadata property says so:

    deploytool.library    {"name": "digits", "recipe": "5f0c...", "layers": ["layer1", "logits"], "active": 8,
                           "lambdas": [0.0, 1.0], "switch_at": 0.0,
                           "calibration": [{"threshold": 0.7, "false_alarm_rate": 0.05, "images": 180}, ...]}

The threshold is that of the float32 network; INT8 networks' activity differs by rounding, and so may their rate.

Reference: J. H. Lee, Library network, a possible path to explainable neural networks, 2019 ("paper 4"), eq. 5.
"""

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from deploytool.models.setting import as_single
from deploytool.runtime.notes import check_keys, read_note

CPL, LIBRARY = "cpl", "deploytool.library"
MAX_CHARACTERS = 1 << 16  # of the property, before it is read
MAX_LAYERS, MAX_LAMBDAS, MAX_ACTIVE = 64, 16, 1024
MAX_TEXT = 400
MAX_IMAGES = 1 << 40
LARGEST = 2.0  # magnitude of a threshold: beyond every CPL
SLACK = 1e-4  # by which rounding may take a CPL out of [-1, 1]

Array = np.ndarray[Any, Any]


def boundaries(lambdas: Sequence[float], switch_at: float | None) -> list[float]:
    """What lies between each two neighbours.

    Args:
        lambdas: in [0, 1], ascending.
        switch_at: the lambda above which batch norms are others; None where they interpolate.
    """
    return [
        switch_at if switch_at is not None and low <= switch_at < high else (low + high) / 2
        for low, high in pairwise(lambdas)
    ]


def choose(lambdas: Sequence[float], lam: float | None, switch_at: float | None) -> int:
    """The index of the lambda that answers for `lam`; the first where there is none."""
    if lam is None:
        return 0
    return bisect_left([as_single(each) for each in boundaries(lambdas, switch_at)], as_single(lam))


@dataclass(frozen=True)
class Calibration:
    """A threshold of CPL.

    Attributes:
        threshold: images of a CPL below it are doubtful.
        false_alarm_rate: the share of clean images that it was chosen for, in (0, 1).
        images: how many held-out clean images it was chosen on.
    """

    threshold: float
    false_alarm_rate: float
    images: int


@dataclass(frozen=True)
class LibraryNote:
    """Where the CPL of a file comes from, and what is doubtful.

    Attributes:
        name, recipe: name and digest of the libraries' recipe.
        layers: their titles, at least two.
        active: k of eq. 3.
        lambdas: those that thresholds were chosen at, ascending; none of a file that takes no lambda.
        switch_at: the file's lambda threshold where its batch norms switch; None elsewhere.
        calibration: for each of the lambdas, or one where there are none.
    """

    name: str
    recipe: str
    layers: tuple[str, ...]
    active: int
    lambdas: tuple[float, ...]
    switch_at: float | None
    calibration: tuple[Calibration, ...]

    def threshold(self, lam: float | None = None, lambda_threshold: float | None = None) -> float:
        """The threshold at a lambda.

        Args:
            lam: lambda in [0, 1]; None where the file takes none.
            lambda_threshold: used instead of the file's own.
        """
        if self.switch_at is None or lambda_threshold is None:
            lambda_threshold = self.switch_at
        return self.calibration[choose(self.lambdas, lam, lambda_threshold)].threshold

    def doubtful(
        self, cpl: Array, lam: float | None = None, lambda_threshold: float | None = None
    ) -> npt.NDArray[np.bool_]:
        """Which images are doubtful, (N,) bool, of their CPL (N,); else as `threshold`."""
        return np.asarray(cpl, np.float64) < self.threshold(lam, lambda_threshold)

    def to_properties(self) -> dict[str, str]:
        """The metadata property."""
        return {LIBRARY: json.dumps(asdict(self), allow_nan=False)}


@dataclass(frozen=True)
class Doubt:
    """Whether an answer is to be doubted.

    Attributes:
        cpl: in [-1, 1].
        threshold: below which it is doubtful.
    """

    cpl: float
    threshold: float

    @property
    def doubtful(self) -> bool:
        """Whether the layers agree less than they should."""
        return self.cpl < self.threshold

    @property
    def words(self) -> str:
        """The verdict in words: "doubtful: layers agree at 0.412, below 0.703"."""
        word, relation = ("doubtful", "below") if self.doubtful else ("consistent", "not below")
        return f"{word}: layers agree at {self.cpl:.3f}, {relation} {self.threshold:.3f}"

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON: `cpl`, `cpl_threshold`, `doubtful`."""
        return {"cpl": self.cpl, "cpl_threshold": self.threshold, "doubtful": self.doubtful}


def read_library(properties: Mapping[str, str]) -> LibraryNote | None:
    """Read the metadata property, which may be hostile; None where there is none.

    Raises:
        ValueError: it is not as the module says, in one line.
    """
    document = read_note(properties, LIBRARY, MAX_CHARACTERS, LibraryNote)
    if document is None:
        return None
    if not all(_is_text(document[key]) for key in ("name", "recipe")):
        raise ValueError(f"name and recipe of a library must be 1 to {MAX_TEXT} printable characters each")
    layers, lambdas, found = (_listed(document, key) for key in ("layers", "lambdas", "calibration"))
    if not 2 <= len(layers) <= MAX_LAYERS or not all(map(_is_text, layers)):
        raise ValueError(f"library must have 2 to {MAX_LAYERS} layers, of 1 to {MAX_TEXT} printable characters each")
    active, switch_at = document["active"], document["switch_at"]
    if type(active) is not int or not 1 <= active <= MAX_ACTIVE:
        raise ValueError(f"active of a library must be in 1..{MAX_ACTIVE}")
    if switch_at is not None and not _is_number(switch_at, 0, 1):
        raise ValueError("switch_at of a library is outside [0, 1]")
    if len(lambdas) > MAX_LAMBDAS or not all(_is_number(each, 0, 1) for each in lambdas):
        raise ValueError(f"library must have at most {MAX_LAMBDAS} lambdas in [0, 1]")
    if lambdas != sorted(set(lambdas)):
        raise ValueError("lambdas of a library must ascend")
    if len(found) != max(1, len(lambdas)):
        raise ValueError(f"library has {len(found)} thresholds for {len(lambdas)} lambdas")
    calibration = tuple(map(_read_calibration, found))
    return LibraryNote(
        document["name"],
        document["recipe"],
        tuple(layers),
        active,
        tuple(map(float, lambdas)),
        None if switch_at is None else float(switch_at),
        calibration,
    )


def _read_calibration(document: Any) -> Calibration:
    check_keys("calibration", document, Calibration)
    threshold, rate, images = (document[field.name] for field in fields(Calibration))
    if not _is_number(threshold, -LARGEST, LARGEST):
        raise ValueError(f"threshold of a library is outside [-{LARGEST:g}, {LARGEST:g}]")
    if not _is_number(rate, 0, 1) or type(images) is not int or not 1 <= images <= MAX_IMAGES:
        raise ValueError("false alarm rate or images of a library are out of range")
    return Calibration(float(threshold), float(rate), images)


def _listed(document: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(document[key], list):
        raise ValueError(f"{key} of a library must be a list")
    return document[key]  # type: ignore[no-any-return]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MAX_TEXT and value.isprintable()


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high  # also false for NaN


def is_cpl(output: onnx.ValueInfoProto) -> bool:
    """Whether an output is one number for each image: (N,) float32."""
    kind = output.type.tensor_type
    return kind.elem_type == onnx.TensorProto.FLOAT and kind.HasField("shape") and len(kind.shape.dim) == 1
