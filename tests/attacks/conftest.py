"""Networks whose answers are known by hand, and digits that real networks answer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploytool.models.setting import Setting


class LinearNetwork(nn.Module):
    """logits = weight . image + bias: distances to its boundaries are known exactly."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)  # (K, C, H, W)
        self.register_buffer("bias", bias)

    def forward(self, image: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", image, self.weight) + self.bias


@pytest.fixture
def linear() -> LinearNetwork:
    """Five classes over (2, 3, 4) images; small weights, so that boundaries lie inside [0, 1]."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 2, 3, 4, generator=generator)
    return LinearNetwork(weight, torch.randn(5, generator=generator) * 0.1).eval()


@pytest.fixture
def grey(linear: LinearNetwork) -> tuple[Tensor, Tensor]:
    """Twelve images around 0.5 and the linear network's answers: no small step leaves [0, 1]."""
    image = 0.5 + 0.1 * (torch.rand(12, 2, 3, 4, generator=torch.Generator().manual_seed(4)) - 0.5)
    return image, linear(image).argmax(1)


@pytest.fixture
def boundary_distance(linear: LinearNetwork) -> Callable[[Tensor, Tensor, float], Tensor]:
    """The exact distance to the nearest boundary, min_k (z_y - z_k) / ||w_y - w_k||_q, (N,)."""

    def distance(image: Tensor, label: Tensor, dual: float) -> Tensor:
        logits = linear(image)
        gap = logits.gather(1, label[:, None]) - logits
        weight = (linear.weight[label][:, None] - linear.weight[None]).flatten(2)
        ratio = gap / torch.linalg.vector_norm(weight, dual, dim=2)
        return ratio.nan_to_num(nan=torch.inf).amin(1)

    return distance


@pytest.fixture(scope="session")
def digits(plain_run) -> tuple[Tensor, Tensor]:
    """Two hundred test digits."""
    from deploytool.data.datasets import load_dataset

    return load_dataset(plain_run.recipe.data).test.batch(slice(0, 200))


@pytest.fixture(scope="session")
def robust_network(trained_run) -> nn.Module:
    """The small FLOAT network at lambda 1, plain: trained against attacks."""
    return trained_run.model.plain_network(Setting(1.0))


@pytest.fixture(scope="session")
def plain_network(plain_run) -> nn.Module:
    """The small network of standard training."""
    return plain_run.model.plain_network(Setting())


class TwoHeads(nn.Module):
    """Two layers and two heads over small images: answers (N, K + R)."""

    def __init__(self, classes: int, reasons: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU())
        self.classes, self.reasons = nn.Linear(32, classes), nn.Linear(32, reasons)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.body(image)
        return torch.cat([self.classes(hidden), self.reasons(hidden)], 1)


@pytest.fixture(scope="session")
def naive_verdict() -> Callable[[Tensor, Tensor, float], list[tuple[int, bool]]]:
    """The rule of acceptance once more: class and acceptance of each answer (N, K + R), number by number."""

    def verdict(answer: Tensor, vectors: Tensor, threshold: float) -> list[tuple[int, bool]]:
        verdicts = []
        for row in answer.tolist():
            logits, reasons = row[: len(vectors)], row[len(vectors) :]
            named = logits.index(max(logits))
            said = [1 if 1 / (1 + 2.718281828459045**-value) > 0.5 else 0 for value in reasons]
            agreeing = sum(one == other for one, other in zip(said, vectors[named].tolist(), strict=True))
            verdicts.append((named, agreeing / len(reasons) >= threshold))
        return verdicts

    return verdict


@pytest.fixture(scope="session")
def two_heads() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network trained on digits by eq. 3, its vectors (10, 12), and 80 images with labels that it has not seen."""
    from sklearn.datasets import load_digits

    data = load_digits()
    image = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    label = torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vectors = (torch.rand(10, 12) < 0.4).to(torch.uint8)
        network = TwoHeads(10, 12)
        optimizer = torch.optim.Adam(network.parameters(), 4e-3)
        for _ in range(15):
            for rows in torch.randperm(1700).split(50):
                answer = network(image[rows])
                reasoning = F.binary_cross_entropy_with_logits(answer[:, 10:], vectors[label[rows]].float())
                optimizer.zero_grad()
                (0.5 * F.cross_entropy(answer[:, :10], label[rows]) + 0.5 * reasoning).backward()
                optimizer.step()
    return network.eval().requires_grad_(False), vectors, image[1700:1780], label[1700:1780]
