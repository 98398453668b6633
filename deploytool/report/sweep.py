"""A sweep as text and as files: the table of `bench --sweep`, its rows as JSON, its figure."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from deploytool.atomic import write_json, write_text
from deploytool.errors import MissingExtraError
from deploytool.extras import require_extra
from deploytool.report.plots import sweep_figure

Row = dict[str, Any]

FORMATS = {"width": "g", "precision": "", "threads": "d", "lambda": "g", "p50_ms": ".3f", "p90_ms": ".3f"}
FORMATS |= {"p99_ms": ".3f", "throughput_ips": ".1f", "ratio": ".3f"}
HEADS = {"p50_ms": "p50 ms", "p90_ms": "p90 ms", "p99_ms": "p99 ms", "throughput_ips": "images/s"}


def write_sweep(result: Row, folder: Path, announce: Callable[[str], None]) -> dict[str, str]:
    """Write sweep.json and .md, and where matplotlib is installed sweep.png and .svg.

    Args:
        result: what `deploytool.runtime.sweep.sweep` returned.
        folder: where to write; made if need be.
        announce: told one line, how to install matplotlib, where it is missing: the edge can do without a figure.

    Returns:
        The paths by suffix.
    """
    write_json(folder / "sweep.json", result)
    write_text(folder / "sweep.md", render(result, "github") + "\n")
    kinds = ["json", "md"]
    try:
        require_extra("train", "matplotlib")
    except MissingExtraError as error:
        announce(f"no figure: {error}")
    else:
        sweep_figure(result["rows"], conditions(result), folder / "sweep.png")
        kinds += ["png", "svg"]
    return {kind: str(folder / f"sweep.{kind}") for kind in kinds}


def render(result: Row, tablefmt: str = "simple") -> str:
    """Render the table under a line that says what was measured where."""
    rows = result["rows"]
    keys = [key for key in FORMATS if any(row[key] is not None for row in rows)]
    lines = [[format(row[key], FORMATS[key]) for key in keys] for row in rows]
    runs = sorted({row["runs"] for row in rows})
    made = f"{conditions(result)}; {'-'.join(map(str, runs))} rounds, ratio to the first line"
    heads = [HEADS.get(key, key) for key in keys]
    return f"{made}\n\n{tabulate(lines, heads, tablefmt=tablefmt, disable_numparse=True)}"


def conditions(result: Row) -> str:
    """What was measured where, in one line; with the outputs, where there are more than logits."""
    more = f", {' and '.join(result['outputs'])}" if len(result["outputs"]) > 1 else ""
    return (
        f"{Path(result['file']).name}, batch {result['batch']}{more}; onnxruntime {result['onnxruntime']}, "
        f"{result['processor']}, {result['cpus']} CPUs"
    )
