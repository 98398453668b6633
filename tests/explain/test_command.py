"""`explain train`, `explain export`, `export --explainer` and `predict --saliency`, in a row, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from deploytool.cli import cli
from deploytool.explain.explainer import Explainer, load_explainer
from deploytool.training.run import Run

RECIPE = """
name: tiny
student: {arch: resnet8}
explanation: {l1: 0.01}
schedule:
  student: {first: 1, then: 0}
  explanation: {first: 1, then: 0}
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def run_json(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def assert_one_line_error(result: Result, *words: str) -> None:
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path / "tiny.yaml"


def test_train_export_and_predict_in_a_row(plain_run: Run, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "explainer"
    arguments = ["explain", "train", plain_run.path, recipe, "-o", folder, "--set", "seed=3", "--device", "cpu"]
    trained = run_json(*arguments)
    assert trained["explainer"] == str(folder) and trained["epochs"] == 2 and trained["fidelity"] == "target"
    (row,) = trained["rows"]
    assert row["lambda"] is None and 0 <= row["agreement"] <= 1
    assert load_explainer(folder).recipe.seed == 3
    resumed = run(*arguments, "--resume")
    assert resumed.exit_code == 0 and "agree on H * x" in resumed.stdout and "explainer " in resumed.stdout

    file = tmp_path / "model.onnx"
    exported = run_json("export", plain_run.path, "--explainer", folder, "-o", file)
    assert set(exported["parity"]["outputs"]) == {"logits", "saliency"}
    picture = tmp_path / "digit.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(picture)
    (prediction,) = run_json("predict", file, picture, "--saliency", tmp_path / "maps")["predictions"]
    assert prediction["saliency"] == str(tmp_path / "maps" / "digit-saliency.png")
    assert Path(prediction["saliency"]).is_file()
    assert prediction["saliency"] in run("predict", file, picture, "--saliency", tmp_path / "maps").stdout
    assert "saliency" not in run_json("predict", file, picture)["predictions"][0]
    assert run_json("bench", file, "--threads", 1)["outputs"] == ["logits", "saliency"]

    own = run_json("explain", "export", folder)
    assert own["file"] == str(folder / "model.onnx") and set(own["parity"]["outputs"]) == {"logits", "saliency"}
    properties = {p.key: p.value for p in onnx.load(own["file"]).metadata_props}
    assert properties["deploytool.method"] == "surrogate"
    assert "saliency" in run_json("predict", own["file"], picture, "--saliency", tmp_path / "maps")["predictions"][0]


def test_refusals_are_one_line(
    trained_run: Run, plain_run: Run, float_explainer: Explainer, plain_file: Path, recipe: Path, tmp_path: Path
) -> None:
    file, picture = tmp_path / "m.onnx", tmp_path / "x.png"
    Image.new("L", (8, 8)).save(picture)
    foreign = run("export", plain_run.path, "--explainer", float_explainer.path, "-o", file)
    assert_one_line_error(foreign, str(plain_run.path), "trained to explain")
    none = run("export", trained_run.path, "--explainer", trained_run.path, "-o", file)
    assert_one_line_error(none, "is no explainer", "deploytool explain train")
    assert_one_line_error(run("explain", "export", tmp_path / "nothing"), "is no explainer")
    assert_one_line_error(run("explain", "train", tmp_path / "gone", recipe), "gone does not exist")
    assert_one_line_error(run("explain", "train", plain_run.path, recipe, "--set", "student.arc=x"), "arch")
    assert_one_line_error(run("predict", plain_file, picture, "--saliency", tmp_path / "maps"), "no output `saliency`")
    assert not file.exists() and not (tmp_path / "maps").exists()
    untrained = run("export", recipe, "--untrained", "-o", file, "--explainer", float_explainer.path)
    assert untrained.exit_code == 2 and "--explainer" in untrained.stderr


@pytest.mark.parametrize("command", ["train", "export"])
def test_every_command_has_help_and_json(command: str) -> None:
    result = run("explain", command, "--help")
    assert result.exit_code == 0 and "--json" in result.stdout


def test_the_help_says_whose_logits_a_file_of_its_own_has() -> None:
    text = " ".join(run("explain", "export", "--help").stdout.split())
    assert "as `logits` its student's, not its target's" in text
