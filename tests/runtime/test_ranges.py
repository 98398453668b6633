"""Activation ranges in the metadata: linear in lambda, exact at the switch, and refused where they are damaged."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploytool.errors import ArtefactError
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.ranges import QUANTIZATION, Ranges, RangeSet, calibration_lambdas, read_ranges

STEP = 1e-6


def ranges(threshold: float | None = 0.5) -> Ranges:
    """One tensor; its upper end is 1 at lambda 0, 3 at the threshold, 10 above it and 20 at lambda 1."""
    if threshold is None:
        return Ranges(8, ("a",), (RangeSet(None, 1.0, (0.0, 0.4, 1.0), ((0.0, -1.0, -4.0),), ((1.0, 3.0, 9.0),)),))
    lambdas = (0.0, threshold, threshold + STEP, 1.0)
    return Ranges(8, ("a",), (RangeSet(threshold, 1.0, lambdas, ((0.0, -2.0, 0.0, 0.0),), ((1.0, 3.0, 10.0, 20.0),)),))


@pytest.mark.parametrize(
    ("lam", "low", "high"),
    [(0, 0, 1), (0.1, -0.25, 1.5), (0.4, -1, 3), (0.7, -2.5, 6), (1, -4, 9)],
)
def test_between_two_lambdas_a_range_is_linear(lam: float, low: float, high: float) -> None:
    assert ranges(None).at(lam, None, 1.0)["a"] == pytest.approx((low, high), abs=1e-6)
    assert ranges(None).at(lam, 0.5, 1.0)["a"] == pytest.approx((low, high), abs=1e-6)  # no switch, no threshold


@pytest.mark.parametrize(
    ("lam", "low", "high"),
    [
        (0.25, -1, 2),
        (0.5, -2, 3),
        (float(np.nextafter(np.float32(0.5), np.float32(1))), 0, 10),  # the very next lambda is on the other side
        (0.5 + STEP, 0, 10),
        (0.75, 0, 15),
        (0.5 + 1e-12, -2, 3),  # is 0.5 as a float32, which is what the graph's input is
    ],
)
def test_at_the_threshold_a_range_jumps_as_the_batch_norms_do(lam: float, low: float, high: float) -> None:
    assert ranges().at(lam, 0.5, 1.0)["a"] == pytest.approx((low, high), abs=1e-4)


def test_the_smallest_lambda_above_a_threshold_of_zero_is_above_it() -> None:
    lambdas, high = (0.0, STEP, 1.0), ((1.0, 7.0, 8.0),)
    made = Ranges(8, ("a",), (RangeSet(0.0, 1.0, lambdas, ((0.0,) * 3,), high),))
    assert made.at(0, 0.0, 1.0)["a"] == (0, 1)
    for lam in (1e-30, 1e-9, STEP):
        assert made.at(lam, 0.0, 1.0)["a"] == (0, 7)


def test_each_threshold_and_width_has_ranges_of_its_own() -> None:
    sets = tuple(
        RangeSet(threshold, width, (0.0,), ((0.0,),), ((width + 10 * threshold,),))
        for threshold in (0.0, 0.5)
        for width in (0.5, 1.0)
    )
    made = Ranges(8, ("a",), sets)
    assert [made.at(0, t, w)["a"][1] for t in (0.0, 0.5) for w in (0.5, 1.0)] == [0.5, 1, 5.5, 6]
    assert made.cover((0.0, 0.5), (0.5, 1.0)) and not made.cover((0.0, 0.5), (1.0,)) and not made.cover((None,), (1.0,))
    with pytest.raises(ValueError, match=r"no activation ranges for lambda threshold 0\.5 and width 0\.75"):
        made.at(0, 0.5, 0.75)


def test_calibration_lambdas_hold_the_ends_and_both_sides_of_the_threshold() -> None:
    assert calibration_lambdas([0.7, 0.2, 0.2], 0.5) == (0, 0.2, 0.5, 0.5 + STEP, 0.7, 1)
    assert calibration_lambdas([0.2], 0.0) == (0, STEP, 0.2, 1)
    assert calibration_lambdas([], None) == (0, 1)


number = st.floats(-1e9, 1e9)


@given(st.data())
def test_what_was_written_is_read_back_to_six_digits(data: st.DataObject) -> None:
    tensors = data.draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
    lambdas = sorted(data.draw(st.sets(st.floats(0, 1), min_size=1, max_size=4)))
    pairs = data.draw(
        st.lists(
            st.lists(st.tuples(number, number).map(sorted), min_size=len(lambdas), max_size=len(lambdas)),
            min_size=len(tensors),
            max_size=len(tensors),
        )
    )
    low, high = (tuple(tuple(pair[side] for pair in row) for row in pairs) for side in (0, 1))
    made = Ranges(8, tuple(tensors), (RangeSet(0.5, 1.0, tuple(lambdas), low, high),))
    read = read_ranges(made.to_json())
    assert (read.tensors, read.sets[0].lambdas, read.images) == (made.tensors, made.sets[0].lambdas, 8)
    np.testing.assert_allclose(read.sets[0].low, low, rtol=1e-5)
    np.testing.assert_allclose(read.sets[0].high, high, rtol=1e-5)


def document(**changes: Any) -> dict[str, Any]:
    made = json.loads(ranges().to_json())
    first = made["sets"][0]
    for key, value in changes.items():
        (first if key in first else made)[key] = value
    return made


HOSTILE = {
    "no object": [],
    "no keys": {},
    "a key too many": {**document(), "more": 1},
    "a set without a key": {**document(), "sets": [{"width": 1}]},
    "another version": document(version=2),
    "no images": document(images=0),
    "images that are true": document(images=True),
    "no tensors": document(tensors=[]),
    "a tensor twice": document(tensors=["a", "a"]),
    "a tensor that is no name": document(tensors=[1]),
    "a very long name": document(tensors=["a" * 10_000]),
    "no sets": document(sets=[]),
    "too many sets": document(sets=document()["sets"] * 100),
    "a set twice": document(sets=document()["sets"] * 2),
    "lambdas that do not ascend": document(lambdas=[0.0, 0.5, 0.5, 1.0]),
    "a lambda above 1": document(lambdas=[0.0, 0.5, 0.6, 1.1]),
    "a lambda that is text": document(lambdas=[0.0, 0.5, 0.6, "1"]),
    "a row too short": document(low=[[0.0]]),
    "a row too many": document(high=[[1.0, 3.0, 10.0, 20.0]] * 2),
    "a row that is no list": document(low=[4]),
    "NaN": document(high=[[1.0, 3.0, float("nan"), 20.0]]),
    "infinity": document(high=[[1.0, 3.0, float("inf"), 20.0]]),
    "a huge number": document(high=[[1.0, 3.0, 1e300, 20.0]]),
    "a huge integer": document(high=[[1, 3, 10**400, 20]]),
    "a truth": document(high=[[1.0, True, 10.0, 20.0]]),
    "low above high": document(low=[[2.0, 0.0, 0.0, 0.0]]),
    "a width of 2": document(width=2),
    "a threshold of -1": document(lambda_threshold=-1),
    "a threshold that is a list": document(lambda_threshold=[0.5]),
}
TEXTS = {**{name: json.dumps(value) for name, value in HOSTILE.items()}, "no JSON": "{", "too deep": "[" * 100_000}
TEXTS |= {"too long": " " * (1 << 24) + "{}", "too many digits": "1" * 10_000}


@pytest.mark.parametrize("name", TEXTS)
def test_a_damaged_property_is_one_line(name: str, trained_file: Path, tmp_path: Path) -> None:
    model = onnx.load(str(trained_file))
    model.metadata_props.add(key=QUANTIZATION, value=TEXTS[name])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match="damaged metadata") as caught:
        read_artefact(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(tmp_path))


def test_ranges_of_other_thresholds_or_widths_do_not_fit(trained_file: Path, tmp_path: Path) -> None:
    """The file switches at 0 or at 0.5, so it needs both."""
    model = onnx.load(str(trained_file))
    model.metadata_props.add(key=QUANTIZATION, value=ranges().to_json())
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match=re.escape("does not fit the graph (activation ranges)")):
        read_artefact(tmp_path / "m.onnx")


def test_an_unknown_precision_is_refused(trained_file: Path, tmp_path: Path) -> None:
    model = onnx.load(str(trained_file))
    model.metadata_props.add(key="deploytool.precision", value="int3")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match=r"damaged metadata \(precision int3\)"):
        read_artefact(tmp_path / "m.onnx")
