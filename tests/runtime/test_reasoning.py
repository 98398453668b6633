"""Verdicts from reasoning labels: the paper's table 1 by hand, exact thresholds, hostile metadata."""

import json
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from deploytool.errors import InputError
from deploytool.runtime.reasoning import (
    LABELS,
    MAX_LABELS,
    THRESHOLD,
    VECTORS,
    Reasoning,
    agreements,
    given_reasons,
    read_reasoning,
    required_agreements,
)

Array = np.ndarray[Any, Any]

CLASSES = ("panda", "bus")
NAMES = ("animal", "paws", "spots", "tires", "seats", "engine")
TABLE = Reasoning(CLASSES, NAMES, np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], bool), 1.0)
PANDA, BUS = [2.0, -1.0], [-1.0, 2.0]


def verdict_on(logits: list[float], reasoning: list[float], threshold: float | None = None) -> Any:
    return TABLE.judge(np.array([logits], np.float32), np.array([reasoning], np.float32), threshold)[0]


# Paper 1, table 1, at t_rsn 1: predictions 1 and 2 are accepted, 3 is not.
@pytest.mark.parametrize(
    ("logits", "reasoning", "words"),
    [
        (PANDA, [0.9, 0.8, 0.7, 0.1, 0.1, 0.1], "classified panda, accepted: animal, paws, spots"),
        (BUS, [0.1, 0.1, 0.1, 0.7, 0.9, 0.8], "classified bus, accepted: seats, engine, tires"),
        (
            PANDA,
            [0.1, 0.2, 0.3, 0.4, 0.6, 0.7],
            "classified panda, rejected: says engine, seats; lacks animal, paws, spots",
        ),
    ],
)
def test_table_1_of_the_paper(logits: list[float], reasoning: list[float], words: str) -> None:
    assert verdict_on(logits, reasoning).words == words


def test_the_example_of_the_issue() -> None:
    verdict = verdict_on(PANDA, [0.1, 0.2, 0.6, 0.9, 0.8, 0.5])  # 0.5 is not above 0.5
    assert verdict.words == "classified panda, rejected: says tires, seats; lacks animal, paws"
    assert (verdict.says, verdict.lacks) == (("tires", "seats"), ("animal", "paws"))
    assert verdict.reasons == ("tires", "seats", "spots")
    assert (verdict.agreements, verdict.agreement) == (2, 2 / 6)  # spots said, engine not said


def test_the_threshold_can_be_changed_at_each_call() -> None:
    reasoning = [0.9, 0.2, 0.8, 0.1, 0.1, 0.6]  # 4 of 6 agree
    assert [verdict_on(PANDA, reasoning, t).accepted for t in (0.0, 0.66, 4 / 6, 0.67, 1.0, None)] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    words = verdict_on(PANDA, reasoning, 0.6).words
    assert words == "classified panda, accepted at 0.66: animal, spots; says engine; lacks paws"
    assert verdict_on(PANDA, [0] * 6, 0.5).words == (
        "classified panda, accepted at 0.50: no reason of its class; lacks animal, paws, spots"
    )


def test_a_verdict_as_json() -> None:
    document = verdict_on(PANDA, [0.9, 0.2, 0.8, 0.1, 0.1, 0.6], 0.5).to_dict()
    assert json.loads(json.dumps(document)) == {
        "reasons": ["animal", "spots", "engine"],
        "violated": {"says": ["engine"], "lacks": ["paws"]},
        "agreement": pytest.approx(2 / 3),
        "threshold": 0.5,
        "accepted": True,
        "verdict": "classified panda, accepted at 0.66: animal, spots; says engine; lacks paws",
    }


def test_long_lists_are_cut_in_words_alone() -> None:
    names = tuple(f"r{index}" for index in range(538))
    many = Reasoning(CLASSES, names, np.arange(2)[:, None] == np.arange(538) % 2, 1.0)
    reasoning = np.zeros((1, 538), np.float32)
    reasoning[0, 1:44:2] = np.linspace(1, 0.6, 22)
    (verdict,) = many.judge(np.array([PANDA]), reasoning)
    assert verdict.says == tuple(f"r{index}" for index in range(1, 44, 2)) and len(verdict.lacks) == 269
    assert "says r1, r3, r5, r7, r9, r11, r13, r15, r17, r19 and 12 more; lacks r0, r2," in verdict.words
    assert verdict.words.endswith("r18 and 259 more")


