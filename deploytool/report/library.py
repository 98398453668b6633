"""Library networks as text and as files: what was built, agreement, confusion and detection."""

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from tabulate import tabulate

from deploytool.atomic import write_json, write_text
from deploytool.report.library_figures import (
    RIVALS,
    agreement_figure,
    blank_diagonal,
    confusion_figure,
    detection_figure,
)
from hwmodels.table import as_csv

Row = dict[str, Any]

COLUMNS = 120  # of a terminal

AGREEMENT_LEGEND = (
    "size: stored patterns. best, in best 3: share of test images whose network's answer is the library's best one, or "
    "among its three best. right: share whose label is the library's best answer."
)
CONFUSION_LEGEND = (
    "right: test images whose label is the library's best answer, which the index is of (eq. 4). largest: the pair of "
    "classes that is mixed up most, the first taken for the second; 1 is as often as itself."
)
DETECTION_LEGEND = (
    "AUROC of telling clean images from those, 1 at best, 0.5 by chance; {first} is the deployed set of thresholds. "
    "fooled: share whose answer the attack changed. doubtful: share below the verdict's threshold. mean CPL: of clean "
    "images {clean:.3f}."
)
COMBINED_LEGEND = (
    "combined: fitted on other images, attacked by {attacks} at each eps; its AUROC is for attacks and radii that it "
    "knows."
)


def build_table(document: Row) -> str:
    """Render what building libraries gave: a line per lambda, layer and threshold, and the verdict's thresholds."""
    table = [
        [
            row["layer"],
            _lam(row["lambda"]),
            f"{row['theta']:g}",
            row["size"],
            row["features"],
            f"{row['rounding_max']:.1e}",
            f"{row['seconds']:.1f}",
        ]
        for row in document["layers"]
    ]
    heads = ["layer", "lambda", "theta", "size", "features", "rounding", "seconds"]
    text = tabulate(table, heads, disable_numparse=True, colalign=("left", *["right"] * 6))
    lines = [
        f"verdict{_at(each['lambda'])}: doubtful below CPL "
        f"{each['threshold']:.4f} (false alarm rate {each['false_alarm_rate']:g}, {each['images']} clean images)"
        for each in document["calibration"]
    ] or ["no verdict: a single layer has none to agree with"]
    lines.append("rounding: of stored patterns, 1 - cosine similarity to what they were, at most")
    size, where = document["size_mb"], document["library"]
    lines.append(f"{document['images']} training images in {document['seconds']:.1f} s; {size:.3f} MB in {where}")
    return f"{text}\n\n" + "\n".join(lines)


def write_agreement(document: Row, folder: Path) -> dict[str, str]:
    """Write predict.json, .md and .csv, and the figure predict.png and .svg; return their paths."""
    return _write(
        "predict",
        folder,
        document,
        render_agreement,
        document["layers"],
        lambda path: agreement_figure(document["layers"], path),
    )


def write_confusion(document: Row, folder: Path, thetas: Sequence[float] | None = None) -> dict[str, str]:
    """Write confusion.json, .md and .csv (a line per pair of classes), confusion.png and .svg; return their paths.

    Args:
        document: what `deploytool.library.confusion.confusion` returned.
        folder: where to write; made if need be.
        thetas: thresholds to draw; each layer's lowest and highest where None.
    """
    names = document["classes"]
    pairs = [
        {"layer": row["layer"], "theta": row["theta"], "class": one, "confused_with": other, "index": value}
        for row in document["layers"]
        for one, line in zip(names, row["matrix"], strict=True)
        for other, value in zip(names, line, strict=True)
        if one != other
    ]
    return _write(
        "confusion",
        folder,
        document,
        render_confusion,
        pairs,
        lambda path: confusion_figure(document["layers"], names, path, thetas),
    )


def write_detection(document: Row, folder: Path) -> dict[str, str]:
    """Write detection.json, .md and .csv, and the figure detection.png and .svg; return their paths."""
    return _write(
        "detection",
        folder,
        document,
        render_detection,
        document["rows"],
        lambda path: detection_figure(document, path),
    )


def _write(
    name: str,
    folder: Path,
    document: Row,
    render: Callable[..., str],
    rows: Sequence[Row],
    draw: Callable[[Path], None],
) -> dict[str, str]:
    files = {kind: str(folder / f"{name}.{kind}") for kind in ("json", "md", "csv", "png", "svg")}
    write_text(folder / f"{name}.md", render(document, "github") + "\n")
    write_text(folder / f"{name}.csv", as_csv(rows))
    draw(folder / f"{name}.png")
    write_json(folder / f"{name}.json", document)
    return files


