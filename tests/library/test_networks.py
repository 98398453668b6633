"""Eqs. 2, 3 and 5 of paper 4, against loops over their indices."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deploytool.errors import InputError
from deploytool.library import networks
from deploytool.library.networks import LayerLibrary, consistency, correlate, kernel, predictions
from deploytool.library.patterns import Reading, encode, scale


def drawn(rows: int, features: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))


def cosine(one: Tensor, other: Tensor) -> float:
    a, b = one.double().numpy(), other.double().numpy()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def library_of(patterns: Tensor, connections: Tensor, reading: Reading | None = None, storage="float32"):
    codes, scales = encode(scale(patterns, "x").values, storage)
    return LayerLibrary("x", "title", 0.5, reading or Reading("x"), codes, scales, connections)


@pytest.mark.parametrize("at_once", [1, 3, 1024])
def test_connections_by_loops(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 2; patterns lie near each other, where g is neither 0 nor 1."""
    monkeypatch.setattr(networks, "NODES", at_once)
    images = drawn(1, 6) + 0.1 * drawn(9, 6, 1)
    stored = images[[0, 2, 3, 7]]
    answer = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 1])
    codes, scales = encode(scale(stored, "x").values, "float32")
    found = correlate(scale(images, "x"), codes, scales, answer, 4)
    expected = np.zeros((4, 4))
    for n in range(4):
        for m in range(4):
            for k in range(9):
                g = math.exp(-(1 - cosine(images[k], stored[n])) / 0.01)
                expected[n, m] += g * (1 if answer[k] == m else -1)
    assert found.shape == (4, 4) and found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert len(np.unique(expected.round(3))) > 8  # the kernel matters here


def test_the_kernel_by_hand() -> None:
    found = kernel(torch.tensor([1.0, 0.99, 0.98, 0.0, -1.0, 1.0000001]))
    expected = [1.0, math.exp(-1), math.exp(-2), math.exp(-100), math.exp(-200), 1.0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-40)
    assert found.max() <= 1


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
@pytest.mark.parametrize("active", [1, 3, 7])
def test_predictions_by_loops(active: int, storage: str) -> None:
    """Eq. 3, of the stored patterns as they are stored."""
    patterns, connections = drawn(7, 5), drawn(7, 4, 2)
    activity = drawn(6, 10, 3).reshape(6, 2, 5)
    index = torch.tensor([0, 2, 5, 8, 9])
    library = library_of(patterns, connections, Reading("x", index), storage)
    found = library.predict(activity, active)
    expected = np.zeros((6, 4))
    for k in range(6):
        read = activity[k].flatten()[index]
        near = [cosine(read, library.codes[n].float()) for n in range(7)]
        order = sorted(range(7), key=lambda n: -near[n])[:active]
        for m in range(4):
            expected[k, m] = sum(float(connections[n, m]) * near[n] for n in order)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    near, which = library.nearest(scale(activity.flatten(1)[:, index], "x"), active)
    assert near.shape == which.shape == (6, active) and (near.diff() <= 0).all()
    assert len(library) == 7 and library.features == 5


def test_predictions_of_nodes_by_hand() -> None:
    near = torch.tensor([[0.5, 0.25]])
    connections = torch.tensor([[[2.0, -2.0, 0.0], [4.0, 0.0, 8.0]]])
    assert predictions(near, connections).tolist() == [[2.0, -1.0, 2.0]]


@pytest.mark.parametrize("active", [0, -1, 8])
def test_more_nodes_than_there_are(active: int) -> None:
    library = library_of(drawn(7, 5), drawn(7, 4))
    assert library.check_active(7) == 7
    with pytest.raises(InputError, match=rf"active \(={active}\) must be in 1..7: .* title at theta 0.5; lower active"):
        library.check_active(active)
    with pytest.raises(InputError, match="active"):
        library.predict(drawn(2, 5), active)


def test_silent_activity_is_refused() -> None:
    library = library_of(drawn(7, 5), drawn(7, 4))
    with pytest.raises(InputError, match="layer title: the activity of image 1 is 0 everywhere"):
        library.predict(torch.tensor([[1.0] * 5, [0.0] * 5]), 2)


@given(layers=st.integers(2, 5), classes=st.integers(1, 6), seed=st.integers(0, 1000), exponent=st.integers(-8, 8))
def test_consistency_by_pairs(layers: int, classes: int, seed: int, exponent: int) -> None:
    """Eq. 5, N being the number of pairs; layers may differ in magnitude by far."""
    inputs = [drawn(3, classes, seed + place) * 10.0 ** (exponent * place / 4) for place in range(layers)]
    found = consistency(inputs)
    assert found.shape == (3,)
    for k in range(3):
        pairs = [cosine(inputs[i][k], inputs[j][k]) for i in range(layers) for j in range(i)]
        assert found[k].item() == pytest.approx(sum(pairs) / len(pairs), abs=2e-6)


def test_consistency_by_hand() -> None:
    """Cosines of three layers: 0.6, 0 and 0.8."""
    inputs = [torch.tensor([[1.0, 0.0]]), torch.tensor([[30.0, 40.0]]), torch.tensor([[0.0, 0.01]])]
    assert consistency(inputs).item() == pytest.approx((0.6 + 0.0 + 0.8) / 3)
    assert consistency(inputs[:2]).item() == pytest.approx(0.6)
    agreed = consistency([inputs[1], inputs[1] * 3, inputs[1] / 7])
    assert agreed.item() == pytest.approx(1)
    assert consistency([inputs[1], -inputs[1]]).item() == pytest.approx(-1)


def test_zero_inputs_agree_with_nothing() -> None:
    """No NaN: their cosines count as 0, pairs of other layers count on."""
    zero, one = torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 0.0], [3.0, 4.0, 0.0]])
    assert consistency([zero, zero]).tolist() == [0, 0]
    assert consistency([zero, one]).tolist() == [0, 0]
    torch.testing.assert_close(consistency([one, zero, one]), torch.full((2,), 1 / 3))


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_layer_has_no_pairs(count: int) -> None:
    with pytest.raises(InputError, match=f"consistency of {count} layer has no pairs; name at least 2"):
        consistency([torch.ones(1, 2)] * count)


@pytest.mark.parametrize("magnitude", [1e-36, 1e-25, 1e-15, 1e15])
def test_consistency_stays_a_mean_of_cosines(magnitude: float) -> None:
    """In [-1, 1], whatever the length of the inputs."""
    inputs = [torch.tensor([[1.0, 1.0]]) * magnitude, torch.tensor([[1.0, 1.0]])]
    assert -1e-6 <= consistency(inputs).item() <= 1 + 1e-6
