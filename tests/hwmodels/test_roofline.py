"""The roofline: worked by hand on the small workload, and as columns of a report."""

import csv
import json
from pathlib import Path

import pytest

from deploytool.costing import roofline_of, write_cost
from hwmodels.errors import ProfileError
from hwmodels.profile import load_profile
from hwmodels.report import price
from hwmodels.roofline import add_roofline, render_roofline, roofline
from hwmodels.workload import Workload

# 8-bit weights: a read of 9 ns has 4 * 64 bits, 32 bytes; a round of 4 ns has 175 products.
EIGHT_BITS = load_profile("asic-65nm").override({"b_w": 8})


def test_layers_by_hand(small: Workload) -> None:
    """1280 weights of the head: 40 full reads, 360 ns; 8 rounds of 1400 products at one position, 32 ns."""
    found = roofline(price(small, "plain", EIGHT_BITS))
    head, conv = found.layers[3], found.layers[1]
    assert (head.name, head.bound, head.intensity_macs_per_byte) == ("head", "memory", 1)
    assert head.multiplier_utilisation == pytest.approx(1280 / 1400) and head.read_utilisation == 1
    assert head.gmacs == pytest.approx(1280 / 392) and head.roof_gmacs == pytest.approx(32 / 9)
    assert (conv.bound, conv.intensity_macs_per_byte) == ("compute", 256)  # each weight at 256 positions
    assert conv.multiplier_utilisation == pytest.approx(73728 / (422 * 175)) and conv.roof_gmacs == 175 / 4
    assert [layer.bound for layer in found.layers] == ["compute", "compute", "compute", "memory"]


def test_sums_by_hand(small: Workload) -> None:
    found = roofline(price(small, "plain", EIGHT_BITS)).to_dict()
    products = 1728 * 1024 + 73728 * 256 + 8192 * 256 + 1280
    slots = 175 * (10 * 1024 + 422 * 256 + 47 * 256 + 8)
    assert found["multiplier_utilisation"] == pytest.approx(products / slots) and found["read_utilisation"] == 1
    assert found["peak_gmacs"] == 43.75 and found["bandwidth_gb_s"] == pytest.approx(32 / 9)
    assert found["ridge_macs_per_byte"] == pytest.approx(43.75 * 9 / 32)
    assert (found["memory_bound_layers"], found["compute_bound_layers"]) == (1, 3)
    assert found["memory_bound_ns"] == 392


def test_a_read_that_is_not_full(small: Workload) -> None:
    """Three banks give 192 bits: 1728 bytes are 72 reads, 1280 bytes 53.33, so 54."""
    found = roofline(price(small, "plain", EIGHT_BITS.override({"n_bank": 3}))).layers
    assert found[0].read_utilisation == 1 and found[3].read_utilisation == pytest.approx(1280 / (54 * 24))


def test_what_a_method_reads_is_counted(small: Workload) -> None:
    noise = roofline(price(small, "float-stored-noise", EIGHT_BITS)).layers
    assert noise[1].intensity_macs_per_byte == 128  # two values at each weight's place
    film = roofline(price(small, "oat", EIGHT_BITS)).layers
    assert film[1].intensity_macs_per_byte == pytest.approx(73728 * 256 / (73728 + 2 * 128 + 4 * 128**2))


def test_bounds_agree_with_the_delays(resnet34: Workload) -> None:
    """A layer is memory-bound exactly where its roof is below the peak, but for what ceilings lose."""
    report = price(resnet34, "plain")
    found = roofline(report)
    for cost, roof in zip(report.layers, found.layers, strict=True):
        assert cost.delay is not None
        assert (roof.bound == "memory") == (cost.delay.read_ns > cost.delay.mult_ns)
        assert 0 < roof.multiplier_utilisation <= 1 and 0 < roof.read_utilisation <= 1
        assert roof.gmacs < roof.roof_gmacs <= found.peak_gmacs
    assert found.memory_bound_ns + found.compute_bound_ns == pytest.approx(report.totals()["delay_ns"])


def test_columns_beside_the_report(small: Workload, tmp_path: Path) -> None:
    report = price(small, "plain", EIGHT_BITS)
    roofs = roofline_of(report)
    document = add_roofline(report.to_dict(), roofs)
    assert document["layers"][3]["bound"] == "memory" and document["layers"][3]["macs"] == 1280
    files = write_cost(report, tmp_path, lambda line: None, roofs)
    assert json.loads(Path(files["json"]).read_text()) == document
    with Path(files["csv"]).open() as lines:
        assert [line["bound"] for line in csv.DictReader(lines)] == ["compute", "compute", "compute", "memory"]
    assert "## Roofline" in Path(files["md"]).read_text()
    text = render_roofline(roofs)
    assert "1 memory-bound" in text and "3 compute-bound" in text and "ridge at 12.30" in text


def test_no_times_no_roofline(small: Workload) -> None:
    with pytest.raises(ProfileError, match="no times"):
        roofline(price(small, "plain", load_profile("horowitz-45nm")))
    with pytest.raises(ProfileError, match="no layer"):
        roofline(price(Workload("empty", (), {}, {"Foo": 1}, (), {}), "plain"))
