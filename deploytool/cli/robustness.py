"""Commands that measure robustness: `evaluate`, `verify`, `robustness`."""

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
from deploytool.errors import InputError

NOISES = click.Choice(["frozen", "redrawn", "none"])


@click.command()
@click.argument("target", metavar="RUN|FILE", type=click.Path(path_type=Path))
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME[:KEY=V,..]",
    help="fgsm, pgd-K, consistent-K, deepfool, cw, square, autoattack ...; repeat. [recipe's; FILE: square]",
)
@click.option("--eps", metavar="E", help="L-infinity radius, as in 8/255. [recipe's; FILE: 8/255]")
@click.option("--eps-l2", metavar="E", help="L2 radius. [recipe's; FILE: 0.5]")
@click.option("--lambda", "lambdas", type=NumberList(), help="Lambdas in [0, 1]. [recipe's]")
@click.option("--lambda-threshold", "thresholds", type=NumberList(), help="0, 0.5 or both. [recipe's]")
@click.option("--conditioning", "conditionings", type=CONDITIONINGS, multiple=True, help="Repeat for both. [recipe's]")
@click.option("--noise", type=NOISES, help="FLOAT's noise: redrawn draws it for every batch. [as deployed]")
@click.option("--width", "widths", type=NumberList(), help="Widths of a slimmable model. [all it has]")
@click.option("--images", type=click.IntRange(1), help="At most so many images.")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True, help="Which images.")
@click.option("--data", metavar="NAME", help="FILE's images, as data.name of a recipe: cifar10, npz:PATH ...")
@click.option("--root", metavar="FOLDER", help="--data: where the data set lies.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of FILE's attacks. [0; RUN: recipe's]")
@click.option("--save", type=click.Path(file_okay=False, path_type=Path), help="Folder for the adversarial examples.")
@click.option("--adaptive", is_flag=True, help="Attack what decides on acceptance too: reasoning labels, CPL.")
@device_option
@threads_option
@json_option
def evaluate(
    target: Path,
    attacks: tuple[str, ...],
    eps: str | None,
    eps_l2: str | None,
    lambdas: tuple[float, ...] | None,
    thresholds: tuple[float, ...] | None,
    conditionings: tuple[Any, ...],
    noise: Any,
    widths: tuple[float, ...] | None,
    images: int | None,
    split: Any,
    data: str | None,
    root: str | None,
    seed: int | None,
    save: Path | None,
    adaptive: bool,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure clean and robust accuracy of a RUN over attacks, lambdas and thresholds.

    Or of an ONNX FILE on --data, by attacks that need no gradient. Prints warnings where the figures look better than
    the network is.
    """
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.device import choose_device, use_threads
    from deploytool.report.acceptance import acceptance_table
    from deploytool.report.tables import accuracy_table

    radii = _radius("eps", eps), _radius("eps-l2", eps_l2)
    if target.is_file():
        if thresholds or conditionings or noise or save or adaptive or split != "test":
            raise click.UsageError("an ONNX FILE takes --attack, --eps, --lambda, --width, --images, --data, --seed")
        if data is None:
            raise click.UsageError("an ONNX FILE needs --data, such as cifar10 or npz:PATH")
        from deploytool.evaluation.files import evaluate_file, file_base
        from deploytool.recipe import DataSection

        section = DataSection(name=data, root=root)
        names = attacks or ("square",)
        result = evaluate_file(target, section, names, file_base(*radii), lambdas, widths, images, seed or 0, threads)
    else:
        if data is not None or root is not None or seed is not None:
            raise click.UsageError("--data, --root and --seed are for ONNX files; a run has its recipe's")
        from deploytool.attacks.registry import recipe_base
        from deploytool.evaluation import evaluate as evaluate_run
        from deploytool.evaluation import evaluation_settings
        from deploytool.training.run import load_run

        run = load_run(target)
        use_threads(threads)
        settings = evaluation_settings(run.recipe, lambdas, thresholds, conditionings or None, widths, noise)
        base = recipe_base(run.recipe, *radii)
        result = evaluate_run(
            run, attacks, settings, images, choose_device(device), base, save, split, adaptive=adaptive
        )
    for finding in result.findings:
        click.echo(f"warning: {finding.message}", err=True)
    judged = bool(result.rows) and "coverage" in result.rows[0]
    emit(
        result.to_dict(),
        as_json,
        lambda: accuracy_table(result.rows) + (f"\n\n{acceptance_table(result.rows)}" if judged else ""),
    )


@click.command()
@click.argument("examples", type=click.Path(path_type=Path))
@click.argument("target", metavar="RUN|FILE", type=click.Path(path_type=Path))
@click.option("--lambda", "lam", type=float, metavar="L", help="Lambda in [0, 1]. [the one attacked]")
@click.option("--width", type=float, metavar="W", help="Width of a slimmable model. [the one attacked]")
@device_option
@json_option
def verify(examples: Path, target: Path, lam: float | None, width: float | None, device: str, as_json: bool) -> None:
    """Check saved adversarial EXAMPLES again: distances, and what a RUN or an ONNX FILE answers to them.

    On the network that was attacked everything on record must hold; another one is told how much transfers.
    """
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.device import choose_device
    from deploytool.evaluation.saved import verification_document, verify_examples
    from deploytool.report.tables import key_values

    chosen = choose_device(device)
    result, record = verify_examples(examples, target, lam, width, chosen)
    document = verification_document(examples, result, record, chosen)
    emit(document, as_json, lambda: key_values(document))
    if not result.sound or (result.same_model and document["holds"] is False):
        raise InputError(f"{examples}: what it says does not hold; attack again with evaluate --save")


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder; runs/NAME-robustness by default.")
@click.option("--seeds", type=CountList(), default="0", show_default=True, help="Train once for each.")
@set_option
@device_option
@threads_option
@json_option
def robustness(
    recipe: Path,
    output: Path | None,
    seeds: tuple[int, ...],
    overrides: tuple[str, ...],
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare regularisations on RECIPE: accuracy under attack, stability of attribution, density (paper 2).

    Trains every backbone with every penalty, attacks it, retrains it on the attacked images and attacks it again. An
    interrupted study goes on where it stopped.
    """
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.device import choose_device, use_threads
    from deploytool.recipe import load_recipe
    from deploytool.report.robustness import render, write_robustness
    from deploytool.robustness import robustness as study

    if any(seed < 0 for seed in seeds):
        raise click.UsageError("--seeds takes whole numbers from 0 up, as in 0,1,2")
    loaded = load_recipe(recipe, overrides)
    use_threads(threads)
    folder = output or Path("runs") / f"{loaded.name}-robustness"
    result = study(loaded, folder, seeds, choose_device(device), announce=lambda line: click.echo(line, err=True))
    files = write_robustness(result, folder)
    emit({**result, "files": files}, as_json, lambda: render(result) + f"\n\nwritten to {', '.join(files.values())}")


def _radius(name: str, text: str | None) -> float | None:
    """A radius such as 8/255."""
    from deploytool.recipe import parse_fraction

    if text is None:
        return None
    try:
        return float(parse_fraction(text))
    except ValueError:
        raise click.UsageError(f"--{name} (={text[:40]!r}) must be a number such as 8/255 or 0.031") from None