def test_a_share_is_not_rounded_up_to_one() -> None:
    many = Reasoning(CLASSES, tuple(map(str, range(538))), np.ones((2, 538), bool), 0.5)
    reasoning = np.full((1, 538), 0.9, np.float32)
    reasoning[0, 7] = 0
    assert many.judge(np.array([PANDA]), reasoning)[0].words.startswith("classified panda, accepted at 0.99: ")


@given(st.integers(1, 700), st.floats(0, 1))
def test_required_agreements_is_the_smallest_share_at_or_above_the_threshold(count: int, threshold: float) -> None:
    needed = required_agreements(count, threshold)
    assert [k / count >= threshold for k in range(count + 1)] == [False] * needed + [True] * (count - needed + 1)


@given(st.integers(1, 2000), st.data())
def test_required_agreements_is_exact_at_equality(count: int, data: st.DataObject) -> None:
    agreeing = data.draw(st.integers(0, count))
    assert required_agreements(count, agreeing / count) == agreeing
    above = float(np.nextafter(agreeing / count, 2))
    if above <= 1:
        assert required_agreements(count, above) == agreeing + 1


def test_required_agreements_by_hand() -> None:
    assert [required_agreements(6, t) for t in (0, 0.5, 0.51, 2 / 3, 0.67, 1)] == [0, 3, 4, 4, 5, 6]
    assert required_agreements(182, 0.95) == 173  # 172.9
    assert required_agreements(10, 0.7) == 7 and Fraction(0.7) * 10 < 7 < 0.7 * 10 + 1e-9


@pytest.mark.parametrize("threshold", [-0.01, 1.01, float("nan"), float("inf"), "0.5", True, None, [0.5]])
def test_a_threshold_out_of_range_is_refused_in_one_line(threshold: Any) -> None:
    with pytest.raises(InputError, match=r"t_rsn .* in \[0, 1\]") as caught:
        required_agreements(6, threshold)
    assert "\n" not in str(caught.value)


def test_no_labels_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        required_agreements(0, 0.5)


