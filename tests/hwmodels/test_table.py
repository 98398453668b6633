"""Reports as text: nothing is left out, in any format."""

import csv
import dataclasses
import io

import pytest

from hwmodels.compare import compare_costs
from hwmodels.methods import METHODS
from hwmodels.profile import load_profile
from hwmodels.report import price
from hwmodels.table import as_csv, render, render_comparison
from hwmodels.workload import Workload

BOTH = load_profile("asic-65nm").completed_by(load_profile("horowitz-45nm"))
PROFILES = [load_profile("asic-65nm"), load_profile("horowitz-45nm"), BOTH]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
@pytest.mark.parametrize("method", [method.name for method in METHODS])
@pytest.mark.parametrize("tablefmt", ["simple", "github"])
def test_every_layer_and_the_total_are_shown(resnet34: Workload, profile, method: str, tablefmt: str) -> None:
    report = price(resnet34, method, profile)
    text, totals = render(report, tablefmt), report.totals()
    for layer in report.layers:
        assert layer.layer.name in text
    assert f"{totals['macs']:,}" in text and f"{totals['params']:,}" in text
    assert ("delay ns" in text) == (profile.chip() is not None)
    if totals["delay_ns"] is not None:
        assert f"{totals['delay_ns']:,.0f}" in text and "over 33 layers" in text and "over 36 layers" in text
    if totals["energy_pj"] is not None:
        assert f"{totals['energy_pj'] / 1e3:,.0f}" in text
    assert all(note in text for note in report.notes()) and "None" not in text and "sparse-aware" not in text


def test_sparse_networks_get_a_column_of_their_own(small: Workload) -> None:
    report = price(small)
    assert "sparse-aware ns" in render(report)
    assert f"{report.totals()['sparse_aware_ns']:,.0f}" in render(report)
    assert "sparse-aware ms" in render_comparison(compare_costs([small]))


def test_what_is_priced_is_named(small: Workload) -> None:
    slim = dataclasses.replace(small, images={"image": (1, 3, 32, 32)}, width=0.5)
    assert "small.onnx (image 1x3x32x32, width 0.5): method float, profile asic-65nm (" in render(price(slim))
    assert "b_io=64" in render(price(slim)) and "weights_from=dram" in render(price(slim, profile=BOTH))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_a_comparison_has_a_line_for_each_method_and_file(resnet34: Workload, small: Workload, profile) -> None:
    comparison = compare_costs([resnet34, dataclasses.replace(small, width=0.5)], profile=profile)
    text = render_comparison(comparison)
    lines = text.splitlines()[4:]
    for row, line in zip(comparison.rows(), lines, strict=False):
        assert line.startswith(row["file"]) and row["label"] in line and f"{row['weight_bytes'] / 1e6:,.2f}" in line
        if row["delay_ns"] is not None:
            assert f"{row['delay_ns'] / 1e6:,.3f}" in line and f"{row['normalized_film']['max']:.3f}" in line
        if row["energy_pj"] is not None:
            assert f"{row['energy_pj'] / 1e9:,.4f}" in line
    assert "None" not in text and all(note in text for note in comparison.notes())
    assert "0.5" in text and "small.onnx" in text


def test_a_comparison_of_one_network_says_over_how_many_layers(resnet34: Workload) -> None:
    text = render_comparison(compare_costs([resnet34]), "github")
    assert "over the 33 convolutions that OAT gives a FiLM layer; mean of all: the 36 convolutions" in text
    assert text.startswith("resnet34: profile asic-65nm (") and "| PGD-AT:4T" in text


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_csv_holds_the_figures_of_the_json(small: Workload, profile) -> None:
    layers = price(small, "float", profile).to_dict()["layers"]
    lines = list(csv.DictReader(io.StringIO(as_csv(layers))))
    assert [line["name"] for line in lines] == ["stem", "conv", "shortcut", "head"]
    for line, layer in zip(lines, layers, strict=True):
        assert int(line["macs"]) == layer["macs"] and line["film"] == str(layer["film"])
        assert line["delay_ns"] == ("" if layer["delay_ns"] is None else str(layer["delay_ns"]))
        if layer["energy"]:
            assert float(line["energy.weight_read_pj"]) == layer["energy"]["weight_read_pj"]
    rows = compare_costs([small], profile=profile).rows()
    assert [line["label"] for line in csv.DictReader(io.StringIO(as_csv(rows)))] == [row["label"] for row in rows]


def test_names_cannot_break_a_table(small: Workload) -> None:
    odd = dataclasses.replace(small.layers[0], name="a|b\n| c |\x1b[31m")
    text = render(price(dataclasses.replace(small, layers=(odd,))), "github")
    assert "| a\\|b?\\| c \\|?[31m" in text


def test_names_with_commas_and_quotes_survive_csv() -> None:
    (line,) = csv.DictReader(io.StringIO(as_csv([{"name": 'a,"b"', "not_counted": ["Einsum", "Loop"]}])))
    assert line == {"name": 'a,"b"', "not_counted": "Einsum Loop"}
