"""Commands that train: `train`, `pipeline`, `compare`."""

from pathlib import Path

import click

from deploytool.cli.base import NumberList, device_option, emit, json_option, set_option, threads_option


@click.command()
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


@click.command()
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


@click.command()
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
