"""Predicted beside measured: every layer's delay on a chip, and its time on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from hwmodels.measured import Measured, spearman
from hwmodels.report import CostReport
from hwmodels.table import profile_line

Row = dict[str, Any]


@dataclass(frozen=True)
class MeasuredReport:
    """A network's cost report and its profile.

    Attributes:
        report: what the network should cost, by a profile with or without times.
        measured: what its layers took here.
        bench: of the whole network without the profiler: `p50_ms`, `p99_ms`, `peak_rss_mb`, `size_mb`; empty where it
            was not measured.
        settings: what the network ran at, as lambda and precision.
    """

    report: CostReport
    measured: Measured
    bench: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """One row per layer; `measured_ns`, `share` of all operators and `gflops` (2 per MAC) None where unknown."""
        rows = []
        for cost in self.report.layers:
            layer = cost.layer
            ns = self.measured.layer_ns.get(layer.name)
            rows.append(
                {
                    "name": layer.name,
                    "kind": layer.kind,
                    "macs": layer.macs,
                    "predicted_ns": None if cost.delay is None else cost.delay.total_ns,
                    "measured_ns": ns,
                    "share": None if ns is None else _part(ns, self.measured.operators_ns),
                    "gflops": _gflops(layer.macs * self.measured.batch, ns),
                }
            )
        return rows

    def totals(self) -> Row:
        """Sums over the layers, and the whole network; times of one inference in ns unless the name says ms."""
        rows = self.rows()
        layers = sum(self.measured.layer_ns.values())
        predicted = [row["predicted_ns"] for row in rows if row["predicted_ns"] is not None]
        macs = sum(row["macs"] for row in rows)
        best = self.bench.get("p50_ms")
        return {
            "macs": macs,
            "predicted_ns": sum(predicted) if predicted else None,
            "layers_ns": layers,
            "others_ns": sum(self.measured.other_ns.values()),
            "operators_ns": self.measured.operators_ns,
            "profiled_run_ns": self.measured.total_ns,
            "operators_of_run": _part(self.measured.operators_ns, self.measured.total_ns),
            "gflops": _gflops(macs * self.measured.batch, self.measured.total_ns if best is None else best * 1e6),
            **self.bench,
        }

    def rank_correlation(self) -> float | None:
        """Spearman's, of predicted and measured time over the layers that have both; None where that is undefined."""
        both = [row for row in self.rows() if row["predicted_ns"] is not None and row["measured_ns"] is not None]
        return spearman([row["predicted_ns"] for row in both], [row["measured_ns"] for row in both])

    def notes(self) -> list[str]:
        """What a reader must know to use the figures."""
        measured, found = self.measured, []
        if measured.unmeasured:
            found.append(f"not in the profile: {', '.join(measured.unmeasured)}")
        if measured.leftovers:
            names = ", ".join(f"{each.name} ({each.op}, {each.ns / 1e6:.3f} ms)" for each in measured.leftovers)
            found.append(f"in the profile and of no layer: {names}")
        found.append("activations, additions and batch norms that onnxruntime fused into a layer are in its time")
        if measured.batch != 1:
            found.append(f"measured are inferences of {measured.batch} images; predicted is one image")
        return found + self.report.notes()

    def to_dict(self) -> Row:
        """The report as JSON."""
        return {
            "file": self.report.workload.file,
            "settings": dict(self.settings),
            "profile": self.report.profile.to_dict(),
            "method": self.report.method.name,
            "layers": self.rows(),
            "totals": self.totals(),
            "rank_correlation": self.rank_correlation(),
            "measured": self.measured.to_dict(),
            "not_counted": self.report.workload.not_counted,
            "notes": self.notes(),
        }


def render(report: MeasuredReport, tablefmt: str = "simple") -> str:
    """Render one line per layer, the totals and the notes; `tablefmt` of tabulate, `github` makes Markdown."""
    measured, totals = report.measured, report.totals()
    lines = [
        [row["name"], row["kind"], f"{row['macs']:,}", *_figures(row, "predicted_ns", "measured_ns")]
        for row in report.rows()
    ]
    whole = {**totals, "share": _part(totals["layers_ns"], measured.operators_ns)}
    whole["gflops"] = _gflops(totals["macs"] * measured.batch, totals["layers_ns"])
    lines.append(["all layers", "", f"{totals['macs']:,}", *_figures(whole, "predicted_ns", "layers_ns")])
    for op, ns in sorted(measured.other_ns.items(), key=lambda item: -item[1]):
        other = {"measured_ns": ns, "share": _part(ns, measured.operators_ns)}
        lines.append([f"other: {op}", "", "", *_figures(other, "predicted_ns", "measured_ns")])
    heads = ["layer", "kind", "MACs", "predicted ms", "measured ms", "share", "GFLOP/s"]
    cells = [[_clean(cell, tablefmt) for cell in line] for line in lines]
    align = ["left", "left", *["right"] * 5]
    table = tabulate(cells, heads, tablefmt=tablefmt, disable_numparse=True, colalign=align)
    about = [f"{name} {value}" for name, value in report.settings.items() if value is not None]
    about.append(f"{measured.threads} thread{'s' if measured.threads > 1 else ''}")
    made = f"{report.report.workload.file} ({', '.join(about)}): profile {profile_line(report.report.profile)}"
    summary, notes = _summary(report), report.notes()
    if tablefmt == "github":
        items = "\n".join(f"- {each}" for each in [*summary, *notes])
        return f"{made}\n\n{table}\n\n{items}"
    return "\n".join([made, "", table, "", *summary, *(f"note: {note}" for note in notes)])


def _summary(report: MeasuredReport) -> list[str]:
    measured, totals, bench = report.measured, report.totals(), report.bench
    lines = []
    if bench:
        lines.append(
            f"whole network: p50 {bench['p50_ms']:.3f} ms, p99 {bench['p99_ms']:.3f} ms, "
            f"{totals['gflops']:.2f} GFLOP/s, peak memory {bench['peak_rss_mb']:.1f} MB, file {bench['size_mb']:.3f} MB"
        )
    lines.append(
        f"profiled: operators {measured.operators_ns / 1e6:.3f} ms of {measured.total_ns / 1e6:.3f} ms from end to end "
        f"({totals['operators_of_run']:.1%}), medians of {measured.runs} runs"
    )
    rank = report.rank_correlation()
    if rank is not None:
        count = len(measured.layer_ns)
        lines.append(f"rank correlation of predicted and measured time over {count} layers (Spearman): {rank:.3f}")
    else:
        lines.append("rank correlation of predicted and measured time: none, for want of two different times of each")
    return lines


def _figures(row: Row, predicted: str, measured: str) -> Sequence[str]:
    share, gflops = row.get("share"), row.get("gflops")
    return [
        _ms(row.get(predicted)),
        _ms(row.get(measured)),
        "" if share is None else f"{share:.1%}",
        "" if gflops is None else f"{gflops:.2f}",
    ]


def _ms(ns: float | None) -> str:
    return "" if ns is None else f"{ns / 1e6:,.3f}"


def _part(value: float, whole: float) -> float | None:
    return value / whole if whole > 0 else None


def _gflops(macs: int, ns: float | None) -> float | None:
    return 2 * macs / ns if ns else None


def _clean(text: str, tablefmt: str) -> str:
    """A cell on one line; names come from files that we did not write."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text.replace("|", "\\|") if tablefmt == "github" else text
