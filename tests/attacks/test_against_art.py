"""The same robust accuracy as adversarial-robustness-toolbox's attacks on the same networks and images.

Budgets are small enough for a test; `benchmarks/attacks.py --agreement` compares at the full ones.
"""

import multiprocessing
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploytool.attacks.autoattack import AutoAttack
from deploytool.attacks.carlini import CarliniWagner
from deploytool.attacks.deepfool import DeepFool
from deploytool.attacks.pgd import Pgd
from deploytool.attacks.run import run_attack
from deploytool.attacks.square import Square

pytest.importorskip("art", reason="adversarial-robustness-toolbox is the independent reference; pip install it")

from art.attacks import evasion
from art.estimators.classification import PyTorchClassifier

POINT = 0.01 + 1e-6


@pytest.fixture(autouse=True)
def seeded(monkeypatch) -> Iterator[None]:
    """ART draws from numpy's global generator; its AutoAttack imports `multiprocess`, which it does not need here."""
    monkeypatch.setitem(sys.modules, "multiprocess", multiprocessing)
    state = np.random.get_state()
    np.random.seed(0)
    yield
    np.random.set_state(state)


class Quick(PyTorchClassifier):
    """The gradient of one class for each image in one backward pass, where ART takes one for every class."""

    def class_gradient(self, x, label=None, **options):
        if not isinstance(label, np.ndarray):
            return super().class_gradient(x, label, **options)
        leaf = torch.from_numpy(x).requires_grad_(True)
        own = self.model(leaf).gather(1, torch.from_numpy(label.astype(np.int64))[:, None])
        return torch.autograd.grad(own.sum(), leaf)[0].numpy()[:, None]


def classifier(network: nn.Module, image: Tensor) -> PyTorchClassifier:
    return Quick(network, nn.CrossEntropyLoss(), tuple(image.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu")


def theirs(network: nn.Module, image: Tensor, label: Tensor, attack, norm: str, radii: list[float]) -> list[float]:
    """Robust accuracy at each radius of an attack of ART."""
    found = torch.from_numpy(attack.generate(image.numpy(), label.numpy()))
    size = (found - image).flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)
    with torch.no_grad():
        wrong, fooled = (network(x).argmax(1) != label for x in (image, found))
    return [1 - float((wrong | (fooled & (size <= radius + 1e-5))).float().mean()) for radius in radii]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5)])
@pytest.mark.parametrize("which", ["plain_network", "robust_network"])
def test_pgd(request, digits, which: str, norm: str, eps: float) -> None:
    network, (image, label) = request.getfixturevalue(which), digits
    reference = evasion.ProjectedGradientDescentPyTorch(
        classifier(network, image), np.inf if norm == "linf" else 2, eps, eps / 4, max_iter=20, num_random_init=1,
        batch_size=200, verbose=False,
    )  # fmt: skip
    ours = run_attack(network, image, label, Pgd(eps, eps / 4, 20, norm=norm)).robust_accuracy()
    assert ours == pytest.approx(theirs(network, image, label, reference, norm, [eps])[0], abs=POINT)


def test_deepfool(plain_network, digits) -> None:
    image, label = (each[:100] for each in digits)
    radii = [0.2, 0.3, 0.4, 0.5, 0.6]
    reference = evasion.DeepFool(
        classifier(plain_network, image), max_iter=50, epsilon=0.02, batch_size=100, verbose=False
    )
    expected = theirs(plain_network, image, label, reference, "l2", radii)
    result = run_attack(plain_network, image, label, DeepFool(overshoot=0.02, steps=50))
    assert [result.robust_accuracy(radius) for radius in radii] == pytest.approx(expected, abs=POINT)


class Corner(nn.Module):
    """The network on the upper left 8x8 pixels of larger images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image[:, :, :8, :8])  # type: ignore[no-any-return]


def test_square(robust_network, digits) -> None:
    # ART's squares never reach the last row and column, a quarter of these images; so they get one more of each
    image, label = F.pad(digits[0], (0, 1, 0, 1)), digits[1]
    network = Corner(robust_network).eval()
    reference = evasion.SquareAttack(
        classifier(network, image), norm=np.inf, max_iter=300, eps=0.1, batch_size=200, verbose=False
    )
    ours = run_attack(network, image, label, Square(0.1, queries=300)).robust_accuracy()
    assert ours == pytest.approx(theirs(network, image, label, reference, "linf", [0.1])[0], abs=POINT)


def test_autoattack(robust_network, digits) -> None:
    # ART has no targeted DLR and no FAB: its APGD, untargeted and then towards each class in turn
    image, label = (each[:100] for each in digits)
    victim = classifier(robust_network, image)
    apgd = evasion.AutoProjectedGradientDescent(
        victim, np.inf, 0.1, 0.2, max_iter=15, nb_random_init=1, batch_size=100, loss_type="cross_entropy",
        verbose=False,
    )  # fmt: skip
    reference = evasion.AutoAttack(victim, np.inf, 0.1, 0.2, attacks=[apgd], batch_size=100, targeted=True)
    ours = run_attack(robust_network, image, label, AutoAttack(0.1, steps=20, queries=60)).robust_accuracy()
    assert ours == pytest.approx(theirs(robust_network, image, label, reference, "linf", [0.1])[0], abs=POINT)


def test_carlini_wagner(plain_network, digits) -> None:
    """Against ART's elastic net attack at beta 0, which has the same objective.

    ART's own CarliniL2Method descends in tanh space without Adam and stalls at pixels of 0 and 1: there it may only be
    no stronger than ours.
    """
    image, label = 0.1 + 0.8 * digits[0][:24], digits[1][:24]  # the reference is slow
    victim, radii = classifier(plain_network, image), [0.2, 0.3, 0.4]
    result = run_attack(plain_network, image, label, CarliniWagner())
    net = evasion.ElasticNet(
        victim, beta=0.0, decision_rule="L2", learning_rate=0.05, max_iter=50, binary_search_steps=6, initial_const=0.1,
        batch_size=200, verbose=False,
    )  # fmt: skip
    found = torch.from_numpy(net.generate(image.numpy(), label.numpy()))
    size = (found - image).flatten(1).norm(dim=1)
    right = plain_network(image).argmax(1) == label
    assert float(result.distance[right].mean()) == pytest.approx(float(size[right].mean()), rel=0.04)
    for radius in radii:
        expected = float((right & (size > radius)).float().mean())
        assert result.robust_accuracy(radius) == pytest.approx(expected, abs=1.01 / len(label))  # one image
    weaker = evasion.CarliniL2Method(victim, max_iter=10, learning_rate=0.1, batch_size=200, verbose=False)
    for radius, bound in zip(radii, theirs(plain_network, image, label, weaker, "l2", radii), strict=True):
        assert result.robust_accuracy(radius) <= bound + POINT
