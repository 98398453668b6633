"""`explain compare`: rows that are what they say, units that are computed once, one line for bad input."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from click.testing import CliRunner, Result
from torch import nn

from deploytool.cli import cli
from deploytool.cli.comparison import compare as command
from deploytool.data.datasets import load_dataset
from deploytool.errors import InputError, RunError
from deploytool.explain import comparison, speed
from deploytool.explain.attribution import sliding_patch
from deploytool.explain.comparison import compare
from deploytool.explain.explainer import Explainer, load_explainer, surrogate_setting
from deploytool.explain.faithfulness import deletion, insertion
from deploytool.explain.rise import rise
from deploytool.explain.rivals import METHODS, ComparePlan, patch
from deploytool.explain.study import draw
from deploytool.explain.target import Target, open_target
from deploytool.training.run import Run

KEYS = {
    "method", "insertion", "insertion_se", "insertion_difference", "insertion_difference_se", "deletion",
    "deletion_se", "deletion_difference", "deletion_difference_se", "mean_intensity", "constant_maps", "fps",
    "times_of_inference", "n",
}  # fmt: skip
PLAN = ComparePlan(images=6, slow_images=3, masks=40, samples=20, seed=1)
FAST = ComparePlan(("surrogate", "center"), images=3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rounds, and no session, which takes longer to make than these images take."""
    monkeypatch.setattr(speed, "ROUNDS", 2)
    monkeypatch.setattr(speed, "fast_network", lambda network, shape: network)


@pytest.fixture
def explainer(float_explainer: Explainer, tmp_path: Path) -> Explainer:
    """The session's explainer in a folder of its own: a comparison writes there."""
    return load_explainer(shutil.copytree(float_explainer.path, tmp_path / "explainer"))


def run(*arguments: object) -> Result:
    options = ["--device", "cpu", "--threads", "1"]
    return CliRunner().invoke(cli, ["explain", "compare", *map(str, arguments), *options])


def row_of(document: dict[str, Any], method: str) -> dict[str, Any]:
    return next(row for row in document["rows"] if row["method"] == method)


def test_rows_are_those_of_maps_drawn_apart(explainer: Explainer, trained_run: Run) -> None:
    document, sheet = compare(explainer, PLAN, 1.0)
    assert [(row["method"], row["n"]) for row in document["rows"]] == [
        (name, 3 if name in ("rise", "lime") else 6) for name in METHODS
    ]
    target = open_target(explainer.target)
    setting = surrogate_setting(target, 1.0)
    network = trained_run.model.plain_network(dataclasses.replace(setting, noise="frozen"))
    image = draw(load_dataset(explainer.recipe.data).test, 6, 1)
    with torch.no_grad():
        classes = network(image).argmax(1)
        saliency = explainer.model(image, setting)[1][:, 0]
    coarse = LayerGradCam(network, network.layer3).attribute(image, classes, relu_attributions=True).detach()
    maps = {
        "surrogate": saliency,
        "rise": rise(network, image[:3], classes[:3], 40, seed=1),
        "grad-cam": LayerAttribution.interpolate(coarse, (8, 8), "bilinear")[:, 0],
        "sliding-patch": sliding_patch(network, image, classes, 1, 1),
        "random": torch.rand(6, 8, 8, generator=torch.Generator().manual_seed(1)),
    }
    areas = {}
    for name, drawn in maps.items():
        row, count = row_of(document, name), len(drawn)
        for measure, curves in (("insertion", insertion), ("deletion", deletion)):
            area = areas[name, measure] = curves(network, image[:count], drawn, classes[:count]).auc
            assert row[measure] == pytest.approx(float(area.mean()), abs=2e-3)
            spread = sum((float(a) - float(area.mean())) ** 2 for a in area) / (count - 1) / count
            assert row[f"{measure}_se"] == pytest.approx(spread**0.5, abs=2e-3)
            if name != "surrogate":
                less = float((area - areas["surrogate", measure][:count]).mean())
                assert row[f"{measure}_difference"] == pytest.approx(less, abs=4e-3)
        low, high = drawn.amin((1, 2), keepdim=True), drawn.amax((1, 2), keepdim=True)
        intensity = drawn.mean() if name == "surrogate" else ((drawn - low) / (high - low)).mean()
        assert row["mean_intensity"] == pytest.approx(float(intensity), abs=1e-3)
    assert 0.35 < row_of(document, "random")["mean_intensity"] < 0.65  # 1/2 but for chance

    assert sheet.classes == [explainer.info.classes[label] for label in _first_of_each(classes[:3].tolist())]
    assert set(sheet.maps) == set(METHODS) and all(drawn.shape == (3, 8, 8) for drawn in sheet.maps.values())
    mean = torch.stack(list(sheet.insertion.values())).mean(1)[1]
    assert float(mean) == pytest.approx(row_of(document, "rise")["insertion"])


