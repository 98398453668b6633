"""Comparisons: all methods of one network, and several networks beside each other."""

import dataclasses
import json

import pytest

from hwmodels.compare import compare_costs
from hwmodels.errors import MethodError
from hwmodels.methods import METHODS
from hwmodels.profile import load_profile
from hwmodels.report import price
from hwmodels.workload import Workload


def test_one_network_is_priced_by_every_method(resnet34: Workload) -> None:
    comparison = compare_costs([resnet34])
    rows = {row["method"]: row for row in comparison.rows()}
    assert list(rows) == [method.name for method in METHODS]
    for name, row in rows.items():
        totals = price(resnet34, name).totals()
        for key in ("macs", "params", "nonzero", "delay_ns", "sparse_aware_ns", "weight_bytes", "energy_pj"):
            assert row[key] == totals[key]
        assert row["ratio"] == pytest.approx(totals["delay_ns"] / rows["plain"]["delay_ns"])
        assert (row["normalized_film"]["layers"], row["normalized_all"]["layers"]) == (33, 36)
        assert row["normalized_film"]["min"] <= row["normalized_film"]["mean"] <= row["normalized_film"]["max"]
    assert rows["pgd-at:nt"]["label"] == "PGD-AT:4T"
    assert rows["pgd-at:nt"]["weight_bytes"] == 4 * rows["plain"]["weight_bytes"]
    assert rows["float"]["oat_over_this"]["max"] == pytest.approx(1.66, abs=0.005)
    assert rows["plain"]["oat_over_this"] is None and comparison.files == ["resnet34"]
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_further_networks_are_priced_by_their_own_method(resnet34: Workload, small: Workload) -> None:
    fixed = dataclasses.replace(small, file="fixed.onnx", inputs=("image",))
    rows = compare_costs([resnet34, small, fixed]).rows()
    assert [(row["file"], row["method"]) for row in rows[len(METHODS) :]] == [
        ("small.onnx", "float"),
        ("fixed.onnx", "fixed"),
    ]
    assert rows[-1]["ratio"] == pytest.approx(rows[-1]["delay_ns"] / rows[0]["delay_ns"])


def test_methods_can_be_chosen(resnet34: Workload, small: Workload) -> None:
    rows = compare_costs([resnet34, small], ["oat", "FLOAT", "pgd-at:nt"], models=9).rows()
    assert [(row["file"], row["label"]) for row in rows] == [
        (file, label) for file in ("resnet34", "small.onnx") for label in ("OAT", "FLOAT", "PGD-AT:9T")
    ]
    with pytest.raises(MethodError, match="did you mean float"):
        compare_costs([small], ["flaot"])
    with pytest.raises(MethodError, match=r"models \(=9\) goes with method pgd-at:nt"):
        compare_costs([small], ["oat"], models=9)
    with pytest.raises(MethodError, match="at least one"):
        compare_costs([])


def test_without_times_there_are_no_ratios(small: Workload) -> None:
    comparison = compare_costs([small], profile=load_profile("horowitz-45nm"))
    for row in comparison.rows():
        assert row["delay_ns"] is row["ratio"] is row["normalized_film"] is None and row["energy_pj"] > 0
    assert "profile horowitz-45nm has no times: delays are null" in comparison.notes()


def test_what_is_not_counted_is_said_of_its_file(small: Workload) -> None:
    other = dataclasses.replace(small, file="other.onnx", not_counted={"Einsum": 2})
    document = compare_costs([small, other]).to_dict()
    assert document["complete"] is False and document["rows"][-1]["not_counted"] == ["Einsum"]
    assert "other.onnx: incomplete: not counted are 2 Einsum" in document["notes"]


def test_the_notes_hold_for_every_line_and_come_once(resnet34: Workload, small: Workload) -> None:
    notes = compare_costs([resnet34, small]).notes()
    assert len(notes) == len(set(notes)) and all("\n" not in note for note in notes)
    for method in METHODS:
        assert any(method.description in note and method.equation in note for note in notes)
    assert any("loses to OAT in 32 of 33 layers" in note for note in notes)
    assert any("max 1.660 in layer4.0.conv1" in note for note in notes)
    assert any("sparse_aware_ns is an estimate" in note for note in notes)  # a layer of `small` is half zero
