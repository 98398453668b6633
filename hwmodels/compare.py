"""Methods and files side by side: one line for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hwmodels.errors import MethodError
from hwmodels.methods import METHODS, Method, find_method, with_models
from hwmodels.notes import comparison_notes
from hwmodels.profile import Profile
from hwmodels.report import ALL_LAYERS, FILM_LAYERS, CostReport, own_method, price
from hwmodels.workload import Workload


@dataclass(frozen=True)
class Comparison:
    """Reports beside each other.

    Attributes:
        reports: at least one; ratios are to the first.
    """

    reports: tuple[CostReport, ...]

    @property
    def files(self) -> list[str]:
        """The files compared, each once."""
        return list(dict.fromkeys(report.workload.file for report in self.reports))

    def rows(self) -> list[dict[str, Any]]:
        """One row per report: `ratio` is its delay over the first one's, `normalized` are spreads over its layers."""
        first = self.reports[0].totals()["delay_ns"]
        rows = []
        for report in self.reports:
            totals = report.totals()
            spreads = {spread.pop("over"): spread for spread in report.normalized()}
            rows.append(
                {
                    "file": report.workload.file,
                    "width": report.workload.width,
                    "method": report.method.name,
                    "label": report.method.label,
                    "equation": report.method.equation,
                    "models": report.method.models,
                    "macs": totals["macs"],
                    "params": totals["params"],
                    "nonzero": totals["nonzero"],
                    "delay_ns": totals["delay_ns"],
                    "ratio": totals["delay_ns"] / first if first else None,
                    "normalized_film": spreads.get(FILM_LAYERS),
                    "normalized_all": spreads.get(ALL_LAYERS),
                    "oat_over_this": report.against_oat() if report.method.transforms else None,
                    "sparse_aware_ns": totals["sparse_aware_ns"],
                    "energy_pj": totals["energy_pj"],
                    "weight_bytes": totals["weight_bytes"],
                    "parameter_bytes": totals["parameter_bytes"],
                    "encoded_weight_bytes": totals["encoded_weight_bytes"],
                    "best_encoding": report.memory.best,
                    "peak_activation_bytes": totals["peak_activation_bytes"],
                    "not_counted": totals["not_counted"],
                }
            )
        return rows

    def notes(self) -> list[str]:
        """What a reader must know to use the table."""
        return comparison_notes(self)

    def to_dict(self) -> dict[str, Any]:
        """The whole comparison as JSON."""
        return {
            "profile": self.reports[0].profile.to_dict(),
            "rows": self.rows(),
            "complete": not any(report.workload.not_counted for report in self.reports),
            "notes": self.notes(),
        }


def compare_costs(
    workloads: Sequence[Workload],
    methods: Sequence[str | Method] = (),
    profile: Profile | None = None,
    *,
    models: int | None = None,
    density: float | None = None,
) -> Comparison:
    """Price workloads by several methods.

    Args:
        workloads: at least one.
        methods: by which to price each of them. Where empty: the first by all of `METHODS`, so that it is the
            reference, and each further one by its own method.
        profile, density: as `price`.
        models: networks that `pgd-at:nt` stores.

    Raises:
        MethodError: there is nothing to compare, a method is unknown, or `models` is for none of them.
    """
    if not workloads:
        raise MethodError("there is nothing to compare; give at least one ONNX file")
    reports = []
    for workload in workloads:
        chosen = methods or (METHODS if workload is workloads[0] else [own_method(workload)])
        for method in chosen:
            found = method if isinstance(method, Method) else find_method(method)
            if found.name == "pgd-at:nt" and (models is not None or method in METHODS):
                found = with_models(found, models)
            reports.append(price(workload, found, profile, density=density))
    if models is not None and not any(report.method.name == "pgd-at:nt" for report in reports):
        raise MethodError(f"models (={models}) goes with method pgd-at:nt, which is not among those compared")
    return Comparison(tuple(reports))
