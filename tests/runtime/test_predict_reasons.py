"""From training to a verdict in words: a small network with reasoning labels, trained, exported, asked."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from deploytool.cli import cli
from deploytool.data.datasets import load_dataset
from deploytool.errors import InputError
from deploytool.export.artefact import export
from deploytool.recipe import load_recipe
from deploytool.runtime import Session
from deploytool.runtime.predict import predict
from deploytool.training.loop import train
from deploytool.training.run import Run, load_run

ROOT = Path(__file__).parents[2]
COUNT = 40


@pytest.fixture(scope="module")
def reasoning_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    changes = [
        "model.arch=resnet8",
        "optimizer.epochs=3",
        f"reasoning.labels={ROOT / 'recipes' / 'labels' / 'digits.yaml'}",
        "reasoning.threshold=0.9",
        "reasoning.every=0",
    ]
    folder = tmp_path_factory.mktemp("reasoning") / "run"
    train(load_recipe(ROOT / "recipes" / "digits-standard.yaml", changes), folder)
    return load_run(folder)


@pytest.fixture(scope="module")
def reasoning_file(reasoning_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(export(reasoning_run, tmp_path_factory.mktemp("file") / "model.onnx")["file"])


@pytest.fixture(scope="module")
def digits(reasoning_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[int]]:
    """Test images as pictures, and their classes."""
    folder = tmp_path_factory.mktemp("digits")
    images, labels = load_dataset(reasoning_run.recipe.data).test.batch(slice(0, COUNT))
    paths = [folder / f"{index:02}.png" for index in range(COUNT)]
    for path, image in zip(paths, images.numpy(), strict=True):
        Image.fromarray(np.round(image[0] * 255).astype(np.uint8)).save(path)
    return paths, labels.tolist()


def test_each_prediction_has_reasons_and_a_verdict(reasoning_run: Run, reasoning_file: Path, digits) -> None:
    paths, classes = digits
    labels = reasoning_run.labels
    assert labels is not None
    predictions = predict(reasoning_file, paths, threads=1)
    for prediction in predictions:
        own = {label.label for label in labels[prediction["class"]]}
        reasons, violated = prediction["reasons"], prediction["violated"]
        assert set(violated["says"]) == set(reasons) - own and set(violated["lacks"]) == own - set(reasons)
        wrong = len(violated["says"]) + len(violated["lacks"])
        assert prediction["agreement"] == pytest.approx(1 - wrong / len(labels.labels))
        assert prediction["threshold"] == 0.9 and prediction["accepted"] == (prediction["agreement"] >= 0.9)
        verdict = "accepted" if prediction["accepted"] else "rejected"
        assert prediction["verdict"].startswith(f"classified {prediction['class']}, {verdict}")
    pairs = zip(predictions, classes, strict=True)
    right = [prediction["agreement"] for prediction, own in pairs if prediction["class"] == str(own)]
    assert len(right) > COUNT / 2 and np.mean(right) > 0.8  # it has learnt something


def test_the_threshold_can_be_changed_at_run_time(reasoning_file: Path, digits) -> None:
    accepted: dict[float | None, list[bool]] = {}
    for threshold in (0.0, 0.9, 1.0, None):
        predictions = predict(reasoning_file, digits[0], threads=1, reasoning_threshold=threshold)
        accepted[threshold] = [prediction["accepted"] for prediction in predictions]
    assert all(accepted[0.0]) and accepted[None] == accepted[0.9]
    assert sum(accepted[1.0]) <= sum(accepted[0.9])


def test_int8_judges_as_float32_nearly_always(reasoning_run: Run, reasoning_file: Path, digits, tmp_path: Path) -> None:
    file = Path(export(reasoning_run, tmp_path / "m.onnx", quantize="int8", calibration_images=64)["file"])
    assert Session(file).metadata.precision == "int8"
    pairs = list(zip(predict(file, digits[0], threads=1), predict(reasoning_file, digits[0], threads=1), strict=True))
    assert np.mean([one["class"] == other["class"] for one, other in pairs]) > 0.9
    assert np.mean([abs(one["agreement"] - other["agreement"]) for one, other in pairs]) < 0.03


def test_the_command_line_says_the_verdict(reasoning_file: Path, digits) -> None:
    arguments = ["predict", str(reasoning_file), str(digits[0][0]), "--t-rsn", "1", "--threads", "1"]
    table = CliRunner().invoke(cli, arguments)
    assert table.exit_code == 0, table.output
    done = CliRunner().invoke(cli, [*arguments, "--json"])
    (prediction,) = json.loads(done.stdout)["predictions"]
    assert prediction["threshold"] == 1
    assert f"{digits[0][0]}: {prediction['verdict']}" in table.stdout.splitlines()


@pytest.mark.parametrize("threshold", ["1.5", "-1", "nan"])
def test_a_threshold_out_of_range_is_one_line(reasoning_file: Path, digits, threshold: str) -> None:
    done = CliRunner().invoke(cli, ["predict", str(reasoning_file), str(digits[0][0]), "--t-rsn", threshold])
    assert done.exit_code == 1 and done.stdout == ""
    assert "t_rsn" in done.stderr and "[0, 1]" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_file_without_reasons_takes_no_threshold_and_says_no_verdict(plain_file: Path, digits) -> None:
    (prediction,) = predict(plain_file, digits[0][:1], threads=1)
    assert set(prediction) == {"image", "class", "probability", "top", "lambda"}
    with pytest.raises(InputError, match="has no reasoning labels"):
        predict(plain_file, ["absent.png"], reasoning_threshold=0.5)
    done = CliRunner().invoke(cli, ["predict", str(plain_file), str(digits[0][0])])
    assert done.exit_code == 0 and "classified" not in done.stdout


def test_reasons_need_no_torch(reasoning_file: Path, digits) -> None:
    code = (
        "import sys; from deploytool.runtime.predict import predict\n"
        "print(predict(sys.argv[1], [sys.argv[2]], threads=1)[0]['verdict'])\n"
        "print(sorted({'torch', 'yaml', 'pydantic'} & set(sys.modules)))"
    )
    answer = subprocess.check_output([sys.executable, "-c", code, reasoning_file, digits[0][0]], text=True)
    (prediction,) = predict(reasoning_file, digits[0][:1], threads=1)
    assert answer.splitlines() == [prediction["verdict"], "[]"]
