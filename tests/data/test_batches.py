"""Training batches: whole ones, every image once, and augmentation that only moves and mirrors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deploytool.data.batches import batches_per_epoch, random_crop, random_flip, training_batches
from deploytool.data.datasets import Images
from deploytool.recipe import DataSection

CPU = torch.device("cpu")


def numbered(count: int) -> Images:
    """Image i holds the value i / 1000 in every pixel, and has the label i."""
    values = torch.arange(count, dtype=torch.float32) / 1000
    return Images(values[:, None, None, None].expand(count, 2, 3, 4).clone(), torch.arange(count))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def epoch(images: Images, section: DataSection, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(training_batches(images, section, seeded(seed), CPU))


def distinct(count: int, height: int, width: int) -> Tensor:
    """Every pixel of every image has a value of its own, none of them 0."""
    size = count * 2 * height * width
    return (torch.arange(1, size + 1, dtype=torch.float32) / (size + 1)).reshape(count, 2, height, width)


@settings(deadline=None)
@given(count=st.integers(1, 120), size=st.integers(2, 50), seed=st.integers(0, 2**31))
def test_batches_are_whole_and_no_image_comes_twice(count: int, size: int, seed: int) -> None:
    batches = epoch(numbered(count), DataSection(batch_size=size), seed)
    assert len(batches) == batches_per_epoch(count, size)
    assert [len(label) for _, label in batches] == ([size] * (count // size) if count >= size else [count])
    labels = torch.cat([label for _, label in batches]).tolist()
    assert len(set(labels)) == len(labels) and set(labels) <= set(range(count))
    for image, label in batches:
        assert image.dtype == torch.float32 and label.dtype == torch.int64 and image.shape[1:] == (2, 3, 4)
        assert torch.equal(image[:, 0, 0, 0], label / 1000)


@pytest.mark.parametrize(("count", "size", "expected"), [(100, 10, 10), (109, 10, 10), (9, 10, 1), (10, 10, 1)])
def test_batches_per_epoch_by_hand(count: int, size: int, expected: int) -> None:
    assert batches_per_epoch(count, size) == expected


@pytest.mark.parametrize("section", [DataSection(batch_size=8), DataSection(batch_size=8, crop_padding=1, flip=True)])
def test_the_seed_of_the_generator_decides_everything(section: DataSection) -> None:
    images = Images(distinct(64, 5, 6), torch.arange(64))
    first, again, other = (epoch(images, section, seed) for seed in (7, 7, 8))
    for (image, label), (same_image, same_label) in zip(first, again, strict=True):
        assert torch.equal(image, same_image) and torch.equal(label, same_label)
    assert [label.tolist() for _, label in first] != [label.tolist() for _, label in other]


def test_the_next_epoch_of_a_generator_has_another_order() -> None:
    generator = seeded(0)
    first, second = (
        torch.cat([label for _, label in training_batches(numbered(64), DataSection(batch_size=8), generator, CPU)])
        for _ in range(2)
    )
    assert not torch.equal(first, second) and torch.equal(first.sort().values, second.sort().values)


def test_the_order_does_not_depend_on_the_global_seed() -> None:
    torch.manual_seed(1)
    first = epoch(numbered(64), DataSection(batch_size=8, flip=True, crop_padding=1))
    torch.manual_seed(2)
    second = epoch(numbered(64), DataSection(batch_size=8, flip=True, crop_padding=1))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, second, strict=True))


def test_uint8_images_are_served_in_the_unit_interval_and_stay_as_they_were() -> None:
    source = torch.arange(240, dtype=torch.uint8).reshape(10, 1, 4, 6)
    images = Images(source.clone(), torch.arange(10))
    for image, label in epoch(images, DataSection(batch_size=5, flip=True, crop_padding=2)):
        assert image.dtype == torch.float32 and image.shape == (5, 1, 4, 6) and len(label) == 5
        assert image.min() >= 0 and image.max() <= 1
    assert torch.equal(images.images, source)


def naive_shift(image: np.ndarray, up: int, left: int) -> np.ndarray:
    """Move an image (C, H, W) by whole pixels, one at a time, zeros moving in."""
    out = np.zeros_like(image)
    for channel in range(image.shape[0]):
        for row in range(image.shape[1]):
            for column in range(image.shape[2]):
                source_row, source_column = row + up, column + left
                if 0 <= source_row < image.shape[1] and 0 <= source_column < image.shape[2]:
                    out[channel, row, column] = image[channel, source_row, source_column]
    return out


def shift_of(source: np.ndarray, moved: np.ndarray, padding: int) -> tuple[int, int] | None:
    for up in range(-padding, padding + 1):
        for left in range(-padding, padding + 1):
            if np.array_equal(naive_shift(source, up, left), moved):
                return up, left
    return None


@settings(deadline=None, max_examples=25)
@given(
    height=st.integers(1, 6), width=st.integers(1, 6), padding=st.integers(1, 3), seed=st.integers(0, 2**31)
)  # fmt: skip
def test_a_crop_is_a_shift_by_at_most_the_padding(height: int, width: int, padding: int, seed: int) -> None:
    images = distinct(4, height, width)
    cropped = random_crop(images, padding, seeded(seed))
    assert cropped.shape == images.shape and cropped.is_contiguous()
    for source, moved in zip(images.numpy(), cropped.numpy(), strict=True):
        assert shift_of(source, moved, padding) is not None


def test_all_shifts_come_equally_often() -> None:
    count = 3600
    image = distinct(1, 3, 4)
    cropped = random_crop(image.expand(count, -1, -1, -1), 1, seeded(0)).numpy()
    shifts = {(up, left): naive_shift(image[0].numpy(), up, left) for up in (-1, 0, 1) for left in (-1, 0, 1)}
    counts = [int((cropped == moved).all(axis=(1, 2, 3)).sum()) for moved in shifts.values()]
    assert sum(counts) == count
    # binomial with p = 1/9: mean 400, standard deviation 18.9; five of them either way
    assert all(abs(number - 400) < 95 for number in counts)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 20))
def test_a_flip_mirrors_columns_or_does_nothing(seed: int, count: int) -> None:
    images = distinct(count, 3, 4)
    before = images.clone()
    for source, out in zip(images.numpy(), random_flip(images, seeded(seed)).numpy(), strict=True):
        assert np.array_equal(out, source) or np.array_equal(out, source[:, :, ::-1])
    assert torch.equal(images, before)


def test_half_of_the_images_are_flipped() -> None:
    images = distinct(1, 1, 2).expand(4000, -1, -1, -1)
    flipped = int((random_flip(images, seeded(0)) != images).any(dim=(1, 2, 3)).sum())
    assert abs(flipped - 2000) < 160  # five standard deviations of a fair coin


def test_without_augmentation_images_come_as_they_are() -> None:
    images = Images(distinct(12, 3, 4), torch.arange(12))
    for image, label in epoch(images, DataSection(batch_size=4)):
        assert torch.equal(image, images.images[label])
