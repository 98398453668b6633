"""A comparison as text: paper 5's Table 1 and the data of its Figs. 7 to 9, as Markdown, CSV and for the terminal."""

import csv
import io
from pathlib import Path
from typing import Any

from tabulate import tabulate

from deploytool.atomic import write_json, write_text

Row = dict[str, Any]


def write_comparison(document: Row, run: Path) -> dict[str, str]:
    """Write comparison.json, .md and .csv into a folder; return their paths."""
    write_json(run / "comparison.json", document)
    write_text(run / "comparison.md", render(document, "github") + "\n")
    write_text(run / "comparison.csv", as_csv(document))
    return {kind: str(run / f"comparison.{kind}") for kind in ("json", "md", "csv")}


def as_csv(document: Row) -> str:
    """One line per accuracy row, the figures of its model beside it."""
    models = {(row["method"], row["width"]): row for row in document["models"]}
    lines = [{**models[row["method"], row["width"]], **row} for row in document["rows"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def render(document: Row, tablefmt: str = "simple") -> str:
    """Render the three tables, each under a line that says what it is."""
    seeds = ", ".join(map(str, document["seeds"]))
    made = (
        f"{document['recipe']}: {document['n']} test images, attack {document['attack']}, seeds {seeds} "
        f"(mean ± standard deviation), {document['device']}, torch {document['torch']}"
    )
    parts = [made]
    for title, table in (
        ("Boundary conditions and compression (Table 1 of paper 5)", _boundary_table(document, tablefmt)),
        ("Clean / robust accuracy over lambda (Figs. 7 and 9)", _lambda_table(document, tablefmt)),
        ("Cost of a model (Fig. 8 a and b)", _cost_table(document, tablefmt)),
    ):
        parts.append(f"{'## ' if tablefmt == 'github' else ''}{title}\n\n{table}")
    if document["warnings"]:
        parts.append("\n".join(["Warnings:", "", *(f"- {line}" for line in document["warnings"])]))
    return "\n\n".join(parts)


def _boundary_table(document: Row, tablefmt: str) -> str:
    lines = []
    for model in document["models"]:
        rows = [row for row in _paper_rows(document) if _is_of(row, model)]
        cells = []
        for lam in (0.0, 1.0):
            row = next((row for row in rows if row["lambda"] == lam), None)
            cells += ["", ""] if row is None else [_figure(row, "clean_accuracy"), _figure(row, "robust_accuracy")]
        ratios = [f"{model['compression_ratio']:.2f}x", f"{model['channel_reduction_factor']:.2f}x"]
        lines.append([model["method"], f"{model['width']:g}", *cells, *ratios])
    heads = ["method", "width", "CA, lambda 0", "RA, lambda 0", "CA, lambda 1", "RA, lambda 1", "CR", "CRF"]
    return tabulate(lines, heads, tablefmt=tablefmt, disable_numparse=True)


def _lambda_table(document: Row, tablefmt: str) -> str:
    lambdas = sorted({row["lambda"] for row in document["rows"]})
    lines: dict[tuple[str, str, str], dict[float, str]] = {}
    for row in document["rows"]:
        name = row["method"].split(" lambda ")[0]  # PGD-AT has a model for each lambda
        kind = row["conditioning"] or "-"
        if row["lambda_threshold"] is not None:
            kind += f", threshold {row['lambda_threshold']:g}"
        line = lines.setdefault((name, f"{row['width']:g}", kind), {})
        line[row["lambda"]] = f"{_figure(row, 'clean_accuracy')} / {_figure(row, 'robust_accuracy')}"
    table = [[*names, *(line.get(lam, "") for lam in lambdas)] for names, line in lines.items()]
    heads = ["method", "width", "conditioning", *(f"lambda {lam:g}" for lam in lambdas)]
    return tabulate(table, heads, tablefmt=tablefmt, disable_numparse=True)


def _cost_table(document: Row, tablefmt: str) -> str:
    lines = [
        [
            model["method"],
            f"{model['width']:g}",
            f"{model['params']:,}",
            f"{model['storage_mb_8bit']:.3f}",
            f"{model['macs'] / 1e6:.2f}",
            f"{model['step_ms']:.1f}",
            f"{model['relative_time']:.2f}x",
        ]
        for model in document["models"]
    ]
    heads = ["method", "width", "parameters", "MB at 8 bits", "M MACs", "step ms", "time / FLOAT"]
    return tabulate(lines, heads, tablefmt=tablefmt, disable_numparse=True)


def _paper_rows(document: Row) -> list[Row]:
    """The rows at the recipe's first threshold: boundary conditions do not depend on it."""
    seen: dict[tuple[Any, ...], Row] = {}
    for row in document["rows"]:
        seen.setdefault((row["method"], row["width"], row["lambda"]), row)
    return list(seen.values())


def _is_of(row: Row, model: Row) -> bool:
    return bool(row["method"] == model["method"] and row["width"] == model["width"])


def _figure(row: Row, key: str) -> str:
    spread = f" ± {row[f'{key}_std']:.3f}" if row[f"{key}_std"] else ""
    return f"{row[key]:.3f}{spread}"
