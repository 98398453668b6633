"""Maps that see nothing: their values follow from the shape alone."""

import math

import pytest
import torch

from deploytool.errors import InputError
from deploytool.explain.controls import center_maps, random_maps


def test_noise_is_uniform_and_another_for_each_image() -> None:
    image = torch.zeros(3, 1, 60, 80)
    maps = random_maps(image, seed=4)
    assert maps.shape == (3, 60, 80) and maps.dtype == torch.float32 and maps.min() >= 0 and maps.max() < 1
    assert maps.mean() == pytest.approx(0.5, abs=0.01) and maps.var() == pytest.approx(1 / 12, abs=0.003)
    assert not torch.equal(maps[0], maps[1])
    assert torch.equal(random_maps(image + 1, seed=4), maps) and not torch.equal(random_maps(image, seed=5), maps)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 12)])
def test_the_middle_is_a_gaussian(height: int, width: int) -> None:
    maps = center_maps(torch.rand(2, 3, height, width))
    assert maps.shape == (2, height, width) and torch.equal(maps[0], maps[1])
    for i, j in ((0, 0), (3, 5), (height // 2, width // 2)):
        row, column = (i - (height - 1) / 2) / (height / 4), (j - (width - 1) / 2) / (width / 4)
        assert float(maps[0, i, j]) == pytest.approx(math.exp(-(row**2 + column**2) / 2), rel=1e-5)
    torch.testing.assert_close(maps, maps.flip(1))
    torch.testing.assert_close(maps, maps.flip(2))


def test_bad_images_are_refused() -> None:
    for control in (random_maps, center_maps):
        with pytest.raises(InputError, match=r"shape \(3, 8, 8\)"):
            control(torch.zeros(3, 8, 8))
