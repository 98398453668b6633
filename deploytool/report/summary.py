"""The summary of a pipeline: the same tables at the terminal and in RUN/report.md, and a figure."""

from pathlib import Path
from typing import Any

from tabulate import tabulate

from deploytool.atomic import write_text
from deploytool.recipe import Recipe
from deploytool.report.acceptance import acceptance_table
from deploytool.report.plots import tradeoff_figure
from deploytool.report.tables import accuracy_table, alpha_table, comparison_table

Result = dict[str, Any]
REPORT_FILES = {"report": "markdown", "plot": "plot", "example": "example"}


def summary(pipeline: Result) -> str:
    """Render what `run_pipeline` returned, for the terminal."""
    results = {stage["stage"]: stage["result"] for stage in pipeline["stages"]}
    parts = [f"{title}\n{'-' * len(title)}\n{table}" for title, table in sections(results, "simple")]
    parts.append("\n".join(f"{name:10} {path}" for name, path in _files(pipeline["run"], results)))
    return "\n\n".join(parts)


def write_report(recipe: Recipe, run: Path, results: Result) -> Result:
    """Write RUN/report.md and RUN/tradeoff.png and .svg; return their paths and the recipe's digest."""
    plot = run / "tradeoff.png"
    compared = results.get("compare")
    if compared is None:
        attack = recipe.evaluate.attacks[-1]
        rows = [{"value": recipe.method.name, **row} for row in results["evaluate"]["rows"] if row["attack"] == attack]
        compared = {"key": "method", "attack": attack, "rows": rows, "alphas": {}}
        compared["alphas"] = {recipe.method.name: results["evaluate"]["alphas"]}
    tradeoff_figure(compared["rows"], compared["key"], compared["attack"], compared["alphas"], plot)
    parts = [f"# {recipe.name}", f"Recipe digest {recipe.digest()}; seed {recipe.seed}; {_conditions()}."]
    parts += [f"## {title}\n\n{table}" for title, table in sections(results, "github")]
    parts += [f"![Accuracy over lambda, and the learned alphas]({plot.name})", f"```yaml\n{recipe.to_yaml()}```"]
    write_text(run / "report.md", "\n\n".join(parts) + "\n")
    return {"markdown": str(run / "report.md"), "plot": str(plot)}


def sections(results: Result, tablefmt: str) -> list[tuple[str, str]]:
    """Titles and tables of the stages that are done."""
    evaluated = results["evaluate"]
    count = evaluated["rows"][0]["n"]
    parts = [(f"Accuracy on {count} test images", accuracy_table(evaluated["rows"], tablefmt))]
    if "coverage" in evaluated["rows"][0]:
        title = f"What the reasoning labels accept, and what they detect, on the same {count} images"
        parts.append((title, acceptance_table(evaluated["rows"], tablefmt)))
    if evaluated["warnings"]:
        warnings = "\n".join(f"- {warning['message']}" for warning in evaluated["warnings"])
        parts.append(("Before you trust these figures", warnings))
    if "compare" in results:
        compared = results["compare"]
        title = f"Side by side: clean / robust ({compared['attack']}) accuracy"
        parts.append((title, comparison_table(compared["rows"], compared["key"], tablefmt)))
        alphas = {value: layers for value, layers in compared["alphas"].items() if layers}
        if alphas:
            parts.append(("Learned noise scaling factors", alpha_table(alphas, compared["key"], tablefmt)))
    if "export" in results:
        parts.append(("Exported model on this machine", _measured(results, tablefmt)))
    if results.get("report", {}).get("verdicts"):
        parts.append(("The exported model on example.png", _verdicts(results["report"]["verdicts"])))
    if "cost" in results:
        parts.append(("Predicted delay on the 65 nm ASIC (paper 5, eqs. 7 to 9)", _cost(results["cost"], tablefmt)))
    return parts


def _measured(results: Result, tablefmt: str) -> str:
    exported = results["export"]
    lines = [
        ["file size", f"{exported['size_mb']:.3f} MB"],
        [
            "parity: largest logit error",
            f"{exported['parity']['max_abs_error']:.1e} in {exported['parity']['cases']} cases",
        ],
    ]
    for name, measured in results.get("bench", {}).items():
        label = f"{name}, {measured['threads']} threads, batch {measured['batch']}"
        lines.append([f"latency p50 / p99 ({label})", f"{measured['p50_ms']:.3f} / {measured['p99_ms']:.3f} ms"])
        lines.append([f"peak memory ({name})", f"{measured['peak_rss_mb']:.0f} MB"])
    return tabulate(lines, ["measure", "value"], tablefmt=tablefmt, disable_numparse=True)


def _verdicts(verdicts: list[Result]) -> str:
    at = ["" if each["lambda"] is None else f"lambda {each['lambda']:g}: " for each in verdicts]
    return "\n\n".join(place + each["verdict"] for place, each in zip(at, verdicts, strict=True))


def _cost(cost: Result, tablefmt: str) -> str:
    plain = cost["totals"]["plain"]["delay_ns"]
    names = {"plain": "PGD-AT or lambda fixed (eq. 7)", "float": "FLOAT (eq. 8)", "oat": "OAT (eq. 9)"}
    lines = [
        [names[method], f"{totals['delay_ns'] / 1e6:.4f}", f"{totals['delay_ns'] / plain:.3f}"]
        for method, totals in cost["totals"].items()
    ]
    totals = cost["report"]["totals"]
    lines.append([f"{totals['macs']:,} MACs, {totals['params']:,} parameters", "", ""])
    return tabulate(lines, ["method", "delay (ms)", "relative"], tablefmt=tablefmt, disable_numparse=True)


def _files(run: str, results: Result) -> list[tuple[str, str]]:
    files = [("run", run)]
    if "report" in results:
        files += [(name, results["report"][key]) for name, key in REPORT_FILES.items() if key in results["report"]]
    if "export" in results:
        files.append(("model.onnx", results["export"]["file"]))
    return files


def _conditions() -> str:
    import platform

    import onnxruntime
    import torch

    return (
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