def _first_of_each(labels: list[int]) -> list[int]:
    firsts = list(dict.fromkeys(labels))
    rest = list(labels)
    for label in firsts:
        rest.remove(label)
    return firsts + rest


def test_the_document_is_the_contract(explainer: Explainer, tmp_path: Path) -> None:
    options = ("--images", 4, "--slow-images", 2, "--masks", 30, "--samples", 20, "--lambda", 0.5)
    result = run(explainer.path, *options, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [row["method"] for row in document["rows"]] == list(METHODS)
    for row in document["rows"]:
        assert set(row) == KEYS and row["fps"] > 0 and row["times_of_inference"] > 0
        assert all(0 <= row[key] <= 1 for key in ("insertion", "deletion", "mean_intensity", "constant_maps"))
    assert document["speedup_over_rise"] > 0  # its arithmetic is test_speed's: these are real timings
    assert document["inference_fps"] > 0 and document["time_over_grad_cam"] > 0 and document["deployed"] is None
    assert {"target_accuracy", "student_accuracy", "agreement"} <= set(document["student"])
    assert (document["lambda"], document["masks"], document["samples"], document["seed"]) == (0.5, 30, 20, 0)
    assert any("lambda 0.5 is none of those" in note for note in document["notes"])
    for name, file in document["files"].items():
        assert Path(file).stat().st_size > 100, name
    assert json.loads(Path(document["files"]["json"]).read_text())["rows"] == document["rows"]
    assert not (explainer.path / "comparison" / "comparison.json").exists()

    shown = run(explainer.path, *options)
    assert shown.exit_code == 0 and "normal inference" in shown.stdout and shown.stderr == ""
    assert (explainer.path / "comparison" / "comparison.json").exists()


def test_a_method_is_measured_once(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    kept: list[Path] = []
    measure = comparison._measure

    def failing(scene: Any, name: str, *rest: Any) -> Any:
        asked.append(name)
        if asked == ["surrogate", "rise", "lime"] and not kept:
            kept.extend((explainer.path / "comparison" / "units").glob("*.npz"))
            raise KeyboardInterrupt
        return measure(scene, name, *rest)

    monkeypatch.setattr(comparison, "_measure", failing)
    with pytest.raises(KeyboardInterrupt):
        compare(explainer, PLAN)
    assert sorted(file.name.split("-")[0] for file in kept) == ["rise", "surrogate"]
    document, _ = compare(explainer, PLAN)
    assert asked == ["surrogate", "rise", "lime", "lime", "grad-cam", "sliding-patch", "random", "center"]
    again, _ = compare(explainer, PLAN)
    assert len(asked) == 8 and [row["insertion"] for row in again["rows"]] == [
        row["insertion"] for row in document["rows"]
    ]
    del asked[:]
    compare(explainer, dataclasses.replace(PLAN, masks=41))
    assert asked == ["rise"]
    del asked[:]
    (file,) = (explainer.path / "comparison" / "units").glob("center-*.npz")
    file.write_bytes(file.read_bytes()[:100])
    compare(explainer, PLAN, 0.0)
    assert asked == ["center"]  # 0 is the lambda where none was given
    del asked[:]
    compare(explainer, PLAN, 1.0)
    assert asked == list(METHODS)


def test_another_target_is_refused(explainer: Explainer, trained_run: Run, plain_run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not what .* was trained to explain"):
        compare(explainer, FAST, target=open_target(plain_run.path))
    result = run(explainer.path, "--target", plain_run.path)
    assert (result.exit_code, result.stdout) == (1, "") and result.stderr.count("\n") == 1
    moved = shutil.copytree(trained_run.path, tmp_path / "moved")
    options = ("--method", "surrogate", "--method", "center", "--images", 3, "--target", moved, "--json")
    result = run(explainer.path, *options)
    assert result.exit_code == 0 and json.loads(result.stdout)["target"] == str(moved)


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_measured(
    explainer: Explainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the way stands for a folder that may only be read: tests may run as root."""
    monkeypatch.setattr(comparison, "_measure", lambda *rest: pytest.fail("measured"))
    for folder in (explainer.path / "comparison", tmp_path / "other"):
        folder.write_text("a file")
    for place, options in (
        (explainer.path / "comparison", []),
        (tmp_path / "other" / "below", ["-o", tmp_path / "other" / "below"]),
    ):
        result = run(explainer.path, "--method", "center", "--images", 3, *options)
        assert (result.exit_code, result.stdout) == (1, "") and result.stderr.count("\n") == 1
        assert result.stderr.startswith(f"error: cannot write to folder {place} (")
        assert result.stderr.endswith("; choose another with -o FOLDER\n")


def test_all_that_is_kept_goes_where_it_is_told(explainer: Explainer, tmp_path: Path) -> None:
    (explainer.path / "comparison").write_text("in the way: nothing can be written there")
    place = tmp_path / "out"
    result = run(explainer.path, "--method", "surrogate", "--method", "center", "--images", 3, "-o", place)
    assert result.exit_code == 0, result.output
    assert {file.name.split("-")[0] for file in (place / "units").iterdir()} == {"surrogate", "center", "student"}
    assert (place / "comparison.json").exists()


def with_network(target: Target, change: Any, **changes: Any) -> Target:
    """The target with other answers under its digest."""
    return dataclasses.replace(target, opener=lambda lam: change(target.opener(lam)), **changes)


def test_a_target_without_gradients_goes_without_grad_cam(explainer: Explainer) -> None:
    def blind(network: nn.Module) -> Any:
        return lambda image: network(image).detach()

    target = with_network(open_target(explainer.target), blind, has_gradients=False)
    document, sheet = compare(explainer, dataclasses.replace(PLAN, images=3), target=target)
    names = [row["method"] for row in document["rows"]]
    assert names == [name for name in METHODS if name != "grad-cam"] == list(sheet.maps)
    assert document["time_over_grad_cam"] is None
    fast = document["deployed"]
    assert set(fast) == {"saliency_fps", "inference_fps", "ratio"} and all(value > 0 for value in fast.values())
    assert "grad-cam is left out: the target answers without gradients" in document["notes"]
    with pytest.raises(InputError, match="grad-cam is left out.*name another method"):
        compare(explainer, ComparePlan(("grad-cam",)), target=target)


def test_a_target_that_answers_nan_is_told(explainer: Explainer) -> None:
    def broken(network: nn.Module) -> nn.Module:
        nn.init.constant_(network.linear.bias, torch.nan)
        return network

    with pytest.raises(InputError, match="NaN or infinity"):
        compare(explainer, FAST, target=with_network(open_target(explainer.target), broken))
    assert not (explainer.path / "comparison").exists()


def test_lambda_where_there_is_none(explainer: Explainer) -> None:
    target = dataclasses.replace(open_target(explainer.target), takes_lambda=False)
    with pytest.raises(InputError, match="takes no lambda; leave --lambda out"):
        compare(explainer, FAST, 0.5, target=target)
    document, _ = compare(explainer, FAST, target=target)
    assert document["lambda"] is None and document["speedup_over_rise"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"methods": ("gradcam",)}, r"method \(='gradcam'\) is unknown; did you mean grad-cam\?"),
        ({"methods": ("xyz",)}, "known are surrogate, rise, lime"),
        ({"methods": ()}, "no method was named"),
        ({"images": 0}, r"images \(=0\)"),
        ({"slow_images": True}, r"slow_images \(=True\)"),
        ({"masks": 0}, r"masks \(=0\)"),
        ({"samples": 1}, r"samples \(=1\) must be an integer in 2\.\."),
        ({"seed": -1}, r"seed \(=-1\)"),
    ],
)
def test_a_plan_is_checked_where_it_is_made(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ComparePlan(**arguments)


def test_bad_input_gets_one_line(explainer: Explainer, trained_run: Run) -> None:
    for arguments in ([explainer.path, "--method", "rize"], [trained_run.path], [explainer.path, "--lambda", "2"]):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert run(explainer.path, "--samples", "1").exit_code == 2


def test_the_commands_defaults_are_the_plans() -> None:
    options = {option.name: option.default for option in command.params}
    plan = ComparePlan()
    for name in ("images", "slow_images", "masks", "samples", "seed"):
        assert options[name] == getattr(plan, name)


def test_the_patch_is_an_eighth_of_the_image() -> None:
    sizes = {patch(torch.zeros(1, 3, side, side)) for side in (32, 224, 8, 4)}
    assert sizes == {(4, 2), (28, 14), (1, 1)}
