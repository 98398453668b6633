"""The study of robustness: its rows, its files, its going on after an interruption, and its means by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import deploytool.robustness as study
import deploytool.units as units
from deploytool.attacks.store import load_adversarial
from deploytool.cli import cli
from deploytool.data.datasets import load_dataset
from deploytool.digests import state_digest
from deploytool.errors import InputError, RecipeError
from deploytool.evaluation.accuracy import clean_accuracy
from deploytool.models.setting import Setting
from deploytool.recipe import load_recipe
from deploytool.report.robustness import render
from deploytool.robustness import means, robustness
from deploytool.training.run import load_run
from hwmodels.table import as_csv

RECIPE = Path(__file__).parents[1] / "recipes" / "digits-robustness.yaml"
SMALL = [
    "optimizer.epochs=1", "evaluate.images=40", "robustness.archs=[resnet8]", "robustness.attacks=[fgsm, deepfool]",
    "robustness.train_images=30", "robustness.retrain_epochs=1", "robustness.stability_images=8",
    "robustness.regularizations={base: {}, L1: {kernel: l1, factor: 0.001}}", "robustness.activations=[0, 0.001]",
]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("study")
    arguments = ["robustness", str(RECIPE), "-o", str(folder), "--device", "cpu", "--threads", "1", "--json"]
    for override in SMALL:
        arguments += ["--set", override]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout)


def test_there_is_a_row_for_each_penalty_and_attack(done) -> None:
    _, document = done
    assert [(row["arch"], row["regularization"], row["attack"]) for row in document["rows"]] == [
        ("resnet8", name, attack) for name in ("base", "L1") for attack in ("fgsm", "deepfool")
    ]
    assert [row["regularization"] for row in document["networks"]] == ["base", "L1"]
    assert [(row["attribution"], row["n"]) for row in document["stability"][:2]] == [
        ("sliding-patch", 8),
        ("grad-cam", 8),
    ]
    assert [row["activation"] for row in document["densities"]] == [0, 0.001]
    assert document["densities"][1]["density"] < document["densities"][0]["density"]
    for key in ("recipe", "data", "n", "train_n", "seeds", "device", "torch", "warnings"):
        assert key in document


def test_figures_agree_with_the_folders(done) -> None:
    folder, document = done
    place, row = folder / "resnet8-L1-seed0", document["rows"][2]
    first, retrained = (load_run(place / name) for name in ("first", "retrained"))
    assert first.recipe.regularization.kernel == "l1" and retrained.recipe.regularization.kernel == "l1"
    assert retrained.recipe.model.weights == str(place / "first")
    assert len(retrained.recipe.data.adversarial) == 2
    test = load_adversarial(place / "adversarial" / "test" / "fgsm.npz")
    with retrained.model.network(Setting()) as network:
        assert row["saved"] == int((network(test.adversarial).argmax(1) == test.label).sum()) / 40
    assert row["before"] == test.record["robust_accuracy"]
    train = load_adversarial(place / "adversarial" / "train" / "deepfool.npz")
    data = load_dataset(first.recipe.data)
    assert train.image.equal(data.train.batch(slice(0, 30))[0])
    with first.model.network(Setting()) as network:
        assert document["networks"][1]["clean"] == clean_accuracy(network, data.test.head(40))


def test_files_are_written(done) -> None:
    folder, document = done
    for file in document["files"].values():
        assert Path(file).stat().st_size > 100
    assert (folder / "attacks.svg").exists() and (folder / "densities.svg").exists()
    text = (folder / "robustness.md").read_text()
    assert "Table 1" in text and "Table 2" in text and "Fig. 1" in text and "eps 0.1" in text
    assert as_csv(document["rows"]).count("\n") == 5


def test_a_second_call_computes_nothing_and_another_recipe_does(done, monkeypatch) -> None:
    folder, document = done
    trained: list[str] = []
    train = units.train
    monkeypatch.setattr(
        units, "train", lambda recipe, place, **k: trained.append(str(place)) or train(recipe, place, **k)
    )
    again = robustness(load_recipe(RECIPE, SMALL), folder)
    assert trained == [] and again["rows"] == document["rows"] and again["densities"] == document["densities"]
    record = folder / "resnet8-base-seed0" / "record.json"
    record.write_text("{")  # cut off: its runs and adversarial images are still there
    assert robustness(load_recipe(RECIPE, SMALL), folder)["rows"] == document["rows"] and trained == []
    robustness(load_recipe(RECIPE, [*SMALL, "robustness.activations=[0.01]"]), folder)
    assert trained == [str(folder / "single-layer-cnn-activation-0.01-seed0" / "first")]


def test_images_of_another_network_are_made_anew(done, tmp_path: Path) -> None:
    folder = shutil.copytree(done[0], tmp_path / "study")
    place, recipe = folder / "resnet8-base-seed0", [*SMALL, "robustness.regularizations={base: {}}"]
    shutil.rmtree(place)
    shutil.copytree(folder / "resnet8-L1-seed0" / "adversarial", place / "adversarial")  # left of another network
    result = robustness(load_recipe(RECIPE, [*recipe, "robustness.activations=[]"]), folder)
    assert result["rows"] == done[1]["rows"][:2]


def test_images_are_found_where_the_folder_is_now(done, tmp_path: Path) -> None:
    folder, _ = done
    attacks = ["fgsm", "deepfool"]
    place = shutil.copytree(folder / "resnet8-base-seed0", tmp_path / "moved") / "adversarial" / "test"
    digest = state_digest(load_run(place.parents[1] / "first").model.state_dict())
    kept = study._kept(place, attacks, digest)
    assert kept is not None
    assert [row["file"] for row in kept["rows"]] == [str(place / f"{name}.npz") for name in attacks]
    assert study._kept(place, ["fgsm"], digest) is None and study._kept(place, attacks, "another") is None
    (place / "fgsm.npz").write_bytes(b"PK")
    assert study._kept(place, attacks, digest) is None


def test_a_study_can_be_changed_on_the_way(done, monkeypatch, tmp_path: Path) -> None:
    folder = shutil.copytree(done[0], tmp_path / "study")
    trained: list[str] = []
    monkeypatch.setattr(units, "train", lambda recipe, place, **k: trained.append(Path(place).name))
    changed = load_recipe(RECIPE, [*SMALL, "robustness.stability_images=4", "robustness.regularizations={base: {}}"])
    monkeypatch.setattr(study, "_retrained", lambda recipe, section, first, *rest: first)  # it keeps absolute paths
    result = robustness(changed, folder)
    assert trained == [] and {row["n"] for row in result["stability"]} == {4}


def test_means_by_hand() -> None:
    rows = [
        {"arch": "a", "seed": 0, "x": 1.0, "eps": 0.1, "n": 5},
        {"arch": "a", "seed": 1, "x": 3.0, "eps": 0.1, "n": 5},
    ]
    (line,) = means(rows, ("arch",))
    assert line["x"] == 2.0 and line["x_std"] == pytest.approx(2**0.5) and line["eps"] == 0.1 and line["n"] == 5
    first = {"a": "x", "ssd_mean": 1.0, "ssd_std": 2.0, "u": None}
    wide = [first, {"a": "x", "ssd_mean": 2.0, "ssd_std": 4.0, "u": 1.0}]
    assert means(wide, ("a",)) == [
        {"a": "x", "ssd_mean": 1.5, "ssd_mean_std": pytest.approx(0.5**0.5), "ssd_std": 3.0, "u": 1.0, "u_std": None}
    ]
    (alone,) = means(rows[:1], ("arch",))
    assert alone["x"] == 1.0 and alone["x_std"] is None


def test_deviations_over_seeds_are_shown(done) -> None:
    _, document = done
    rows = [{**row, "white_box_std": 0.25} for row in document["rows"]]
    assert "± 0.250" in render({**document, "rows": rows})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["robustness.archs=[resnet9]"], "resnet9"),
        (["robustness.attacks=[fgsm, pgd-5:eps=7]"], "eps"),
        (["optimizer.epochs=0"], "activations"),
        (["robustness.regularizations={a b: {}, a-b: {}}"], "share a folder"),
        (["robustness.activations=[-1]"], "activations"),
        (["model.weights=x.npz", "robustness.archs=[resnet8, vgg16]"], "model.weights"),
    ],
)
def test_what_cannot_work_is_refused_first(tmp_path: Path, overrides, words) -> None:
    with pytest.raises((RecipeError, InputError), match=words):
        robustness(load_recipe(RECIPE, [*SMALL, *overrides]), tmp_path / "x")
    assert not (tmp_path / "x").exists()
