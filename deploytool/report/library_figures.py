"""Figures of library networks: paper 4's figures 2 and 4 (agreement), 3 (confusion) and 5 (detection)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploytool.report.heatmaps import COLOURS as HEAT
from deploytool.report.heatmaps import short_name
from deploytool.report.plots import COLOURS, LOG_FROM, MARKERS, save_figure

FOREIGN = "foreign:"  # before the name of a data set
Row = dict[str, Any]

DECADES = 4  # of the confusion index that colours tell apart
NAMED = 24  # classes at most whose names fit beside a matrix
BINS = 40  # of a histogram
RIVALS = {
    "auroc_max_softmax": ("largest softmax probability", "--"),
    "auroc_knn": ("nearest training features (kNN)", ":"),
    "auroc_combined": ("combination, fitted to these attacks", "-"),
}
RIVAL_COLOURS = {"auroc_max_softmax": "#555555", "auroc_knn": "#555555", "auroc_combined": "#000000"}


def agreement_figure(rows: Sequence[Row], path: Path) -> None:
    """Draw sizes, and shares of answers foretold by the best and the three best, over theta; write PNG and SVG.

    Args:
        rows: of `deploytool.library.agreement.predict`.
        path: file to write; its suffix is replaced by .png and .svg.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(12.6, 4.3), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    for index, layer in enumerate(layers):
        chosen = [row for row in rows if row["layer"] == layer]
        x = [row["theta"] for row in chosen]
        for panel, key in zip(panels, ("size", "top1_agreement", "top3_agreement"), strict=True):
            panel.plot(x, [row[key] for row in chosen], **_style(index), label=_plain(layer))
    titles = ("(A) size of the library", "(B) best answer", "(C) three best answers")
    heights = (
        "stored patterns",
        "share of the network's answers foretold",
        "share of the network's answers among them",
    )
    for panel, title, height in zip(panels, titles, heights, strict=True):
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("novelty threshold theta (cosine similarity)")
        panel.set_ylabel(height)
        _open_panel(panel)
    sizes = [row["size"] for row in rows]
    if max(sizes) > LOG_FROM * min(sizes):
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panels[0].yaxis.set_major_formatter("{x:g}")
        panels[0].minorticks_off()
    else:
        panels[0].set_ylim(0, 1.05 * max(sizes))
    least = min(row["top1_agreement"] for row in rows)
    for panel in panels[1:]:
        panel.set_ylim(max(0.0, math.floor(10 * least - 0.5) / 10), 1.02)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(8, len(labels)), frameon=False)
    save_figure(figure, path)


