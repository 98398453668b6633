"""A study of robustness as text, files and figures: paper 2's Tables 1 and 2, Figs. 1 and 2."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from deploytool.atomic import write_json, write_text
from deploytool.report.plots import COLOURS, MARKERS, save_figure
from hwmodels.table import as_csv

Row = dict[str, Any]

MEASURES = {
    "before": "before retraining",
    "saved": "retrained, images of before",
    "white_box": "retrained, attacked anew",
}


def write_robustness(document: Row, folder: Path) -> dict[str, str]:
    """Write robustness.json, .md and .csv, attacks.png and .svg, and densities.png and .svg; return their paths."""
    write_text(folder / "robustness.md", render(document, "github") + "\n")
    write_text(folder / "robustness.csv", as_csv(document["rows"]))
    attacks_figure(document, folder / "attacks.png")
    names = ["attacks"]
    if document["densities"]:
        density_figure(document["densities"], folder / "densities.png")
        names.append("densities")
    write_json(folder / "robustness.json", document)
    files = {kind: str(folder / f"robustness.{kind}") for kind in ("json", "md", "csv")}
    return files | {name: str(folder / f"{name}.png") for name in names}


def render(document: Row, tablefmt: str = "simple") -> str:
    """Render the tables, each under a line that says what it is."""
    parts = [_conditions(document)]
    titled = [
        ("Accuracy under attack (Table 1 of paper 2)", _attack_table(document, tablefmt)),
        ("Networks before retraining", _network_table(document["networks"], tablefmt)),
    ]
    if document["stability"]:
        titled.append(("Change of attribution maps, SSD (Table 2)", _stability_table(document["stability"], tablefmt)))
    if document["densities"]:
        titled.append(
            ("Activation penalty, single-layer CNN (Fig. 1)", _density_table(document["densities"], tablefmt))
        )
    for title, table in titled:
        parts.append(f"{'## ' if tablefmt == 'github' else ''}{title}\n\n{table}")
    if document["warnings"]:
        heading = "## Warnings" if tablefmt == "github" else "Warnings"
        parts.append("\n".join([heading, "", *(f"- {line}" for line in document["warnings"])]))
    return "\n\n".join(parts)


def _conditions(document: Row) -> str:
    seeds = ", ".join(map(str, document["seeds"]))
    return (
        f"{document['recipe']}: {document['data']}, {document['train_n']} training and {document['n']} test images; "
        f"{document['epochs']} epochs, then {document['retrain_epochs']} with {document['train_images']} training "
        f"images attacked by each attack; seeds {seeds}; {document['device']} ({document['processor']}, "
        f"{document['threads']} threads), torch {document['torch']}, captum {document['captum']}\n\n"
        f"{document['command']}"
    )


def _attack_table(document: Row, tablefmt: str) -> str:
    """A line per backbone and regularisation; for each attack the three accuracies."""
    clean = {(row["arch"], row["regularization"]): row for row in document["networks"]}
    attacks = list(dict.fromkeys(row["attack"] for row in document["rows"]))
    cells = {(row["arch"], row["regularization"], row["attack"]): row for row in document["rows"]}
    lines = []
    for (arch, name), row in clean.items():
        found = [" / ".join(_figure(cells[arch, name, attack], measure) for measure in MEASURES) for attack in attacks]
        lines.append([arch, name, f"{_figure(row, 'clean')} / {_figure(row, 'clean_retrained')}", *found])
    heads = [
        "backbone",
        "penalty",
        "clean: before / retrained",
        *(f"{attack}: before / saved / anew" for attack in attacks),
    ]
    budgets = {row["attack"]: row for row in document["rows"]}.values()
    balls = "; ".join(f"{row['attack']} {row['norm']} eps {row['eps']:.4g}" for row in budgets)
    legend = (
        f"{balls}. before: the network before retraining, attacked; deepfool and the like count within eps alone "
        "(wherever their images lie: before_any in the CSV). saved: the retrained network on those images, wherever "
        "they lie. anew: the retrained network, attacked itself."
    )
    return tabulate(lines, heads, tablefmt=tablefmt, disable_numparse=True) + f"\n\n{legend}"


def _network_table(rows: Sequence[Row], tablefmt: str) -> str:
    keys = ("clean", "activity_ratio", "zero_weights", "near_zero_weights")
    lines = [[row["arch"], row["regularization"], *(_figure(row, key) for key in keys)] for row in rows]
    heads = ["backbone", "penalty", "clean", "activity ratio", "weights 0", "weights below 0.001"]
    return tabulate(lines, heads, tablefmt=tablefmt, disable_numparse=True)


def _stability_table(rows: Sequence[Row], tablefmt: str) -> str:
    lines: dict[tuple[str, str], list[str]] = {}
    methods = list(dict.fromkeys((row["attribution"], row["change"]) for row in rows))
    for row in rows:
        unrelated = "-" if row["ssd_unrelated_mean"] is None else f"{row['ssd_unrelated_mean']:.2f}"
        lines.setdefault((row["arch"], row["regularization"]), []).extend([
            f"{row['ssd_mean']:.2f} ± {row['ssd_std']:.2f}", unrelated, f"{row['constant_maps']:.1%}"
        ])  # fmt: skip
    heads = ["backbone", "penalty"]
    for method, change in methods:
        heads += [f"{method}, {change}", "unrelated maps", "constant maps"]
    table = tabulate([[*key, *line] for key, line in lines.items()], heads, tablefmt=tablefmt, disable_numparse=True)
    return (
        f"{table}\n\nSum of squared differences of maps in [0, 1], mean ± standard deviation over {rows[0]['n']} "
        "images. A constant map, of a network that ignores the image, changes by 0: that is no stability."
    )


def _density_table(rows: Sequence[Row], tablefmt: str) -> str:
    keys = ("density", "train_accuracy", "test_accuracy")
    lines = [[f"{row['activation']:g}", *(_figure(row, key, 4) for key in keys)] for row in rows]
    heads = ["lambda", "average density", "training accuracy", "test accuracy"]
    return tabulate(lines, heads, tablefmt=tablefmt, disable_numparse=True)


def _figure(row: Row, key: str, digits: int = 3) -> str:
    deviation = row.get(f"{key}_std")
    return f"{row[key]:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def attacks_figure(document: Row, path: Path) -> None:
    """Draw accuracies under attack as bars, a column per attack, a row per reading of Table 1; write PNG and SVG."""
    from matplotlib.figure import Figure

    rows = document["rows"]
    attacks, archs, names = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("attack", "arch", "regularization")
    )
    cells = {(row["arch"], row["regularization"], row["attack"]): row for row in rows}
    shown = ("saved", "white_box")
    size = (1.6 + len(attacks) * max(2.8, 0.28 * len(archs) * (len(names) + 1)), 6.4)
    figure = Figure(figsize=size, layout="constrained")
    panels: Any = figure.subplots(len(shown), len(attacks), sharex=True, sharey="row", squeeze=False)
    width = 0.8 / len(names)
    for line, measure in zip(panels, shown, strict=True):
        for panel, attack in zip(line, attacks, strict=True):
            for index, name in enumerate(names):
                chosen = [cells[arch, name, attack] for arch in archs]
                at = np.arange(len(archs)) + (index - (len(names) - 1) / 2) * width
                errors = [row.get(f"{measure}_std") or 0.0 for row in chosen]
                panel.bar(
                    at, [row[measure] for row in chosen], width * 0.92, color=COLOURS[index % len(COLOURS)], label=name,
                    yerr=errors if any(errors) else None, ecolor="#333333", capsize=2,
                )  # fmt: skip
            panel.set_xticks(range(len(archs)), archs)
            panel.spines[["top", "right"]].set_visible(False)
            panel.set_title(attack if measure == shown[0] else "")
        line[0].set_ylabel(f"accuracy\n({MEASURES[measure]})")
        line[0].set_ylim(0, 1)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    save_figure(figure, path)


def density_figure(rows: Sequence[Row], path: Path) -> None:
    """Draw average density and accuracy over eq. 5's lambda (Fig. 1), a category per lambda; write PNG and SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    at, labels = range(len(rows)), [f"{row['activation']:g}" for row in rows]
    curves = [
        (left, "density", "average density"),
        (right, "train_accuracy", "training"),
        (right, "test_accuracy", "test"),
    ]
    for index, (panel, key, label) in enumerate(curves):
        errors = [row.get(f"{key}_std") or 0.0 for row in rows]
        panel.errorbar(
            at, [row[key] for row in rows], errors if any(errors) else None, color=COLOURS[index],
            marker=MARKERS[index], capsize=3, label=label,
        )  # fmt: skip
    left.set_ylabel("share of hidden neurons active per image")
    right.set_ylabel("accuracy")
    left.set_ylim(0, 1.1 * max(row["density"] for row in rows))
    right.legend(frameon=False)
    for panel in (left, right):
        panel.set_xticks(at, labels)
        panel.set_xlabel("lambda of the activation penalty (eq. 5)")
        panel.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
