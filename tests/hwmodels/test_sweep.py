"""Sweeps: against `price` one by one, fronts and targets against brute force, the axes, tables, figure and CLI."""

import csv
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deploytool.cli import cli
from hwmodels.activations import Flow, Step
from hwmodels.axes import parse_axes
from hwmodels.errors import HwModelsError, ProfileError, SweepError
from hwmodels.layers import Layer
from hwmodels.methods import METHODS
from hwmodels.profile import load_profile
from hwmodels.report import price
from hwmodels.scaling import scaled
from hwmodels.sweep import Sweep, pareto_front, sweep
from hwmodels.sweep_figure import draw_sweep
from hwmodels.sweep_table import MAX_ROWS, render_sweep
from hwmodels.workload import Workload

PROFILE = load_profile("asic-65nm").completed_by(load_profile("horowitz-45nm"))
AXES = {"width": [0.3, 1], "density": [0.013, 0.5, 1], "bits": [3, 8, 16], "n_bank": [1, 3, 4], "n_mult": [1, 64, 175]}
TIMES = ("delay_ns", "read_ns", "mult_ns", "transform_ns", "sparse_aware_ns")


def assert_as_price(found: Sweep, networks: Mapping[float | None, Workload], density: bool) -> None:
    """Each configuration of a sweep costs what `price` says of it, one by one."""
    for row in found.rows():
        profile = found.profile.override({"b_w": row["bits"], "n_bank": row["n_bank"], "n_mult": row["n_mult"]})
        share = row["density"] if density else None
        totals = price(networks[row["width"]], found.method, profile, density=share).totals()
        for key in ("weight_bytes", "encoded_weight_bytes"):
            assert row[key] == totals[key], (key, row)
        for key in TIMES:
            assert row[key] == pytest.approx(totals[key], rel=1e-12), (key, row)
        if totals["energy_pj"] is None:
            assert row["energy_pj"] is None
        else:
            assert row["energy_pj"] == pytest.approx(totals["energy_pj"], rel=1e-12)
        assert row["hardware"] == row["n_bank"] * row["n_mult"]


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_a_sweep_is_price_one_by_one(small: Workload, method: str) -> None:
    found = sweep(small, AXES, method, PROFILE)
    assert len(found) == 2 * 3 * 3 * 3 * 3
    assert_as_price(found, {width: scaled(small, width) for width in (0.3, 1)}, density=True)


def test_a_sweep_of_chips_takes_the_zeros_of_the_file(small: Workload) -> None:
    found = sweep(small, {"n_mult": [7, 175], "bits": [4, 32]}, None, PROFILE)
    assert found.method.name == "float" and found.time_key == "delay_ns" and found.memory_key == "weight_bytes"
    assert_as_price(found, {None: small}, density=False)
    assert (found.columns["sparse_aware_ns"] < found.columns["delay_ns"]).all()
    given_density = sweep(small, {"n_mult": [7, 175]}, None, PROFILE, density=0.25)
    assert given_density.time_key == "sparse_aware_ns" and set(given_density.axes) == {"n_mult"}
    assert_as_price(given_density, {None: small}, density=True)
    assert "at density 0.25" in render_sweep(given_density)


def test_random_configurations_of_resnet34_in_parts(resnet34: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwmodels.batch.CELLS", 37 * 5)  # five configurations at once, the last part smaller
    draw = random.Random(0)
    axes = {
        "density": [draw.uniform(1e-6, 1) for _ in range(3)],
        "bits": draw.sample(range(1, 65), 2),
        "n_bank": [draw.randint(1, 40)],
        "n_mult": [draw.randint(1, 5000) for _ in range(2)],
    }
    assert_as_price(sweep(resnet34, axes, "oat", PROFILE), {None: resnet34}, density=True)


def test_ten_thousand_configurations(resnet34: Workload) -> None:
    axes = {"n_mult": range(8, 408, 8), "n_bank": range(1, 11), "density": [0.1, 1], "bits": range(4, 44, 4)}
    found = sweep(resnet34, axes, "oat")
    front, cheapest = found.front, found.cheapest(1e9)
    assert len(found) == 10_000 and front.any() and found.columns["hardware"][cheapest] == 8


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=40))
def test_the_front_is_that_of_brute_force(points: list[tuple[int, ...]]) -> None:
    beaten = [any(all(a <= b for a, b in zip(q, p)) and q != p for q in points) for p in points]  # noqa: B905
    assert pareto_front(np.asarray(points, float)).tolist() == [not each for each in beaten]


