"""Libraries on disk: what was saved is loaded, damage of any kind is one line."""

import json
import os
import random
import struct
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import CheckpointError, DeploytoolError, InputError, RunError
from deploytool.explain.target import module_target
from deploytool.library.folder import (
    Calibrated,
    Layer,
    Library,
    default_folder,
    library_path,
    load_library,
    save_library,
)
from deploytool.library.patterns import Reading, encode, scale
from deploytool.library.recipe import FILE, LibraryRecipe
from deploytool.runtime.library import boundaries, choose

RECIPE: dict[str, Any] = {
    "name": "x",
    "target": "module",
    "layers": [{"layer": "a", "title": "A", "theta": [0.5, 0.9], "sample": 4}, {"layer": "b+c", "theta": 0.7}],
    "active": 2,
    "sets": {"low": [0.5, 0.7], "high": [0.9, 0.7]},
}


def made(folder: Path, conditions: int = 2, **changes: Any) -> Library:
    """Libraries of no network: random patterns."""
    recipe = LibraryRecipe.make(RECIPE | changes)
    chance = torch.Generator().manual_seed(0)
    layers = []
    for number in range(conditions):
        per_condition = []
        for section, features in zip(recipe.layers, (4, 6), strict=True):
            count = 5 + number
            codes, scales = encode(scale(torch.randn(count, features, generator=chance), "x").values, recipe.storage)
            member = torch.rand(count, len(section.theta), generator=chance) < 0.6
            member[:3] = True
            index = torch.tensor([0, 2, 3, 7]) if section.sample else None
            mean, std = (torch.rand(features, generator=chance) for _ in range(2)) if index is None else (None, None)
            reading = Reading(section.name, index, mean, std)
            source, rounding = torch.arange(count) * 3, torch.rand(count, generator=chance)
            connections = torch.randn(count, 10, generator=chance)
            parts = (tuple(section.theta), codes, scales, source, member, rounding, connections)
            per_condition.append(Layer(section, reading, *parts, seconds=0.125))
        layers.append(tuple(per_condition))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(recipe.to_yaml())
    calibration = (Calibrated(0.0, 0.7, 0.05, 100), Calibrated(1.0, -1.0, 0.05, 100))
    lambdas: tuple[float | None, ...] = (0.0, 1.0)
    return Library(folder, recipe, CATALOGUE["digits"], "abc" * 20, 0.5, lambdas, tuple(layers), calibration)


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for each, its in zip(one, other, strict=True):
            assert_equal(each, its)
    elif isinstance(one, Library | Layer | Reading):
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name))
    else:
        assert one == other


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
@pytest.mark.parametrize("conditions", [1, 2])
def test_what_is_saved_is_loaded(storage: str, conditions: int, tmp_path: Path) -> None:
    library = made(tmp_path / "x", conditions, storage=storage)
    save_library(library)
    assert_equal(load_library(tmp_path / "x"), library)
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["library.safetensors", FILE]


def test_of_a_target_without_lambda(tmp_path: Path) -> None:
    library = replace(
        made(tmp_path / "x", 1), lambdas=(None,), switch_at=None, calibration=(Calibrated(None, 0.5, 0.1, 9),)
    )
    save_library(library)
    loaded = load_library(str(tmp_path / "x"))
    assert_equal(loaded, replace(library, path=Path(tmp_path / "x")))
    assert loaded.which(None) == 0 and len(loaded.at(None)) == 2


# Damage


def refused(folder: Path, words: str = "") -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_library(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_files_cut_short(tmp_path: Path) -> None:
    save_library(made(tmp_path))
    file = library_path(tmp_path)
    content = file.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, *range(200, len(content), 97), len(content) - 1]:
        file.write_bytes(content[:length])
        refused(tmp_path, r"library.safetensors is damaged \(.*\); build it anew")
    file.write_bytes(content + b"\0")
    refused(tmp_path, "is damaged")


