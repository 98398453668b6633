"""The figure: each curve holds the rows' numbers, and both files are written whole."""

import itertools
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from deploytool.report.plots import sweep_figure, tradeoff_figure


def row(value: str, lam: float | None, clean: float, robust: float, line: tuple[Any, Any] = ("switch", 0.0)) -> dict:
    conditioning, threshold = line
    return {
        "value": value, "lambda": lam, "conditioning": conditioning, "lambda_threshold": threshold,
        "clean_accuracy": clean, "robust_accuracy": robust,
    }  # fmt: skip


ROWS = [row("frozen", 1.0, 0.8, 0.6), row("frozen", 0.0, 0.9, 0.3), row("none", 0.0, 0.7, 0.2)]
ALPHAS = {"frozen": {"conv1": 0.25, "conv2": -0.5}, "none": {}}


def kept_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Where figures go instead of being rendered."""
    kept: list[Figure] = []

    def keep(figure: Figure, path: Path, **options: Any) -> None:
        kept.append(figure)
        Path(path).write_bytes(b"x")

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


@pytest.fixture
def drawn(monkeypatch, tmp_path: Path) -> Any:
    """Draw a figure without rendering it; return its axes: the panels, then the alphas."""

    def draw(rows: list[dict], alphas: dict[str, Any], key: str = "method.noise") -> tuple[Figure, list[Any]]:
        with monkeypatch.context() as patch:
            kept = kept_figures(patch)
            tradeoff_figure(rows, key, "pgd-7", alphas, tmp_path / "kept.png")
        return kept[0], kept[0].axes

    return draw


def points(line: Any) -> list[tuple[float, float]]:
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_both_files_are_written_and_can_be_opened(tmp_path: Path) -> None:
    tradeoff_figure(ROWS, "method.noise", "pgd-7", ALPHAS, tmp_path / "figure.anything")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "figure.svg"]
    with Image.open(tmp_path / "figure.png") as picture:
        picture.load()
        assert picture.format == "PNG" and len(set(picture.convert("L").tobytes())) > 10
    assert ElementTree.parse(tmp_path / "figure.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_panel_per_value_holds_clean_and_robust_accuracy_over_lambda(drawn) -> None:
    _, (frozen, none, _) = drawn(ROWS, ALPHAS)
    assert [frozen.get_title(), none.get_title()] == ["method.noise = frozen", "method.noise = none"]
    clean, robust = frozen.get_lines()
    assert points(clean) == [(0.0, 0.9), (1.0, 0.8)] and points(robust) == [(0.0, 0.3), (1.0, 0.6)]
    assert [points(line) for line in none.get_lines()] == [[(0.0, 0.7)], [(0.0, 0.2)]]
    assert "pgd-7" in frozen.get_ylabel() and frozen.get_ylim()[0] <= 0 and frozen.get_ylim()[1] >= 1


def test_the_alphas_are_drawn_by_layer_where_there_are_any(drawn) -> None:
    _, axes = drawn(ROWS, ALPHAS)
    alphas, zero = axes[-1].get_lines()
    assert points(alphas) == [("conv1", 0.25), ("conv2", -0.5)]
    assert list(zero.get_ydata()) == [0, 0]
    assert [text.get_text() for text in axes[-1].get_legend().get_texts()] == ["method.noise = frozen"]


def test_the_legend_names_the_lines_of_all_panels_by_their_colour(drawn) -> None:
    switch, half, blend = ("switch", 0.0), ("switch", 0.5), ("interpolate", None)
    rows = [row("a", 0.0, 0.9, 0.1, switch), row("b", 0.0, 0.8, 0.2, blend), row("b", 0.0, 0.7, 0.3, half)]
    figure, axes = drawn(rows, {})
    (legend,) = [legend for half_figure in figure.subfigs for legend in half_figure.legends]
    colours = {
        text.get_text(): to_hex(handle.get_color())
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    assert set(colours) == {"switch, threshold 0", "switch, threshold 0.5", "interpolate"}
    assert len(set(colours.values())) == 3
    expected = {0.1: "switch, threshold 0", 0.2: "interpolate", 0.3: "switch, threshold 0.5"}
    for line in itertools.chain.from_iterable(panel.get_lines() for panel in axes[:2]):
        if (accuracy := line.get_ydata()[0]) in expected:
            assert to_hex(line.get_color()) == colours[expected[accuracy]]


@pytest.mark.parametrize("count", [1, 6, 7, 13])
def test_there_may_be_more_values_than_colours(count: int, drawn) -> None:
    rows = [row(str(value), 0.5, 0.9, 0.5) for value in range(count)]
    _, axes = drawn(rows, {str(value): {"conv": value / 10} for value in range(count)})
    assert len(axes) == count + 1
    assert [list(line.get_ydata()) for line in axes[-1].get_lines()[:-1]] == [[value / 10] for value in range(count)]


def test_a_method_without_lambda_and_alphas_can_be_drawn(tmp_path: Path) -> None:
    rows = [row("standard", None, 0.9, 0.1, (None, None))]
    tradeoff_figure(rows, "method", "fgsm", {"standard": {}}, tmp_path / "plain.png")
    assert (tmp_path / "plain.png").stat().st_size > 0


def test_a_failure_while_drawing_keeps_the_old_figure(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "figure.png").write_bytes(b"old")

    def fails(figure: Figure, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(OSError, match="No space left"):
        tradeoff_figure(ROWS, "method.noise", "pgd-7", ALPHAS, tmp_path / "figure.png")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert (tmp_path / "figure.png").read_bytes() == b"old"


def latency(lam: float | None, width: float, p50: float, threads: int = 1, precision: str = "float32") -> dict:
    return {
        "lambda": lam, "width": width, "precision": precision, "threads": threads, "p50_ms": p50, "p90_ms": p50 + 1,
    }  # fmt: skip


def swept_axes(rows: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    kept = kept_figures(monkeypatch)
    sweep_figure(rows, "model.onnx; here", tmp_path / "sweep.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.png", "sweep.svg"]
    (axes,) = kept[0].axes
    return axes


def test_latency_over_width_holds_every_row(tmp_path: Path, monkeypatch) -> None:
    p50 = {(1.0, 0.0): 8.0, (1.0, 0.5): 7.0, (1.0, 1.0): 6.0, (0.5, 0.0): 2.5, (0.5, 0.5): 2.0, (0.5, 1.0): 3.0}
    axes = swept_axes([latency(lam, width, ms) for (width, lam), ms in p50.items()], tmp_path, monkeypatch)
    joined, *_, marked, _ = axes.get_lines()  # between them are the bars' caps, at the end the legend's
    medians, rows = points(joined), points(marked)
    assert medians == [(0.5, 2.5), (1.0, 7.0)]
    assert [y for _, y in sorted(rows)] == [2.5, 2.0, 3.0, 8.0, 7.0, 6.0]  # by width, then by lambda
    near = [min((0.5, 1.0), key=lambda width: abs(width - x)) for x, _ in sorted(rows)]
    assert near == [0.5] * 3 + [1.0] * 3
    bars = [tuple(segment[:, 1]) for segment in axes.collections[0].get_segments()]
    assert sorted(bars) == sorted((ms, ms + 1) for ms in p50.values())
    assert "width" in axes.get_xlabel() and "lambda 0, 0.5, 1" in axes.get_xlabel() and "ms" in axes.get_ylabel()
    assert axes.get_title() == "model.onnx\nhere" and axes.get_ylim()[0] == 0


def test_latency_of_one_width_is_over_lambda(tmp_path: Path, monkeypatch) -> None:
    axes = swept_axes([latency(0.0, 1.0, 8.0), latency(1.0, 1.0, 7.0)], tmp_path, monkeypatch)
    assert points(axes.get_lines()[0]) == [(0.0, 8.0), (1.0, 7.0)]
    assert axes.get_xlabel() == "lambda (width 1)"


def test_each_precision_and_number_of_threads_is_a_line_of_its_own_look(tmp_path: Path, monkeypatch) -> None:
    lines = [(precision, threads) for precision in ("float32", "int8") for threads in (1, 2, 4, 8, 16, 32, 64)]
    rows = [latency(None, 1.0, 5.0 + threads, threads, precision) for precision, threads in lines]
    legend = swept_axes(rows, tmp_path, monkeypatch).get_legend()
    names = [f"{precision}, {threads} thread{'s' if threads > 1 else ''}" for precision, threads in lines]
    assert [text.get_text() for text in legend.get_texts()] == names
    looks = {
        (to_hex(handle.get_color()), handle.get_marker(), handle.get_linestyle(), to_hex(handle.get_markerfacecolor()))
        for handle in legend.legend_handles
    }
    assert len(looks) == len(lines)


def test_latencies_far_apart_get_a_logarithmic_axis(tmp_path: Path, monkeypatch) -> None:
    axes = swept_axes([latency(None, 1.0, 80.0), latency(None, 0.5, 2.0)], tmp_path, monkeypatch)
    assert axes.get_yscale() == "log"
