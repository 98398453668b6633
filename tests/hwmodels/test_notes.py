"""What reports say in words: each note where it belongs, and only there."""

import dataclasses

import pytest

from hwmodels.methods import METHODS
from hwmodels.profile import load_profile
from hwmodels.report import price
from hwmodels.workload import Workload

BOTH = load_profile("asic-65nm").completed_by(load_profile("horowitz-45nm"))


def has(notes: list[str], *words: str) -> bool:
    return any(all(word in note for word in words) for note in notes)


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_notes_are_lines_and_name_the_equation(small: Workload, method: str) -> None:
    report = price(small, method, BOTH)
    notes = report.notes()
    assert all(note and "\n" not in note for note in notes) and len(notes) == len(set(notes))
    assert has(notes, report.method.equation, "paper 5")
    assert has(notes, "no read is charged") == (method == "float")
    assert has(notes, "a fixed lambda folds away") == report.method.conditional
    assert has(notes, "4 networks") == (method == "pgd-at:nt")


def test_where_the_papers_own_numbers_disagree(resnet34: Workload) -> None:
    """21.28 / 1165 = 0.018266, not the printed 1.182 %; our own counts are 21.265 M and 1.159 G."""
    assert round(100 * 21.28 / 1165, 3) == 1.827
    notes = price(resnet34, "float", BOTH).notes()
    assert has(notes, "1.182 %", "1.827 %", "here 1.834 %")
    assert has(notes, "1.165 GFLOPs", "1.159 G", "2.319 GFLOPs")
    # 21265088 weights, 10 biases, 17024 gammas and betas; FiLM: 7616 channels in 33 layers, 10091392 weights
    assert has(notes, "1.47x", "here 21.28 and 31.40, ratio 1.4756", "weights alone (here 1.4746)")
    assert has(notes, "32x", "3.2 pJ", "5.1")  # (3.1 + 0.1) / 0.1, and (3.7 + 0.9) / 0.9
    assert not has(price(resnet34).notes(), "32x")  # no energies, nothing to say of them


def test_the_paper_is_left_out_of_other_networks(small: Workload, resnet34: Workload) -> None:
    half = dataclasses.replace(resnet34, layers=resnet34.layers[:20])
    for workload in (small, half):
        assert not has(price(workload, "float", BOTH).notes(), "paper 5 prints")


def test_float_is_set_beside_oat(resnet34: Workload, small: Workload) -> None:
    notes = price(resnet34, "float").notes()
    assert has(notes, "OAT / FLOAT per layer, over 33 convolutions", "max 1.660 in layer4.0.conv1")
    assert not has(price(resnet34, "oat").notes(), "OAT / FLOAT per layer")
    assert not has(price(small, "float", load_profile("horowitz-45nm")).notes(), "OAT / FLOAT")


def test_oat_without_film_layers_is_said(small: Workload) -> None:
    bare = dataclasses.replace(small, layers=tuple(dataclasses.replace(layer, film=False) for layer in small.layers))
    assert has(price(bare, "oat").notes(), "no convolution that OAT would give a FiLM layer")
    assert not has(price(small, "oat").notes(), "no convolution that OAT")


def test_what_is_outside_the_model_is_named(small: Workload) -> None:
    workload = dataclasses.replace(small, transforms={"Slice": 2, "Add": 4})
    notes = price(workload).notes()
    assert has(notes, "outside the delay model: 3 Relu") and has(notes, "no inference work: 4 Add, 2 Slice")


def test_bits_of_the_file_and_of_the_price(small: Workload) -> None:
    assert not has(price(small, profile=load_profile("asic-65nm")).notes(), "the file stores")
    assert has(price(small, profile=BOTH.override({"b_w": 8})).notes(), "stores weights of 32 bits", "priced at 8")


def test_energies_come_with_their_assumptions(small: Workload) -> None:
    notes = price(small, profile=BOTH.override({"b_w": 8})).notes()
    assert has(notes, "int8 products summed in int32", "dram", "sram_1mb") and has(notes, "1.3 nJ", "2.6 nJ")
    assert has(price(small, profile=BOTH.override({"b_w": 12})).notes(), "12-bit arithmetic", "8, 16, 32")
