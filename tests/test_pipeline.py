"""The pipeline runs every stage once, and goes on where it stopped."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploytool import pipeline
from deploytool.errors import LabelError, RunError
from deploytool.export.artefact import export_untrained
from deploytool.recipe import Recipe, load_recipe
from deploytool.report.acceptance import acceptance_table
from deploytool.report.summary import summary
from deploytool.runtime.predict import predict
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


@pytest.fixture(scope="module")
def reasoned(tmp_path_factory) -> tuple[Recipe, dict]:
    """A pipeline with reasoning labels that compares two weights of the class; its label map is gone afterwards."""
    folder = tmp_path_factory.mktemp("reasoned")
    labels = shutil.copy(RECIPE.parent / "labels" / "digits.yaml", folder / "labels.yaml")
    overrides = [f"reasoning.labels={labels}", "model.arch=resnet8", "optimizer.epochs=1", "attack.steps=1"]
    more = ["evaluate.attacks=[fgsm]", "evaluate.images=30", "reasoning.threshold=0.5"]
    compare = "pipeline={compare: {key: reasoning.alpha, values: [0.5, 0.75]}}"
    recipe = load_recipe(RECIPE.parent / "digits-reasoning.yaml", [*overrides, *more, compare])
    result = pipeline.run_pipeline(recipe, folder / "run")
    Path(labels).unlink()
    return recipe, result


def test_reasons_are_evaluated_and_shown(reasoned: tuple[Recipe, dict]) -> None:
    results = {stage["stage"]: stage["result"] for stage in reasoned[1]["stages"]}
    rows = results["evaluate"]["rows"]
    assert [row["attack"] for row in rows] == ["fgsm", "consistent-20"]
    run = Path(reasoned[1]["run"])
    (prediction,) = predict(run / "model.onnx", [run / "example.png"])
    assert results["report"]["verdicts"] == [{"lambda": None, "verdict": prediction["verdict"]}]
    text, report = summary(reasoned[1]), (run / "report.md").read_text()
    for shown, style in ((text, "simple"), (report, "github")):
        assert "What the reasoning labels accept, and what they detect, on the same 30 images" in shown
        assert acceptance_table(rows, style) in shown
        assert "The exported model on example.png" in shown and prediction["verdict"] in shown


def test_a_conditional_model_gives_its_verdict_at_both_ends_of_lambda(tmp_path: Path) -> None:
    labels = f"reasoning.labels={RECIPE.parent / 'labels' / 'digits.yaml'}"
    export_untrained(load_recipe(RECIPE, ["model.arch=resnet8", labels]), tmp_path / "m.onnx")
    Image.new("L", (8, 8), 99).save(tmp_path / "x.png")
    verdicts = pipeline.example_verdicts(str(tmp_path / "m.onnx"), str(tmp_path / "x.png"))
    assert [each["lambda"] for each in verdicts] == [0.0, 1.0]
    assert all(each["verdict"].startswith("classified ") for each in verdicts)


def test_what_is_trained_needs_its_label_map_no_more(reasoned: tuple[Recipe, dict], tmp_path: Path) -> None:
    recipe, result = reasoned
    run = Path(result["run"])
    again = pipeline.run_pipeline(recipe, run)
    assert all(stage["skipped"] for stage in again["stages"]) and len(again["stages"]) == len(STAGES)
    (run / "stages" / "evaluate.json").unlink()
    third = pipeline.run_pipeline(recipe, run)  # all the rest, from the checkpoints
    assert [stage["stage"] for stage in third["stages"] if stage["skipped"]] == ["train"]
    for folder in ("new", "run"):
        with pytest.raises(LabelError, match="cannot be read"):  # never trained, or a variant that was not
            if folder == "run":
                shutil.copytree(run, tmp_path / "run")
                shutil.rmtree(tmp_path / "run" / "compare")
            pipeline.run_pipeline(recipe, tmp_path / folder)
    assert not (tmp_path / "new").exists()


def test_without_reasons_nothing_is_said_of_them(finished: dict) -> None:
    results = {stage["stage"]: stage["result"] for stage in finished["stages"]}
    assert set(results["report"]) == {"markdown", "plot", "example"}
    assert {row["attack"] for row in results["evaluate"]["rows"]} == {"fgsm", "pgd-2"}
    assert not any("coverage" in row for row in results["evaluate"]["rows"])
    text, report = summary(finished), (Path(finished["run"]) / "report.md").read_text()
    assert not any(word in shown for word in ("reasoning labels", "verdict") for shown in (text, report))
