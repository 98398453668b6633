"""Optional packages: the extra asks for all that the source imports, and says how to install it."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from deploytool import extras
from deploytool.errors import MissingExtraError
from deploytool.extras import EXTRAS, require_extra

ROOT = Path(__file__).parents[1]
IMPORT_NAMES = {"scikit-learn": "sklearn", "faiss-cpu": "faiss"}


def declared(extra: str) -> set[str]:
    """Import names of the packages that pyproject.toml installs with an extra."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = [re.split("[<>=~ ]", line)[0] for line in document["project"]["optional-dependencies"][extra]]
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def imported() -> set[str]:
    """Top-level names of all imports in the source."""
    found = set()
    for file in (ROOT / "deploytool").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found


def test_what_is_asked_for_is_what_the_extra_installs() -> None:
    assert set(EXTRAS["train"]) <= declared("train")


def test_every_optional_package_that_the_source_imports_is_asked_for() -> None:
    assert "torch" in imported()
    assert imported() & declared("train") <= set(EXTRAS["train"])


def test_an_installed_extra_passes(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(extras, "find_spec", lambda name: asked.append(name) or object())
    require_extra("train")
    assert asked == list(EXTRAS["train"])


def test_only_the_missing_packages_are_named_with_the_command(monkeypatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in ("torch", "sklearn") else object())
    with pytest.raises(MissingExtraError) as caught:
        require_extra("train")
    message = str(caught.value)
    assert "torch, sklearn" in message and message.endswith("pip install 'deploytool[train]'")
    assert "matplotlib" not in message and "\n" not in message


def test_a_package_that_is_really_absent_is_found_missing(monkeypatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "odd", ("json", "surely_no_such_package"))
    with pytest.raises(MissingExtraError, match="this needs surely_no_such_package; .*'deploytool\\[odd\\]'"):
        require_extra("odd")