def test_fronts_of_a_sweep_are_those_of_brute_force(small: Workload) -> None:
    found = sweep(small, AXES, "float", PROFILE)
    rows = found.rows(range(len(found)))

    def beats(q: dict[str, Any], p: dict[str, Any], keys: tuple[str, ...]) -> bool:
        return all(q[key] <= p[key] for key in keys) and any(q[key] < p[key] for key in keys)

    assert found.objectives == ("sparse_aware_ns", "hardware", "encoded_weight_bytes")  # no energies of 3 bits
    for p in rows:
        own = [q for q in rows if all(q[key] == p[key] for key in ("width", "density", "bits"))]
        assert p["front"] == (not any(beats(q, p, found.objectives) for q in rows))
        assert p["network_front"] == (not any(beats(q, p, ("sparse_aware_ns", "hardware")) for q in own))
    assert len(set(found.network.tolist())) == 2 * 3 * 3
    priced = sweep(small, {"bits": [8, 16]}, "float", PROFILE)
    assert priced.objectives[-1] == "energy_pj" and priced.front.tolist() == [True, False]


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_each_axis_costs_in_one_direction(small: Workload, method: str) -> None:
    found = sweep(small, AXES, method, PROFILE)
    shape = [len(values) for values in found.axes.values()]
    for place, key in enumerate(found.axes):
        for column in (*TIMES, "weight_bytes", "encoded_weight_bytes"):
            steps = np.diff(found.columns[column].reshape(shape), axis=place)
            assert (steps <= 0).all() if key in ("n_bank", "n_mult") else (steps >= 0).all(), (key, column)


@pytest.mark.parametrize("target", [0.05, 0.3, 1, 20, 1e6])
def test_the_target_picks_what_brute_force_picks(small: Workload, target: float) -> None:
    found = sweep(small, AXES, "oat", PROFILE)
    rows = [row for row in found.rows(range(len(found))) if row["sparse_aware_ns"] <= target * 1e6]
    assert rows
    keys = ("hardware", "bits", "encoded_weight_bytes", "sparse_aware_ns")
    best = min(rows, key=lambda row: tuple(row[key] for key in keys))  # the first of equals
    assert found.rows([found.cheapest(target)]) == [best]
    networks = {tuple(row[key] for key in ("width", "density", "bits")) for row in rows}
    cheapest = found.to_dict(target)["target"]
    assert cheapest["cheapest"] == cheapest["by_network"][0] == best
    assert len(cheapest["by_network"]) == len(networks)
    for row in cheapest["by_network"]:
        own = [each for each in rows if all(each[key] == row[key] for key in ("width", "density", "bits"))]
        assert row["hardware"] == min(each["hardware"] for each in own)


def test_a_target_that_nothing_meets_names_the_fastest(small: Workload) -> None:
    found = sweep(small, {"n_mult": [5, 175], "n_bank": [4, 2]}, "plain")
    fastest = price(small, "plain").totals()["delay_ns"] / 1e6
    with pytest.raises(SweepError, match=rf"the fastest takes {fastest:.4g} ms: n_bank=4 n_mult=175"):
        found.cheapest(1e-6)
    for target in (0, -1, float("nan"), float("inf")):
        with pytest.raises(SweepError, match="must be a positive number of ms"):
            found.cheapest(target)


