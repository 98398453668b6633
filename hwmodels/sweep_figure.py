"""A sweep as a figure: time against hardware, with the Pareto front of each network."""

from pathlib import Path
from typing import Any

import numpy as np

from hwmodels.batch import Array
from hwmodels.errors import FigureError
from hwmodels.figure import short_name
from hwmodels.sweep import NETWORK, Sweep, pareto_front

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # Okabe and Ito
MARKERS = "os^Dv<P"


def draw_sweep(found: Sweep, target_ms: float | None = None) -> Any:
    """Draw every configuration: time over hardware, a colour per network; of many networks, a colour by memory.

    Args:
        found: what `sweep` found.
        target_ms: a line to draw, and the cheapest configuration below it.

    Returns:
        A matplotlib figure.

    Raises:
        FigureError: matplotlib is missing. SweepError: no configuration is within `target_ms`.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogFormatter
    except ImportError:
        raise FigureError("the figure needs matplotlib; install with: pip install 'deploytool[train]'") from None

    class Plain(LogFormatter):
        """0.6 where LogFormatter writes 6e-01; nothing where it writes nothing."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    figure = Figure(figsize=(8, 5.4), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(Plain())
        axis.set_minor_formatter(Plain(minor_thresholds=(2, 0.5)))
    hardware, times = found.columns["hardware"].astype(np.float64), found.time / 1e6
    networks = int(found.network.max()) + 1
    if networks <= len(COLORS):
        for number in range(networks):
            style: dict[str, Any] = {"color": COLORS[number], "marker": MARKERS[number]}
            members = found.network == number
            axes.scatter(hardware[members], times[members], s=14, alpha=0.3, linewidths=0, **style)
            front = members & found.network_front
            label = _label(found, int(np.flatnonzero(members)[0])) or "Pareto front"
            _draw_front(axes, hardware[front], times[front], label, markersize=5, **style)
    else:
        memory = found.columns[found.memory_key] / 1e6
        dots = axes.scatter(hardware, times, c=memory, s=10, cmap="viridis_r", norm="log", linewidths=0)
        figure.colorbar(dots, ax=axes, label=f"{found.memory_key.replace('_bytes', '')} MB".replace("_", " "))
        front = pareto_front(np.stack([times, hardware], axis=1))
        _draw_front(axes, hardware[front], times[front], "least time for its hardware", color="#D55E00", markersize=0)
    if target_ms is not None:
        best = found.cheapest(target_ms)
        axes.axhline(target_ms, color="#444444", linestyle="--", linewidth=1)
        axes.plot(
            hardware[best],
            times[best],
            marker="o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor="#000000",
            linestyle="none",
            label=f"cheapest within {target_ms:g} ms:\n{found.name(best)}",
        )
    axes.set_xlabel("hardware: multipliers x banks (n_mult * n_bank)")
    estimate = "sparse-aware (estimated) " if found.ranked_sparse else ""
    axes.set_ylabel(f"{estimate}delay of one image in ms")
    axes.grid(which="both", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    file = short_name(Path(found.workload.file).name)
    title = f"{file}, {found.method.label}, {found.profile.name}, {len(found):,} configurations"
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _draw_front(axes: Any, hardware: Array, times: Array, label: str, **style: Any) -> None:
    """A front as steps: between two of its points nothing is faster than the smaller one."""
    order = np.argsort(hardware, kind="stable")
    axes.plot(hardware[order], times[order], drawstyle="steps-post", linewidth=1.3, label=label, **style)


def _label(found: Sweep, index: int) -> str:
    return ", ".join(f"{key} {found.columns[key][index]:g}" for key in NETWORK if key in found.axes)
