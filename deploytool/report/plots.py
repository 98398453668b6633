"""Figures: SVG for documents, PNG for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploytool.atomic import atomic_path

# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


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
    for suffix in (".png", ".svg"):
        with atomic_path(path.with_suffix(suffix)) as aside:
            figure.savefig(aside, format=suffix[1:], dpi=130)


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
