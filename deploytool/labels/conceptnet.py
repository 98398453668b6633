"""Labels from a dump of ConceptNet 5's assertions, streamed.

The dump has one statement a line: URI, relation, start, end and JSON, separated by tabs. Of each line, the five columns
are checked, the relation's form and the JSON's first and last character; lines that have a class at one end are
checked whole. Most lines are done with after one split and one look-up, which is what makes it fast.

Source: Speer, Chin and Havasi, "ConceptNet 5.5: An Open Multilingual Graph of General Knowledge", AAAI 2017. The dump
is licensed CC BY-SA 4.0; each label keeps the licence of its own statement.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploytool.errors import LabelError
from deploytool.labels.edges import BadEdgeError, Edges, Take, add_synonyms, check_language, synonyms_of
from deploytool.labels.gathering import Gathering
from deploytool.labels.label_map import LabelMap
from deploytool.labels.lines import EndsEarlyError, read_lines, size_in_blocks
from deploytool.labels.relations import RELATIONS
from deploytool.labels.subjects import Subjects
from deploytool.progress import progress_bar

TAB = b"\t"


@dataclass(frozen=True)
class Counts:
    """How much of a dump was read.

    Attributes:
        lines: all lines, the skipped ones too.
        skipped: lines that are no statements of ConceptNet.
        seconds: it took.
        first_skipped: number of the first such line and what is wrong with it, as "line 7: ..."; None without one.
        ends_early: why the file could not be read to its end; None where it could.
    """

    lines: int
    skipped: int
    seconds: float
    first_skipped: str | None = None
    ends_early: str | None = None

    def notes(self, file: Path) -> list[str]:
        """Lines for a person: what was skipped, and that the file ends early."""
        notes = []
        if self.skipped:
            notes.append(
                f"{file}: {self.skipped} of {self.lines} lines were skipped; the first is {self.first_skipped}"
            )
        if self.ends_early:
            notes.append(f"{file} ends early: {self.ends_early}; the {self.lines} lines before that were used")
        return notes


def labels_from_dump(
    file: Path, subjects: Subjects, per_class: int = 20, language: str = "en", *, strict: bool = False
) -> tuple[LabelMap, Counts]:
    """Read the labels of classes from a dump; memory does not grow with it.

    Args:
        file: plain or gzip.
        subjects: the classes with their synonyms.
        per_class: labels of each class, at most.
        language: of both words of a statement, as in /c/en/.
        strict: refuse what is otherwise skipped and counted.

    Raises:
        LabelError: the file cannot be read, a class has no label in it, or, if strict, a line is malformed or the file
            ends early; names the line.
        InputError: the language is no code.
    """
    gathering = Gathering(subjects, per_class)
    edges = Edges(gathering, language)
    wanted = frozenset(f"/r/{relation}".encode() for relation in RELATIONS)
    counts = _read(file, subjects, language, wanted, edges.take, strict)
    try:
        return gathering.finish(str(file)), counts
    except LabelError as error:
        raise LabelError("; ".join([str(error), *counts.notes(file)])) from None


def synonyms_from_dump(
    file: Path, subjects: Subjects, language: str = "en", *, strict: bool = False
) -> dict[str, list[str]]:
    """Read other names of the classes from a dump's /r/Synonym statements; a pass over the file of its own.

    Dumps are sorted by relation, so that synonyms come after most statements that they would be needed for.

    Raises:
        LabelError, InputError: see `labels_from_dump`.
    """
    check_language(language)
    found: dict[str, list[str]] = {name: [] for name in subjects.classes}

    def take(relation: str, start: str, end: str, about: dict[str, Any]) -> None:
        add_synonyms(found, synonyms_of(relation, start, end, subjects, language))

    _read(file, subjects, language, frozenset({b"/r/Synonym"}), take, strict)
    return found


def _read(file: Path, subjects: Subjects, language: str, wanted: frozenset[bytes], take: Take, strict: bool) -> Counts:
    """Call `take` with each statement that has a wanted relation and a class's name at one end."""
    started = time.perf_counter()
    number = skipped = 0
    first: str | None = None
    ends_early: str | None = None
    prefix = f"/c/{language}/".encode()
    at = len(prefix)
    known = frozenset(name.replace(" ", "_").encode() for name in subjects.by_name())
    try:
        with progress_bar(f"{file.name}, MiB", size_in_blocks(file)) as bar:
            for lines in read_lines(file, bar.advance):
                for line in lines:
                    number += 1
                    try:
                        _, relation, start, end, about = line.split(TAB)
                        if (
                            relation in wanted
                            and start.startswith(prefix)
                            and end.startswith(prefix)
                            and (start[at:].split(b"/", 1)[0] in known or end[at:].split(b"/", 1)[0] in known)
                        ):
                            take(relation.decode(), start.decode(), end.decode(), _json(about))
                            continue
                        if relation[:3] != b"/r/":
                            raise BadEdgeError("the second column is no relation")
                        if about[:1] != b"{" or (about[-1:] != b"}" and about.rstrip()[-1:] != b"}"):
                            raise BadEdgeError("the fifth column is no JSON object")
                    except ValueError as error:
                        problem = f"line {number}: {_problem(line, error)}"
                        if strict:
                            raise LabelError(f"{file}, {problem}; leave out --strict to skip such lines") from None
                        skipped += 1
                        first = first or problem
    except EndsEarlyError as error:
        if strict:
            raise LabelError(f"{file} ends early, after line {number}: {error}; get the file again") from None
        ends_early = str(error)
    except OSError as error:
        raise LabelError(f"{file} cannot be read: {error.strerror}; give a dump of ConceptNet's assertions") from None
    return Counts(number, skipped, time.perf_counter() - started, first, ends_early)


def _json(about: bytes) -> dict[str, Any]:
    try:
        document = json.loads(about.decode())
    except RecursionError:
        raise BadEdgeError("the fifth column is too deeply nested") from None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise BadEdgeError("the fifth column is no JSON object")
    return document


def _problem(line: bytes, error: ValueError) -> str:
    if isinstance(error, BadEdgeError):
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        return "no UTF-8 text"
    return f"columns (={line.count(TAB) + 1}) must be 5, separated by tabs"
