"""Eq. 3 by hand, in every method's step, and in what training's attacks climb."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from deploytool.attacks.pgd import Pgd, pgd
from deploytool.data.catalogue import CATALOGUE
from deploytool.models.factory import build_model
from deploytool.models.setting import Setting
from deploytool.recipe import Recipe, make_recipe
from deploytool.training.methods import training_step
from deploytool.training.objective import Objective, make_objective

DIGITS = CATALOGUE["digits"]
VECTORS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("labels") / "labels.yaml"
    file.write_text("\n".join(f'"{c}": [all, even{c % 2}, only{c}]' for c in range(10)))
    return str(file)


def recipe(labels: str, method: dict[str, Any], attack: str = "class", alpha: float = 0.3, **changes: Any) -> Recipe:
    return make_recipe({
        "name": "x", "method": method, "attack": {"eps": 0.2, "step_size": 0.05, "steps": 2},
        "model": {"arch": "resnet8"}, "reasoning": {"labels": labels, "alpha": alpha, "attack": attack}, **changes,
    })  # fmt: skip


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(8, 1, 8, 8, generator=generator), torch.randint(0, 10, (8,), generator=generator)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(9)


def test_equation_3_number_by_number() -> None:
    answer = torch.tensor([[2.0, 1.0, 0.5, -1.0, 3.0], [0.0, 0.0, -2.0, 0.0, 1.0]])
    label = torch.tensor([0, 1])
    clf = [math.log(math.e**2 + math.e) - 2, math.log(2)]
    sigmoid = [[1 / (1 + math.exp(-z)) for z in row] for row in answer[:, 2:].tolist()]
    vectors = [[1, 0, 1], [0, 1, 1]]
    rsn = [
        -sum(math.log(p if r else 1 - p) for p, r in zip(ps, rs, strict=True)) / 3
        for ps, rs in zip(sigmoid, vectors, strict=True)
    ]
    expected = [0.3 * c + 0.7 * r for c, r in zip(clf, rsn, strict=True)]
    objective = Objective(VECTORS, 0.3)
    torch.testing.assert_close(objective.losses(answer, label), torch.tensor(expected))
    torch.testing.assert_close(objective.loss(answer, label), torch.tensor(sum(expected) / 2))
    for attack, value in (("class", clf), ("reasoning", rsn), ("both", expected)):
        found = Objective(VECTORS, 0.3, attack).attacked(answer, label)
        torch.testing.assert_close(found, torch.tensor(sum(value) / 2))


def test_without_labels_it_is_cross_entropy() -> None:
    answer, label = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    objective = Objective()
    assert torch.equal(objective.loss(answer, label), F.cross_entropy(answer, label))
    assert torch.equal(objective.attacked(answer, label), F.cross_entropy(answer, label))
    torch.testing.assert_close(objective.losses(answer, label).mean(), F.cross_entropy(answer, label))


def test_large_logits_do_not_overflow() -> None:
    loss = Objective(VECTORS, 0.5).loss(torch.tensor([[1.0, 0.0, -1e4, 1e4, 0.0]]), torch.tensor([0]))
    assert torch.isfinite(loss)


@pytest.mark.parametrize("attack", ["class", "reasoning", "both"])
def test_pgd_at_attacks_the_chosen_loss_and_minimises_eq_3(attack: str, labels: str) -> None:
    of = recipe(labels, {"name": "pgd-at", "lambda": 0.4}, attack)
    image, label = batch()
    step = training_step(build_model(of, DIGITS).train(), of, image, label, seeded())
    reference = build_model(of, DIGITS)
    vectors = reference.reason_vectors.float()

    def losses(answer: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rsn = F.binary_cross_entropy(answer[:, 10:].sigmoid(), vectors[y])
        return F.cross_entropy(answer[:, :10], y), rsn

    def climbed(answer: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        clf, rsn = losses(answer, y)
        return {"class": clf, "reasoning": rsn, "both": 0.3 * clf + 0.7 * rsn}[attack]

    with reference.network(Setting(), reasoning=True) as network:
        adversarial = pgd(network, image, label, Pgd(0.2, 0.05, 2), seeded(), climbed)
    parts = reference.train()(torch.cat([image, adversarial]), reasoning=True).chunk(2)
    total = 0.0
    for weight, part in zip((0.6, 0.4), parts, strict=True):
        clf, rsn = losses(part, label)
        total = total + weight * (0.3 * clf + 0.7 * rsn)
    torch.testing.assert_close(step.loss, total)
    assert int(step.clean.correct) == int((parts[0][:, :10].argmax(1) == label).sum())


@pytest.mark.parametrize("method", ["standard", "pgd-at", "float", "oat"])
@pytest.mark.parametrize("changes", [
    {}, {"sparsity": {"density": 0.5}}, {"model": {"arch": "resnet8", "widths": [0.5, 1.0]}},
    {"regularization": {"kernel": "l1", "activation": 1e-6}},
], ids=["dense", "sparse", "slim", "regularised"])  # fmt: skip
def test_every_method_teaches_the_head(method: str, changes: dict[str, Any], labels: str) -> None:
    of = recipe(labels, {"name": method}, "both", **changes)
    model = build_model(of, DIGITS).train()
    step = training_step(model, of, *batch(), seeded())
    step.total.backward()
    head = model.backbone.reasoning
    assert head.weight.grad.abs().sum() > 0 and head.bias.grad.abs().sum() > 0
    assert model.backbone.conv1.weight.grad.abs().sum() > 0


def test_alpha_weighs_the_two_losses(labels: str) -> None:
    found = {}
    for alpha in (0.25, 0.5, 0.75):
        of = recipe(labels, {"name": "standard"}, alpha=alpha)
        found[alpha] = training_step(build_model(of, DIGITS).train(), of, *batch(), seeded()).loss.item()
    assert found[0.5] == pytest.approx((found[0.25] + found[0.75]) / 2, rel=1e-5)


def test_the_objective_of_a_recipe(labels: str) -> None:
    of = recipe(labels, {"name": "standard"}, "reasoning", alpha=0.75)
    objective = make_objective(build_model(of, DIGITS), of)
    assert (objective.alpha, objective.attack) == (0.75, "reasoning") and objective.vectors.shape == (10, 13)
