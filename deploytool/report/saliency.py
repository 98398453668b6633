"""A surrogate explainer against its rivals as text and as files: paper 3's tables 3 and 4, curves, a contact sheet."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from deploytool.atomic import atomic_path, write_json, write_text
from deploytool.report.heatmaps import OVERLAY, heat, picture, short_name
from deploytool.report.plots import COLOURS, MARKERS, save_figure
from hwmodels.table import as_csv

if TYPE_CHECKING:
    from deploytool.explain.comparison import Sheet

Row = dict[str, Any]

STYLED = ("surrogate", "rise", "lime", "grad-cam", "sliding-patch")  # the same colours in every comparison
GRAY = "#555555"  # of the controls, which are no explanations
INCHES = 1.15  # side of a picture in the contact sheet

SPEED_LEGEND = (
    "fps: maps per second, one image at a time. times of inference: a map's time over that of the target's plain "
    "answer. intensity: mean pixel of a map in [0, 1]. constant: share of images whose map has one value everywhere."
)
FAITH_LEGEND = (
    "Areas under the class's probability, mean +- standard error over n images: insertion is better higher, deletion "
    "lower. against surrogate: less the surrogate's on the same images."
)


def write_comparison(document: Row, sheet: "Sheet", folder: Path) -> dict[str, str]:
    """Write comparison.json, .md and .csv, curves.png and .svg, and contact-sheet.png; return their paths.

    Args:
        document, sheet: what `deploytool.explain.comparison.compare` returned.
        folder: where to write; made if need be.
    """
    files = {kind: str(folder / f"comparison.{kind}") for kind in ("json", "md", "csv")}
    write_text(folder / "comparison.md", render(document, "github") + "\n")
    write_text(folder / "comparison.csv", as_csv(document["rows"]))
    curves_figure(document["curves"], folder / "curves.png")
    contact_sheet(sheet, folder / "contact-sheet.png")
    write_json(folder / "comparison.json", document)
    return files | {"curves": str(folder / "curves.png"), "contact_sheet": str(folder / "contact-sheet.png")}


def render(document: Row, tablefmt: str = "simple") -> str:
    """Render table 3 (speed and intensity) and table 4 (insertion and deletion), what they are of, and notes."""
    parts = [_conditions(document), _student(document)]
    for title, table, legend in (
        ("Speed and intensity (paper 3, table 3)", _speed_table, SPEED_LEGEND),
        ("Insertion and deletion (paper 3, table 4)", _faith_table, FAITH_LEGEND),
    ):
        heading = f"{'## ' if tablefmt == 'github' else ''}{title}"
        parts.append(f"{heading}\n\n{table(document, tablefmt)}\n\n{legend}")
    ratios = {
        "times as fast as rise": document["speedup_over_rise"],
        "of grad-cam's time": document["time_over_grad_cam"],
    }
    said = [f"{value:.3g} {words}" for words, value in ratios.items() if value is not None]
    if said:
        parts.append(f"The surrogate: {', '.join(said)}.")
    if document["deployed"] is not None:
        fast = document["deployed"]
        parts.append(
            f"onnxruntime: {_fps(fast['saliency_fps'])} maps and {_fps(fast['inference_fps'])} answers of the target "
            f"per second; a map takes {fast['ratio']:.3g} times as long."
        )
    parts += [f"note: {line}" for line in document["notes"]]
    return "\n\n".join(parts)


def _conditions(document: Row) -> str:
    lam = "" if document["lambda"] is None else f" at lambda {document['lambda']:g}"
    return (
        f"{document['explainer']}: explains {document['target']}{lam}; test images of {document['data']} (seed "
        f"{document['seed']}), {document['masks']} masks, {document['samples']} samples, patch {document['patch'][0]} "
        f"by {document['patch'][1]}; {document['device']} ({document['processor']}, {document['threads']} threads), "
        f"torch {document['torch']}, captum {document['captum']}"
    )


def _student(document: Row) -> str:
    """Table 2 in a line."""
    student = document["student"]
    return (
        f"accuracy on {student['n']} test images: target {student['target_accuracy']:.4f}, student "
        f"{student['student_accuracy']:.4f}; they agree on {student['agreement']:.4f}; the target's class is kept "
        f"where it sees the image under its map: {student['explained_agreement']:.4f}"
    )


def _speed_table(document: Row, tablefmt: str) -> str:
    lines = [["normal inference", _fps(document["inference_fps"]), "1", "1.000", "-"]]
    lines += [
        [
            row["method"],
            _fps(row["fps"]),
            f"{row['times_of_inference']:.3g}",
            f"{row['mean_intensity']:.3f}",
            f"{row['constant_maps']:.1%}",
        ]
        for row in document["rows"]
    ]
    heads = ["method", "fps", "times of inference", "intensity", "constant"]
    return tabulate(lines, heads, tablefmt=tablefmt, disable_numparse=True)


def _faith_table(document: Row, tablefmt: str) -> str:
    names = ("insertion", "deletion", "insertion_difference", "deletion_difference")
    lines = [[row["method"], *(_figure(row, name) for name in names), row["n"]] for row in document["rows"]]
    heads = ["method", "insertion", "deletion", "insertion against surrogate", "deletion against surrogate", "n"]
    return tabulate(lines, heads, tablefmt=tablefmt, disable_numparse=True)


def _fps(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _figure(row: Row, name: str) -> str:
    value, error = row[name], row[f"{name}_se"]
    if value is None:
        return "-"
    sign = "+" if name.endswith("_difference") else ""
    return f"{value:{sign}.4f}" + ("" if error is None else f" +- {error:.4f}")


def curves_figure(curves: Sequence[Row], path: Path) -> None:
    """Draw the explained class's mean probability over the share of pixels inserted, and deleted; write PNG and SVG.

    Args:
        curves: rows of `method`, `share`, `insertion`, `deletion` and `n`.
        path: file to write; its suffix is replaced by .png and .svg.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    most = max(row["n"] for row in curves)
    for row in curves:
        name = row["method"]
        fewer = "" if row["n"] == most else f" ({row['n']} images)"
        style: Row = {"label": name + fewer, "markersize": 4, "linewidth": 1.4}
        if name in STYLED:
            index = STYLED.index(name)
            style |= {
                "color": COLOURS[index],
                "marker": MARKERS[index],
                "markevery": (index, max(1, len(row["share"]) // 8)),
            }
            style["linewidth"] = 2.4 if name == "surrogate" else 1.4
        else:
            style |= {"color": GRAY, "linestyle": ":" if name == "random" else "--"}
        for panel, measure in zip(panels, ("insertion", "deletion"), strict=True):
            panel.plot(row["share"], row[measure], **style)
    for panel, title, axis in zip(
        panels,
        ("insertion: higher is better", "deletion: lower is better"),
        ("share of pixels put back into the blurred image", "share of pixels taken from the image"),
        strict=True,
    ):
        panel.set_title(title, fontsize=11)
        panel.set_xlabel(axis + ",\nthe most important first")
        panel.set_xlim(0, 1)
        panel.set_ylim(0, 1.02)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("probability of the explained class,\nmean over images")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    save_figure(figure, path)


def contact_sheet(sheet: "Sheet", path: Path) -> None:
    """Draw a row for each image: itself, then every method's map over it with the insertion area under it; write PNG.

    Args:
        sheet: images and maps.
        path: file to write.
    """
    from matplotlib.figure import Figure

    rows, columns = len(sheet.image), 1 + len(sheet.maps)
    width, height = 1.05 + (INCHES + 0.08) * columns, 1.05 + (INCHES + 0.24) * rows
    figure = Figure(figsize=(width, height))
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(0.95 / width, 0.72 / height, 1 - 0.1 / width, 1 - 0.33 / height, 0.07, 0.2)
    shade: Any = None
    for row in range(rows):
        picture(panels[row, 0], sheet.image[row])
        name = short_name(sheet.classes[row])
        panels[row, 0].set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center", labelpad=5)
        for panel, (method, maps) in zip(panels[row, 1:], sheet.maps.items(), strict=True):
            picture(panel, sheet.image[row])
            shade = heat(panel, maps[row], OVERLAY)
            panel.set_xlabel(f"{float(sheet.insertion[method][row]):.3f}", fontsize=8, labelpad=2)
    for panel, title in zip(panels[0], ("image", *sheet.maps), strict=True):
        panel.set_title(title, fontsize=9, pad=4)
    strip = figure.add_axes((0.35, 0.38 / height, 0.3, 0.09 / height))
    bar = figure.colorbar(shade, cax=strip, orientation="horizontal")
    bar.set_label(
        "importance for the class at the left, each map scaled to [0, 1]; numbers: area under insertion", fontsize=8
    )
    bar.ax.tick_params(labelsize=7, pad=1)
    with atomic_path(path) as aside:
        figure.savefig(aside, format="png", dpi=130)
