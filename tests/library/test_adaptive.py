"""The adaptive attack: within its budget, deterministic, and better than PGD at what it is for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deploytool.attacks.registry import AttackBase, make_attack
from deploytool.attacks.run import run_attack
from deploytool.data.datasets import load_dataset
from deploytool.errors import DeploytoolError, InputError
from deploytool.explain.target import open_target
from deploytool.library import detection
from deploytool.library.adaptive import Adaptive, class_means, evade
from deploytool.library.detection import DetectPlan, detect
from deploytool.library.folder import Library
from deploytool.library.networks import consistency
from deploytool.library.scores import Scorer
from deploytool.library.taps import watch

ACTIVE, EPS = 3, 0.15


@pytest.fixture(scope="module")
def scene(plain_library: Library, plain_run: Any) -> dict[str, Any]:
    """Images, what watches them, and the classes' mean predictions."""
    torch.set_num_threads(1)
    target = open_target(plain_run.path)
    test = load_dataset(plain_run.recipe.data).test
    image, own = test.batch(slice(0, 48))[0], test.batch(slice(100, 200))[0]
    libraries = plain_library.at(None)
    watched = watch(target, [each.layer for each in libraries], image[:2])
    with torch.no_grad():
        logits, activity = watched(own)
    inputs = [each.predict(activity[each.layer], ACTIVE) for each in libraries]
    means = class_means(inputs, logits.argmax(1), 10)
    return {"image": image, "watched": watched, "libraries": libraries, "means": means, "target": target}


def attack(scene: dict[str, Any], budget: Adaptive, image: Tensor | None = None) -> Tensor:
    image = scene["image"] if image is None else image
    return evade(scene["watched"], scene["libraries"], ACTIVE, image, budget, scene["means"])


def seen(scene: dict[str, Any], image: Tensor) -> tuple[Tensor, Tensor]:
    """The network's answers, and the exact CPL."""
    with torch.no_grad():
        logits, activity = scene["watched"](image)
    inputs = [each.predict(activity[each.layer], ACTIVE) for each in scene["libraries"]]
    return logits.argmax(1), consistency(inputs)


@pytest.fixture(scope="module")
def found(scene: dict[str, Any]) -> Tensor:
    torch.set_num_threads(1)
    return attack(scene, Adaptive(EPS, 20))


def test_fooled_images_agree_more_than_those_of_pgd(scene: dict[str, Any], found: Tensor) -> None:
    """Over the images that both fool, and the adaptive attack fools its share."""
    answer, _ = seen(scene, scene["image"])
    pgd = make_attack("pgd-20:iterate=last", AttackBase(EPS, 0.02))
    network = scene["target"].network()
    attacked = run_attack(network, scene["image"], answer, pgd, 0).image
    (own, own_cpl), (other, other_cpl) = seen(scene, found), seen(scene, attacked)
    both = (own != answer) & (other != answer)
    assert both.sum() >= 5 and (own != answer).sum() >= 0.6 * (other != answer).sum()
    assert own_cpl[both].mean() > other_cpl[both].mean() + 0.01


def test_within_the_ball_and_the_image(scene: dict[str, Any], found: Tensor) -> None:
    assert found.shape == scene["image"].shape and not found.requires_grad
    assert found.min() >= 0 and found.max() <= 1
    assert (found - scene["image"]).abs().max() <= EPS + 1e-6
    small = attack(scene, Adaptive(0.001, 3), scene["image"][:4])
    assert 0 < (small - scene["image"][:4]).abs().max() <= 0.001 + 1e-6


def test_deterministic_and_image_by_image(scene: dict[str, Any], found: Tensor) -> None:
    assert torch.equal(attack(scene, Adaptive(EPS, 20)), found)
    alone = attack(scene, Adaptive(EPS, 20), scene["image"][5:8])
    (answer, cpl), (own, own_cpl) = seen(scene, found[5:8]), seen(scene, alone)
    assert torch.equal(answer, own)
    torch.testing.assert_close(cpl, own_cpl, rtol=0.05, atol=0.05)


def test_more_steps_never_lose_what_was_fooled(scene: dict[str, Any], found: Tensor) -> None:
    """Each image keeps its fooled iterate of the highest CPL, so every iterate that was kept is fooled."""
    answer, _ = seen(scene, scene["image"])
    few, _ = seen(scene, attack(scene, Adaptive(EPS, 2)))
    many, _ = seen(scene, found)
    assert (many != answer).sum() >= (few != answer).sum()


def test_class_means_by_loops() -> None:
    chance = torch.Generator().manual_seed(0)
    inputs = [torch.randn(7, 4, generator=chance) for _ in range(2)]
    answer = torch.tensor([0, 0, 2, 2, 2, 0, 3])
    means = class_means(inputs, answer, 4)
    assert means.shape == (4, 2, 4) and (means[1] == 0).all()
    for label in (0, 2, 3):
        for place, layer in enumerate(inputs):
            total = sum(layer[k] / layer[k].norm() for k in range(7) if answer[k] == label)
            torch.testing.assert_close(means[label, place], F.normalize(total, dim=0))


def test_files_have_no_gradients(scene: dict[str, Any], plain_file: Any) -> None:
    names = [each.layer for each in scene["libraries"]]

    def without(image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            logits, activity = scene["watched"](image)
        return logits, {name: activity[name] for name in names}

    with pytest.raises(InputError, match="the network has no gradients, which the adaptive attack needs; attack a run"):
        evade(without, scene["libraries"], ACTIVE, scene["image"][:2], Adaptive(EPS, 2), scene["means"])


@pytest.mark.parametrize(("eps", "steps"), [(-0.1, 5), (float("nan"), 5), (0.1, 0), (0.1, -3), (0.1, 1.5)])
def test_budgets_out_of_range(eps: float, steps: int) -> None:
    with pytest.raises(InputError, match="eps|steps"):
        Adaptive(eps, steps)
    assert Adaptive(0.1, 7).name == "adaptive-7"


def test_images_out_of_range(scene: dict[str, Any]) -> None:
    with pytest.raises(DeploytoolError):
        attack(scene, Adaptive(EPS, 2), scene["image"][:2] * 300)


def test_detection_attacks_on_the_cpu(plain_library: Library, plain_run: Any, tmp_path: Path, monkeypatch) -> None:
    """Whatever the device of the scores: their network gives no gradients here, as if it were elsewhere."""

    class Elsewhere(Scorer):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            watched = self.watched
            self.watched = torch.no_grad()(lambda image: watched(image))

    target = open_target(plain_run.path)
    plan = DetectPlan(attacks=[], eps=[EPS], images=12, adaptive=2)
    expected = detect(plain_library, target, plan, folder=tmp_path / "here")
    monkeypatch.setattr(detection, "Scorer", Elsewhere)
    assert detect(plain_library, target, plan, folder=tmp_path / "elsewhere")["rows"] == expected["rows"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_detection_on_a_gpu(plain_library: Library, plain_run: Any, tmp_path: Path) -> None:
    plan = DetectPlan(attacks=[], eps=[EPS], images=12, adaptive=2)
    rows = detect(plain_library, open_target(plain_run.path), plan, folder=tmp_path, device="cuda")["rows"]
    assert [row["attack"] for row in rows] == ["adaptive-2"]
