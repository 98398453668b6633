"""`library build`: the libraries of a network, from its activity on training images.

Images stream through the network in blocks, several times; activities are never held beyond a block:

| pass | what | when |
| --- | --- | --- |
| statistics | mean and deviation of each channel | layers with batch-norm modulation |
| search | thresholds whose libraries have the wanted sizes | layers that name a size |
| patterns | which patterns are stored, in the images' order (eq. 1) | always |
| connections | their functional connections to the network's answers (eq. 2) | always |

Then CPL of held-out clean images gives the verdict's threshold. All layers, and all thresholds of a layer, share each
pass. An interrupted build goes on at the last block that it wrote down, with the result of an uninterrupted one; Ctrl-C
writes the last whole block down (of a search, the last round).
Libraries are made on the CPU; the network answers on `device`.
"""

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploytool.atomic import write_json
from deploytool.data.datasets import load_dataset
from deploytool.data.images import Dataset
from deploytool.errors import DeploytoolError, RecipeError, RunError
from deploytool.explain.target import Target
from deploytool.library.calibration import lower_threshold, split
from deploytool.library.folder import Calibrated, Layer, Library, library_path, load_library, save_library
from deploytool.library.networks import check_active, correlate
from deploytool.library.novelty import Shelf
from deploytool.library.patterns import Reading, sampled, scale
from deploytool.library.progress import Progress, Search, load_progress, progress_path, save_progress
from deploytool.library.recipe import FILE, LayerSection, LibraryRecipe
from deploytool.library.streams import Block, block_size, blocks, cpl_of
from deploytool.library.taps import Watched, default_layers, watch
from deploytool.progress import Progress as Bar
from deploytool.progress import progress_bar
from deploytool.recipe import load_recipe
from deploytool.training.run import create_run

Row = dict[str, Any]

RESULT = "library.json"
SAVE_S = 30.0  # between two notes of where a build stands, at least
SAVE_SHARE = 0.05  # of the time, at most, goes into them


def build_library(
    target: Target, recipe: LibraryRecipe, folder: str | Path, resume: bool = False, device: str = "cpu"
) -> Row:
    """Build the libraries of a network into a folder.

    Args:
        target: the network.
        recipe: which libraries; its target, data and layers are filled in here.
        folder: see `deploytool.library.folder`.
        resume: go on with an interrupted build.
        device: torch device that the network answers on.

    Returns:
        `library` (the folder), `target`, `images`, `seconds` (of the call that ended the build), `size_mb` of the file,
        `layers`: for each condition, layer and threshold `{layer, lambda, theta, size, features, seconds, rounding_max,
        rounding_mean}`; lambda is None where libraries are shared or the target takes none, seconds are those of the
        layer's search for theta, patterns and connections at all its thresholds, without the network's own and the
        statistics', rounding is 1 - cosine similarity of stored patterns to what they were;
        `calibration`: `{lambda, threshold, false_alarm_rate, images}`, none with a single layer.

    Raises:
        RunError: the folder cannot be used, or target or images changed. DataError: the data set cannot be loaded, or
        is not one that the target classifies.
        RecipeError: the recipe names no data and the target is no run.
        InputError: a layer is unknown or gives no numbers, an activity is 0 everywhere, NaN or infinite.
    """
    began = time.monotonic()
    folder = Path(folder)
    recipe, data = fill_in(recipe, target)
    train = data.train.head(recipe.images)
    lambdas = _lambdas(recipe, target)
    image = data.test.batch(slice(0, 8))[0]
    names = [section.layer for section in recipe.layers]
    network = {lam: watch(target, names, image, lam, device) for lam in lambdas}
    held = library_path(folder) if library_path(folder).exists() else progress_path(folder)
    create_run(folder, recipe, resume, FILE, held, "library")
    if library_path(folder).exists():
        finished = load_library(folder)
        finished.check_target(target)
        return _result(finished, len(train), began)
    progress = Progress.fresh(recipe, target.digest, train)
    if resume and held.exists():
        progress = load_progress(folder, recipe, progress)
    groups = [list(lambdas)] if recipe.condition.libraries == "shared" else [[lam] for lam in lambdas]
    builder = _Builder(folder, recipe, train, network, len(data.info.classes), progress)
    for number in range(len(progress.finished), len(groups)):
        builder.build(groups[number], f"{number + 1}/{len(groups)}" if len(groups) > 1 else "")
    conditions = tuple(progress.finished)
    library = Library(folder, recipe, data.info, target.digest, target.switch_at, lambdas, conditions)
    library = replace(library, calibration=_calibration(library, network, data))
    save_library(library)
    return _result(library, len(train), began)


def _result(library: Library, images: int, began: float) -> Row:
    """What a build prints, written beside its libraries; what an interrupted one left is removed."""
    result = {
        "library": str(library.path),
        "target": library.target,
        "images": images,
        "seconds": round(time.monotonic() - began, 3),
        "size_mb": round(library_path(library.path).stat().st_size / 1e6, 6),
        "layers": _rows(library),
        "calibration": [
            {"lambda": each.lam, **{key: value for key, value in vars(each).items() if key != "lam"}}
            for each in library.calibration
        ],
    }
    result["seconds"] = _known_seconds(library.path / RESULT, result) or result["seconds"]
    write_json(library.path / RESULT, result)
    progress_path(library.path).unlink(missing_ok=True)
    return result


