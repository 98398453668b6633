"""Classes and their names: what stands for a class, and which labels are only its name again."""

import pytest

from deploytool.errors import DeploytoolError, InputError
from deploytool.labels.classes import class_names
from deploytool.labels.subjects import OwnNames, Subjects, parse_synonyms


def test_names_are_lower_case_with_spaces_and_the_first_is_its_own() -> None:
    subjects = Subjects(["Pine_Tree", "automobile"], {"automobile": ["car", "Motor_Car", "car"]})
    assert subjects.classes == ("Pine_Tree", "automobile")
    assert subjects.names == {"Pine_Tree": ("pine tree",), "automobile": ("automobile", "car", "motor car")}
    assert subjects.by_name()["motor car"] == ("automobile",)


def test_a_name_may_stand_for_two_classes() -> None:
    assert Subjects(["crane", "hoist"], {"crane": ["lifter"], "hoist": ["lifter"]}).by_name()["lifter"] == (
        "crane",
        "hoist",
    )


def test_found_synonyms_that_are_classes_are_left() -> None:
    subjects = Subjects(["automobile", "truck"], {"automobile": ["car"]}).with_synonyms(
        {"automobile": ["auto", "truck"]}
    )
    assert subjects.names == {"automobile": ("automobile", "car", "auto"), "truck": ("truck",)}


@pytest.mark.parametrize(
    ("label", "own"),
    [
        ("car", True), ("cars", True), ("automobiles", True), ("motor-car", True), ("motor cars", True),
        ("butterflies", True), ("butterfly", True), ("wolves", True), ("wolf", True), ("foxes", True), ("glass", True),
        ("glasses", True), ("carriage", False), ("sports car", False), ("care", False), ("scar", False), ("", False),
    ],
)  # fmt: skip
def test_a_label_that_is_the_classes_name_or_its_plural(label: str, own: bool) -> None:
    names = OwnNames(["automobile", "car", "motor car", "butterfly", "wolf", "foxes", "glasses"])
    assert (label in names) == own


@pytest.mark.parametrize(
    ("classes", "synonyms", "words"),
    [
        ([], {}, "no classes"),
        (["a", "A"], {}, "twice"),
        (["pine tree", "pine_tree"], {}, "twice"),
        ([""], {}, "must be a name"),
        (["_"], {}, "must be a name"),
        (["a\nb"], {}, "must be a name"),
        (["a"], {"b": ["c"]}, "no such class"),
        (["a", "b"], {"a": ["b"]}, "is itself a class"),
        (["a"], {"a": [""]}, "must be a name"),
    ],
)
def test_bad_names_are_refused(classes: list[str], synonyms: dict[str, list[str]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Subjects(classes, synonyms)


def test_synonyms_are_read_from_the_command_line() -> None:
    pairs = ["automobile=car", "automobile = auto,motor car", "ship=boat"]
    assert parse_synonyms(pairs) == {"automobile": ["car", "auto", "motor car"], "ship": ["boat"]}
    for bad in ("automobile", "=car", "automobile=", "automobile=car,"):
        with pytest.raises(InputError, match="automobile=car"):
            parse_synonyms([bad])


def test_the_classes_of_a_data_set() -> None:
    assert class_names(None, "cifar10")[:2] == ("airplane", "automobile") and len(class_names(None, "cifar100")) == 100
    assert class_names(("a ", "b"), None) == ("a", "b")
    with pytest.raises(DeploytoolError, match="did you mean cifar10"):
        class_names(None, "cifar-10")
    with pytest.raises(DeploytoolError, match="--classes"):
        class_names(None, None)
