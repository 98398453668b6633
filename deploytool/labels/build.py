"""One label map from one source: what `deploytool labels` asks for and prints."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploytool.errors import InputError
from deploytool.labels.conceptnet import labels_from_dump, synonyms_from_dump
from deploytool.labels.conceptnet_api import labels_from_api, synonyms_from_api
from deploytool.labels.fetching import Fetcher
from deploytool.labels.files import read_labels
from deploytool.labels.label_map import LabelMap
from deploytool.labels.subjects import Subjects
from deploytool.labels.wordnet import labels_from_wordnet


@dataclass(frozen=True)
class Wanted:
    """What to look up.

    Attributes:
        subjects: classes with their synonyms.
        per_class: labels of each class, at most.
        language: of ConceptNet's words.
        synonyms: take ConceptNet's synonyms of the classes as further names.
        strict: refuse malformed lines instead of skipping them.
        senses: class -> sense, for WordNet.
    """

    subjects: Subjects
    per_class: int = 20
    language: str = "en"
    synonyms: bool = False
    strict: bool = False
    senses: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A label map, how it was got, and what a person should know about it.

    Attributes:
        labels: the map.
        counts: as JSON: `lines`, `skipped`, `seconds` and what else the source says.
        notes: lines such as "fewer than 20 labels for ...".
    """

    labels: LabelMap
    counts: dict[str, Any]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON; `classes`, then R as `label_count`, then the counts."""
        return {"classes": self.labels.to_dict(), "label_count": len(self.labels.labels), **self.counts}


def from_conceptnet(file: Path, wanted: Wanted) -> Built:
    """Build a map from a dump of ConceptNet; see `labels_from_dump` for what it raises."""
    subjects, language, strict = wanted.subjects, wanted.language, wanted.strict
    if wanted.synonyms:
        subjects = subjects.with_synonyms(synonyms_from_dump(file, subjects, language, strict=strict))
    labels, counts = labels_from_dump(file, subjects, wanted.per_class, language, strict=strict)
    known = {"lines": counts.lines, "skipped": counts.skipped, "seconds": counts.seconds}
    known |= {"truncated": counts.ends_early is not None}
    return _built(labels, known | _names(wanted, subjects), counts.notes(file), wanted.per_class)


def from_api(fetcher: Fetcher, wanted: Wanted) -> Built:
    """Build a map from ConceptNet's REST API; see `labels_from_api` for what it raises."""
    subjects, language, strict = wanted.subjects, wanted.language, wanted.strict
    if wanted.synonyms:
        subjects = subjects.with_synonyms(synonyms_from_api(fetcher, subjects, language, strict=strict))
    labels, counts = labels_from_api(fetcher, subjects, wanted.per_class, language, strict=strict)
    known = {"lines": counts.lines, "skipped": counts.skipped, "seconds": counts.seconds, "pages": counts.pages}
    return _built(labels, known | _names(wanted, subjects), counts.notes(), wanted.per_class)


def from_wordnet(folder: Path, wanted: Wanted) -> Built:
    """Build a map from WordNet's data files; see `labels_from_wordnet` for what it raises."""
    labels, counts = labels_from_wordnet(folder, wanted.subjects, wanted.per_class, wanted.senses)
    known: dict[str, Any] = {"lines": counts.lines, "skipped": 0, "seconds": counts.seconds}
    known |= {"senses": {name: list(words) for name, words in counts.senses.items()}}
    return _built(labels, known, [], wanted.per_class)


def from_map(file: Path, classes: Sequence[str] | None, per_class: int | None) -> Built:
    """Read a map and check it: for these classes, if any are given; at most `per_class` labels of each.

    Raises:
        LabelError: it is no label map, or for other classes.
        InputError: `per_class` is below 1.
    """
    labels = read_labels(file)
    if classes:
        labels = labels.for_classes(classes)
    if per_class is not None:
        if per_class < 1:
            raise InputError(f"per-class (={per_class}) must be at least 1")
        labels = labels.top(per_class)
    return _built(labels, {}, [], per_class)


def _built(labels: LabelMap, counts: dict[str, Any], notes: list[str], per_class: int | None) -> Built:
    short = labels.short_lines(per_class) if per_class is not None else []
    advice = "; --synonym may find more" if counts else ""
    return Built(labels, counts, [*notes, *(line + advice for line in short), *labels.equal_lines()])


def _names(wanted: Wanted, subjects: Subjects) -> dict[str, Any]:
    """The names that --synonyms found, for a person to check; nothing without it."""
    return {"names": {name: list(names) for name, names in subjects.names.items()}} if wanted.synonyms else {}