def test_axes_are_read_from_every_form() -> None:
    expected = {"bits": (8, 16), "n_bank": (1, 2), "n_mult": (64, 128, 175)}
    for texts in (
        ["n_mult=64,128,175", "n_bank=1,2", "bits=8,16"],
        ["n_mult=64,128,175,n_bank=1,2,bits=8,16"],
        ["n_mult = 64, 128 ,175; n_bank=1,2  b_w=8,8,16"],
        ["n_mult=64:128:64,175 n_bank=1:2", "bits=8:20:8"],
    ):
        assert parse_axes(texts) == expected and list(parse_axes(texts)) == list(expected)
    assert parse_axes(["density=0.1:0.5:0.1"]) == {"density": (0.1, 0.2, 0.3, 0.4, 0.5)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n_mul=3", ["'n_mul' is unknown", "did you mean n_mult?"]),
        ("n_mult=", ["n_mult has no values"]),
        ("n_mult=-4", ["n_mult (=-4)", "1..1048576"]),
        ("n_mult=2.5", ["n_mult (=2.5)", "whole"]),
        ("n_bank=0", ["n_bank (=0)"]),
        ("bits=80", ["bits (=80)", "1..64"]),
        ("density=1.5", ["density (=1.5)", "(0, 1]"]),
        ("width=0", ["width (=0)"]),
        ("width=nan", ["width (=nan)"]),
        ("n_mult=inf", ["n_mult (=inf)"]),
        ("n_mult=x", ["n_mult (=x)", "32:512:32"]),
        ("n_mult=8:4:1", ["must go up"]),
        ("n_mult=1:2:0", ["must go up"]),
        ("n_mult=1:1e300:1e-9", ["at most 100,000"]),
        ("n_mult=1:1000 n_bank=1:101", ["101,000 configurations", "at most 100,000"]),
        ("n_mult=1 n_mult=2", ["n_mult twice"]),
        ("64,128", ["key=value"]),
        ("", ["key=value"]),
    ],
)
def test_bad_axes_are_named(text: str, words: list[str]) -> None:
    with pytest.raises(SweepError) as error:
        parse_axes([text])
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_what_cannot_be_swept_is_named(small: Workload) -> None:
    with pytest.raises(ProfileError, match="no times"):
        sweep(small, {"n_mult": [1]}, profile=load_profile("horowitz-45nm"))
    huge = Workload("huge", (Layer("fc", "linear", 1 << 30, 1 << 30, (), 1),), {}, {}, (), {})
    with pytest.raises(SweepError, match="too large"):
        sweep(huge, {"n_mult": [1]})
    with pytest.raises(SweepError, match="nothing to sweep"):
        sweep(Workload("empty", (), {}, {"Foo": 1}, (), {}), {"n_mult": [1]})
    with pytest.raises(SweepError, match="widths 2 are missing"):
        sweep({1.0: small}, {"width": [1, 2]})
    with pytest.raises(HwModelsError, match="nothing to sweep"):
        sweep(small, {})


def test_scaled_channels_by_hand(small: Workload) -> None:
    """ceil(0.3 * 64) = 20, ceil(0.3 * 128) = 39; 3 image channels and 10 classes stay."""
    found = scaled(small, 0.3).layers
    assert [(layer.out_channels, layer.in_channels_per_group) for layer in found] == [
        (20, 3), (39, 20), (39, 20), (10, 39)
    ]  # fmt: skip
    assert found[0].in_values == 3072 and found[0].out_values == 20 * 1024 and found[3].biases == 10
    assert found[1].nonzero == 39 * 20 * 9 // 2 and found[1].fillers is None
    assert scaled(small, 1) is small
    for width in (0, -1, 17, float("nan")):
        with pytest.raises(SweepError, match="must be in"):
            scaled(small, width)


def test_scaled_groups_and_several_ends() -> None:
    """Two layers read the image, two make an output; depthwise groups follow their channels, other groups stay."""
    layers = (
        Layer("left", "conv", 16, 3, (3, 3), 4),
        Layer("right", "conv", 16, 3, (1, 1), 4),
        Layer("depthwise", "conv", 32, 1, (3, 3), 4, groups=16),
        Layer("grouped", "conv", 32, 8, (3, 3), 4, groups=4),
        Layer("classes", "linear", 10, 32, (), 1),
        Layer("box", "linear", 4, 32, (), 1),
    )
    steps = (
        Step("", "Sub", ("x",), ("y",)),
        Step("left", "Conv", ("y",), ("a",)),
        Step("right", "Conv", ("y",), ("b",)),
        Step("", "Add", ("a", "b"), ("c",)),
        Step("depthwise", "Conv", ("c",), ("d",)),
        Step("grouped", "Conv", ("d",), ("e",)),
        Step("classes", "Gemm", ("e",), ("f",)),
        Step("", "Softmax", ("f",), ("p",)),
        Step("box", "Gemm", ("e",), ("q",)),
    )
    workload = Workload("net", layers, {}, {}, ("x",), {}, flow=Flow(steps, {}, ("x",), ("p", "q")))
    assert [(each.out_channels, each.in_channels_per_group, each.groups) for each in scaled(workload, 0.25).layers] == [
        (4, 3, 1), (4, 3, 1), (8, 1, 4), (8, 2, 4), (10, 8, 1), (4, 8, 1)
    ]  # fmt: skip


