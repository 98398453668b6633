"""Whose labels are wanted: classes named one by one, or those of a data set."""

import difflib
from collections.abc import Sequence

from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import InputError


def class_names(classes: Sequence[str] | None, data: str | None) -> tuple[str, ...]:
    """Return the classes given, or those of a data set of the catalogue, in the order of its labels.

    Raises:
        InputError: neither is given, or the data set is not in the catalogue.
    """
    if classes:
        return tuple(name.strip() for name in classes)
    if data is None:
        raise InputError(
            "no classes were given; name them, as in --classes panda,bus, or a data set, as --data cifar10"
        )
    if data not in CATALOGUE:
        near = difflib.get_close_matches(data, CATALOGUE, n=1)
        advice = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"--data (={data[:100]!r}) must be one of {', '.join(CATALOGUE)}; {advice}name other classes with --classes"
        )
    return CATALOGUE[data].classes
