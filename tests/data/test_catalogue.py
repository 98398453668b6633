"""Data sets are described right, and strange descriptions are refused."""

import math

import numpy as np
import pytest

from deploytool.data.catalogue import CATALOGUE, DatasetInfo, unknown_dataset
from deploytool.errors import DataError


def test_digits_are_described_as_sklearn_has_them() -> None:
    from sklearn.datasets import load_digits

    source, info = load_digits(), CATALOGUE["digits"]
    assert info.shape == (1, *source.images.shape[1:])
    assert info.classes == tuple(str(name) for name in source.target_names)
    assert info.mean == pytest.approx([np.mean(source.images / 16)], abs=2e-3)
    assert info.std == pytest.approx([np.std(source.images / 16)], abs=2e-3)


def test_cifar10_is_described_as_published() -> None:
    info = CATALOGUE["cifar10"]
    assert info.shape == (3, 32, 32)
    assert " ".join(info.classes) == "airplane automobile bird cat deer dog frog horse ship truck"
    # 125.3, 123.0, 113.9 and 63.0, 62.1, 66.7 out of 255, the figures every CIFAR-10 paper uses
    assert [mean * 255 for mean in info.mean] == pytest.approx([125.3, 123.0, 113.9], abs=0.06)
    assert [std * 255 for std in info.std] == pytest.approx([63.0, 62.1, 66.7], abs=0.06)


def test_every_entry_is_found_by_its_own_name() -> None:
    assert all(info.name == name for name, info in CATALOGUE.items())


@pytest.mark.parametrize("classes", [(), ("one",)])
def test_a_classifier_needs_two_classes(classes: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=f"data set x has {len(classes)} classes"):
        DatasetInfo("x", (1, 8, 8), classes, (0.5,), (0.5,))


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5,), (0.5,)),
        ((0.5,) * 3, (0.5,) * 2),
        ((0.5,) * 4, (0.5,) * 4),
        ((0.5,) * 3, (0.5, 0.0, 0.5)),
        ((0.5,) * 3, (0.5, -0.1, 0.5)),
        ((0.5,) * 3, (0.5, math.nan, 0.5)),
        ((0.5,) * 3, (0.5, math.inf, 0.5)),
        ((0.5, math.nan, 0.5), (0.5,) * 3),
        ((0.5, math.inf, 0.5), (0.5,) * 3),
    ],
)
def test_every_channel_needs_a_finite_mean_and_a_positive_std(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="one finite mean and one positive std per channel"):
        DatasetInfo("x", (3, 8, 8), ("a", "b"), mean, std)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digit", "did you mean digits?"),
        ("cifar-10", "did you mean cifar10?"),
        ("zzz", "known: cifar10, cifar100, digits,"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one_and_the_list(name: str, words: str) -> None:
    message = str(unknown_dataset(name))
    assert words in message and f"'{name}'" in message and "npz:PATH" in message and "\n" not in message
    assert ("did you mean" in message) == (name != "zzz")
