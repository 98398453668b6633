"""Cost reports and comparisons as text: for the terminal, as Markdown, and as CSV."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate

from hwmodels.compare import Comparison
from hwmodels.profile import Profile
from hwmodels.report import CostReport

Row = dict[str, Any]


def render(report: CostReport, tablefmt: str = "simple") -> str:
    """Render one line per layer, the totals, the spread of normalised delays, and the notes.

    Args:
        report: what `price` found.
        tablefmt: of tabulate; `github` makes Markdown.
    """
    columns = _layer_columns(report)
    totals = report.totals()
    plain = sum(cost.plain.total_ns for cost in report.layers if cost.plain is not None)
    totals |= {"name": "total", "kind": "", "kernel": "", "normalized_delay": plain and totals["delay_ns"] / plain}
    rows = [{**cost.to_dict(), "kernel": _size(cost.layer.kernel)} for cost in report.layers]
    table = make_table([*rows, totals], columns, tablefmt, texts=3)
    made = f"{_network(report)}: method {report.method.name}, profile {profile_line(report.profile)}"
    lines = [
        f"delay / plain over {group['layers']} layers ({group['over']}): "
        f"min {group['min']:.3f}, mean {group['mean']:.3f}, max {group['max']:.3f}"
        for group in report.normalized()
    ]
    lines += _memory_lines(report)
    return make_page(made, table, lines, report.notes(), tablefmt)


def render_comparison(comparison: Comparison, tablefmt: str = "simple") -> str:
    """Render one line per file and method, and the notes; arguments as `render`."""
    profile = comparison.reports[0].profile
    rows = comparison.rows()
    files = comparison.files
    made = f"{files[0] if len(files) == 1 else f'{len(files)} files'}: profile {profile_line(profile)}"
    lines = ["delay ratios are to the first line"] if rows[0]["ratio"] is not None else []
    counts = [[(row[key] or {}).get("layers", 0) for key in ("normalized_film", "normalized_all")] for row in rows]
    if any(film for film, _ in counts):
        over = "convolutions that OAT gives a FiLM layer"
        few, many = (f"the {count[0]} " if len(set(count)) == 1 else "the " for count in zip(*counts, strict=True))
        lines.append(f"min, mean and max of delay / plain per layer: over {few}{over}; mean of all: {many}convolutions")
    columns = _comparison_columns(comparison)
    table = make_table(rows, columns, tablefmt, texts=[head for head, _ in columns].index("method") + 1)
    return make_page(made, table, lines, comparison.notes(), tablefmt)


def as_csv(rows: Sequence[Row]) -> str:
    """Write rows as CSV, nested values with dotted keys, nothing where there is no figure."""
    flat = [_flat(row) for row in rows]
    keys = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=keys, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def profile_line(profile: Profile) -> str:
    """A profile and its constants in one line."""
    constants = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in _shown(profile)]
    return f"{profile.name} ({', '.join(constants)})"


def _shown(profile: Profile) -> list[tuple[str, float | str]]:
    """What the figures depend on; of energies only the levels in use are named."""
    return [(key, value) for key, value in profile.settings().items() if key not in profile.energies]


Column = tuple[str, Callable[[Row], str]]


def _layer_columns(report: CostReport) -> list[Column]:
    columns: list[Column] = [
        ("layer", lambda row: row["name"]),
        ("kind", lambda row: row["kind"]),
        ("kernel", lambda row: row["kernel"]),
        ("MACs", lambda row: f"{row['macs']:,}"),
        ("params", lambda row: f"{row['params']:,}"),
    ]
    if report.profile.chip() is not None:
        columns += [
            ("read ns", lambda row: _number(row["read_ns"])),
            ("mult ns", lambda row: _number(row["mult_ns"])),
            ("transform ns", lambda row: _number(row["transform_ns"])),
            ("delay ns", lambda row: _number(row["delay_ns"])),
            ("/ plain", lambda row: _ratio(row["normalized_delay"])),
        ]
        if report.sparse:
            columns.append(("sparse-aware ns", lambda row: _number(row["sparse_aware_ns"])))
    if any(cost.energy is not None for cost in report.layers):
        columns += [
            ("arithmetic nJ", lambda row: _nanojoules(row, "mult_pj", "accumulate_pj")),
            ("transform nJ", lambda row: _nanojoules(row, "transform_pj", "transform_read_pj")),
            ("weights nJ", lambda row: _nanojoules(row, "weight_read_pj")),
            ("activations nJ", lambda row: _nanojoules(row, "activation_read_pj", "activation_write_pj")),
            ("energy nJ", lambda row: _number(row["energy_pj"] / 1e3)),
        ]
    return columns


def _comparison_columns(comparison: Comparison) -> list[Column]:
    reports = comparison.reports
    columns: list[Column] = [("method", lambda row: row["label"])]
    if any(report.workload.width is not None for report in reports):
        columns.insert(0, ("width", lambda row: "" if row["width"] is None else f"{row['width']:g}"))
    if len(comparison.files) > 1:
        columns.insert(0, ("file", lambda row: row["file"]))
    columns += [("M MACs", lambda row: f"{row['macs'] / 1e6:,.2f}")]
    if reports[0].profile.chip() is not None:
        columns += [
            ("delay ms", lambda row: f"{row['delay_ns'] / 1e6:,.3f}"),
            ("ratio", lambda row: _ratio(row["ratio"])),
            ("min", lambda row: _ratio((row["normalized_film"] or {}).get("min"))),
            ("mean", lambda row: _ratio((row["normalized_film"] or {}).get("mean"))),
            ("max", lambda row: _ratio((row["normalized_film"] or {}).get("max"))),
            ("mean of all", lambda row: _ratio((row["normalized_all"] or {}).get("mean"))),
        ]
        if any(report.sparse for report in reports):
            columns.append(("sparse-aware ms", lambda row: f"{row['sparse_aware_ns'] / 1e6:,.3f}"))
    bits = reports[0].profile.b_w
    columns.append((f"weight MB at {bits} bits", lambda row: f"{row['weight_bytes'] / 1e6:,.2f}"))
    if any(report.sparse for report in reports):
        columns.append(("encoded MB", lambda row: f"{row['encoded_weight_bytes'] / 1e6:,.2f}"))
    if any(report.totals()["energy_pj"] is not None for report in reports):
        columns.append(("energy mJ", lambda row: f"{row['energy_pj'] / 1e9:,.4f}"))
    return columns


def make_table(rows: Sequence[Row], columns: Sequence[Column], tablefmt: str, texts: int) -> str:
    """A table of rows, the first `texts` columns aligned left; whatever a cell holds stays on its line."""
    cells = [[_clean(cell(row), tablefmt) for _, cell in columns] for row in rows]
    align = ["left"] * texts + ["right"] * (len(columns) - texts)
    heads = [head for head, _ in columns]
    return tabulate(cells, heads, tablefmt=tablefmt, disable_numparse=True, colalign=align)


def _clean(text: str, tablefmt: str) -> str:
    """A cell on one line; names come from files that we did not write."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text.replace("|", "\\|") if tablefmt == "github" else text


