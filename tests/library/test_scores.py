"""Scores of images, against scikit-learn, torch and the formulas."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

from deploytool.data.datasets import load_dataset
from deploytool.data.images import Images
from deploytool.errors import InputError
from deploytool.explain.target import open_target
from deploytool.library import scores, streams
from deploytool.library.build import build_library
from deploytool.library.folder import Library, load_library
from deploytool.library.networks import consistency
from deploytool.library.recipe import LibraryRecipe
from deploytool.library.scores import NEIGHBOURS, Scorer, traits
from deploytool.library.taps import watch

LAYERS = [{"layer": "layer2", "theta": [0.9, 0.97]}, {"layer": "layer3", "theta": 0.95}]
SETS = {"wide": [0.97, 0.95], "narrow": [0.9, 0.95]}


def built(run: Any, folder: Path, **changes: Any) -> Library:
    document = {"name": "x", "layers": LAYERS, "sets": SETS, "images": 120, "active": 3, **changes}
    build_library(open_target(run.path), LibraryRecipe.make(document), folder)
    return load_library(folder)


@pytest.fixture(scope="module")
def library(plain_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Library:
    torch.set_num_threads(1)
    return built(plain_run, tmp_path_factory.mktemp("scores") / "x")


@pytest.fixture
def test_images(plain_run: Any) -> Images:
    return load_dataset(plain_run.recipe.data).test.head(50)


def test_against_references(library: Library, plain_run: Any, test_images: Images, monkeypatch) -> None:
    """CPL by set, max softmax, distances and traits, in blocks and groups of any size."""
    target = open_target(plain_run.path)
    monkeypatch.setattr(streams, "MOST_IMAGES", 16)
    monkeypatch.setattr(streams, "images_at_once", lambda image: 8)
    found = Scorer(library, target, None)(test_images)
    train = load_dataset(plain_run.recipe.data).train.head(120)
    watched = watch(target, ["layer2", "layer3", "linear:input"], test_images.batch(slice(0, 2))[0])
    with torch.no_grad():
        logits, activity = watched(test_images.batch(slice(None))[0])
        _, seen = watched(train.batch(slice(None))[0])
    assert len(found) == 50 and torch.equal(found.answer, logits.argmax(1))
    torch.testing.assert_close(found.max_softmax, torch.softmax(logits, 1).max(1).values)
    bank, own = (F.normalize(each["linear:input"].flatten(1).double()).numpy() for each in (seen, activity))
    distance, _ = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(bank).kneighbors(own)
    np.testing.assert_allclose(found.knn, -distance[:, -1], atol=1e-3)
    for name in SETS:
        inputs = [each.predict(activity[each.layer], 3) for each in library.at(None, name)]
        torch.testing.assert_close(found.cpl[name], consistency(inputs), rtol=1e-4, atol=1e-4)
    assert list(found.cpl) == ["wide", "narrow"] and not torch.equal(found.cpl["wide"], found.cpl["narrow"])
    p = torch.softmax(logits.double(), 1).max(1).values
    np.testing.assert_allclose(found.traits[:, 0], found.cpl["wide"], rtol=1e-4, atol=1e-4)  # two layers, one pair
    np.testing.assert_allclose(found.traits[:, -1], torch.log(p / (1 - p)), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.traits[:, -2], logits.double().exp().sum(1).log(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.traits[:, -3], found.knn)
    for place, each in enumerate(library.at(None, "wide")):
        units = F.normalize(activity[each.layer].flatten(1).double())
        nearest = (units @ (each.codes * each.scales[:, None]).double().T).max(1).values
        np.testing.assert_allclose(found.traits[:, 3 + place], nearest, rtol=1e-4, atol=1e-4)


def test_training_images_are_their_own_neighbours(library: Library, plain_run: Any, monkeypatch) -> None:
    monkeypatch.setattr(scores, "NEIGHBOURS", 1)
    train = load_dataset(plain_run.recipe.data).train.head(20)
    found = Scorer(library, open_target(plain_run.path), None)(train)
    np.testing.assert_allclose(found.knn, 0, atol=1e-3)


def test_many_features_are_sampled(library: Library, plain_run: Any, test_images: Images, monkeypatch) -> None:
    """So many random places of the features, the same for training images and others."""
    monkeypatch.setattr(scores, "MOST_FEATURES", 5)
    target = open_target(plain_run.path)
    scorer = Scorer(library, target, None)
    assert scorer.index is not None and len(set(scorer.index.tolist())) == 5 and scorer.bank.shape == (120, 5)
    with torch.no_grad():
        _, activity = scorer.watched(test_images.batch(slice(None))[0])
    own = F.normalize(activity["linear:input"].flatten(1)[:, scorer.index].double()).numpy()
    distance, _ = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(scorer.bank.double().numpy()).kneighbors(own)
    np.testing.assert_allclose(scorer(test_images).knn, -distance[:, -1], atol=1e-3)


def test_traits_by_hand() -> None:
    """Cosines of all pairs, in order, then each layer's share for the answer."""
    inputs = [torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, -5.0]])]
    found = [each.item() for each in traits(inputs, torch.tensor([1]))]
    assert found == pytest.approx([0.6, -0.8, 0.0, 0.8, 0.0, -1.0])
    chance = torch.Generator().manual_seed(0)
    inputs = [torch.randn(5, 4, generator=chance) for _ in range(4)]
    pairs = traits(inputs, torch.zeros(5, dtype=torch.int64))[:6]
    for found_pair, (one, other) in zip(pairs, combinations(inputs, 2), strict=True):
        torch.testing.assert_close(found_pair, F.cosine_similarity(one, other))
    torch.testing.assert_close(torch.stack(pairs).mean(0), consistency(inputs))


def test_a_library_too_small_is_refused(library: Library, plain_run: Any) -> None:
    few = replace(library, recipe=library.recipe.model_copy(update={"active": 1000}))
    with pytest.raises(InputError, match=r"active \(=1000\) must be in 1\.\."):
        Scorer(few, open_target(plain_run.path), None)


def test_one_layer_read_in_two_ways(plain_run: Any, test_images: Images, tmp_path: Path) -> None:
    """A layer with and without modulation, at the same threshold: two libraries, whose answers differ."""
    layers = [
        {"layer": "layer2", "title": "plain", "theta": 0.9},
        {"layer": "layer2", "title": "modulated", "theta": 0.9, "modulation": "batch-norm"},
        {"layer": "logits", "theta": 0.99},
    ]
    target = open_target(plain_run.path)
    library = built(plain_run, tmp_path / "x", layers=layers, sets={})
    found = Scorer(library, target, None)(test_images)
    watched = watch(target, ["layer2", "logits"], test_images.batch(slice(0, 2))[0])
    expected = streams.cpl_of(watched, test_images, library.at(None), 3)
    torch.testing.assert_close(found.cpl["default"], expected, rtol=1e-4, atol=1e-4)
