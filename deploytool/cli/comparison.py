"""`explain compare`: a surrogate explainer against its rivals."""

from pathlib import Path

import click

from deploytool.cli.base import device_option, emit, json_option, threads_option


@click.command()
@click.argument("explainer", type=click.Path(path_type=Path))
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="surrogate, rise, lime, grad-cam, sliding-patch, random or center; repeat. [all]",
)
@click.option("--images", type=click.IntRange(1), default=200, show_default=True, help="Random test images, at most.")
@click.option(
    "--slow-images", type=click.IntRange(1), default=50, show_default=True, help="Of them, for rise and lime."
)
@click.option("--masks", type=click.IntRange(1), default=4000, show_default=True, help="Of RISE, for an image.")
@click.option("--samples", type=click.IntRange(2), default=1000, show_default=True, help="Of LIME, for an image.")
@click.option("--lambda", "lam", type=float, metavar="L", help="The target's. [0, where it takes one]")
@click.option("--target", metavar="TARGET", help="Where the target is now. [as when EXPLAINER was trained]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Draws images, masks and samples.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder. [EXPLAINER/comparison]")
@device_option
@threads_option
@json_option
def compare(
    explainer: Path,
    methods: tuple[str, ...],
    images: int,
    slow_images: int,
    masks: int,
    samples: int,
    lam: float | None,
    target: str | None,
    seed: int,
    output: Path | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare EXPLAINER with RISE, LIME, Grad-CAM, a sliding patch and two controls, on images of its data set.

    Measures insertion, deletion, the maps' intensity and speed (paper 3, tables 3 and 4). Writes tables, curves, and
    the maps over some images for a person to judge. An interrupted comparison goes on with the next method.
    """
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.device import choose_device, use_threads
    from deploytool.explain.comparison import FOLDER
    from deploytool.explain.comparison import compare as measure
    from deploytool.explain.explainer import load_explainer
    from deploytool.explain.rivals import METHODS, ComparePlan
    from deploytool.report.saliency import render, write_comparison

    plan = ComparePlan(methods or METHODS, images, slow_images, masks, samples, seed)
    loaded = load_explainer(explainer)
    use_threads(threads)
    place = output or explainer / FOLDER
    chosen = choose_device(device)
    document, sheet = measure(loaded, plan, lam, chosen, loaded.open_target(target), place)
    files = write_comparison(document, sheet, place)
    emit({**document, "files": files}, as_json, lambda: render(document) + f"\n\nwritten to {place}")
