"""Commands that explain answers, and measure explanations: `reasoning`, `stability`."""

from pathlib import Path
from typing import Any

import click

from deploytool.cli.base import (
    CONDITIONINGS,
    CountList,
    NumberList,
    device_option,
    emit,
    json_option,
    set_option,
    threads_option,
)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--method", "methods", type=click.Choice(["sliding-patch", "grad-cam"]), multiple=True, help="Repeat. [both]"
)
@click.option("--patch", "sizes", type=CountList(), default="4,2", show_default=True, help="Its two sizes in pixels.")
@click.option("--stride", type=int, default=2, show_default=True, help="Pixels from one patch to the next.")
@click.option("--sigma", type=float, default=0.5, show_default=True, help="Blur before Grad-CAM's second map, pixels.")
@click.option("--layer", metavar="NAME", help="The layer that Grad-CAM reads. [the last convolutional one]")
@click.option("--images", type=click.IntRange(1), default=1000, show_default=True, help="Random test images, at most.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Draws the images.")
@click.option("--lambda", "lambdas", type=NumberList(), help="Lambdas in [0, 1]. [recipe's]")
@click.option("--lambda-threshold", "thresholds", type=NumberList(), help="0, 0.5 or both. [its method's]")
@click.option(
    "--conditioning", "conditionings", type=CONDITIONINGS, multiple=True, help="Repeat for both. [its method's]"
)
@click.option("--width", "widths", type=NumberList(), help="Widths of a slimmable model. [all it has]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder for the table and its figures."
)
@device_option
@threads_option
@json_option
def stability(
    run: Path,
    methods: tuple[Any, ...],
    sizes: tuple[int, ...],
    stride: int,
    sigma: float,
    layer: str | None,
    images: int,
    seed: int,
    lambdas: tuple[float, ...] | None,
    thresholds: tuple[float, ...] | None,
    conditionings: tuple[Any, ...],
    widths: tuple[float, ...] | None,
    output: Path | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how stable RUN's heat maps are when the sliding patch shrinks and when the image is blurred."""
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.device import choose_device, use_threads
    from deploytool.explain.study import METHODS, Plan, examples, study_settings
    from deploytool.explain.study import stability as measure
    from deploytool.report.stability import render, write_stability
    from deploytool.training.run import load_run

    plan = Plan(methods or METHODS, sizes, stride, sigma, layer, images, seed)
    loaded = load_run(run)
    use_threads(threads)
    settings = study_settings(loaded.recipe, lambdas, thresholds, conditionings or None, widths)
    chosen = choose_device(device)
    document = measure(loaded, plan, settings, chosen)
    if output is None:
        emit(document, as_json, lambda: render(document))
        return
    files = write_stability(document, examples(loaded, plan, settings, device=chosen), output)
    emit({**document, "files": files}, as_json, lambda: render(document) + f"\n\nwritten to {output}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--alpha", "alphas", type=NumberList(), default="0.25,0.5,0.75", show_default=True, help="Of eq. 3.")
@click.option(
    "--t-rsn", "thresholds", type=NumberList(), default="0.9,1", show_default=True, help="Thresholds, each in [0, 1]."
)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME",
    help="As of evaluate; repeat. [fgsm, pgd-20, pgd-20:iterate=last, and consistent-20 on class and reasons]",
)
@click.option("--images", type=click.IntRange(1), help="At most so many test images. [recipe's]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Run folder, where RUN is a recipe. [runs/NAME]")
@set_option
@device_option
@threads_option
@json_option
def reasoning(
    run: Path,
    alphas: tuple[float, ...],
    thresholds: tuple[float, ...],
    attacks: tuple[str, ...],
    images: int | None,
    output: Path | None,
    overrides: tuple[str, ...],
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure what reasoning labels accept and detect on RUN, a run or a recipe with them (paper 1).

    Trains the same recipe at the other alphas and without reasoning labels, in RUN/reasoning; an interrupted study goes
    on where it stopped. Measures every width, and lambda at 0 and 1. Writes tables, Figs. 1 and 2, and coverage against
    accuracy there too.
    """
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.device import choose_device, use_threads
    from deploytool.reasoning import ATTACKS, Grid
    from deploytool.reasoning import reasoning as study
    from deploytool.recipe import load_recipe
    from deploytool.report.reasoning import render, write_reasoning
    from deploytool.training.run import load_run

    if not run.is_file() and (overrides or output is not None):
        raise click.UsageError("--set and -o go with a recipe: a trained run's recipe and folder are fixed")
    grid = Grid(alphas, thresholds, attacks or ATTACKS, images)
    source = load_recipe(run, overrides) if run.is_file() else load_run(run)
    use_threads(threads)
    result = study(source, grid, output, choose_device(device), announce=lambda line: click.echo(line, err=True))
    files = write_reasoning(result, Path(result["run"]) / "reasoning")
    emit({**result, "files": files}, as_json, lambda: render(result) + f"\n\nwritten to {', '.join(files.values())}")
