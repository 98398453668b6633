"""The pipeline runs every stage once, and goes on where it stopped."""

import json
from pathlib import Path

import numpy as np
import pytest

from deploytool import pipeline
from deploytool.errors import RunError
from deploytool.recipe import Recipe, load_recipe
from deploytool.report.summary import summary
from deploytool.runtime.session import Session

STAGES = ["train", "evaluate", "compare", "export", "bench", "cost", "report"]
RECIPE = Path(__file__).parents[1] / "recipes" / "digits-float.yaml"


@pytest.fixture(scope="module")
def small_recipe() -> Recipe:
    overrides = ["model.arch=resnet8", "optimizer.epochs=2", "attack.steps=1", "evaluate.attacks=[fgsm, pgd-2]"]
    return load_recipe(RECIPE, [*overrides, "evaluate.images=100", "evaluate.lambdas=[0, 1]"])


@pytest.fixture(scope="module")
def finished(small_recipe: Recipe, tmp_path_factory) -> dict:
    return pipeline.run_pipeline(small_recipe, tmp_path_factory.mktemp("pipeline") / "run")


def test_all_stages_run_and_leave_their_files(finished: dict) -> None:
    run = Path(finished["run"])
    assert [stage["stage"] for stage in finished["stages"]] == STAGES
    assert not any(stage["skipped"] for stage in finished["stages"])
    for file in ("recipe.yaml", "checkpoint.safetensors", "metrics.json", "model.onnx", "report.md", "tradeoff.png"):
        assert (run / file).stat().st_size > 0
    assert (run / "tradeoff.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    json.dumps(finished, allow_nan=False)


def test_the_exported_model_answers_differently_for_lambda_0_and_1(finished: dict) -> None:
    session = Session(Path(finished["run"]) / "model.onnx")
    image = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    assert np.abs(session(image, 0.0) - session(image, 1.0)).max() > 1e-3


def test_the_comparison_has_every_noise_mode_and_conditioning(finished: dict) -> None:
    compared = next(stage["result"] for stage in finished["stages"] if stage["stage"] == "compare")
    assert {row["value"] for row in compared["rows"]} == {"redrawn", "frozen", "none"}
    assert {row["conditioning"] for row in compared["rows"]} == {"switch", "interpolate"}
    assert set(compared["alphas"]) == {"redrawn", "frozen", "none"}


def test_summary_and_report_show_the_tables_and_where_the_model_lies(finished: dict) -> None:
    text, report = summary(finished), (Path(finished["run"]) / "report.md").read_text()
    for words in ("Accuracy on 100 test images", "Side by side", "Learned noise scaling", "65 nm ASIC"):
        assert words in text and words in report
    assert str(Path(finished["run"]) / "model.onnx") in text.splitlines()[-1]


def test_a_second_call_skips_everything(finished: dict, small_recipe: Recipe) -> None:
    again = pipeline.run_pipeline(small_recipe, Path(finished["run"]))
    assert all(stage["skipped"] for stage in again["stages"])
    assert [s["result"] for s in again["stages"]] == [s["result"] for s in finished["stages"]]


def test_it_goes_on_at_the_first_unfinished_stage(small_recipe: Recipe, tmp_path: Path, monkeypatch) -> None:
    quick = small_recipe.model_copy(update={"pipeline": small_recipe.pipeline.model_copy(update={"compare": None})})
    run = tmp_path / "run"

    def broken(*arguments: object) -> dict:
        raise RuntimeError("the power went")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the power went"):
        patch.setitem(pipeline.STAGES, "export", broken)
        pipeline.run_pipeline(quick, run)
    resumed = pipeline.run_pipeline(quick, run)
    assert {stage["stage"]: stage["skipped"] for stage in resumed["stages"]} == {
        "train": True, "evaluate": True, "export": False, "bench": False, "cost": False, "report": False,
    }  # fmt: skip

    (run / "stages" / "bench.json").write_text("{ half a record")
    (run / "model.onnx").unlink()
    third = pipeline.run_pipeline(quick, run)
    assert [stage["stage"] for stage in third["stages"] if stage["skipped"]] == ["train", "evaluate"]
    assert (run / "model.onnx").exists()


@pytest.mark.parametrize("method", ["standard", "oat"])
def test_every_method_goes_through_slim_and_sparse(method: str, tmp_path: Path) -> None:
    overrides = ["model.arch=resnet8", "optimizer.epochs=1", "attack.steps=1", "evaluate.attacks=fgsm"]
    more = ["model.widths=[0.5, 1.0]", "sparsity={density: 0.3}", "evaluate.images=50", "evaluate.lambdas=[0, 1]"]
    changes = [f"method={{name: {method}}}", "pipeline.compare=null", "evaluate.conditionings=null"]
    recipe = load_recipe(RECIPE, [*overrides, *more, *changes])
    result = pipeline.run_pipeline(recipe, tmp_path / "run")
    text = summary(result)
    assert "width" in text.splitlines()[2] and "65 nm ASIC" in text
    assert Session(tmp_path / "run" / "model.onnx").metadata.widths == (0.5, 1.0)


def test_a_run_of_another_recipe_is_refused(finished: dict, small_recipe: Recipe) -> None:
    other = small_recipe.model_copy(update={"seed": 5})
    with pytest.raises(RunError, match="seed 0 -> 5"):
        pipeline.run_pipeline(other, Path(finished["run"]))
