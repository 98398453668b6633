"""Attacks against hand-worked steps, a linear network's closed form, and the constraints that always hold."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from deploytool.attacks.pgd import Pgd, pgd
from deploytool.models.setting import Setting


class Linear(nn.Module):
    """Two logits, the second one `weight . image`: the gradient's sign is known."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        score = (image * self.weight).sum(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], 1)


def test_two_steps_by_hand() -> None:
    # label 0: the loss grows with the score, so every pixel moves by 0.1 * sign(weight), twice, within 0.15
    network = Linear(torch.tensor([[[2.0, -3.0]]]))
    image = torch.tensor([[[[0.5, 0.5]]]])
    attack = Pgd(eps=0.15, step_size=0.1, steps=2, random_start=False)
    adversarial = pgd(network, image, torch.tensor([0]), attack)
    torch.testing.assert_close(adversarial, torch.tensor([[[[0.65, 0.35]]]]))
    towards_label = pgd(network, image, torch.tensor([1]), attack)
    torch.testing.assert_close(towards_label, torch.tensor([[[[0.35, 0.65]]]]))


def test_pixels_stay_in_the_unit_interval_by_hand() -> None:
    network = Linear(torch.tensor([[[1.0, -1.0]]]))
    adversarial = pgd(
        network, torch.tensor([[[[0.95, 0.02]]]]), torch.tensor([0]), Pgd(0.3, 0.3, 1, random_start=False)
    )
    torch.testing.assert_close(adversarial, torch.tensor([[[[1.0, 0.0]]]]))


@settings(max_examples=40, deadline=None)
@given(
    eps=st.floats(0.001, 1), ratio=st.floats(0.01, 2), steps=st.integers(1, 4), start=st.booleans(), seed=st.integers(0)
)
def test_the_result_is_in_the_ball_and_in_the_unit_interval(
    eps: float, ratio: float, steps: int, start: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    image = torch.rand(3, 1, 4, 4, generator=generator)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    label = torch.tensor([0, 1, 2])
    adversarial = pgd(network, image, label, Pgd(eps, eps * ratio, steps, start), generator)
    assert adversarial.shape == image.shape and adversarial.dtype == torch.float32
    assert not adversarial.requires_grad
    assert float((adversarial - image).abs().max()) <= eps + 1e-6
    assert float(adversarial.min()) >= 0 and float(adversarial.max()) <= 1


def naive_pgd(network, image, label, attack: Pgd, generator: torch.Generator) -> torch.Tensor:
    """One image at a time, one pixel-wise projection at a time, with autograd's backward."""
    start = torch.rand(image.shape, generator=generator) * 2 - 1
    results = []
    for x0, y, s in zip(image, label, start, strict=True):
        x = (x0 + attack.eps * s).clamp(0, 1)
        for _ in range(attack.steps):
            leaf = x.clone()[None].requires_grad_(True)
            F.cross_entropy(network(leaf), y[None]).backward()
            moved = x + attack.step_size * leaf.grad[0].sign()
            x = torch.minimum(torch.maximum(moved, x0 - attack.eps), x0 + attack.eps).clamp(0, 1)
        results.append(x)
    return torch.stack(results)


def test_it_agrees_with_a_naive_attack_image_by_image(trained_run) -> None:
    image = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([0, 1, 2, 3, 4])
    attack = Pgd(0.2, 0.05, 5)
    with trained_run.model.network(Setting(1.0)) as network:
        ours = pgd(network, image, label, attack, torch.Generator().manual_seed(7))
        naive = naive_pgd(network, image, label, attack, torch.Generator().manual_seed(7))
    # a gradient of about 0 may take either sign in another order of summation: nearly all pixels must agree
    assert float(((ours - naive).abs() < 1e-5).float().mean()) > 0.98


def test_more_steps_raise_the_loss_of_a_trained_network(trained_run) -> None:
    from deploytool.data.datasets import load_dataset

    image, label = load_dataset(trained_run.recipe.data).test.batch(slice(0, 200))
    with trained_run.model.network(Setting(0.0)) as network:
        losses = [float(F.cross_entropy(network(image), label))]
        for steps in (1, 7, 20):
            adversarial = pgd(network, image, label, Pgd(0.1, 0.02, steps, random_start=False))
            losses.append(float(F.cross_entropy(network(adversarial), label)))
    assert losses == sorted(losses) and losses[-1] > 2 * losses[0]


def test_no_gradient_reaches_the_weights_and_statistics_stay(trained_run) -> None:
    model = trained_run.model
    model.zero_grad(set_to_none=True)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with model.network(Setting(1.0)) as network:
        pgd(network, torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]), Pgd(0.2, 0.05, 3))
    assert model.backbone.training
    model.eval()
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_state_is_computed_once_per_attack(trained_run, monkeypatch) -> None:
    model, calls = trained_run.model, []
    original = type(model).state
    monkeypatch.setattr(type(model), "state", lambda self, *a, **k: calls.append(1) or original(self, *a, **k))
    with model.network(Setting(1.0)) as network:
        pgd(network, torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]), Pgd(0.2, 0.05, 7))
    assert len(calls) == 1