@pytest.mark.parametrize("seed", range(4))
def test_turned_bits(seed: int, tmp_path: Path) -> None:
    """Libraries may load where a number became another one; nothing else than CheckpointError may be raised."""
    library = made(tmp_path)
    save_library(library)
    file = library_path(tmp_path)
    content = file.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    chance = random.Random(seed)
    failed = 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 1, 1, 3])):
            damaged[chance.randrange(header if chance.random() < 0.8 else len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        try:
            loaded = load_library(tmp_path)
        except DeploytoolError as error:
            assert isinstance(error, CheckpointError) and "\n" not in str(error)
            failed += 1
        else:
            assert len(loaded.conditions) in (1, len(loaded.lambdas))
    assert failed > 75


def rewritten(folder: Path, metadata: dict[str, Any] | None = None, **tensors: Tensor | None) -> None:
    """The file with some metadata and tensors replaced, None: removed."""
    file = library_path(folder)
    with safe_open(file, framework="pt") as archive:
        own = dict(archive.metadata())
        held = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 - no mapping
    held |= {name.replace("_", "."): tensor for name, tensor in tensors.items()}
    own |= metadata or {}
    save_file(
        {name: tensor.contiguous() for name, tensor in held.items() if tensor is not None},
        file,
        {name: text for name, text in own.items() if text is not None},
    )


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("0_0_codes", torch.ones(5, 3)),
        ("0_0_codes", torch.ones(5)),
        ("0_0_codes", torch.ones(5, 4, dtype=torch.float16)),
        ("0_0_codes", torch.ones(5, 4, dtype=torch.float64)),
        ("0_0_codes", torch.full((5, 4), torch.nan)),
        ("0_0_codes", torch.full((5, 4), torch.inf)),
        ("0_0_codes", None),
        ("0_0_scales", torch.ones(6)),
        ("0_0_scales", torch.full((5,), torch.nan)),
        ("0_0_scales", None),
        ("0_1_source", torch.zeros(4, dtype=torch.int64)),
        ("0_1_source", None),
        ("0_1_member", torch.ones(5, 2, dtype=torch.bool)),
        ("0_1_member", torch.ones(5, 1)),
        ("0_1_member", torch.zeros(5, 1, dtype=torch.bool)),
        ("0_0_member", torch.tensor([[True, False]] * 5)),
        ("0_1_rounding", torch.ones(5, 1)),
        ("1_1_connections", torch.ones(6, 9)),
        ("1_1_connections", torch.ones(5, 10)),
        ("1_1_connections", torch.full((6, 10), -torch.inf)),
        ("1_1_connections", None),
        ("0_0_index", torch.tensor([0, -5, 3, 10**9])),
        ("1_1_connections", torch.ones(6)),
        ("0_0_index", torch.zeros(5, dtype=torch.int64)),
        ("0_1_mean", torch.zeros(5)),
        ("0_1_std", torch.full((6,), torch.nan)),
    ],
)
def test_tensors_that_do_not_fit(name: str, tensor: Tensor | None, tmp_path: Path) -> None:
    save_library(made(tmp_path))
    load_library(tmp_path)
    rewritten(tmp_path, **{name: tensor})
    refused(tmp_path, "is damaged")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("format", "deploytool-checkpoint-1"),
        ("format", None),
        ("data", "{}"),
        ("data", None),
        ("lambdas", "5"),
        ("lambdas", "[0.0, 0.5, 1.0]"),
        ("lambdas", "["),
        ("layers", "{}"),
        ("layers", "[[], []]"),
        ("layers", "[1, 2]"),
        ("layers", '[[{"section": {"layer": "a"}}]]'),
        ("layers", "[" * 100_000),
        ("calibration", '[{"lam": 0}]'),
        ("calibration", "[3]"),
        ("switch_at", None),
        ("switch_at", '"a"'),
        ("lambdas", '["a", "b"]'),
        ("lambdas+layers", "[]"),
    ],
)
def test_metadata_that_is_none(name: str, text: str | None, tmp_path: Path) -> None:
    save_library(made(tmp_path))
    rewritten(tmp_path, dict.fromkeys(name.split("+"), text))
    refused(tmp_path, "is damaged|no deploytool-library-1")


