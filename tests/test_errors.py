"""The tree in the docstring of `deploytool.errors` is the tree of its classes."""

import inspect
import re

import pytest

from deploytool import errors
from deploytool.errors import DeploytoolError


def drawn_tree() -> dict[str, str]:
    """Child -> parent, read from the drawing by the column at which each name starts."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.match(r"^[ │├└─]*(?P<name>[A-Z]\w+Error)\b", line)
        if not drawn:
            continue
        column, name = drawn.start("name"), drawn["name"]
        above = [entry for entry in above if entry[0] < column]
        if above:
            parents[name] = above[-1][1]
        above.append((column, name))
    return parents


def real_classes() -> list[type]:
    return [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]


def test_the_drawn_tree_is_the_class_tree() -> None:
    assert drawn_tree() == {
        kind.__name__: kind.__bases__[0].__name__ for kind in real_classes() if kind is not DeploytoolError
    }


def test_the_drawing_is_read_with_its_two_levels() -> None:
    tree = drawn_tree()
    assert tree["RunError"] == "DeploytoolError" and tree["CheckpointError"] == "RunError" and len(tree) >= 9


@pytest.mark.parametrize("kind", real_classes(), ids=lambda kind: kind.__name__)
def test_every_error_has_one_parent_and_is_caught_by_the_root(kind: type) -> None:
    assert len(kind.__bases__) == 1 and issubclass(kind, DeploytoolError)
    with pytest.raises(DeploytoolError, match="^what was wrong$"):
        raise kind("what was wrong")


def test_the_root_is_no_error_of_another_kind() -> None:
    assert DeploytoolError.__bases__ == (Exception,)
