"""The factor of eqs. 4 and 6, and the choice of the batch norms, at values worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploytool.errors import InputError
from deploytool.models.setting import Setting, check_lambda, check_threshold_value

UNIT = st.floats(0, 1)


@pytest.mark.parametrize(
    ("lam", "threshold", "scale", "mix"),
    [
        (0.0, 0.0, 0.0, 0),
        (0.1, 0.0, 0.1, 1),
        (1.0, 0.0, 1.0, 1),
        (0.0, 0.5, 0.0, 0),
        (0.2, 0.5, 0.4, 0),  # eq. 6, lambda <= lambda_th: lambda / 0.5
        (0.5, 0.5, 1.0, 0),
        (0.7, 0.5, 0.4, 1),  # eq. 6, lambda > lambda_th: (lambda - 0.5) / 0.5
        (1.0, 0.5, 1.0, 1),
    ],
)
def test_switch_follows_equations_4_and_6(lam: float, threshold: float, scale: float, mix: float) -> None:
    setting = Setting(lam, threshold, "switch")
    assert setting.noise_scale == pytest.approx(scale)
    assert setting.norm_mix == mix


@given(lam=UNIT, threshold=st.sampled_from([0.0, 0.5]))
def test_interpolate_follows_lambda_alone(lam: float, threshold: float) -> None:
    setting = Setting(lam, threshold, "interpolate")
    assert setting.noise_scale == setting.norm_mix == np.float32(lam)


@pytest.mark.parametrize(("lam", "threshold", "above"), [(1e-50, 0.0, 0), (1e-30, 0.0, 1), (0.5 + 1e-9, 0.5, 0)])
def test_lambda_is_compared_as_the_graph_compares_it(lam: float, threshold: float, above: int) -> None:
    """In float32: what rounds to the threshold is not above it."""
    assert Setting(lam, threshold).norm_mix == above == int(np.float32(lam) > np.float32(threshold))


@given(lam=UNIT, threshold=st.floats(0, 0.99), conditioning=st.sampled_from(["switch", "interpolate"]))
def test_scale_and_mix_stay_in_the_unit_interval(lam: float, threshold: float, conditioning) -> None:
    setting = Setting(lam, threshold, conditioning)
    assert 0 <= setting.noise_scale <= 1 + 1e-12 and 0 <= setting.norm_mix <= 1


@given(lam=UNIT)
def test_no_noise_means_scale_zero(lam: float) -> None:
    assert Setting(lam, noise="none").noise_scale == 0


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, -math.inf, "much", None, [0.5], True, 10**400])
def test_lambda_outside_the_unit_interval_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="lambda .*in \\[0, 1\\]"):
        check_lambda(value)
    if isinstance(value, float):
        with pytest.raises(InputError):
            Setting(value)


@pytest.mark.parametrize("value", [0.3, 1.0, -0.5, math.nan])
def test_other_thresholds_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="lambda threshold"):
        check_threshold_value(value)


def test_the_papers_thresholds_pass() -> None:
    assert [check_threshold_value(value) for value in (0, 0.5)] == [0.0, 0.5]
