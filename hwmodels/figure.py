"""A cost report as a figure: one stacked bar per layer."""

from pathlib import Path
from typing import Any

from hwmodels.errors import FigureError
from hwmodels.report import CostReport, LayerCost

Style = dict[str, Any]

# Okabe and Ito's palette, told apart with any colour vision; the hatches tell bars apart in print as well.
STYLES: tuple[Style, ...] = (
    {"color": "#0072B2", "hatch": ""},
    {"color": "#E69F00", "hatch": "///"},
    {"color": "#CC79A7", "hatch": "xxx"},
    {"color": "#56B4E9", "hatch": "..."},
)
READ, MULTIPLY, TRANSFORM, ACTIVATIONS = STYLES
MAX_BARS = 120  # layers that one figure can name
MAX_NAME = 48


def draw(report: CostReport) -> Any:
    """Draw delay per layer (reading, multiplying, conditioning), or energy where the profile has no times.

    Args:
        report: what `price` found, with one layer or more.

    Returns:
        A matplotlib figure.

    Raises:
        FigureError: matplotlib is missing, or there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise FigureError("the figure needs matplotlib; install with: pip install 'deploytool[train]'") from None
    times = report.profile.chip() is not None
    parts = _delay_parts if times else _energy_parts
    costs = [cost for cost in report.layers if (cost.delay if times else cost.energy) is not None]
    if not costs:
        lacks = "no delay and no energy of" if report.layers else "no layer of"
        raise FigureError(f"profile {report.profile.name} prices {lacks} {report.workload.file}; nothing to draw")
    shown = sorted(sorted(costs, key=lambda cost: -_sum(parts(cost)))[:MAX_BARS], key=costs.index)
    scale, unit = _unit(max(_sum(parts(cost)) for cost in shown), times)
    figure = Figure(figsize=(9, 1.9 + 0.2 * len(shown)), layout="constrained")
    axes = figure.subplots()
    names = [short_name(cost.layer.name) for cost in shown]
    left = [0.0] * len(shown)
    for part, (label, _, style) in enumerate(parts(shown[0])):
        widths = [parts(cost)[part][1] / scale for cost in shown]
        if any(widths):
            total = sum(widths) * scale / sum(_sum(parts(cost)) for cost in shown)
            axes.barh(
                range(len(shown)),
                widths,
                left=left,
                height=0.78,
                label=f"{label} ({100 * total:.1f} %)",
                edgecolor="white",
                linewidth=0.4,
                **style,
            )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    _label_bars(axes, shown, left, report)
    axes.set_yticks(range(len(shown)), names, fontsize=8, parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_ylabel("layer, in the order of computation")
    ratios = "\n(at a bar's end: times the plain layer's delay, eq. 7)" if times and report.method.conditional else ""
    axes.set_xlabel(f"{'delay' if times else 'energy'} of one image in {unit}{ratios}")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    few = f", the {len(shown)} dearest of {len(costs)} layers" if len(shown) < len(costs) else ""
    title = f"{short_name(Path(report.workload.file).name)}, {report.method.label}, {report.profile.name}{few}"
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def short_name(text: str) -> str:
    """A name from a file that we did not write: on one line, and of a length that leaves room for bars."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME // 2]}...{text[-MAX_NAME // 2 :]}"


def _label_bars(axes: Any, shown: list[LayerCost], ends: list[float], report: CostReport) -> None:
    """Write at the end of each bar what the method makes of the plain layer's delay: the slices are thin."""
    if not report.method.conditional or report.profile.chip() is None:
        return
    for place, (cost, end) in enumerate(zip(shown, ends, strict=True)):
        axes.annotate(
            f"× {cost.normalized_delay:.3f}",
            (end, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color="#444444",
        )
    axes.margins(x=0.09)


def _delay_parts(cost: LayerCost) -> list[tuple[str, float, Style]]:
    delay = cost.delay
    assert delay is not None
    return [
        ("read", delay.read_ns, READ),
        ("multiply", delay.mult_ns, MULTIPLY),
        ("transform", delay.transform_ns, TRANSFORM),
    ]


def _energy_parts(cost: LayerCost) -> list[tuple[str, float, Style]]:
    energy = cost.energy
    assert energy is not None
    return [
        ("read weights", energy.weight_read_pj, READ),
        ("multiply and add", energy.mult_pj + energy.accumulate_pj, MULTIPLY),
        ("transform", energy.transform_pj + energy.transform_read_pj, TRANSFORM),
        ("activations", energy.activation_read_pj + energy.activation_write_pj, ACTIVATIONS),
    ]


def _sum(parts: list[tuple[str, float, Style]]) -> float:
    return sum(value for _, value, _ in parts)


def _unit(largest: float, times: bool) -> tuple[float, str]:
    """A unit in which the largest bar has a number of few digits, and its size in ns or pJ."""
    names = ("ns", "µs", "ms", "s") if times else ("pJ", "nJ", "µJ", "mJ")
    power = 0
    while power < 3 and largest >= 1000 ** (power + 1):
        power += 1
    return float(1000**power), names[power]
