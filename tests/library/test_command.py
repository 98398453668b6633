"""`library build`, `predict`, `confusion` and `detect`: their contract, the files they write, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploytool.cli import cli
from deploytool.library.detection import DetectPlan
from deploytool.library.folder import Library, load_library
from deploytool.library.recipe import LibraryRecipe
from deploytool.recipe import Recipe
from deploytool.training.run import Run

SHIPPED = sorted((Path(__file__).parents[2] / "recipes" / "libraries").glob("*.yaml"))
COMMANDS = ("build", "predict", "confusion", "detect")
RECIPE = """
name: tiny
images: 200
layers:
  - {layer: layer3, title: last, theta: [0.8, 0.9]}
  - {layer: logits, theta: 0.95}
sets: {Set1: [0.9, 0.95], Set2: [0.8, 0.95]}
active: 3
"""
LIBRARIES = [("last", 0.8), ("last", 0.9), ("logits", 0.95)]
FEW = ("--images", 24, "--eps", "0.05", "--attack", "fgsm", "--device", "cpu")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def library(*arguments: object) -> Result:
    return run("library", *arguments)


def library_json(*arguments: object) -> dict[str, Any]:
    result = library(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def assert_one_line_error(result: Result, *words: str) -> None:
    assert result.exit_code == 1 and result.stdout == "", result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr
    assert isinstance(result.exception, SystemExit)


def assert_files(document: dict[str, Any], folder: Path, name: str) -> None:
    """What `files` says is there, and the JSON file is what was printed."""
    assert set(document["files"]) == {"json", "md", "csv", "png", "svg"}
    assert {Path(file) for file in document["files"].values()} == set(folder.glob(f"{name}.*"))
    assert json.loads((folder / f"{name}.json").read_text()) == {k: v for k, v in document.items() if k != "files"}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path / "tiny.yaml"


def test_all_commands_in_a_row(trained_run: Run, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "library"
    arguments = ["build", trained_run.path, recipe, "-o", folder, "--set", "images=150", "--device", "cpu"]
    built = library_json(*arguments)
    assert built["library"] == str(folder) and built["images"] == 150
    keys = {"layer", "lambda", "theta", "size", "features", "seconds", "rounding_max", "rounding_mean"}
    assert all(set(row) == keys for row in built["layers"])
    names = [(row["layer"], row["lambda"], row["theta"]) for row in built["layers"]]
    assert names == [(layer, lam, theta) for lam in (0, 1) for layer, theta in LIBRARIES]
    assert [each["lambda"] for each in built["calibration"]] == [0, 1]
    again = library(*arguments, "--resume")
    assert again.exit_code == 0 and "verdict at lambda 1: doubtful below CPL" in again.stdout
    assert load_library(folder).recipe.images == 150

    here = [trained_run.path, "--library", folder, "--device", "cpu"]
    answered = library_json("detect", *here, "--attack", "none", "--foreign", "noise", "--images", 8, "--lambda", 0.6)
    assert (answered["lambda"], answered["library_lambda"]) == (0.6, load_library(folder).lambdas[-1])
    foretold = library_json("predict", *here, "--lambda", 1)
    assert foretold["lambda"] == 1 and foretold["active"] == 3
    assert [(row["layer"], row["theta"]) for row in foretold["layers"]] == LIBRARIES
    for row in foretold["layers"]:
        assert {"layer", "theta", "size", "features", "top1_agreement", "top3_agreement", "top1_accuracy"} == set(row)
        assert 0 <= row["top1_agreement"] <= row["top3_agreement"] <= 1
    assert_files(foretold, folder / "predict", "predict")

    mixed = library_json("confusion", *here, "--active", 2, "-o", tmp_path / "out")
    assert mixed["active"] == 2 and mixed["lambda"] == 0
    assert all({"layer", "theta", "size", "right", "matrix"} == set(row) for row in mixed["layers"])
    assert {"layer", "class", "confused_with", "index"} == set(mixed["most"][0])
    assert_files(mixed, tmp_path / "out", "confusion")

    found = library_json("detect", *here, *FEW, "--foreign", "noise", "--adaptive", 2)
    assert [(row["attack"], row["eps"], row["set"]) for row in found["rows"]] == [
        (attack, eps, name)
        for attack, eps in (("fgsm", 0.05), ("adaptive-2", 0.05), ("foreign:noise", None))
        for name in ("Set1", "Set2")
    ]
    keys = {"attack", "eps", "set", "auroc_cpl", "auroc_max_softmax", "auroc_knn", "auroc_combined", "fooled"}
    for row in found["rows"]:
        assert keys | {"detected", "cpl_mean", "n"} == set(row)
        assert all(0 <= row[key] <= 1 for key in ("auroc_cpl", "auroc_max_softmax", "auroc_knn")) and row["n"] == 24
    assert_files(found, folder / "detection", "detection")


def test_commands_print_their_tables(plain_run: Run, plain_library: Library, tmp_path: Path) -> None:
    here = [plain_run.path, "--library", plain_library.path, "-o", tmp_path / "out", "--device", "cpu"]
    words = {"predict": "in best 3", "confusion": "confused with", "detect": "AUROC of CPL by set of thresholds"}
    for command, word in words.items():
        result = library(command, *here, *(FEW[:-2] if command == "detect" else ()))
        assert result.exit_code == 0, result.output
        assert word in result.stdout and f"written to {tmp_path / 'out'}" in result.stdout
        assert max(map(len, result.stdout.splitlines()[2:-1])) <= 120


def test_foreign_images_alone(plain_run: Run, plain_library: Library, tmp_path: Path) -> None:
    here = [plain_run.path, "--library", plain_library.path, "-o", tmp_path / "out", "--images", 20, "--device", "cpu"]
    found = library_json("detect", *here, "--attack", "none", "--foreign", "noise")
    assert {row["attack"] for row in found["rows"]} == {"foreign:noise"}
    assert all(row["auroc_combined"] is None and row["fooled"] is None for row in found["rows"])
    assert_one_line_error(library("detect", *here, "--attack", "none"), "nothing to detect")


def test_an_onnx_file_has_libraries_of_its_own(plain_file: Path, float_recipe: Recipe, tmp_path: Path) -> None:
    """Beside the file where nothing else is said, by a recipe that is not needed; data has to be named."""
    own = tmp_path / "model 1.onnx"
    own.write_bytes(plain_file.read_bytes())
    assert_one_line_error(library("build", own), "data is missing", "--set data.name=")
    assert list(tmp_path.iterdir()) == [own]
    few = ["--set", "images=64", "--set", "size=12", "--set", f"data.name={float_recipe.data.name}"]
    built = library_json("build", own, *few, "--device", "cpu")
    assert built["library"] == str(tmp_path / "model 1-library") and len(built["layers"]) > 1
    assert all(0 < row["size"] <= 12 for row in built["layers"])
    loaded = load_library(tmp_path / "model 1-library")
    assert loaded.recipe.name == "model-1"
    assert library_json("predict", own, "--device", "cpu")["library"] == built["library"]
    few = ["--images", 8, "--eps", "0.05", "--device", "cpu"]
    needs = library("detect", own, *few)
    assert_one_line_error(needs, "no gradients", "pgd-40:iterate=last", "--attack square", "--attack none")
    adaptive = library("detect", own, *few, "--attack", "none", "--foreign", "noise", "--adaptive", 2)
    assert_one_line_error(adaptive, "no gradients", "--adaptive")
    assert not (tmp_path / "model 1-library" / "detection").exists()
    found = library_json("detect", own, *few, "--attack", "square:queries=3")
    assert found["combined_fitted_on"] == [{"attack": "square:queries=3", "eps": 0.05}]
    library_json("detect", own, *few, "--attack", "none", "--foreign", "noise")


def test_build_refuses_in_one_line(plain_run: Run, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "library"
    layer = ["--set", "layers=[{layer: layer4}]", "--set", "sets={}"]
    unknown = library("build", plain_run.path, recipe, "-o", folder, *layer)
    assert_one_line_error(unknown, "layer (='layer4') is unknown", "layer3")
    for theta in ("1.5", "-1", "wide"):
        changes = ["--set", f"layers=[{{layer: layer3, theta: {theta}}}]", "--set", "sets={}"]
        assert_one_line_error(library("build", plain_run.path, recipe, "-o", folder, *changes), "theta")
    assert_one_line_error(library("build", plain_run.path, tmp_path / "gone.yaml"), "gone.yaml cannot be read")
    assert_one_line_error(library("build", tmp_path / "gone", recipe, "-o", folder), "gone does not exist")
    assert not (folder / "library.safetensors").exists()
    file = tmp_path / "file"
    file.write_text("mine")
    assert_one_line_error(library("build", plain_run.path, recipe, "-o", file / "library"), str(file))
    assert_one_line_error(library("build", plain_run.path, recipe, "-o", tmp_path), "is no library of deploytool")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_questions_are_refused_in_one_line(
    command: str, plain_run: Run, trained_run: Run, plain_library: Library, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    here = [command, plain_run.path, "--library", plain_library.path, "-o", folder]
    other = library(command, trained_run.path, "--library", plain_library.path, "-o", folder)
    assert_one_line_error(other, "libraries of another network", "deploytool library build")
    none = library(command, trained_run.path, "-o", folder)
    assert_one_line_error(none, str(trained_run.path / "library"), "has no libraries", "deploytool library build")
    assert_one_line_error(library(*here, "--lambda", 0.5), "takes no lambda")
    assert not folder.exists()
    (tmp_path / "file").write_text("mine")
    blocked = library(command, plain_run.path, "--library", plain_library.path, "-o", tmp_path / "file" / "out")
    assert_one_line_error(blocked, "cannot write to folder", "choose another with -o FOLDER")


@pytest.mark.parametrize("command", ["predict", "confusion"])
def test_more_nodes_than_patterns_are_refused(
    command: str, plain_run: Run, plain_library: Library, tmp_path: Path
) -> None:
    here = [command, plain_run.path, "--library", plain_library.path, "-o", tmp_path / "out"]
    assert_one_line_error(library(*here, "--active", 2000), "active (=2000)", "lower active, or raise theta")
    assert library(*here, "--active", 0).exit_code == 2
    assert not (tmp_path / "out").exists()


def test_plans_and_thresholds_are_refused(plain_run: Run, plain_library: Library, tmp_path: Path) -> None:
    rest = [plain_run.path, "--library", plain_library.path, "-o", tmp_path / "out"]
    assert_one_line_error(library("detect", *rest, "--attack", "pdg-40"), "pdg-40", "pgd")
    assert_one_line_error(library("detect", *rest, "--eps", "-0.1"), "-0.1")
    assert library("detect", *rest, "--eps", "small").exit_code == 2
    assert_one_line_error(library("confusion", *rest, "--theta", "0.5"), "theta (=0.5)", "0.7, 0.8, 0.9, 0.97")
    assert not (tmp_path / "out").exists()


def test_a_lambda_out_of_range_is_refused(trained_run: Run, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "library"
    changes = ["--set", "images=64", "--set", "sets={}", "--set", "layers=[{layer: logits, theta: 0.9}]"]
    library_json("build", trained_run.path, recipe, "-o", folder, *changes, "--device", "cpu")
    result = library("predict", trained_run.path, "--library", folder, "--lambda", 1.5)
    assert_one_line_error(result, "lambda (=1.5)")
    assert not (folder / "predict").exists()


def test_the_help_has_the_plan_s_defaults() -> None:
    text = " ".join(library("detect", "--help").stdout.split())
    plan = DetectPlan()
    assert "fitted on other images, attacked by the first attack and by pgd-40 at each eps" in text
    assert "attacks and radii that it knows" in text
    assert f"[{','.join(f'{eps:g}' for eps in plan.eps)}]" in text and f"the paper's: {plan.attacks[0]}]" in text
    assert f"combination. [{plan.images}]" in text and f"libraries. [{plan.adaptive}]" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str) -> None:
    result = library(command, "--help")
    assert result.exit_code == 0 and "--json" in result.stdout


def test_schema_of_a_recipe_of_libraries(tmp_path: Path) -> None:
    printed = run("schema", "--library")
    assert json.loads(printed.stdout) == LibraryRecipe.json_schema()
    assert run("schema", "--library", "-o", tmp_path / "schema.json").exit_code == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == LibraryRecipe.json_schema()
    both = run("schema", "--library", "--explainer")
    assert both.exit_code == 2 and "--explainer and --library" in both.stderr


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    loaded = LibraryRecipe.load(path)
    assert LibraryRecipe.make(json.loads(loaded.model_dump_json())) == loaded and loaded.layers


def test_recipes_are_shipped() -> None:
    assert {"cifar10-resnet20", "digits-lenet"} <= {path.stem for path in SHIPPED}
