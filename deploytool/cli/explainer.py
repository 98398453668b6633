"""The group `explain`: surrogate explainers, `explain train`, `explain export` and `explain compare`."""

from pathlib import Path

import click

from deploytool.cli import comparison
from deploytool.cli.base import device_option, emit, json_option, set_option, threads_option


@click.group()
def explain() -> None:
    """Train, export and compare networks that draw what a classifier looks at (paper 3)."""


explain.add_command(comparison.compare)


@explain.command()
@click.argument("target")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Explainer's folder; runs/NAME by default.")
@click.option("--resume", is_flag=True, help="Go on from the explainer's last checkpoint.")
@set_option
@device_option
@threads_option
@json_option
def train(
    target: str,
    recipe: Path,
    output: Path | None,
    resume: bool,
    overrides: tuple[str, ...],
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train a surrogate explainer of TARGET by RECIPE; TARGET is a run, an ONNX file or torchvision:NAME."""
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.device import choose_device, use_threads
    from deploytool.explain.recipe import ExplainerRecipe
    from deploytool.explain.target import open_target
    from deploytool.report.tables import explainer_table
    from deploytool.training.surrogate import train_explainer

    loaded = ExplainerRecipe.load(recipe, overrides)
    use_threads(threads)
    folder = output or Path("runs") / loaded.name
    result = train_explainer(open_target(target), loaded, folder, resume, choose_device(device))
    emit(result, as_json, lambda: explainer_table(result))


@explain.command()
@click.argument("explainer", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; EXPLAINER/model.onnx by default.")
@click.option("--target", help="What it explains, where that is no longer under the name it was trained by.")
@json_option
def export(explainer: Path, output: Path | None, target: str | None, as_json: bool) -> None:
    """Write EXPLAINER as an ONNX file of its own: output `saliency`, and as `logits` its student's, not its target's.

    For targets that are no runs; a run takes its explainer into its own file: deploytool export RUN --explainer.
    """
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.explain.explainer import load_explainer
    from deploytool.export.explainer import export_explainer
    from deploytool.report.tables import key_values

    result = export_explainer(load_explainer(explainer), output, target)
    emit(result, as_json, lambda: key_values(result))
