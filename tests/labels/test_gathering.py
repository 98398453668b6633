"""Gathering: the same answer as sorting everything, in whatever order statements come, in bounded memory."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploytool.errors import LabelError
from deploytool.labels import gathering as module
from deploytool.labels.gathering import Gathering
from deploytool.labels.label_map import Label
from deploytool.labels.relations import RELATIONS
from deploytool.labels.subjects import Subjects

LABELS = st.builds(
    Label,
    label=st.sampled_from([f"l{i}" for i in range(12)] + ["dog", "dogs"]),
    relation=st.sampled_from(RELATIONS),
    weight=st.sampled_from([0.5, 1.0, 2.0, 3.464]),
)


def best(labels: list[Label], count: int) -> list[tuple[str, float, str | None]]:
    """By brute force, in the words of the docstring."""
    words = {label.label for label in labels} - {"dog", "dogs"}
    tops = []
    for word in words:
        same = [label for label in labels if label.label == word]
        weight = max(label.weight for label in same)
        relation = min((x.relation for x in same if x.weight == weight), key=RELATIONS.index)
        tops.append((word, weight, relation))
    return sorted(tops, key=lambda top: (-top[1], RELATIONS.index(top[2]), top[0]))[:count]


@given(st.lists(LABELS, max_size=60), st.integers(1, 8), st.integers(1, 8), st.randoms())
def test_it_is_the_brute_force_answer_whatever_is_let_go_on_the_way(
    labels: list[Label], count: int, more: int, draw: random.Random
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LEAST_KEPT", more)
        gathering = Gathering(Subjects(["dog"]), count)
        shuffled = draw.sample(labels, len(labels))
        for label in shuffled:
            gathering.add("dog", label)
        assert len(gathering._best["dog"]) <= 2 * max(count, more)
        expected = best(labels, count)
        if expected:
            found = gathering.finish("test")["dog"]
            assert [(x.label, x.weight, x.relation) for x in found] == expected
        else:
            with pytest.raises(LabelError, match="--synonym dog=NAME"):
                gathering.finish("test")


@pytest.mark.parametrize("count", [0, -1, 20_001])
def test_a_number_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(LabelError, match="per-class"):
        Gathering(Subjects(["dog"]), count)
