"""Building libraries: what is in them, against oracles on activities; interrupted anywhere, the same in the end."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from deploytool.data.datasets import load_dataset
from deploytool.errors import DataError, DeploytoolError, InputError, RecipeError, RunError
from deploytool.explain.target import Target, module_target, open_target
from deploytool.library import build, streams
from deploytool.library.build import build_library
from deploytool.library.folder import Library, library_path, load_library
from deploytool.library.networks import consistency
from deploytool.library.progress import GRID, Search, progress_path
from deploytool.library.recipe import LibraryRecipe
from deploytool.library.taps import watch

COUNT, CLASSES = 90, 3


class Tiny(nn.Module):
    """Two feature maps and three answers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(1, 3, 3)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(2)
        self.linear = nn.Linear(12, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(self.pool(self.relu(self.conv(image))).flatten(1))


def write_images(file: Path, seed: int = 0, train: int = COUNT, test: int = 60) -> str:
    """Images around three centres, one for each class, as a data set's name."""
    chance = np.random.default_rng(seed)
    centre = np.random.default_rng(99).integers(0, 256, (CLASSES, 1, 6, 6))
    arrays: dict[str, Any] = {}
    for part, count in (("train", train), ("test", test)):
        label = chance.integers(0, CLASSES, count)
        label[:CLASSES] = range(CLASSES)
        image = np.clip(centre[label] + chance.normal(0, 25, (count, 1, 6, 6)), 0, 255).astype(np.uint8)
        arrays |= {f"x_{part}": image, f"y_{part}": label}
    np.savez(file, **arrays)
    return f"npz:{file}"


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set, whose images come in blocks of 16, the last one short."""
    monkeypatch.setattr(streams, "MOST_IMAGES", 16)
    monkeypatch.setattr(streams, "images_at_once", lambda image: 16)
    return write_images(tmp_path / "images.npz")


def made(data: str | None, layers: list[dict[str, Any]] | None = None, **changes: Any) -> LibraryRecipe:
    layers = layers or [
        {"layer": "conv", "theta": [0.8, 0.95], "modulation": "batch-norm"},
        {"layer": "pool+logits", "theta": 0.98, "sample": 10},
        {"layer": "linear:input", "size": 7},
    ]
    document = {"name": "tiny", "layers": layers, "active": 3, **changes}
    return LibraryRecipe.make(document | ({} if data is None else {"data": {"name": data}}))


def activities(target: Target, layers: list[str], image: Tensor, lam: float | None = None) -> tuple[Tensor, Any]:
    with torch.no_grad():
        return watch(target, layers, image, lam)(image)


def train_images(data: str) -> Tensor:
    return load_dataset(made(data).data).train.batch(slice(None))[0]


def naive(patterns: np.ndarray, theta: float) -> list[int]:
    """Paper 4's rule in float64."""
    units = patterns.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    kept: list[int] = []
    for row in range(len(units)):
        if not kept or (units[kept] @ units[row]).max() < theta:
            kept.append(row)
    return kept


def eq2(patterns: np.ndarray, kept: list[int], answer: np.ndarray) -> np.ndarray:
    """Connections in float64, by loops over stored patterns and images."""
    units = patterns.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    found = np.zeros((len(kept), CLASSES))
    for place, n in enumerate(kept):
        for k in range(len(units)):
            target = np.where(np.arange(CLASSES) == answer[k], 1, -1)
            found[place] += np.exp(-(1 - units[n] @ units[k]) / 0.01) * target
    return found


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(library_path(folder))


def contents(folder: Path) -> tuple[dict[str, Tensor], Any]:
    """Everything that a build leaves, but for seconds."""
    result = json.loads((folder / "library.json").read_text())
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in result["layers"]]
    return tensors(folder), (rows, result["calibration"], result["images"], load_library(folder).calibration)


def assert_same(one: Path, other: Path) -> None:
    (first, first_rows), (second, second_rows) = contents(one), contents(other)
    assert first.keys() == second.keys() and first_rows == second_rows
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name
    assert not progress_path(one).exists() and not progress_path(other).exists()


# What is in a library