def _known_seconds(file: Path, result: Row) -> float | None:
    """What a file says that these libraries took; None where it is absent, damaged or other libraries'."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        same = known | {"seconds": 0, "library": ""} == result | {"seconds": 0, "library": ""}
        return float(known["seconds"]) if same else None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def fill_in(recipe: LibraryRecipe, target: Target) -> tuple[LibraryRecipe, Dataset]:
    """The recipe with target, data and layers, and its data set.

    Raises:
        RecipeError: it names no data and the target is no run; DataError and InputError as `build_library`.
    """
    section, place = recipe.data, Path(target.name)
    if section is None:
        if not (place.is_absolute() and (place / "recipe.yaml").is_file()):  # other names are those of no folder
            raise RecipeError(
                f"data is missing, and target {target.name} is no run that says it; name it: --set data.name=npz:PATH"
            )
        section = load_recipe(place / "recipe.yaml").data
    data = load_dataset(section)
    image = data.test.batch(slice(0, 8))[0]
    target.check_data(data.info, image, logits=False)
    layers = recipe.layers or [LayerSection(layer=name) for name in default_layers(target, image)]
    layers = [each if each.theta or each.size else each.model_copy(update={"size": recipe.size}) for each in layers]
    return recipe.model_copy(update={"target": target.name, "data": section, "layers": layers}), data


def _lambdas(recipe: LibraryRecipe, target: Target) -> tuple[float | None, ...]:
    return tuple(recipe.condition.lambdas) if target.takes_lambda else (None,)


class _Builder:
    """The passes; what they have found is in `progress`."""

    def __init__(
        self,
        folder: Path,
        recipe: LibraryRecipe,
        train: Any,
        network: dict[float | None, Watched],
        classes: int,
        progress: Progress,
    ) -> None:
        self.folder, self.recipe, self.train, self.network = folder, recipe, train, network
        self.classes, self.progress = classes, progress
        first = next(iter(network.values()))
        image = train.batch(slice(0, 1))[0]
        self.size = block_size(first, image)
        if progress.block and progress.size != self.size:
            raise RunError(
                f"{folder}: blocks of its build had {progress.size} images and have {self.size} now; build on with the "
                "version of deploytool that began, or name another folder with -o"
            )
        progress.size = self.size
        _, activity = first(image)
        self.features = [activity[section.layer].numel() for section in recipe.layers]
        self.next_note = time.monotonic() + SAVE_S

    def build(self, lambdas: list[float | None], note: str) -> None:
        """The libraries of one condition, from its activity at some lambdas, one after the other."""
        state, layers = self.progress, self.recipe.layers
        self.lambdas, self.note = lambdas, note
        if state.phase == "statistics":
            if any(section.modulation != "none" for section in layers):
                self._pass(self._add_statistics)
            state.enter("search", search=[None if section.size is None else Search() for section in layers])
        self.readings = [self._reading(place, section) for place, section in enumerate(layers)]
        while state.phase == "search" and not all(search is None or search.done for search in state.search):
            self._search()
        if state.phase == "search":
            state.enter("patterns", shelves=[self._shelf(place, section) for place, section in enumerate(layers)])
        if state.phase == "patterns":
            self._pass(self._offer)
            self._check_active()
            sums = [torch.zeros(shelf.size, self.classes, dtype=torch.float64) for shelf in state.shelves]
            state.enter("connections", sums=sums)
        self._pass(self._correlate)
        state.finish(tuple(self._layer(place, section) for place, section in enumerate(layers)))
        save_progress(self.folder, state)

    def _pass(self, take: Callable[[Block], None], kept: bool = True) -> None:
        """Show every block to one pass, from where it stands; what is kept is written down now and then.

        Ctrl-C takes back what a block has changed so far, and writes down where the build stands.
        """
        state = self.progress
        back = state.mark()
        per_lambda = -(-len(self.train) // self.size)
        title = " ".join(filter(None, (state.phase, self.note)))
        try:
            with progress_bar(title, per_lambda * len(self.lambdas), state.block) as bar:
                for number in range(state.block // per_lambda, len(self.lambdas)):
                    watched = self.network[self.lambdas[number]]
                    for block in blocks(watched, self.train, self.size, state.block - number * per_lambda):
                        take(replace(block, first=block.first + number * len(self.train)))
                        state.block += 1
                        back = state.mark()
                        self._note(bar, kept)
        except KeyboardInterrupt:
            back()
            if not kept:
                state.block = 0
            if state.block or state.phase != "statistics" or state.finished:
                with suppress(DeploytoolError, OSError):  # a full disk: what was written before stays
                    save_progress(self.folder, state)
            raise
        state.block = 0

    def _note(self, bar: Bar, kept: bool) -> None:
        bar.advance()
        began = time.monotonic()
        if kept and began > self.next_note:
            save_progress(self.folder, self.progress)
            now = time.monotonic()
            self.next_note = now + max(SAVE_S, (now - began) / SAVE_SHARE)

    def _patterns(self, block: Block, wanted: Collection[int] | None = None) -> Iterator[tuple[int, Tensor]]:
        """Each wanted layer's place and patterns (B, F), its time counted until the next one is asked for."""
        for place, section in enumerate(self.recipe.layers):
            if wanted is not None and place not in wanted:
                continue
            began = time.monotonic()
            yield place, self.readings[place](block.activity[section.layer])
            self.progress.seconds[place] += time.monotonic() - began

    def _add_statistics(self, block: Block) -> None:
        for section, statistics in zip(self.recipe.layers, self.progress.statistics, strict=True):
            if section.modulation != "none":
                statistics.add(block.activity[section.layer])

    def _reading(self, place: int, section: LayerSection) -> Reading:
        features = self.features[place]
        index = None if section.sample is None else sampled(section.sample, features, self.recipe.seed + place)
        if section.modulation == "none":
            return Reading(section.name, index)
        mean, std = self.progress.statistics[place].modulation(features)
        return Reading(section.name, index, *(each if index is None else each[index] for each in (mean, std)))

    def _shelf(self, place: int, section: LayerSection) -> Shelf:
        search = self.progress.search[place]
        thetas = section.theta if search is None else [search.theta]
        assert thetas is not None, "filled in"
        return self._empty_shelf(place, section, thetas)

    def _empty_shelf(
        self, place: int, section: LayerSection, thetas: Sequence[float], most: int | None = None
    ) -> Shelf:
        index = self.readings[place].index
        features = self.features[place] if index is None else len(index)
        return Shelf(section.name, features, thetas, self.recipe.storage, most)

    def _search(self) -> None:
        """One round: every threshold that each layer's search asks about, in one pass."""
        state = self.progress
        shelves: dict[int, Shelf] = {}
        for place, (section, search) in enumerate(zip(self.recipe.layers, state.search, strict=True)):
            if search is not None and not search.done:
                shelves[place] = self._empty_shelf(place, section, search.asked, section.size)

        def offer(block: Block) -> None:
            for place, pattern in self._patterns(block, [p for p, s in shelves.items() if not s.given_up.all()]):
                shelves[place].offer(pattern, block.first)

        self._pass(offer, kept=False)
        for place, shelf in shelves.items():
            search = state.search[place]
            assert search is not None
            search.answer(shelf.given_up.tolist())
        save_progress(self.folder, state)

    def _offer(self, block: Block) -> None:
        for place, pattern in self._patterns(block):
            self.progress.shelves[place].offer(pattern, block.first)

    def _check_active(self) -> None:
        """Raise InputError where a library has fewer patterns than are to predict, before more time goes by."""
        active = self.recipe.active
        for shelf in self.progress.shelves:
            for theta, size in zip(shelf.thetas, shelf.sizes, strict=True):
                check_active(active, size, shelf.layer, theta)

    def _correlate(self, block: Block) -> None:
        for place, pattern in self._patterns(block):
            shelf = self.progress.shelves[place]
            scaled = scale(pattern, shelf.layer, block.first)
            more = correlate(scaled, shelf.codes, shelf.scales, block.answer, self.classes)
            self.progress.sums[place] = self.progress.sums[place] + more  # not in place: an interrupted block is undone

    def _layer(self, place: int, section: LayerSection) -> Layer:
        shelf = self.progress.shelves[place]
        return Layer(
            section,
            self.readings[place],
            shelf.thetas,
            shelf.codes.clone(),
            shelf.scales.clone(),
            shelf.source.clone(),
            shelf.member.clone(),
            shelf.rounding.clone(),
            self.progress.sums[place].float(),
            round(self.progress.seconds[place], 3),
        )


