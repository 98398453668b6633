"""Cost reports: sums, methods, defaults, and the table."""

import json
from pathlib import Path

import pytest

from hwmodels.cost import METHODS, cost
from hwmodels.errors import HwModelsError
from hwmodels.table import render


def test_sums_are_those_of_the_layers(resnet34_file: Path) -> None:
    document = cost(resnet34_file).to_dict()
    for key in ("macs", "params", "delay_ns", "read_ns", "mult_ns", "transform_ns"):
        assert document["totals"][key] == pytest.approx(sum(layer[key] for layer in document["layers"]))
    for layer in document["layers"]:
        assert layer["delay_ns"] == layer["read_ns"] + layer["mult_ns"] + layer["transform_ns"]
    json.dumps(document, allow_nan=False)


def test_paper_5_figure_8(resnet34_file: Path) -> None:
    """Fig. 8(b): 21.28 MB and 31.4 MB at 8 bits (batch norms left out); section 4.3: OAT / FLOAT up to 1.66."""
    reports = {method: cost(resnet34_file, method).to_dict() for method in ("plain", "float", "oat")}
    assert reports["float"]["totals"]["params"] / 1e6 == pytest.approx(21.28, abs=0.02)
    assert reports["oat"]["totals"]["params"] / 1e6 == pytest.approx(31.4, abs=0.05)
    ratios = {
        oat["name"]: oat["delay_ns"] / float_["delay_ns"]
        for oat, float_ in zip(reports["oat"]["layers"], reports["float"]["layers"], strict=True)
    }
    worst = max(ratios, key=ratios.get)
    assert worst == "layer4.0.conv1" and ratios[worst] == pytest.approx(1.66, abs=0.005)


def test_oat_without_film_costs_what_plain_costs(resnet34_file: Path) -> None:
    for layer in cost(resnet34_file, "oat").to_dict()["layers"]:
        assert (layer["normalized_delay"] == 1) == (not layer["film"])


def test_averages_say_what_they_are_over(resnet34_file: Path) -> None:
    with_film, all_of_them = cost(resnet34_file, "oat").normalized()
    assert (with_film["layers"], all_of_them["layers"]) == (33, 36)
    assert with_film["mean"] == pytest.approx((36 * all_of_them["mean"] - 3) / 33)
    assert all_of_them["min"] == 1 and with_film["min"] > 1


def test_the_method_comes_from_the_file_as_long_as_lambda_is_an_input(
    trained_file: Path, plain_file: Path, tmp_path: Path
) -> None:
    from deploytool.runtime.specialize import specialize

    specialize(trained_file, 0.5, tmp_path / "fixed.onnx")
    assert cost(trained_file).method == "float"
    assert cost(plain_file).method == "plain"
    fixed = cost(tmp_path / "fixed.onnx")
    assert fixed.method == "plain"
    assert fixed.totals()["delay_ns"] == cost(trained_file, "plain").totals()["delay_ns"]


@pytest.mark.parametrize("method", ["plain", "standard", "pgd-at"])
def test_three_names_for_equation_7(trained_file: Path, method: str) -> None:
    assert all(layer.delay == layer.plain for layer in cost(trained_file, method).layers)


def test_fewer_bits_mean_fewer_reads(resnet34_file: Path) -> None:
    full, eighth = cost(resnet34_file, "plain"), cost(resnet34_file, "plain", overrides={"b_w": "8"})
    assert eighth.totals()["read_ns"] == pytest.approx(full.totals()["read_ns"] / 4, rel=1e-3)
    assert eighth.totals()["mult_ns"] == full.totals()["mult_ns"]
    assert eighth.to_dict()["profile"]["b_w"] == 8


def test_unknown_methods_and_profiles_are_refused(trained_file: Path) -> None:
    with pytest.raises(HwModelsError, match="known: plain"):
        cost(trained_file, "free-lunch")
    with pytest.raises(HwModelsError, match="shipped"):
        cost(trained_file, profile="asic-1nm")


@pytest.mark.parametrize("method", METHODS)
def test_the_table_shows_every_layer_and_the_total(trained_file: Path, method: str) -> None:
    report = cost(trained_file, method)
    text = render(report)
    for layer in report.layers:
        assert layer.layer.name in text
    assert f"{report.totals()['delay_ns']:,.0f}" in text and f"{report.totals()['macs']:,}" in text
    assert all(note in text for note in report.notes())


def test_an_incomplete_report_says_so(tmp_path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.ones((3, 4, 2, 2), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
    document = cost(tmp_path / "net.onnx").to_dict()
    assert document["complete"] is False and document["not_counted"] == {"ConvTranspose": 1}
    assert any(note.startswith("incomplete: not counted are 1 ConvTranspose") for note in document["notes"])
