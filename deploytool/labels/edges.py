"""Statements of ConceptNet 5 turned into labels: what the dump and the REST API share."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from deploytool.errors import InputError
from deploytool.labels.gathering import Gathering
from deploytool.labels.label_map import MAX_WEIGHT, Label, clean, is_text
from deploytool.labels.relations import BACKWARDS, RELATIONS
from deploytool.labels.subjects import Subjects

Take = Callable[[str, str, str, dict[str, Any]], object]
"""What readers call with each statement: relation, start, end, and what is known about it."""

MAX_SYNONYMS = 1000  # of one class
NO_NOUNS = ("v", "a", "s", "r")  # parts of speech of a node: verb, adjective (two kinds), adverb


class BadEdgeError(ValueError):
    """A statement that is not as ConceptNet writes them; the message says why."""


class Node(NamedTuple):
    """A node such as /c/en/dog/n/wn/animal: the word "dog", part of speech "n"; the sense is not used."""

    language: str
    text: str
    part: str


class Edges:
    """Takes statements that have a class at either end; both ends in one language.

    A class is a thing: nodes that are marked as verb, adjective or adverb do not stand for it (to ship, to bird).

    Args:
        gathering: receives the labels.
        language: code as in /c/en/.

    Raises:
        InputError: the language is no such code.
    """

    def __init__(self, gathering: Gathering, language: str = "en") -> None:
        check_language(language)
        self.gathering = gathering
        self.language = language
        self._index = gathering.subjects.by_name()

    def take(self, relation: str, start: str, end: str, about: Mapping[str, Any]) -> None:
        """Add the labels that "start RELATION end" gives.

        Args:
            relation: such as "/r/IsA"; others than the nine say nothing.
            start, end: such as "/c/en/dog/n".
            about: `weight`, and where known `dataset` and `license`.

        Raises:
            BadEdgeError: a part is not as it must be.
        """
        name = relation.removeprefix("/r/")
        if name not in RELATIONS:
            return
        first, second = node(start), node(end)
        if first is None or second is None or {first.language, second.language} != {self.language}:
            return
        weight = _weight(about.get("weight"))
        source, licence = _known(about.get("dataset")), _known(about.get("license"))
        for subject in self._classes(first):
            self.gathering.add(subject, Label(second.text, name, weight, source, licence))
        if name in BACKWARDS:
            for subject in self._classes(second):
                self.gathering.add(subject, Label(first.text, BACKWARDS[name], weight, source, licence, "reverse"))

    def _classes(self, ends: Node) -> tuple[str, ...]:
        return () if ends.part in NO_NOUNS else self._index.get(ends.text, ())


def synonyms_of(relation: str, start: str, end: str, subjects: Subjects, language: str) -> list[tuple[str, str]]:
    """Pairs (class, another name) that a statement of /r/Synonym gives, which reads both ways; else none.

    Raises:
        BadEdgeError: a node is not as it must be.
    """
    if relation != "/r/Synonym":
        return []
    first, second = node(start), node(end)
    if first is None or second is None or {first.language, second.language} != {language}:
        return []
    if first.part in NO_NOUNS or second.part in NO_NOUNS:
        return []
    own = {names[0]: name for name, names in subjects.names.items()}
    pairs = ((first, second), (second, first))
    return [(own[one.text], other.text) for one, other in pairs if one.text in own and one.text != other.text]


def add_synonyms(found: dict[str, list[str]], pairs: Iterable[tuple[str, str]]) -> None:
    """Add pairs (class, another name) to class -> names; a name once."""
    for name, other in pairs:
        if other not in found[name] and len(found[name]) < MAX_SYNONYMS:
            found[name].append(other)


def node(uri: str) -> Node | None:
    """Take a node's URI apart; None for what is no word, such as a web address.

    Raises:
        BadEdgeError: it starts as a word does and has none, or one that no label can be.
    """
    if not uri.startswith("/c/"):
        return None
    _, _, language, *rest = uri.split("/", 5)
    text = clean(rest[0]) if rest else ""
    if not is_text(text):
        raise BadEdgeError(f"node {uri[:60]!r} has no word of at most 200 printable characters")
    return Node(language, text, rest[1] if len(rest) > 1 else "")


def check_language(language: str) -> None:
    """Refuse what is no language code.

    Raises:
        InputError: see above.
    """
    if not (1 < len(language) <= 12 and language.isascii() and language.replace("_", "").replace("-", "").isalnum()):
        raise InputError(f"language (={language[:40]!r}) must be a code that ConceptNet uses, such as en, de, zh")


def _weight(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_WEIGHT:
        weight = float(value)
        if math.isfinite(weight):
            return weight
    raise BadEdgeError(f"weight (={str(value)[:40]}) is no number in [0, {MAX_WEIGHT:g}]")


def _known(value: Any) -> str | None:
    return value if isinstance(value, str) and is_text(value) else None
