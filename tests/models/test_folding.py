"""Folding changes no answer and no gradient, and stays away from what it may not fold."""

import numpy as np
import pytest
import torch
from torch import nn

from deploytool.data.catalogue import CATALOGUE
from deploytool.models.conditional import FloatModel
from deploytool.models.folding import FoldedBackbone, folded_module
from deploytool.models.registry import BACKBONES, build_backbone
from deploytool.models.setting import Setting
from deploytool.models.surrogate import Surrogate, build_surrogate


def randomize(network: nn.Module) -> nn.Module:
    """Statistics of a trained network: neither 0 nor 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                for tensor in (norm.weight, norm.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                for tensor in (norm.bias, norm.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return network.eval()


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.detach() for name, t in [*network.named_parameters(), *network.named_buffers()]}


def norms_left(folded: FoldedBackbone, network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) - len(folded.pairs)


@pytest.mark.parametrize("arch", sorted(BACKBONES))
def test_answers_and_gradients_stay(arch: str) -> None:
    data = CATALOGUE["digits" if "digits" in arch else "cifar10"]
    model = FloatModel(randomize(build_backbone(arch, data)))
    randomize(model.adversarial_norms)
    model.double().eval()  # in float32 a rectifier near 0 may open on one side alone
    setting = Setting(0.6)
    images = [torch.rand(3, *data.shape, generator=torch.Generator().manual_seed(1)).double() for _ in range(2)]
    plain = model(images[0].requires_grad_(), setting)
    with model.network(setting) as network:
        folded = network(images[1].requires_grad_())
    torch.testing.assert_close(folded, plain)
    (expected,) = torch.autograd.grad(plain.logsumexp(1).sum(), images[0])
    (gradient,) = torch.autograd.grad(folded.logsumexp(1).sum(), images[1])
    torch.testing.assert_close(gradient, expected)


def test_a_fold_by_hand() -> None:
    network = randomize(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))
    with torch.no_grad():
        network[0].weight.fill_(2.0)
        network[0].bias.fill_(0.5)
        for name, value in {"weight": 3.0, "bias": 0.25, "running_mean": 1.5, "running_var": 4.0 - 1e-5}.items():
            getattr(network[1], name).fill_(value)
    folded = FoldedBackbone(network)
    state = folded.fold(state_of(network))
    assert set(state) == {"0.weight", "0.bias"}
    np.testing.assert_allclose(state["0.weight"].item(), 2 * 3 / 2, rtol=1e-6)
    np.testing.assert_allclose(state["0.bias"].item(), 0.25 + (0.5 - 1.5) * 3 / 2, rtol=1e-6)


@pytest.mark.parametrize(("arch", "left"), [("resnet20", 0), ("resnet34", 0), ("wrn40-2", 18)])
def test_how_many_batch_norms_are_left(arch: str, left: int) -> None:
    """Basic blocks keep none; 17 norms of pre-activation blocks that follow an Add, and the last one, stay."""
    network = build_backbone(arch, CATALOGUE["cifar10"]).eval()
    assert norms_left(FoldedBackbone(network), network) == left


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.conv(image)
        return self.norm(x) + x


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(image)) if image.sum() > 0 else self.conv(image)


@pytest.mark.parametrize("network", [Shared(), Branching()])
def test_what_may_not_be_folded_is_left(network: nn.Module) -> None:
    randomize(network)
    folded = FoldedBackbone(network)
    assert folded.pairs == []
    image = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(folded(folded.fold(state_of(network)), image), network(image))


def test_the_backbone_itself_is_not_changed() -> None:
    network = randomize(build_backbone("resnet20", CATALOGUE["cifar10"]))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    names = [name for name, _ in network.named_parameters()]
    FoldedBackbone(network)
    assert [name for name, _ in network.named_parameters()] == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class Peeking(nn.Module):
    """Calls a part of a part, which sees no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.part(image) + self.part[0](image) * len(list(image))  # which cannot be traced


@torch.no_grad()
def test_a_folded_module_keeps_its_submodules() -> None:
    network, image = randomize(build_backbone("resnet8", CATALOGUE["cifar10"])), torch.rand(2, 3, 32, 32)
    folded = folded_module(network, image)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(image), network(image), rtol=1e-4, atol=1e-4)
    seen: list[torch.Tensor] = []
    for each in (network, folded):
        each.get_submodule("layer3").register_forward_hook(lambda module, given, answer: seen.append(answer))
        each(image)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_cannot_be_traced_is_folded_part_by_part() -> None:
    class Asking(Surrogate):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits, saliency = super().forward(image)
            assert saliency.isfinite().all()
            return logits, saliency

    surrogate, image = randomize(build_surrogate("resnet8", CATALOGUE["cifar10"])), torch.rand(2, 3, 32, 32)
    surrogate = Asking(surrogate.student, surrogate.explanation).eval()
    assert not FoldedBackbone(surrogate).pairs
    folded = folded_module(surrogate, image)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for found, expected in zip(folded(image), surrogate(image), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_fold_that_would_change_the_answer_is_taken_back() -> None:
    network, image = randomize(Peeking()), torch.rand(2, 1, 4, 4)
    folded = folded_module(network, image)
    assert folded is not network and torch.equal(folded(image), network(image))