def _calibration(library: Library, network: dict[float | None, Watched], data: Dataset) -> tuple[Calibrated, ...]:
    """A threshold for each lambda, of the first set; none where a single layer has no pairs."""
    if len(library.recipe.layers) < 2:
        return ()
    section = library.recipe.calibration
    held_out, _ = split(data.test, section, library.recipe.seed)
    found = []
    for lam, watched in network.items():
        cpl = cpl_of(watched, held_out, library.at(lam), library.recipe.active)
        rate = section.false_alarm_rate
        found.append(Calibrated(lam, lower_threshold(cpl, rate), rate, len(held_out)))
    return tuple(found)


def _rows(library: Library) -> list[Row]:
    rows = []
    lambdas = (None,) if library.recipe.condition.libraries == "shared" else library.lambdas
    for lam, layers in zip(lambdas, library.conditions, strict=True):
        for layer in layers:
            for theta, own in zip(layer.thetas, layer.member.T, strict=True):
                rounding = layer.rounding[own]
                rows.append(
                    {
                        "layer": layer.section.name,
                        "lambda": lam,
                        "theta": theta,
                        "size": int(own.sum()),
                        "features": layer.features,
                        "seconds": layer.seconds,
                        "rounding_max": float(rounding.max()),
                        "rounding_mean": float(rounding.mean()),
                    }
                )
    return rows
