"""Eq. 4 of paper 4 by hand, and its matrices for the libraries of a run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from deploytool.data.datasets import load_dataset
from deploytool.explain.target import open_target
from deploytool.library.confusion import coactivation, confusion, confusion_index
from deploytool.library.taps import watch

LN2 = math.log(2)


def test_three_classes_by_hand() -> None:
    """Inputs are logarithms: exp(P) of the first image is (4, 2, 2), of the second (2, 1, 1) * 2 in another order."""
    exponentials = torch.tensor(
        [
            [4.0, 2.0, 2.0],  # class 0, right: shares 1/2, 1/4, 1/4
            [8.0, 4.0, 4.0],  # class 0, right: the same shares
            [6.0, 1.0, 1.0],  # class 0, right: 3/4, 1/8, 1/8
            [1.0, 2.0, 1.0],  # class 1, right: 1/4, 1/2, 1/4
            [1.0, 6.0, 1.0],  # class 2, wrong: does not count
        ]
    )
    label = torch.tensor([0, 0, 0, 1, 2])
    sums = coactivation(exponentials.log(), label)
    first = [1 / 4 + 1 / 4 + 9 / 16, 1 / 8 + 1 / 8 + 3 / 32, 1 / 8 + 1 / 8 + 3 / 32]
    expected = np.array([first, [1 / 8, 1 / 4, 1 / 8], [0, 0, 0]])
    np.testing.assert_allclose(sums, expected, rtol=1e-6)
    index = confusion_index(sums)
    np.testing.assert_allclose(index[0], [1, 11 / 34, 11 / 34], rtol=1e-6)  # (11/32) / (17/16)
    np.testing.assert_allclose(index[1], [0.5, 1, 0.5], rtol=1e-6)
    assert index[2].isnan().all()


def test_as_printed_for_a_single_image() -> None:
    """With one image per class the printed denominator is no question: CI = exp(P_d2 - P_d1)."""
    inputs = torch.tensor([[3.0, 1.0, -2.0], [0.0, 5.0, 4.5]])
    index = confusion_index(coactivation(inputs, torch.tensor([0, 1])))
    for d1 in range(2):
        for d2 in range(3):
            assert index[d1, d2].item() == pytest.approx(math.exp(float(inputs[d1, d2] - inputs[d1, d1])), rel=1e-6)


def test_large_inputs_do_not_overflow() -> None:
    """P grows with the number of training images; exp(1e4) is no float."""
    sums = coactivation(torch.tensor([[10_000.0 + LN2, 10_000.0]]), torch.tensor([0]))
    np.testing.assert_allclose(confusion_index(sums)[0], [1, 0.5], rtol=2e-3)


def test_sums_over_blocks_add_up() -> None:
    chance = torch.Generator().manual_seed(0)
    inputs, label = torch.randn(50, 4, generator=chance), torch.randint(4, (50,), generator=chance)
    parts = coactivation(inputs[:20], label[:20]) + coactivation(inputs[20:], label[20:])
    torch.testing.assert_close(parts, coactivation(inputs, label))


def test_no_right_answer_at_all() -> None:
    sums = coactivation(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert (sums == 0).all() and confusion_index(sums).isnan().all()


def test_matrices_of_a_run(float_library, trained_run) -> None:
    """Against eq. 4 in loops, of each layer's predictions on all test images."""
    target = open_target(trained_run.path)
    library = replace(float_library, recipe=float_library.recipe.model_copy(update={"data": trained_run.recipe.data}))
    result = confusion(library, target, 0.0)
    test = load_dataset(trained_run.recipe.data).test
    image, label = test.batch(slice(None))
    layers = library.at(0.0)
    with torch.no_grad():
        _, activity = watch(target, [each.layer for each in layers], image, 0.0)(image)
    assert [row["layer"] for row in result["layers"]] == [each.title for each in layers]
    assert result["n"] == len(test) and result["active"] == 3 and result["lambda"] == 0.0
    for row, layer in zip(result["layers"], layers, strict=True):
        inputs = layer.predict(activity[layer.layer], 3).double().numpy()
        share = np.exp(inputs - inputs.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        right = inputs.argmax(1) == label.numpy()
        assert row["right"] == right.sum() and row["size"] == len(layer)
        for d1 in range(10):
            own = share[right & (label.numpy() == d1)]
            if not len(own):
                assert row["matrix"][d1] == [None] * 10
                continue
            expected = (own[:, [d1]] * own).sum(0)
            np.testing.assert_allclose(row["matrix"][d1], expected / expected[d1], rtol=1e-2, atol=1e-6)
    for layer in layers:
        matrix = np.array(next(r["matrix"] for r in result["layers"] if r["layer"] == layer.title), dtype=float)
        np.fill_diagonal(matrix, 0)
        largest = np.sort(np.nan_to_num(matrix).ravel())[::-1]
        most = [each["index"] for each in result["most"] if each["layer"] == layer.title]
        assert most == [value for value in largest[:5] if value > 0]
        names = result["classes"]
        for each in (each for each in result["most"] if each["layer"] == layer.title):
            assert matrix[names.index(each["class"]), names.index(each["confused_with"])] == each["index"]
