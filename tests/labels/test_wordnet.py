"""WordNet's data files: a small folder in their exact format, worked by hand, and the real one where it is."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploytool.data.class_names import CIFAR10_CLASSES
from deploytool.errors import DeploytoolError, InputError, LabelError
from deploytool.labels.subjects import Subjects
from deploytool.labels.wordnet import labels_from_wordnet, parse_senses

REAL = [Path("/usr/share/wordnet"), Path.home() / "nltk_data"]
INSTALLED = next((folder for folder in REAL if folder.is_dir()), None)
HEAD = "".join(f"  {i} This software and database is being provided to you, the LICENSEE, by  \n" for i in range(1, 4))

# name -> its words, and its pointers to other names
NOUNS = {
    "car": (["car", "auto", "automobile"], [("@", "motor"), ("%p", "bumper"), ("%p", "car_door"), ("~", "sedan"),
                                            ("#m", "fleet"), ("+", "motor")]),
    "railcar": (["car", "railcar"], [("@", "thing"), ("#p", "train")]),
    "motor": (["motor_vehicle"], [("@", "thing"), ("%p", "engine"), ("%s", "steel"), ("#m", "traffic"), ("~", "car")]),
    "thing": (["thing", "object"], [("~", "motor"), ("%p", "side"), ("=", "big")]),
    "bumper": (["bumper"], []),
    "car_door": (["car_door", "door"], []),
    "sedan": (["sedan"], [("@", "car")]),
    "fleet": (["fleet"], [("%m", "car")]),
    "engine": (["engine", "motor"], []),
    "steel": (["steel"], []),
    "traffic": (["traffic"], []),
    "train": (["train"], []),
    "side": (["side"], []),
    "rex": (["Rex"], [("@i", "thing"), ("=", "big")]),
    "loop": (["loop"], [("@", "loop2")]),
    "loop2": (["loop2"], [("@", "loop")]),
    "alone": (["alone"], []),
}  # fmt: skip
ADJECTIVES = {"big": (["large(p)", "big"], [])}


def write(folder: Path, nouns: dict = NOUNS, adjectives: dict = ADJECTIVES) -> Path:
    """Write the files as grind does: offsets in bytes, words counted in hexadecimal, pointers in three digits."""

    def line(synset: tuple, kind: str, offsets: dict[str, int], own: int) -> str:
        words, pointers = synset
        named = " ".join(f"{word} 0" for word in words)
        to = "".join(f" {s} {offsets.get(t, 0):08d} {'a' if t in adjectives else 'n'} 0000" for s, t in pointers)
        return f"{own:08d} 06 {kind} {len(words):02x} {named} {len(pointers):03d}{to} | a gloss | with @ 12345678 n  \n"

    folder.mkdir(parents=True, exist_ok=True)
    offsets: dict[str, int] = {}
    for synsets, kind in ((adjectives, "s"), (nouns, "n")):
        at = len(HEAD)
        for name, synset in synsets.items():
            offsets[name] = at
            at += len(line(synset, kind, {}, 0))
    for file, synsets, kind in (("data.adj", adjectives, "s"), ("data.noun", nouns, "n")):
        text = HEAD + "".join(line(synset, kind, offsets, offsets[name]) for name, synset in synsets.items())
        (folder / file).write_text(text)
    index: dict[str, list[str]] = {}
    for name, (words, _) in nouns.items():
        for word in words:
            index.setdefault(word.lower(), []).append(name)
    lines = [
        f"{lemma} n {len(names)} 3 @ ~ %p {len(names)} 1 {' '.join(f'{offsets[name]:08d}' for name in names)}  \n"
        for lemma, names in sorted(index.items())
    ]
    (folder / "index.noun").write_text(HEAD + "".join(lines))
    return folder


def found(folder: Path, *classes: str, synonyms=None, per_class: int = 20, **senses: int) -> dict[str, list]:
    labels, _ = labels_from_wordnet(folder, Subjects(classes, synonyms), per_class, senses)
    return {name: [(x.label, x.relation, round(x.weight, 4)) for x in of] for name, of in labels.items()}


def test_relations_and_weights_worked_by_hand(tmp_path: Path) -> None:
    assert found(write(tmp_path), "automobile")["automobile"] == [
        ("motor vehicle", "IsA", 2.0),  # one pointer: 2 / 1
        ("fleet", "PartOf", 2.0),
        ("bumper", "HasA", 2.0),
        ("car door", "HasA", 2.0),
        ("thing", "IsA", 1.0),  # two pointers; what a motor vehicle is a member of (traffic) a car need not be
        ("engine", "HasA", 1.0),
        ("steel", "HasA", 1.0),
        ("side", "HasA", 0.6667),  # a part of a thing; that things have a size (=) is not inherited
    ]


def test_provenance(tmp_path: Path) -> None:
    labels, counts = labels_from_wordnet(write(tmp_path), Subjects(["automobile"]), 1)
    (label,) = labels["automobile"]
    offset = (tmp_path / "data.noun").read_bytes().index(b" 06 n 01 motor_vehicle") - 8
    assert (label.source, label.licence) == (f"wordnet:{offset:08d}-n", "WordNet")
    assert counts.senses == {"automobile": ("car", "auto", "automobile")} and counts.lines > 3


def test_a_sense_may_be_chosen(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert found(folder, "car", car=2)["car"] == [
        ("thing", "IsA", 2.0),
        ("train", "PartOf", 2.0),
        ("side", "HasA", 1.0),
    ]
    assert found(folder, "car", car=1) == found(folder, "car")
    with pytest.raises(InputError, match="car has 2 senses"):
        found(folder, "car", car=3)
    with pytest.raises(InputError, match="no such class"):
        found(folder, "car", truck=1)


def test_instances_and_attributes(tmp_path: Path) -> None:
    labels = found(write(tmp_path), "rex")["rex"]
    assert labels == [("thing", "IsA", 2.0), ("large", "HasProperty", 2.0), ("side", "HasA", 1.0)]


def test_a_synonym_stands_in_for_a_class_that_wordnet_lacks(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert found(folder, "sports car", synonyms={"sports car": ["roadster", "sedan"]})["sports car"][0][0] == "car"
    with pytest.raises(LabelError, match="has no roadster.*--synonym roadster=NAME"):
        found(folder, "roadster")


def test_names_of_the_synset_are_no_labels(tmp_path: Path) -> None:
    nouns = {**NOUNS, "bumper": (["autos"], [])}
    assert "autos" not in [label for label, *_ in found(write(tmp_path, nouns), "automobile")["automobile"]]


def test_circles_end_and_a_class_without_labels_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert found(folder, "loop")["loop"] == [("loop2", "IsA", 2.0)]
    with pytest.raises(LabelError, match="no labels for alone"):
        found(folder, "alone")


@pytest.mark.parametrize("below", ["", "dict", "corpora/wordnet"])
def test_the_folder_may_be_nltks(below: str, tmp_path: Path) -> None:
    write(tmp_path / below)
    assert found(tmp_path, "sedan")["sedan"][0] == ("car", "IsA", 2.0)


def test_what_is_no_wordnet_is_refused(tmp_path: Path) -> None:
    for bad in (tmp_path, tmp_path / "absent"):
        with pytest.raises(LabelError, match="no index.noun.*wordnet-base"):
            found(bad, "car")
    write(tmp_path)
    (tmp_path / "data.adj").unlink()
    assert found(tmp_path, "car")  # adjectives are needed for attributes alone
    with pytest.raises(LabelError, match="data.adj cannot be read"):
        found(tmp_path, "rex")
    (tmp_path / "data.noun").write_text("")
    with pytest.raises(LabelError, match="no synset at byte"):
        found(tmp_path, "car")
    (tmp_path / "index.noun").write_text("car n x\n")
    with pytest.raises(LabelError, match="is damaged"):
        found(tmp_path, "car")


def test_files_of_different_versions_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    data = (tmp_path / "data.noun").read_text()
    (tmp_path / "data.noun").write_text("  1 another licence\n" + data)
    with pytest.raises(LabelError, match="different versions"):
        found(tmp_path, "car")


@settings(max_examples=150)
@example([(0, "\xff")])
@example([(300, " 99999999999999999999")])
@given(st.lists(st.tuples(st.integers(0, 3000), st.text(max_size=8)), min_size=1, max_size=4))
def test_any_damage_is_read_or_refused_in_one_line(tmp_path_factory, damage: list[tuple[int, str]]) -> None:
    folder = write(tmp_path_factory.getbasetemp() / "hostile-wordnet")
    for file in ("data.noun", "index.noun", "data.adj"):
        data = bytearray((folder / file).read_bytes())
        for at, text in damage:
            at = at % len(data)
            data[at : at + len(text.encode())] = text.encode()
        (folder / file).write_bytes(data)
    try:
        found(folder, "car", "rex")
    except DeploytoolError as error:
        assert "\n" not in str(error)


def test_senses_are_read_from_the_command_line() -> None:
    assert parse_senses(["crane=2", "car =1"]) == {"crane": 2, "car": 1}
    for bad in ("crane", "crane=", "=1", "crane=0", "crane=-1", "crane=x", "crane=²", "crane=1.5"):
        with pytest.raises(InputError, match="crane=2"):
            parse_senses([bad])


@pytest.mark.skipif(INSTALLED is None, reason="WordNet is in none of its usual folders (apt install wordnet-base)")
def test_the_real_wordnet() -> None:
    assert INSTALLED is not None
    labels = found(INSTALLED, *CIFAR10_CLASSES, per_class=60)
    assert labels["dog"][0][:2] == ("canine", "IsA") and ("animal", "IsA", 1.0) in labels["dog"]
    assert ("bumper", "HasA", 2.0) in labels["automobile"] and ("feather", "HasA", 2.0) in labels["bird"]
    assert ("fleet", "PartOf", 2.0) in labels["ship"] and ("aircraft", "IsA", 1.0) in labels["airplane"]
    assert all(len(of) >= 20 for of in labels.values())