def confusion_figure(
    rows: Sequence[Row], classes: Sequence[str], path: Path, thetas: Sequence[float] | None = None
) -> None:
    """Draw a matrix of the confusion index for each layer (columns) and threshold (rows); write PNG and SVG.

    Colours are those of a logarithmic scale that all matrices share, of the largest index's decade and three below it;
    the diagonal and rows of classes without a right answer are white.

    Args:
        rows: of `deploytool.library.confusion.confusion`.
        classes: their names.
        path: file to write; its suffix is replaced by .png and .svg.
        thetas: thresholds to draw; each layer's lowest and highest where None.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(row["layer"] for row in rows))
    columns = [_drawn([row for row in rows if row["layer"] == layer], thetas) for layer in layers]
    columns = [column for column in columns if column]
    matrices = [[(row, blank_diagonal(row["matrix"])) for row in column] for column in columns]
    values = [value for column in matrices for _, matrix in column for line in matrix for value in line if value > 0]
    top = 10.0 ** math.ceil(math.log10(max(values))) if values else 1.0
    lowest = top * 10.0**-DECADES
    count = max(len(column) for column in columns)
    figure = Figure(figsize=(1.2 + 3.3 * len(columns), 0.5 + 3.4 * count), layout="constrained")
    panels: Any = figure.subplots(count, len(columns), squeeze=False)
    shade: Any = None
    colours = colormaps[HEAT].with_extremes(bad="white")
    for panel in panels.flat:
        panel.set_visible(False)
    for column, filled in enumerate(matrices):
        for line, (row, matrix) in enumerate(filled):
            panel = panels[line][column]
            panel.set_visible(True)
            seen = [[max(value, lowest) if value == value else value for value in each] for each in matrix]
            shade = panel.imshow(seen, cmap=colours, norm=LogNorm(lowest, top), interpolation="nearest")
            panel.set_title(f"{_plain(row['layer'])}, theta {row['theta']:g}", fontsize=10)
            _name_classes(panel, classes)
            panel.set_xlabel("d2, confused with", fontsize=9)
            if column == 0:
                panel.set_ylabel("d1, correct class", fontsize=9)
    bar = figure.colorbar(shade, ax=panels, shrink=0.8, extend="min", aspect=30)
    bar.set_label("confusion index CI(d1, d2)\n(white: itself, or no right answer)", fontsize=9)
    save_figure(figure, path)


def detection_figure(document: Row, path: Path) -> None:
    """Draw histograms of CPL, then AUROC over eps for each attack, and by data set for foreign images.

    Histograms are of the deployed set, of clean images, every attack at the middle eps, and foreign images.

    Args:
        document: what `deploytool.library.detection.detect` returned.
        path: file to write; its suffix is replaced by .png and .svg.
    """
    from matplotlib.figure import Figure

    rows = document["rows"]
    attacks = list(dict.fromkeys(row["attack"] for row in rows if row["eps"] is not None))
    foreign = [row for row in rows if row["eps"] is None]
    count = 1 + len(attacks) + bool(foreign)
    across = 2 if count == 4 else min(3, count)
    down = -(-count // across)
    figure = Figure(figsize=(0.6 + 4.6 * across, 1.5 + 3.9 * down), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for spare in panels[count:]:
        spare.set_visible(False)
    letters = iter("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    _histogram(panels[0], document, f"({next(letters)})")
    for panel, attack in zip(panels[1:], attacks, strict=False):
        chosen = [row for row in rows if row["attack"] == attack]
        _areas(panel, chosen, document["sets"])
        panel.set_title(f"({next(letters)}) {_plain(attack)}", fontsize=10)
        panel.set_xlabel("eps, radius of the attack in units of [0, 1]")
        panel.set_xlim(left=0)
    if foreign:
        panel = panels[count - 1]
        _areas(panel, foreign, document["sets"], list(dict.fromkeys(row["attack"] for row in foreign)))
        panel.set_title(f"({next(letters)}) foreign images", fontsize=10)
        panel.set_xlabel("data set")
    _legend(figure, panels[1:count], document["sets"], across)
    save_figure(figure, path)


def _legend(figure: Any, panels: Sequence[Any], sets: Sequence[str], across: int) -> None:
    """One legend of all panels, sets of thresholds first; and the same heights in each of them."""
    legend: Row = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            legend.setdefault(label, handle)
    known = [*(f"CPL, {_plain(name)}" for name in sets), *(label for label, _ in RIVALS.values())]
    order = [name for name in known if name in legend]
    least = min((panel.get_ylim()[0] for panel in panels), default=0.0)
    for panel in panels:
        panel.set_ylim(bottom=least)
    if order:
        style: Row = {"ncols": min(len(order), 2 * across), "frameon": False, "fontsize": 9}
        figure.legend([legend[name] for name in order], order, loc="outside lower center", **style)


def _histogram(panel: Any, document: Row, letter: str) -> None:
    """CPL of clean images, filled, of others as outlines, and the verdict's threshold."""
    import numpy as np

    shown = _histograms(document["rows"])
    values = {name: document["cpl"][name] for name in ("clean", *shown)}
    least = min(min(each) for each in values.values())
    edges = np.linspace(min(least, 0.98), 1.0, BINS + 1)
    for index, (name, each) in enumerate(values.items()):
        weights = np.full(len(each), 1 / len(each))
        style: Row = {"bins": edges, "weights": weights, "label": _short(name), "color": COLOURS[index % len(COLOURS)]}
        if name == "clean":
            panel.hist(each, histtype="stepfilled", alpha=0.45, **style)
        else:
            dash = ("-", "--", "-.", ":")[(index - 1) % 4]
            panel.hist(each, histtype="step", linewidth=1.6, linestyle=dash, **style)
    if document["verdict"] is not None:
        threshold = document["verdict"]["threshold"]
        panel.axvline(threshold, color="#000000", linewidth=1, label=f"verdict's threshold, {threshold:.3f}")
    panel.set_title(f"{letter} CPL at {_plain(document['sets'][0])}", fontsize=10)
    panel.set_xlabel("CPL, consistency of the layers' predictions")
    panel.set_ylabel("share of images (logarithmic)")
    panel.set_yscale("log")
    panel.legend(fontsize=8, loc="upper left", framealpha=0.9, edgecolor="none")
    top = max(np.histogram(each, edges)[0].max() / len(each) for each in values.values())
    panel.set_ylim(0.5 / max(len(each) for each in values.values()), 12.0 * top)
    _open_panel(panel)


