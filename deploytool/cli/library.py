"""The group `library`: library networks of a classifier, `library build`, `predict`, `confusion` and `detect`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploytool.cli.base import NumberList, device_option, emit, json_option, set_option, threads_option

if TYPE_CHECKING:
    from deploytool.explain.target import Target
    from deploytool.library.folder import Library

F = TypeVar("F", bound=Callable[..., Any])
NO_ATTACK = "none"  # of --attack: foreign images alone
ADVICE = "choose another with -o FOLDER"


@click.group()
def library() -> None:
    """Tell what a classifier's hidden layers have seen, and whether they agree on an image (paper 4)."""


def library_options(folder: str) -> Callable[[F], F]:
    """Add what is asked of libraries that are built: where they are, at which lambda, and where the answer goes."""
    options = (
        click.argument("target"),
        click.option(
            "--library", "path", type=click.Path(path_type=Path), metavar="FOLDER", help="[TARGET's own: RUN/library]"
        ),
        click.option("--lambda", "lam", type=float, metavar="L", help="The target's. [the first they were built at]"),
        click.option(
            "-o", "--output", type=click.Path(path_type=Path, file_okay=False), help=f"Folder. [LIBRARY/{folder}]"
        ),
        device_option,
        threads_option,
        json_option,
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


active_option = click.option(
    "--active", type=click.IntRange(1), metavar="K", help="Most active nodes that predict. [the recipe's]"
)


@library.command()
@click.argument("target")
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the libraries. [RUN/library]")
@click.option("--resume", is_flag=True, help="Go on with an interrupted build.")
@set_option
@device_option
@threads_option
@json_option
def build(
    target: str,
    recipe: Path | None,
    output: Path | None,
    resume: bool,
    overrides: tuple[str, ...],
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Build libraries of TARGET's hidden layers by RECIPE; TARGET is a run, an ONNX file or torchvision:NAME.

    Without RECIPE: the last layer of each size of feature map and the logits, 512 patterns each at most.
    """
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.device import choose_device, use_threads
    from deploytool.explain.target import open_target
    from deploytool.library.build import build_library
    from deploytool.library.folder import default_folder
    from deploytool.library.recipe import LibraryRecipe
    from deploytool.report.library import build_table

    if recipe is None:
        loaded = LibraryRecipe.make({"name": _name(target)}, overrides)
    else:
        loaded = LibraryRecipe.load(recipe, overrides)
    use_threads(threads)
    folder = output or default_folder(target)
    opened = open_target(target, loaded.width)
    result = build_library(opened, loaded, folder, resume, str(choose_device(device)))
    emit(result, as_json, lambda: build_table(result))


@library.command()
@library_options("predict")
@active_option
def predict(
    target: str,
    path: Path | None,
    lam: float | None,
    output: Path | None,
    device: str,
    threads: int | None,
    as_json: bool,
    active: int | None,
) -> None:
    """Measure how often the library of each layer foretells what TARGET answers to a test image (figures 2 and 4)."""
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.atomic import writable_folder
    from deploytool.device import choose_device, use_threads
    from deploytool.library import agreement
    from deploytool.report.library import render_agreement, write_agreement

    own, opened, lam = _open(target, path, lam)
    agreement.check_enough(own.layers(lam), active or own.recipe.active)
    use_threads(threads)
    place = writable_folder(output or own.path / "predict", ADVICE)
    document = agreement.predict(own, opened, lam, active, str(choose_device(device)))
    files = write_agreement(document, place)
    emit({**document, "files": files}, as_json, lambda: render_agreement(document) + f"\n\nwritten to {place}")


@library.command()
@library_options("confusion")
@active_option
@click.option(
    "--theta", "thetas", type=NumberList(), help="Thresholds to draw. [the lowest and the highest of each layer]"
)
def confusion(
    target: str,
    path: Path | None,
    lam: float | None,
    output: Path | None,
    device: str,
    threads: int | None,
    as_json: bool,
    active: int | None,
    thetas: tuple[float, ...] | None,
) -> None:
    """Measure which classes the library of each layer of TARGET mixes up on test images (figure 3)."""
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.atomic import writable_folder
    from deploytool.device import choose_device, use_threads
    from deploytool.errors import InputError
    from deploytool.library import agreement
    from deploytool.library.confusion import confusion as measure
    from deploytool.report.library import render_confusion, write_confusion

    own, opened, lam = _open(target, path, lam)
    agreement.check_enough(own.layers(lam), active or own.recipe.active)
    known = sorted({theta for layer in own.layers(lam) for theta in layer.thetas})
    for theta in thetas or ():
        if theta not in known:
            raise InputError(f"theta (={theta:g}): {own.path} has libraries at {', '.join(f'{t:g}' for t in known)}")
    use_threads(threads)
    place = writable_folder(output or own.path / "confusion", ADVICE)
    document = measure(own, opened, lam, active, str(choose_device(device)))
    files = write_confusion(document, place, thetas)
    emit({**document, "files": files}, as_json, lambda: render_confusion(document) + f"\n\nwritten to {place}")


@library.command()
@library_options("detection")
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME",
    help=f"As of evaluate; {NO_ATTACK}: foreign images alone; repeat. [the paper's: pgd-40:iterate=last]",
)
@click.option("--eps", type=NumberList(), help="Radii, in units of [0, 1]. [0.01,0.02,0.03,0.06,0.1]")
@click.option("--foreign", multiple=True, metavar="NAME", help="Another data set's test images, or noise; repeat.")
@click.option("--images", type=click.IntRange(1), help="Test images, at most; as many choose the combination. [200]")
@click.option("--adaptive", type=click.IntRange(0), metavar="STEPS", help="Of the attack that knows the libraries. [0]")
@click.option("--seed", type=click.IntRange(0), help="Draws attacks and foreign images. [0]")
def detect(
    target: str,
    path: Path | None,
    lam: float | None,
    output: Path | None,
    device: str,
    threads: int | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Measure how well agreement of TARGET's layers tells attacked and foreign images from clean ones (figure 5).

    Beside it: the largest softmax probability, the distance to the nearest training features, and a combination. That
    is fitted on other images, attacked by the first attack and by pgd-40 at each eps: its AUROC is for attacks and
    radii that it knows. An interrupted measurement goes on with the next attack. An ONNX file has no gradients:
    attack it with square, or with none.
    """
    from deploytool.extras import require_extra

    require_extra("train")
    from deploytool.atomic import writable_folder
    from deploytool.device import choose_device, use_threads
    from deploytool.library.agreement import check_enough
    from deploytool.library.detection import FOLDER, DetectPlan, check_gradients
    from deploytool.library.detection import detect as measure
    from deploytool.report.library import render_detection, write_detection

    plan = DetectPlan(**_given(wanted))
    own, opened, lam = _open(target, path, lam)
    check_gradients(plan, opened)
    check_enough(own.layers(lam), own.recipe.active)
    use_threads(threads)
    place = writable_folder(output or own.path / FOLDER, ADVICE)
    document = measure(own, opened, plan, lam, place, str(choose_device(device)))
    files = write_detection(document, place)
    emit({**document, "files": files}, as_json, lambda: render_detection(document) + f"\n\nwritten to {place}")


def _open(target: str, path: Path | None, lam: float | None) -> tuple["Library", "Target", float | None]:
    """The libraries of a target, itself and lambda; what is wrong with them is said before a folder is made."""
    from deploytool.library.agreement import default_lambda
    from deploytool.library.folder import default_folder, load_library

    own = load_library(path or default_folder(target))
    opened = own.open_target(target)
    lam = default_lambda(own, lam)
    opened.network(lam)
    return own, opened, lam


def _given(wanted: dict[str, Any]) -> dict[str, Any]:
    """The options of a plan that were given; its own defaults stand for the others."""
    given = {name: value for name, value in wanted.items() if value not in (None, ())}
    if given.get("attacks") == (NO_ATTACK,):
        given["attacks"] = ()
    return given


def _name(target: str) -> str:
    """A recipe's name for a target: its folder's, its file's or torchvision's, without what names cannot hold."""
    from deploytool.explain.target import TORCHVISION

    path = Path(target.removeprefix(TORCHVISION)).resolve()
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", path.name if path.is_dir() else path.stem)
    return (plain.lstrip("._-") or "library")[:64]