def render_agreement(document: Row, tablefmt: str = "simple") -> str:
    """Render how often each layer's library foretells the network's answer."""
    table = [
        [
            row["layer"],
            f"{row['theta']:g}",
            row["size"],
            row["features"],
            *(f"{row[key]:.3f}" for key in ("top1_agreement", "top3_agreement", "top1_accuracy")),
        ]
        for row in document["layers"]
    ]
    heads = ["layer", "theta", "size", "features", "best", "in best 3", "right"]
    text = tabulate(table, heads, tablefmt=tablefmt, disable_numparse=True, colalign=("left", *["right"] * 6))
    accuracy = f"the network itself is right on {document['network_accuracy']:.3f}"
    return f"{_conditions(document)}; {accuracy}\n\n{text}\n\n{fill(AGREEMENT_LEGEND, COLUMNS)}"


def render_confusion(document: Row, tablefmt: str = "simple") -> str:
    """Render the largest confusion of each layer and threshold, and the largest ones of its highest threshold."""
    names = document["classes"]
    table = [
        [row["layer"], f"{row['theta']:g}", row["size"], row["right"], *_largest(row["matrix"], names)]
        for row in document["layers"]
    ]
    heads = ["layer", "theta", "size", "right", "largest", "classes"]
    sides = ("left", *["right"] * 4, "left")
    text = tabulate(table, heads, tablefmt=tablefmt, disable_numparse=True, colalign=sides)
    parts = [_conditions(document), text, fill(CONFUSION_LEGEND, COLUMNS)]
    if document["most"]:
        most = [[row["layer"], row["class"], row["confused_with"], f"{row['index']:.2g}"] for row in document["most"]]
        heads = ["layer", "class", "confused with", "index"]
        parts += ["At each layer's highest theta:", tabulate(most, heads, tablefmt=tablefmt, disable_numparse=True)]
    return "\n\n".join(parts)


def render_detection(document: Row, tablefmt: str = "simple") -> str:
    """Render AUROC of CPL and its rivals for each attack and radius, then that of the other sets of thresholds."""
    first, *others = document["sets"]
    kinds = ("auroc_cpl", *RIVALS, "fooled", "detected", "cpl_mean")
    own = [row for row in document["rows"] if row["set"] == first]
    table = [[row["attack"], _eps(row), *(_figure(row[key]) for key in kinds), row["n"]] for row in own]
    heads = ["images", "eps", f"CPL {first}", "softmax", "kNN", "combined", "fooled", "doubtful", "mean CPL", "n"]
    sides = ("left", *["right"] * 9)
    clean = next(row["cpl_mean"] for row in document["clean"] if row["set"] == first)
    parts = [
        _conditions(document),
        tabulate(table, heads, tablefmt=tablefmt, disable_numparse=True, colalign=sides),
        fill(" ".join([DETECTION_LEGEND.format(first=first, clean=clean), *_combined(document)]), COLUMNS),
    ]
    if others:
        areas = {(row["attack"], row["eps"], row["set"]): row["auroc_cpl"] for row in document["rows"]}
        table = [
            [row["attack"], _eps(row), *(_figure(areas[row["attack"], row["eps"], name]) for name in document["sets"])]
            for row in own
        ]
        heads = ["images", "eps", *document["sets"]]
        sides = ("left", *["right"] * (len(heads) - 1))
        parts += [
            "AUROC of CPL by set of thresholds:",
            tabulate(table, heads, tablefmt=tablefmt, disable_numparse=True, colalign=sides),
        ]
    if document["verdict"] is not None:
        verdict = document["verdict"]
        parts.append(
            f"verdict: doubtful below CPL {verdict['threshold']:.4f}; {verdict['false_alarms']:.3f} +- "
            f"{verdict['false_alarms_se']:.3f} of {verdict['false_alarm_images']} clean images are, "
            f"{verdict['false_alarm_rate']:g} were asked for"
        )
    return "\n\n".join(parts)


def _combined(document: Row) -> list[str]:
    """What the combination was fitted on."""
    names = dict.fromkeys(each["attack"] for each in document["combined_fitted_on"])
    return [COMBINED_LEGEND.format(attacks=" and ".join(names))] if names else []


def _largest(matrix: Sequence[Sequence[float | None]], classes: Sequence[str]) -> list[str]:
    """The largest index off the diagonal, and its classes."""
    found = [
        (value, line, place)
        for line, row in enumerate(blank_diagonal(matrix))
        for place, value in enumerate(row)
        if value == value
    ]
    if not found:
        return ["-", "-"]
    value, line, place = max(found, key=lambda each: each[0])
    return [f"{value:.2g}", f"{classes[line]} as {classes[place]}"]


def _conditions(document: Row) -> str:
    count = document.get("n", document.get("images"))
    machine = f"; {document['device']} ({document['processor']})" if "processor" in document else ""
    own = document.get("library_lambda")
    other = "" if own in (None, document["lambda"]) else f" (answered by the libraries{_at(own)})"
    return (
        f"libraries in {document['library']}, of {document['target']}{_at(document['lambda'])}{other}\n"
        f"{count} test images, {document['active']} active nodes{machine}"
    )


def _at(lam: float | None) -> str:
    return "" if lam is None else f" at lambda {lam:g}"


def _lam(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _eps(row: Row) -> str:
    return "-" if row["eps"] is None else f"{row['eps']:g}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