def _short(attack: str) -> str:
    """The name of foreign images without the folders on the way to them."""
    if not attack.startswith(FOREIGN):
        return _plain(attack)
    return FOREIGN + _plain(attack.removeprefix(FOREIGN).rpartition("/")[2])


def _histograms(rows: Sequence[Row]) -> list[str]:
    """Names of what is drawn beside clean images: each attack at its middle radius, and foreign images."""
    names = []
    for attack in dict.fromkeys(row["attack"] for row in rows):
        radii = sorted({row["eps"] for row in rows if row["attack"] == attack and row["eps"] is not None})
        names.append(f"{attack} eps {radii[len(radii) // 2]:g}" if radii else attack)
    return names


def _areas(panel: Any, rows: Sequence[Row], sets: Sequence[str], names: Sequence[str] = ()) -> None:
    """AUROC of each set and of its rivals over radii; or beside the names of data sets, side by side."""
    lines = [("auroc_cpl", name, _style(index) | {"label": f"CPL, {_plain(name)}"}) for index, name in enumerate(sets)]
    for (measure, (label, dash)), marker in zip(RIVALS.items(), ("x", "+", "*"), strict=True):
        style = {"color": RIVAL_COLOURS[measure], "marker": marker, "linestyle": dash, "linewidth": 1.4, "label": label}
        lines.append((measure, sets[0], style))
    for index, (measure, name, style) in enumerate(lines):
        chosen = [row for row in rows if row["set"] == name and row[measure] is not None]
        if not chosen:
            continue
        if names:
            beside = 0.6 * ((index + 0.5) / len(lines) - 0.5)
            x = [names.index(row["attack"]) + beside for row in chosen]
            style = style | {"linestyle": "none"}
        else:
            x = [row["eps"] for row in chosen]
        panel.plot(x, [row[measure] for row in chosen], **style)
    if names:
        panel.set_xticks(range(len(names)), [_short(name).removeprefix(FOREIGN) for name in names])
        panel.set_xlim(-0.5, len(names) - 0.5)
    least = min((value for line in panel.lines for value in line.get_ydata()), default=0.5)
    panel.axhline(0.5, color="#888888", linewidth=0.8)
    panel.set_ylabel("AUROC (0.5: by chance)")
    panel.set_ylim(min(0.45, least - 0.03), 1.02)
    _open_panel(panel)


def _style(index: int) -> Row:
    """A colour and a marker; after all colours, they pair anew."""
    marker = MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]
    return {"color": COLOURS[index % len(COLOURS)], "marker": marker, "markersize": 4.5, "linewidth": 1.4}


def _open_panel(panel: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.3)


def _name_classes(panel: Any, classes: Sequence[str]) -> None:
    """Names beside the rows and columns, where there is room for them."""
    if len(classes) > NAMED:
        panel.tick_params(labelsize=7)
        return
    names = [short_name(name) for name in classes]
    upright = 0 if max(map(len, names)) <= 2 else 90
    panel.set_xticks(range(len(names)), names, fontsize=8, rotation=upright)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.tick_params(length=2)


def _drawn(rows: Sequence[Row], thetas: Sequence[float] | None) -> list[Row]:
    """The thresholds of a layer that are drawn, ascending."""
    if thetas is not None:
        return [row for row in rows if row["theta"] in thetas]
    return [rows[0], rows[-1]] if len(rows) > 1 else [*rows]


def blank_diagonal(matrix: Sequence[Sequence[float | None]]) -> list[list[float]]:
    """The matrix with NaN on its diagonal, and for None."""
    return [
        [math.nan if place == line or value is None else value for place, value in enumerate(row)]
        for line, row in enumerate(matrix)
    ]


def _plain(name: str) -> str:
    """A name as matplotlib writes it: no formula."""
    return name.replace("$", "\\$")