@pytest.mark.parametrize(
    "wrong",
    [
        {"lam": 1.5},
        {"lam": "0"},
        {"lam": None},
        {"lam": False},
        {"threshold": "low"},
        {"threshold": None},
        {"threshold": True},
        {"threshold": float("nan")},
        {"threshold": float("inf")},
        {"threshold": 10**400},
        {"false_alarm_rate": 0},
        {"false_alarm_rate": 1},
        {"false_alarm_rate": "0.05"},
        {"false_alarm_rate": float("nan")},
        {"images": 0},
        {"images": 9.5},
        {"images": True},
        {"images": None},
    ],
)
def test_thresholds_of_cpl_that_are_none(wrong: dict[str, Any], tmp_path: Path) -> None:
    save_library(made(tmp_path))
    right = [{"lam": lam, "threshold": 0.7, "false_alarm_rate": 0.05, "images": 100} for lam in (0.0, 1.0)]
    rewritten(tmp_path, {"calibration": json.dumps(right)})
    assert load_library(tmp_path).calibration[1] == Calibrated(1.0, 0.7, 0.05, 100)
    rewritten(tmp_path, {"calibration": json.dumps([right[0] | wrong, right[1]])})
    refused(tmp_path, "is damaged")


def test_a_threshold_of_cpl_for_each_lambda_or_none(tmp_path: Path) -> None:
    library = made(tmp_path)
    one = library.calibration[0]
    for few in ((one,), (one, one), (one, one, one), library.calibration[::-1]):
        save_library(replace(library, calibration=few))
        refused(tmp_path, "thresholds of CPL and lambdas do not fit")
    save_library(replace(library, calibration=()))
    assert load_library(tmp_path).calibration == ()


def edited(folder: Path, edit: Any) -> None:
    """The file with its layers' plain values edited."""
    with safe_open(library_path(folder), framework="pt") as archive:
        document = json.loads(archive.metadata()["layers"])
    edit(document)
    rewritten(folder, {"layers": json.dumps(document)})


@pytest.mark.parametrize("seconds", ["soon", None, [], 10**400])
def test_seconds_that_are_no_float(seconds: Any, tmp_path: Path) -> None:
    save_library(made(tmp_path))
    edited(tmp_path, lambda document: document[0][0].update(seconds=seconds))
    refused(tmp_path, "is damaged")


def test_a_condition_that_lacks_a_layer(tmp_path: Path) -> None:
    save_library(made(tmp_path))
    edited(tmp_path, lambda document: document[1].pop())
    refused(tmp_path, "is damaged")


def test_foreign_files(tmp_path: Path) -> None:
    made(tmp_path)
    file = library_path(tmp_path)
    refused(tmp_path, "has no library.safetensors; finish it: deploytool library build RUN --resume")
    for content in (b"hello", os.urandom(3000), b"\x80\x04." * 99, b"\0" * 4096):
        file.write_bytes(content)
        refused(tmp_path, "is damaged")
    save_file({"a": torch.ones(2)}, file)
    refused(tmp_path, "no deploytool-library-1")
    file.unlink()
    file.mkdir()
    refused(tmp_path, "library.safetensors")


def test_another_recipe(tmp_path: Path) -> None:
    library = made(tmp_path)
    save_library(library)
    (tmp_path / FILE).write_text(LibraryRecipe.make(RECIPE | {"active": 1}).to_yaml())
    refused(tmp_path, "its libraries are of another recipe than its library.yaml; build them anew")
    (tmp_path / FILE).write_text(library.recipe.to_yaml())
    load_library(tmp_path)


