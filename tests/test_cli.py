"""The command line's contract: JSON keys, exit codes, one clear line for bad input."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from deploytool.cli import cli
from deploytool.cli.base import warnings_in_one_line
from deploytool.runtime.session import SpecializationWarning

COMMANDS = (
    "train", "evaluate", "verify", "robustness", "stability", "export", "specialize", "bench", "cost", "calibrate",
    "predict", "pipeline", "compare", "labels", "reasoning", "models", "schema",
    "explain train", "explain export", "explain compare",
)  # fmt: skip
RECIPES = Path(__file__).parents[1] / "recipes"
RECIPE = str(RECIPES / "digits-float.yaml")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def run_json(*arguments: object) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_one_line_error(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert command == "schema" or "--json" in result.stdout


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "onnx", "onnxruntime", "pydantic", "yaml", "rich", "tabulate"}
    code = f"import sys, deploytool.cli; print(sorted({heavy!r} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_evaluate_gives_the_contract_rows(trained_run) -> None:
    document = run_json(
        "evaluate", trained_run.path, "--attack", "fgsm", "--lambda", "0,1", "--lambda-threshold", "0,0.5",
        "--conditioning", "switch", "--images", 64, "--device", "cpu",
    )  # fmt: skip
    rows = document["rows"]
    assert [(row["lambda_threshold"], row["lambda"]) for row in rows] == [(0, 0), (0, 1), (0.5, 0), (0.5, 1)]
    for row in rows:
        assert {"attack", "lambda", "lambda_threshold", "width", "clean_accuracy", "robust_accuracy", "n"} <= set(row)
        assert row["n"] == 64 and 0 <= row["robust_accuracy"] <= 1 and 0 <= row["clean_accuracy"] <= 1


def test_export_specialize_predict_cost_bench_in_a_row(trained_run, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    exported = run_json("export", trained_run.path, "-o", file, "--conditioning", "switch", "--lambda-threshold", 0.5)
    assert exported["file"] == str(file) and exported["size_mb"] == pytest.approx(file.stat().st_size / 1e6, abs=1e-6)
    assert exported["parity"]["max_abs_error"] <= 1e-3 and exported["parity"]["cases"] == 20

    plain = run_json("specialize", file, "--lambda", 0.3, "-o", tmp_path / "plain.onnx")
    assert plain["max_abs_error"] <= 1e-4

    picture = tmp_path / "digit.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(picture)
    generic = run_json("predict", file, picture, "--lambda", 0.3)["predictions"][0]
    special = run_json("predict", tmp_path / "plain.onnx", picture)["predictions"][0]
    assert generic["class"] == special["class"]
    assert generic["probability"] == pytest.approx(special["probability"], abs=1e-5)

    cost = run_json("cost", file, "--set", "b_io=64", "--set", "b_w=8", "--set", "n_bank=4", "--set", "n_mult=175")
    assert {"name", "kind", "macs", "delay_ns"} <= set(cost["layers"][0])
    assert cost["totals"]["delay_ns"] == pytest.approx(sum(layer["delay_ns"] for layer in cost["layers"]))

    measured = run_json("bench", file, "--vs", tmp_path / "plain.onnx", "--threads", 1, "--lambda", 0.3)
    for key in ("p50_ms", "p90_ms", "p99_ms", "throughput_ips", "peak_rss_mb", "size_mb", "ratio_vs"):
        assert measured[key] > 0
    assert measured["p50_ms"] <= measured["p90_ms"] <= measured["p99_ms"]


def test_cost_of_a_specialised_file_is_the_plain_one(trained_file: Path, tmp_path: Path) -> None:
    run_json("specialize", trained_file, "--lambda", 0.3, "-o", tmp_path / "plain.onnx")
    fixed, changing = run_json("cost", tmp_path / "plain.onnx"), run_json("cost", trained_file)
    assert fixed["totals"]["delay_ns"] < changing["totals"]["delay_ns"]
    assert fixed["totals"]["delay_ns"] == run_json("cost", trained_file, "--method", "plain")["totals"]["delay_ns"]


def test_a_slimmable_file_is_specialised_to_a_width(tmp_path: Path) -> None:
    file = tmp_path / "slim.onnx"
    slim = ["--set", "model.arch=resnet8", "--set", "model.widths=[0.5, 1.0]"]
    run_json("export", RECIPE, "--untrained", "-o", file, *slim)
    half = run_json("specialize", file, "--lambda", 0.5, "--width", 0.5)
    assert half["file"] == str(tmp_path / "slim-lambda-0.5-width-0.5.onnx") and half["max_abs_error"] <= 1e-4
    full = run_json("specialize", file, "--lambda", 0.5, "-o", tmp_path / "full.onnx")
    assert half["size_mb"] < 0.4 * full["size_mb"]
    assert_one_line_error(run("specialize", file, "--lambda", 0.5, "--width", 0.75), "0.75", "0.5, 1")
    assert_one_line_error(run("specialize", file, "--width", 0.5), "lambda in [0, 1]")
    macs = {width: run_json("cost", file, "--width", width)["totals"]["macs"] for width in (0.5, 1)}
    assert run_json("cost", file)["totals"]["macs"] == macs[1] > 3 * macs[0.5]
    assert_one_line_error(run("cost", file, "--width", 0.75), "0.75", "0.5, 1")


def test_a_sweep_writes_its_table_and_figure(wide_file: Path, tmp_path: Path) -> None:
    chosen = ["--lambda", "0.2,0.8", "--width", "0.5", "--precision", "float32", "--threads", "1"]
    document = run_json("bench", wide_file, "--sweep", *chosen, "--batch", 2, "-o", tmp_path / "swept")
    assert [(row["lambda"], row["width"], row["threads"]) for row in document["rows"]] == [(0.2, 0.5, 1), (0.8, 0.5, 1)]
    assert (document["batch"], document["rows"][0]["ratio"]) == (2, 1)
    assert document["files"] == {
        kind: str(tmp_path / "swept" / f"sweep.{kind}") for kind in ("json", "md", "png", "svg")
    }
    assert all(Path(file).stat().st_size for file in document["files"].values())
    table = run("bench", wide_file, "--sweep", *chosen)
    assert table.exit_code == 0 and table.stderr == "" and "ratio" in table.stdout and "written" not in table.stdout


def test_a_bad_sweep_gets_one_line_and_writes_nothing(wide_file: Path, plain_file: Path, tmp_path: Path) -> None:
    sweep = ["--sweep", "-o", tmp_path / "swept"]
    assert_one_line_error(run("bench", wide_file, *sweep, "--lambda", "0,1.5"), "1.5", "[0, 1]")
    assert_one_line_error(run("bench", wide_file, *sweep, "--width", "0.75"), "0.75", "0.5, 1")
    assert_one_line_error(run("bench", wide_file, *sweep, "--precision", "int8"), "int8", "--quantize int8")
    assert_one_line_error(run("bench", wide_file, *sweep, "--threads", "0"), "threads (=0)")
    assert_one_line_error(run("bench", plain_file, *sweep, "--lambda", "0.5"), "leave it out")
    assert_one_line_error(run("bench", plain_file, "--width", "0.5"), "leave it out")
    assert not (tmp_path / "swept").exists()


def test_one_width_and_precision_can_be_measured(wide_file: Path) -> None:
    measured = run_json("bench", wide_file, "--lambda", 0.3, "--width", 0.5, "--precision", "float32", "--threads", 1)
    assert [measured[key] for key in ("lambda", "width", "precision", "threads")] == [0.3, 0.5, "float32", 1]


def test_export_untrained_needs_no_run(tmp_path: Path) -> None:
    document = run_json("export", RECIPE, "--untrained", "-o", tmp_path / "fresh.onnx", "--set", "model.arch=resnet8")
    assert Path(document["file"]).exists()


def test_schema_knows_every_section() -> None:
    result = run("schema")
    assert {"data", "model", "method", "attack", "optimizer", "evaluate"} <= set(
        json.loads(result.stdout)["properties"]
    )
    explainer = json.loads(run("schema", "--explainer").stdout)["properties"]
    assert {"student", "distillation", "explanation", "schedule", "condition"} <= set(explainer)


def test_models_lists_every_backbone_and_method() -> None:
    rows = run_json("models", "--data", "tiny-imagenet")["models"]
    listed = {(row["arch"], row["method"]) for row in rows}
    assert listed >= {("resnet34", "float"), ("vgg16", "standard"), ("mobilenet", "pgd-at"), ("resnet50", "float")}
    assert {row["dataset"] for row in rows} == {"tiny-imagenet"}
    table = run("models")
    assert table.exit_code == 0 and "resnet34" in table.stdout and "21.282" in table.stdout
    assert_one_line_error(run("models", "--data", "cifar-10"), "cifar-10", "did you mean cifar10")


def test_text_output_is_a_table(trained_run) -> None:
    result = run("evaluate", trained_run.path, "--attack", "fgsm", "--lambda", "1", "--images", 32)
    assert result.exit_code == 0 and "fgsm" in result.stdout and "clean" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "absent.yaml"], ["absent.yaml", "No such file"]),
        (["train", RECIPE, "--set", "optimiser.lr=1"], ["optimiser", "did you mean optimizer"]),
        (["train", RECIPE, "--set", "method.name=flot"], ["flot", "did you mean float"]),
        (["train", RECIPE, "--set", "model.arch=resnet-34"], ["resnet-34", "did you mean resnet34"]),
        (["train", RECIPE, "--device", "tpu"], ["tpu", "try cpu"]),
        (["pipeline", RECIPE, "--set", "optimizer.lr=-1"], ["optimizer.lr", "-1"]),
        (["evaluate", "absent"], ["absent", "deploytool train"]),
        (["export", "absent"], ["absent"]),
        (["specialize", "absent.onnx", "--lambda", "0.5"], ["absent.onnx"]),
        (["predict", "absent.onnx", "x.png"], ["absent.onnx"]),
        (["bench", "absent.onnx"], ["absent.onnx"]),
        (["cost", "absent.onnx"], ["absent.onnx"]),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], words: list[str], tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(run(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_get_one_line(trained_run, trained_file: Path, plain_run, tmp_path: Path) -> None:
    assert_one_line_error(run("evaluate", trained_run.path, "--lambda", "1.5"), "1.5", "[0, 1]")
    assert_one_line_error(run("evaluate", trained_run.path, "--attack", "pgd"), "'pgd'", "pgd-7")
    assert_one_line_error(run("evaluate", trained_run.path, "--lambda-threshold", "0.3"), "0.3", "0 or 0.5")
    assert_one_line_error(run("specialize", trained_file, "--lambda", "nan"), "nan", "[0, 1]")
    assert_one_line_error(
        run("export", plain_run.path, "-o", tmp_path / "x.onnx", "--conditioning", "switch"), "standard"
    )
    assert_one_line_error(run("cost", trained_file, "--set", "n_mult=0"), "n_mult")
    assert_one_line_error(run("cost", trained_file, "--set", "n_mult"), "key=value")
    assert_one_line_error(run("cost", trained_file, "--profile", "no-such"), "no-such")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["nonsense"],
        ["evaluate", "x", "--lambda", "0,a"],
        ["export", "x", "--untrained"],
        ["bench", "x", "--batch", "0"],
        ["bench", "x", "--lambda", "0,1"],
        ["bench", "x", "--threads", "1,2"],
        ["bench", "x", "--threads", "1.5"],
        ["bench", "x", "-o", "folder"],
        ["bench", "x", "--sweep", "--vs", "y"],
        ["bench", "x", "--sweep", "--generic"],
        ["bench", "x", "--sweep", "-o", __file__],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_missing_extra_names_the_command(monkeypatch) -> None:
    monkeypatch.setattr("deploytool.extras.find_spec", lambda name: None)
    assert_one_line_error(run("train", RECIPE), "torch", "pip install 'deploytool[train]'")


@pytest.mark.filterwarnings("always::deploytool.labels.label_map.EqualVectorsWarning")
def test_classes_with_equal_reasons_are_told_in_one_line_and_once(tmp_path: Path) -> None:
    folder, labels = tmp_path / "run", RECIPES / "labels" / "digits.yaml"
    changes = [f"reasoning.labels={labels}", "reasoning.per_class=1", "model.arch=resnet8", "optimizer.epochs=0"]
    arguments = [part for change in changes for part in ("--set", change)]
    result = run("train", RECIPES / "digits-reasoning.yaml", "-o", folder, *arguments)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if "have the same labels" in line]
    assert lines and len(lines) == len(set(lines)) and all(line.startswith(f"warning: {labels}: ") for line in lines)
    assert "EqualVectorsWarning" not in result.stderr and "factory.py" not in result.stderr
    again = run("export", folder)
    assert again.exit_code == 0 and "same labels" not in again.stderr


def test_a_warning_of_ours_is_one_line_and_others_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="of another package") as others, warnings_in_one_line():
        for text in ("lambda 0.5\nfailed", "lambda 0.5\nfailed", "lambda 1 failed", "of another package"):
            warnings.warn(text, UserWarning if "another" in text else SpecializationWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: lambda 0.5 failed\nwarning: lambda 1 failed\n"
    assert len(others) == 1