def test_patterns_and_connections(images: str, tmp_path: Path) -> None:
    """Stored patterns, connections, modulation and sampling against the activities, by formulas written out here."""
    target = module_target(Tiny())
    result = build_library(target, made(images), tmp_path / "x")
    library = load_library(tmp_path / "x")
    logits, found = activities(target, ["conv", "pool+logits", "linear:input"], train_images(images))
    answer = logits.argmax(1).numpy()
    conv = found["conv"].numpy().astype(np.float64)
    modulated = (conv - conv.mean((0, 2, 3), keepdims=True)) / np.sqrt(conv.var((0, 2, 3), keepdims=True) + 1e-5)
    (layers,) = library.conditions
    index = layers[1].reading.index
    assert index is not None and len(index) == 10 == len(set(index.tolist())) and index.max() < 15
    patterns = [
        modulated.reshape(COUNT, -1),
        found["pool+logits"].numpy()[:, index],
        found["linear:input"].numpy(),
    ]
    sizes = []
    for layer, own in zip(layers, patterns, strict=True):
        members = [naive(own, theta) for theta in layer.thetas]
        union = sorted(set().union(*members))
        assert layer.source.tolist() == union
        assert [layer.source[each].tolist() for each in layer.member.T] == members
        np.testing.assert_allclose(layer.connections, eq2(own, union, answer), rtol=2e-3, atol=1e-3)
        units = own[union] / np.linalg.norm(own[union], axis=1, keepdims=True)
        np.testing.assert_allclose(layer.codes * layer.scales[:, None], units, atol=1e-5)
        sizes += [len(each) for each in members]
    assert [row["size"] for row in result["layers"]] == sizes and 1 < sizes[0] < sizes[1] < COUNT
    assert [row["layer"] for row in result["layers"]] == ["conv", "conv", "pool+logits", "linear:input"]
    assert [row["features"] for row in result["layers"]] == [48, 48, 10, 12]
    assert {row["lambda"] for row in result["layers"]} == {None} and result["images"] == COUNT
    assert {row["rounding_max"] for row in result["layers"]} == {0.0}
    assert result["size_mb"] == round(library_path(tmp_path / "x").stat().st_size / 1e6, 6)
    assert json.loads((tmp_path / "x" / "library.json").read_text()) == result


