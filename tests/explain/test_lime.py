"""LIME against a weighted ridge in closed form, one sample at a time, and against linear models it has to recover."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import InputError
from deploytool.explain import attribution
from deploytool.explain.lime import lime, superpixels
from deploytool.models.registry import build_backbone


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("resnet8", CATALOGUE["cifar10"]).eval()


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def quadrants(height: int, width: int) -> Tensor:
    """An image (1, 3, H, W) of four colours, one in each quarter."""
    image = torch.zeros(1, 3, height, width)
    image[:, 0, : height // 2], image[:, 1, :, : width // 2] = 1, 1
    return image


def test_it_is_a_weighted_ridge(network: nn.Module) -> None:
    """Centred normal equations in float64: (X'WX + I) w = X'Wy, X and y less their weighted means."""
    image, target = seeded(2, 3, 8, 8), torch.tensor([3, 8])
    found = lime(network, image, target, samples=40, segments=6, seed=2)
    assert found.dtype == torch.float32 and found.shape == (2, 8, 8)
    for index, where in enumerate(superpixels(image, 6)):
        count = int(where.max()) + 1
        z = torch.rand(40, count, generator=torch.Generator().manual_seed(2)) < 0.5
        z[0] = True
        answers, weights = [], []
        for row in z.tolist():
            shown = image[index].clone()
            for number, seen in enumerate(row):
                if not seen:
                    here = where == number
                    shown[:, here] = image[index][:, here].mean(1, keepdim=True)
            with torch.no_grad():
                answers.append(float(network(shown[None]).softmax(1)[0, target[index]]))
            cosine = sum(row) / math.sqrt(sum(row) * count) if any(row) else 0.0
            weights.append(math.sqrt(math.exp(-((1 - cosine) ** 2) / 0.25**2)))
        x, y, w = z.double(), torch.tensor(answers).double(), torch.tensor(weights).double()
        x, y = x - (w @ x) / w.sum(), y - (w @ y) / w.sum()
        solved = torch.linalg.solve(x.T @ (w[:, None] * x) + torch.eye(count), x.T @ (w * y))
        torch.testing.assert_close(found[index], solved[where].float(), rtol=1e-3, atol=1e-6)
        assert solved.abs().max() > 1e-4


def test_the_superpixel_that_counts_has_the_weight() -> None:
    """Only the left upper quarter's noise decides; it is gone where a superpixel shows its mean colour."""
    image = (quadrants(12, 12) * 0.8 + 0.1 * seeded(1, 3, 12, 12)).clamp(0, 1)

    def network(x: Tensor) -> Tensor:
        score = 4000 * x[:, 0, :6, :6].var((1, 2))
        return torch.stack([score, torch.ones_like(score)], 1)

    found = lime(network, image, torch.tensor([0]), samples=200, segments=4)[0]
    inside = torch.zeros(12, 12, dtype=torch.bool)
    inside[:6, :6] = True
    assert len(found[inside].unique()) == 1 and found[inside].min() > 0.2 > 5 * found[~inside].abs().max()


def test_superpixels_are_patches_of_one_colour() -> None:
    where = superpixels(quadrants(8, 12), 4)[0]
    parts = [where[:4, :6], where[:4, 6:], where[4:, :6], where[4:, 6:]]
    assert all(len(part.unique()) == 1 for part in parts) and len(where.unique()) == 4


@pytest.mark.parametrize(("height", "width", "segments"), [(32, 32, 50), (8, 8, 64), (8, 8, 1), (5, 20, 13), (1, 7, 3)])
def test_superpixels_are_counted_from_0(height: int, width: int, segments: int) -> None:
    image = seeded(2, 3, height, width)
    found = superpixels(image, segments)
    assert found.shape == (2, height, width) and found.dtype == torch.int64
    for where in found:
        assert where.unique().tolist() == list(range(int(where.max()) + 1)) and 0.5 * segments <= where.max() + 1
        assert where.max() < segments
    assert torch.equal(superpixels(image[1:], segments), found[1:])
    flat = superpixels(torch.full((1, 3, height, width), 0.5), segments)
    assert flat.max() < segments


def test_superpixels_of_a_flat_image_are_the_grid() -> None:
    where = superpixels(torch.zeros(1, 3, 6, 6), 9)[0]
    assert torch.equal(where, torch.arange(9).view(3, 3).repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_the_seed_alone_decides(network: nn.Module) -> None:
    image, target = seeded(2, 3, 8, 8), torch.tensor([1, 4])
    first = lime(network, image, target, 30, 8, seed=1)
    torch.manual_seed(99)
    assert torch.equal(lime(network, image, target, 30, 8, seed=1), first)
    assert not torch.allclose(lime(network, image, target, 30, 8, seed=2), first)
    torch.testing.assert_close(lime(network, image[1:], target[1:], 30, 8, seed=1), first[1:])


@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_size_changes_nothing(network: nn.Module, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    image, target = seeded(2, 3, 8, 8), torch.tensor([1, 4])
    whole, seen = lime(network, image, target, 30, 8), []

    def watched(x: Tensor) -> Tensor:
        seen.append(len(x))
        return network(x)

    monkeypatch.setattr(attribution, "CPU_IMAGES", batch)
    torch.testing.assert_close(lime(watched, image, target, 30, 8), whole, rtol=1e-3, atol=1e-5)
    assert max(seen) == batch and sum(seen) == 1 + 2 * 30


@pytest.mark.parametrize("change, words", [
    ({"samples": 1}, r"samples \(=1\) must be an integer in 2.."), ({"segments": 65}, r"segments \(=65\).*1..64"),
    ({"target": torch.tensor([0, 10])}, r"target holds 10; the network has classes 0..9"),
    ({"target": torch.tensor([0])}, "target is"), ({"image": torch.ones(2, 3, 8, 8) * 9}, r"expected .*\[0, 1\]"),
    ({"network": lambda x: torch.full((len(x), 3), torch.nan)}, "NaN"),
    ({"network": lambda x: torch.zeros(3)}, r"expected logits \(N, K\)"),
    ({"network": nn.Linear(8, 3)}, "training mode"),
])  # fmt: skip
def test_bad_input_gets_one_line(network: nn.Module, change: dict[str, Any], words: str) -> None:
    arguments = {"network": network, "image": seeded(2, 3, 8, 8), "target": torch.tensor([0, 1]), "samples": 4}
    with pytest.raises(InputError, match=words) as caught:
        lime(**({**arguments, **change}))
    assert "\n" not in str(caught.value)
