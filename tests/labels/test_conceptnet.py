"""A dump of ConceptNet: the same labels as a slow reader that does nothing cleverly; hostile lines are counted."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploytool.errors import DeploytoolError, LabelError
from deploytool.labels.conceptnet import labels_from_dump, synonyms_from_dump
from deploytool.labels.relations import RELATIONS
from deploytool.labels.subjects import Subjects

SHARED = Path(__file__).parents[3] / "shared" / "data"
CONVERSE = {"RelatedTo": "RelatedTo", "PartOf": "HasA", "HasA": "PartOf", "AtLocation": "HasA"}


def line(relation: str, start: str, end: str, weight: Any = 1.0, dataset: str = "/d/test", licence: str = "cc:by/4.0"):
    about = {"dataset": dataset, "license": licence, "sources": [{"contributor": "/s/x"}], "weight": weight}
    return "\t".join((f"/a/[/r/{relation}/,{start}/,{end}/]", f"/r/{relation}", start, end, json.dumps(about)))


def dump(folder: Path, *lines: str | bytes, name: str = "assertions.csv") -> Path:
    file = folder / name
    data = b"".join((x.encode() if isinstance(x, str) else x) + b"\n" for x in lines)
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return file


def found(file: Path, *classes: str, per_class: int = 20, synonyms: Any = None, **options: Any) -> dict[str, list]:
    labels, _ = labels_from_dump(file, Subjects(classes, synonyms), per_class, **options)
    return {name: [(x.label, x.relation, x.weight) for x in of] for name, of in labels.items()}


def test_a_statement_about_a_class_is_a_label(tmp_path: Path) -> None:
    file = dump(tmp_path, line("IsA", "/c/en/dog/n/wn/animal", "/c/en/domestic_animal/n", 2.0, "/d/wordnet/3.1"))
    labels, counts = labels_from_dump(file, Subjects(["dog"]))
    (label,) = labels["dog"]
    assert label.to_dict() == {
        "label": "domestic animal", "relation": "IsA", "weight": 2.0, "source": "/d/wordnet/3.1",
        "licence": "cc:by/4.0",
    }  # fmt: skip
    assert (counts.lines, counts.skipped, counts.first_skipped, counts.ends_early) == (1, 0, None, None)


@pytest.mark.parametrize("relation", RELATIONS)
def test_each_relation_and_its_converse(relation: str, tmp_path: Path) -> None:
    file = dump(tmp_path, line(relation, "/c/en/dog", "/c/en/x"), line("IsA", "/c/en/dog", "/c/en/y", 0.5))
    assert ("x", relation, 1.0) in found(file, "dog")["dog"]
    file = dump(tmp_path, line(relation, "/c/en/x", "/c/en/dog"), line("IsA", "/c/en/dog", "/c/en/y", 0.5))
    back = [label for label in found(file, "dog")["dog"] if label[0] == "x"]
    assert back == ([("x", CONVERSE[relation], 1.0)] if relation in CONVERSE else [])


def test_what_is_read_backwards_says_so(tmp_path: Path) -> None:
    labels, _ = labels_from_dump(dump(tmp_path, line("PartOf", "/c/en/wheel", "/c/en/car")), Subjects(["car"]))
    assert labels["car"][0].direction == "reverse" and labels["car"][0].relation == "HasA"


def test_order_duplicates_and_own_names(tmp_path: Path) -> None:
    file = dump(
        tmp_path,
        line("RelatedTo", "/c/en/dog", "/c/en/bark", 3.0),
        line("CapableOf", "/c/en/dog", "/c/en/bark", 8.0),
        line("RelatedTo", "/c/en/bark/v", "/c/en/dog", 9.0),
        line("IsA", "/c/en/dog", "/c/en/pet", 2.0),
        line("RelatedTo", "/c/en/dog", "/c/en/alpha", 2.0),
        line("IsA", "/c/en/dog", "/c/en/canine", 2.0),
        line("RelatedTo", "/c/en/dog", "/c/en/dogs", 50.0),
        line("RelatedTo", "/c/en/hound", "/c/en/dog", 50.0),
        line("IsA", "/c/en/hound", "/c/en/hunter", 1.5),
        line("Synonym", "/c/en/dog", "/c/en/x", 50.0),
    )
    expected = [("bark", "RelatedTo", 9.0), ("canine", "IsA", 2.0), ("pet", "IsA", 2.0), ("alpha", "RelatedTo", 2.0)]
    assert found(file, "dog", synonyms={"dog": ["hound"]})["dog"] == [*expected, ("hunter", "IsA", 1.5)]
    assert found(file, "dog", synonyms={"dog": ["hound"]}, per_class=3)["dog"] == expected[:3]
    assert found(file, "dog")["dog"][0] == ("hound", "RelatedTo", 50.0)


def test_a_class_is_a_noun_in_the_language_asked_for(tmp_path: Path) -> None:
    file = dump(
        tmp_path,
        line("RelatedTo", "/c/en/ship/v", "/c/en/send"),
        line("RelatedTo", "/c/en/ship/n/wn/artifact", "/c/en/hull"),
        line("RelatedTo", "/c/en/ship", "/c/fr/bateau"),
        line("RelatedTo", "/c/de/ship", "/c/de/kahn"),
        line("RelatedTo", "/c/en/shipyard", "/c/en/crane"),
    )
    assert found(file, "ship") == {"ship": [("hull", "RelatedTo", 1.0)]}
    assert found(file, "ship", language="de") == {"ship": [("kahn", "RelatedTo", 1.0)]}


def test_one_statement_may_be_about_two_classes(tmp_path: Path) -> None:
    file = dump(tmp_path, line("RelatedTo", "/c/en/cat", "/c/en/dog", 2.0))
    assert found(file, "cat", "dog") == {"cat": [("dog", "RelatedTo", 2.0)], "dog": [("cat", "RelatedTo", 2.0)]}


def test_a_class_without_labels_is_named(tmp_path: Path) -> None:
    file = dump(tmp_path, line("IsA", "/c/en/dog", "/c/en/pet"), "rubbish")
    with pytest.raises(LabelError) as caught:
        found(file, "dog", "okapi")
    assert "no labels for okapi" in str(caught.value) and "--synonym okapi=NAME" in str(caught.value)
    assert "1 of 2 lines were skipped" in str(caught.value)


def test_synonyms_come_from_both_ends_and_never_from_verbs(tmp_path: Path) -> None:
    file = dump(
        tmp_path,
        line("IsA", "/c/en/car", "/c/en/machine"),
        line("Synonym", "/c/en/automobile/n", "/c/en/car/n"),
        line("Synonym", "/c/en/auto", "/c/en/automobile"),
        line("Synonym", "/c/en/automobile/v", "/c/en/drive/v"),
        line("Synonym", "/c/en/automobile", "/c/fr/voiture"),
        line("Synonym", "/c/en/car", "/c/en/railcar"),
        line("RelatedTo", "/c/en/automobile", "/c/en/road"),
    )
    assert synonyms_from_dump(file, Subjects(["automobile"])) == {"automobile": ["car", "auto"]}


GOOD = line("IsA", "/c/en/dog", "/c/en/pet")
MALFORMED = {
    "": "columns (=1)",
    "no tabs at all": "columns (=1)",
    "\t".join(GOOD.split("\t")[:4]): "columns (=4)",
    GOOD + "\tmore": "columns (=6)",
    GOOD[:-20]: "no JSON object",
    "a\tb\tc\td\t{}": "no relation",
    "/a/x\t/r/FormOf\t/c/fr/x\t/c/fr/y\tnot json": "no JSON object",
    line("IsA", "/c/en/dog", "/c/en/pet", "heavy"): "weight",
    line("IsA", "/c/en/dog", "/c/en/pet", True): "weight",
    line("IsA", "/c/en/dog", "/c/en/pet", -1): "weight",
    line("IsA", "/c/en/dog", "/c/en/pet", float("nan")): "weight",
    line("IsA", "/c/en/dog", "/c/en/pet", float("inf")): "weight",
    line("IsA", "/c/en/dog", "/c/en/pet", 10**400): "weight",
    "/a/x\t/r/IsA\t/c/en/dog\t/c/en/pet\t{}": "weight",
    "/a/x\t/r/IsA\t/c/en/dog\t/c/en/pet\t{" + '"a":{' * 100_000 + "}": "nested",
    "/a/x\t/r/IsA\t/c/en/dog\t/c/en/pet\t[1, {}": "no JSON object",
    line("IsA", "/c/en/dog", "/c/en/"): "no word",
    line("IsA", "/c/en/dog", "/c/en/" + "x" * 201): "no word",
    line("IsA", "/c/en/dog", "/c/en/a\x1b[2Jb"): "no word",
}


@pytest.mark.parametrize(("bad", "why"), MALFORMED.items(), ids=range(len(MALFORMED)))
def test_a_malformed_line_is_counted_or_refused_with_its_number(bad: str, why: str, tmp_path: Path) -> None:
    file = dump(tmp_path, GOOD, bad, GOOD)
    labels, counts = labels_from_dump(file, Subjects(["dog"]))
    assert (counts.lines, counts.skipped) == (3, 1) and [x.label for x in labels["dog"]] == ["pet"]
    assert (
        counts.first_skipped is not None and counts.first_skipped.startswith("line 2: ") and why in counts.first_skipped
    )
    with pytest.raises(LabelError, match="line 2: .*--strict") as caught:
        labels_from_dump(file, Subjects(["dog"]), strict=True)
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_counted(tmp_path: Path) -> None:
    file = dump(tmp_path, GOOD, GOOD.replace("pet", "p\xe9t").encode("latin-1"))
    _, counts = labels_from_dump(file, Subjects(["dog"]))
    assert counts.skipped == 1 and counts.first_skipped == "line 2: no UTF-8 text"


def test_lines_may_end_as_on_windows_and_the_last_without_end(tmp_path: Path) -> None:
    file = tmp_path / "assertions.csv"
    other = line("FormOf", "/c/en/x", "/c/en/y")
    file.write_bytes("\r\n".join([GOOD, other, line("HasA", "/c/en/dog", "/c/en/fur")]).encode())
    labels, counts = labels_from_dump(file, Subjects(["dog"]), strict=True)
    assert counts.lines == 3 and [x.label for x in labels["dog"]] == ["pet", "fur"]


def test_a_cut_gzip_file_is_used_and_told_or_refused(tmp_path: Path) -> None:
    file = dump(tmp_path, *(line("IsA", "/c/en/dog", f"/c/en/w{random.Random(i).random()}") for i in range(500)),
                name="assertions.csv.gz")  # fmt: skip
    file.write_bytes(file.read_bytes()[:-2000])
    labels, counts = labels_from_dump(file, Subjects(["dog"]))
    assert 0 < counts.lines < 500 and counts.skipped <= 1 and counts.ends_early and len(labels["dog"]) == 20
    assert any("ends early" in note for note in counts.notes(file))
    with pytest.raises(LabelError, match=r"line \d+"):
        labels_from_dump(file, Subjects(["dog"]), strict=True)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for bad in (tmp_path / "absent", tmp_path):
        with pytest.raises(LabelError, match="cannot be read"):
            labels_from_dump(bad, Subjects(["dog"]))
    (tmp_path / "empty").touch()
    with pytest.raises(LabelError, match="no labels for dog"):
        labels_from_dump(tmp_path / "empty", Subjects(["dog"]))


def slow_reading(lines: list[str], classes: dict[str, list[str]], count: int) -> dict[str, list]:
    """Every line parsed whole, everything kept, sorted in the end."""
    kept: dict[str, dict[str, list[tuple[float, str]]]] = {name: {} for name in classes}
    for text in lines:
        _, relation, start, end, about = text.split("\t")
        relation, weight = relation.split("/")[2], json.loads(about)["weight"]
        if relation not in RELATIONS or not (start.startswith("/c/en/") and end.startswith("/c/en/")):
            continue
        (one, *sense), (two, *other) = start.split("/")[3:], end.split("/")[3:]
        for name, names in classes.items():
            if one in names and sense[:1] not in (["v"], ["a"]):
                kept[name].setdefault(two, []).append((weight, relation))
            if two in names and other[:1] not in (["v"], ["a"]) and relation in CONVERSE:
                kept[name].setdefault(one, []).append((weight, CONVERSE[relation]))
    answer = {}
    for name, words in kept.items():
        tops = []
        for word, statements in words.items():
            weight = max(weight for weight, _ in statements)
            relation = min((x for w, x in statements if w == weight), key=RELATIONS.index)
            if word not in classes[name] and word.removesuffix("s") not in classes[name]:
                tops.append((word.replace("_", " "), relation, weight))
        answer[name] = sorted(tops, key=lambda top: (-top[2], RELATIONS.index(top[1]), top[0]))[:count]
    return answer


@pytest.mark.parametrize("name", ["assertions.csv", "assertions.csv.gz"])
def test_a_generated_dump_gives_what_a_slow_reader_finds(name: str, tmp_path: Path) -> None:
    draw = random.Random(7)
    words = ["dog", "dogs", "cat", "car", "automobile", "ship", *(f"w{i}_x" for i in range(60))]
    suffixes = ["", "", "", "/n", "/v", "/n/wn/animal", "/a/wikt/en_1"]
    relations = [*RELATIONS, "Synonym", "FormOf", "ExternalURL", "NotIsA"]
    lines = [
        line(
            draw.choice(relations),
            *(
                f"/c/{draw.choice(['en', 'en', 'en', 'fr'])}/{draw.choice(words)}{draw.choice(suffixes)}"
                for _ in range(2)
            ),
            weight=draw.choice([0.5, 1.0, 1.0, 2.0, 3.464]),
        )
        for _ in range(20_000)
    ]
    classes = {"dog": ["dog"], "automobile": ["automobile", "car"], "ship": ["ship"]}
    labels = found(dump(tmp_path, *lines, name=name), *classes, per_class=40, synonyms={"automobile": ["car"]})
    assert labels == slow_reading(lines, classes, 40)
    assert all(len(of) == 40 for of in labels.values())


PIECES = st.sampled_from(
    ["/r/IsA", "/r/RelatedTo", "/r/x", "/c/en/dog", "/c/en/dog/n/", "/c/en/", "/c/", "/c/en/\ud7ff", "{}", "{",
     '{"weight": 1.0}', '{"weight": 1e999}', '{"weight": 1.0, "dataset": "\\ud800", "license": 3}', "", "\t", "\0"]
) | st.text(max_size=5)  # fmt: skip


@settings(max_examples=150)
@given(st.lists(st.lists(PIECES, max_size=6).map("\t".join).map(str.encode) | st.binary(max_size=40), max_size=5))
def test_any_lines_are_read_or_refused_in_one_line(tmp_path_factory, lines: list[bytes]) -> None:
    file = tmp_path_factory.getbasetemp() / "hostile.csv"
    file.write_bytes(b"\n".join([*lines, GOOD.encode()]))
    for strict in (False, True):
        try:
            labels, counts = labels_from_dump(file, Subjects(["dog"]), strict=strict)
            assert counts.skipped < counts.lines and "pet" in {x.label for x in labels["dog"]}
        except DeploytoolError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("language", ["", "e", "../x", "en/dog", "é", "x" * 13])
def test_what_is_no_language_is_refused(language: str, tmp_path: Path) -> None:
    with pytest.raises(DeploytoolError, match="language"):
        labels_from_dump(dump(tmp_path, GOOD), Subjects(["dog"]), language=language)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder with real lines of ConceptNet is absent")
def test_real_lines_of_conceptnet() -> None:
    file = SHARED / "conceptnet-assertions-sample.csv"
    lines = file.read_text().splitlines()
    labels, counts = labels_from_dump(file, Subjects(["test", "assay"]), 50, strict=True)
    assert counts.lines == len(lines) and counts.skipped == 0
    ours = {name: [(x.label, x.relation, x.weight) for x in of] for name, of in labels.items()}
    assert ours == slow_reading(lines, {"test": ["test"], "assay": ["assay"]}, 50)
    quiz = labels["test"][0]
    assert (quiz.label, quiz.relation, quiz.weight, quiz.source) == ("quiz", "RelatedTo", 3.462, "/d/verbosity")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder with ConceptNet's phrases is absent")
def test_the_shipped_map_knows_what_conceptnet_says_of_its_classes() -> None:
    from deploytool.labels.files import load_labels

    shipped = load_labels(Path(__file__).parents[2] / "recipes" / "labels" / "cifar10.yaml")
    phrases = {x.removeprefix("a ").removeprefix("an ") for x in
               (SHARED / "conceptnet-cifar10-concepts.txt").read_text().lower().splitlines()}  # fmt: skip
    assert len(phrases & set(shipped.labels)) >= 15
