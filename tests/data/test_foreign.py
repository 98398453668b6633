"""Images of another data set: which ones, and what their size and colours become."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deploytool.data.datasets import load_dataset
from deploytool.data.foreign import foreign_images
from deploytool.errors import DataError, InputError
from deploytool.recipe import DataSection


def written(file: Path, test: np.ndarray) -> str:
    """A data set file with these test images; its name."""
    train = np.zeros((2, *test.shape[1:]), test.dtype)
    train[1] = 1
    np.savez(file, x_train=train, y_train=np.arange(2), x_test=test, y_test=np.arange(len(test)) % 2)
    return f"npz:{file}"


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, np.ndarray]:
    pixels = np.random.default_rng(0).random((7, 3, 6, 9), np.float32)
    return written(tmp_path_factory.mktemp("foreign") / "colours.npz", pixels), pixels


def test_images_that_fit_come_as_they_are_none_twice() -> None:
    test = load_dataset(DataSection(name="digits")).test.images
    found = foreign_images("digits", (1, 8, 8), 100, 0)
    where = (found[:, None] == test[None]).flatten(2).all(2)
    assert found.shape == (100, 1, 8, 8) and found.dtype == torch.float32 and bool(where.any(1).all())
    assert len(torch.unique(found.flatten(1), dim=0)) == 100


def test_a_seed_draws_the_same_images_and_another_seed_others() -> None:
    first, same, other = (foreign_images("digits", (3, 5, 7), 20, seed) for seed in (3, 3, 4))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_all_where_there_are_fewer(colours: tuple[str, np.ndarray]) -> None:
    name, pixels = colours
    found = foreign_images(name, (3, 6, 9), 1000, 0).numpy()
    assert sorted(found.reshape(7, -1).tolist()) == sorted(pixels.reshape(7, -1).tolist())


def test_gray_is_repeated() -> None:
    found, gray = foreign_images("digits", (3, 8, 8), 9, 1), foreign_images("digits", (1, 8, 8), 9, 1)
    assert found.shape == (9, 3, 8, 8) and found.is_contiguous()
    assert all(torch.equal(found[:, [channel]], gray) for channel in range(3))


def test_colours_become_gray_as_pillow_does_it(tmp_path: Path) -> None:
    """Pillow's mode L is the luma of BT.601, rounded to a 255th."""
    pixels = np.random.default_rng(1).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    name = written(tmp_path / "x.npz", pixels)
    found, colours = (foreign_images(name, (channels, 4, 4), 5, 0).numpy() for channels in (1, 3))
    for gray, colour in zip(found, colours, strict=True):
        picture = Image.fromarray(np.rint(colour * 255).astype(np.uint8).transpose(1, 2, 0))
        np.testing.assert_allclose(gray[0], np.asarray(picture.convert("L")) / 255, atol=0.6 / 255)


@pytest.mark.parametrize("size", [(3, 3), (12, 18), (4, 20), (6, 2)])
def test_sizes_change_as_pillow_changes_them(colours: tuple[str, np.ndarray], size: tuple[int, int]) -> None:
    """Pillow's bilinear filter widens where an image shrinks: antialiasing."""
    found, before = foreign_images(colours[0], (3, *size), 7, 2), foreign_images(colours[0], (3, 6, 9), 7, 2)
    assert found.shape == (7, 3, *size)
    for image, original in zip(found.flatten(0, 1).numpy(), before.flatten(0, 1).numpy(), strict=True):
        expected = Image.fromarray(original).resize(size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(image, np.asarray(expected), atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40)),
    count=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
    foreign=st.sampled_from(["digits", "noise", "colours"]),
)
def test_any_shape_stays_in_the_unit_range(
    colours: tuple[str, np.ndarray], shape: tuple[int, int, int], count: int, seed: int, foreign: str
) -> None:
    found = foreign_images(colours[0] if foreign == "colours" else foreign, shape, count, seed)
    assert found.shape == (min(count, 7) if foreign == "colours" else count, *shape)
    assert found.dtype == torch.float32 and float(found.min()) >= 0 and float(found.max()) <= 1


def test_white_and_black_stay_so(tmp_path: Path) -> None:
    pixels = np.stack([np.full((3, 7, 5), value, np.uint8) for value in (0, 255)])
    found = foreign_images(written(tmp_path / "x.npz", pixels), (1, 11, 3), 2, 0)
    assert sorted(found.flatten(1).mean(1).tolist()) == pytest.approx([0, 1])


def test_noise_is_uniform_and_a_seeds_own() -> None:
    found = foreign_images("noise", (3, 16, 16), 50, 0)
    assert torch.equal(found, foreign_images("noise", (3, 16, 16), 50, 0))
    assert not torch.equal(found, foreign_images("noise", (3, 16, 16), 50, 1))
    shares = torch.histc(found, 10, 0, 1) / found.numel()
    assert bool(((shares - 0.1).abs() < 0.01).all())


def test_a_folder_of_pictures_of_several_sizes(tmp_path: Path) -> None:
    for index, (label, size) in enumerate((("a", (9, 4)), ("a", (5, 5)), ("b", (7, 30)), ("b", (6, 6)))):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.new("RGB", size, (200, 200, 200)).save(tmp_path / label / f"{index}.png")
    found = foreign_images(f"imagefolder:{tmp_path}", (1, 8, 6), 10, 0)
    assert found.shape[1:] == (1, 8, 6)
    torch.testing.assert_close(found, torch.full_like(found, 200 / 255))


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(DataError, match=r"\(='nois'\).* is unknown; did you mean noise\? known: .*npz:PATH$"):
        foreign_images("nois", (1, 8, 8), 5, 0)
    with pytest.raises(DataError) as caught:
        foreign_images("x\ny" * 1000, (1, 8, 8), 5, 0)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_absent_files_are_named(tmp_path: Path) -> None:
    for kind in ("npz", "imagefolder"):
        with pytest.raises(DataError, match="absent"):
            foreign_images(f"{kind}:{tmp_path / 'absent'}", (1, 8, 8), 5, 0)


def test_other_channels_are_taken_as_they_are_or_refused(tmp_path: Path) -> None:
    name = written(tmp_path / "two.npz", np.zeros((3, 2, 4, 4), np.uint8))
    assert foreign_images(name, (2, 3, 3), 5, 0).shape == (3, 2, 3, 3)
    with pytest.raises(InputError, match=r"two.npz have 2 channels and 3 are wanted; only 1 becomes 3 and 3 becomes 1"):
        foreign_images(name, (3, 4, 4), 5, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 0}, r"images \(=0\)"),
        ({"count": True}, r"images \(=True\)"),
        ({"count": 1.5}, r"images \(=1.5\)"),
        ({"seed": -1}, r"seed \(=-1\)"),
        ({"seed": 2**63}, r"seed \(=9223372036854775808\)"),
        ({"shape": (1, 0, 8)}, r"shape \(=\(1, 0, 8\)\)"),
        ({"shape": (8, 8)}, r"shape \(=\(8, 8\)\)"),
    ],
)
def test_arguments_out_of_range_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        foreign_images(**{"name": "noise", "shape": (1, 8, 8), "count": 5, "seed": 0, **changes})
