"""Networks whose answers are known by hand, and digits that real networks answer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

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
