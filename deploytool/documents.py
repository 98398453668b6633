"""YAML documents with a schema: recipes. Read, overridden, validated; what is wrong with them in one line."""

import difflib
import hashlib
import json
import os
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from deploytool.errors import RecipeError

MAX_RECIPE_BYTES = 1 << 20
MAX_SHOWN = 100  # characters of a bad value that an error message repeats


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Document(Section):
    """A whole recipe of some kind."""

    def digest(self) -> str:
        """Return the first 16 hex digits of the SHA-256 of the canonical JSON form.

        Defaults are left out of it, so that a field that a later version adds leaves older runs what they are.
        """
        document = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """Return the recipe as YAML, all defaults written out; `load` reads it back equal."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema (draft 2020-12) of a recipe of this kind."""
        schema = cls.model_json_schema(by_alias=True)
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Self:
        """Read and validate a recipe file.

        Args:
            path: YAML file, at most 1 MiB.
            overrides: `a.b=c` assignments; the right side is read as YAML.

        Raises:
            RecipeError: the file is absent, no YAML mapping, or says something that is not allowed.
        """
        file = Path(path)
        try:
            if file.stat().st_size > MAX_RECIPE_BYTES:
                raise RecipeError(f"recipe {file} has {file.stat().st_size} bytes; at most {MAX_RECIPE_BYTES}")
            document = _parse_yaml(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"recipe {file} cannot be read: {error.strerror}; give the path of a YAML file") from None
        except UnicodeDecodeError:
            raise RecipeError(f"recipe {file} is no UTF-8 text; give the path of a YAML file") from None
        except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date or number out of range
            mark = getattr(error, "problem_mark", None)
            place = f" at line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or getattr(error, "reason", None) or _one_line(error)
            if isinstance(error, RecursionError):
                problem = "too deeply nested"
            raise RecipeError(f"recipe {file} is no valid YAML{place}: {problem}") from None
        if not isinstance(document, dict):
            raise RecipeError(f"recipe {file} must be a mapping of keys to values; it is a {type(document).__name__}")
        return cls.make(document, overrides, source=str(file))

    @classmethod
    def make(cls, document: dict[str, Any], overrides: Iterable[str] = (), source: str = "recipe") -> Self:
        """Validate a recipe given as nested dictionaries; see `load`."""
        try:
            document = _plain(document)
        except (TypeError, ValueError, RecursionError) as error:
            raise RecipeError(f"{source} holds what a recipe cannot: {_one_line(error)}") from None
        for override in overrides:
            _assign(document, override)
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise RecipeError(f"{source}: {_first_problem(error, cls)}") from None


class _Loader(yaml.SafeLoader):
    """Plain YAML without aliases: a few hundred bytes of them can unfold to gigabytes, or to a circle."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed in a recipe", problem_mark=mark)
        return super().compose_node(parent, index)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def _plain(value: Any) -> Any:
    """Reduce to what JSON knows; dates become text."""
    return json.loads(json.dumps(value, default=str))


def _assign(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise RecipeError(f"--set {_short(override)} must have the form key=value or section.key=value")
    try:
        value = _plain(_parse_yaml(text))
    except (yaml.YAMLError, TypeError, ValueError, RecursionError):
        raise RecipeError(f"--set {_short(override)}: the value is no valid YAML; put it in quotes") from None
    place = document
    for part in parts[:-1]:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {_short(override)}: {part} holds a value, not a section")
        place = inner
    place[parts[-1]] = value


def _first_problem(error: ValidationError, schema: type[BaseModel]) -> str:
    """One line for the first problem, and how many more there are."""
    problems = error.errors(include_url=False)
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")  # a misspelt key is missing, too
    loc = [part for index, part in enumerate(first["loc"]) if index != 1 or first["loc"][0] != "method"]  # no union tag
    where = ".".join(str(part) for part in loc)
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1], schema)
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(known)}"
        text = f"unknown key {where[:MAX_SHOWN]}; {advice}"
    elif first["type"] == "union_tag_invalid":
        known = re.findall("'([^']+)'", first["ctx"]["expected_tags"])
        near = difflib.get_close_matches(first["ctx"]["tag"], known, n=1)
        advice = f"did you mean {near[0]}? " if near else ""
        text = f"{where}.name (={_short(first['ctx']['tag'])}) is unknown; {advice}allowed: {', '.join(known)}"
    elif first["type"] == "union_tag_not_found":
        text = f"key {where}.name is missing; add it to the recipe"
    elif first["type"] == "missing":
        text = f"key {where} is missing; add it to the recipe"
    elif not loc:
        text = first["msg"].removeprefix("Value error, ")
    else:
        text = f"{where} (={_short(first['input'])}): {first['msg'].removeprefix('Value error, ')}"
    more = len(problems) - 1
    return " ".join(text.split()) + (f" (and {more} more)" if more else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_SHOWN]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _known_keys(loc: tuple[int | str, ...], schema: type[BaseModel]) -> list[str]:
    """Names allowed in the section at `loc`, a path as pydantic gives it (union tags included)."""
    sections: list[type[BaseModel]] = [schema]
    for part in loc:
        inner: list[type[BaseModel]] = []
        for section in sections:
            if part in section.model_fields:
                inner += _sections_in(section.model_fields[str(part)].annotation)
            elif (tag := section.model_fields.get("name")) and part in typing.get_args(tag.annotation):
                inner.append(section)
        sections = inner or sections
    return [field.alias or name for section in sections for name, field in section.model_fields.items()]


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return [section for argument in typing.get_args(annotation) for section in _sections_in(argument)]
    return []