def test_statistics_are_those_of_all_training_images(images: str, tmp_path: Path) -> None:
    """A batch norm's: each channel's mean and population variance, over images and places."""
    target = module_target(Tiny())
    layers = [{"layer": name, "theta": 0.9, "modulation": "batch-norm"} for name in ("conv", "linear:input")]
    layers[0]["sample"] = 20
    build_library(target, made(images, layers), tmp_path / "x")
    conv, features = load_library(tmp_path / "x").conditions[0]
    _, found = activities(target, ["conv", "linear:input"], train_images(images))
    values = found["conv"].double().numpy()
    channel = (conv.reading.index // 16).numpy()
    np.testing.assert_allclose(conv.reading.mean, values.mean((0, 2, 3))[channel], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(conv.reading.std, np.sqrt(values.var((0, 2, 3)) + 1e-5)[channel], rtol=1e-5)
    values = found["linear:input"].double().numpy()
    np.testing.assert_allclose(features.reading.mean, values.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features.reading.std, np.sqrt(values.var(0) + 1e-5), rtol=1e-5)


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_storage_is_in_the_rows(storage: str, images: str, tmp_path: Path) -> None:
    result = build_library(module_target(Tiny()), made(images, storage=storage), tmp_path / "x")
    layer = load_library(tmp_path / "x").conditions[0][0]
    assert layer.codes.dtype == {"float16": torch.float16, "int8": torch.int8}[storage]
    for row in result["layers"]:
        assert 0 < row["rounding_mean"] <= row["rounding_max"] < 1e-3


@pytest.mark.parametrize("size", [1, 2, 7, 20, 89])
def test_a_wanted_size(size: int, images: str, tmp_path: Path) -> None:
    """No more patterns at the threshold found, more at the next one, 1 / 10,000 above."""
    target = module_target(Tiny())
    build_library(target, made(images, [{"layer": "conv", "size": size}], active=1), tmp_path / "x")
    (layer,) = load_library(tmp_path / "x").conditions[0]
    patterns = activities(target, ["conv"], train_images(images))[1]["conv"].flatten(1).numpy()
    (theta,) = layer.thetas
    step = round(theta * GRID)
    assert theta == step / GRID
    assert len(layer.source) == len(naive(patterns, theta)) <= size
    for above in range(1, 40):  # a sequential rule's sizes need not rise with theta; here they do
        if step + above <= GRID:
            assert len(naive(patterns, (step + above) / GRID)) > size


def test_more_patterns_than_images_are_never_stored(images: str, tmp_path: Path) -> None:
    build_library(module_target(Tiny()), made(images, [{"layer": "conv", "size": 1000}], active=1), tmp_path / "x")
    (layer,) = load_library(tmp_path / "x").conditions[0]
    assert layer.thetas == (1.0,) and len(layer.source) == COUNT


@pytest.mark.parametrize("border", [-GRID + 1, -17, 0, 1, 6543, GRID - 1, GRID])
def test_the_search_finds_any_border(border: int) -> None:
    """Thresholds in steps of 1 / 10,000 up to the border are small enough; few rounds suffice."""
    search, rounds = Search(), 0
    while not search.done:
        asked = search.asked
        assert asked == sorted(asked) and all(-1 < theta <= 1 for theta in asked)
        search.answer([round(theta * GRID) > border for theta in asked])
        rounds += 1
    assert search.theta == border / GRID and rounds <= 6


def test_so_many_images_and_default_layers(images: str, tmp_path: Path) -> None:
    recipe = LibraryRecipe.make({"name": "x", "data": {"name": images}, "images": 40, "size": 5, "active": 2})
    result = build_library(module_target(Tiny()), recipe, tmp_path / "x")
    library = load_library(tmp_path / "x")
    assert [layer.section.layer for layer in library.conditions[0]] == ["relu", "pool", "logits"]
    assert all(layer.section.size == 5 and len(layer.source) <= 5 for layer in library.conditions[0])
    assert result["images"] == 40 and max(int(layer.source.max()) for layer in library.conditions[0]) < 40
    assert library.recipe.target == "module" and library.target == "module"


@pytest.mark.parametrize("rate", [0.05, 0.25, 0.01])
def test_the_calibrated_threshold(rate: float, images: str, tmp_path: Path) -> None:
    """The k-th smallest CPL of the held-out half, k = floor(rate (n + 1)); -1 where n is too small for the rate."""
    target = module_target(Tiny())
    recipe = made(images, calibration={"false_alarm_rate": rate, "share": 0.5}, seed=3)
    result = build_library(target, recipe, tmp_path / "x")
    library = load_library(tmp_path / "x")
    test = load_dataset(library.recipe.data).test
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))[:30]
    layers = library.at(None)
    _, found = activities(target, [each.layer for each in layers], test.batch(order)[0])
    cpl = consistency([each.predict(found[each.layer], 3) for each in layers]).sort().values
    k = int(rate * 31)
    expected = float(cpl[k - 1]) if k else -1.0
    assert (k, rate) in [(1, 0.05), (7, 0.25), (0, 0.01)]
    (calibrated,) = library.calibration
    assert calibrated.threshold == pytest.approx(expected, abs=1e-5) and calibrated.images == 30
    assert result["calibration"] == [
        {"lambda": None, "threshold": calibrated.threshold, "false_alarm_rate": rate, "images": 30}
    ]


def test_a_single_layer_has_no_threshold(images: str, tmp_path: Path) -> None:
    result = build_library(module_target(Tiny()), made(images, [{"layer": "conv", "theta": 0.9}]), tmp_path / "x")
    assert result["calibration"] == [] and load_library(tmp_path / "x").calibration == ()


# Conditions of a FLOAT run

FLOAT_LAYERS = [{"layer": "layer1", "theta": 0.95, "modulation": "batch-norm"}, {"layer": "logits", "theta": 0.99}]


def float_made(**changes: Any) -> LibraryRecipe:
    return made(None, FLOAT_LAYERS, images=60, **changes)


