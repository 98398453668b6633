"""Coverage, accuracy and detection counted by hand, and against sklearn and a naive loop."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc

from deploytool.explain.consistency import (
    Answers,
    answers,
    area_under,
    auroc,
    curve,
    load_answers,
    read_tally,
    save_answers,
    tally,
)


def of(label: list[int], predicted: list[int], agreements: list[int], confidence: list[float], reasons=10) -> Answers:
    return Answers(np.array(label), np.array(predicted), np.array(agreements), np.array(confidence), reasons)


HAND = of([0, 0, 1, 1], [0, 1, 1, 1], [10, 9, 8, 9], [0.9, 0.5, 0.6, 0.7])


def test_the_rule_of_section_3_3_by_hand() -> None:
    assert HAND.accepted(0.9).tolist() == [True, True, False, True]
    assert HAND.coverage(0.9) == 0.75 and HAND.accuracy_consistent(0.9) == 2 / 3
    assert HAND.coverage(1.0) == 0.25 and HAND.accuracy_consistent(1.0) == 1.0
    assert HAND.accuracy == 0.75
    assert of([0], [0], [3], [0.5]).accuracy_consistent(1.0) is None


def test_a_softmax_rule_of_equal_coverage() -> None:
    assert [HAND.confidence_at(c) for c in (0.0, 0.25, 0.75, 1.0)] == [math.inf, 0.9, 0.6, 0.5]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30, unique=True), st.data())
def test_as_many_are_accepted(confidence, data) -> None:
    count = data.draw(st.integers(0, len(confidence)))
    none = [0] * len(confidence)
    least = of(none, none, none, confidence).confidence_at(count / len(confidence))
    assert sum(value >= least for value in confidence) == count


def test_answers_are_read_off_the_two_heads() -> None:
    vectors = torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=torch.bool)
    rows = torch.tensor([[2.0, 0.0, 1.0, 1.0, -1.0], [0.0, 1.0, 1.0, 1.0, 0.0]])
    parts = [(rows[:1], torch.tensor([0])), (rows[1:], torch.tensor([0]))]
    found = answers(lambda image: image, parts, vectors)
    assert found.predicted.tolist() == [0, 1] and found.right.tolist() == [True, False]
    assert found.agreements.tolist() == [3, 1]  # a logit of 0 is a probability of 0.5: not above it
    assert found.confidence == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))])
    assert found.reasons == 3


def test_tallies_answer_for_every_threshold_and_survive_json() -> None:
    after = of([0, 1, 1], [1, 1, 0], [7, 10, 9], [0.5, 0.5, 0.5])
    counts = json.loads(json.dumps(tally(HAND, after)))
    assert counts["right"] == {"8": 1, "9": 1, "10": 1} and counts["fooled"] == {"7": 1, "9": 1}
    read = read_tally(counts, 0.9)
    assert read == {
        "accuracy": 0.75, "coverage": 0.75, "accuracy_consistent": 2 / 3, "coverage_right": 2 / 3,
        "coverage_attacked": 2 / 3, "detection_rate": 1 - 2 / 3, "detection_rate_changed": 0.5,
    }  # fmt: skip
    assert read_tally(counts, 1.0)["coverage_attacked"] == 1 / 3
    assert read_tally(counts, 0.0)["coverage"] == 1.0


def test_nothing_right_gives_none() -> None:
    wrong = of([0], [1], [5], [0.5])
    read = read_tally(tally(wrong, wrong[wrong.right]), 1.0)
    assert read["accuracy"] == 0 and read["accuracy_consistent"] is None and read["detection_rate"] is None


def test_answers_come_back_from_disk_and_damage_is_noticed(tmp_path) -> None:
    file = tmp_path / "answers.npz"
    save_answers(file, HAND, "key")
    found = load_answers(file, "key")
    assert found is not None and found.reasons == 10
    for name in ("label", "predicted", "agreements", "confidence"):
        assert np.array_equal(getattr(found, name), getattr(HAND, name))
    assert load_answers(file, "another") is None and load_answers(tmp_path / "absent.npz", "key") is None
    data = file.read_bytes()
    for cut in (0, 10, len(data) // 2, len(data) - 30):
        file.write_bytes(data[:cut])
        assert load_answers(file, "key") is None
    np.savez(file, key="key", label=[1], predicted=[1, 2], agreements=[1], confidence=[1.0], reasons=3)
    assert load_answers(file, "key") is None


scores = st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=1, max_size=40)


@given(scores)
def test_a_tally_is_the_answers(rows) -> None:
    agreements, right = [row[0] for row in rows], [row[1] for row in rows]
    found = of([0] * len(rows), [0 if r else 1 for r in right], agreements, [0.5] * len(rows))
    counts = tally(found, found[found.right])
    for threshold in (0.0, 0.3, 0.9, 1.0):
        read = read_tally(counts, threshold)
        assert read["coverage"] == pytest.approx(found.coverage(threshold))
        assert read["accuracy_consistent"] == found.accuracy_consistent(threshold)


@given(scores)
def test_a_curve_is_the_naive_one(rows) -> None:
    score, right = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    points = curve(score, right)
    naive = []
    for threshold in sorted(set(score.tolist()), reverse=True):
        chosen = [r for s, r in rows if s >= threshold]
        naive.append((threshold, len(chosen) / len(rows), sum(chosen) / len(chosen)))
    assert [(p["threshold"], p["coverage"]) for p in points] == [(t, c) for t, c, _ in naive]
    assert [p["accuracy"] for p in points] == pytest.approx([a for _, _, a in naive])
    assert points[-1]["coverage"] == 1


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    rng = np.random.default_rng(0)
    score, right = rng.random(5000), rng.random(5000) < 0.7
    points = curve(score, right, most=50)
    assert len(points) == 50 and points[-1]["coverage"] == 1 and points[-1]["accuracy"] == right.mean()


@given(scores)
def test_auroc_counts_pairs(rows) -> None:
    score, positive = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    pairs = [(s > t) + 0.5 * (s == t) for s in score[positive].tolist() for t in score[~positive].tolist()]
    assert auroc(score, positive) == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)


def test_the_area_is_the_mean_risk() -> None:
    points = [
        {"threshold": 1.0, "coverage": 0.5, "accuracy": 1.0},
        {"threshold": 0.0, "coverage": 1.0, "accuracy": 0.8},
    ]
    assert area_under(points) == pytest.approx(0.5 * 0.2 / 2)
    many = curve(np.arange(100), np.arange(100) % 3 > 0)
    x, y = [0.0, *(p["coverage"] for p in many)], [1 - many[0]["accuracy"], *(1 - p["accuracy"] for p in many)]
    assert area_under(many) == pytest.approx(auc(x, y))
