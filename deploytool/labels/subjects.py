"""Classes, and the names under which a knowledge base may know them."""

from collections.abc import Iterable, Mapping, Sequence

from deploytool.errors import InputError
from deploytool.labels.label_map import clean, enumerated, is_text


class Subjects:
    """Classes to look up, each with its own name and its synonyms.

    Args:
        classes: class names in the order of a data set, none twice; `_` reads as a space, case does not count.
        synonyms: class -> further names for it; they bring labels, and are no labels themselves.

    Raises:
        InputError: a class is no name or is there twice, or a synonym is for no class, or is itself another class.
    """

    def __init__(self, classes: Sequence[str], synonyms: Mapping[str, Iterable[str]] | None = None) -> None:
        self.classes = tuple(classes)
        if not self.classes:
            raise InputError("no classes were given; name them, as in --classes panda,bus")
        self.names: dict[str, tuple[str, ...]] = {}
        for name in self.classes:
            if not (is_text(name) and clean(name)):
                raise InputError(f"class (={name[:100]!r}) must be a name of at most 200 printable characters")
            if clean(name) in {names[0] for names in self.names.values()}:
                raise InputError(f"class {name} is given twice; name it once")
            self.names[name] = (clean(name),)
        for name, others in (synonyms or {}).items():
            self._add(name, others)

    def _add(self, name: str, others: Iterable[str]) -> None:
        if name not in self.names:
            raise InputError(f"--synonym {name[:100]}=...: no such class; the classes are {enumerated(self.classes)}")
        own = {names[0]: of for of, names in self.names.items()}
        for other in others:
            if not (is_text(other) and clean(other)):
                raise InputError(f"--synonym {name}={other[:100]!r}: must be a name of 1 to 200 printable characters")
            if own.get(clean(other), name) != name:
                raise InputError(f"--synonym {name}={other}: {other} is itself a class; leave it out")
            self.names[name] = tuple(dict.fromkeys((*self.names[name], clean(other))))

    def with_synonyms(self, found: Mapping[str, Iterable[str]]) -> "Subjects":
        """Return the subjects with synonyms that a knowledge base gave; those that are classes themselves are left."""
        own = {names[0] for names in self.names.values()}
        more = {name: [other for other in found.get(name, ()) if clean(other) not in own] for name in self.classes}
        return Subjects(self.classes, {name: (*self.names[name][1:], *more[name]) for name in self.classes})

    def by_name(self) -> dict[str, tuple[str, ...]]:
        """Name -> the classes that it stands for, mostly one."""
        index: dict[str, tuple[str, ...]] = {}
        for name, names in self.names.items():
            for other in names:
                index[other] = (*index.get(other, ()), name)
        return index

    def own_names(self, name: str) -> "OwnNames":
        """The names of one class, to keep them out of its labels."""
        return OwnNames(self.names[name])


class OwnNames:
    """Names of a class with their regular plurals and singulars; hyphens read as spaces."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.replace("-", " ") for name in names}
        self._forms = self._names | {form for name in self._names for form in plurals(name)}

    def __contains__(self, label: str) -> bool:
        text = label.replace("-", " ")
        return text in self._forms or not self._names.isdisjoint(plurals(text))


def plurals(name: str) -> tuple[str, ...]:
    """Regular English plurals that a name may have: ships, foxes, butterflies, wolves; some are no words."""
    forms = [name + "s", name + "es"]
    if name.endswith("y"):
        forms.append(name[:-1] + "ies")
    if name.endswith("f"):
        forms.append(name[:-1] + "ves")
    if name.endswith("fe"):
        forms.append(name[:-2] + "ves")
    return tuple(forms)


def parse_synonyms(pairs: Iterable[str]) -> dict[str, list[str]]:
    """Read `automobile=car` and `automobile=car,auto` into class -> names.

    Raises:
        InputError: a pair has another form.
    """
    synonyms: dict[str, list[str]] = {}
    for pair in pairs:
        name, separator, others = pair.partition("=")
        names = [other.strip() for other in others.split(",")]
        if not (separator and name.strip() and all(names)):
            raise InputError(f"--synonym {pair[:100]!r} must have the form class=name, as in automobile=car")
        synonyms.setdefault(name.strip(), []).extend(names)
    return synonyms