@pytest.fixture(scope="module")
def float_each(trained_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Library:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("each") / "x"
    build_library(open_target(trained_run.path), float_made(), folder)
    return load_library(folder)


def test_a_library_for_each_lambda(float_each: Library, trained_run: Any) -> None:
    target = open_target(trained_run.path)
    image = load_dataset(trained_run.recipe.data).train.batch(slice(0, 60))[0]
    assert float_each.lambdas == (0.0, 1.0) and len(float_each.conditions) == 2
    assert [each.lam for each in float_each.calibration] == [0.0, 1.0]
    for lam, layers in zip((0.0, 1.0), float_each.conditions, strict=True):
        logits, found = activities(target, ["layer1", "logits"], image, lam)
        values = found["layer1"].double().numpy()
        mean, std = values.mean((0, 2, 3), keepdims=True), np.sqrt(values.var((0, 2, 3), keepdims=True) + 1e-5)
        assert layers[0].source.tolist() == naive(((values - mean) / std).reshape(60, -1), 0.95)
        assert layers[1].source.tolist() == naive(logits.numpy(), 0.99)
    rows = json.loads((float_each.path / "library.json").read_text())["layers"]
    assert [(row["lambda"], row["layer"]) for row in rows] == [
        (lam, layer) for lam in (0.0, 1.0) for layer in ("layer1", "logits")
    ]


def test_a_shared_library(float_each: Library, trained_run: Any, tmp_path: Path) -> None:
    """Patterns of all lambdas one after the other, on statistics of all of them."""
    target = open_target(trained_run.path)
    build_library(target, float_made(condition={"libraries": "shared"}), tmp_path / "x")
    library = load_library(tmp_path / "x")
    image = load_dataset(trained_run.recipe.data).train.batch(slice(0, 60))[0]
    seen = [activities(target, ["layer1", "logits"], image, lam) for lam in (0.0, 1.0)]
    (layers,) = library.conditions
    values = torch.cat([found["layer1"] for _, found in seen]).double().numpy()
    mean, std = values.mean((0, 2, 3), keepdims=True), np.sqrt(values.var((0, 2, 3), keepdims=True) + 1e-5)
    assert layers[0].source.tolist() == naive(((values - mean) / std).reshape(120, -1), 0.95)
    logits = torch.cat([logits for logits, _ in seen]).numpy()
    kept = naive(logits, 0.99)
    assert layers[1].source.tolist() == kept and max(kept) >= 60
    assert layers[1].connections.shape == (len(kept), 10)
    assert library.layers(0.0) is library.layers(1.0) and float_each.layers(0.0) is not float_each.layers(1.0)
    assert [each.lam for each in library.calibration] == [0.0, 1.0]


def test_rows_say_a_single_lambda(trained_run: Any, tmp_path: Path) -> None:
    """Only where libraries are shared, or the target takes none, is it None."""
    result = build_library(open_target(trained_run.path), float_made(condition={"lambdas": [1.0]}), tmp_path / "x")
    assert [row["lambda"] for row in result["layers"]] == [1.0, 1.0]


# Interrupted builds


def interrupt(folder: Path, stop: int, recipe: LibraryRecipe, target: Target) -> str:
    """Build until `_note` is called so often, every block written down before; which phase that was."""
    phases: list[str] = []
    note = build._Builder._note

    def noted(self: Any, bar: Any, kept: bool) -> None:
        note(self, bar, kept)
        phases.append(self.progress.phase)
        if len(phases) == stop:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "SAVE_S", -1.0)
        patch.setattr(build._Builder, "_note", noted)
        build_library(target, recipe, folder)
    return phases[-1]


def test_resumed_from_every_phase(images: str, tmp_path: Path) -> None:
    """Ctrl-C after any block: what a resumed build gives is that of an uninterrupted one."""
    target, recipe = module_target(Tiny()), made(images)
    build_library(target, recipe, tmp_path / "whole")
    seen = set()
    for stop in (1, 4, 6, 8, 14, 40, 41, 44, 47, 49, 52):
        folder = tmp_path / str(stop)
        try:
            seen.add(interrupt(folder, stop, recipe, target))
        except BaseException as error:
            assert "DID NOT RAISE" in str(error)  # pytest's own: the build was shorter
            continue
        assert progress_path(folder).exists() and not library_path(folder).exists()
        build_library(target, recipe, folder, resume=True)
        assert_same(tmp_path / "whole", folder)
    assert seen == {"statistics", "search", "patterns", "connections"}


