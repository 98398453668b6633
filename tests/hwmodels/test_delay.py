"""Eqs. 7, 8 and 9 worked by hand, and what must hold for any layer and any chip."""

import dataclasses
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodels.delay import Delay, ceil_div, film_weights, float_delay, oat_delay, plain_delay
from hwmodels.profile import Profile, load_profile

# 8-bit weights, 64-bit banks, 4 of them: 32 weights per read of 9 ns; 175 multiplications per 4 ns
EIGHT_BITS = Profile("test", b_io=64, b_w=8, n_bank=4, n_mult=175, tau_read_ns=9, tau_mult_ns=4)
COUNTS = st.integers(1, 10**7)
CHIPS = st.builds(
    Profile,
    name=st.just("any"),
    b_io=st.integers(1, 1024),
    b_w=st.integers(1, 64),
    n_bank=st.integers(1, 64),
    n_mult=st.integers(1, 5000),
    tau_read_ns=st.integers(1, 50),
    tau_mult_ns=st.integers(1, 50),
)


@pytest.mark.parametrize(
    ("weights", "positions", "out_channels", "plain", "float_", "oat"),
    [
        # CIFAR stem 3x3, 3 -> 64, 32x32: 1728 weights: 54 reads, 10 rounds
        # FiLM 2*64 + 4*64^2 = 16512: (1728 + 16512) / 32 = 570 reads, ceil(16512 / 175) = 95 rounds
        (1728, 1024, 64, 54 * 9 + 10 * 1024 * 4, 54 * 9 + 10 * 1025 * 4, 570 * 9 + 10 * 1024 * 4 + 95 * 4),
        # layer1 3x3, 64 -> 64, 32x32: 36864: 1152 reads, 211 rounds; with FiLM 53376 / 32 = 1668 reads
        (36864, 1024, 64, 1152 * 9 + 211 * 1024 * 4, 1152 * 9 + 211 * 1025 * 4, 1668 * 9 + 211 * 4096 + 95 * 4),
        # layer2.0.conv1 3x3, 64 -> 128, 16x16: 73728: 2304 reads, 422 rounds; FiLM 65792: 4360 reads, 376 rounds
        (73728, 256, 128, 2304 * 9 + 422 * 256 * 4, 2304 * 9 + 422 * 257 * 4, 4360 * 9 + 422 * 1024 + 376 * 4),
        # layer3 3x3, 256 -> 256, 8x8: 589824: 18432 reads, 3371 rounds; FiLM 262656: 26640 reads, 1501 rounds
        (589824, 64, 256, 18432 * 9 + 3371 * 256, 18432 * 9 + 3371 * 65 * 4, 26640 * 9 + 3371 * 256 + 1501 * 4),
        # layer4.0.conv1 3x3, 256 -> 512, 4x4: 1179648: 36864 reads, 6741 rounds; FiLM 1049600: 69664, 5998
        (1179648, 16, 512, 36864 * 9 + 6741 * 64, 36864 * 9 + 6741 * 17 * 4, 69664 * 9 + 6741 * 64 + 5998 * 4),
        # one weight, one position: every ceiling is 1; FiLM 2 + 4 = 6 weights, still one read and one round
        (1, 1, 1, 9 + 4, 9 + 8, 9 + 4 + 4),
        # 33 weights do not fit one read; 176 do not fit one round
        (33, 1, 1, 2 * 9 + 4, 2 * 9 + 8, 2 * 9 + 4 + 4),
        (176, 2, 1, 6 * 9 + 2 * 2 * 4, 6 * 9 + 2 * 3 * 4, 6 * 9 + 2 * 2 * 4 + 4),
    ],
)
def test_equations_by_hand(weights: int, positions: int, out_channels: int, plain: int, float_: int, oat: int) -> None:
    assert plain_delay(weights, positions, EIGHT_BITS).total_ns == plain
    assert float_delay(weights, positions, EIGHT_BITS).total_ns == float_
    assert oat_delay(weights, positions, out_channels, EIGHT_BITS).total_ns == oat


def test_the_papers_largest_ratio() -> None:
    """OAT / FLOAT is "up to 1.66x" in layer4.0.conv1 of CIFAR ResNet-34 with 32-bit weights (paper 5, section 4.3)."""
    profile = load_profile("asic-65nm")
    ratio = oat_delay(1179648, 16, 512, profile).total_ns / float_delay(1179648, 16, profile).total_ns
    assert ratio == pytest.approx(1.66, abs=0.005)


@given(weights=COUNTS, positions=st.integers(1, 10**5), out_channels=st.integers(1, 2048), chip=CHIPS)
def test_float_and_oat_cost_more_than_plain_and_agree_with_fractions(
    weights: int, positions: int, out_channels: int, chip: Profile
) -> None:
    plain, float_ = plain_delay(weights, positions, chip), float_delay(weights, positions, chip)
    oat = oat_delay(weights, positions, out_channels, chip)
    assert plain.total_ns < float_.total_ns and plain.total_ns < oat.total_ns
    per_read = Fraction(chip.b_io, chip.b_w) * chip.n_bank
    rounds = ceil(Fraction(weights, chip.n_mult))
    assert plain.total_ns == ceil(weights / per_read) * chip.tau_read_ns + rounds * positions * chip.tau_mult_ns
    assert float_.total_ns - plain.total_ns == rounds * chip.tau_mult_ns
    film = 2 * out_channels + 4 * out_channels**2
    assert oat.read_ns == ceil((weights + film) / per_read) * chip.tau_read_ns


@given(weights=COUNTS, positions=st.integers(1, 10**4), chip=CHIPS, key=st.sampled_from(["b_io", "n_bank", "n_mult"]))
def test_a_richer_chip_is_never_slower(weights: int, positions: int, chip: Profile, key: str) -> None:
    richer = dataclasses.replace(chip, **{key: getattr(chip, key) + 1})
    assert plain_delay(weights, positions, richer).total_ns <= plain_delay(weights, positions, chip).total_ns


@given(weights=COUNTS, more=COUNTS, positions=st.integers(1, 10**4), chip=CHIPS)
def test_more_weights_are_never_faster(weights: int, more: int, positions: int, chip: Profile) -> None:
    assert plain_delay(weights + more, positions, chip).total_ns >= plain_delay(weights, positions, chip).total_ns


@given(a=st.integers(0, 10**30), b=st.integers(1, 10**15))
def test_ceil_div_is_exact(a: int, b: int) -> None:
    result = ceil_div(a, b)
    assert (result - 1) * b < a <= result * b


def test_ceilings_are_taken_on_exact_ratios() -> None:
    """b_w 12 in a 64-bit bank: 5.33 weights a bank, 21.33 a read; flooring first would give 20 and one read more."""
    chip = dataclasses.replace(EIGHT_BITS, b_w=12)
    assert plain_delay(21, 1, chip).read_ns == 9


def test_film_weights_by_hand() -> None:
    assert film_weights(64) == 64 * 2 + 128 * 128  # 1 -> 2C and 2C -> 2C


def test_delay_adds_up() -> None:
    assert Delay(1.0, 2.0, 3.0).total_ns == 6.0
