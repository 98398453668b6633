"""Sparsity of weights and activations as a run's metrics report it."""

import pytest
import torch
from torch import nn

from deploytool.data.images import Images
from deploytool.models.activity import activity_ratio
from deploytool.models.conditional import ConditionalModel
from deploytool.training.density import density_metrics, zero_weights


def model() -> ConditionalModel:
    network = nn.Sequential(nn.Conv2d(1, 1, 2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[[[0.0, 1e-4], [-9e-4, 2.0]]]]))
        network[3].weight.copy_(torch.tensor([[0.0], [-1e-3]]))
        network[3].bias.zero_()
    return ConditionalModel(network)


def test_zeros_and_near_zeros_by_hand() -> None:
    """Six weights: two are 0, two more are below 1e-3, biases do not count."""
    assert zero_weights(model()) == (2 / 6, 4 / 6)
    assert zero_weights(model(), near=2e-3) == (2 / 6, 5 / 6)


def test_at_most_512_test_images_are_looked_at() -> None:
    images = torch.rand(600, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    images[512:] = 0  # would halve nothing but the ratio
    test = Images((images * 255).byte(), torch.zeros(600, dtype=torch.int64))
    found = density_metrics(model(), test)
    assert found["activity_ratio"] == found["activity_ratios"]["1"]
    assert found["activity_ratio"] == pytest.approx(
        activity_ratio(model().backbone.eval(), images[:512]).ratio, abs=0.01
    )
    assert (found["zero_weights"], found["near_zero_weights"]) == (2 / 6, 4 / 6)