def test_a_folder_without_libraries(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no libraries \(no library.yaml\); build them: deploytool library build"):
        load_library(tmp_path)
    with pytest.raises(RunError, match="has no libraries"):
        load_library(tmp_path / "missing")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there stays, nothing half written is left."""
    from safetensors import SafetensorError

    from deploytool.library import folder

    library = made(tmp_path)
    save_library(library)
    before = library_path(tmp_path).read_bytes()

    def full(tensors: Any, file: Path, metadata: Any) -> None:
        Path(file).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(folder, "save_file", full)
    with pytest.raises(
        RunError, match=r"cannot be written \(I/O error: No space left .*\); make room and use --resume"
    ):
        save_library(replace(library, digest="other"))
    assert library_path(tmp_path).read_bytes() == before and len(list(tmp_path.iterdir())) == 2


# Which library answers


def test_sets_choose_thresholds(tmp_path: Path) -> None:
    library = made(tmp_path)
    assert library.sets == ["low", "high"]
    first, high = library.at(0.0), library.at(0.0, "high")
    assert [each.theta for each in first] == [0.5, 0.7] and [each.theta for each in high] == [0.9, 0.7]
    assert [each.title for each in first] == ["A", "b+c"] and [each.layer for each in first] == ["a", "b+c"]
    layer = library.conditions[0][0]
    for level, chosen in enumerate((first[0], high[0])):
        rows = layer.member[:, level]
        assert torch.equal(chosen.codes, layer.codes[rows]) and torch.equal(chosen.scales, layer.scales[rows])
        assert torch.equal(chosen.connections, layer.connections[rows])
    with pytest.raises(InputError, match=r"set \(='mid'\) is unknown; .* has low, high"):
        library.at(0.0, "mid")
    with pytest.raises(InputError, match=r"theta \(=0.6\): layer A has libraries at 0.5, 0.9"):
        layer.at(0.6)


def test_without_sets_the_highest_thresholds(tmp_path: Path) -> None:
    library = made(tmp_path, sets={})
    assert library.sets == ["default"] and [each.theta for each in library.at(1.0)] == [0.9, 0.7]


@pytest.mark.parametrize(
    ("switch_at", "lam", "which"),
    [
        (None, 0.0, 0),
        (None, 0.5, 0),  # half way belongs to the lower one
        (None, 0.51, 1),
        (None, 1.0, 1),
        (0.0, 0.0, 0),
        (0.0, 0.01, 1),
        (0.5, 0.5, 0),
        (0.5, 0.6, 1),
        (None, None, 0),
    ],
)
def test_which_condition_answers(switch_at: float | None, lam: float | None, which: int, tmp_path: Path) -> None:
    library = replace(made(tmp_path), switch_at=switch_at)
    assert library.which(lam) == which and library.layers(lam) is library.conditions[which]
    assert len(library.at(lam)[0]) == int(library.conditions[which][0].member[:, 0].sum())


def test_a_shared_library_answers_everywhere(tmp_path: Path) -> None:
    library = made(tmp_path, 1)
    assert library.layers(0.0) is library.layers(1.0) and library.which(1.0) == 1


def test_boundaries_by_hand() -> None:
    assert boundaries([0.0, 1.0], None) == [0.5]
    assert boundaries([0.0, 1.0], 0.0) == [0.0] and boundaries([0.0, 1.0], 0.5) == [0.5]
    assert boundaries([0.0, 0.2, 1.0], 0.5) == [0.1, 0.5]
    assert boundaries([0.0, 0.2, 1.0], 0.2) == [0.1, 0.2]  # the switch belongs to what is below it
    assert boundaries([0.6, 1.0], 0.5) == [0.8] and boundaries([0.3], 0.0) == []
    places = [choose([0.0, 0.2, 1.0], lam, 0.5) for lam in (0.0, 0.1, 0.11, 0.2, 0.5, 0.50001, 1.0)]
    assert places == [0, 0, 1, 1, 1, 2, 2] and choose([0.0, 1.0], None, None) == 0


# Where they are, and what they are of


def test_default_folders(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert default_folder(run) == run / "library" == default_folder(str(run))
    assert default_folder(tmp_path / "model.onnx") == tmp_path / "model-library"
    assert default_folder("torchvision:resnet18") == Path("runs") / "resnet18-library"


def test_only_the_very_same_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    target = module_target(nn.Linear(2, 2))
    library = replace(made(tmp_path), digest=target.digest)
    library.check_target(target)
    with pytest.raises(RunError, match=r"has libraries of another network \(module, digest .*\) than module \(digest"):
        library.check_target(module_target(nn.Linear(2, 2)))
    with pytest.raises(RunError, match="has libraries of module, which is not there; say where it is now"):
        library.open_target()


def test_opening_the_target_of_a_run(float_library: Library, trained_run: Any) -> None:
    recipe = float_library.recipe.model_copy(update={"target": str(trained_run.path)})
    assert replace(float_library, recipe=recipe).open_target().digest == float_library.digest
    moved = float_library.recipe.model_copy(update={"target": "elsewhere/run"})
    assert replace(float_library, recipe=moved).open_target(trained_run.path).takes_lambda
    with pytest.raises(RunError, match="which is not there"):
        replace(float_library, recipe=moved).open_target()
