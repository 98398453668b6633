"""Metadata properties that hold a JSON object of known keys, read as if they were hostile."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def read_note(properties: Mapping[str, str], key: str, most: int, kind: Any) -> dict[str, Any] | None:
    """The object that a property holds, its values still unchecked; None where there is no such property.

    Args:
        properties: of a file.
        key: `deploytool.NAME`; messages call it NAME.
        most: characters that are read.
        kind: the dataclass whose fields are the keys.

    Raises:
        ValueError: it is longer, no JSON, or has other keys; in one line.
    """
    if key not in properties:
        return None
    name, text = key.rpartition(".")[2], properties[key]
    if len(text) > most:
        raise ValueError(f"{name} has {len(text)} characters; at most {most}")
    document: dict[str, Any] = json.loads(text)
    check_keys(name, document, kind)
    return document


def check_keys(name: str, document: Any, kind: Any) -> None:
    """Raise ValueError unless a value is an object with the fields of a dataclass, and no others."""
    keys = [field.name for field in fields(kind)]
    if not isinstance(document, dict) or set(document) != set(keys):
        raise ValueError(f"{name} must have the keys {', '.join(keys)}")
