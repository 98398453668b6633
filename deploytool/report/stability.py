"""The stability of attributions as text and as files: a table, its rows as JSON, a figure per method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from deploytool.atomic import write_json, write_text
from deploytool.report.heatmaps import heatmap_figure

if TYPE_CHECKING:
    from deploytool.explain.study import Example

Row = dict[str, Any]

# key -> head and format of a column; a column that no row fills is left out
COLUMNS = {
    "attribution": ("attribution", ""),
    "change": ("change", ""),
    "conditioning": ("conditioning", ""),
    "lambda_threshold": ("threshold", "g"),
    "lambda": ("lambda", "g"),
    "width": ("width", "g"),
    "ssd_mean": ("SSD", ""),
    "ssd_unrelated_mean": ("SSD, unrelated", ".2f"),
    "rank_correlation_mean": ("rank corr.", ".3f"),
    "constant_maps": ("constant", ".1%"),
    "prediction_changed": ("class changed", ".1%"),
}


def write_stability(
    document: Row, examples: "Mapping[Any, Sequence[Example]]", folder: Path
) -> dict[str, str | dict[str, dict[str, str]]]:
    """Write stability.json and .md, and per method stability-METHOD.png and .svg.

    Args:
        document: what `deploytool.explain.study.stability` returned.
        examples: what `deploytool.explain.study.examples` returned.
        folder: where to write; made if need be.

    Returns:
        The paths: `json`, `md`, and per method `figures: {method: {png, svg}}`.
    """
    figures = {}
    for method, shown in examples.items():
        path = folder / f"stability-{method}.png"
        heatmap_figure(shown, path)
        figures[str(method)] = {kind: str(path.with_suffix(f".{kind}")) for kind in ("png", "svg")}
    write_text(folder / "stability.md", render(document, "github") + "\n")
    write_json(folder / "stability.json", document)
    return {"json": str(folder / "stability.json"), "md": str(folder / "stability.md"), "figures": figures}


def render(document: Row, tablefmt: str = "simple") -> str:
    """Render the table between a line that says what was measured on what, and one that says how to read it."""
    rows = document["rows"]
    keys = [key for key in COLUMNS if any(row[key] is not None for row in rows)]
    if len({row["width"] for row in rows}) == 1:
        keys.remove("width")
    lines = [[_cell(row, key) for key in keys] for row in rows]
    table = tabulate(lines, [COLUMNS[key][0] for key in keys], tablefmt=tablefmt, disable_numparse=True)
    legend = (
        "SSD: sum of squared differences of two maps, each scaled to [0, 1]; mean +- standard deviation over images, "
        "lower is stabler. unrelated: the same between maps of different images. constant: share of images with a map "
        "that is constant, where nothing is compared."
    )
    return f"{conditions(document)}\n\n{table}\n\n{legend}"


def conditions(document: Row) -> str:
    """What was measured on what, in one line."""
    first = document["rows"][0]
    layers = list(dict.fromkeys(row["layer"] for row in document["rows"] if row["layer"]))
    read = f"; grad-cam reads {', '.join(layers)}" if layers else ""
    return (
        f"{document['run']}: {first['n']} images of {document['data']} (seed {first['seed']}), "
        f"{document['pixels']} pixels each{read}; {document['device']}, torch {document['torch']}, "
        f"captum {document['captum']}"
    )


def _cell(row: Row, key: str) -> str:
    if row[key] is None:
        return "-"
    if key == "ssd_mean":
        return f"{row['ssd_mean']:.2f} +- {row['ssd_std']:.2f}"
    return format(row[key], COLUMNS[key][1])
