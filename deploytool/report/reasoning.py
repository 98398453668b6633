"""A study of reasoning labels as text, files and figures: paper 1's Figs. 1 and 2, and coverage against accuracy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from deploytool.atomic import write_json, write_text
from deploytool.report.plots import COLOURS, MARKERS, save_figure
from hwmodels.table import as_csv

Row = dict[str, Any]

PARTS = ("rows", "epochs", "curves")


def write_reasoning(document: Row, folder: Path) -> dict[str, str]:
    """Write reasoning.json, .md and .csv, and figures as PNG and SVG; return their paths.

    `fig-1` and `fig-2` are left out where training noted no consistency; there is one of each figure for each lambda of
    a conditional model, and one `coverage` for each width.
    """
    write_text(folder / "reasoning.md", render(document, "github") + "\n")
    write_text(folder / "reasoning.csv", as_csv(document["rows"]))
    files = {kind: str(folder / f"reasoning.{kind}") for kind in ("json", "md", "csv")}
    for width, lam in dict.fromkeys((row["width"], row["lambda"]) for row in document["curves"]):
        here = [[row for row in document[key] if (row["width"], row["lambda"]) == (width, lam)] for key in PARTS]
        rows, epochs, curves = here
        base = rows[0]["accuracy_base"]
        suffix = "" if lam is None else f"-lambda-{lam:g}"
        suffix += "" if width == 1 else f"-width-{width:g}"
        paths = {name: folder / f"{name}{suffix}.png" for name in ("fig-1", "fig-2", "coverage")}
        if epochs:
            accuracy_figure(epochs, base, paths["fig-1"])
            detection_figure(epochs, paths["fig-2"])
        coverage_figure(curves, base, paths["coverage"])
        files |= {path.stem: str(path) for name, path in paths.items() if epochs or name == "coverage"}
    write_json(folder / "reasoning.json", document)
    return files


def render(document: Row, tablefmt: str = "simple") -> str:
    """Render the tables, each under a line that says what it is."""
    seconds = [
        ("Images as they are", _clean_table, [row for row in document["rows"] if row["attack"] is None], CLEAN_LEGEND),
        ("Under attack", _attack_table, [row for row in document["rows"] if row["attack"] is not None], ATTACK_LEGEND),
    ]
    parts = [_conditions(document)]
    for title, table, rows, legend in seconds:
        if rows:
            heading = f"{'## ' if tablefmt == 'github' else ''}{title}"
            parts.append(f"{heading}\n\n{table(rows, tablefmt)}\n\n{legend}")
    parts.append(_areas(document["curves"]))
    parts += [f"warning: {line}" for line in document["warnings"]]
    return "\n\n".join(parts)


CLEAN_LEGEND = (
    "coverage: share accepted. consistent: accuracy on those; softmax: on as many images, those of the largest softmax "
    "probability of the same network. base: accuracy without reasoning labels, all images. AUROC: telling right from "
    "wrong answers by agreement, and by softmax."
)
ATTACK_LEGEND = (
    "Of the images that were right before the attack. changed: share whose class it changed. accepted before: of them, "
    "without the attack. detected: rejected after it, whether the class changed or not (the paper's measure); of "
    "changed: the same, of images whose class it changed. evasion: wrong and accepted, what the defence lets through. "
    "AUROC: telling attacked images from those before. softmax: the column before, of the softmax rule that accepts "
    "as many images as they are; none for consistent-K, which does not know that rule."
)


def _conditions(document: Row) -> str:
    return (
        f"{document['recipe']}: {document['arch']}, {document['method']}, {document['data']}, {document['train_n']} "
        f"training and {document['n']} test images, {document['labels']} reasoning labels; "
        f"{document['epochs_trained']} epochs, seed {document['seed']}; attacks of L-inf eps {document['eps']:.4g}; "
        f"{document['device']} ({document['processor']}, {document['threads']} threads), torch {document['torch']}"
    )


def _clean_table(rows: Sequence[Row], tablefmt: str) -> str:
    columns = {
        "coverage": "coverage",
        "accuracy_consistent": "consistent",
        "accuracy_max_softmax": "softmax",
        "accuracy": "all",
        "accuracy_base": "base",
        "auroc": "AUROC",
        "auroc_max_softmax": "AUROC, softmax",
    }
    return _table(rows, [], columns, tablefmt)


def _attack_table(rows: Sequence[Row], tablefmt: str) -> str:
    columns = {
        "class_changed": "changed",
        "coverage_right": "accepted before",
        "detection_rate": "detected",
        "detection_rate_max_softmax": "softmax",
        "detection_rate_changed": "of changed",
        "evasion_rate": "evasion",
        "evasion_rate_max_softmax": "softmax",
        "auroc": "AUROC",
        "auroc_max_softmax": "softmax",
    }
    return _table(rows, ["attack"], columns, tablefmt)


def _table(rows: Sequence[Row], names: list[str], columns: Mapping[str, str], tablefmt: str) -> str:
    """A line per row: the knobs, text columns by name, then figures, whose heads `columns` gives."""
    shown = [name for name in ("width", "lambda") if len({row[name] for row in rows}) > 1]
    knobs = ["alpha", *shown, "t_rsn"]
    lines = [
        [*(f"{row[knob]:g}" for knob in knobs), *(row[name] for name in names), *(_figure(row[key]) for key in columns)]
        for row in rows
    ]
    return tabulate(lines, [*knobs, *names, *columns.values()], tablefmt=tablefmt, disable_numparse=True)


def _areas(curves: Sequence[Row]) -> str:
    shown = [name for name in ("alpha", "width", "lambda") if name == "alpha" or len({row[name] for row in curves}) > 1]
    parts = [
        f"{', '.join(f'{name} {row[name]:g}' for name in shown)}: {row['aurc']:.4f} and {row['aurc_max_softmax']:.4f}"
        for row in curves
    ]
    return (
        "Mean error over all coverages (area under the risk-coverage curve; smaller is better), by agreement and by "
        f"the largest softmax probability: {'; '.join(parts)}."
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def accuracy_figure(epochs: Sequence[Row], base: float, path: Path) -> None:
    """Draw coverage and accuracy on consistent images over epochs (Fig. 1), a column per t_rsn; write PNG and SVG.

    Args:
        epochs: rows of one lambda.
        base: accuracy of the network without reasoning labels, the dotted line.
        path: file to write; its suffix is replaced by .png and .svg.
    """
    thresholds, figure = _columns(epochs, 2)
    panels = figure.subplots(2, len(thresholds), sharex=True, sharey="row", squeeze=False)
    for column, threshold in enumerate(thresholds):
        top, bottom = panels[0][column], panels[1][column]
        for style, chosen in _lines(epochs, threshold):
            x = [row["epoch"] for row in chosen]
            top.plot(x, [_or_nan(row["accuracy_consistent"]) for row in chosen], **style)
            bottom.plot(x, [row["coverage"] for row in chosen], **style)
        top.axhline(base, color="#555555", linestyle=":", label="without reasoning labels, all images")
        top.set_title(f"t_rsn = {threshold:g}")
        bottom.set_xlabel("epoch")
        bottom.set_ylim(0, 1.02)
    panels[0][0].set_ylabel("accuracy on accepted images")
    panels[1][0].set_ylabel("coverage (share accepted)")
    _finish(figure, panels, path)


def detection_figure(epochs: Sequence[Row], path: Path) -> None:
    """Draw coverage of images and of the same attacked by FGSM over epochs (Fig. 2), a column per t_rsn."""
    thresholds, figure = _columns(epochs, 1)
    panels = figure.subplots(1, len(thresholds), sharey="row", squeeze=False)
    for panel, threshold in zip(panels[0], thresholds, strict=True):
        for style, chosen in _lines(epochs, threshold):
            x = [row["epoch"] for row in chosen]
            panel.plot(x, [_or_nan(row["coverage_right"]) for row in chosen], **style)
            attacked = style | {"linestyle": ":", "markerfacecolor": "white", "label": f"{style['label']}, after FGSM"}
            panel.plot(x, [_or_nan(row["coverage_attacked"]) for row in chosen], **attacked)
        panel.set_title(f"t_rsn = {threshold:g}")
        panel.set_xlabel("epoch")
        panel.set_ylim(0, 1.02)
    panels[0][0].set_ylabel("share accepted, of images\nright before the attack")
    _finish(figure, panels, path, len(_lines(epochs, thresholds[0])))


def coverage_figure(curves: Sequence[Row], base: float, path: Path) -> None:
    """Draw accuracy over coverage for all thresholds, a panel per alpha: agreement against the largest softmax."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 3.6 * len(curves), 3.8), layout="constrained")
    panels: Any = figure.subplots(1, len(curves), sharey=True, squeeze=False)
    names = {"agreement": "agreement of reasons", "max_softmax": "largest softmax probability"}
    for panel, row in zip(panels[0], curves, strict=True):
        for index, (key, label) in enumerate(names.items()):
            points = row[key]
            dots = {"marker": MARKERS[0], "markersize": 3} if key == "agreement" else {"linestyle": "--"}
            x, y = ([point[axis] for point in points] for axis in ("coverage", "accuracy"))
            panel.plot(x, y, color=COLOURS[index], label=label, **dots)
        panel.axhline(base, color="#555555", linestyle=":", label="without reasoning labels, all images")
        panel.set_title(f"alpha = {row['alpha']:g}")
        panel.set_xlabel("coverage (share accepted)")
        panel.set_xlim(0, 1.02)
    panels[0][0].set_ylabel("accuracy on accepted images")
    _finish(figure, panels, path)


