"""Sparse momentum against a naive oracle, and eq. 5 over random architectures, densities and training states."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deploytool.errors import RecipeError
from deploytool.models.conditional import FloatModel
from deploytool.models.masks import channel_density_of, density_of, initial_masks, layer_units
from deploytool.models.setting import Setting
from deploytool.recipe import make_recipe
from deploytool.training.loop import train
from deploytool.training.run import load_run
from deploytool.training.sparsity import clear_pruned, prune_and_regrow, settled

SHAPES = st.lists(st.tuples(st.integers(2, 12), st.integers(2, 12), st.sampled_from([1, 3])), min_size=2, max_size=6)
KINDS = st.sampled_from(["irregular", "channel"])


def make_layers(shapes, seed: int) -> tuple[dict, dict]:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        f"layer{i}.weight": torch.randn(out, channels, k, k, generator=generator)
        for i, (out, channels, k) in enumerate(shapes)
    }
    momentum = {
        name: torch.randn(w.shape, generator=generator) * (i + 1) for i, (name, w) in enumerate(weights.items())
    }
    return weights, momentum


def active(masks: dict) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


@given(shapes=SHAPES, density=st.floats(0.1, 1.0), kind=KINDS, seed=st.integers(0, 1000), rate=st.floats(0, 0.9))
@settings(max_examples=150, deadline=None)
def test_equation_5_holds_at_every_step(shapes, density: float, kind, seed: int, rate: float) -> None:
    weights, momentum = make_layers(shapes, seed)
    total = sum(w.numel() for w in weights.values())
    try:
        masks = initial_masks(weights, density, kind, torch.Generator().manual_seed(seed), image_channels=3)
    except RecipeError:
        smallest = sum(layer_units(w, kind).size for w in weights.values())
        first = next(iter(weights.values()))
        whole = first.numel() if kind == "channel" and first.shape[1] == 3 else 0
        assert density * total < smallest + whole  # refused only where one unit per layer is too much already
        return
    for step in range(3):
        assert active(masks) <= density * total
        for name, mask in masks.items():
            assert mask.shape == weights[name].shape and mask.any()
            if kind == "channel":
                per_channel = mask.transpose(0, 1).flatten(1)
                assert torch.equal(per_channel.any(1), per_channel.all(1))
            weights[name] = weights[name] * mask
        before = active(masks)
        masks = prune_and_regrow(weights, momentum, masks, kind, rate)
        assert active(masks) <= before
        for name in weights:
            weights[name] = weights[name] + 0.1 * (step + 1) * masks[name]


def test_one_step_against_a_naive_oracle() -> None:
    """Two layers, rate 0.5: what is dropped, how the budget is shared, what is grown, in plain numpy."""
    weights, momentum = make_layers([(4, 4, 1), (6, 5, 1)], seed=3)
    masks = initial_masks(weights, 0.5, "irregular", torch.Generator().manual_seed(1), 3)
    weights = {name: w * masks[name] for name, w in weights.items()}
    new = prune_and_regrow(weights, momentum, masks, "irregular", 0.5)

    share, kept, freed = {}, {}, 0
    for name in weights:
        w, m, mask = weights[name].numpy().ravel(), momentum[name].numpy().ravel(), masks[name].numpy().ravel().copy()
        share[name] = np.abs(m[mask]).mean()
        drop = int(0.5 * mask.sum())
        order = [i for i in np.argsort(np.abs(w), kind="stable") if mask[i]]
        mask[order[:drop]] = False
        kept[name], freed = mask, freed + drop
    grown = {name: int(freed * share[name] / sum(share.values())) for name in weights}
    rest = freed - sum(grown.values())
    grown[max(share, key=share.get)] += rest
    for name in weights:
        inactive = np.flatnonzero(~kept[name])
        best = inactive[np.argsort(-np.abs(momentum[name].numpy().ravel()[inactive]), kind="stable")][: grown[name]]
        expected = kept[name].copy()
        expected[best] = True
        np.testing.assert_array_equal(new[name].numpy().ravel(), expected)
    assert active(new) == active(masks)


def test_channels_go_by_squared_frobenius_norm() -> None:
    theta = torch.zeros(2, 4, 1, 1)
    theta[:, :, 0, 0] = torch.tensor([[3.0, 0.1, 2.0, 0.0], [0.0, 0.1, 2.0, 0.0]])  # 9, 0.02, 8, inactive
    mask = torch.tensor([True, True, True, False]).view(1, 4, 1, 1).expand(2, 4, 1, 1)
    momentum = torch.zeros_like(theta)
    momentum[:, 3] = 5.0
    new = prune_and_regrow({"a": theta}, {"a": momentum + 0.1}, {"a": mask}, "channel", 0.34)["a"]
    assert new[0, :, 0, 0].tolist() == [True, False, True, True]


def test_pruned_weights_lose_their_momentum() -> None:
    momentum = {"a": torch.ones(4)}
    old, new = {"a": torch.tensor([True, True, False, False])}, {"a": torch.tensor([True, False, True, False])}
    clear_pruned(momentum, old, new)
    assert momentum["a"].tolist() == [1, 0, 1, 1]


def test_settled_masks_hold_no_zero_weight() -> None:
    masks = settled({"a": torch.tensor([1.0, 0.0, 0.0])}, {"a": torch.tensor([True, True, False])})
    assert masks["a"].tolist() == [True, False, False]


def test_densities_by_hand() -> None:
    mask = torch.zeros(2, 4, 1, 1, dtype=torch.bool)
    mask[0, 1] = mask[1, 1] = mask[0, 3] = True
    assert density_of({"a": mask}) == 3 / 8 and channel_density_of({"a": mask}) == 2 / 4
    assert density_of({}) == channel_density_of({}) == 1.0


def test_a_density_that_would_kill_a_layer_is_refused() -> None:
    weights, _ = make_layers([(4, 4, 1), (4, 4, 1)], 0)
    with pytest.raises(RecipeError, match=r"sparsity.density \(=0.01\)"):
        initial_masks(weights, 0.01, "irregular", torch.Generator(), 3)


def test_the_noise_is_masked_and_gradients_stay_dense() -> None:
    torch.manual_seed(0)
    model = FloatModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)))
    mask = torch.rand(4, 16) < 0.3
    model.set_masks({"1.weight": mask})
    conditioned = model.state(Setting(1.0))["1.weight"]
    assert not conditioned[~mask].any() and conditioned[mask].all()
    model(torch.rand(3, 1, 4, 4), Setting(1.0)).square().sum().backward()
    assert bool((model.backbone[1].weight.grad[~mask] != 0).any())


@pytest.mark.parametrize(("kind", "density"), [("irregular", 0.1), ("channel", 0.4)])
def test_training_keeps_the_density_and_learns(tmp_path, kind: str, density: float) -> None:
    recipe = make_recipe(
        {
            "name": "sparse",
            "model": {"arch": "resnet8"},
            "method": {"name": "float"},
            "sparsity": {"kind": kind, "density": density},
            "data": {"batch_size": 64},
            "attack": {"eps": 0.1, "step_size": 0.05, "steps": 1},
            "optimizer": {"epochs": 4},
        }
    )
    result = train(recipe, tmp_path / "run")
    run = load_run(tmp_path / "run")
    weights = {name: run.model.backbone.get_parameter(name) for name in run.model.masks}
    nonzero = sum(int((w != 0).sum()) for w in weights.values())
    assert 0 < nonzero <= density * sum(w.numel() for w in weights.values())
    assert nonzero == active(run.model.masks)  # settled: every active weight is one that learned
    assert run.checkpoint.history[-1]["density"] <= density
    assert result["clean_accuracy"] > 0.6
    with run.model.network(Setting(1.0)):
        state = run.model.state(Setting(1.0))
        assert sum(int((state[name] != 0).sum()) for name in weights) == nonzero
