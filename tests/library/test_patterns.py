"""From activity to stored patterns: exact scaling, rounding within its bound, modulation as torch's batch norm."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deploytool.errors import InputError
from deploytool.library.patterns import (
    EPSILON,
    Reading,
    encode,
    exact_similarity,
    rounding_error,
    sampled,
    scale,
    similarity,
)

UNIT = 2.0**-24  # of float32's rounding


def drawn(rows: int, features: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))


def cosines(one: Tensor, other: Tensor) -> np.ndarray:
    """All pairs in float64, after division by the largest value: no overflow, no underflow that counts."""
    units = []
    for rows in (one.double().numpy(), other.double().numpy()):
        rows = rows / np.abs(rows).max(1, keepdims=True)
        units.append(rows / np.sqrt((rows * rows).sum(1, keepdims=True)))
    return units[0] @ units[1].T


@given(magnitude=st.integers(-148, 127), features=st.integers(1, 20), seed=st.integers(0, 1000))
def test_scaling_is_by_a_power_of_two(magnitude: int, features: int, seed: int) -> None:
    pattern = (drawn(3, features, seed).double().clamp(-1.9, 1.9) * 2.0**magnitude).float()
    pattern[:, 0] = 2.0 ** float(magnitude)
    scaled = scale(pattern, "x")
    largest = scaled.values.abs().amax(1)
    if magnitude > -120:
        assert (largest >= 0.5).all() and (largest < 1).all()
    ratio = scaled.values[:, 0].double() / pattern[:, 0].double()
    assert (ratio.log2() == ratio.log2().round()).all()  # a power of two
    if magnitude > -100:  # else the products below are no float32
        assert torch.equal(scaled.values.double(), pattern.double() * ratio[:, None]) or magnitude > 100
    length = scaled.values.double().norm(dim=1)
    np.testing.assert_allclose(scaled.inverse.double() * length, 1, rtol=(features + 4) * UNIT)
    np.testing.assert_allclose(scaled.unit().double().norm(dim=1), 1, rtol=(features + 8) * UNIT)
    assert len(scaled) == 3 and torch.equal(scaled[1:].values, scaled.values[1:])


@settings(max_examples=200)
@given(
    features=st.one_of(st.integers(1, 64), st.sampled_from([1000, 4097])),
    exponents=st.tuples(*[st.floats(-38, 38)] * 2),
    spread=st.floats(0, 8),
    signs=st.booleans(),
    seed=st.integers(0, 2**31),
    storage=st.sampled_from(["float32", "float16", "int8"]),
)
def test_similarity_is_within_its_rounding_error(features, exponents, spread, signs, seed, storage) -> None:
    """Whatever the magnitudes, also where all terms have one sign, or values of one pattern differ by far."""
    pair = []
    for exponent, number in zip(exponents, (seed, seed + 1), strict=True):
        rows = drawn(4, features, number).double()
        rows = rows if signs else rows.abs()
        rows *= 10.0 ** (-spread * torch.rand(4, features, generator=torch.Generator().manual_seed(number)).double())
        rows = rows / rows.abs().amax(1, keepdim=True) * 10.0**exponent
        pair.append(rows.float())
    new, old = (scale(rows, "x") for rows in pair)
    codes, scales = encode(old.values, storage)
    found = similarity(new, codes, scales)
    assert found.dtype == torch.float32
    off = np.abs(found.double().numpy() - cosines(pair[0], codes.float()))
    assert off.max() <= rounding_error(features)
    if storage == "float32":
        assert np.abs(found.double().numpy() - cosines(*pair)).max() <= rounding_error(features)


@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 1e-38, 1e-20, 1.0, 1e20, 1e38, 3.4e38])
def test_extreme_magnitudes_keep_their_direction(magnitude: float) -> None:
    pattern = torch.tensor([[1.0, -1.0], [1.0, 0.0], [0.0, -1.0]]) * magnitude
    scaled = scale(pattern, "x")
    found = similarity(scaled, *encode(scaled.values, "float32"))
    half = 0.5**0.5
    torch.testing.assert_close(found, torch.tensor([[1, half, half], [half, 1, 0], [half, 0, 1]]))


def test_rounding_error_by_hand() -> None:
    """n u / (1 - n u), n being twice the roundings of a sum by runs of 1024, and 16."""
    assert rounding_error(4) == pytest.approx(2 * (4 + 1) * UNIT + 16 * UNIT, rel=1e-5)
    assert rounding_error(2**20) == pytest.approx((2 * (1024 + 1024) + 16) * UNIT, rel=1e-3)
    errors = [rounding_error(features) for features in (1, 10, 1000, 2**21)]
    assert errors == sorted(errors)


def test_exact_similarity_is_one_for_equal_rows() -> None:
    """Whatever their length, where the product of two square roots may be off by one rounding."""
    rows = drawn(500, 7)
    assert (exact_similarity(rows, rows) == 1).all() and (exact_similarity(rows, -rows) == -1).all()
    assert (exact_similarity(rows, rows * 4) == 1).all()
    by_hand = exact_similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[1, 0]], dtype=torch.int8))
    assert by_hand.dtype == torch.float64 and by_hand.item() == 0.6


@pytest.mark.parametrize("features", [1, 3, 50])
def test_storage(features: int) -> None:
    """float32 is exact, float16 rounds to 11 bits, int8 to steps of a 127th of the largest."""
    values = scale(drawn(20, features) * 1e4, "x").values
    for storage, kind, bound in (
        ("float32", torch.float32, 0.0),
        ("float16", torch.float16, 2.0**-11),
        ("int8", torch.int8, 0.5 / 127 * (1 + 1e-5)),
    ):
        codes, scales = encode(values, storage)
        assert codes.dtype == kind and scales.dtype == torch.float32
        torch.testing.assert_close((codes.float() * scales[:, None]).norm(dim=1), torch.ones(20))
        step = values.abs().amax(1, keepdim=True) / 127 if storage == "int8" else torch.ones(20, 1)
        off = (codes.float() * step - values).abs() / values.abs().amax(1, keepdim=True)
        assert off.max() <= bound
        if storage == "int8":
            assert (codes.abs().amax(1) == 127).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refusals_name_layer_and_image(bad: float) -> None:
    pattern = drawn(4, 3)
    pattern[3] = 0
    with pytest.raises(InputError, match=r"layer conv: the activity of image 13 is 0 everywhere, .* sample more"):
        scale(pattern, "conv", 10)
    pattern[1, 2] = bad
    with pytest.raises(InputError, match="layer conv: the activity of image 11 is NaN or infinite"):
        scale(pattern, "conv", 10)


def test_sampled() -> None:
    """Different places, ascending, by seed; all of them need no index."""
    assert sampled(9, 9, 0) is None and sampled(10, 9, 0) is None
    index = sampled(40, 100, 3)
    assert index is not None and index.dtype == torch.int64 and len(index) == 40
    assert index.tolist() == sorted(set(index.tolist())) and index.min() >= 0 and index.max() < 100
    assert torch.equal(index, sampled(40, 100, 3)) and not torch.equal(index, sampled(40, 100, 4))
    seen = torch.cat([sampled(1, 4, seed) for seed in range(60)])
    assert set(seen.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 3, 2)])
def test_modulation_is_a_batch_norm_in_evaluation_mode(shape: tuple[int, ...]) -> None:
    channels, features = shape[1], int(np.prod(shape[1:]))
    norm = nn.BatchNorm1d(channels, affine=False) if len(shape) == 2 else nn.BatchNorm2d(channels, affine=False)
    norm.running_mean, norm.running_var = drawn(1, channels, 1)[0], drawn(1, channels, 2)[0].square() + 0.1
    norm.eval()
    activity = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    each = features // channels
    mean = norm.running_mean.repeat_interleave(each)
    std = (norm.running_var + norm.eps).sqrt().repeat_interleave(each)
    assert norm.eps == EPSILON
    torch.testing.assert_close(Reading("x", None, mean, std)(activity), norm(activity).flatten(1))
    index = torch.tensor([0, 3, 4])
    found = Reading("x", index, mean[index], std[index])(activity)
    torch.testing.assert_close(found, norm(activity).flatten(1)[:, index])


def test_a_plain_reading_flattens_and_samples() -> None:
    activity = torch.arange(24, dtype=torch.float16).reshape(2, 3, 4).requires_grad_(True)
    assert torch.equal(Reading("x")(activity), torch.arange(24.0).reshape(2, 12))
    found = Reading("x", torch.tensor([5, 1]))(activity)
    assert found.dtype == torch.float32 and found.tolist() == [[5, 1], [17, 13]]
    found.sum().backward()
    assert activity.grad is not None and activity.grad.sum() == 4
