"""The bridge from the command line to `hwmodels`, which knows nothing of deploytool."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploytool.atomic import atomic_path, write_json, write_text
from deploytool.errors import CostError
from hwmodels.axes import parse_axes
from hwmodels.compare import Comparison, compare_costs
from hwmodels.errors import FigureError, HwModelsError
from hwmodels.inputs import WIDTHS, parse_shapes
from hwmodels.memory import Fit
from hwmodels.profile import Profile, load_profile
from hwmodels.report import DEFAULT_PROFILE, CostReport, price
from hwmodels.roofline import Roofline, add_roofline, render_roofline, roofline
from hwmodels.sweep import Sweep, sweep
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
    with in_its_words():
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
    with in_its_words():
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
    with in_its_words():
        return price(workload, method, profile, models=models, density=density)


def fit_of(report: CostReport, sram_mb: float) -> Fit:
    """Say whether a network fits an SRAM of so many MB (10^6 bytes).

    Raises:
        CostError: whatever hwmodels objects to, in its words.
    """
    if not 0 < sram_mb <= 1e9:
        raise CostError(f"--sram-mb (={sram_mb:g}) must be a positive number of MB (10^6 bytes)")
    with in_its_words():
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
    with in_its_words():
        return compare_costs(workloads, methods, profile, models=models, density=density)


def roofline_of(report: CostReport) -> Roofline:
    """Say what bounds each layer of a report.

    Raises:
        CostError: whatever hwmodels objects to, in its words.
    """
    with in_its_words():
        return roofline(report)


def sweep_of(
    file: File,
    axes: Sequence[str],
    method: str | None = None,
    profile: Profile | None = None,
    models: int | None = None,
    density: float | None = None,
    shape: Sequence[str] = (),
    width: float | None = None,
) -> Sweep:
    """Price every combination of the values on some axes.

    Args:
        file, shape, width: as `workload_of`. Of a file with one width alone, others on the axis are estimates.
        axes: values of `--sweep`, see `hwmodels.axes.parse_axes`.
        method, profile, models, density: as `hwmodels.price`.

    Raises:
        CostError: whatever hwmodels objects to, in its words, or a width or density that is given and swept.
    """
    with in_its_words():
        found = parse_axes(axes)
        for key, value in (("width", width), ("density", density)):
            if value is not None and key in found:
                raise CostError(f"--{key} (={value:g}) fixes what --sweep {key} varies; leave out one of them")
        networks: Any = workload_of(file, shape, width)
        if "width" in found and networks.width is not None:
            networks = {each: workload_of(file, shape, each) for each in found["width"]}
        return sweep(networks, found, method, profile, models=models, density=density)


def sweep_text(found: Sweep, target_ms: float | None = None) -> tuple[dict[str, Any], str]:
    """A sweep as JSON and as a table, with the cheapest configuration within a time.

    Raises:
        CostError: no configuration is within it.
    """
    from hwmodels.sweep_table import render_sweep

    with in_its_words():
        return found.to_dict(target_ms), render_sweep(found, target_ms)


def write_sweep(found: Sweep, target_ms: float | None, folder: Path, announce: Callable[[str], None]) -> dict[str, str]:
    """Write sweep.json, .csv and .md, and where matplotlib is installed, sweep.png and .svg.

    Args:
        found: what to write; JSON and CSV hold all configurations.
        target_ms: as `sweep_text`.
        folder, announce: as `write_cost`.

    Returns:
        The paths by suffix.
    """
    from hwmodels.sweep_figure import draw_sweep
    from hwmodels.sweep_table import render_sweep
    from hwmodels.table import as_csv

    with in_its_words():
        write_json(folder / "sweep.json", found.to_dict(target_ms))
        write_text(folder / "sweep.csv", as_csv(found.rows()))
        write_text(folder / "sweep.md", render_sweep(found, target_ms, "github") + "\n")
    return _written("sweep", folder, lambda: draw_sweep(found, target_ms), announce)


def write_cost(
    report: CostReport | Comparison, folder: Path, announce: Callable[[str], None], roofs: Roofline | None = None
) -> dict[str, str]:
    """Write cost.json, .csv and .md, and of a report, where matplotlib is installed, cost.png and .svg.

    Args:
        report: what to write.
        folder: where; made if need be.
        announce: told one line, why there is no figure, where there is none.
        roofs: of the report, to write beside it.

    Returns:
        The paths by suffix.
    """
    from hwmodels.figure import draw
    from hwmodels.table import as_csv, render, render_comparison

    document = report.to_dict()
    if isinstance(report, Comparison):
        rows, text = report.rows(), render_comparison(report, "github")
    else:
        text = render(report, "github")
        if roofs is not None:
            document, text = add_roofline(document, roofs), f"{text}\n\n{render_roofline(roofs, 'github')}"
        rows = document["layers"]
    write_json(folder / "cost.json", document)
    write_text(folder / "cost.csv", as_csv(rows))
    write_text(folder / "cost.md", text + "\n")
    return _written("cost", folder, None if isinstance(report, Comparison) else lambda: draw(report), announce)


def _written(
    name: str, folder: Path, draw: Callable[[], Any] | None, announce: Callable[[str], None]
) -> dict[str, str]:
    """The paths of a report's files by suffix, once its figure has been drawn and written too."""
    kinds = ["json", "csv", "md"]
    figure: Any = None
    try:
        figure = None if draw is None else draw()
    except FigureError as error:
        announce(f"no figure: {error}")
    for kind in ("png", "svg") if figure is not None else ():
        with atomic_path(folder / f"{name}.{kind}") as aside:
            figure.savefig(aside, format=kind, dpi=130)
        kinds.append(kind)
    return {kind: str(folder / f"{name}.{kind}") for kind in kinds}


@contextmanager
def in_its_words() -> Iterator[None]:
    """Raise what hwmodels objects to as CostError."""
    try:
        yield
    except HwModelsError as error:
        raise CostError(str(error)) from None
