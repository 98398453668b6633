"""Text tables of results."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from deploytool.runtime.library import Doubt

Row = dict[str, Any]


def key_values(document: Row) -> str:
    """Render a result as aligned `key  value` lines; nested results get dotted keys."""
    return tabulate(_flat(document), tablefmt="plain", disable_numparse=True)


def export_table(document: Row) -> str:
    """Render the result of an export; accuracies and verdicts of INT8 beside float32's as a table of their own."""
    rows = document.get("quantization", {}).get("rows", [])
    kinds = {
        "clean_accuracy": "clean",
        "clean_accuracy_int8": "clean, int8",
        "robust_accuracy": "robust",
        "robust_accuracy_int8": "robust, int8",
    }
    if any("coverage" in row for row in rows):
        kinds |= {"coverage": "coverage", "coverage_int8": "coverage, int8", "same_verdict": "same verdict"}
    table = [
        ["-" if row["lambda"] is None else f"{row['lambda']:g}", f"{row['width']:g}", *(f"{row[k]:.3f}" for k in kinds)]
        for row in rows
    ]
    text = tabulate(table, ["lambda", "width", *kinds.values()], tablefmt="simple", disable_numparse=True)
    if "quantization" in document:
        document = {**document, "quantization": {k: v for k, v in document["quantization"].items() if k != "rows"}}
    return key_values(document) + (f"\n\n{text}" if rows else "")


def accuracy_table(rows: Sequence[Row], tablefmt: str = "simple") -> str:
    """Render evaluation rows: one line per setting, one column for clean accuracy and one per attack."""
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    robust = {(_setting(row), row["attack"]): row["robust_accuracy"] for row in rows}
    clean = {_setting(row): row["clean_accuracy"] for row in rows}
    table = [
        [*_setting_cells(setting), f"{accuracy:.3f}", *(f"{robust[setting, name]:.3f}" for name in attacks)]
        for setting, accuracy in clean.items()
    ]
    heads = ["conditioning", "threshold", "lambda", "clean", *attacks]
    if len({setting[-1] for setting in clean}) > 1:
        table = [[f"{setting[-1]:g}", *line] for setting, line in zip(clean, table, strict=True)]
        heads = ["width", *heads]
    return tabulate(table, heads, tablefmt=tablefmt, disable_numparse=True) + _budgets(rows)


def _budgets(rows: Sequence[Row]) -> str:
    """A line that says in which ball each attack worked; nothing for rows that do not say."""
    balls: dict[tuple[str, Any], list[str]] = {}
    for row in rows:
        if "norm" in row:
            names = balls.setdefault((row["norm"], row["eps"]), [])
            names += [] if row["attack"] in names else [row["attack"]]
    if not balls:
        return ""
    norms = {"linf": "L-inf", "l2": "L2"}
    parts = [
        f"{norms[norm]} {'any radius' if eps is None else f'eps {eps:.4g}'}: {', '.join(names)}"
        for (norm, eps), names in balls.items()
    ]
    return f"\n\n{'; '.join(parts)}; {rows[0]['n']} images, seed {rows[0]['seed']}"


def comparison_table(rows: Sequence[Row], key: str, tablefmt: str = "simple") -> str:
    """Render rows of one attack over several values of a recipe key: clean / robust accuracy per lambda."""
    lambdas = list(dict.fromkeys(row["lambda"] for row in rows))
    cells: dict[tuple[str, str, str], dict[Any, str]] = {}
    several = len({row["width"] for row in rows}) > 1
    for row in rows:
        conditioning, threshold, _ = _setting_cells(_setting(row))
        value = f"{row['value']}, width {row['width']:g}" if several else row["value"]
        line = cells.setdefault((value, conditioning, threshold), {})
        line[row["lambda"]] = f"{row['clean_accuracy']:.3f} / {row['robust_accuracy']:.3f}"
    table = [[*names, *(line.get(lam, "") for lam in lambdas)] for names, line in cells.items()]
    heads = [key, "conditioning", "threshold", *("" if lam is None else f"lambda {lam:g}" for lam in lambdas)]
    return tabulate(table, heads, tablefmt=tablefmt, disable_numparse=True)


def alpha_table(alphas: Mapping[str, Mapping[str, float]], key: str, tablefmt: str = "simple") -> str:
    """Render the learned noise scaling factors: a line per layer, a column per value of a recipe key."""
    layers = dict.fromkeys(layer for values in alphas.values() for layer in values)
    table = [[layer, *(f"{v[layer]:.3f}" if layer in v else "" for v in alphas.values())] for layer in layers]
    heads = ["alpha of layer", *(f"{key} {name}" for name in alphas)]
    return tabulate(table, heads, tablefmt=tablefmt, disable_numparse=True)


def models_table(rows: Sequence[Row]) -> str:
    """Render a listing of models: a line per backbone and method, counts in millions."""
    counts = ("params", "extra_params", "macs")
    table = [[row["arch"], row["method"], row["dataset"], *(f"{row[key] / 1e6:.3f}" for key in counts)] for row in rows]
    heads = ["arch", "method", "dataset", "params (M)", "extra params (M)", "macs (M)"]
    return tabulate(table, heads, disable_numparse=True, colalign=("left",) * 3 + ("right",) * 3)


def explainer_table(document: Row) -> str:
    """Render what training an explainer gave: a line per lambda, shares of the test images, and the rest below."""
    kinds = {
        "target_accuracy": "target",
        "student_accuracy": "student",
        "agreement": "agree",
        "explained_agreement": "agree on H * x",
        "mean_intensity": "mean of H",
    }
    table = [
        ["-" if row["lambda"] is None else f"{row['lambda']:g}", *(f"{row[key]:.3f}" for key in kinds)]
        for row in document["rows"]
    ]
    text = tabulate(table, ["lambda", *kinds.values()], tablefmt="simple", disable_numparse=True)
    return f"{text}\n\n{key_values({key: value for key, value in document.items() if key != 'rows'})}"


def prediction_table(predictions: Sequence[Row]) -> str:
    """Render predictions: a line per image with its best classes, then verdicts, doubts and files of maps, if any."""
    table = [
        [p["image"], p["class"], f"{p['probability']:.3f}", ", ".join(_candidate(c) for c in p["top"][1:])]
        for p in predictions
    ]
    text = tabulate(table, ["image", "class", "probability", "next"], disable_numparse=True)
    verdicts = [f"{p['image']}: {p['verdict']}" for p in predictions if "verdict" in p]
    doubts = [f"{p['image']}: {Doubt(p['cpl'], p['cpl_threshold']).words}" for p in predictions if "cpl_threshold" in p]
    maps = [f"{p['image']}: saliency map in {p['saliency']}" for p in predictions if "saliency" in p]
    return "\n\n".join([text, *("\n".join(lines) for lines in (verdicts, doubts, maps) if lines)])


def _candidate(candidate: Row) -> str:
    return f"{candidate['class']} {candidate['probability']:.3f}"


def _setting(row: Row) -> tuple[Any, ...]:
    return row["conditioning"], row["lambda_threshold"], row["lambda"], row["width"]


def _setting_cells(setting: tuple[Any, ...]) -> list[str]:
    conditioning, threshold, lam, _ = setting
    return [conditioning or "-", "-" if threshold is None else f"{threshold:g}", "-" if lam is None else f"{lam:g}"]


def _flat(document: Row, prefix: str = "") -> list[tuple[str, str]]:
    lines = []
    for key, value in document.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{key}.")
        else:
            lines.append((prefix + key, _text(value)))
    return lines


def _text(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
