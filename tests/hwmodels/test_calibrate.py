"""Fitting a machine: known constants from synthetic times, cross-validation, and the profile that comes of it."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from deploytool.cli import cli
from hwmodels.calibrate import Fit, as_yaml, calibrate, fit_times, fitted_profile, profile_of_calibration
from hwmodels.errors import MeasureError
from hwmodels.layers import Layer
from hwmodels.measured import Measured
from hwmodels.profile import load_profile
from hwmodels.report import price
from hwmodels.synthetic import save_synthetic
from hwmodels.workload import Workload, read_workload

RNG = np.random.default_rng(0)
BYTES = 4.0 * RNG.integers(100, 1_000_000, 40)
MACS = BYTES * RNG.integers(1, 1000, 40)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["calibrate", *map(str, arguments)])


def assert_one_line_error(result: Result, *words: str) -> None:
    lines = [line for line in result.stderr.splitlines() if not line.startswith("measuring ")]
    assert result.exit_code == 1 and result.stdout == "" and len(lines) == 1 and lines[0].startswith("error: "), lines
    for word in words:
        assert word in lines[0]


def network(name: str, rate: tuple[float, float], layers: int = 8, bits: int | None = 32, seed: int = 0) -> Measured:
    """A network whose layers take exactly `rate` ns per byte of weights and per MAC."""
    random = np.random.default_rng(seed)
    made = tuple(
        Layer(
            f"{name}.{index}", "conv", int(random.integers(8, 512)), int(random.integers(8, 512)), (3, 3),
            int(random.choice([4, 16, 64, 256, 1024])), weight_bits=bits,
        )
        for index in range(layers)
    )  # fmt: skip
    ns = {each.name: rate[0] * each.weights * (bits or 32) / 8 + rate[1] * each.macs for each in made}
    workload = Workload(name, made, {}, {}, ("x",), {}, images={"x": (1, 3, 8, 8)})
    return Measured(workload, ns, {}, (), (), sum(ns.values()), sum(ns.values()), threads=1, runs=30)


def close(value: float, rel: float = 1e-6) -> object:
    return pytest.approx(value, rel=rel)


@pytest.mark.parametrize("rate", [(0.05, 0.01, 0.0), (0.05, 0.01, 5000.0), (3.0, 1e-4, 1.0)])
def test_known_rates_are_found_exactly(rate: tuple[float, float, float]) -> None:
    times = rate[0] * BYTES + rate[1] * MACS + rate[2]
    found = fit_times(BYTES, MACS, times, overhead=True)
    assert (found.ns_per_byte, found.ns_per_mac) == (close(rate[0]), close(rate[1]))
    assert found.overhead_ns == pytest.approx(rate[2], rel=1e-6, abs=1e-6)
    assert np.allclose(found.predict(BYTES, MACS), times, rtol=1e-9)
    if rate[2] == 0:
        assert fit_times(BYTES, MACS, times) == Fit(close(rate[0]), close(rate[1]), 0.0)  # type: ignore[arg-type]


def test_known_rates_are_found_under_noise() -> None:
    noise = 1 + 0.05 * RNG.standard_normal(40)
    found = fit_times(BYTES, MACS, (0.05 * BYTES + 0.01 * MACS) * noise)
    assert found.ns_per_mac == close(0.01, 0.03) and found.ns_per_byte == close(0.05, 0.5)


def test_a_rate_that_would_be_negative_is_zero() -> None:
    times = 0.01 * MACS - 0.005 * BYTES
    assert (times > 0).all()
    found = fit_times(BYTES, MACS, times)
    assert found.ns_per_byte == 0 and found.ns_per_mac == close(0.01, 0.1)
    profile = fitted_profile(found, 32)
    assert profile.tau_read_ns == 1e-9 and "the fit gave 0" in profile.sources["tau_read_ns"]


@given(st.lists(st.tuples(*[st.floats(1, 1e9)] * 3), min_size=1, max_size=20), st.booleans())
def test_no_rate_is_negative_and_no_other_rates_fit_better(rows: list, overhead: bool) -> None:
    weight_bytes, macs, ns = np.array(rows).T
    found = fit_times(weight_bytes, macs, ns, overhead)
    rates = np.array([found.ns_per_byte, found.ns_per_mac, found.overhead_ns])
    assert (rates >= 0).all() and (overhead or rates[2] == 0)

    def error(*rate: float) -> float:
        return float(np.sum((Fit(*rate).predict(weight_bytes, macs) / ns - 1) ** 2))

    least = error(*rates)
    assert least <= len(rows) + 1e-6
    for change in (0.9, 1.1):
        for index in range(3):
            moved = rates.copy()
            moved[index] *= change
            assert least <= error(*moved) + 1e-6 * len(rows)


@pytest.mark.parametrize("ns", [[], [0.0], [-1.0], [float("nan")], [float("inf")]])
def test_times_that_are_none_are_refused(ns: list[float]) -> None:
    with pytest.raises(MeasureError, match="must be positive"):
        fit_times(np.ones(len(ns)), np.ones(len(ns)), np.array(ns))


@pytest.mark.parametrize("bits", [32, 8])
def test_eq_7_with_the_profile_says_what_the_fit_says(bits: int) -> None:
    fit = Fit(0.05, 0.01)
    measured = network("net", (0.05, 0.01), bits=bits)
    report = price(measured.workload, None, fitted_profile(fit, bits))
    for cost in report.layers:
        exact = fit.predict(np.array(cost.layer.weights * bits / 8), np.array(cost.layer.macs))
        assert cost.delay is not None
        more = cost.delay.total_ns - float(exact)
        # the ceilings: at most one read of 64 bytes, and one vector of weights at each position
        assert -1e-6 <= more <= 64 * fit.ns_per_byte + 512 // bits * fit.ns_per_mac * cost.layer.positions


def test_networks_of_one_machine_predict_each_other() -> None:
    found = calibrate([network(name, (0.05, 0.01), seed=seed) for seed, name in enumerate("abc")])
    assert found.fit == Fit(close(0.05), close(0.01), 0.0)  # type: ignore[arg-type]
    assert found.by == "network" and [check.file for check in found.held_out] == ["a", "b", "c"]
    for check in found.held_out:
        assert check.layers == 8 and check.median_error < 0.01 and check.rank_correlation == 1
        assert 0 <= check.total_error < 0.01  # the ceilings
    assert found.with_overhead.overhead_ns == pytest.approx(0, abs=1e-3)
    assert "on 3 networks" in found.verdict()


def test_a_network_is_predicted_without_itself() -> None:
    """Two networks at one rate, one at twice that: predicted by the others it comes out at half its time."""
    found = calibrate(
        [network("a", (0.05, 0.01)), network("b", (0.05, 0.01), seed=1), network("c", (0.1, 0.02), seed=2)]
    )
    last = found.held_out[2]
    assert last.median_error == close(0.5, 0.01) and last.total_error == close(-0.5, 0.01)
    assert found.own[2].median_error < 0.5
    assert found.held_out[0].total_error > 0.01  # c is among the others of a


def test_one_network_leaves_layers_out() -> None:
    found = calibrate([network("only", (0.05, 0.01), layers=12)])
    assert found.by == "layer" and len(found.held_out) == 1
    assert found.held_out[0].layers == 12 and found.held_out[0].median_error < 0.01
    assert "a fifth of its layers" in found.verdict()


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(MeasureError, match="at least one"):
        calibrate([])
    with pytest.raises(MeasureError, match="3 measured layers are too few"):
        calibrate([network("few", (1, 1), layers=3)])
    with pytest.raises(MeasureError, match="8 and 32 bits"):
        calibrate([network("a", (1, 1)), network("b", (1, 1), bits=8)])
    with pytest.raises(MeasureError, match="0 bits"):
        calibrate([network("a", (1, 1), bits=None)])


def test_the_profile_is_a_file_that_loads_and_prices(tmp_path: Path) -> None:
    measured = [network(name, (0.05, 0.01), seed=seed) for seed, name in enumerate("ab")]
    profile = profile_of_calibration(calibrate(measured), "here", "A: processor, #1", "onnxruntime 1.2.3")
    file = tmp_path / "here.yaml"
    file.write_text(as_yaml(profile, "fitted: see remarks"), encoding="utf-8")
    loaded = load_profile(file)
    assert loaded == profile and loaded.sources == profile.sources
    assert loaded.tau_read_ns == close(0.05 * 64) and loaded.tau_mult_ns == close(0.01 * 16)
    assert all("A: processor, #1" in loaded.sources[key] for key in ("tau_read_ns", "tau_mult_ns"))
    assert "20 GB/s" in loaded.sources["tau_read_ns"] and "200 GFLOP/s" in loaded.sources["tau_mult_ns"]
    assert any("cross-validated on 2 networks" in remark for remark in loaded.remarks)
    assert all(
        {"value", "unit", "source"} <= set(entry) for entry in yaml.safe_load(file.read_text())["constants"].values()
    )
    total = price(measured[0].workload, None, loaded).totals()["delay_ns"]
    assert total == pytest.approx(sum(measured[0].layer_ns.values()), rel=0.01)


def test_synthetic_networks_are_networks(tmp_path: Path) -> None:
    files = save_synthetic(tmp_path)
    assert len(files) == 5
    workloads = [read_workload(file) for file in files]
    for file, workload in zip(files, workloads, strict=True):
        onnx.checker.check_model(onnx.load(file), full_check=True)
        assert not workload.not_counted and len(workload.layers) >= 8
    layers = [layer for workload in workloads for layer in workload.layers]
    assert any(layer.groups > 1 for layer in layers) and any(layer.kernel == (1, 1) for layer in layers)
    per_byte = [layer.positions for layer in layers]
    assert min(per_byte) == 1 and max(per_byte) >= 1024  # from bound by reads to bound by multiplications


def test_calibrate_with_nothing_at_hand(tmp_path: Path) -> None:
    output = tmp_path / "new" / "here.yaml"
    result = run("-o", output, "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    check = document["cross_validation"]
    assert check["left_out"] == "network" and len(check["networks"]) == 5 and document["threads"] == 1
    assert all(each["file"].startswith("synthetic-") and each["median_error"] >= 0 for each in check["networks"])
    assert document["fit"]["ns_per_byte"] >= 0 and document["fit"]["ns_per_mac"] > 0
    assert [each.name for each in output.parent.iterdir()] == ["here.yaml"]
    (file, *_) = save_synthetic(tmp_path)
    priced = CliRunner().invoke(cli, ["cost", str(file), "--profile", str(output), "--json"])
    assert priced.exit_code == 0, priced.output
    assert json.loads(priced.stdout)["profile"]["name"] == "here"
    assert json.loads(priced.stdout)["totals"]["delay_ns"] > 0
    assert any("cross-validated" in note for note in json.loads(priced.stdout)["notes"])


def test_calibrate_on_files(trained_file: Path, plain_file: Path, tmp_path: Path) -> None:
    result = run(trained_file, plain_file, "--lambda", 0.5, "--threads", 1, "-o", tmp_path / "here.yaml")
    assert result.exit_code == 0, result.output
    assert str(trained_file) in result.stdout and "cross-validated on 2 networks" in result.stdout
    assert load_profile(tmp_path / "here.yaml").b_w == 32


def test_bad_commands_are_refused_in_one_line(plain_file: Path, trained_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "here.yaml"
    assert_one_line_error(run("-o", tmp_path / "here"), "must end in .yaml")
    assert_one_line_error(run(plain_file, plain_file, "-o", output), "named twice")
    assert_one_line_error(run(tmp_path / "none.onnx", "-o", output), "none.onnx", "cannot be read")
    assert_one_line_error(run(plain_file, "--lambda", 0.5, "-o", output), "lambda (=0.5)", "none of these files")
    assert_one_line_error(run(trained_file, "--lambda", 2, "-o", output), "lambda (=2", "[0, 1]")
    (tmp_path / "text.onnx").write_text("no network")
    assert_one_line_error(run(tmp_path / "text.onnx", "-o", output), "text.onnx", "no ONNX")
    assert run(plain_file).exit_code == 2 and not output.exists()
