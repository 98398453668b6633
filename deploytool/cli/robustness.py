"""Commands that measure robustness: `evaluate`."""

from pathlib import Path
from typing import Any

import click

from deploytool.cli.base import CONDITIONINGS, NumberList, device_option, emit, json_option, threads_option


@click.command()
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
