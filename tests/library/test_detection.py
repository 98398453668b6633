"""Detecting attacked and foreign images: parts, rows, units that are kept, and areas under curves."""

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from deploytool.attacks.registry import AttackBase, make_attack
from deploytool.attacks.run import run_attack
from deploytool.data.datasets import load_dataset
from deploytool.errors import DataError, DeploytoolError, InputError, RunError
from deploytool.explain.target import open_target
from deploytool.library import detection
from deploytool.library.calibration import split
from deploytool.library.detection import STEP_SIZE, DetectPlan, detect
from deploytool.library.folder import Library
from deploytool.library.scores import Scorer

ATTACK = "pgd-4:iterate=last"
PLAN = DetectPlan(attacks=[ATTACK], eps=[0.02, 0.1], foreign=["noise"], images=40, adaptive=2, seed=5)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "FIRST", "pgd-3")


@pytest.fixture(scope="module")
def measured(plain_library: Library, plain_run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("detection") / "x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection, "FIRST", "pgd-3")
        return detect(plain_library, open_target(plain_run.path), PLAN, folder=folder), folder


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images of every call of the scorer, as they come."""
    calls: list[int] = []
    own = Scorer.__call__

    def call(self: Scorer, images: Any) -> Any:
        calls.append(len(images))
        return own(self, images)

    monkeypatch.setattr(Scorer, "__call__", call)
    return calls


def test_rows(measured: tuple[Any, Path], plain_library: Library) -> None:
    """One for each attack, radius and set; foreign images have no radius and fool no one."""
    result, _ = measured
    found = [(row["attack"], row["eps"], row["set"]) for row in result["rows"]]
    kinds = [(ATTACK, 0.02), (ATTACK, 0.1), ("adaptive-2", 0.02), ("adaptive-2", 0.1), ("foreign:noise", None)]
    assert found == [(*kind, name) for kind, name in product(kinds, ["Set1", "Set2"])]
    for row in result["rows"]:
        assert row["n"] == 40 and -1 <= row["cpl_mean"] <= 1
        assert all(0 <= row[f"auroc_{name}"] <= 1 for name in ("cpl", "max_softmax", "knn"))
        assert (row["fooled"] is None) == (row["eps"] is None)
        assert (row["detected"] is None) == (row["set"] == "Set2") == (row["auroc_combined"] is None)
    by_eps = {row["eps"]: row["fooled"] for row in result["rows"] if row["attack"] == ATTACK}
    assert by_eps[0.02] <= by_eps[0.1] and by_eps[0.1] > 0
    assert result["images"] == 40 and result["sets"] == ["Set1", "Set2"] and result["lambda"] is None
    (calibrated,) = plain_library.calibration
    assert result["verdict"]["threshold"] == calibrated.threshold
    assert result["library_lambda"] is None


def test_areas_and_shares_from_the_values(measured: tuple[Any, Path]) -> None:
    """The first set's CPL is in the document: scikit-learn finds the same area, a count the same share."""
    result, _ = measured
    clean = np.array(result["cpl"]["clean"])
    threshold = result["verdict"]["threshold"]
    assert result["clean"][0]["cpl_mean"] == pytest.approx(clean.mean(), abs=1e-6)
    for row in (row for row in result["rows"] if row["set"] == "Set1"):
        values = np.array(result["cpl"][row["attack"] if row["eps"] is None else f"{row['attack']} eps {row['eps']:g}"])
        usual = np.r_[np.ones(len(clean)), np.zeros(len(values))]
        assert row["auroc_cpl"] == pytest.approx(roc_auc_score(usual, np.r_[clean, values]), abs=1e-9)
        assert row["detected"] == pytest.approx((values < threshold).mean())
        assert row["cpl_mean"] == pytest.approx(values.mean(), abs=1e-6)


def test_false_alarms_are_of_all_images_that_are_held_out(measured, plain_library, plain_run) -> None:
    """Not of the few that are attacked; with the standard error of a share."""
    verdict = measured[0]["verdict"]
    recipe = plain_library.recipe
    _, images = split(load_dataset(plain_run.recipe.data).test, recipe.calibration, recipe.seed)
    cpl = Scorer(plain_library, open_target(plain_run.path), None)(images).cpl["Set1"]
    share = (cpl < verdict["threshold"]).double().mean().item()
    assert verdict["false_alarm_images"] == len(images) > 100
    assert verdict["false_alarms"] == pytest.approx(share, abs=1.01 / len(images))
    error = (verdict["false_alarms"] * (1 - verdict["false_alarms"]) / len(images)) ** 0.5
    assert verdict["false_alarms_se"] == pytest.approx(error) and error > 0


def test_measured_images_are_none_of_the_calibration(measured: tuple[Any, Path], plain_library, plain_run) -> None:
    """Attacked from the network's own answer, in the other half of the test images."""
    result, _ = measured
    target = open_target(plain_run.path)
    recipe = plain_library.recipe
    _, images = split(load_dataset(plain_run.recipe.data).test, recipe.calibration, recipe.seed)
    images = images.head(40)
    scorer = Scorer(plain_library, target, None)
    clean = scorer(images)
    np.testing.assert_allclose(result["cpl"]["clean"], clean.cpl["Set1"], atol=1e-4)
    attack = make_attack(ATTACK, AttackBase(0.1, STEP_SIZE, eps_l2=0.1))
    image = run_attack(target.network(), images.batch(slice(None))[0], clean.answer, attack, 5).image
    found = scorer(type(images)(image, images.labels))
    row = next(row for row in result["rows"] if (row["attack"], row["eps"]) == (ATTACK, 0.1))
    assert row["fooled"] == pytest.approx((found.answer != clean.answer).float().mean().item(), abs=0.051)
    assert row["cpl_mean"] == pytest.approx(found.cpl["Set1"].mean().item(), abs=0.02)


def test_units_are_not_computed_again(measured, plain_library, plain_run, monkeypatch) -> None:
    """All 11 are there: clean images of both parts, 3 attacks of each radius and calibration, adaptive, noise."""
    result, folder = measured
    assert len(list((folder / "units").iterdir())) == 2 + 2 + 2 * 2 + 2 + 1
    monkeypatch.setattr(detection, "Scorer", lambda *arguments: pytest.fail("nothing is to be computed"))
    assert detect(plain_library, open_target(plain_run.path), PLAN, folder=folder) == result


def test_another_radius_computes_its_own_units_alone(
    measured, plain_library, plain_run, tmp_path: Path, monkeypatch
) -> None:
    folder = shutil.copytree(measured[1], tmp_path / "x")
    calls = counted(monkeypatch)
    plan = DetectPlan([ATTACK], [0.02, 0.1, 0.05], images=40, seed=5)
    result = detect(plain_library, open_target(plain_run.path), plan, folder=folder)
    assert calls == [40, 40, 40] and len(result["rows"]) == 6  # measured, and for the combination twice


def write_images(file: Path, seed: int, shape: tuple[int, ...] = (1, 8, 8)) -> None:
    chance = np.random.default_rng(seed)
    labels = np.arange(40) % 10
    images = {part: chance.integers(0, 256, (40, *shape), dtype=np.uint8) for part in ("x_train", "x_test")}
    np.savez(file, **images, y_train=labels, y_test=labels)


def test_changed_foreign_images_are_scored_anew(plain_library, plain_run, tmp_path: Path, monkeypatch) -> None:
    """The name of a file says nothing of what is in it."""
    target, file = open_target(plain_run.path), tmp_path / "other.npz"
    plan = DetectPlan(attacks=[], foreign=[f"npz:{file}"], images=10)
    write_images(file, 0)
    before = detect(plain_library, target, plan, folder=tmp_path / "x")
    write_images(file, 1)
    calls = counted(monkeypatch)
    after = detect(plain_library, target, plan, folder=tmp_path / "x")
    assert calls == [10] and after["rows"][0]["cpl_mean"] != before["rows"][0]["cpl_mean"]
    assert after["clean"] == before["clean"]
    detect(plain_library, target, plan, folder=tmp_path / "x")
    assert calls == [10]


@pytest.mark.parametrize("part", ["test", "train"])
def test_changed_images_of_the_libraries_are_scored_anew(
    part: str, plain_library, plain_run, tmp_path: Path, monkeypatch
) -> None:
    target, plan = open_target(plain_run.path), DetectPlan(attacks=[], foreign=["noise"], images=10)
    detect(plain_library, target, plan, folder=tmp_path)
    data = load_dataset(plain_run.recipe.data)
    own = getattr(data, part)
    changed = replace(data, **{part: replace(own, images=own.images.flip(0))})
    monkeypatch.setattr(detection, "load_dataset", lambda section: changed)
    calls = counted(monkeypatch)
    detect(plain_library, target, plan, folder=tmp_path)
    assert len(calls) == 3


def test_damaged_units_are_computed_anew(measured, plain_library, plain_run, tmp_path: Path, monkeypatch) -> None:
    """Cut short, empty, a bit turned, another file: their scores are made again, the rest is kept."""
    result, folder = measured
    everything = result["verdict"]["false_alarm_images"]
    (tmp_path / "units").mkdir()
    files = sorted((folder / "units").iterdir())
    for place, file in enumerate(files):
        content = bytearray(file.read_bytes())
        if place == 0:
            content = content[: len(content) // 2]
        elif place == 1:
            content = bytearray()
        elif place == 2:
            content[content.index(b"NUMPY") + 200] ^= 4  # within an array, not in what zip leaves unchecked
        elif place == 3:
            content = bytearray(b"hello")
        (tmp_path / "units" / file.name).write_bytes(content)
    calls = counted(monkeypatch)
    again = detect(plain_library, open_target(plain_run.path), PLAN, folder=tmp_path)
    assert len(calls) == 4 and set(calls) <= {40, everything}
    for row, other in zip(result["rows"], again["rows"], strict=True):
        assert row == other
    calls.clear()
    detect(plain_library, open_target(plain_run.path), PLAN, folder=tmp_path)
    assert calls == []


def test_foreign_images_alone_need_no_attack(plain_library, plain_run, tmp_path: Path) -> None:
    plan = DetectPlan(attacks=[], foreign=["noise"], images=20)
    result = detect(plain_library, open_target(plain_run.path), plan, folder=tmp_path)
    assert [row["attack"] for row in result["rows"]] == ["foreign:noise"] * 2
    assert all(row["auroc_combined"] is None and row["fooled"] is None for row in result["rows"])
    assert result["rows"][0]["auroc_knn"] > 0.9


def test_without_a_folder_beside_the_libraries(plain_library, plain_run) -> None:
    plan = DetectPlan(attacks=[], foreign=["noise"], images=5, seed=77)
    detect(plain_library, open_target(plain_run.path), plan)
    assert len(list((plain_library.path / "detection" / "units").glob("*.npz"))) == 2 + 1


def test_refusals(plain_library, plain_run, trained_run, plain_file, tmp_path: Path) -> None:
    target = open_target(plain_run.path)
    with pytest.raises(RunError, match="has libraries of another network"):
        detect(plain_library, open_target(trained_run.path), PLAN, folder=tmp_path)
    with pytest.raises(InputError, match="takes no lambda"):
        detect(plain_library, target, PLAN, 0.5, folder=tmp_path)
    with pytest.raises(DataError, match="of foreign images is unknown; did you mean mnist"):
        detect(plain_library, target, DetectPlan([], foreign=["mnits"], images=5), folder=tmp_path / "a")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DeploytoolError, match="choose another with -o FOLDER"):
        detect(plain_library, target, PLAN, folder=tmp_path / "file")


@pytest.mark.parametrize(
    "wrong",
    [
        {"attacks": [], "foreign": [], "adaptive": 0},
        {"images": 0},
        {"adaptive": -1},
        {"seed": -1},
        {"eps": [-0.1]},
        {"eps": [float("nan")]},
        {"attacks": ["pdg-40"]},
    ],
)
def test_plans_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        DetectPlan(**wrong)
    assert "\n" not in str(caught.value)
