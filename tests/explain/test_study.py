"""`deploytool stability`: rows over a run's settings, files, one line for bad input."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from deploytool.cli import cli
from deploytool.data.datasets import load_dataset
from deploytool.errors import InputError
from deploytool.explain import study
from deploytool.explain.stability import blur_stability, patch_stability
from deploytool.explain.study import Plan, draw, study_settings
from deploytool.models.setting import Setting
from deploytool.training.run import Run

KEYS = {
    "attribution", "change", "lambda", "lambda_threshold", "conditioning", "noise", "width", "layer", "ssd_mean",
    "ssd_std", "ssd_unrelated_mean", "rank_correlation_mean", "constant_maps", "prediction_changed", "n", "seed",
    "seconds",
}  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["stability", *map(str, arguments), "--device", "cpu", "--threads", "1"])


def test_rows_are_the_contract(trained_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    chosen = ("--images", 6, "--seed", 3, "--lambda", "0,1", "--lambda-threshold", "0,0.5", "-o", folder)
    result = run(trained_run.path, *chosen, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    rows = document["rows"]
    assert [(row["attribution"], row["lambda_threshold"], row["lambda"]) for row in rows] == [
        (method, threshold, lam) for method in ("sliding-patch", "grad-cam") for threshold in (0, 0.5) for lam in (0, 1)
    ]
    for row in rows:
        assert set(row) == KEYS and (row["n"], row["seed"], row["conditioning"]) == (6, 3, "switch")
        assert 0 <= row["ssd_mean"] <= 64 and row["ssd_std"] >= 0 and row["seconds"] > 0
        assert -1 <= row["rank_correlation_mean"] <= 1 and 0 <= row["constant_maps"] <= 1
    patches, blurs = rows[:4], rows[4:]
    assert {(row["change"], row["layer"], row["prediction_changed"]) for row in patches} == {
        ("patch 4 to 2, stride 2", None, None)
    }
    assert {(row["change"], row["layer"]) for row in blurs} == {("blur sigma 0.5", "layer3")}
    assert all(0 <= row["prediction_changed"] <= 1 for row in blurs)
    assert {"run", "data", "pixels", "patch", "stride", "fill", "sigma", "device", "torch", "captum"} <= set(document)

    files = document["files"]
    assert json.loads(Path(files["json"]).read_text())["rows"] == rows
    assert "| sliding-patch" in Path(files["md"]).read_text()
    for method in ("sliding-patch", "grad-cam"):
        with Image.open(files["figures"][method]["png"]) as picture:
            assert min(picture.size) > 500
        assert "</svg>" in Path(files["figures"][method]["svg"]).read_text()
    assert len(list(folder.iterdir())) == 6  # nothing temporary is left


def test_the_numbers_are_those_of_the_network(trained_run: Run) -> None:
    plan = Plan(images=7, seed=1, sizes=(3, 2), stride=1, sigma=1.0)
    setting = Setting(0.7, 0.5)
    rows = study.stability(trained_run, plan, [setting])["rows"]
    image = draw(load_dataset(trained_run.recipe.data).test, plan.images, plan.seed)
    network = trained_run.model.plain_network(setting)
    for row, found in zip(
        rows, (patch_stability(network, image, (3, 2), 1), blur_stability(network, image, 1.0)), strict=True
    ):
        values = found.ssd.tolist()
        mean = sum(values) / 7
        assert row["ssd_mean"] == pytest.approx(mean, rel=1e-9)
        assert row["ssd_std"] == pytest.approx((sum((v - mean) ** 2 for v in values) / 7) ** 0.5, rel=1e-6)
        assert row["ssd_unrelated_mean"] == pytest.approx(float(found.unrelated.mean()))


def test_reasoning_labels_are_no_classes(reasoned_run: Run) -> None:
    """Maps explain the class, and the head for reasons changes nothing about them."""
    plan = Plan(images=5, sizes=(3, 2), stride=2)
    rows = study.stability(reasoned_run, plan, [Setting(noise="none")])["rows"]
    image = draw(load_dataset(reasoned_run.recipe.data).test, plan.images, plan.seed)
    with_head = reasoned_run.model.plain_network(Setting(noise="none"), reasoning=True)

    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = with_head

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network(image)[:, :10]

    expected = patch_stability(Classes().eval(), image, (3, 2), 2)
    assert rows[0]["ssd_mean"] == pytest.approx(float(expected.ssd.mean()), rel=1e-4)
    assert rows[1]["layer"] == study.feature_layer(reasoned_run.model.plain_network(Setting()), image, None)


def test_a_method_without_lambda_has_one_setting_and_settings_are_words(plain_run: Run) -> None:
    result = run(plain_run.path, "--images", 3, "--method", "grad-cam", "--json")
    (row,) = json.loads(result.stdout)["rows"]
    assert [row[key] for key in ("lambda", "lambda_threshold", "conditioning")] == [None] * 3 and row["n"] == 3
    table = run(plain_run.path, "--images", 1, "--method", "grad-cam")
    assert table.exit_code == 0 and "SSD" in table.stdout and "lambda" not in table.stdout and table.stderr == ""


def test_equal_networks_are_measured_once(trained_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[nn.Module] = []
    plain = type(trained_run.model).plain_network
    monkeypatch.setattr(
        type(trained_run.model), "plain_network", lambda *given: built.append(plain(*given)) or built[-1]
    )
    settings = [Setting(0.0), Setting(0.0, 0.5), Setting(1.0), Setting(1.0, 0.5)]
    rows = study.stability(trained_run, Plan(("grad-cam",), images=2), settings)["rows"]
    assert len(rows) == 4 and len(built) == 1 + 2  # one to check the arguments with
    assert rows[0]["ssd_mean"] == rows[1]["ssd_mean"]


def test_settings_are_those_of_the_recipes_method(trained_run: Run, plain_run: Run) -> None:
    recipe = trained_run.recipe
    method = recipe.method.model_copy(update={"conditioning": "switch", "lambda_threshold": 0.5})
    switch = recipe.model_copy(update={"method": method})
    assert [(s.lam, s.lambda_threshold, s.conditioning) for s in study_settings(switch)] == [
        (lam, 0.5, "switch") for lam in recipe.evaluate.lambdas
    ]
    mixed = recipe.model_copy(update={"method": method.model_copy(update={"conditioning": "interpolate"})})
    assert {s.conditioning for s in study_settings(mixed)} == {"interpolate"}
    assert [(s.lambda_threshold, s.conditioning) for s in study_settings(mixed, [1.0], [0.0])] == [(0.0, "switch")]
    assert len(study_settings(plain_run.recipe)) == 1
    with pytest.raises(InputError, match="takes no lambda"):
        study_settings(plain_run.recipe, [0.5])


def test_images_are_drawn_once_each_by_the_seed(plain_run: Run) -> None:
    test = load_dataset(plain_run.recipe.data).test
    everything = draw(test, 10_000, 0)
    assert len(everything) == len(test) == 500
    assert sorted(x.numpy().tobytes() for x in everything) == sorted(x.numpy().tobytes() for x in test.images)
    assert torch.equal(draw(test, 5, 0), everything[:5])
    assert not torch.equal(draw(test, 5, 1), everything[:5])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--patch", "9,2"], ["patch size (=9)", "at most 8"]),
        (["--patch", "4"], ["patch (=4)", "4,2"]),
        (["--stride", "0"], ["stride (=0)"]),
        (["--stride", "3"], ["stride (=3)", "1..2"]),
        (["--sigma", "0"], ["sigma (=0.0)", "[0.1, 1.75]"]),
        (["--sigma", "nan"], ["sigma (=nan)"]),
        (["--sigma", "100"], ["sigma (=100.0)"]),
        (["--layer", "layer4"], ["'layer4'", "did you mean layer3"]),
        (["--layer", "linear"], ["'linear'", "the default is layer3"]),
        (["--lambda", "2"], ["lambda (=2)"]),
        (["--lambda-threshold", "0.3"], ["0.3", "0 or 0.5"]),
        (["--width", "0.5"], ["width (=0.5)"]),
        (["--device", "tpu"], ["tpu", "try cpu"]),
    ],
)
def test_bad_input_gets_one_line_before_anything_is_measured(
    trained_run: Run, arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "_measure", lambda *given: pytest.fail("measured"))
    options = ["--device", "cpu", "--threads", "1", *arguments, "-o", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(cli, ["stability", str(trained_run.path), *options])
    assert result.exit_code == 1, result.output
    assert result.stdout == "" and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["--images", "0"], ["--method", "lime"], ["--patch", "4,x"], ["-o", __file__], ["--seed", "-1"]]
)
def test_usage_errors_exit_with_2(trained_run: Run, arguments: list[str]) -> None:
    assert run(trained_run.path, *arguments).exit_code == 2


def test_a_network_that_answers_nan_is_told(trained_run: Run) -> None:
    broken = trained_run.model.plain_network(Setting())
    torch.nn.init.constant_(broken.linear.bias, torch.nan)
    with pytest.raises(InputError, match="NaN or infinity"):
        patch_stability(broken, torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"images": 0}, "images \\(=0\\)"), ({"seed": -1}, "seed \\(=-1\\)"), ({"methods": ("lime",)}, "lime.*grad-cam")],
)
def test_a_plan_is_checked_where_it_is_made(arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Plan(**arguments)


def test_a_plan_names_what_changes() -> None:
    plan = Plan(sizes=(6, 3), stride=3, sigma=1.5)
    assert plan.change("sliding-patch") == "patch 6 to 3, stride 3" and plan.change("grad-cam") == "blur sigma 1.5"
    assert dataclasses.replace(plan, sizes=(4, 2)).sides("sliding-patch") == ("patch 4x4", "patch 2x2")
