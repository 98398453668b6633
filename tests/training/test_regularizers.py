"""Penalties: numbers worked by hand, gradients against a naive loop's, and one step with every method."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from deploytool.data.catalogue import CATALOGUE
from deploytool.models.activity import Pass
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import build_model
from deploytool.models.registry import build_backbone
from deploytool.recipe import Recipe, RegularizationSection, make_recipe
from deploytool.training.loop import train
from deploytool.training.methods import Step, training_step
from deploytool.training.regularizers import activation_penalty, elastic_net, kernel_penalty, l1, l2, step_penalty
from deploytool.training.run import load_checkpoint

DIGITS = CATALOGUE["digits"]
VARIANTS: dict[str, dict[str, Any]] = {
    "standard": {"method": {"name": "standard"}},
    "pgd-at": {"method": {"name": "pgd-at", "lambda": 1}},
    "pgd-at mixed": {"method": {"name": "pgd-at", "lambda": 0.5}},
    "float": {"method": {"name": "float"}},
    "oat": {"method": {"name": "oat"}},
    "sparse": {"method": {"name": "float"}, "sparsity": {"density": 0.2}},
    "slim": {"method": {"name": "float"}, "model": {"arch": "resnet8", "widths": [0.5, 1.0]}},
    "slim oat": {"method": {"name": "oat"}, "model": {"arch": "resnet8", "widths": [0.5, 1.0]}},
}

numbers = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=6)
tensors = st.lists(numbers.map(torch.tensor), min_size=1, max_size=4)


def recipe(regularization: Any, **changes: Any) -> Recipe:
    document = {
        "name": "x",
        "model": {"arch": "resnet8"},
        "method": {"name": "standard"},
        "attack": {"eps": 0.2, "step_size": 0.1, "steps": 1},
    }
    return make_recipe(document | changes | {"regularization": regularization})


def batch(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.randint(0, 10, (count,), generator=generator)


def one_step(of: Recipe) -> tuple[ConditionalModel, Step]:
    model = build_model(of, DIGITS).train()
    return model, training_step(model, of, *batch(), torch.Generator().manual_seed(5))


def weights_of(network: nn.Module) -> list[nn.Parameter]:
    return [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def test_penalties_by_hand() -> None:
    weights = [torch.tensor([[1.0, -2.0]]), torch.tensor([0.0, 0.5])]
    assert float(l1(weights)) == 3.5
    assert float(l2(weights)) == 5.25
    assert float(elastic_net(weights, 0.25)) == 0.25 * 3.5 + 0.75 * 5.25


@pytest.mark.parametrize(("kernel", "expected"), [("l1", 0.035), ("l2", 0.0525), ("elastic-net", 0.04375)])
def test_the_papers_factor_is_a_hundredth(kernel: str, expected: float) -> None:
    """Elastic net with half of each: (0.035 + 0.0525) / 2."""
    weights = [torch.tensor([[1.0, -2.0]]), torch.tensor([0.0, 0.5])]
    assert float(kernel_penalty(weights, RegularizationSection(kernel=kernel))) == pytest.approx(expected)


@given(tensors, st.floats(0, 1))
def test_gradients_are_those_of_a_naive_loop(values: list[Tensor], alpha: float) -> None:
    def naive(weights: list[Tensor]) -> Tensor:
        total = torch.zeros(())
        for weight in weights:
            for value in weight:
                total = total + alpha * (value * torch.sign(value.detach())) + (1 - alpha) * value * value
        return total

    mine, theirs = ([value.clone().requires_grad_() for value in values] for _ in range(2))
    first, second = elastic_net(mine, alpha), naive(theirs)
    torch.testing.assert_close(first, second)
    first.backward()
    second.backward()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@given(tensors)
def test_the_ends_of_the_elastic_net(values: list[Tensor]) -> None:
    torch.testing.assert_close(elastic_net(values, 1.0), l1(values))
    torch.testing.assert_close(elastic_net(values, 0.0), l2(values))
    torch.testing.assert_close(l1([3 * value for value in values]), 3 * l1(values))
    torch.testing.assert_close(l2([3 * value for value in values]), 9 * l2(values))


@pytest.mark.parametrize("kernel", ["l1", "l2", "elastic-net"])
def test_a_weight_that_is_0_is_not_pushed(kernel: str) -> None:
    weight = torch.tensor([[0.0, -0.0, 2.0], [0.0, 0.0, 0.0]], requires_grad=True)
    empty = torch.zeros(3, requires_grad=True)
    kernel_penalty([weight, empty], RegularizationSection(kernel=kernel)).backward()
    assert weight.grad[0, 2] > 0 and int(weight.grad.count_nonzero()) == 1 and not empty.grad.any()


@pytest.mark.parametrize("section", [{}, {"kernel": "l1", "factor": 0}, {"activation": 0.0}])
def test_what_penalises_nothing_computes_nothing(section: dict) -> None:
    _, step = one_step(recipe(section))
    assert step.penalty is None and step.total is step.loss


def test_half_of_l2_is_weight_decay() -> None:
    weight = torch.tensor([1.0, -3.0], requires_grad=True)
    (0.5 * 0.01 * l2([weight])).backward()
    torch.testing.assert_close(weight.grad, 0.01 * weight.detach())


def test_the_activation_penalty_by_hand() -> None:
    """Three images in two passes: (6 + 2 + 1) / 3, times lambda."""
    passes = [Pass(2, [torch.tensor(6.0), torch.tensor(2.0)]), Pass(1, [torch.tensor(1.0)])]
    assert float(activation_penalty(passes, 0.5)) == 1.5
    assert activation_penalty(passes, 0.0) is None and activation_penalty([], 0.5) is None


def test_widths_add_their_penalties_and_kernels_count_once() -> None:
    of = recipe({"kernel": "l2", "activation": 0.1})
    model = build_model(of, DIGITS)
    passes = [[Pass(2, [torch.tensor(4.0)])], [Pass(4, [torch.tensor(4.0)])]]
    kernels = 0.01 * sum(float(weight.detach().square().sum()) for weight in weights_of(model.backbone))
    penalty = step_penalty(model, of.regularization, passes)
    assert float(penalty.detach()) == pytest.approx(0.1 * (2 + 1) + kernels, rel=1e-5)


def test_equation_5_of_the_single_layer_cnn_against_autograd() -> None:
    """Loss and gradient of the whole step, the network of Fig. 1 written out."""
    of = recipe({"activation": 1e-3}, model={"arch": "single-layer-cnn"})
    model, step = one_step(of)
    step.total.backward()
    (image, label), network = batch(), build_model(of, DIGITS).backbone
    hidden = F.conv2d((image - 0.305) / 0.376, network.conv.weight, network.conv.bias).clamp(min=0)
    logits = hidden.flatten(1) @ network.linear.weight.T + network.linear.bias
    expected = F.cross_entropy(logits, label)
    penalty = 1e-3 / len(image) * sum(each.abs().sum() for each in hidden)
    torch.testing.assert_close(step.loss, expected)
    torch.testing.assert_close(step.penalty, penalty)
    (expected + penalty).backward()
    for mine, theirs in zip(model.backbone.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("section", [{"kernel": "elastic-net", "activation": 1e-5}, {"activation": 1e-5}])
def test_every_method_takes_every_penalty(variant: str, section: dict) -> None:
    """The method's own loss and random draws stay; the gradient is the plain one plus the penalty's."""
    plain_model, plain = one_step(recipe(None, **VARIANTS[variant]))
    model, step = one_step(recipe(section, **VARIANTS[variant]))
    assert torch.equal(step.loss, plain.loss) and float(step.penalty.detach()) > 0
    step.total.backward()
    plain.total.backward()
    assert any(not torch.equal(a.grad, b.grad) for a, b in zip(*map(_graded, (model, plain_model)), strict=True))
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in _graded(model))
    assert not any("forward" in module.__dict__ for module in model.modules())


def _graded(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_kernel_penalty_pushes_kernels_alone_and_no_pruned_weight(variant: str) -> None:
    changes = VARIANTS[variant]
    (plain_model, plain), (model, step) = (one_step(recipe(r, **changes)) for r in (None, {"kernel": "l1"}))
    plain.total.backward()
    step.total.backward()
    masks = model.masks
    kernels = {f"backbone.{name}": name for name in model.conditioned}
    for (name, mine), other in zip(model.named_parameters(), plain_model.parameters(), strict=True):
        pushed = torch.zeros_like(mine)
        if name in kernels:
            pushed = 0.01 * mine.detach().sign() * masks.get(kernels[name], torch.tensor(True))
        expected = pushed if other.grad is None else other.grad + pushed
        if mine.grad is not None:
            torch.testing.assert_close(
                mine.grad, expected, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_attacks_are_not_penalised() -> None:
    """Twice the attack steps give the same sums: passes in evaluation mode do not count."""
    for method in ({"name": "pgd-at", "lambda": 1}, {"name": "oat", "lambdas": [0, 1]}, {"name": "float"}):
        penalties = []
        for steps in (1, 3):
            attack = {"eps": 1e-6, "step_size": 1e-6, "steps": steps, "random_start": False}
            of = recipe({"activation": 1.0}, method=method, attack=attack)
            penalties.append(float(one_step(of)[1].penalty.detach()))
        assert penalties[0] == pytest.approx(penalties[1], rel=1e-4)


@pytest.mark.parametrize("arch", ["vgg16", "mobilenet", "wrn40-2", "resnet20"])
def test_activations_are_those_that_hooks_see(arch: str) -> None:
    """Module and functional nonlinearities alike, against the inputs of what reads them."""
    of = recipe({"activation": 1.0}, model={"arch": arch})
    seen: list[Tensor] = []
    torch.manual_seed(1)
    _, step = one_step(of)

    reference = build_model(of, DIGITS).train().backbone
    original = torch.relu

    def counting(x: Tensor) -> Tensor:
        seen.append(original(x))
        return seen[-1]

    for module in reference.modules():
        if isinstance(module, nn.ReLU6):  # nn.ReLU calls torch.relu
            module.register_forward_hook(lambda _, __, output: seen.append(output))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "relu", counting)
        torch.manual_seed(1)
        reference(batch()[0])
    expected = sum(float(output.detach().abs().sum()) for output in seen) / 12
    assert float(step.penalty.detach()) == pytest.approx(expected, rel=1e-4)


def test_training_logs_penalty_and_density_apart_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    of = make_recipe(
        {
            "name": "x",
            "model": {"arch": "resnet8"},
            "method": {"name": "float"},
            "data": {"batch_size": 128},
            "attack": {"eps": 0.2, "step_size": 0.1, "steps": 1},
            "optimizer": {"epochs": 2, "lr": 0.1},
            "regularization": {"kernel": "elastic-net", "factor": 1e-4, "activation": 1e-6},
        }
    )
    train(of, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("deploytool.training.loop.log_scalars", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
        train(of, tmp_path / "stopped")
    train(of, tmp_path / "stopped", resume=True)
    a, b = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "stopped")
    assert a.history == b.history and all(torch.equal(a.model[name], b.model[name]) for name in a.model)
    last = a.history[-1]
    assert last["penalty"] > 0 and last["loss"] > 0
    assert 0 < last["activity_ratio"] < 1 and list(last["activity_ratios"])[:2] == ["relu", "layer1.0.relu"]
    assert 0 <= last["zero_weights"] <= last["near_zero_weights"] <= 1

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path / "whole" / "tensorboard"))
    log.Reload()
    assert {"penalty", "activity_ratio", "activity_ratios/layer1.0.relu"} <= set(log.Tags()["scalars"])


def test_sparse_activations_cost_little_accuracy(tmp_path: Path) -> None:
    """Fig. 1's direction on digits: with the penalty fewer neurons answer, as many digits are told apart."""
    results = {}
    for lam in (0.0, 1e-3):
        of = make_recipe(
            {
                "name": "x",
                "model": {"arch": "single-layer-cnn"},
                "method": {"name": "standard"},
                "attack": {"steps": 1},
                "optimizer": {"epochs": 5, "lr": 0.05},
                "regularization": {"activation": lam},
            }
        )
        accuracy = train(of, tmp_path / str(lam))["clean_accuracy"]
        results[lam] = load_checkpoint(tmp_path / str(lam)).history[-1]["activity_ratio"], accuracy
    assert results[1e-3][0] < 0.8 * results[0.0][0]
    assert results[1e-3][1] > 0.85 and results[1e-3][1] > results[0.0][1] - 0.05


def test_the_plain_backbone_is_left_as_it_was() -> None:
    model, _ = one_step(recipe({"activation": 1.0}))
    plain = build_backbone("resnet8", DIGITS)
    assert type(model.backbone) is type(plain) and model.backbone.forward.__func__ is type(plain).forward