@st.composite
def judged(draw: st.DrawFn) -> tuple[Reasoning, Array, Array]:
    """A label map with R labels, and logits and probabilities of up to six images."""
    n, k, r = draw(st.integers(0, 6)), draw(st.integers(2, 5)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    vectors = rng.random((k, r)) < 0.4
    names = tuple(f"label {index}" for index in range(r))
    probabilities = rng.choice(np.array([0, 0.25, 0.5, 0.500001, 0.75, 1], np.float32), (n, r))
    return Reasoning(tuple(map(str, range(k))), names, vectors, 0.5), rng.normal(size=(n, k)), probabilities


@given(judged())
def test_agreements_are_those_of_a_naive_loop(case: tuple[Reasoning, Array, Array]) -> None:
    reasoning, logits, probabilities = case
    got = agreements(logits.argmax(1), probabilities > 0.5, reasoning.vectors)
    want = [
        sum((p > 0.5) == bool(v) for p, v in zip(row, reasoning.vectors[int(np.argmax(scores))], strict=True))
        for scores, row in zip(logits, probabilities, strict=True)
    ]
    assert got.dtype == np.int64 and got.tolist() == want


@given(judged(), st.floats(0, 1))
def test_says_and_lacks_are_the_disagreement(case: tuple[Reasoning, Array, Array], threshold: float) -> None:
    reasoning, logits, probabilities = case
    verdicts = reasoning.judge(logits, probabilities, threshold)
    assert len(verdicts) == len(logits)
    for verdict, scores, row in zip(verdicts, logits, probabilities, strict=True):
        own = {reasoning.labels[i] for i in np.flatnonzero(reasoning.vectors[np.argmax(scores)])}
        said = {reasoning.labels[i] for i in np.flatnonzero(row > 0.5)}
        assert set(verdict.reasons) == said
        assert set(verdict.says) == said - own and set(verdict.lacks) == own - said
        assert verdict.count - verdict.agreements == len(verdict.says) + len(verdict.lacks)
        assert verdict.accepted == (Fraction(verdict.agreement) >= Fraction(threshold))
        shares = [row[reasoning.labels.index(name)] for name in verdict.reasons]
        assert shares == sorted(shares, reverse=True)
        assert "\n" not in verdict.words and ("accepted" in verdict.words) == verdict.accepted


@given(judged(), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_accepts_no_more(case: tuple[Reasoning, Array, Array], one: float, other: float) -> None:
    reasoning, logits, probabilities = case
    low, high = (
        [verdict.accepted for verdict in reasoning.judge(logits, probabilities, t)] for t in sorted((one, other))
    )
    assert all(below or not above for below, above in zip(low, high, strict=True))
    assert all(verdict.accepted for verdict in reasoning.judge(logits, probabilities, 0))


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(N, 2\) and \(N, 6\)"):
        TABLE.judge(np.zeros((1, 2)), np.zeros((2, 6)))


def test_the_properties_come_back() -> None:
    read = read_reasoning(TABLE.to_properties(), CLASSES)
    assert read is not None
    assert (read.classes, read.labels, read.threshold) == (CLASSES, NAMES, 1.0)
    assert read.vectors.dtype == bool and np.array_equal(read.vectors, TABLE.vectors)
    with pytest.raises(ValueError, match="read-only"):
        read.vectors[0, 0] = False
    assert read_reasoning({"deploytool.version": "1"}, CLASSES) is None


HOSTILE = [
    (LABELS, "[]"),
    (LABELS, "{}"),
    (LABELS, "[1, 2, 3, 4, 5, 6]"),
    (LABELS, json.dumps(["a", "b", "c", "d", "e", "e"])),
    (LABELS, json.dumps(["a", "b", "c", "d", "e", "x" * 201])),
    (LABELS, json.dumps(["a", "b", "c", "d", "e", "two\nlines"])),
    (LABELS, json.dumps(["a", "b", "c", "d", "e", "\x1b[31m"])),
    (LABELS, json.dumps(["a", "b", "c", "d", "e"])),
    (LABELS, json.dumps([str(index) for index in range(MAX_LABELS + 1)])),
    (LABELS, " " * (1 << 25)),
    (LABELS, "[" * 100_000),
    (VECTORS, "[]"),
    (VECTORS, '["111000"]'),
    (VECTORS, '["111000", "00011"]'),
    (VECTORS, '["111000", "000112"]'),
    (VECTORS, '["111000", "00011\u0661"]'),
    (VECTORS, '["111000", 111]'),
    (VECTORS, '["111000", "000111"' + " " * 100 + "]"),
    (VECTORS, "null"),
    (VECTORS, "nonsense"),
    (THRESHOLD, "NaN"),
    (THRESHOLD, "Infinity"),
    (THRESHOLD, "1.0001"),
    (THRESHOLD, "-1"),
    (THRESHOLD, "true"),
    (THRESHOLD, '"0.5"'),
    (THRESHOLD, "null"),
    (THRESHOLD, ""),
    (THRESHOLD, "9" * 10_000),
    (THRESHOLD, "1" + " " * 40),
]


@pytest.mark.parametrize(("key", "text"), HOSTILE, ids=lambda text: text[:24])
def test_hostile_properties_are_refused(key: str, text: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        read_reasoning({**TABLE.to_properties(), key: text}, CLASSES)


@pytest.mark.parametrize("text", ["0.5" + " " * 10_000_000, "9" * 10_000])
def test_a_threshold_that_is_too_long_is_refused_unread(text: str) -> None:
    with pytest.raises(ValueError, match="^reasoning threshold has [0-9]+ characters; at most 40$"):
        read_reasoning({**TABLE.to_properties(), THRESHOLD: text}, CLASSES)


@given(st.floats(0, 1))
def test_every_threshold_that_is_written_can_be_read(threshold: float) -> None:
    read = read_reasoning(replace(TABLE, threshold=threshold).to_properties(), CLASSES)
    assert read is not None and read.threshold == threshold


def test_a_reason_whose_sigmoid_is_rounded_to_a_half_is_not_given() -> None:
    """In float32, 1 / (1 + exp(-1.19e-7)) is 0.5; torch, which takes the logit itself, would give the reason."""
    graph = helper.make_graph(
        [helper.make_node("Sigmoid", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"x": np.array([[-1e-3, 1.19e-7, 1e-3]], np.float32)})
    assert given_reasons(probabilities).tolist() == [[False, False, True]]


@pytest.mark.parametrize("key", [LABELS, VECTORS, THRESHOLD])
def test_a_missing_property_is_refused(key: str) -> None:
    properties = TABLE.to_properties()
    del properties[key]
    with pytest.raises(ValueError, match="without the rest"):
        read_reasoning(properties, CLASSES)


@pytest.mark.parametrize("name", ["", "two\nlines", "\x1b[31m", "x" * 201])
def test_a_class_that_words_cannot_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="class names"):
        read_reasoning(TABLE.to_properties(), ["panda", name])


def test_vectors_that_are_too_large_are_refused_unread() -> None:
    names = json.dumps([str(index) for index in range(MAX_LABELS)])
    with pytest.raises(ValueError, match="too large"):
        read_reasoning({**TABLE.to_properties(), LABELS: names}, [str(index) for index in range(1000)])
