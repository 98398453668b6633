"""Label maps as YAML: what is written comes back equal; what a person may get wrong is one line that says where."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import DeploytoolError, LabelError
from deploytool.labels import files
from deploytool.labels.files import load_labels, parse_labels, read_labels, save_labels, to_yaml
from deploytool.labels.label_map import EqualVectorsWarning, Label, LabelMap, clean, is_text
from deploytool.labels.relations import RELATIONS

SHIPPED = sorted((Path(__file__).parents[2] / "recipes" / "labels").glob("*.yaml"))
TEXTS = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), min_size=1, max_size=30).filter(is_text)
LABELS = st.builds(
    Label,
    label=TEXTS.map(clean).filter(is_text),
    relation=st.none() | st.sampled_from(RELATIONS),
    weight=st.floats(0, 1e9),
    source=st.none() | TEXTS,
    licence=st.none() | TEXTS,
    direction=st.sampled_from(["forward", "reverse"]),
)
MAPS = st.dictionaries(
    TEXTS, st.lists(LABELS, min_size=1, max_size=4, unique_by=lambda label: label.label), min_size=1, max_size=4
).map(LabelMap)


def as_data(labels: LabelMap) -> dict[str, tuple[Label, ...]]:
    return dict(labels.items())


def refusal(text: str) -> str:
    with pytest.raises(LabelError) as caught:
        parse_labels(text, "map.yaml")
    assert "\n" not in str(caught.value) and "map.yaml" in str(caught.value)
    return str(caught.value)


@settings(max_examples=40)
@given(MAPS)
def test_what_is_written_comes_back_equal(labels: LabelMap) -> None:
    assert as_data(parse_labels(to_yaml(labels))) == as_data(labels)


def test_a_file_is_written_whole_and_read_back(tmp_path: Path) -> None:
    labels = LabelMap({"no": [Label("fur", "HasA", 2.5, "/d/x", "cc:by/4.0", "reverse")], "0": [Label("null")]})
    save_labels(tmp_path / "labels.yaml", labels)
    assert as_data(load_labels(tmp_path / "labels.yaml")) == as_data(labels)
    assert [file.name for file in tmp_path.iterdir()] == ["labels.yaml"]


def test_other_readers_of_yaml_see_the_same(tmp_path: Path) -> None:
    labels = LabelMap({"0": [Label("four legs", "HasA", 2.0)]})
    assert yaml.safe_load(to_yaml(labels)) == {
        "classes": {"0": [{"label": "four legs", "relation": "HasA", "weight": 2.0}]}
    }


@pytest.mark.parametrize(
    "text",
    [
        "panda: [animal, paws]\n",
        "classes: {panda: [Animal, PAWS]}",
        "classes:\n  panda:\n  - label: animal\n  - paws",
    ],
)
def test_labels_alone_are_enough(text: str) -> None:
    assert as_data(parse_labels(text)) == {"panda": (Label("animal"), Label("paws"))}


def test_a_class_may_be_named_classes() -> None:
    assert list(parse_labels("classes: [a, b]\npanda: [animal]")) == ["classes", "panda"]


def test_words_that_yaml_takes_for_something_else_are_text() -> None:
    labels = parse_labels("no: [yes, 1.5, 0x10, 2001-01-01]\n0: [on]")
    assert [label.label for label in labels["no"]] == ["yes", "1.5", "0x10", "2001-01-01"] and list(labels) == [
        "no",
        "0",
    ]


def test_source_and_licence_of_the_file_are_those_of_its_labels() -> None:
    labels = parse_labels("source: me\nlicence: CC0-1.0\nclasses: {a: [x, {label: y, source: you}]}")
    assert labels["a"] == (Label("x", source="me", licence="CC0-1.0"), Label("y", source="you", licence="CC0-1.0"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["nothing"]),
        ("[]", ["a list"]),
        ("{}", ["no classes"]),
        ("classes: {}", ["no classes"]),
        ("clases: {panda: [a]}", ["unknown key clases", "did you mean classes"]),
        ("classes: {panda: [a]}\nlicense: x", ["license", "did you mean licence"]),
        ("classes: {panda: [a]}\nsource: [x]", ["source must be a line of text"]),
        ("panda: []", ["class panda has no labels"]),
        ("panda:", ["class panda has no labels"]),
        ("panda: animal", ["class panda must be a list", "text"]),
        ("panda: [animal, Animal]", ["'animal' twice"]),
        ("panda: [a]\nbus: [b]\npanda: [c]", ["line 3", "panda is there twice"]),
        ("panda: [{label: a, label: b}]", ["line 1", "label is there twice"]),
        ("panda: [{lable: a}]", ["class panda, label 1", "did you mean label"]),
        ("panda: [{relation: IsA}]", ["label is missing"]),
        ("panda: [a, {label: b, relation: isa}]", ["label 2", "isa", "did you mean IsA"]),
        ("panda: [{label: a, weight: heavy}]", ["weight (=heavy)"]),
        ("panda: [{label: a, weight: .nan}]", ["weight"]),
        ("panda: [{label: a, weight: nan}]", ["weight (=nan)"]),
        ("panda: [{label: a, weight: -1}]", ["weight (=-1)"]),
        ("panda: [{label: a, weight: [1]}]", ["weight must be text", "a list"]),
        ("panda: [{label: a, direction: up}]", ["direction"]),
        ("panda: ['']", ["label"]),
        ("panda: [~]", ["nothing"]),
        ("panda: [[a]]", ["a list"]),
        ("panda: [\"a\\u0007b\"]", ["printable"]),
        ("a: &x [b]\nc: *x", ["line 2", "aliases"]),
        ("a: [b", ["no valid YAML"]),
        ("? [a]\n: [b]", ["a key must be a name"]),
        ("a: [b]\n---\nc: [d]", ["one YAML document"]),
        ("a: " + "[" * 5000 + "]" * 5000, ["too deeply nested"]),
        ("a: " + "{b: " * 50 + "c" + "}" * 50, ["too deeply nested"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(text: str, words: list[str]) -> None:
    message = refusal(text)
    for word in words:
        assert word in message


@given(st.text() | st.text(alphabet="abc:[]{}-&*!|>'\"\n ,?#%@`~0.", max_size=60))
def test_any_text_is_a_map_or_one_line(text: str) -> None:
    try:
        parse_labels(text)
    except DeploytoolError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500


@given(st.recursive(st.none() | st.booleans() | st.floats() | TEXTS, lambda x: st.lists(x) | st.dictionaries(TEXTS, x)))
def test_any_document_is_a_map_or_one_line(document: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parse_labels(yaml.safe_dump(document))
            parse_labels(yaml.safe_dump({"classes": document}))
        except DeploytoolError as error:
            assert "\n" not in str(error)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(LabelError, match="No such file"):
        read_labels(tmp_path / "absent.yaml")
    with pytest.raises(LabelError, match="directory"):
        read_labels(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LabelError, match="no UTF-8"):
        read_labels(tmp_path / "binary.yaml")
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    (tmp_path / "large.yaml").write_text("panda: [animal]")
    with pytest.raises(LabelError, match="more than 10 bytes"):
        read_labels(tmp_path / "large.yaml")


def test_the_slower_parser_reads_the_same(monkeypatch) -> None:
    text = SHIPPED[0].read_text()
    fast = as_data(parse_labels(text))
    monkeypatch.setattr(files, "Parser", yaml.BaseLoader)
    monkeypatch.setattr(files, "Dumper", yaml.SafeDumper)
    assert as_data(parse_labels(text)) == as_data(parse_labels(to_yaml(LabelMap(fast)))) == fast


def test_equal_vectors_warn_when_a_map_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "labels.yaml"
    file.write_text("panda: [animal]\nbear: [animal]\nbus: [tires]\n")
    with pytest.warns(EqualVectorsWarning, match="panda, bear"):
        load_labels(file)


def test_maps_are_shipped() -> None:
    assert {file.stem for file in SHIPPED} >= {"digits", "cifar10"}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_map_fits_its_data_set(file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = load_labels(file)
        vectors = labels.vectors()
    assert tuple(labels) == CATALOGUE[file.stem].classes
    assert not labels.equal_vectors()
    distances = (vectors[:, None] != vectors[None]).sum(-1)
    # a mistake in one label, or two, must not turn one class into another
    assert distances[~np.eye(len(labels), dtype=bool)].min() >= 5
    for name, entries in labels.items():
        assert all(label.relation and label.source and label.licence for label in entries), name
        assert file.stem != "cifar10" or len(entries) == 20
    shared = (vectors.sum(0) > 1).mean()
    assert shared > 0.3  # labels that say the class alone would be the class once more


def test_a_stream_of_aliases_never_unfolds() -> None:
    bomb = io.StringIO()
    bomb.write("a: &a [x,x,x,x,x,x,x,x,x]\n")
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb.write(f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n")
    assert "aliases" in refusal(bomb.getvalue())
