"""A session gives the module's answers, and where it cannot the module answers itself."""

import pytest
import torch
from torch import Tensor, nn

from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import InputError
from deploytool.explain.faithfulness import deletion, insertion
from deploytool.explain.fast import fast_network
from deploytool.models.registry import build_backbone


class Drawing(nn.Linear):
    """Another answer each time."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image.flatten(1)) + torch.randn(len(image), 3)


class Branching(nn.Linear):
    """Its path hangs on what it sees, which no graph can hold."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image.flatten(1) if float(image.sum()) > 0 else -image.flatten(1))


def trained(network: nn.Module) -> nn.Module:
    """With statistics of its own, so that a batch norm does something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.mark.parametrize("arch", ["resnet8", "vgg16", "mobilenet"])
def test_the_session_gives_the_answers_of_the_module(arch: str) -> None:
    network = trained(build_backbone(arch, CATALOGUE["cifar10"]))
    fast = fast_network(network, (3, 32, 32), threads=1)
    assert fast is not network
    for count in (1, 2, 65):
        image = torch.rand(count, 3, 32, 32)
        with torch.no_grad():
            expected = network(image)
        found = fast(image)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        turned = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels last
        torch.testing.assert_close(fast(turned), found)
    with pytest.raises(InputError, match=r"shape \(1, 3, 8, 8\); this network was made for \(3, 32, 32\)"):
        fast(torch.rand(1, 3, 8, 8))


def test_curves_are_the_same() -> None:
    network = trained(build_backbone("resnet8", CATALOGUE["digits"]))
    fast, image, maps = fast_network(network, (1, 8, 8)), torch.rand(9, 1, 8, 8), torch.rand(9, 8, 8)
    for curves in (deletion, lambda *given: insertion(*given, kernel=5)):
        found, expected = curves(fast, image, maps), curves(network, image, maps)
        torch.testing.assert_close(found.probability, expected.probability, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [Drawing(4, 3), Branching(4, 3)])
def test_what_a_session_cannot_answer_answers_itself(network: nn.Module) -> None:
    assert fast_network(network.eval(), (1, 2, 2)) is network


def test_bad_networks_are_refused() -> None:
    with pytest.raises(InputError, match="training mode"):
        fast_network(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).train(), (1, 2, 2))
    with pytest.raises(InputError, match=r"expected logits \(N, K\)"):
        fast_network(nn.Flatten(2).eval(), (1, 2, 2))
