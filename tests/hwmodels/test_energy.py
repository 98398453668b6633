"""Energies worked by hand from Horowitz's table, and what must hold for any layer."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodels.energy import Energy, EnergyCosts, energy_costs, flops, layer_energy, missing_energies, transform_ops
from hwmodels.errors import ProfileError
from hwmodels.profile import load_profile

COUNTS = st.integers(0, 10**9)
HOROWITZ = load_profile("horowitz-45nm")


def costs(**overrides: object) -> EnergyCosts:
    found = energy_costs(HOROWITZ.override(overrides))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("bits", "mult", "accumulate", "add"),
    [(8, 0.2, 0.1, 0.03), (16, 1.1, 0.4, 0.4), (32, 3.7, 0.9, 0.9)],  # int8 products are summed in int32
)
def test_arithmetic_follows_the_bits(bits: int, mult: float, accumulate: float, add: float) -> None:
    found = costs(b_w=bits)
    assert (found.bits, found.mult_pj, found.accumulate_pj, found.add_pj) == (bits, mult, accumulate, add)


def test_a_small_layer_by_hand_in_8_bits() -> None:
    """10 weights, 40 MACs, 16 inputs, 4 outputs; 8 bits: 1300 / 8 = 162.5 pJ a byte of DRAM, 12.5 of 1 MB SRAM."""
    plain = layer_energy(40, 10, 16, 4, costs())
    assert plain.items() == pytest.approx(
        {
            "mult_pj": 8.0,
            "accumulate_pj": 4.0,
            "transform_pj": 0.0,
            "weight_read_pj": 1625.0,
            "transform_read_pj": 0.0,
            "activation_read_pj": 200.0,
            "activation_write_pj": 50.0,
        }
    )
    assert plain.total_pj == pytest.approx(1887.0)
    conditioned = layer_energy(40, 10, 16, 4, costs(), transformed=10)
    assert conditioned.transform_pj == pytest.approx(10 * (0.2 + 0.03))
    assert conditioned.total_pj == pytest.approx(1887.0 + 2.3)
    stored = layer_energy(40, 10, 16, 4, costs(), transformed=10, noise_values=10)
    assert stored.transform_read_pj == pytest.approx(1625.0)
    film = layer_energy(40, 10, 16, 4, costs(), film_weights=6)  # C = 1: 2 + 4
    assert film.transform_pj == pytest.approx(6 * 0.3) and film.transform_read_pj == pytest.approx(6 * 162.5)


def test_memory_levels_are_chosen_by_name() -> None:
    near = layer_energy(40, 10, 16, 4, costs(b_w=32, weights_from="sram_8kb", activations_in="sram_32kb"))
    assert near.weight_read_pj == pytest.approx(10 * 32 / 64 * 10)
    assert near.activation_read_pj == pytest.approx(16 * 32 / 64 * 20)
    assert near.activation_write_pj == pytest.approx(4 * 32 / 64 * 20)
    with pytest.raises(ProfileError, match=r"weights_from \(=rom\) must be one of sram_8kb, .*dram"):
        HOROWITZ.override({"weights_from": "rom"})


def test_what_a_profile_cannot_answer_is_said() -> None:
    assert energy_costs(load_profile("asic-65nm")) is None
    assert missing_energies(load_profile("asic-65nm")) == "profile asic-65nm has no energies"
    assert energy_costs(HOROWITZ.override({"b_w": 12})) is None
    assert "no energies of 12-bit arithmetic; it has those of b_w 8, 16, 32" in missing_energies(
        HOROWITZ.override({"b_w": 12})
    )
    assert missing_energies(HOROWITZ) == ""


@given(macs=COUNTS, weights=COUNTS, inputs=COUNTS, outputs=COUNTS, more=COUNTS, which=st.integers(0, 3))
def test_more_work_never_takes_less(macs: int, weights: int, inputs: int, outputs: int, more: int, which: int) -> None:
    counts = [macs, weights, inputs, outputs]
    bigger = [count + (more if place == which else 0) for place, count in enumerate(counts)]
    assert layer_energy(*bigger, costs()).total_pj >= layer_energy(*counts, costs()).total_pj


@given(a=st.tuples(COUNTS, COUNTS, COUNTS, COUNTS), b=st.tuples(COUNTS, COUNTS, COUNTS, COUNTS))
def test_energy_is_additive(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    both = layer_energy(*(x + y for x, y in zip(a, b, strict=True)), costs())
    assert both.total_pj == pytest.approx(layer_energy(*a, costs()).total_pj + layer_energy(*b, costs()).total_pj)


@given(key=st.sampled_from(sorted(HOROWITZ.energies)), factor=st.floats(1, 100))
def test_a_dearer_operation_or_access_never_makes_it_cheaper(key: str, factor: float) -> None:
    dearer = costs(**{key: HOROWITZ.energies[key] * factor})
    arguments = (40, 10, 16, 4)
    extra = {"transformed": 10, "noise_values": 3, "film_weights": 6}
    assert layer_energy(*arguments, dearer, **extra).total_pj >= layer_energy(*arguments, costs(), **extra).total_pj


def test_arrays_are_priced_as_one_by_one() -> None:
    columns = np.array([[40, 10, 16, 4], [7, 7, 1, 7]], np.int64).T
    every = layer_energy(*columns, costs())
    for place in range(2):
        one = layer_energy(*(int(count) for count in columns[:, place]), costs())
        assert every.total_pj[place] == pytest.approx(one.total_pj)


def test_operations_by_hand() -> None:
    assert flops(1000) == 2000 and flops(1000, transform_ops=14) == 2014
    assert transform_ops(transformed=10, film_weights=0) == 20  # a multiplication and an addition each
    assert transform_ops(transformed=0, film_weights=6) == 12


def test_items_and_fields_are_the_same() -> None:
    names = [field.name for field in dataclasses.fields(Energy)]
    energy = Energy(*range(len(names)))
    assert list(energy.items()) == names and energy.total_pj == sum(range(len(names)))
