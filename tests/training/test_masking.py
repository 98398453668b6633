"""Explained images: the paper's product, the blurred background, and masks of a random share of the pixels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.functional import gaussian_blur

from deploytool.explain.recipe import ExplanationSection
from deploytool.training.masking import explained_image, ranked_mask

IMAGE, LOGITS = torch.rand(6, 3, 12, 12), torch.randn(6, 1, 12, 12)


def test_the_papers_explained_image_is_a_product() -> None:
    torch.testing.assert_close(
        explained_image(IMAGE, LOGITS, ExplanationSection(), torch.Generator()), IMAGE * LOGITS.sigmoid()
    )


def test_nothing_explained_is_the_background() -> None:
    blurred = gaussian_blur(IMAGE, [11, 11], [5.0, 5.0])
    section = ExplanationSection(background="blur")
    nothing, everything = torch.full_like(LOGITS, -100), torch.full_like(LOGITS, 100)
    torch.testing.assert_close(explained_image(IMAGE, nothing, section, torch.Generator()), blurred)
    torch.testing.assert_close(explained_image(IMAGE, everything, section, torch.Generator()), IMAGE)
    tiny = torch.rand(2, 1, 4, 4)  # smaller than the blur's kernel
    assert explained_image(tiny, torch.full((2, 1, 4, 4), -100.0), section, torch.Generator()).shape == tiny.shape


def test_every_second_image_is_ranked() -> None:
    section = ExplanationSection(mask="ranked")
    found = explained_image(IMAGE, LOGITS, section, torch.Generator().manual_seed(1))
    ranked = ranked_mask(LOGITS[3:], torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, IMAGE * torch.cat([LOGITS[:3].sigmoid(), ranked]))


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-30, 30))
def test_ranked_masks_know_the_order_alone(seed: int, scale: float, shift: float) -> None:
    """Any rising line through the logits gives the same mask; a more important pixel never has a smaller share."""
    evidence = torch.randn(4, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    masks = [ranked_mask(u, torch.Generator().manual_seed(seed)) for u in (evidence, scale * evidence + shift)]
    torch.testing.assert_close(*masks, rtol=0, atol=1e-3)
    order = evidence.flatten(1).argsort(1)
    assert (masks[0].flatten(1).gather(1, order).diff(dim=1) >= 0).all()


def test_shares_are_uniform() -> None:
    """A quarter of the masks leave less than a quarter of the pixels, and so on."""
    maps = torch.randn(1, 1, 16, 16).expand(4000, -1, -1, -1)
    kept = (ranked_mask(maps, torch.Generator().manual_seed(0)) >= 0.5).float().mean((1, 2, 3))
    for share in (0.1, 0.25, 0.5, 0.9):
        assert (kept <= share).float().mean().item() == pytest.approx(share, abs=0.03)
    assert kept.min() > 0  # the most important pixel is always there


def test_a_map_without_order_is_no_mask() -> None:
    mask = ranked_mask(torch.full((2, 1, 5, 5), 0.7), torch.Generator())
    assert mask.isfinite().all() and torch.equal(mask, torch.full_like(mask, 0.5))
