"""Commands that list what there is: `models`, `schema`."""

from pathlib import Path

import click

from deploytool.cli.base import emit, json_option


@click.command()
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


@click.command()
@click.option("--explainer", is_flag=True, help="Of an explainer's recipe instead.")
@click.option("--library", is_flag=True, help="Of libraries' recipe instead.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write instead of stdout.")
@json_option
def schema(explainer: bool, library: bool, output: Path | None, as_json: bool) -> None:
    """Print the JSON Schema of a recipe, for an editor to complete and check with."""
    if explainer and library:
        raise click.UsageError("--explainer and --library are two recipes; ask for one of them")
    from deploytool.atomic import write_json
    from deploytool.documents import Document
    from deploytool.explain.recipe import ExplainerRecipe
    from deploytool.library.recipe import LibraryRecipe
    from deploytool.recipe import Recipe

    kind: type[Document] = ExplainerRecipe if explainer else LibraryRecipe if library else Recipe
    if output is None:
        emit(kind.json_schema(), True, str)
    else:
        write_json(output, kind.json_schema())
        emit({"file": str(output)}, as_json, lambda: str(output))
