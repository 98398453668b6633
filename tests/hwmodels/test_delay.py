"""Eqs. 7, 8 and 9 worked by hand, and what must hold for any layer and any chip."""

import dataclasses
from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodels.delay import Chip, Delay, ceil_div, film_weights, float_delay, index_bits, oat_delay, plain_delay
from hwmodels.profile import load_profile

# 8-bit weights, 64-bit banks, 4 of them: 32 weights per read of 9 ns; 175 multiplications per 4 ns
EIGHT_BITS = Chip(b_io=64, b_w=8, n_bank=4, n_mult=175, tau_read_ns=9, tau_mult_ns=4)
COUNTS = st.integers(1, 10**7)
CHIPS = st.builds(
    Chip,
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
    chip = load_profile("asic-65nm").chip()
    oat, float_ = oat_delay(1179648, 16, 512, chip), float_delay(1179648, 16, chip)
    assert oat.total_ns / float_.total_ns == pytest.approx(1.66, abs=0.005)
    # 2 * 1179648 values of 32 bits in 256 bits a read: 294912 reads of 9 ns; 6741 rounds of 17 * 4 ns
    stored = float_delay(1179648, 16, chip, read_noise=True)
    assert stored.total_ns == 294912 * 9 + 6741 * 17 * 4
    assert oat.total_ns / stored.total_ns == pytest.approx(0.952, abs=0.0005)


@given(weights=COUNTS, positions=st.integers(1, 10**5), out_channels=st.integers(1, 2048), chip=CHIPS)
def test_float_and_oat_cost_more_than_plain_and_agree_with_fractions(
    weights: int, positions: int, out_channels: int, chip: Chip
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
def test_a_richer_chip_is_never_slower(weights: int, positions: int, chip: Chip, key: str) -> None:
    richer = dataclasses.replace(chip, **{key: getattr(chip, key) + 1})
    assert plain_delay(weights, positions, richer).total_ns <= plain_delay(weights, positions, chip).total_ns


@given(weights=COUNTS, more=COUNTS, positions=st.integers(1, 10**4), chip=CHIPS)
def test_more_weights_are_never_faster(weights: int, more: int, positions: int, chip: Chip) -> None:
    assert plain_delay(weights + more, positions, chip).total_ns >= plain_delay(weights, positions, chip).total_ns


@given(a=st.integers(0, 10**30), b=st.integers(1, 10**15))
def test_ceil_div_is_exact(a: int, b: int) -> None:
    result = ceil_div(a, b)
    assert (result - 1) * b < a <= result * b


def test_ceilings_are_taken_on_exact_ratios() -> None:
    """b_w 12 in a 64-bit bank: 5.33 weights a bank, 21.33 a read; flooring first would give 20 and one read more."""
    chip = dataclasses.replace(EIGHT_BITS, b_w=12)
    assert plain_delay(21, 1, chip).read_ns == 9


def test_stored_noise_is_a_second_read_of_as_many_values() -> None:
    """33 weights: 66 values are 3 reads, where two reads of 33 would be 4; the rest is eq. 8."""
    printed, stored = float_delay(33, 5, EIGHT_BITS), float_delay(33, 5, EIGHT_BITS, read_noise=True)
    assert (printed.read_ns, stored.read_ns) == (2 * 9, 3 * 9)
    assert (printed.mult_ns, printed.transform_ns) == (stored.mult_ns, stored.transform_ns) == (20, 4)


def test_oat_without_a_film_layer_is_equation_7() -> None:
    assert oat_delay(1728, 1024, 0, EIGHT_BITS) == plain_delay(1728, 1024, EIGHT_BITS)


@pytest.mark.parametrize(
    ("weights", "nonzero", "bits", "expected"),
    [
        (100, 100, 8, 0),  # dense: nothing to point at
        (100, 0, 8, 100),  # a bitmap
        (100, 90, 8, 80),  # ten zeros of 8 bits are fewer bits than a bitmap
        (100, 87, 8, 100),  # 104 bits of zeros are not
        (100, 50, 1, 50),  # of one-bit weights a bitmap never pays
    ],
)
def test_index_bits_by_hand(weights: int, nonzero: int, bits: int, expected: int) -> None:
    assert index_bits(weights, nonzero, bits) == expected


@given(weights=COUNTS, share=st.floats(0, 1), positions=st.integers(1, 10**4), chip=CHIPS)
def test_fewer_non_zero_weights_are_never_slower(weights: int, share: float, positions: int, chip: Chip) -> None:
    def sparse(nonzero: int) -> float:
        return plain_delay(nonzero, positions, chip, index_bits(weights, nonzero, chip.b_w)).total_ns

    few = int(share * weights)
    assert (
        sparse(few)
        <= sparse(min(few + 1, weights))
        <= sparse(weights)
        == plain_delay(weights, positions, chip).total_ns
    )


LAYERS = st.lists(st.tuples(COUNTS, st.integers(1, 10**5), st.integers(0, 2048)), min_size=1, max_size=8)


@given(layers=LAYERS, chips=st.lists(CHIPS, min_size=1, max_size=8))
def test_arrays_of_layers_and_chips_are_priced_as_one_by_one(layers: list, chips: list[Chip]) -> None:
    weights, positions, channels = (np.array(column, np.int64)[:, None] for column in zip(*layers, strict=True))
    columns = {
        field.name: np.array([getattr(c, field.name) for c in chips])[None] for field in dataclasses.fields(Chip)
    }
    every = Chip(**columns)
    kept = weights // 3
    found = [
        plain_delay(weights, positions, every),
        float_delay(weights, positions, every),
        float_delay(weights, positions, every, read_noise=True),
        oat_delay(weights, positions, channels, every),
        plain_delay(kept, positions, every, index_bits(weights, kept, every.b_w)),
    ]
    for i, (p, n, c) in enumerate(layers):
        for j, chip in enumerate(chips):
            one_by_one = [
                plain_delay(p, n, chip),
                float_delay(p, n, chip),
                float_delay(p, n, chip, read_noise=True),
                oat_delay(p, n, c, chip),
                plain_delay(p // 3, n, chip, index_bits(p, p // 3, chip.b_w)),
            ]
            assert [delay.total_ns[i, j] for delay in found] == [delay.total_ns for delay in one_by_one]


def test_film_weights_by_hand() -> None:
    assert film_weights(64) == 64 * 2 + 128 * 128  # 1 -> 2C and 2C -> 2C


def test_delay_adds_up() -> None:
    assert Delay(1.0, 2.0, 3.0).total_ns == 6.0