def test_interrupted_again_and_again(images: str, tmp_path: Path) -> None:
    """A build that is stopped after every two blocks, search rounds aside, comes to the same end."""
    target, recipe = module_target(Tiny()), made(images, made(images).model_dump()["layers"][:2])
    build_library(target, recipe, tmp_path / "whole")
    folder = tmp_path / "stopped"
    interrupt(folder, 2, recipe, target)
    rounds = 0
    for _ in range(40):
        note, calls = build._Builder._note, iter(range(1, 99))

        def noted(self: Any, bar: Any, kept: bool, note: Any = note, calls: Any = calls) -> None:
            note(self, bar, kept)
            if next(calls) == 2:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "SAVE_S", -1.0)
            patch.setattr(build._Builder, "_note", noted)
            try:
                build_library(target, recipe, folder, resume=True)
                break
            except KeyboardInterrupt:
                rounds += 1
    assert rounds > 5
    assert_same(tmp_path / "whole", folder)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("stop", [1, 4, 7, 9, 12])
def test_resumed_between_and_within_conditions(stop: int, shared: bool, trained_run, tmp_path: Path, images) -> None:
    """Blocks of 16: four for each lambda, in statistics, patterns and connections."""
    target = open_target(trained_run.path)
    recipe = made(None, FLOAT_LAYERS, images=30, condition={"libraries": "shared" if shared else "each"})
    build_library(target, recipe, tmp_path / "whole")
    interrupt(tmp_path / "stopped", stop, recipe, target)
    build_library(target, recipe, tmp_path / "stopped", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_interrupted_within_a_block(images: str, tmp_path: Path) -> None:
    """What was written down last is what counts, however far the block had come in memory."""
    target, recipe = module_target(Tiny()), made(images)
    build_library(target, recipe, tmp_path / "whole")
    own = build.Shelf.offer

    def offer(self: Any, pattern: Tensor, first: int) -> None:
        own(self, pattern, first)
        if self.layer == "pool+logits" and first == 32 and self.most is None:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "SAVE_S", -1.0)
        patch.setattr(build.Shelf, "offer", offer)
        build_library(target, recipe, tmp_path / "stopped")
    build_library(target, recipe, tmp_path / "stopped", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def stopped(folder: Path, recipe: LibraryRecipe, phase: str, place: str, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the third block of a phase, with nothing written down before: between two layers, or before it."""
    seen = []
    own_blocks, own_patterns, own_add = build.blocks, build._Builder._patterns, build._Builder._add_statistics

    def patterns(self: Any, block: Any, *arguments: Any) -> Any:
        for count, each in enumerate(own_patterns(self, block, *arguments)):
            if place == "within" and self.progress.phase == phase and block.first == 32 and count == 1:
                raise KeyboardInterrupt
            yield each

    def add(self: Any, block: Any) -> None:
        own_add(self, block)
        if place == "within" and phase == "statistics" and block.first == 32:
            raise KeyboardInterrupt

    def init(self: Any, *arguments: Any) -> None:
        own_init(self, *arguments)
        seen.append(self)

    def streamed(*arguments: Any) -> Any:
        for block in own_blocks(*arguments):
            if place == "before" and seen[0].progress.phase == phase and block.first == 32:
                raise KeyboardInterrupt
            yield block

    own_init = build._Builder.__init__
    with patch.context() as own, pytest.raises(KeyboardInterrupt):
        own.setattr(build._Builder, "__init__", init)
        own.setattr(build._Builder, "_patterns", patterns)
        own.setattr(build._Builder, "_add_statistics", add)
        own.setattr(build, "blocks", streamed)
        build_library(module_target(Tiny()), recipe, folder)


@pytest.mark.parametrize("place", ["before", "within"])
@pytest.mark.parametrize("phase", ["statistics", "search", "patterns", "connections"])
def test_ctrl_c_writes_whole_blocks_down(
    phase: str, place: str, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a block is taken back; a search begins its round again."""
    layers = [*made(images).model_dump()["layers"], {"layer": "relu", "size": 9}]
    target, recipe = module_target(Tiny()), made(images, layers)
    build_library(target, recipe, tmp_path / "whole")
    stopped(tmp_path / "x", recipe, phase, place, monkeypatch)
    with safe_open(progress_path(tmp_path / "x"), "pt") as archive:
        document = json.loads(archive.metadata()["progress"])
    assert (document["phase"], document["block"]) == (phase, 0 if phase == "search" else 2)
    assert document["size"] == 16
    build_library(target, recipe, tmp_path / "x", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "x")


def test_ctrl_c_before_anything_is_done_leaves_nothing_to_resume(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = made(images)

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "blocks", interrupted)
        build_library(module_target(Tiny()), recipe, tmp_path / "x")
    assert not progress_path(tmp_path / "x").exists()
    build_library(module_target(Tiny()), made(images, active=2), tmp_path / "x")


def test_blocks_of_another_size_are_refused(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block 2 of 16 images is not block 2 of 32."""
    target, recipe = module_target(Tiny()), made(images)
    build_library(target, recipe, tmp_path / "whole")
    stopped(tmp_path / "x", recipe, "patterns", "before", monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(RunError, match="had 16 images and have 32 now") as caught:
        patch.setattr(streams, "MOST_IMAGES", 32)
        build_library(target, recipe, tmp_path / "x", resume=True)
    assert "\n" not in str(caught.value)
    build_library(target, recipe, tmp_path / "x", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "x")


def test_seconds_of_a_layer_are_its_own(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of one second per look: of two passes of 6 blocks, and of its own search alone."""
    layers = [{"layer": "conv", "theta": 0.9}, {"layer": "linear:input", "size": 7}]
    ticks = itertools.count()
    monkeypatch.setattr(build, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    result = build_library(module_target(Tiny()), made(images, layers), tmp_path / "x")
    by_layer = {row["layer"]: row["seconds"] for row in result["layers"]}
    assert by_layer["conv"] == 12 < by_layer["linear:input"]


SCRIPT = """
import sys, time
import torch
sys.path.insert(0, {here!r})
from test_build import Tiny, made
from deploytool.explain.target import module_target
from deploytool.library import build, streams
torch.set_num_threads(1)
streams.MOST_IMAGES, streams.images_at_once, build.SAVE_S = 16, lambda image: 16, -1.0
note = build._Builder._note
def slow(self, bar, kept):
    note(self, bar, kept)
    if self.progress.phase == "patterns" and self.progress.block == 3:
        print("now", flush=True)
        time.sleep(60)
build._Builder._note = slow
build.build_library(module_target(Tiny()), made({data!r}), {folder!r})
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_killed_process(images: str, tmp_path: Path) -> None:
    target, recipe, folder = module_target(Tiny()), made(images), tmp_path / "killed"
    build_library(target, recipe, tmp_path / "whole")
    script = SCRIPT.format(here=str(Path(__file__).parent), data=images, folder=str(folder))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not library_path(folder).exists()
    build_library(target, recipe, folder, resume=True)
    assert_same(tmp_path / "whole", folder)


def test_interrupted_before_the_result_is_written(images: str, tmp_path: Path) -> None:
    target, recipe = module_target(Tiny()), made(images)

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "write_json", interrupted)
        build_library(target, recipe, tmp_path / "x")
    assert build_library(target, recipe, tmp_path / "x", resume=True)["images"] == COUNT
    build_library(target, recipe, tmp_path / "whole")
    assert_same(tmp_path / "whole", tmp_path / "x")


def test_other_targets_and_images_are_refused_on_resume(images: str, tmp_path: Path) -> None:
    recipe = made(images)
    interrupt(tmp_path / "x", 8, recipe, module_target(Tiny()))
    with pytest.raises(RunError, match="the target changed since its build began; name another folder") as caught:
        build_library(module_target(Tiny(seed=1)), recipe, tmp_path / "x", resume=True)
    assert "\n" not in str(caught.value)
    write_images(tmp_path / "images.npz", seed=1)
    with pytest.raises(RunError, match="the training images changed since its build began"):
        build_library(module_target(Tiny()), recipe, tmp_path / "x", resume=True)
    write_images(tmp_path / "images.npz")
    build_library(module_target(Tiny()), recipe, tmp_path / "x", resume=True)


def test_other_recipes_are_refused_on_resume(images: str, tmp_path: Path) -> None:
    interrupt(tmp_path / "x", 8, made(images), module_target(Tiny()))
    with pytest.raises(RunError, match=r"was started with another recipe \(active 3 -> 4\)"):
        build_library(module_target(Tiny()), made(images, active=4), tmp_path / "x", resume=True)
    with pytest.raises(RunError, match="already holds a library; continue it with --resume"):
        build_library(module_target(Tiny()), made(images), tmp_path / "x")


def test_a_finished_library(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stays as it is: refused without --resume; with it, its result is given again, and nothing is built."""
    target, recipe = module_target(Tiny()), made(images)
    result = build_library(target, recipe, tmp_path / "x")
    before = library_path(tmp_path / "x").read_bytes()
    with pytest.raises(RunError, match="already holds a library; continue it with --resume, or name another folder"):
        build_library(target, recipe, tmp_path / "x")
    monkeypatch.setattr(build, "_Builder", lambda *arguments: pytest.fail("nothing is to be built"))
    file = tmp_path / "x" / "library.json"
    file.write_text(json.dumps(result | {"seconds": 1234.5}))
    assert build_library(target, recipe, tmp_path / "x", resume=True) == result | {"seconds": 1234.5}
    assert json.loads(file.read_text()) == result | {"seconds": 1234.5}
    assert library_path(tmp_path / "x").read_bytes() == before
    for text in ("", "{", "[1]", json.dumps(result | {"images": 1, "seconds": 9e9}), '{"seconds": 9e9}'):
        file.write_text(text)
        again = build_library(target, recipe, tmp_path / "x", resume=True)
        assert again | {"seconds": 0} == result | {"seconds": 0} and again["seconds"] < 1000
        assert json.loads(file.read_text()) == again
    with pytest.raises(RunError, match="has libraries of another network"):
        build_library(module_target(Tiny(seed=1)), recipe, tmp_path / "x", resume=True)


def test_damaged_notes_are_one_line(images: str, tmp_path: Path) -> None:
    """A file cut short is refused, and says what to do."""
    target, recipe = module_target(Tiny()), made(images)
    interrupt(tmp_path / "x", 45, recipe, target)
    file = progress_path(tmp_path / "x")
    content = file.read_bytes()
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(DeploytoolError, match="is damaged .*; remove .* and build anew") as caught:
            build_library(target, recipe, tmp_path / "x", resume=True)
        assert "\n" not in str(caught.value)


def test_notes_of_an_unknown_phase(images: str, tmp_path: Path) -> None:
    """One turned bit makes `patterns` something else."""
    target, recipe = module_target(Tiny()), made(images)
    interrupt(tmp_path / "x", 40, recipe, target)
    file = progress_path(tmp_path / "x")
    content = file.read_bytes()
    assert content.count(b'"patterns\\"') == 1
    file.write_bytes(content.replace(b'"patterns\\"', b'"qatterns\\"'))
    with pytest.raises(DeploytoolError, match="is damaged"):
        build_library(target, recipe, tmp_path / "x", resume=True)


# Refusals


@pytest.mark.parametrize(
    ("layers", "changes", "words"),
    [
        (
            [{"layer": "a", "size": 7}],
            {},
            r"active \(=8\) is above the size \(=7\) of layer a; lower it, or raise size",
        ),
        ([{"layer": "a", "title": "A"}], {"size": 7}, r"above the size \(=7\) of layer A"),
        ([], {"size": 7}, r"above the size \(=7\) of each layer"),
    ],
)
def test_more_active_nodes_than_patterns(layers: list[Any], changes: dict[str, Any], words: str) -> None:
    document = {"name": "x", "layers": layers, **changes}
    with pytest.raises(RecipeError, match=words):
        LibraryRecipe.make(document | {"active": 8})
    LibraryRecipe.make(document | {"active": 7})
    LibraryRecipe.make({"name": "x", "layers": [{"layer": "a", "theta": 0.5}], "active": 8, "size": 7})


def test_data_has_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data is missing, and target module is no run that says it; name it: --set"):
        build_library(module_target(Tiny()), made(None), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_refusals_leave_no_library(images: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"layer \(='cnov'\) is unknown; near are conv"):
        build_library(module_target(Tiny()), made(images, [{"layer": "cnov", "theta": 0.5}]), tmp_path / "x")
    with pytest.raises(DataError, match="classes"):
        build_library(module_target(Tiny(), classes=("a", "b")), made(images), tmp_path / "y")
    dead = Tiny()
    nn.init.constant_(dead.conv.bias, -1e3)
    with pytest.raises(InputError, match="layer pool: the activity of image 0 is 0 everywhere"):
        build_library(module_target(dead), made(images, [{"layer": "pool", "theta": 0.5}], active=1), tmp_path / "z")
    assert not any(library_path(tmp_path / name).exists() for name in "xyz")
    build_library(module_target(Tiny()), made(images, [{"layer": "pool", "theta": 0.5}], active=1), tmp_path / "z")
    assert library_path(tmp_path / "z").exists()
