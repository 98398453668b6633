"""The label map: vectors as in paper 1, section 3.2, and what is refused."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploytool.errors import LabelError
from deploytool.labels.label_map import Label, LabelMap, clean

WORDS = st.sampled_from(["animal", "paws", "spots", "tires", "seat", "engine", "fur"])


def label_map(**classes: list[str]) -> LabelMap:
    return LabelMap({name: [Label(label) for label in labels] for name, labels in classes.items()})


def test_the_papers_example() -> None:
    labels = label_map(panda=["animal", "paws", "spots"], bus=["tires", "seat", "engine"])
    assert labels.labels == ("animal", "paws", "spots", "tires", "seat", "engine")
    vectors = labels.vectors()
    assert vectors.dtype == np.uint8
    assert vectors.tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(WORDS, min_size=1, unique=True), min_size=1))
def test_a_vector_says_which_labels_a_class_has(classes: dict[str, list[str]]) -> None:
    labels = label_map(**classes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # equal vectors are told once, where a map is read
        vectors = labels.vectors()
    assert vectors.shape == (len(classes), len(set().union(*map(set, classes.values()))))
    for row, (name, words) in zip(vectors, classes.items(), strict=True):
        assert {word for word, bit in zip(labels.labels, row, strict=True) if bit} == set(words), name
    rows = [tuple(row) for row in vectors.tolist()]
    assert (len(set(rows)) < len(rows)) == bool(labels.equal_vectors())


def test_equal_vectors_are_named_whatever_the_order_of_labels() -> None:
    labels = label_map(panda=["animal", "paws"], bus=["tires"], bear=["paws", "animal"])
    assert labels.equal_vectors() == [("panda", "bear")]
    (line,) = labels.equal_lines()
    assert "classes panda, bear have the same labels" in line


def test_classes_come_in_the_order_asked_for() -> None:
    labels = label_map(panda=["paws"], bus=["tires"]).for_classes(["bus", "panda"])
    assert list(labels) == ["bus", "panda"] and labels.labels == ("tires", "paws")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["panda", "car"], ["lacks car", "nobody asks for its bus", "exactly panda, car"]),
        (["panda"], ["nobody asks for its bus"]),
        (["panda", "bus", "car"], ["lacks car"]),
    ],
)
def test_a_map_for_other_classes_is_refused(names: list[str], words: list[str]) -> None:
    with pytest.raises(LabelError) as caught:
        label_map(panda=["paws"], bus=["tires"]).for_classes(names)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_empty_and_double_are_refused() -> None:
    with pytest.raises(LabelError, match="no classes"):
        LabelMap({})
    with pytest.raises(LabelError, match="class bus has no labels"):
        label_map(panda=["paws"], bus=[])
    with pytest.raises(LabelError, match="class panda has label 'paws' twice"):
        label_map(panda=["paws", "paws"])


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"label": ""}, "label"),
        ({"label": "Fur"}, "lower case"),
        ({"label": "a\nb"}, "label"),
        ({"label": "x" * 201}, "200"),
        ({"label": "fur", "relation": "Has"}, "IsA, PartOf"),
        ({"label": "fur", "weight": float("nan")}, "weight"),
        ({"label": "fur", "weight": -1.0}, "weight"),
        ({"label": "fur", "direction": "back"}, "forward or reverse"),
        ({"label": "fur", "source": "a\x1b[2J"}, "source"),
    ],
)
def test_a_label_is_checked_where_it_is_made(fields: dict, word: str) -> None:
    with pytest.raises(LabelError, match=word):
        Label(**fields)


def test_the_first_labels_and_those_who_lack_some() -> None:
    labels = label_map(panda=["paws", "fur", "animal"], bus=["tires"])
    assert labels.top(2).to_dict()["panda"] == [
        {"label": "paws", "relation": None, "weight": 1.0},
        {"label": "fur", "relation": None, "weight": 1.0},
    ]
    assert labels.short_lines(1) == []
    (line,) = labels.short_lines(3)
    assert "bus (1)" in line and "panda" not in line


@given(st.text())
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert clean(clean(text)) == clean(text)


def test_labels_need_no_torch() -> None:
    code = "import sys, pkgutil, importlib, deploytool.labels as room\n"
    code += (
        "for module in pkgutil.iter_modules(room.__path__, room.__name__ + '.'): importlib.import_module(module.name)\n"
    )
    code += "import deploytool.report.labels\n"
    code += "print(sorted({'torch', 'sklearn', 'onnxruntime', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
