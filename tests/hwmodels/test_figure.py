"""The figure: every layer has its name and its bars, whatever the profile answers."""

import builtins
import dataclasses
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hwmodels.errors import FigureError
from hwmodels.figure import MAX_BARS, draw
from hwmodels.layers import Layer
from hwmodels.profile import load_profile
from hwmodels.report import price
from hwmodels.workload import Workload


@pytest.mark.parametrize("method", ["plain", "float", "oat"])
def test_bars_are_the_delays_of_the_layers(resnet34: Workload, method: str) -> None:
    report = price(resnet34, method)
    (axes,) = draw(report).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [cost.layer.name for cost in report.layers]
    assert len(axes.containers) == (2 if method == "plain" else 3)  # nothing is conditioned in a plain network
    for place, cost in enumerate(report.layers):
        drawn = [bars[place].get_width() for bars in axes.containers]
        parts = [cost.delay.read_ns, cost.delay.mult_ns, cost.delay.transform_ns][: len(drawn)]
        assert drawn == pytest.approx([part / 1e6 for part in parts])
    assert axes.get_xlabel().startswith("delay of one image in ms") and "layer" in axes.get_ylabel()
    shares = [bars.get_label() for bars in axes.containers]
    assert shares[0].startswith("read (") and shares[1].startswith("multiply (")


def test_energies_are_drawn_where_there_are_no_times(resnet34: Workload) -> None:
    report = price(resnet34, "float", load_profile("horowitz-45nm"))
    (axes,) = draw(report).axes
    for place, cost in enumerate(report.layers):
        assert sum(bars[place].get_width() for bars in axes.containers) == pytest.approx(cost.energy.total_pj / 1e6)
    assert axes.get_xlabel() == "energy of one image in µJ"
    assert len(axes.containers) == 4


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_file_is_written_with_all_names(resnet34: Workload, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"cost.{kind}"
    figure = draw(price(resnet34, "float"))
    figure.savefig(file, format=kind)
    assert file.stat().st_size > 10_000
    if kind == "svg":
        assert "<svg" in file.read_text()[:1000]


def test_names_do_not_overlap(resnet34: Workload) -> None:
    figure = draw(price(resnet34, "oat"))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))


def test_large_networks_show_their_dearest_layers(small: Workload) -> None:
    conv, head = small.layers[1], small.layers[3]
    many = [dataclasses.replace(conv, name=f"conv{index}") for index in range(MAX_BARS)]
    figure = draw(price(dataclasses.replace(small, layers=(head, *many))))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [layer.name for layer in many]
    assert f"the {MAX_BARS} dearest of {MAX_BARS + 1} layers" in figure.get_suptitle()


@pytest.mark.parametrize(("weights", "unit"), [(1, "ns"), (10**3, "µs"), (10**6, "ms"), (10**9, "s")])
def test_units_keep_numbers_short(small: Workload, weights: int, unit: str) -> None:
    """A weight takes 9 / 8 ns to read and 9 * 4 / 175 ns to multiply."""
    layer = Layer("any", "conv", weights, 1, (1, 1), positions=9)
    (axes,) = draw(price(dataclasses.replace(small, layers=(layer,)), "plain")).axes
    assert axes.get_xlabel() == f"delay of one image in {unit}"


def test_names_that_are_no_formulas_and_no_lines(small: Workload, tmp_path: Path) -> None:
    names = ["$x^", "a\nb\x00", "layer" * 100, "ünïcode"]
    layers = tuple(dataclasses.replace(layer, name=name) for layer, name in zip(small.layers, names, strict=True))
    figure = draw(price(dataclasses.replace(small, layers=layers, file="$_$.onnx")))
    figure.savefig(tmp_path / "cost.svg", format="svg")
    ElementTree.parse(tmp_path / "cost.svg")
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown[:2] == ["$x^", "a?b?"] and len(shown[2]) == 51 and "..." in shown[2]


def test_nothing_to_draw_is_said_in_one_line(small: Workload) -> None:
    nothing = price(dataclasses.replace(small, layers=(), not_counted={"Einsum": 1}))
    with pytest.raises(FigureError, match=r"no layer of small\.onnx"):
        draw(nothing)
    unknown = price(small, profile=load_profile("horowitz-45nm").override({"b_w": 12}))
    with pytest.raises(FigureError, match="no delay and no energy"):
        draw(unknown)


def test_without_matplotlib_the_pip_command_is_named(small: Workload, monkeypatch) -> None:
    real = builtins.__import__

    def hidden(name: str, *arguments: object, **options: object) -> object:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", hidden)
    with pytest.raises(FigureError, match=r"pip install 'deploytool\[train\]'"):
        draw(price(small))
