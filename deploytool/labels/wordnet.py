"""Labels from WordNet's data files, as Debian's wordnet-base and nltk's wordnet corpus have them.

| pointer | in wndb(5WN) | label |
| --- | --- | --- |
| `@`, `@i` | hypernym, instance hypernym | IsA, and so on up to the top |
| `%m`, `%s`, `%p` | member, substance, part meronym | HasA; parts of what the class is a kind of, too |
| `#m`, `#s`, `#p` | member, substance, part holonym | PartOf |
| `=` | attribute | HasProperty |

A label is the first word of a synset, its most common one; the gloss is not used.

Weights are w = 2 / d, where d is the number of pointers from the class to the label: 2 for its own parts and the
next more general term, 1 for their parts and the one after it. ConceptNet, too, gives statements of WordNet weight 2
and knows those with d = 1 alone, so that weights from both can be compared.

Source of the format: wndb(5WN), WordNet 3.0, Princeton University, 2006; Miller, "WordNet: A Lexical Database for
English", CACM 38(11), 1995.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from deploytool.errors import InputError, LabelError
from deploytool.labels.gathering import Gathering
from deploytool.labels.label_map import Label, LabelMap, clean, enumerated
from deploytool.labels.subjects import Subjects

LICENCE = "WordNet"  # Princeton's own, permissive one; it heads every data file
PLACES = ("", "dict", "corpora/wordnet", "wordnet")  # of the files below the folder that is given
HYPERNYMS = ("@", "@i")
RELATION_OF = {"%m": "HasA", "%s": "HasA", "%p": "HasA", "#m": "PartOf", "#s": "PartOf", "#p": "PartOf",
               "=": "HasProperty"}  # fmt: skip
MAX_LINE = 1 << 16  # the longest of WordNet 3.0 has 13 kB
MAX_DISTANCE = 30  # WordNet's longest chain of hypernyms has 19


@dataclass(frozen=True)
class WordnetCounts:
    """What was read of WordNet.

    Attributes:
        senses: class -> words of the sense used.
        lines: synsets read.
        seconds: it took.
    """

    senses: dict[str, tuple[str, ...]]
    lines: int
    seconds: float


class Synset(NamedTuple):
    """One line of a data file: its words, and its pointers (symbol, offset in bytes, part of speech)."""

    words: tuple[str, ...]
    pointers: tuple[tuple[str, int, str], ...]


def labels_from_wordnet(
    folder: Path, subjects: Subjects, per_class: int = 20, senses: Mapping[str, int] | None = None
) -> tuple[LabelMap, WordnetCounts]:
    """Read the labels of classes from WordNet.

    Args:
        folder: with index.noun, data.noun and data.adj; or one that has them in dict or corpora/wordnet.
        subjects: the classes; the first of a class's names that WordNet knows is looked up.
        per_class: labels of each class, at most.
        senses: class -> which sense of that name, 1 the most common one; 1 where it is not given.

    Raises:
        LabelError: a file cannot be read or is damaged, or a class is not in WordNet or has no label.
        InputError: a sense is for no class, or the name has fewer.
    """
    started = time.perf_counter()
    home = next((folder / place for place in PLACES if (folder / place / "index.noun").is_file()), None)
    if home is None:
        raise LabelError(
            f"{folder} has no index.noun; give the folder of WordNet's data files, such as /usr/share/wordnet "
            "(Debian's wordnet-base) or nltk_data"
        )
    chosen = _senses(home / "index.noun", subjects, senses or {})
    gathering = Gathering(subjects, per_class)
    with _Files(home) as files:
        words = {}
        for name, offset in chosen.items():
            synset = files.synset(offset, "n")
            own = subjects.with_synonyms({name: [clean(_plain(word)) for word in synset.words]}).own_names(name)
            words[name] = tuple(map(_plain, synset.words))
            for label in _labels(files, offset):
                if label.label not in own:
                    gathering.add(name, label)
    counts = WordnetCounts(words, files.read, time.perf_counter() - started)
    return gathering.finish(str(folder)), counts


def parse_senses(pairs: Iterable[str]) -> dict[str, int]:
    """Read `crane=2` into class -> number of the sense.

    Raises:
        InputError: a pair has another form.
    """
    senses = {}
    for pair in pairs:
        name, separator, number = pair.partition("=")
        if not (separator and name.strip() and number.isascii() and number.isdecimal() and 0 < int(number) < 1000):
            raise InputError(f"--sense {pair[:100]!r} must have the form class=number, as in crane=2; 1 is the first")
        senses[name.strip()] = int(number)
    return senses


def _labels(files: "_Files", offset: int) -> Iterator[Label]:
    """Labels of one synset, breadth first up its hypernyms."""
    level, seen = [offset], {offset}
    for distance in range(1, MAX_DISTANCE + 1):
        above: list[int] = []
        for place in level:
            for symbol, target, part in files.synset(place, "n").pointers:
                if symbol in HYPERNYMS and part == "n":
                    if target not in seen:
                        seen.add(target)
                        above.append(target)
                        yield _label(files, "IsA", target, part, distance)
                elif (relation := RELATION_OF.get(symbol)) and (distance == 1 or relation == "HasA"):
                    yield _label(files, relation, target, part, distance)
        level = above


def _label(files: "_Files", relation: str, offset: int, part: str, distance: int) -> Label:
    text = clean(_plain(files.synset(offset, part).words[0]))
    return Label(text, relation, 2 / distance, f"wordnet:{offset:08d}-{part}", LICENCE)


def _senses(index: Path, subjects: Subjects, senses: Mapping[str, int]) -> dict[str, int]:
    """Class -> offset of its synset in data.noun; one pass over the index."""
    for name in senses:
        if name not in subjects.names:
            raise InputError(f"--sense {name[:100]}=...: no such class; the classes are {enumerated(subjects.classes)}")
    wanted = {name.replace(" ", "_").encode() for name in subjects.by_name()}
    found: dict[str, list[int]] = {}
    try:
        with index.open("rb") as stream:
            while line := stream.readline(MAX_LINE):
                lemma = line.split(b" ", 1)[0]
                if lemma in wanted:
                    found[clean(lemma.decode())] = _offsets(line)
    except OSError as error:
        raise LabelError(f"{index} cannot be read: {error.strerror}") from None
    except (ValueError, IndexError):
        raise LabelError(f"{index} is damaged at {line[:40]!r}; install WordNet again") from None
    chosen = {}
    for name, names in subjects.names.items():
        known = next((other for other in names if found.get(other)), None)
        if known is None:
            raise LabelError(f"{index} has no {name}; say what else it is called, as in --synonym {name}=NAME")
        number = senses.get(name, 1)
        if not 1 <= number <= len(found[known]):
            raise InputError(f"--sense {name}={number}: {known} has {len(found[known])} senses in WordNet")
        chosen[name] = found[known][number - 1]
    return chosen


def _offsets(line: bytes) -> list[int]:
    """Offsets in a line of an index: lemma, n, senses, number of pointers, pointers, senses, tagged senses, offsets."""
    fields = line.split()
    count = int(fields[2])
    offsets = [_offset(field.decode()) for field in fields[6 + int(fields[3]) :]]
    if fields[1] != b"n" or count < 1 or len(offsets) != count:
        raise ValueError(line)
    return offsets


class _Files:
    """The data files of a folder, opened when they are needed."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.read = 0
        self._open: dict[str, IO[bytes]] = {}
        self._known: dict[tuple[int, str], Synset] = {}

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._open.values():
            stream.close()

    def synset(self, offset: int, part: str) -> Synset:
        """Return the synset at an offset in bytes of the file for a part of speech: n, v, a (and s), r.

        Raises:
            LabelError: the file cannot be read, or has no synset there.
        """
        known = self._known.get((offset, part))
        if known is not None:
            return known
        kind = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}.get(part)
        if kind is None:
            raise LabelError(
                f"{self.home}: part of speech (={part[:20]!r}) must be n, v, a, s or r; install WordNet again"
            )
        file = self.home / f"data.{kind}"
        try:
            if kind not in self._open:
                self._open[kind] = file.open("rb")
            self._open[kind].seek(offset)
            line = self._open[kind].readline(MAX_LINE)
        except OSError as error:
            raise LabelError(f"{file} cannot be read: {error.strerror}; install WordNet again") from None
        try:
            synset = _parse(line, offset)
        except (ValueError, IndexError, LabelError):
            raise LabelError(
                f"{file} has no synset at byte {offset}, but {line[:40]!r}; files are damaged or of different versions"
            ) from None
        self.read += 1
        self._known[offset, part] = synset
        return synset


def _parse(line: bytes, offset: int) -> Synset:
    """Parse `offset file type words(hex) word id ... pointers symbol offset part source/target ... | gloss`."""
    fields = line.decode().split(" | ", 1)[0].split()
    count = int(fields[3], 16)
    words = tuple(fields[4 : 4 + 2 * count : 2])
    at = 4 + 2 * count
    pointers = fields[at + 1 : at + 1 + 4 * int(fields[at])]
    if int(fields[0]) != offset or not words or len(words) != count or len(pointers) != 4 * int(fields[at]):
        raise ValueError(line)
    for word in words:
        Label(clean(_plain(word)))  # whether it can be a label
    return Synset(
        words, tuple((pointers[i], _offset(pointers[i + 1]), pointers[i + 2]) for i in range(0, len(pointers), 4))
    )


def _offset(field: str) -> int:
    if not (len(field) == 8 and field.isascii() and field.isdecimal()):
        raise ValueError(field)
    return int(field)


def _plain(word: str) -> str:
    """A word without the marker of an adjective's position: "galore(ip)"."""
    return word.partition("(")[0].replace("_", " ") or word
