"""Commands about reasoning labels: `labels`."""

from pathlib import Path

import click

from deploytool.cli.base import NameList, emit, json_option, printable

ADDRESS = "https://api.conceptnet.io"


@click.command()
@click.option(
    "--conceptnet", type=click.Path(path_type=Path), metavar="FILE", help="ConceptNet 5's assertions, plain or gzip."
)
@click.option("--api", is_flag=False, flag_value=ADDRESS, metavar="[URL]", help=f"ConceptNet's REST API. [{ADDRESS}]")
@click.option("--wordnet", type=click.Path(path_type=Path), metavar="DIR", help="WordNet's data files, or nltk_data.")
@click.option("--map", "file", type=click.Path(path_type=Path), metavar="FILE", help="Check a label map in YAML.")
@click.option("--classes", type=NameList(), help="Class names.")
@click.option("--data", metavar="NAME", help="The classes of a data set, such as cifar10.")
@click.option("--per-class", type=click.IntRange(1, 20_000), metavar="N", help="Labels of each class. [20; --map: all]")
@click.option("--synonym", "synonyms", multiple=True, metavar="CLASS=NAME", help="Another name of a class; repeat.")
@click.option("--synonyms", "automatic", is_flag=True, help="Take ConceptNet's own synonyms, too.")
@click.option("--sense", "senses", multiple=True, metavar="CLASS=N", help="--wordnet: which sense; repeat. [1]")
@click.option("--language", default="en", show_default=True, help="Of ConceptNet's words.")
@click.option("--strict", is_flag=True, help="Refuse malformed lines instead of skipping and counting them.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="--api: keeps its answers. [the user's cache]",
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="YAML file to write.")
@json_option
def labels(
    conceptnet: Path | None,
    api: str | None,
    wordnet: Path | None,
    file: Path | None,
    classes: tuple[str, ...] | None,
    data: str | None,
    per_class: int | None,
    synonyms: tuple[str, ...],
    automatic: bool,
    senses: tuple[str, ...],
    language: str,
    strict: bool,
    cache: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Build reasoning labels of classes, from one source, or check a map of them."""
    if sum(source is not None for source in (conceptnet, api, wordnet, file)) != 1:
        raise click.UsageError("give one of --conceptnet FILE, --api [URL], --wordnet DIR and --map FILE")
    if classes and data is not None:
        raise click.UsageError("--classes and --data exclude each other")
    if file is not None and (synonyms or automatic or strict):
        raise click.UsageError("--synonym, --synonyms and --strict are not for --map")
    if wordnet is not None and (automatic or strict):
        raise click.UsageError("--synonyms and --strict are not for --wordnet, which knows the synonyms of a sense")
    if wordnet is None and senses:
        raise click.UsageError("--sense needs --wordnet")
    if api is None and cache is not None:
        raise click.UsageError("--cache needs --api")
    from deploytool.labels.build import Wanted, from_api, from_conceptnet, from_map, from_wordnet
    from deploytool.labels.classes import class_names
    from deploytool.labels.fetching import Fetcher
    from deploytool.labels.files import save_labels
    from deploytool.labels.subjects import Subjects, parse_synonyms
    from deploytool.labels.wordnet import parse_senses
    from deploytool.report.labels import render

    if file is not None:
        built = from_map(file, class_names(classes, data) if classes or data is not None else None, per_class)
    else:
        subjects = Subjects(class_names(classes, data), parse_synonyms(synonyms))
        wanted = Wanted(subjects, per_class or 20, language, automatic, strict, parse_senses(senses))
        if conceptnet is not None:
            built = from_conceptnet(conceptnet, wanted)
        elif api is not None:
            built = from_api(Fetcher(api, cache), wanted)
        else:
            assert wordnet is not None
            built = from_wordnet(wordnet, wanted)
    for note in built.notes:
        click.echo(f"warning: {printable(note)}", err=True)
    document = built.to_dict()
    written = ""
    if output is not None:
        save_labels(output, built.labels)
        document["file"] = str(output)
        written = f"\n\nwritten to {output}"
    emit(document, as_json, lambda: render(built) + written)
