"""Figures: SVG for documents, PNG for people."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from deploytool.atomic import atomic_path

# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LOG_FROM = 8.0  # latencies so many times apart are told apart on a logarithmic axis alone


def tradeoff_figure(rows: Sequence[dict[str, Any]], key: str, attack: str, alphas: dict[str, Any], path: Path) -> None:
    """Draw accuracy over lambda, a panel per value of a recipe key, and the learned alphas; write PNG and SVG.

    Args:
        rows: evaluation rows of one attack, each with `value`.
        key: the recipe key whose values make the panels.
        attack: name of the attack, for the axis.
        alphas: per value, a dictionary layer -> alpha.
        path: file to write; its suffix is replaced by .png and .svg.
    """
    from matplotlib.figure import Figure

    values = list(dict.fromkeys(row["value"] for row in rows))
    figure = Figure(figsize=(4.2 * len(values), 7.6), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    top, bottom = halves
    panels = top.subplots(1, len(values), sharey=True, squeeze=False)[0]
    lines = list(dict.fromkeys(_line(row) for row in rows))
    legend: dict[str, Any] = {}
    for panel, value in zip(panels, values, strict=True):
        _tradeoff_panel(panel, [row for row in rows if row["value"] == value], lines)
        handles, labels = panel.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
        panel.set_title(f"{key} = {value}")
    panels[0].set_ylabel(f"accuracy on test images\n(filled: clean, hollow: under {attack})")
    top.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend), frameon=False)

    axes = bottom.subplots()
    shown = {value: layers for value, layers in alphas.items() if layers}
    for index, (value, layers) in enumerate(shown.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.plot(list(layers), list(layers.values()), color=colour, marker=marker, label=f"{key} = {value}")
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set_ylabel("learned noise scaling factor alpha")
    axes.tick_params(axis="x", rotation=30)
    if shown:
        axes.legend(frameon=False)
    save_figure(figure, path)


def sweep_figure(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw latency over width, a line per precision and number of threads; write PNG and SVG.

    A point is the median, its bar reaches from p50 to p90. Lambdas stand side by side at each width; the line joins
    the medians over them. Where there is one width, latency is drawn over lambda instead.

    Args:
        rows: as `deploytool.runtime.sweep.sweep` returns them.
        title: what was measured where.
        path: file to write; its suffix is replaced by .png and .svg.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    widths = sorted({row["width"] for row in rows})
    lambdas = sorted({row["lambda"] for row in rows if row["lambda"] is not None})
    key = "width" if len(widths) > 1 or len(lambdas) < 2 else "lambda"
    values = widths if key == "width" else lambdas
    beside = lambdas if key == "width" and len(lambdas) > 1 else []
    gap = min((b - a for a, b in pairwise(values)), default=1.0)
    slot = 0.6 * gap / max(len(beside), 4)
    lines = _latency_lines(rows)
    for index, (line, style) in enumerate(lines):
        chosen = [row for row in rows if (row["precision"], row["threads"]) == line]
        shift = 0.6 * slot * ((index + 0.5) / len(lines) - 0.5)  # lines that take equally long are seen side by side
        x = [row[key] + shift + slot * _place(row["lambda"], beside) for row in chosen]
        p50 = [row["p50_ms"] for row in chosen]
        above = [row["p90_ms"] - row["p50_ms"] for row in chosen]
        over = sorted({row[key] for row in chosen})
        medians = [float(np.median([row["p50_ms"] for row in chosen if row[key] == value])) for value in over]
        joined = [value + shift for value in over]
        axes.plot(joined, medians, color=style["color"], linestyle=style["linestyle"], linewidth=1)
        axes.errorbar(x, p50, [[0.0] * len(x), above], None, "none", ecolor=style["color"], capsize=3, elinewidth=1.2)
        axes.plot(x, p50, **(style | {"linestyle": "none"}))
        axes.plot([], [], **style, linewidth=1, label=f"{line[0]}, {line[1]} {'thread' if line[1] == 1 else 'threads'}")
    each = f"\n(at each width, from left to right: lambda {', '.join(f'{lam:g}' for lam in beside)})" if beside else ""
    axes.set_xlabel(f"width multiplier{each}" if key == "width" else f"lambda (width {widths[0]:g})")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.margins(x=0.1)
    axes.set_ylabel("latency of one inference in ms\n(point: median; bar: up to the 90th percentile)")
    least, most = min(row["p50_ms"] for row in rows), max(row["p90_ms"] for row in rows)
    if most > LOG_FROM * least:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    else:
        axes.set_ylim(0, 1.05 * most)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    axes.set_title(title.replace("; ", "\n"), fontsize=9)
    save_figure(figure, path)


def _tradeoff_panel(panel: Any, rows: Sequence[dict[str, Any]], lines: Sequence[str]) -> None:
    """Draw one panel; a line has the same colour and marker in every panel."""
    for index, name in enumerate(lines):
        chosen = sorted((row for row in rows if _line(row) == name), key=lambda row: row["lambda"] or 0)
        if not chosen:
            continue
        x = [row["lambda"] or 0 for row in chosen]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        panel.plot(x, [row["clean_accuracy"] for row in chosen], color=colour, marker=marker, linestyle="--")
        panel.plot(x, [row["robust_accuracy"] for row in chosen], color=colour, marker=marker, mfc="white", label=name)
    panel.set_xlabel("lambda")
    panel.set_ylim(-0.02, 1.02)
    panel.grid(alpha=0.3)


def _line(row: dict[str, Any]) -> str:
    """What tells the lines of a panel apart."""
    parts = [row["conditioning"] or "no condition"]
    if row["lambda_threshold"] is not None:
        parts.append(f"threshold {row['lambda_threshold']:g}")
    if row.get("width", 1.0) != 1:
        parts.append(f"width {row['width']:g}")
    return ", ".join(parts)


def _latency_lines(rows: Sequence[dict[str, Any]]) -> list[tuple[tuple[str, int], dict[str, Any]]]:
    """Precision and threads of each line, and its style: threads have a colour and marker, precisions a dash."""
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    threads = sorted({row["threads"] for row in rows})
    lines = []
    for line in sorted({(precisions.index(row["precision"]), threads.index(row["threads"])) for row in rows}):
        colour = COLOURS[line[1] % len(COLOURS)]
        marker = MARKERS[(line[1] + line[1] // len(COLOURS)) % len(MARKERS)]
        fill, dash = ("white", "--") if line[0] else (colour, "-")
        style = {"color": colour, "marker": marker, "markersize": 5, "markerfacecolor": fill, "linestyle": dash}
        lines.append(((precisions[line[0]], threads[line[1]]), style))
    return lines


def _place(lam: float | None, beside: Sequence[float]) -> float:
    """Where a lambda stands among those at one width: 0 in the middle."""
    return beside.index(lam) - (len(beside) - 1) / 2 if beside and lam is not None else 0.0


def save_figure(figure: Any, path: Path) -> None:
    """Write PNG and SVG, each whole or not at all."""
    for suffix in (".png", ".svg"):
        with atomic_path(path.with_suffix(suffix)) as aside:
            figure.savefig(aside, format=suffix[1:], dpi=130)
