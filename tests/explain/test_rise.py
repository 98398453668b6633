"""RISE against one mask of one image at a time, upsampled whole by torch, and against what is known beforehand."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from deploytool.data.catalogue import CATALOGUE
from deploytool.data.datasets import load_dataset
from deploytool.errors import InputError
from deploytool.explain import attribution
from deploytool.explain.attribution import predicted_class
from deploytool.explain.controls import random_maps
from deploytool.explain.faithfulness import deletion
from deploytool.explain.rise import _masks, rise
from deploytool.models.registry import build_backbone
from deploytool.models.setting import Setting


class Region(nn.Module):
    """Sees the mean of one region, rows and columns 5..9."""

    def forward(self, image: Tensor) -> Tensor:
        score = 8 * image[:, :, 5:10, 5:10].mean((1, 2, 3)) - 4
        return torch.stack([score, torch.zeros_like(score)], 1)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("resnet8", CATALOGUE["cifar10"]).eval()


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("height", "width", "cells", "keep", "count"), [(8, 8, 3, 0.5, 9), (9, 12, 7, 0.3, 5), (8, 8, 8, 0.8, 4)]
)
def test_it_is_the_naive_one(network: nn.Module, height: int, width: int, cells: int, keep: float, count: int) -> None:
    """Draws in the order of the docstring: where masks are cut from, then grids; the rest is a loop in float64."""
    image, target = seeded(3, 3, height, width), torch.tensor([0, 7, 3])
    generator = torch.Generator().manual_seed(5)
    tall, wide = -(-height // cells), -(-width // cells)
    top, left = (torch.randint(side, (count, 1), generator=generator).flatten().tolist() for side in (tall, wide))
    expected = torch.zeros(3, height, width, dtype=torch.float64)
    for number in range(count):
        grid = (torch.rand(1, 1, cells, cells, generator=generator) < keep).float()
        size = ((cells + 1) * tall, (cells + 1) * wide)
        whole = F.interpolate(grid, size, mode="bilinear", align_corners=False)[0, 0]
        mask = whole[top[number] : top[number] + height, left[number] : left[number] + width]
        assert mask.shape == (height, width)
        for index in range(3):
            with torch.no_grad():
                p = network((image[index] * mask)[None]).softmax(1)[0, target[index]]
            expected[index] += float(p) * mask.double() / (keep * count)
    found = rise(network, image, target, count, cells, keep, seed=5)
    assert found.dtype == torch.float32 and found.shape == (3, height, width)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)


def test_masks_show_a_pixel_as_often_as_a_cell_is_kept() -> None:
    masks = torch.cat(list(_masks((10, 14), 6000, 4, 0.3, 0, 1000)))
    assert masks.min() >= 0 and masks.max() <= 1 and len(masks.unique()) > 100  # smooth, not binary
    assert (masks.mean(0) - 0.3).abs().max() < 0.03  # 5 standard deviations of a mean of 6000 cells


def test_a_classifier_that_reads_one_region_has_its_maximum_there() -> None:
    found = rise(Region().eval(), torch.ones(2, 3, 15, 15), torch.tensor([0, 1]), masks=1500, cells=5)
    for best in (found[0].argmax(), found[1].argmin()):  # seeing the region speaks against class 1
        assert 5 <= int(best) // 15 < 10 and 5 <= int(best) % 15 < 10
    inside = found[:, 5:10, 5:10].mean((1, 2))
    corner = found[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(1)
    assert inside[0] > corner[0] + 0.1 and inside[1] < corner[1] - 0.1


def test_a_constant_answer_gives_its_probability_everywhere() -> None:
    logits = torch.tensor([2.0, 0.0, 0.0])
    found = rise(lambda x: logits.expand(len(x), 3), seeded(1, 1, 9, 9), torch.tensor([0]), masks=4000, cells=3)
    assert (found - logits.softmax(0)[0]).abs().max() < 0.05


def test_it_is_more_faithful_than_noise(plain_run) -> None:
    network = plain_run.model.plain_network(Setting(noise="none"))
    image = load_dataset(plain_run.recipe.data).test.batch(slice(0, 20))[0]
    target = predicted_class(network, image)
    found, noise = (
        float(deletion(network, image, maps, target).auc.mean())
        for maps in (rise(network, image, target, 500, 4), random_maps(image))
    )
    assert found < 0.7 * noise


@settings(max_examples=10)
@given(batch=st.integers(1, 40), seed=st.integers(0, 9))
def test_blocks_change_nothing(network: nn.Module, batch: int, seed: int) -> None:
    image, target = seeded(2, 3, 8, 8), torch.tensor([1, 4])
    whole = rise(network, image, target, 50, 4, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attribution, "CPU_IMAGES", batch)
        torch.testing.assert_close(rise(network, image, target, 50, 4, seed=seed), whole, rtol=1e-4, atol=1e-6)


def test_masks_are_the_same_bits_whatever_the_block() -> None:
    whole = next(_masks((9, 7), 100, 5, 0.5, 3, 100))
    for block in (1, 7, 64):
        assert torch.equal(torch.cat(list(_masks((9, 7), 100, 5, 0.5, 3, block))), whole)


def test_the_seed_alone_decides(network: nn.Module) -> None:
    image, target = seeded(2, 3, 8, 8), torch.tensor([1, 4])
    first = rise(network, image, target, 20, 4, seed=1)
    torch.manual_seed(99)
    assert torch.equal(rise(network, image, target, 20, 4, seed=1), first)
    assert not torch.allclose(rise(network, image, target, 20, 4, seed=2), first)
    torch.testing.assert_close(rise(network, image[1:], target[1:], 20, 4, seed=1), first[1:])  # the same masks


@pytest.mark.parametrize("change, words", [
    ({"masks": 0}, r"masks \(=0\)"), ({"cells": 9}, r"cells \(=9\) must be an integer in 1..8"),
    ({"keep": 0.0}, r"keep \(=0\) must be in \(0, 1\]"), ({"keep": 1.5}, "keep"),
    ({"target": torch.tensor([0, 10])}, r"target holds 10; the network has classes 0..9"),
    ({"target": torch.tensor([0])}, "target is"), ({"image": torch.ones(2, 3, 8, 8) * 9}, r"expected .*\[0, 1\]"),
    ({"network": lambda x: torch.full((len(x), 3), torch.nan)}, "NaN"),
    ({"network": lambda x: torch.zeros(3)}, r"expected logits \(N, K\)"),
    ({"network": nn.Linear(8, 3)}, "training mode"),
])  # fmt: skip
def test_bad_input_gets_one_line(network: nn.Module, change: dict[str, Any], words: str) -> None:
    arguments = {"network": network, "image": seeded(2, 3, 8, 8), "target": torch.tensor([0, 1]), "masks": 4}
    with pytest.raises(InputError, match=words) as caught:
        rise(**({**arguments, **change}))
    assert "\n" not in str(caught.value)
