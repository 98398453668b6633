"""Label maps as YAML files, written by `deploytool labels` or by a person.

    source: by hand                       # optional: for labels that say none themselves
    licence: Apache-2.0                   # optional, too
    classes:
      panda:
        - {label: animal, relation: IsA, weight: 2.0}
        - paws                            # a label alone will do
      bus: [tires, seats]

The smallest file is the classes alone, `panda: [animal, paws]`. Every scalar is read as text, so that a class named
`no` or `0` needs no quotes. Unknown keys are refused with the nearest name; aliases, duplicates and empty classes, too.
"""

import difflib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deploytool.atomic import write_text
from deploytool.errors import LabelError
from deploytool.labels.label_map import EqualVectorsWarning, Label, LabelMap, clean, is_text, weight_of
from deploytool.labels.relations import RELATIONS

MAX_BYTES = 16 << 20
MAX_DEPTH = 8
MAX_SHOWN = 80
TOP_KEYS = ("classes", "source", "licence")
LABEL_KEYS = ("label", "relation", "weight", "source", "licence", "direction")

Parser: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # the C one is 10 times faster, where it was built
Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _RefusedError(ValueError):
    """What is wrong with a file, in words that lack its name."""


def load_labels(path: str | os.PathLike[str]) -> LabelMap:
    """Read a label map; see `read_labels`, which does not warn.

    Raises:
        LabelError: the file cannot be read or is no label map.

    Warns:
        EqualVectorsWarning: classes have the same vector; names them.
    """
    labels = read_labels(path)
    for line in labels.equal_lines():
        warnings.warn(line, EqualVectorsWarning, stacklevel=2)
    return labels


def read_labels(path: str | os.PathLike[str]) -> LabelMap:
    """Read a label map of at most 16 MiB of YAML.

    Raises:
        LabelError: the file cannot be read or is no label map; one line that says what is wrong and where.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise LabelError(f"label map {file} has more than {MAX_BYTES} bytes; split it or shorten it")
        return parse_labels(data.decode("utf-8-sig"), str(file))
    except OSError as error:
        place = "" if file.is_absolute() else f" (from {Path.cwd()})"
        raise LabelError(
            f"label map {file}{place} cannot be read: {error.strerror}; give the path of a YAML file, or build one "
            "with deploytool labels -o FILE"
        ) from None
    except UnicodeDecodeError:
        raise LabelError(f"label map {file} is no UTF-8 text; give the path of a YAML file") from None


def parse_labels(text: str, source: str = "label map") -> LabelMap:
    """Read a label map from YAML text; `source` names it in messages.

    Raises:
        LabelError: see `read_labels`.
    """
    try:
        return LabelMap(_classes(_document(text)), source)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise LabelError(f"{source} is no valid YAML{place}: {' '.join(str(problem).split())[:MAX_SHOWN]}") from None
    except _RefusedError as error:
        raise LabelError(f"{source}: {error}") from None


def save_labels(path: str | os.PathLike[str], labels: LabelMap) -> None:
    """Write a label map as YAML, whole or not at all; `load_labels` reads it back equal.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, to_yaml(labels))


def to_yaml(labels: LabelMap) -> str:
    """Return a label map as YAML: one line for each label."""
    document = {
        "classes": {
            name: [{key: value for key, value in entry.items() if value is not None} for entry in entries]
            for name, entries in labels.to_dict().items()
        }
    }
    # default_flow_style=None writes the innermost mappings as {...}
    return str(
        yaml.dump(document, Dumper=Dumper, sort_keys=False, default_flow_style=None, width=1 << 16, allow_unicode=True)
    )


def _document(text: str) -> Any:
    """Parse YAML into lists, dictionaries, text and None, from its events: no aliases, no types, bounded depth."""
    events = yaml.parse(text, Loader=Parser)
    document = None
    started = False
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            if started:
                raise _RefusedError("must be one YAML document; remove what follows ---")
            started = True
            document = _node(events, next(events), MAX_DEPTH)
    return document


