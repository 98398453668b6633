"""The command line: each command parses, makes one library call, prints.

Heavy imports are inside the commands, so that `deploytool --help` answers at once.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from deploytool import __version__
from deploytool.errors import DeploytoolError

F = TypeVar("F", bound=Callable[..., Any])
CONDITIONINGS = click.Choice(["switch", "interpolate"])


class OneLineError(click.ClickException):
    """An expected failure: one line on stderr, exit code 1."""

    def show(self, file: Any = None) -> None:
        """Print the line."""
        click.echo("error: " + printable(" ".join(self.message.split())), err=True)


class Commands(click.Group):
    """A group whose commands end expected failures with one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; usage errors stay click's, with exit code 2."""
        try:
            return super().invoke(ctx)
        except DeploytoolError as error:
            raise OneLineError(str(error)) from None
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            raise OneLineError("interrupted; what was finished is kept, train --resume and pipeline go on") from None
        except MemoryError:
            raise OneLineError("out of memory; try a smaller batch, fewer images or a smaller model") from None
        except OSError as error:  # a full disk or a read-only folder is the user's to mend, not a bug
            raise OneLineError(f"{error.filename or 'the system'}: {error.strerror or error}") from None


class NumberList(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on alone
    """Numbers separated by commas."""

    name = "number,..."
    kind: type = float
    expected = "numbers separated by commas, as in 0,0.2,1"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Parse `0,0.2,1`."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} must be {self.expected}", param, ctx)


class CountList(NumberList):
    """Whole numbers separated by commas."""

    kind = int
    expected = "whole numbers separated by commas, as in 1,2"


class NameList(NumberList):
    """Names separated by commas."""

    name = "name,..."
    kind = str


def json_option(command: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")(command)


def set_option(command: F) -> F:
    """Add `--set`."""
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one value; repeat.")(
        command
    )


def threshold_option(command: F) -> F:
    """Add `--lambda-threshold`."""
    return click.option(
        "--lambda-threshold", type=float, metavar="T", help="0 or 0.5: lambda above it selects BN_A (switch)."
    )(command)


def width_option(command: F) -> F:
    """Add `--width`."""
    return click.option("--width", type=float, metavar="W", help="A width of a slimmable file. [the widest]")(command)


def precision_option(command: F) -> F:
    """Add `--precision`."""
    return click.option(
        "--precision", type=click.Choice(["int8", "float32"]), help="[int8, where FILE was exported for it]"
    )(command)


def device_option(command: F) -> F:
    """Add `--device`."""
    return click.option(
        "--device", default="auto", show_default=True, help="A torch device; auto: a GPU where there is one."
    )(command)


def threads_option(command: F) -> F:
    """Add `--threads`."""
    return click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads. [what this machine allows]")(
        command
    )


def emit(document: Any, as_json: bool, text: Callable[[], str]) -> None:
    """Print one JSON document or the text for people."""
    click.echo(json.dumps(document, indent=2, allow_nan=False) if as_json else printable(text()))