def _columns(epochs: Sequence[Row], lines: int) -> tuple[list[float], Any]:
    from matplotlib.figure import Figure

    thresholds = list(dict.fromkeys(row["t_rsn"] for row in epochs))
    return thresholds, Figure(figsize=(1.2 + 3.9 * len(thresholds), 0.9 + 2.8 * lines), layout="constrained")


def _lines(epochs: Sequence[Row], threshold: float) -> list[tuple[dict[str, Any], list[Row]]]:
    """Style and rows of each alpha at one threshold, by rising epoch."""
    alphas = list(dict.fromkeys(row["alpha"] for row in epochs))
    return [
        (
            {
                "color": COLOURS[index % len(COLOURS)],
                "marker": MARKERS[index % len(MARKERS)],
                "markersize": 4,
                "label": f"alpha = {alpha:g}",
            },
            [row for row in epochs if row["alpha"] == alpha and row["t_rsn"] == threshold],
        )
        for index, alpha in enumerate(alphas)
    ]


def _or_nan(value: float | None) -> float:
    """A gap in a line where there is nothing to draw."""
    return float("nan") if value is None else value


def _finish(figure: Any, panels: Any, path: Path, ncols: int = 3) -> None:
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(ncols, len(labels)), frameon=False)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    save_figure(figure, path)
