"""How maps are compared: hand-worked numbers, scipy, and properties."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import InputError
from deploytool.explain import stability
from deploytool.explain.attribution import grad_cam, predicted_class, sliding_patch
from deploytool.explain.stability import (
    MapPair,
    blur,
    blur_maps,
    blur_stability,
    compare,
    patch_maps,
    patch_stability,
    rank_correlation,
    ssd,
    unit_range,
)
from deploytool.models.registry import build_backbone

VALUES = st.floats(-1e3, 1e3, width=32)
MAPS = arrays(np.float32, (3, 4, 5), elements=VALUES).map(torch.from_numpy)


class Deaf(nn.Module):
    """A network whose answer is the same for every image, with a convolution all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        return 0 * self.conv(image).mean((2, 3)) + torch.arange(4.0)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("resnet8", CATALOGUE["cifar10"]).eval()


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def test_ssd_by_hand() -> None:
    first = torch.tensor([[[0.0, 1.0], [0.5, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    second = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert ssd(first, second).tolist() == [1.25, 4.0]
    with pytest.raises(InputError, match="\\(2, 2, 2\\) and \\(1, 2, 2\\)"):
        ssd(first, second[:1])


@given(MAPS, MAPS)
def test_ssd_is_a_squared_distance(first: Tensor, second: Tensor) -> None:
    a, b = unit_range(first), unit_range(second)
    assert torch.equal(ssd(a, b), ssd(b, a))
    assert torch.equal(ssd(a, a), torch.zeros(3, dtype=torch.float64))
    assert ((ssd(a, b) >= 0) & (ssd(a, b) <= 4 * 5)).all()


@given(MAPS)
def test_maps_are_scaled_to_the_unit_range(maps: Tensor) -> None:
    scaled = unit_range(maps)
    assert ((scaled >= 0) & (scaled <= 1)).all()
    for before, after in zip(maps, scaled, strict=True):
        assert after.min() == 0
        assert after.max() == (0 if before.min() == before.max() else 1)
        order = before.flatten().argsort()
        assert (after.flatten()[order].diff() >= 0).all()


def test_a_constant_map_becomes_0() -> None:
    assert unit_range(torch.full((1, 2, 2), 7.0)).tolist() == [[[0, 0], [0, 0]]]
    assert unit_range(torch.tensor([[[-2.0, 2.0], [0.0, 1.0]]])).tolist() == [[[0, 1], [0.5, 0.75]]]


@given(arrays(np.float32, (2, 4, 5), elements=st.integers(0, 6)), arrays(np.float32, (2, 4, 5), elements=VALUES))
def test_rank_correlation_is_that_of_scipy(first: np.ndarray, second: np.ndarray) -> None:
    found = rank_correlation(torch.from_numpy(first), torch.from_numpy(second))
    for a, b, value in zip(first, second, found.tolist(), strict=True):
        if len(np.unique(a)) == 1 or len(np.unique(b)) == 1:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-9)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.9, 1.7, 2.75])
def test_blur_is_that_of_scipy(sigma: float) -> None:
    image = images(2)
    expected = scipy.ndimage.gaussian_filter(image.numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=8)
    found = blur(image, sigma)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("sigma", [0, -1.0, 0.05, 2.76, float("nan"), float("inf"), True, "1"])
def test_an_impossible_blur_is_refused(sigma: object) -> None:
    with pytest.raises(InputError, match="must be in \\[0.1, 2.75\\] pixels for 12x12 images"):
        blur(images(1), sigma)  # type: ignore[arg-type]


def test_the_pairs_are_what_they_say(network: nn.Module) -> None:
    image = images(4)
    target = predicted_class(network, image)
    patch = patch_maps(network, image, (3, 2), 1)
    torch.testing.assert_close(patch.first, unit_range(sliding_patch(network, image, target, 3, 1)))
    torch.testing.assert_close(patch.second, unit_range(sliding_patch(network, image, target, 2, 1)))
    assert torch.equal(patch.image, image) and not patch.changed.any()
    pair = blur_maps(network, image, 1.0)
    torch.testing.assert_close(pair.first, unit_range(grad_cam(network, image, target)))
    torch.testing.assert_close(pair.second, unit_range(grad_cam(network, blur(image, 1.0), target)))
    assert torch.equal(pair.changed, predicted_class(network, blur(image, 1.0)) != target)
    assert torch.equal(pair.target, target)


def test_both_maps_explain_the_class_of_the_unmodified_image() -> None:
    """Class 0 looks for a lone bright pixel, which blurring takes away; class 1 has a constant score."""

    class Sharp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
            self.conv.weight.data = -torch.ones(1, 1, 3, 3) / 8
            self.conv.weight.data[0, 0, 1, 1] = 1.0

        def forward(self, image: Tensor) -> Tensor:
            score = self.conv(image).relu().mean((2, 3))[:, 0]
            return torch.stack([score, torch.full_like(score, 0.004)], 1)

    network = Sharp().eval()
    image = torch.zeros(1, 1, 12, 12)
    image[0, 0, 5, 5] = 1.0
    pair = blur_maps(network, image, 1.0)
    assert pair.target.tolist() == [0] and pair.changed.tolist() == [True]
    torch.testing.assert_close(pair.second, unit_range(grad_cam(network, blur(image, 1.0), torch.tensor([0]))))
    assert pair.second.max() == 1 and blur_stability(network, image, 1.0).changed.tolist() == [True]


def test_unrelated_images_are_the_neighbours_in_a_ring() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (unit_range(torch.rand(5, 3, 4, generator=generator)) for _ in range(2))

    def pair(rows: slice) -> MapPair:
        part = first[rows]
        return MapPair(part, second[rows], part[:, None], torch.zeros(len(part)), torch.zeros(len(part)).bool())

    expected = [float((first[i] - second[i - 1]).double().square().sum()) for i in range(5)]
    for rows in ([slice(0, 5)], [slice(0, 2), slice(2, 3), slice(3, 5)]):
        found = compare(map(pair, rows))
        assert found.unrelated.tolist() == pytest.approx(expected)
        assert found.ssd.tolist() == pytest.approx(ssd(first, second).tolist()) and len(found) == 5
    assert compare([pair(slice(0, 1))]).unrelated.isnan().all()


@settings(max_examples=5)
@given(batch=st.integers(1, 7))
def test_the_batch_size_changes_no_stability(network: nn.Module, batch: int) -> None:
    image = images(7)
    whole = patch_stability(network, image), blur_stability(network, image)
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stability, "BATCH", batch)
        parts = patch_stability(network, image, on_batch=steps.append), blur_stability(network, image)
    assert sum(steps) == 7 and max(steps) == batch
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.ssd, other.ssd, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(one.unrelated, other.unrelated, atol=1e-3, rtol=1e-3)
        assert torch.equal(one.changed, other.changed)


def test_a_network_that_looks_at_nothing_compares_nothing() -> None:
    for found in (patch_stability(Deaf().eval(), images(3)), blur_stability(Deaf().eval(), images(3))):
        assert found.ssd.tolist() == [0, 0, 0] and found.constant.all()
        assert found.correlation.isnan().all() and not found.changed.any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sizes": (4,)}, "patch \\(=4\\) must be two different sizes"),
        ({"sizes": (4, 4)}, "must be two different sizes"),
        ({"sizes": (4, 13)}, "patch size \\(=13\\) must be at most 12"),
        ({"sizes": (4, 2), "stride": 3}, "stride \\(=3\\) must be in 1..2"),
        ({"images": torch.rand(0, 3, 8, 8)}, "images \\(=0\\)"),
    ],
)
def test_what_cannot_be_compared_gets_one_line(network: nn.Module, arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        patch_stability(**{"network": network, "images": images(2), **arguments})
