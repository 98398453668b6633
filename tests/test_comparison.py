"""`compare`: every method of paper 5 on equal terms, sizes worked by hand, nothing trained twice."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch

from deploytool import comparison
from deploytool.comparison import compare, sizes, variants
from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import InputError
from deploytool.models.factory import build_model
from deploytool.recipe import Recipe, load_recipe
from deploytool.report.comparison import as_csv, render, write_comparison
from deploytool.training.run import Checkpoint, Run

RECIPES = Path(__file__).parents[1] / "recipes"
METHODS = ["FLOATS-i", "FLOATS slim", "OAT slim", "PGD-AT lambda 1"]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    overrides = ["model.arch=resnet8", "optimizer.epochs=1", "attack.steps=1", "evaluate.images=60"]
    return load_recipe(RECIPES / "digits-float.yaml", [*overrides, "evaluate.lambdas=[0, 1]"])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def document(recipe: Recipe, run: Path) -> dict:
    torch.set_num_threads(1)
    return compare(recipe, run, METHODS, seeds=(0, 1))


def test_variants_differ_in_the_method_alone(recipe: Recipe) -> None:
    known = variants(recipe)
    assert list(known)[:7] == ["FLOAT", "FLOATS-i", "FLOATS-c", "FLOAT slim", "FLOATS slim", "OAT", "OAT slim"]
    assert [name for name in known if "PGD-AT" in name] == ["PGD-AT lambda 0", "PGD-AT lambda 1"]
    for variant in known.values():
        assert (variant.data, variant.attack, variant.optimizer, variant.seed) == (
            recipe.data, recipe.attack, recipe.optimizer, recipe.seed,
        )  # fmt: skip
        assert variant.model.arch == recipe.model.arch
    assert known["FLOATS-i"].sparsity.density == 0.1 and known["FLOATS-i"].model.widths == [1.0]
    assert known["FLOATS slim"].sparsity.density == 0.3 and known["FLOATS slim"].model.widths == [0.5, 1.0]


def test_rows_cover_methods_widths_and_lambdas(document: dict) -> None:
    assert {row["method"] for row in document["rows"]} == {"FLOAT", *METHODS}
    slim = [row for row in document["rows"] if row["method"] == "OAT slim"]
    assert {(row["width"], row["lambda"]) for row in slim} == {(w, lam) for w in (0.5, 1.0) for lam in (0.0, 1.0)}
    assert [row["lambda"] for row in document["rows"] if row["method"] == "PGD-AT lambda 1"] == [1.0]
    for row in document["rows"]:
        assert 0 <= row["robust_accuracy"] <= 1 and row["clean_accuracy_std"] >= 0
    assert any(row["clean_accuracy_std"] > 0 for row in document["rows"])
    json.dumps(document, allow_nan=False)


def test_times_are_relative_to_float(document: dict) -> None:
    times = {row["method"]: row["relative_time"] for row in document["models"]}
    assert times["FLOAT"] == 1 and all(time > 0 for time in times.values())


def test_nothing_is_trained_twice(document: dict, recipe: Recipe, run: Path, monkeypatch) -> None:
    monkeypatch.setattr(comparison, "train", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(comparison, "step_seconds", lambda recipes, *a: dict.fromkeys(recipes, 1.0))
    assert compare(recipe, run, METHODS, seeds=(0, 1))["rows"] == document["rows"]


def test_files_and_tables_hold_every_model(document: dict, tmp_path: Path) -> None:
    files = write_comparison(document, tmp_path)
    assert json.loads(Path(files["json"]).read_text()) == document
    lines = list(csv.DictReader(io.StringIO(as_csv(document))))
    assert len(lines) == len(document["rows"])
    half = next(line for line in lines if line["method"] == "FLOATS slim" and line["width"] == "0.5")
    model = next(m for m in document["models"] if m["method"] == "FLOATS slim" and m["width"] == 0.5)
    assert float(half["compression_ratio"]) == model["compression_ratio"]
    for text in (render(document), Path(files["md"]).read_text()):
        for words in ("Table 1", "seeds 0, 1", "FLOATS slim", "OAT slim", "PGD-AT", "time / FLOAT"):
            assert words in text


def test_an_unknown_method_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'FLOTS' is unknown; known: FLOAT, FLOATS-i"):
        compare(recipe, tmp_path, ["FLOTS"])
    assert list(tmp_path.iterdir()) == []


def run_of(recipe: Recipe) -> Run:
    """An untrained run: sizes do not depend on training."""
    data = CATALOGUE["digits"]
    model = build_model(recipe, data).eval()
    return Run(Path(), recipe, model, Checkpoint(0, {}, {}, [], data, 1, recipe.digest()))


def test_sizes_by_hand(recipe: Recipe) -> None:
    known = variants(recipe)
    (dense,) = sizes("FLOAT", run_of(known["FLOAT"]))
    # resnet8 on digits: 1->16; 16->16 twice; 16->32, 32->32, 1x1 16->32; 32->64, 64->64, 1x1 32->64; 64 x 10
    weights = 9 * (16 + 2 * 256 + 512 + 1024 + 2048 + 4096) + 512 + 2048 + 640
    norms = 2 * (3 * 16 + 3 * 32 + 3 * 64)
    assert dense["params"] == weights + norms + 10 and dense["storage_mb_8bit"] == dense["params"] / 1e6
    assert dense["compression_ratio"] == dense["channel_reduction_factor"] == 1
    assert dense["macs"] == 64 * 9 * (16 + 512) + 16 * (9 * (512 + 1024) + 512) + 4 * (9 * (2048 + 4096) + 2048) + 640

    (sparse,) = sizes("FLOATS-i", run_of(known["FLOATS-i"]))
    assert sparse["compression_ratio"] == pytest.approx(10, rel=0.01) and sparse["compression_ratio"] >= 10
    (channel,) = sizes("FLOATS-c", run_of(known["FLOATS-c"]))
    assert channel["compression_ratio"] >= 1 / 0.34 and channel["channel_reduction_factor"] > 2

    half, full = sizes("FLOAT slim", run_of(known["FLOAT slim"]))
    assert full == {**dense, "method": "FLOAT slim"}
    small = 9 * (8 + 2 * 64 + 128 + 256 + 512 + 1024) + 128 + 512 + 320
    assert half["compression_ratio"] == pytest.approx(weights / small)
    assert half["channel_reduction_factor"] == pytest.approx(289 / 145)  # all but the image channel are halved

    (oat,) = sizes("OAT", run_of(known["OAT"]))
    films = sum(2 * c + 4 * c * c + 4 * c for c in (16, 16, 16, 32, 32, 64, 64))
    assert oat["params"] == dense["params"] + films
