"""Commands around the ONNX file: `export`, `specialize`, `bench`, `predict`."""

from pathlib import Path
from typing import Any

import click

from deploytool.cli.base import (
    CONDITIONINGS,
    CountList,
    NameList,
    NumberList,
    emit,
    json_option,
    precision_option,
    set_option,
    threads_option,
    threshold_option,
    width_option,
)


@click.command()
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
@click.option(
    "--explainer",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="A surrogate trained on RUN (explain train): its maps become the output `saliency`, in float32.",
)
@click.option(
    "--library",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Libraries of RUN (library build): whether its layers agree becomes the output `cpl`, in float32.",
)
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
    explainer: Path | None,
    library: Path | None,
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
    if untrained and explainer is not None:
        raise click.UsageError("--explainer explains a trained run; leave out --untrained")
    if untrained and library is not None:
        raise click.UsageError("--library is of a trained run; leave out --untrained")
    require_extra("train")
    from deploytool.explain.explainer import load_explainer
    from deploytool.export import artefact
    from deploytool.export.quantize import lost_accuracy, moved_coverage
    from deploytool.library.folder import load_library
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
        surrogate = None if explainer is None else load_explainer(explainer)
        libraries = None if library is None else load_library(library)
        result = artefact.export(load_run(run), output, explainer=surrogate, library=libraries, **options)
    rows = result.get("quantization", {}).get("rows", [])
    for warning in (lost_accuracy(rows), moved_coverage(rows)):
        if warning:
            click.echo(f"warning: {warning}", err=True)
    emit(result, as_json, lambda: export_table(result))


@click.command()
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


@click.command()
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


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--lambda", "lam", type=float, help="Lambda in [0, 1]; needed where the model takes one.")
@threshold_option
@width_option
@precision_option
@threads_option
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Classes to list per image.")
@click.option("--t-rsn", type=float, help="Share of reasoning labels that must agree, in [0, 1]. [FILE's own]")
@click.option(
    "--saliency",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write each image with its saliency map laid over it, as PNG.",
)
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
    t_rsn: float | None,
    saliency: Path | None,
    as_json: bool,
) -> None:
    """Classify PNG or JPEG IMAGES with FILE; reasoning labels and libraries give verdicts beside."""
    from deploytool.report.tables import prediction_table
    from deploytool.runtime.predict import predict as predict_images

    options = (lam, lambda_threshold, top, threads, width, precision, t_rsn, saliency)
    predictions = predict_images(file, list(images), *options)
    emit({"predictions": predictions}, as_json, lambda: prediction_table(predictions))
