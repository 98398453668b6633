"""The bridge from the command line to `hwmodels`, which knows nothing of deploytool."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploytool.atomic import atomic_path, write_json, write_text
from deploytool.errors import CostError
from hwmodels.compare import Comparison, compare_costs
from hwmodels.errors import FigureError, HwModelsError
from hwmodels.inputs import WIDTHS, parse_shapes
from hwmodels.memory import Fit
from hwmodels.profile import Profile, load_profile
from hwmodels.report import DEFAULT_PROFILE, CostReport, price
from hwmodels.workload import Workload, read_workload

File = str | os.PathLike[str]


def workload_of(file: File, shape: Sequence[str] = (), width: float | None = None) -> Workload:
    """Read a file.

    Args:
        file: as `hwmodels.read_workload`.
        shape: of the image, as in `3x224x224`; of several inputs as in `image=3x224x224`.
        width: as `hwmodels.read_workload`.

    Raises:
        CostError: whatever hwmodels objects to, in its words.
    """
    with _in_its_words():
        return read_workload(file, parse_shapes(shape), width)


def workloads_of(files: Sequence[File], shape: Sequence[str] = (), width: float | None = None) -> list[Workload]:
    """Read several files to compare them; a slimmable one at each of its widths, the widest first.

    Args:
        files: to read.
        shape, width: as `workload_of`; a width is for the slimmable files among them.

    Raises:
        CostError: whatever hwmodels objects to, in its words.
    """
    found = []
    for file in files:
        widest = workload_of(file, shape)
        held = json.loads(widest.properties.get(WIDTHS, "[]")) if widest.width is not None else []
        widths = [width] if width is not None else sorted(held, reverse=True)
        found += [workload_of(file, shape, each) for each in widths] if widest.width is not None else [widest]
    return found


def profile_of(names: Sequence[str] = (), overrides: Iterable[str] = ()) -> Profile:
    """Load a profile, asic-65nm by default; further ones lend the times or energies that the first one lacks.

    Args:
        names: of shipped profiles, or YAML files.
        overrides: constants to replace, as `key=value`.

    Raises:
        CostError: whatever hwmodels objects to, in its words, or an override that has another form.
    """
    values = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise CostError(f"--set {override!r} must have the form key=value, as in n_mult=175")
        values[key.strip()] = value.strip()
    with _in_its_words():
        profile, *others = map(load_profile, names or [DEFAULT_PROFILE])
        for other in others:
            profile = profile.completed_by(other)
        return profile.override(values)


def cost_of(
    workload: Workload,
    method: str | None = None,
    profile: Profile | None = None,
    models: int | None = None,
    density: float | None = None,
) -> CostReport:
    """Price a workload; arguments as `hwmodels.price`.

    Raises:
        CostError: whatever hwmodels objects to, in its words.
    """
    with _in_its_words():
        return price(workload, method, profile, models=models, density=density)


def fit_of(report: CostReport, sram_mb: float) -> Fit:
    """Say whether a network fits an SRAM of so many MB (10^6 bytes).

    Raises:
        CostError: whatever hwmodels objects to, in its words.
    """
    if not 0 < sram_mb <= 1e9:
        raise CostError(f"--sram-mb (={sram_mb:g}) must be a positive number of MB (10^6 bytes)")
    with _in_its_words():
        return report.fit(max(round(sram_mb * 1e6), 1))


def compare(
    workloads: Sequence[Workload],
    methods: Sequence[str] = (),
    profile: Profile | None = None,
    models: int | None = None,
    density: float | None = None,
) -> Comparison:
    """Price workloads by several methods; arguments as `hwmodels.compare_costs`.

    Raises:
        CostError: whatever hwmodels objects to, in its words.
    """
    with _in_its_words():
        return compare_costs(workloads, methods, profile, models=models, density=density)


def write_cost(report: CostReport | Comparison, folder: Path, announce: Callable[[str], None]) -> dict[str, str]:
    """Write cost.json, .csv and .md, and of a report, where matplotlib is installed, cost.png and .svg.

    Args:
        report: what to write.
        folder: where; made if need be.
        announce: told one line, why there is no figure, where there is none.

    Returns:
        The paths by suffix.
    """
    from hwmodels.table import as_csv, render, render_comparison

    if isinstance(report, Comparison):
        rows, text = report.rows(), render_comparison(report, "github")
    else:
        rows, text = report.to_dict()["layers"], render(report, "github")
    write_json(folder / "cost.json", report.to_dict())
    write_text(folder / "cost.csv", as_csv(rows))
    write_text(folder / "cost.md", text + "\n")
    kinds = ["json", "csv", "md"]
    if isinstance(report, CostReport):
        try:
            kinds += _write_figure(report, folder)
        except FigureError as error:
            announce(f"no figure: {error}")
    return {kind: str(folder / f"cost.{kind}") for kind in kinds}


def _write_figure(report: CostReport, folder: Path) -> list[str]:
    from hwmodels.figure import draw

    figure: Any = draw(report)
    for kind in ("png", "svg"):
        with atomic_path(folder / f"cost.{kind}") as aside:
            figure.savefig(aside, format=kind, dpi=130)
    return ["png", "svg"]


@contextmanager
def _in_its_words() -> Iterator[None]:
    try:
        yield
    except HwModelsError as error:
        raise CostError(str(error)) from None