def printable(text: str) -> str:
    """Replace control characters: names inside a model file must not steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deploytool")
def cli() -> None:
    """Compress and export robust vision models: one ONNX file, lambda tuned in the field."""


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Run folder; runs/NAME by default.")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@set_option
@device_option
@threads_option
@json_option
def train(
    recipe: Path,
    output: Path | None,
    resume: bool,
    overrides: tuple[str, ...],
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train RECIPE into a run folder."""
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.device import choose_device, use_threads
    from deploytool.recipe import load_recipe
    from deploytool.report.tables import key_values
    from deploytool.training.loop import train as train_recipe

    loaded = load_recipe(recipe, overrides)
    use_threads(threads)
    result = train_recipe(loaded, output or Path("runs") / loaded.name, resume, choose_device(device))
    emit(result, as_json, lambda: key_values(result))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--attack", "attacks", multiple=True, metavar="NAME", help="fgsm or pgd-K; repeat. [recipe's]")
@click.option("--lambda", "lambdas", type=NumberList(), help="Lambdas in [0, 1]. [recipe's]")
@click.option("--lambda-threshold", "thresholds", type=NumberList(), help="0, 0.5 or both. [recipe's]")
@click.option("--conditioning", "conditionings", type=CONDITIONINGS, multiple=True, help="Repeat for both. [recipe's]")
@click.option("--width", "widths", type=NumberList(), help="Widths of a slimmable model. [all it has]")
@click.option("--images", type=click.IntRange(1), help="At most so many test images.")
@device_option
@threads_option
@json_option
def evaluate(
    run: Path,
    attacks: tuple[str, ...],
    lambdas: tuple[float, ...] | None,
    thresholds: tuple[float, ...] | None,
    conditionings: tuple[Any, ...],
    widths: tuple[float, ...] | None,
    images: int | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure clean and robust accuracy of RUN over attacks, lambdas and thresholds."""
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.device import choose_device, use_threads
    from deploytool.evaluation import evaluate as evaluate_run
    from deploytool.evaluation import evaluation_settings
    from deploytool.report.tables import accuracy_table
    from deploytool.training.run import load_run

    loaded = load_run(run)
    use_threads(threads)
    settings = evaluation_settings(loaded.recipe, lambdas, thresholds, conditionings or None, widths)
    rows = evaluate_run(loaded, list(attacks) or None, settings, images, choose_device(device))
    emit({"rows": rows}, as_json, lambda: accuracy_table(rows))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; RUN/model.onnx by default.")
@click.option("--untrained", is_flag=True, help="RUN is a recipe: export freshly initialised weights.")
@threshold_option
@click.option("--conditioning", type=CONDITIONINGS, help="Instead of the recipe's.")
@click.option("--width", type=float, help="The one width of a slimmable model to write. [all, chosen by an input]")
@click.option(
    "--round-channels",
    type=click.Choice(["1", "8", "16"]),
    default="1",
    show_default=True,
    help="Keep channels for whole blocks of so many, where channel masks let them go.",
)
@click.option("--compress", is_flag=True, help="Store weights that are mostly zeros sparse; any runtime restores them.")
@click.option("--quantize", type=click.Choice(["int8"]), help="Store 8-bit weights, and what INT8 networks need.")
@click.option("--calibration-images", type=click.IntRange(1, 1 << 20), help="Images for --quantize. [256]")
@set_option
@json_option
def export(
    run: Path,
    output: Path | None,
    untrained: bool,
    lambda_threshold: float | None,
    conditioning: Any,
    width: float | None,
    round_channels: str,
    compress: bool,
    quantize: Any,
    calibration_images: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write RUN as one ONNX file with lambda as an input, and check it against the model."""
    from deploytool.extras import require_extra

    if untrained and output is None:
        raise click.UsageError("--untrained needs -o FILE")
    if overrides and not untrained:
        raise click.UsageError("--set works with --untrained alone: a trained run's recipe is fixed")
    if calibration_images and not quantize:
        raise click.UsageError("--calibration-images goes with --quantize")
    require_extra("train")
    from deploytool.export import artefact
    from deploytool.export.quantize import lost_accuracy
    from deploytool.recipe import load_recipe
    from deploytool.report.tables import export_table
    from deploytool.training.run import load_run

    options = {
        "conditioning": conditioning,
        "lambda_threshold": lambda_threshold,
        "width": width,
        "round_channels": int(round_channels),
        "compress": compress,
        "quantize": quantize,
        "calibration_images": calibration_images,
    }
    if untrained:
        assert output is not None
        result = artefact.export_untrained(load_recipe(run, overrides), output, **options)
    else:
        result = artefact.export(load_run(run), output, **options)
    warning = lost_accuracy(result.get("quantization", {}).get("rows", []))
    if warning:
        click.echo(f"warning: {warning}", err=True)
    emit(result, as_json, lambda: export_table(result))


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--lambda", "lam", type=float, help="Lambda in [0, 1]; needed where the model takes one.")
@threshold_option
@width_option
@precision_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="FILE's name with -lambda-L by default.")
@json_option
def specialize(
    file: Path,
    lam: float | None,
    lambda_threshold: float | None,
    width: float | None,
    precision: Any,
    output: Path | None,
    as_json: bool,
) -> None:
    """Write the plain ONNX file of one lambda and width."""
    from deploytool.report.tables import key_values
    from deploytool.runtime.specialize import specialize as specialize_file

    result = specialize_file(file, lam, output, lambda_threshold, width, precision)
    emit(result, as_json, lambda: key_values(result))


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--vs", type=click.Path(path_type=Path), help="Another ONNX file, measured interleaved.")
@click.option("--batch", type=click.IntRange(1, 65536), default=1, show_default=True, help="Images per inference.")
@click.option("--generic", is_flag=True, help="Run the graph as stored, lambda as an input.")
@click.option("--sweep", "sweeping", is_flag=True, help="Measure every combination of what follows; each takes a list.")
@click.option("--lambda", "lambdas", type=NumberList(), help="Lambda in [0, 1]. [0; --sweep: 0,0.5,1]")
@click.option("--width", "widths", type=NumberList(), help="Width of a slimmable file. [the widest; --sweep: all]")
@click.option("--precision", "precisions", type=NameList(), help="float32, int8. [the fastest in FILE; --sweep: all]")
@click.option("--threads", type=CountList(), help="CPU threads. [what this machine allows; --sweep: 1,2,4 ... to that]")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for --sweep's files.")
@json_option
def bench(
    file: Path,
    vs: Path | None,
    batch: int,
    generic: bool,
    sweeping: bool,
    lambdas: tuple[float, ...] | None,
    widths: tuple[float, ...] | None,
    precisions: tuple[str, ...] | None,
    threads: tuple[int, ...] | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure latency, throughput and memory of an ONNX FILE on this machine."""
    knobs: dict[str, Any] = {"lambda": lambdas, "width": widths, "precision": precisions, "threads": threads}
    if sweeping:
        if vs is not None or generic:
            raise click.UsageError("--sweep runs one file, specialised; leave out --vs and --generic")
        from deploytool.report.sweep import render, write_sweep
        from deploytool.runtime.sweep import sweep

        swept = sweep(file, lambdas, widths, precisions, threads, batch)
        files = write_sweep(swept, output, lambda line: click.echo(line, err=True)) if output is not None else {}
        written = f"\n\nwritten to {', '.join(files.values())}" if files else ""
        emit({**swept, "files": files}, as_json, lambda: render(swept) + written)
        return
    if output is not None:
        raise click.UsageError("-o needs --sweep")
    for name, values in knobs.items():
        if values is not None and len(values) > 1:
            raise click.UsageError(f"--{name} takes one value; several need --sweep")
    from deploytool.report.tables import key_values
    from deploytool.runtime.bench import bench as bench_file

    lam, width, precision, count = (values[0] if values else None for values in knobs.values())
    result = bench_file(
        file, vs, threads=count, batch=batch, lam=lam, generic=generic, width=width, precision=precision
    )
    emit(result, as_json, lambda: key_values(result))


@cli.command()
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


@cli.command()
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


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--lambda", "lam", type=float, help="Lambda in [0, 1]; needed where the model takes one.")
@threshold_option
@width_option
@precision_option
@threads_option
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Classes to list per image.")
@json_option
def predict(
    file: Path,
    images: tuple[Path, ...],
    lam: float | None,
    lambda_threshold: float | None,
    width: float | None,
    precision: str | None,
    threads: int | None,
    top: int,
    as_json: bool,
) -> None:
    """Classify PNG or JPEG IMAGES with FILE."""
    from deploytool.report.tables import prediction_table
    from deploytool.runtime.predict import predict as predict_images

    predictions = predict_images(file, list(images), lam, lambda_threshold, top, threads, width, precision)
    emit({"predictions": predictions}, as_json, lambda: prediction_table(predictions))


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Run folder; runs/NAME by default.")
@set_option
@device_option
@threads_option
@json_option
def pipeline(
    recipe: Path,
    output: Path | None,
    overrides: tuple[str, ...],
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run all stages of RECIPE; a second call goes on at the first unfinished stage."""
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.device import choose_device, use_threads
    from deploytool.pipeline import run_pipeline
    from deploytool.recipe import load_recipe
    from deploytool.report.summary import summary

    loaded = load_recipe(recipe, overrides)
    use_threads(threads)
    result = run_pipeline(
        loaded,
        output or Path("runs") / loaded.name,
        choose_device(device),
        announce=lambda line: click.echo(line, err=True),
    )
    emit(result, as_json, lambda: summary(result))


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder; runs/NAME-compare by default.")
@click.option("--method", "methods", multiple=True, metavar="NAME", help="Only these, as FLOAT or 'OAT slim'; repeat.")
@click.option("--seeds", type=NumberList(), default="0", show_default=True, help="Train once for each.")
@set_option
@device_option
@threads_option
@json_option
def compare(
    recipe: Path,
    output: Path | None,
    methods: tuple[str, ...],
    seeds: tuple[float, ...],
    overrides: tuple[str, ...],
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train FLOAT, its compressed variants, OAT and PGD-AT on RECIPE's hyper-parameters, and tabulate them."""
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.comparison import compare as compare_methods
    from deploytool.device import choose_device, use_threads
    from deploytool.recipe import load_recipe
    from deploytool.report.comparison import render, write_comparison

    if any(seed != int(seed) or seed < 0 for seed in seeds):
        raise click.UsageError("--seeds takes whole numbers from 0 up, as in 0,1,2")
    loaded = load_recipe(recipe, overrides)
    use_threads(threads)
    run = output or Path("runs") / f"{loaded.name}-compare"
    result = compare_methods(
        loaded,
        run,
        methods,
        [int(seed) for seed in seeds],
        choose_device(device),
        announce=lambda line: click.echo(line, err=True),
    )
    files = write_comparison(result, run)
    emit({**result, "files": files}, as_json, lambda: render(result) + f"\n\nwritten to {', '.join(files.values())}")


@cli.command()
@click.option(
    "--data", default="cifar10", show_default=True, metavar="NAME", help="Data set, as data.name of a recipe."
)
@json_option
def models(data: str, as_json: bool) -> None:
    """List every backbone and method with its parameters and operations."""
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.data.datasets import dataset_info
    from deploytool.models.listing import list_models
    from deploytool.recipe import DataSection
    from deploytool.report.tables import models_table

    rows = list_models(dataset_info(DataSection(name=data)))
    emit({"models": rows}, as_json, lambda: models_table(rows))


@cli.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write instead of stdout.")
@json_option
def schema(output: Path | None, as_json: bool) -> None:
    """Print the JSON Schema of a recipe, for an editor to complete and check with."""
    from deploytool.atomic import write_json
    from deploytool.recipe import json_schema

    if output is None:
        emit(json_schema(), True, str)
    else:
        write_json(output, json_schema())
        emit({"file": str(output)}, as_json, lambda: str(output))
