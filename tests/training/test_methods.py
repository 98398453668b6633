"""One training step of each method against its formula, written out by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deploytool.attacks.pgd import Pgd, pgd
from deploytool.models.conditional import ConditionalModel, FloatModel
from deploytool.models.setting import Setting
from deploytool.recipe import Recipe, make_recipe
from deploytool.training.methods import Tally, training_step


def recipe(method: dict) -> Recipe:
    attack = {"eps": 0.2, "step_size": 0.05, "steps": 3}
    return make_recipe({"name": "test", "method": method, "attack": attack})


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(8, 1, 8, 8, generator=generator), torch.randint(0, 10, (8,), generator=generator)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(9)


def test_standard_is_cross_entropy(batch) -> None:
    image, label = batch
    model = ConditionalModel(backbone()).train()
    step = training_step(model, recipe({"name": "standard"}), image, label, seeded())
    expected = F.cross_entropy(backbone().train()(image), label)
    torch.testing.assert_close(step.loss, expected)
    assert step.robust is None and step.clean.count == 8


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_pgd_at_is_equation_3(batch, lam: float) -> None:
    image, label = batch
    model = ConditionalModel(backbone()).train()
    step = training_step(model, recipe({"name": "pgd-at", "lambda": lam}), image, label, seeded())
    reference = backbone()
    attack = Pgd(0.2, 0.05, 3)
    adversarial = pgd(reference.eval(), image, label, attack, seeded()) if lam else image
    logits = reference.train()(torch.cat([image, adversarial]) if 0 < lam < 1 else adversarial if lam else image)
    if 0 < lam < 1:
        clean, robust = logits.chunk(2)
        expected = (1 - lam) * F.cross_entropy(clean, label) + lam * F.cross_entropy(robust, label)
    else:
        expected = F.cross_entropy(logits, label)
    torch.testing.assert_close(step.loss, expected)
    assert (step.clean is None) == (lam == 1) and (step.robust is None) == (lam == 0)


@pytest.mark.parametrize("conditioning", ["switch", "interpolate"])
def test_float_is_half_clean_at_0_and_half_attacked_at_1(batch, conditioning: str) -> None:
    image, label = batch
    method = {"name": "float", "noise": "frozen", "conditioning": conditioning}
    step = training_step(FloatModel(backbone()).train(), recipe(method), image, label, seeded())

    reference = FloatModel(backbone())
    adversarial_setting = Setting(1.0, 0.0, conditioning, "frozen")
    with reference.network(adversarial_setting) as network:
        adversarial = pgd(network, image[4:], label[4:], Pgd(0.2, 0.05, 3), seeded())
    reference.train()
    clean = F.cross_entropy(reference(image[:4], Setting(0.0)), label[:4])
    robust = F.cross_entropy(reference(adversarial, adversarial_setting), label[4:])
    torch.testing.assert_close(step.loss, 0.5 * clean + 0.5 * robust)
    assert (step.clean.count, step.robust.count) == (4, 4)


def test_float_gives_every_parameter_its_gradient(batch) -> None:
    model = FloatModel(backbone()).train()
    training_step(model, recipe({"name": "float"}), *batch, seeded()).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_redrawn_noise_comes_from_the_generator(batch) -> None:
    steps = []
    for seed in (1, 1, 2):
        model = FloatModel(backbone()).train()
        generator = torch.Generator().manual_seed(seed)
        step = training_step(model, recipe({"name": "float", "noise": "redrawn"}), *batch, generator)
        steps.append(step.loss.item())
    assert steps[0] == steps[1] != steps[2]


def test_each_half_updates_one_set_of_statistics(batch) -> None:
    model = FloatModel(backbone()).train()
    training_step(model, recipe({"name": "float"}), *batch, seeded())
    assert int(model.backbone[1].num_batches_tracked) == 1
    assert int(model.adversarial_norms["1"].num_batches_tracked) == 1
    assert not torch.equal(model.backbone[1].running_mean, model.adversarial_norms["1"].running_mean)


def test_tally_counts_correct_answers() -> None:
    tally = Tally.of(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1]))
    assert (int(tally.correct), tally.count) == (1, 2)
