"""The label map: which reasoning labels go with each class (paper 1, section 3.2)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deploytool.errors import LabelError
from deploytool.labels.relations import RELATIONS

MAX_TEXT = 200  # characters of a label, a class name or a note on where a label comes from
MAX_WEIGHT = 1e9


class EqualVectorsWarning(UserWarning):
    """Classes of a label map have the same vector: their reasons cannot tell them apart."""


@dataclass(frozen=True, slots=True)
class Label:
    """One reasoning label of a class.

    Attributes:
        label: lower case, single spaces, as in "four legs".
        relation: one of `RELATIONS`, read "class RELATION label"; None where a person did not say.
        weight: how sure the source is, in [0, 1e9]; ConceptNet's scale, on which 1 is one source's plain statement.
        source: where it was found, as "/d/wordnet/3.1".
        licence: of the source, as "cc:by-sa/4.0".
        direction: "reverse" where the source says it of the label, as in "wheel PartOf car" for car HasA wheel.

    Raises:
        LabelError: a value is not as above.
    """

    label: str
    relation: str | None = None
    weight: float = 1.0
    source: str | None = None
    licence: str | None = None
    direction: Literal["forward", "reverse"] = "forward"

    def __post_init__(self) -> None:
        if self.label != clean(self.label) or not is_text(self.label):
            raise LabelError(
                f"label (={self.label[: MAX_TEXT + 1]!r}) must be 1 to {MAX_TEXT} printable characters in lower case"
            )
        if self.relation is not None and self.relation not in RELATIONS:
            raise LabelError(f"relation (={self.relation!r}) must be one of {', '.join(RELATIONS)}")
        if not 0 <= self.weight <= MAX_WEIGHT:
            raise LabelError(f"weight (={self.weight!r}) of {self.label} must be in [0, {MAX_WEIGHT:g}]")
        if self.direction not in ("forward", "reverse"):
            raise LabelError(f"direction (={self.direction!r}) must be forward or reverse")
        for name, text in (("source", self.source), ("licence", self.licence)):
            if text is not None and not is_text(text):
                raise LabelError(f"{name} of {self.label} must be 1 to {MAX_TEXT} printable characters")

    def to_dict(self) -> dict[str, Any]:
        """Return the label as JSON; `label`, `relation` and `weight` always, the rest where known."""
        document: dict[str, Any] = {"label": self.label, "relation": self.relation, "weight": self.weight}
        if self.direction == "reverse":
            document["direction"] = self.direction
        return document | {
            name: text for name, text in (("source", self.source), ("licence", self.licence)) if text is not None
        }


class LabelMap(Mapping[str, tuple[Label, ...]]):
    """Class name -> its reasoning labels, classes in the order given.

    Args:
        classes: at least one label for each class, none twice.
        source: names the map in messages, as "cifar10.yaml".

    Raises:
        LabelError: there is no class, or a class has no label, or one twice.
    """

    def __init__(self, classes: Mapping[str, Sequence[Label]], source: str = "label map") -> None:
        self.source = source
        self._classes = {name: tuple(labels) for name, labels in classes.items()}
        if not self._classes:
            raise LabelError(f"{source} has no classes; give at least one, as in panda: [animal, paws]")
        for name, labels in self._classes.items():
            if not is_text(name):
                raise LabelError(f"{source}: class (={name[:100]!r}) must be 1 to {MAX_TEXT} printable characters")
            if not labels:
                raise LabelError(f"{source}: class {name} has no labels; give it at least one, or leave it out")
            seen: set[str] = set()
            for label in labels:
                if label.label in seen:
                    raise LabelError(f"{source}: class {name} has label {label.label!r} twice; remove one")
                seen.add(label.label)

    def __getitem__(self, name: str) -> tuple[Label, ...]:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    @property
    def labels(self) -> tuple[str, ...]:
        """All R labels, each once: in the order of the classes, then of each class's labels."""
        return tuple(dict.fromkeys(label.label for labels in self._classes.values() for label in labels))

    def vectors(self) -> npt.NDArray[np.uint8]:
        """Return the classes' vectors (K, R) uint8: 1 where the class of the row has the label of the column.

        Rows are in the order of the classes, columns in the order of `labels`. This is r of paper 1, section 3.2. Equal
        rows are told where a map is read, by `equal_lines`, not here.
        """
        column = {label: index for index, label in enumerate(self.labels)}
        matrix = np.zeros((len(self), len(column)), np.uint8)
        for row, labels in enumerate(self._classes.values()):
            matrix[row, [column[label.label] for label in labels]] = 1
        return matrix

    def equal_vectors(self) -> list[tuple[str, ...]]:
        """Groups of two or more classes that have the same labels, in the order of the classes."""
        groups: dict[frozenset[str], list[str]] = {}
        for name, labels in self._classes.items():
            groups.setdefault(frozenset(label.label for label in labels), []).append(name)
        return [tuple(names) for names in groups.values() if len(names) > 1]

    def equal_lines(self) -> list[str]:
        """One line for each group of `equal_vectors`: which classes, and what to do."""
        return [
            f"{self.source}: classes {enumerated(names)} have the same labels, so that reasons cannot tell them apart; "
            "give each a label that the others lack"
            for names in self.equal_vectors()
        ]

    def for_classes(self, names: Sequence[str]) -> "LabelMap":
        """Return the map with its classes in the order of `names`, a data set's or a model's.

        Raises:
            LabelError: the map is for other classes.
        """
        lacking = [name for name in names if name not in self._classes]
        unknown = [name for name in self._classes if name not in set(names)]
        if lacking or unknown:
            problems = [f"it lacks {enumerated(lacking)}"] * bool(lacking)
            problems += [f"nobody asks for its {enumerated(unknown)}"] * bool(unknown)
            raise LabelError(
                f"{self.source} is for other classes: {' and '.join(problems)}; "
                f"give a label map for exactly {enumerated(names)}"
            )
        return LabelMap({name: self._classes[name] for name in names}, self.source)

    def top(self, count: int) -> "LabelMap":
        """Return the map with the first `count` labels of each class, or as many as it has."""
        return LabelMap({name: labels[:count] for name, labels in self._classes.items()}, self.source)

    def short_lines(self, count: int) -> list[str]:
        """One line that names the classes with fewer than `count` labels; none where all have as many."""
        few = [f"{name} ({len(labels)})" for name, labels in self._classes.items() if len(labels) < count]
        return [f"fewer than {count} labels for {enumerated(few)}"] if few else []

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return class -> labels as JSON."""
        return {name: [label.to_dict() for label in labels] for name, labels in self._classes.items()}


def clean(text: str) -> str:
    """Lower case, underscores and runs of white space to single spaces."""
    return " ".join(text.replace("_", " ").lower().split())


def is_text(text: str) -> bool:
    """Whether a text has 1 to 200 characters, all of them printable."""
    return 0 < len(text) <= MAX_TEXT and text.isprintable() and not text.isspace()


def weight_of(value: Any) -> float:
    """Return a weight as float.

    Raises:
        ValueError: it is no number in [0, 1e9].
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"weight (={str(value)[:40]!r}) must be a number")
    try:
        weight = float(value)
    except (ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(f"weight (={str(value)[:40]}) must be a number in [0, {MAX_WEIGHT:g}]")
    return weight


def enumerated(names: Sequence[str], most: int = 10) -> str:
    """Names separated by commas; after `most` of them, how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
