"""Black-box attacks on files, and adversarial examples that are kept and checked again; both at the command line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from deploytool.attacks.store import load_adversarial
from deploytool.cli import cli
from deploytool.evaluation import evaluate
from deploytool.models.setting import Setting


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def document(result: Result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_one_line(result: Result, *words: str, code: int = 1) -> None:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    if code == 1:
        assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def test_a_file_falls_like_its_run(trained_run, trained_interpolate_file: Path) -> None:
    found = document(run(
        "evaluate", trained_interpolate_file, "--data", "digits", "--attack", "square:queries=100", "--eps", "0.2",
        "--lambda", "0,1", "--images", 80, "--threads", 1, "--json",
    ))  # fmt: skip
    settings = [Setting(lam, conditioning="interpolate") for lam in (0.0, 1.0)]
    expected = evaluate(trained_run, ["square:queries=100"], settings, images=80).rows
    for ours, theirs in zip(found["rows"], expected, strict=True):
        assert ours["lambda"] == theirs["lambda"] and ours["n"] == 80 and ours["eps"] == theirs["eps"] == 0.2
        assert ours["clean_accuracy"] == pytest.approx(theirs["clean_accuracy"], abs=1 / 80)
        assert ours["robust_accuracy"] == pytest.approx(theirs["robust_accuracy"], abs=3 / 80)
    assert [warning["check"] for warning in found["warnings"]] == ["black-box-alone"]


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--data", "digits", "--attack", "pgd-20", "--lambda", "0"], ["pgd-20", "gradients", "square"], 1),
        (["--data", "digits"], ["lambda"], 1),
        (["--data", "digits", "--lambda", "2"], ["2", "[0, 1]"], 1),
        (["--data", "digits", "--lambda", "0", "--width", "0.5"], ["width"], 1),
        (["--data", "digits", "--lambda", "0", "--eps", "-0.1"], ["eps", "-0.1"], 1),
        (["--data", "digits", "--lambda", "0", "--eps", "a/b"], ["a/b"], 2),
        (["--data", "no-such", "--lambda", "0"], ["no-such"], 1),
        (["--lambda", "0"], ["--data"], 2),
        (["--data", "digits", "--lambda", "0", "--noise", "none"], ["an ONNX FILE takes"], 2),
    ],
)
def test_bad_asks_of_a_file(trained_interpolate_file: Path, arguments, words, code) -> None:
    assert_one_line(run("evaluate", trained_interpolate_file, "--images", 8, *arguments), *words, code=code)


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--attack", "pgd-20:restrts=2"], ["restrts=2", "restarts"], 1),
        (["--attack", "pgd-20:restarts"], ["restarts", "key=value"], 1),
        (["--attack", "pgd-20:restarts=two"], ["two", "whole number"], 1),
        (["--attack", "pgd-20:restarts=0"], ["restarts", "0"], 1),
        (["--attack", "pgd-20:targeted=true"], ["targeted"], 1),
        (["--attack", "pgd-20:eps=8"], ["eps", "8", "8/255"], 1),
        (["--attack", "autoatack"], ["autoatack", "autoattack"], 1),
        (["--eps", "nan"], ["eps", "nan"], 1),
        (["--data", "digits"], ["--data"], 2),
        (["--adaptive"], ["reasoning labels", "leave it out"], 1),
        (["--noise", "loud"], ["loud"], 2),
    ],
)
def test_bad_asks_of_a_run(trained_run, arguments, words, code) -> None:
    assert_one_line(run("evaluate", trained_run.path, "--images", 8, *arguments), *words, code=code)


def test_noise_is_floats_alone(plain_run) -> None:
    assert_one_line(run("evaluate", plain_run.path, "--noise", "frozen"), "standard", "--noise")


def test_warnings_go_to_stderr_and_the_budget_to_the_table(trained_run) -> None:
    result = run(
        "evaluate", trained_run.path, "--attack", "pgd-2", "--attack", "deepfool:steps=3", "--lambda", "1",
        "--conditioning", "interpolate", "--images", 40, "--eps-l2", "0.3",
    )  # fmt: skip
    assert result.exit_code == 0
    assert "L-inf eps 0.2: pgd-2; L2 eps 0.3: deepfool:steps=3; 40 images, seed 0" in result.stdout
    assert "warning: " in result.stderr and "frozen" in result.stderr and "warning" not in result.stdout


@pytest.fixture
def saved(trained_run, tmp_path: Path) -> Path:
    found = document(run(
        "evaluate", trained_run.path, "--attack", "pgd-3", "--lambda", "1", "--conditioning", "switch",
        "--lambda-threshold", "0.5", "--images", 60, "--save", tmp_path / "kept", "--json",
    ))  # fmt: skip
    (only,) = found["rows"]
    assert Path(only["file"]).name == "pgd-3-lambda-1-switch-threshold-0.5.npz"
    return Path(only["file"])


def test_kept_examples_hold_for_the_run_that_was_attacked(trained_run, saved: Path) -> None:
    found = document(run("verify", saved, trained_run.path, "--json"))
    assert found["holds"] and found["same_model"] and found["images"] == 60
    assert found["setting"]["lambda_threshold"] == 0.5 and found["attack"] == "pgd-3" and found["eps"] == 0.2


def test_a_network_that_draws_noise_anew_is_held_to_no_answer(trained_run, tmp_path: Path) -> None:
    setting = Setting(1.0, conditioning="interpolate", noise="redrawn")
    evaluate(trained_run, ["pgd-3"], [setting], images=60, save=tmp_path, checks=False)
    found = document(run("verify", tmp_path / "pgd-3-lambda-1-interpolate.npz", trained_run.path, "--json"))
    assert found["holds"] is None and found["same_model"]


@pytest.mark.parametrize(("lam", "words"), [("7", "lambda (=7) must be"), ("nan", "lambda (=nan)")])
def test_a_wrong_lambda_is_not_blamed_on_the_file(trained_run, saved: Path, lam: str, words: str) -> None:
    assert words in run("verify", saved, trained_run.path, "--lambda", lam).stderr


def test_a_run_without_lambda_is_given_none(plain_run, saved: Path) -> None:
    assert "takes no lambda" in run("verify", saved, plain_run.path, "--lambda", "0.5").stderr


def test_another_network_is_told_what_transfers(trained_run, plain_run, trained_file: Path, saved: Path) -> None:
    other = document(run("verify", saved, plain_run.path, "--json"))
    assert other["same_model"] is False
    file = document(run("verify", saved, trained_file, "--lambda", "1", "--json"))
    assert file["robust_accuracy"] == pytest.approx(file["recorded_robust_accuracy"], abs=2 / 60)


def test_rounding_of_another_device_is_let_pass(trained_run, saved: Path) -> None:
    from deploytool.evaluation.saved import verification_document, verify_examples

    result, record = verify_examples(saved, trained_run.path)
    flipped = replace(result, no_longer_fooled=1, robust_accuracy=0.5)
    assert (
        verification_document(saved, result, record)["holds"]
        and not verification_document(saved, flipped, record)["holds"]
    )
    assert verification_document(saved, flipped, {**record, "device": "cuda"})["holds"]
    many = replace(flipped, newly_fooled=1)
    assert not verification_document(saved, many, {**record, "device": "cuda"})["holds"]
    outside = replace(flipped, outside_ball=1)
    assert not verification_document(saved, outside, {**record, "torch": "1.0"})["holds"]


def test_what_does_not_hold_is_an_error(trained_run, saved: Path) -> None:
    examples = load_adversarial(saved)
    arrays = dict(np.load(saved))
    for name, change in {
        "adversarial": np.clip(arrays["adversarial"] + 0.1, 0, 1),
        "fooled": ~arrays["fooled"],
        "image": np.clip(arrays["image"] * 0.5, 0, 1),
    }.items():
        np.savez(saved, **{**arrays, name: change})
        result = run("verify", saved, trained_run.path, "--json")
        assert result.exit_code == 1 and "does not hold" in result.stderr and not json.loads(result.stdout)["holds"]
    assert examples.record["setting"]["lambda"] == 1


def test_bad_examples_get_one_line(trained_run, plain_run, saved: Path, tmp_path: Path) -> None:
    assert_one_line(run("verify", tmp_path / "absent.npz", trained_run.path), "absent.npz")
    assert_one_line(run("verify", saved, tmp_path / "absent"), "absent")
    saved.write_bytes(saved.read_bytes()[:200])
    assert_one_line(run("verify", saved, trained_run.path), "pgd-3", "evaluate --save")


def test_examples_of_a_network_without_lambda_need_one(plain_run, trained_run, tmp_path: Path) -> None:
    arguments = "evaluate", plain_run.path, "--attack", "fgsm", "--images", 20, "--save", tmp_path, "--json"
    (only,) = document(run(*arguments))["rows"]
    assert_one_line(run("verify", only["file"], trained_run.path), "--lambda")
    assert document(run("verify", only["file"], trained_run.path, "--lambda", "0", "--json"))["images"] == 20


def test_training_images_can_be_attacked_for_retraining(plain_run, tmp_path: Path) -> None:
    found = document(run(
        "evaluate", plain_run.path, "--attack", "fgsm", "--split", "train", "--images", 30, "--save", tmp_path, "--json"
    ))  # fmt: skip
    from deploytool.data.datasets import load_dataset

    train = load_dataset(plain_run.recipe.data).train
    assert found["split"] == "train"
    np.testing.assert_array_equal(load_adversarial(found["rows"][0]["file"]).label, train.labels[:30])