def make_page(made: str, table: str, lines: Sequence[str], notes: Sequence[str], tablefmt: str) -> str:
    """A table with a line above it, and lines and notes below."""
    if tablefmt == "github":
        items = "\n".join(f"- {note}" for note in [*lines, *notes])
        return f"{made}\n\n{table}\n\n{items}"
    return "\n".join([made, "", table, "", *lines, *(f"note: {note}" for note in notes)])


def _memory_lines(report: CostReport) -> list[str]:
    memory, bits = report.memory, report.profile.b_w
    items = [f"{item.name.replace('_', ' ')} {item.bytes / 1e6:,.3f}" for item in memory.items if item.bytes >= 500]
    lines = [f"parameters at {bits} bits: {memory.bytes / 1e6:,.3f} MB ({', '.join(items)})"]
    if report.sparse:
        sizes = [f"{name} {size / 1e6:,.3f}" for name, size in memory.encodings().items() if name != "best"]
        lines.append(f"encodings of the weights, in MB: {', '.join(sizes)}; {memory.best} is the smallest")
    if report.peak is not None:
        where = f" ({report.peak.layer})" if report.peak.layer else ""
        lines.append(
            f"activations at {bits} bits: at most {report.peak.bytes / 1e6:,.3f} MB, at a {report.peak.op}{where}"
        )
    return lines


def _network(report: CostReport) -> str:
    """The file, and what of it is priced: its image size, and the width of a slimmable one."""
    images = [f"{name} {'x'.join(map(str, shape))}" for name, shape in report.workload.images.items()]
    width = [f"width {report.workload.width:g}"] if report.workload.width is not None else []
    what = ", ".join(images + width)
    return f"{report.workload.file} ({what})" if what else report.workload.file


def _nanojoules(row: Row, *items: str) -> str:
    return _number(sum(row["energy"][item] for item in items) / 1e3)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _ratio(value: float | None) -> str:
    return f"{value:.3f}" if value else ""


def _size(kernel: tuple[int, ...]) -> str:
    return "x".join(map(str, kernel)) or "-"


def _flat(row: Row, prefix: str = "") -> Row:
    flat: Row = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return flat
