"""A sweep as text: for the terminal and as Markdown."""

from collections.abc import Callable
from typing import Any

from hwmodels.sweep import Sweep
from hwmodels.table import make_page, make_table, profile_line

MAX_ROWS = 40  # of a table; longer ones show the front and the fastest
BEST = 10

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


def render_sweep(found: Sweep, target_ms: float | None = None, tablefmt: str = "simple") -> str:
    """Render all configurations up to 40, the fastest first; of more, the Pareto front and the 10 fastest.

    Args:
        found: what `sweep` found.
        target_ms: as `Sweep.cheapest`; adds the cheapest configuration within that time, and that of each network.
        tablefmt: of tabulate; `github` makes Markdown.

    Raises:
        SweepError: no configuration is within `target_ms`.
    """
    chosen, shown = _chosen(found)
    columns = _columns(found)
    table = make_table(found.rows(chosen), columns, tablefmt, texts=1)
    axes = ", ".join(f"{key} {_values(values)}" for key, values in found.axes.items())
    if found.ranked_sparse and "density" not in found.axes:
        axes += f" at density {found.columns['density'][0]:g}"
    made = (
        f"{found.workload.file}: method {found.method.name}, profile {profile_line(found.profile)}; "
        f"{len(found):,} configurations of {axes}{shown}"
    )
    lines = []
    if target_ms is not None:
        best = found.cheapest_by_network(target_ms)
        lines.append(f"cheapest within {target_ms:g} ms: {_described(found, best[0])}")
        if len(best) > 1:
            lines += [f"cheapest of its network: {_described(found, index)}" for index in best[1:BEST]]
        if len(best) > BEST:
            lines.append(f"and {len(best) - BEST} further networks, in the JSON")
    return make_page(made, table, lines, found.notes(), tablefmt)


def _chosen(found: Sweep) -> tuple[list[int], str]:
    """Configurations to show, and what they are."""
    order: list[int] = found.order.tolist()
    if len(order) <= MAX_ROWS:
        return order, ""
    front = [index for index in order if found.front[index]]
    shown = {*front[:MAX_ROWS], *order[:BEST]}
    first = f"the first {MAX_ROWS} of {len(front)}" if len(front) > MAX_ROWS else f"the {len(front)}"
    return [index for index in order if index in shown], f"; shown are {first} on the front, and the {BEST} fastest"


def _columns(found: Sweep) -> list[Column]:
    columns: list[Column] = [("front", lambda row: "*" if row["front"] else "+" if row["network_front"] else "")]
    for key in found.axes:
        columns.append((key, _axis(key)))
    columns.append(("hardware", lambda row: f"{row['hardware']:,}"))
    columns += [(f"{name} ms", _ms(f"{name}_ns")) for name in ("read", "mult", "transform")]
    columns.append(("delay ms", _ms("delay_ns")))
    if found.ranked_sparse:
        columns.append(("sparse-aware ms", _ms("sparse_aware_ns")))
    columns.append(("weight MB", lambda row: f"{row['weight_bytes'] / 1e6:,.3f}"))
    if found.ranked_sparse:
        columns.append(("encoded MB", lambda row: f"{row['encoded_weight_bytes'] / 1e6:,.3f}"))
    if any(row["energy_pj"] is not None for row in found.rows()):
        columns.append(("energy mJ", lambda row: "" if row["energy_pj"] is None else f"{row['energy_pj'] / 1e9:,.4f}"))
    return columns


def _axis(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key]:g}"


def _ms(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key] / 1e6:,.4g}"


def _described(found: Sweep, index: int) -> str:
    row = found.rows([index])[0]
    size = row[found.memory_key] / 1e6
    return f"{found.name(index)}: {row[found.time_key] / 1e6:.4g} ms, hardware {row['hardware']:,}, {size:.3f} MB"


def _values(values: tuple[float, ...]) -> str:
    if len(values) <= 6:
        return ",".join(f"{value:g}" for value in values)
    return f"{min(values):g}..{max(values):g} ({len(values)} values)"