def _node(events: Iterator[Any], event: Any, depth: int) -> Any:
    where = f"line {event.start_mark.line + 1}"
    if isinstance(event, yaml.AliasEvent):
        raise _RefusedError(f"{where}: aliases (*name) are not allowed in a label map; write the labels out")
    if isinstance(event, yaml.ScalarEvent):
        return None if event.implicit[0] and event.value in ("", "~", "null") else event.value
    if depth == 0:
        raise _RefusedError(f"{where}: too deeply nested")
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_node(events, event, depth - 1))
        return items
    entries: dict[str, Any] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        where = f"line {event.start_mark.line + 1}"
        if not isinstance(event, yaml.ScalarEvent):
            raise _RefusedError(f"{where}: a key must be a name")
        if event.value in entries:
            raise _RefusedError(f"{where}: key {_short(event.value)} is there twice; remove one")
        entries[event.value] = _node(events, next(events), depth - 1)
    return entries


def _classes(document: Any) -> dict[str, list[Label]]:
    if not isinstance(document, dict):
        raise _RefusedError(
            f"must be a mapping of classes to labels, as in panda: [animal, paws]; it is {_kind(document)}"
        )
    if not isinstance(document.get("classes"), dict):
        for key, value in document.items():  # the smallest form: classes alone
            if isinstance(value, dict):
                raise _RefusedError(f"unknown key {_short(key)}; {_near(key, TOP_KEYS)}")
        return {name: _labels(name, entries, {}) for name, entries in document.items()}
    for key in document:
        if key not in TOP_KEYS:
            raise _RefusedError(f"unknown key {_short(key)}; {_near(key, TOP_KEYS)}")
    common = {key: document[key] for key in ("source", "licence") if document.get(key) is not None}
    for key, value in common.items():
        if not isinstance(value, str) or not is_text(value):
            raise _RefusedError(f"{key} must be a line of text; it is {_short(value)}")
    return {name: _labels(name, entries, common) for name, entries in document["classes"].items()}


def _labels(name: str, entries: Any, common: dict[str, str]) -> list[Label]:
    if entries is None:
        return []  # LabelMap says which class has none
    if not isinstance(entries, list):
        raise _RefusedError(
            f"labels of class {_short(name)} must be a list, as in [animal, paws]; it is {_kind(entries)}"
        )
    return [_label(f"class {_short(name)}, label {index}", entry, common) for index, entry in enumerate(entries, 1)]


def _label(where: str, entry: Any, common: dict[str, str]) -> Label:
    fields = {"label": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict):
        raise _RefusedError(f"{where} must be text or {{label: ..., relation: ...}}; it is {_kind(entry)}")
    for key in fields:
        if key not in LABEL_KEYS:
            raise _RefusedError(f"{where}: unknown key {_short(key)}; {_near(key, LABEL_KEYS)}")
    given = {**common, **{key: value for key, value in fields.items() if value is not None}}
    for key, value in given.items():
        if not isinstance(value, str):
            raise _RefusedError(f"{where}: {key} must be text; it is {_kind(value)}")
    if "label" not in given:
        raise _RefusedError(f"{where}: key label is missing; add it")
    if "relation" in given and given["relation"] not in RELATIONS:
        raise _RefusedError(f"{where}: relation (={_short(given['relation'])}) is unknown; "
                       f"{_near(given['relation'], RELATIONS)}")  # fmt: skip
    try:
        return Label(**{**given, "label": clean(given["label"]), "weight": weight_of(given.get("weight", 1.0))})
    except (LabelError, ValueError) as error:
        raise _RefusedError(f"{where}: {error}") from None


def _near(name: str, known: tuple[str, ...]) -> str:
    plain = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name[:MAX_SHOWN].lower(), plain, n=1, cutoff=0.5)
    return f"did you mean {plain[near[0]]}?" if near else f"allowed: {', '.join(known)}"


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else "text"


def _short(value: Any) -> str:
    text = repr(value) if not (isinstance(value, str) and value.isprintable() and value) else value
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
