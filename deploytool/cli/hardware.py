"""Commands that price a file on a chip: `cost`, `calibrate`."""

from pathlib import Path
from typing import Any

import click

from deploytool.cli.base import emit, json_option, set_option, threads_option, width_option


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="plain, pgd-at:nt, float, float-stored-noise, oat or fixed; --compare: repeat. [the file's own]",
)
@click.option(
    "--models", type=click.IntRange(1), metavar="N", help="Networks that PGD-AT trains for N lambdas (pgd-at:nt). [4]"
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME",
    help="Technology profile, or a YAML file; a second one lends what the first lacks. [asic-65nm]",
)
@set_option
@click.option("--shape", multiple=True, metavar="CxHxW", help="Of the image, where the file leaves it open.")
@width_option
@click.option("--density", type=float, metavar="D", help="Share of weights that are not zero. [counted in the file]")
@click.option("--sram-mb", type=float, metavar="MB", help="Say whether it fits an SRAM of so many 10^6 bytes.")
@click.option("--compare", "comparing", is_flag=True, help="One table of methods, or of several files.")
@click.option("--roofline", "roofs", is_flag=True, help="Say what bounds each layer, and how much of the chip it uses.")
@click.option(
    "--sweep",
    "sweeping",
    multiple=True,
    metavar="KEY=V,V",
    help="Price every combination; keys n_mult, n_bank, width, density, bits; values V, or first:last:step.",
)
@click.option("--target-ms", type=float, metavar="T", help="--sweep: the cheapest configuration that takes T or less.")
@click.option("--measure", "measuring", is_flag=True, help="Measure every layer on this machine, beside its price.")
@click.option("--lambda", "lam", type=float, metavar="L", help="--measure: lambda of a conditional file. [0]")
@threads_option
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for tables and figure.")
@json_option
def cost(
    files: tuple[Path, ...],
    methods: tuple[str, ...],
    models: int | None,
    profiles: tuple[str, ...],
    overrides: tuple[str, ...],
    shape: tuple[str, ...],
    width: float | None,
    density: float | None,
    sram_mb: float | None,
    comparing: bool,
    roofs: bool,
    sweeping: tuple[str, ...],
    target_ms: float | None,
    measuring: bool,
    lam: float | None,
    threads: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Price an ONNX FILE on a chip, layer by layer: delay (paper 5, eqs. 7 to 9), energy and memory."""
    from deploytool.costing import compare, cost_of, fit_of, profile_of, workload_of, workloads_of, write_cost
    from hwmodels.table import render, render_comparison

    if not comparing and (len(files) > 1 or len(methods) > 1):
        raise click.UsageError("several files or methods need --compare")
    if comparing and sram_mb is not None:
        raise click.UsageError("--sram-mb is for one file and method; leave out --compare")
    if target_ms is not None and not sweeping:
        raise click.UsageError("--target-ms needs --sweep")
    if (roofs or sweeping) and sum(map(bool, (comparing, measuring, roofs, sweeping))) > 1:
        raise click.UsageError("--sweep, --roofline, --compare and --measure exclude each other")
    profile = profile_of(profiles, overrides)
    tell = lambda line: click.echo(line, err=True)  # noqa: E731
    if sweeping:
        if sram_mb is not None or lam is not None or threads is not None:
            raise click.UsageError("--sram-mb, --lambda and --threads are not for --sweep")
        from deploytool.costing import sweep_of, sweep_text, write_sweep

        name = methods[0] if methods else None
        swept = sweep_of(files[0], sweeping, name, profile, models, density, shape, width)
        document, page = sweep_text(swept, target_ms)
        if output is not None:
            document["files"] = write_sweep(swept, target_ms, output, tell)
            page += f"\n\nwritten to {', '.join(document['files'].values())}"
        emit(document, as_json, lambda: page)
        return
    if measuring:
        if comparing or methods or models or density is not None or sram_mb is not None:
            raise click.UsageError("--measure runs one network as it is; leave out --compare and what changes prices")
        from deploytool.measuring import measure_file, write_measured
        from hwmodels.measured_report import render as render_measured

        measured = measure_file(files[0], profile, threads=threads, lam=lam, width=width, shape=shape)
        written = write_measured(measured, output) if output is not None else {}
        more = f"\n\nwritten to {', '.join(written.values())}" if written else ""
        emit({**measured.to_dict(), "files": written}, as_json, lambda: render_measured(measured) + more)
        return
    if lam is not None or threads is not None:
        raise click.UsageError("--lambda and --threads need --measure")
    if comparing:
        report: Any = compare(workloads_of(files, shape, width), methods, profile, models, density)
    else:
        report = cost_of(workload_of(files[0], shape, width), methods[0] if methods else None, profile, models, density)
    document, more, roof = report.to_dict(), "", None
    if roofs:
        from deploytool.costing import roofline_of
        from hwmodels.roofline import add_roofline, render_roofline

        roof = roofline_of(report)
        document, more = add_roofline(document, roof), f"\n\n{render_roofline(roof)}"
    if sram_mb is not None:
        fit = fit_of(report, sram_mb)
        document["fit"] = fit.to_dict()
        more += f"\n\nSRAM of {sram_mb:g} MB: {fit.verdict()}"
    if output is not None:
        document["files"] = write_cost(report, output, tell, roof)
        more += f"\n\nwritten to {', '.join(document['files'].values())}"
    text = render_comparison if comparing else render
    emit(document, as_json, lambda: text(report) + more)


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Profile to write, .yaml."
)
@threads_option
@click.option("--lambda", "lam", type=float, metavar="L", help="Lambda of conditional files. [0]")
@click.option("--shape", multiple=True, metavar="CxHxW", help="Of the image, where a file leaves it open.")
@json_option
def calibrate(
    files: tuple[Path, ...],
    output: Path,
    threads: int | None,
    lam: float | None,
    shape: tuple[str, ...],
    as_json: bool,
) -> None:
    """Fit this machine's profile for `cost --profile` to measured layers of FILEs, or of synthetic networks."""
    from deploytool.measuring import calibrate_machine, calibration_table

    tell = lambda line: click.echo(line, err=True)  # noqa: E731
    result = calibrate_machine(files, output, threads=threads, lam=lam, shape=shape, announce=tell)
    emit(result, as_json, lambda: calibration_table(result))
