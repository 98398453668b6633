"""A cost report as text for people."""

from tabulate import tabulate

from hwmodels.cost import CostReport


def render(report: CostReport) -> str:
    """Render one line per layer, the totals, the spread of normalised delays, and the notes."""
    profile = report.profile
    constants = ", ".join(f"{key}={value:g}" for key, value in profile.constants().items())
    rows = [
        [
            cost.layer.name,
            cost.layer.kind,
            _size(cost.layer.kernel),
            f"{cost.layer.macs:,}",
            f"{cost.params:,}",
            f"{cost.delay.read_ns:,.0f}",
            f"{cost.delay.mult_ns:,.0f}",
            f"{cost.delay.transform_ns:,.0f}",
            f"{cost.delay.total_ns:,.0f}",
            f"{cost.normalized_delay:.3f}",
        ]
        for cost in report.layers
    ]
    sums = report.totals()
    parts = [sums["read_ns"], sums["mult_ns"], sums["transform_ns"], sums["delay_ns"]]
    plain = sum(cost.plain.total_ns for cost in report.layers)
    ratio = f"{sums['delay_ns'] / plain:.3f}" if plain else ""
    total = ["total", "", "", f"{sums['macs']:,}", f"{sums['params']:,}", *(f"{part:,.0f}" for part in parts), ratio]
    heads = ["layer", "kind", "kernel", "MACs", "params", "read ns", "mult ns", "transform ns", "delay ns", "/ plain"]
    table = tabulate([*rows, total], heads, disable_numparse=True, colalign=("left",) * 3 + ("right",) * 7)
    lines = [f"{report.workload.file}: method {report.method}, profile {profile.name} ({constants})", "", table, ""]
    lines += [
        f"delay / plain over {group['layers']} layers ({group['over']}): "
        f"min {group['min']:.3f}, mean {group['mean']:.3f}, max {group['max']:.3f}"
        for group in report.normalized()
    ]
    return "\n".join(lines + [f"note: {note}" for note in report.notes()])


def _size(kernel: tuple[int, ...]) -> str:
    return "x".join(map(str, kernel)) or "-"