def test_long_sweeps_show_the_front_and_the_fastest(small: Workload) -> None:
    short = render_sweep(sweep(small, {"n_mult": [64, 128]}))
    assert "2 configurations" in short and "shown" not in short
    found = sweep(small, {"n_mult": range(1, 20), "n_bank": range(1, 20)})
    text = render_sweep(found, 1e6)
    front = min(int(found.front.sum()), MAX_ROWS)
    lines = [line for line in text.splitlines() if line.startswith((" ", "*"))]
    assert f"{front} of {found.front.sum()}" in text or f"the {front} on the front" in text
    assert front <= len(lines) <= front + 10
    assert "cheapest within 1e+06 ms: n_bank=1 n_mult=1:" in text


@pytest.mark.parametrize("networks", [1, 9])
@pytest.mark.parametrize("target", [None, 1e6])
def test_the_figure_draws_few_and_many_networks(small: Workload, networks: int, target: float | None) -> None:
    pytest.importorskip("matplotlib")
    found = sweep(small, {"bits": range(1, networks + 1), "n_bank": [1], "n_mult": [1, 2]})
    axes = draw_sweep(found, target).axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log" and "n_mult" in axes.get_xlabel()
    fronts = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert [line.get_xdata().tolist() for line in fronts] == [[1, 2]]


# Command line


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["cost", *map(str, arguments)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A network of two convolutions, 3 -> 8 -> 16 channels, 3x3, each at each of 8 x 8 pixels."""
    weights = {"stem.weight": np.ones((8, 3, 3, 3), np.float32), "conv.weight": np.ones((16, 8, 3, 3), np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "conv.weight"], ["y"], pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_cost_sweeps_and_writes_every_form(file: Path, tmp_path: Path) -> None:
    """8 x 3 x 9 = 216 and 16 x 8 x 9 = 1152 weights at 64 positions; at width 0.5 they are 4 x 27 and 16 x 36."""
    out = tmp_path / "out"
    options = ["--sweep", "n_mult=1,100 n_bank=1", "--sweep", "width=0.5,1", "--target-ms", 0.1, "-o", out]
    result = run(file, *options, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    files = document.pop("files")
    assert files == {kind: str(out / f"sweep.{kind}") for kind in ("json", "csv", "md", "png", "svg")}
    assert json.loads(Path(files["json"]).read_text()) == document
    delays = {(row["width"], row["n_mult"]): row["delay_ns"] for row in document["rows"]}
    assert delays == {
        (0.5, 100): 9 * (54 + 288) + 4 * 64 * (2 + 6),
        (1, 100): 9 * (108 + 576) + 4 * 64 * (3 + 12),
        (0.5, 1): 9 * (54 + 288) + 4 * 64 * (108 + 576),
        (1, 1): 9 * (108 + 576) + 4 * 64 * (216 + 1152),
    }
    assert list(delays) == sorted(delays, key=lambda key: delays[key])
    assert "estimate" in document["widths"]
    assert (document["target"]["cheapest"]["width"], document["target"]["cheapest"]["n_mult"]) == (0.5, 100)
    with Path(files["csv"]).open() as lines:
        assert [float(line["delay_ns"]) for line in csv.DictReader(lines)] == list(delays.values())
    text = run(file, *options).stdout
    assert "cheapest within 0.1 ms: width=0.5 n_bank=1 n_mult=100" in text and "written to" in text
    assert "| *" in Path(files["md"]).read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sweep", "n_mul=1"], ["did you mean n_mult"]),
        (["--sweep", "bits=80"], ["bits (=80)"]),
        (["--sweep", "n_mult="], ["no values"]),
        (["--sweep", "n_bank=-1"], ["n_bank (=-1)"]),
        (["--sweep", "n_mult=1", "--target-ms", "1e-9"], ["the fastest takes", "n_mult=1"]),
        (["--sweep", "density=0.5", "--density", "0.5"], ["--density (=0.5)", "leave out"]),
        (["--sweep", "n_mult=1", "--density", "-1"], ["density (=-1)"]),
        (["--sweep", "n_mult=1", "--profile", "horowitz-45nm"], ["no times"]),
        (["--roofline", "--profile", "horowitz-45nm"], ["no times"]),
    ],
)
def test_bad_sweeps_are_one_line(file: Path, options: list[str], words: list[str]) -> None:
    result = run(file, *options)
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr


def test_options_that_exclude_each_other(file: Path) -> None:
    assert run(file, "--target-ms", 1).exit_code == 2
    for options in (["--compare"], ["--roofline"], ["--sram-mb", "1"], ["--measure"]):
        assert run(file, "--sweep", "n_mult=1", *options).exit_code == 2
