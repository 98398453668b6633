"""Balls: by hand, and by property."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploytool.attacks.draws import Draws
from deploytool.attacks.geometry import distance, on_sphere, project, slack, steepest, uniform_in_ball
from deploytool.attacks.registry import same_volume

NORMS = ["linf", "l2"]


def test_distances_by_hand() -> None:
    difference = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    assert distance(difference, "linf").tolist() == [4, 0]
    assert distance(difference, "l2").tolist() == [5, 0]


def test_projection_by_hand() -> None:
    image = torch.tensor([[[[0.5, 0.9]]]])
    point = torch.tensor([[[[0.8, 1.3]]]])
    torch.testing.assert_close(project(point, image, 0.2, "linf"), torch.tensor([[[[0.7, 1.0]]]]))
    # clipped to (0.8, 1.0): a perturbation of (0.3, 0.1), scaled to length 0.1
    expected = torch.tensor([[[[0.5 + 0.03 * math.sqrt(10), 0.9 + 0.01 * math.sqrt(10)]]]])
    torch.testing.assert_close(project(point, image, 0.1, "l2"), expected)
    torch.testing.assert_close(project(point, image, 0.5, "l2"), torch.tensor([[[[0.8, 1.0]]]]))


def test_steepest_steps_by_hand() -> None:
    gradient = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    assert steepest(gradient, "linf").flatten().tolist() == [1, -1, 0, 0]
    torch.testing.assert_close(steepest(gradient, "l2").flatten(), torch.tensor([0.6, -0.8, 0, 0]))


@pytest.mark.parametrize("scale", [1e-35, 1e-22, 1e25])
def test_the_gradients_of_confident_networks_are_steps_all_the_same(scale: float) -> None:
    # their squares are 0 or infinity in float32
    found = steepest(torch.tensor([[[[3.0, -4.0]]]]) * scale, "l2")
    torch.testing.assert_close(found.flatten(), torch.tensor([0.6, -0.8]))


@given(eps=st.floats(0, 1), scale=st.floats(0, 5), norm=st.sampled_from(NORMS), seed=st.integers(0, 2**31))
def test_projections_and_starts_are_in_the_ball_and_in_the_unit_interval(eps, scale, norm, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(4, 2, 3, 3, generator=generator).round(decimals=1)
    image[0] = image[0].round()
    point = image + scale * torch.randn(image.shape, generator=generator)
    draws = Draws.seeded(seed, 4)
    for found in (
        project(point, image, eps, norm),
        *(s(image, eps, norm, draws) for s in (uniform_in_ball, on_sphere)),
    ):
        assert float(distance(found - image, norm).max()) <= eps + slack(eps)
        assert float(found.min()) >= 0 and float(found.max()) <= 1
    inside = project(point, image, eps, norm)
    torch.testing.assert_close(project(inside, image, eps, norm), inside, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_starts_fill_the_ball_evenly(norm: str) -> None:
    image = torch.full((4000, 1, 1, 3), 0.5)
    inside = distance(uniform_in_ball(image, 0.2, norm, Draws.seeded(0, 4000)) - image, norm)
    # half the volume of a ball in 3 dimensions lies within (1/2)^(1/3) of its radius
    assert float((inside < 0.2 * 0.5 ** (1 / 3)).float().mean()) == pytest.approx(0.5, abs=0.03)
    outside = distance(on_sphere(image, 0.2, norm, Draws.seeded(0, 4000)) - image, norm)
    torch.testing.assert_close(outside, torch.full_like(outside, 0.2))


def test_the_linf_start_is_training_s() -> None:
    image = torch.rand(3, 1, 4, 4)
    drawn = torch.rand(image.shape, generator=torch.Generator().manual_seed(5))
    expected = (image + (drawn * 2 - 1) * 0.1).clamp(0, 1)
    torch.testing.assert_close(uniform_in_ball(image, 0.1, "linf", Draws.seeded(5, 3)), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_balls_of_the_same_volume(size: int) -> None:
    # volume of the unit ball by its recursion V_d = 2 pi / d * V_{d-2}, V_0 = 1, V_1 = 2
    volume = {0: 1.0, 1: 2.0}
    for d in range(2, size + 1):
        volume[d] = 2 * math.pi / d * volume[d - 2]
    assert volume[size] * same_volume(0.3, (size, 1, 1)) ** size == pytest.approx(0.6**size)
    assert same_volume(8 / 255, (3, 32, 32)) == pytest.approx(0.84, abs=0.01)
