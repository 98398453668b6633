"""Cost reports: sums worked by hand, methods, what a profile cannot answer, and the paper's figures."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwmodels.errors import HwModelsError, MethodError, WorkloadError
from hwmodels.methods import METHODS
from hwmodels.profile import load_profile
from hwmodels.report import cost, price
from hwmodels.workload import Workload

EIGHT_BITS = load_profile("asic-65nm").override({"b_w": 8})  # 32 weights per read of 9 ns; 175 products per 4 ns
SUMS = ("macs", "params", "flops", "transform_ops", "nonzero", "delay_ns", "read_ns", "mult_ns", "transform_ns")
ANY_FILE = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Weights and rounds of `small`: 1728: 54 reads, 10 rounds; 73728: 2304 reads, 422 rounds; 8192: 256 reads, 47 rounds;
# 1280: 40 reads, 8 rounds. FiLM of 64 and 128 channels: 16512 and 65792 weights: 95 and 376 rounds.
READ = 9 * (54 + 2304 + 256 + 40)
MULT = 4 * (10 * 1024 + 422 * 256 + 47 * 256 + 8)
BY_HAND = {
    "plain": (READ, MULT, 0),
    "fixed": (READ, MULT, 0),
    "pgd-at:nt": (READ, MULT, 0),
    "float": (READ, MULT, 4 * (10 + 422 + 47 + 8)),
    "float-stored-noise": (2 * READ, MULT, 4 * (10 + 422 + 47 + 8)),
    "oat": (READ + 9 * (16512 // 32 + 65792 // 32), MULT, 4 * (95 + 376)),
}


@pytest.mark.parametrize("method", BY_HAND)
def test_delay_by_hand(small: Workload, method: str) -> None:
    totals = price(small, method, EIGHT_BITS).totals()
    assert (totals["read_ns"], totals["mult_ns"], totals["transform_ns"]) == BY_HAND[method]
    assert totals["delay_ns"] == sum(BY_HAND[method])


def test_every_method_is_worked_by_hand() -> None:
    assert set(BY_HAND) == {method.name for method in METHODS}


def test_storage_by_hand(small: Workload) -> None:
    """1728 + 73728 + 8192 + 1280 weights, a byte each; biases are no weights."""
    stored = {method.name: price(small, method, EIGHT_BITS).weight_bytes for method in METHODS}
    weights = 1728 + 73728 + 8192 + 1280
    assert stored["plain"] == stored["float"] == stored["fixed"] == weights
    assert stored["pgd-at:nt"] == 4 * weights and stored["float-stored-noise"] == 2 * weights
    assert stored["oat"] == weights + 16512 + 65792
    assert price(small, "pgd-at:nt", EIGHT_BITS, models=7).weight_bytes == 7 * weights
    assert price(small, "plain", EIGHT_BITS.override({"b_w": 3})).weight_bytes == 3 * weights // 8
    assert price(small, "plain", EIGHT_BITS).totals()["parameter_bytes"] == weights + 10


def test_operations_by_hand(small: Workload) -> None:
    macs = 1728 * 1024 + 73728 * 256 + 8192 * 256 + 1280
    plain, float_, oat = (price(small, method).totals() for method in ("plain", "float", "oat"))
    assert plain["macs"] == macs and plain["flops"] == 2 * macs and plain["transform_ops"] == 0
    assert float_["transform_ops"] == 2 * (1728 + 73728 + 8192 + 1280) and float_["flops"] == 2 * macs + 169856
    assert oat["transform_ops"] == 2 * (16512 + 65792) and oat["params"] == plain["params"] + 16512 + 65792


def test_the_sparse_aware_estimate_by_hand(small: Workload) -> None:
    """36864 of 73728 weights, and a bitmap of 73728 bits: 1440 reads of 256 bits; 211 rounds."""
    report = price(small, "float", EIGHT_BITS)
    dense, sparse = report.layers[1].delay, report.layers[1].sparse
    assert dense.total_ns == 2304 * 9 + 422 * 257 * 4
    assert sparse.total_ns == 1440 * 9 + 211 * 257 * 4
    assert report.totals()["sparse_aware_ns"] == report.totals()["delay_ns"] - dense.total_ns + sparse.total_ns
    stored = price(small, "float-stored-noise", EIGHT_BITS).layers[1].sparse  # one bitmap for weight and noise
    assert stored.read_ns == 9 * (2 * 36864 * 8 + 73728) // 256
    # at 8 bits a bitmap takes 8 * 36864 + 73728 bits, fewer than the dense layer, run-length (12) or CSR (8 + 10 each)
    assert report.weight_bytes - report.encoded_weight_bytes == 73728 - (36864 + 73728 // 8)
    assert report.sparse and any("estimate of ours" in note for note in report.notes())


def test_a_density_given_stands_for_the_one_counted(small: Workload) -> None:
    tenth = price(small, "plain", EIGHT_BITS, density=0.1)
    assert [layer.nonzero for layer in tenth.layers] == [173, 7373, 820, 128]  # rounded up
    assert tenth.totals()["delay_ns"] == price(small, "plain", EIGHT_BITS).totals()["delay_ns"]
    assert any(note.startswith("density 0.1") and "given" in note for note in tenth.notes())
    for density in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(WorkloadError, match=r"must be in \(0, 1\]"):
            price(small, density=density)


@ANY_FILE
@given(method=st.sampled_from([method.name for method in METHODS]), bits=st.integers(1, 64))
def test_density_1_changes_nothing(small: Workload, method: str, bits: int) -> None:
    report = price(small, method, EIGHT_BITS.override({"b_w": bits}), density=1)
    totals = report.totals()
    assert totals["sparse_aware_ns"] == totals["delay_ns"] and not report.sparse
    assert all(layer.sparse == layer.delay for layer in report.layers)


@ANY_FILE
@given(method=st.sampled_from([method.name for method in METHODS]), cut=st.integers(1, 3))
def test_reports_are_additive_over_layers(small: Workload, method: str, cut: int) -> None:
    profile = EIGHT_BITS.completed_by(load_profile("horowitz-45nm"))
    parts = [
        dataclasses.replace(small, layers=small.layers[:cut]),
        dataclasses.replace(small, layers=small.layers[cut:]),
    ]
    whole, first, second = (price(workload, method, profile).totals() for workload in (small, *parts))
    for key in (*SUMS, "sparse_aware_ns", "energy_pj", "weight_bytes"):
        assert whole[key] == pytest.approx(first[key] + second[key]), key


@ANY_FILE
@given(
    method=st.sampled_from([method.name for method in METHODS]),
    key=st.sampled_from(["b_io", "n_bank", "n_mult"]),
    value=st.integers(1, 4096),
    more=st.integers(0, 4096),
)
def test_more_of_any_resource_is_never_slower(small: Workload, method: str, key: str, value: int, more: int) -> None:
    few, many = (price(small, method, EIGHT_BITS.override({key: v})).totals() for v in (value, value + more))
    assert many["delay_ns"] <= few["delay_ns"] and many["sparse_aware_ns"] <= few["sparse_aware_ns"]


def test_sums_are_those_of_the_layers(resnet34: Workload) -> None:
    profile = load_profile("asic-65nm").completed_by(load_profile("horowitz-45nm"))
    report = price(resnet34, "float", profile)
    document = report.to_dict()
    for key in (*SUMS, "sparse_aware_ns", "energy_pj"):
        assert document["totals"][key] == pytest.approx(sum(layer[key] for layer in document["layers"]))
    for layer in document["layers"]:
        assert layer["delay_ns"] == layer["read_ns"] + layer["mult_ns"] + layer["transform_ns"]
        assert layer["energy_pj"] == pytest.approx(sum(layer["energy"].values()))
    assert document["totals"]["not_counted"] == [] and document["complete"]
    json.dumps(document, allow_nan=False)


def test_a_file_is_priced_as_the_network_worked_out_by_hand(resnet34_file: Path, resnet34: Workload) -> None:
    document, by_hand = cost(resnet34_file).to_dict(), price(resnet34).to_dict()
    assert document["totals"].pop("peak_activation_bytes") == document["peak"]["peak_activation_bytes"] > 0
    assert document["layers"] == by_hand["layers"] and by_hand["totals"].pop("peak_activation_bytes") is None
    assert document["memory"]["notes"] != by_hand["memory"]["notes"]  # batch norms: 36 in the file, assumed by hand
    beside = document["totals"].pop("parameter_bytes") - by_hand["totals"].pop("parameter_bytes")
    assert beside == 4 * 2 * 3  # mean and deviation of three colours
    assert document["totals"] == by_hand["totals"] and document["images"] == {"image": [1, 3, 32, 32]}


def test_paper_5_figure_8(resnet34: Workload) -> None:
    """Fig. 8(b): 21.28 MB and 31.4 MB at 8 bits (batch norms left out); section 4.3: OAT / FLOAT up to 1.66."""
    reports = {method: price(resnet34, method).to_dict() for method in ("plain", "float", "oat")}
    assert reports["float"]["totals"]["params"] / 1e6 == pytest.approx(21.28, abs=0.02)
    assert reports["oat"]["totals"]["params"] / 1e6 == pytest.approx(31.4, abs=0.05)
    ratios = {
        oat["name"]: oat["delay_ns"] / float_["delay_ns"]
        for oat, float_ in zip(reports["oat"]["layers"], reports["float"]["layers"], strict=True)
    }
    worst = max(ratios, key=ratios.get)
    assert worst == "layer4.0.conv1" and ratios[worst] == pytest.approx(1.66, abs=0.005)
    against = reports["float"]["oat_over_this"]
    assert (against["max_in"], against["max"], against["layers"]) == (worst, ratios[worst], 33)


def test_with_its_noise_stored_float_loses_to_oat(resnet34: Workload) -> None:
    report = price(resnet34, "float-stored-noise")
    assert report.oat_ratios()["layer4.0.conv1"] == pytest.approx(0.952, abs=0.0005)
    assert report.against_oat()["oat_faster_in"] == 32
    assert any("loses to OAT in 32 of 33 layers" in note and "0.952" in note for note in report.notes())


def test_oat_without_film_costs_what_plain_costs(resnet34: Workload) -> None:
    for layer in price(resnet34, "oat").to_dict()["layers"]:
        assert (layer["normalized_delay"] == 1) == (not layer["film"])


def test_averages_say_what_they_are_over(resnet34: Workload) -> None:
    with_film, all_of_them = price(resnet34, "oat").normalized()
    assert (with_film["layers"], all_of_them["layers"]) == (33, 36)
    assert with_film["mean"] == pytest.approx((36 * all_of_them["mean"] - 3) / 33)
    assert all_of_them["min"] == 1 and with_film["min"] > 1


def test_the_method_comes_from_the_file(trained_file: Path, plain_file: Path, tmp_path: Path) -> None:
    from deploytool.runtime.specialize import specialize

    specialize(trained_file, 0.5, tmp_path / "fixed.onnx")
    assert cost(trained_file).method.name == "float"
    assert cost(plain_file).method.name == "plain"
    fixed = cost(tmp_path / "fixed.onnx")
    assert fixed.method.name == "fixed"
    assert fixed.totals()["delay_ns"] == cost(trained_file, "plain").totals()["delay_ns"]


@pytest.mark.parametrize("method", ["plain", "standard", "pgd-at", "pgd-at:1t", "fixed"])
def test_names_for_equation_7(trained_file: Path, method: str) -> None:
    assert all(layer.delay == layer.plain for layer in cost(trained_file, method).layers)


def test_fewer_bits_mean_fewer_reads(resnet34: Workload) -> None:
    full, eighth = price(resnet34, "plain"), price(resnet34, "plain", EIGHT_BITS)
    assert eighth.totals()["read_ns"] == pytest.approx(full.totals()["read_ns"] / 4, rel=1e-3)
    assert eighth.totals()["mult_ns"] == full.totals()["mult_ns"]
    assert eighth.to_dict()["profile"]["b_w"] == 8


def test_a_profile_without_times_answers_with_energies_alone(small: Workload) -> None:
    report = price(small, "float", load_profile("horowitz-45nm"))
    totals = report.totals()
    for key in ("delay_ns", "read_ns", "mult_ns", "transform_ns", "sparse_aware_ns"):
        assert totals[key] is None and all(layer[key] is None for layer in report.to_dict()["layers"])
    assert report.normalized() == [] and report.against_oat() is None
    # 169856 / 2 weights of 162.5 pJ in DRAM, inputs and outputs of 12.5 pJ in SRAM, 0.3 pJ per MAC, 0.23 per weight
    weights, values = 84928, 3072 + 65536 + 65536 + 32768 + 65536 + 32768 + 128 + 10
    assert totals["energy_pj"] == pytest.approx(weights * 162.5 + values * 12.5 + totals["macs"] * 0.3 + weights * 0.23)
    assert "profile horowitz-45nm has no times: delays are null" in report.notes()


def test_a_profile_without_energies_says_so(small: Workload) -> None:
    report = price(small)
    assert report.totals()["energy_pj"] is None and report.totals()["energy"] is None
    assert all(layer["energy_pj"] is None for layer in report.to_dict()["layers"])
    assert "profile asic-65nm has no energies: energy_pj is null" in report.notes()


def test_width_1_changes_nothing(wide_file: Path) -> None:
    """The widest width of a slimmable file is width 1, and the one priced where none is given."""
    default, widest, half = (cost(wide_file, width=width) for width in (None, 1.0, 0.5))
    assert default.totals() == widest.totals() and default.to_dict()["width"] == 1
    assert half.totals()["macs"] < 0.3 * widest.totals()["macs"]
    assert half.totals()["delay_ns"] < widest.totals()["delay_ns"]


def test_what_cannot_be_priced_is_refused(trained_file: Path, small: Workload, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="known: plain"):
        cost(trained_file, "free-lunch")
    with pytest.raises(MethodError, match="pgd-at:nt alone"):
        price(small, "float", models=3)
    with pytest.raises(HwModelsError, match="shipped"):
        cost(trained_file, profile="asic-1nm")
    with pytest.raises(WorkloadError, match="No such file"):
        cost(tmp_path / "none.onnx")


def test_an_incomplete_report_says_so(small: Workload) -> None:
    document = price(dataclasses.replace(small, not_counted={"NonMaxSuppression": 2, "Einsum": 1})).to_dict()
    assert document["complete"] is False and document["not_counted"] == {"NonMaxSuppression": 2, "Einsum": 1}
    assert document["totals"]["not_counted"] == ["Einsum", "NonMaxSuppression"]
    assert document["notes"][0] == "incomplete: not counted are 1 Einsum, 2 NonMaxSuppression"


def test_a_network_without_layers_has_sums_of_nothing(small: Workload) -> None:
    nothing = dataclasses.replace(small, layers=(), not_counted={"Einsum": 1})
    for profile in (load_profile("asic-65nm"), load_profile("horowitz-45nm")):
        document = price(nothing, "float", profile).to_dict()
        assert document["totals"]["macs"] == document["totals"]["weight_bytes"] == 0 and document["layers"] == []
    assert price(nothing, "float").totals()["delay_ns"] == 0
