"""Parameter memory: paper 5's numbers, encodings by hand, and what must hold for any layer."""

import json
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodels.activations import Peak
from hwmodels.errors import HwModelsError, WorkloadError
from hwmodels.layers import Layer
from hwmodels.memory import (
    ENCODINGS,
    encoded_bits,
    expected_fillers,
    fits,
    layer_storage,
    parameter_memory,
)
from hwmodels.weights import fillers_between
from hwmodels.workload import Workload, read_workload

C = 64 * 7 + 128 * 9 + 256 * 13 + 512 * 7  # channels of ResNet-34's 36 batch norms
FILMED = [64] * 7 + [128] * 8 + [256] * 12 + [512] * 6


@pytest.fixture(scope="module")
def resnet34_read(resnet34_file: Path) -> Workload:
    return read_workload(resnet34_file)


def item(memory, name: str) -> tuple[int, int]:
    (found,) = [each for each in memory.items if each.name == name]
    return found.values, found.bytes


def test_paper_5_figure_8b(resnet34_read: Workload) -> None:
    """21.28 MB, 31.4 MB and 1.47 at 8 bits; torch counts 21,282,122 parameters in ResNet-34 for CIFAR."""
    float_, oat = (parameter_memory(resnet34_read, method) for method in ("float", "oat"))
    printed = ("weights", "index", "biases", "norm_affine")
    assert float_.sum_bytes(*printed) == 21_282_122
    assert round(float_.sum_bytes(*printed) / 1e6, 2) == 21.28
    assert round(oat.sum_bytes(*printed, "film", "film_biases") / 1e6, 2) == 31.40
    assert round(oat.weight_bytes / float_.weight_bytes, 2) == 1.47
    assert float_.weight_bytes == 21_265_088


def test_items_by_hand(resnet34_read: Workload) -> None:
    float_, oat = (parameter_memory(resnet34_read, method) for method in ("float", "oat"))
    for memory in (float_, oat):
        for name in ("norm_affine", "norm_statistics", "second_norm_affine", "second_norm_statistics"):
            assert item(memory, name) == (2 * C, 2 * C)
        assert item(memory, "biases") == (10, 10) and item(memory, "index") == (0, 0)
        assert item(memory, "other") == (6, 6)  # mean and deviation of three colours
        assert memory.bytes == sum(each.bytes for each in memory.items)
    assert item(float_, "alphas") == (37, 37) and item(float_, "noise") == (0, 0)
    assert item(oat, "film")[0] == sum(2 * c + 4 * c**2 for c in FILMED) == 10_091_392
    assert item(oat, "film_biases")[0] == 4 * sum(FILMED)
    assert not {"alphas", "noise"} & {each.name for each in oat.items}
    assert "36 BatchNormalization nodes in the file, 8512 channels" in float_.notes[0]


def test_plain_networks_have_one_set_and_n_of_them_n(resnet34_read: Workload) -> None:
    one, four = parameter_memory(resnet34_read, "pgd-at"), parameter_memory(resnet34_read, "pgd-at:4t")
    assert one.bytes == 21_265_088 + 10 + 4 * C + 6 and four.bytes == 4 * one.bytes
    assert "second_norm_affine" not in {each.name for each in one.items}
    assert any("4 times" in note for note in four.notes)
    assert one.encodings() == four.encodings()  # of one network


@pytest.mark.parametrize("bits", [1, 4, 8, 16, 32, 64])
def test_bits_scale_everything_but_the_table(resnet34_read: Workload, bits: int) -> None:
    memory = parameter_memory(resnet34_read, "oat", bits)
    for each in memory.items:
        assert each.bytes == -(-each.values * bits // 8)


def test_noise_in_three_forms(resnet34_read: Workload) -> None:
    table = 65521  # float16 values
    assert item(parameter_memory(resnet34_read, "float", noise="table"), "noise") == (table, 2 * table)
    stored = (21_265_088, 21_265_088)
    assert item(parameter_memory(resnet34_read, "float", noise="stored"), "noise") == stored
    assert item(parameter_memory(resnet34_read, "float-stored-noise"), "noise") == stored
    assert item(parameter_memory(resnet34_read, "float", noise="regenerated"), "noise") == (0, 0)
    sparse = parameter_memory(resnet34_read, "float", noise="stored", density=0.1)
    assert item(sparse, "noise")[0] == item(sparse, "weights")[0] == sum(each.nonzero for each in sparse.layers)


def test_a_folded_file_has_batch_norms_by_its_channels(resnet34_file: Path, tmp_path: Path) -> None:
    from deploytool.runtime.specialize import specialize

    specialize(resnet34_file, 0.5, tmp_path / "plain.onnx")
    folded, whole = read_workload(tmp_path / "plain.onnx"), read_workload(resnet34_file)
    assert item(parameter_memory(folded, "oat"), "norm_affine") == (2 * C, 2 * C)
    assert parameter_memory(folded, "oat").bytes == parameter_memory(whole, "oat").bytes
    assert "one assumed after each convolution" in parameter_memory(folded, "float").notes[0]
    assert item(parameter_memory(folded, "plain"), "biases") == (C + 10, C + 10)
    assert parameter_memory(whole, "fixed").bytes == parameter_memory(folded, "plain").bytes


@pytest.mark.parametrize(
    ("weights", "rows", "nonzero", "bits", "fillers", "expected"),
    [
        # 4 x 27: columns need 5 bits, row pointers up to 5 need 3
        (108, 4, 5, 8, 3, {"dense": 864, "bitmap": 108 + 40, "csr": 5 * 13 + 5 * 3, "run-length": 8 * 12}),
        # 8 x 64: columns need 6 bits, row pointers up to 64 need 7
        (512, 8, 64, 4, 10, {"dense": 2048, "bitmap": 512 + 256, "csr": 64 * 10 + 9 * 7, "run-length": 74 * 8}),
        # one column needs no index
        (16, 16, 16, 8, 0, {"dense": 128, "bitmap": 144, "csr": 128 + 17 * 5, "run-length": 192}),
        # nothing is left: a bitmap of zeros, pointers of no bits
        (100, 10, 0, 8, 0, {"dense": 800, "bitmap": 100, "csr": 0, "run-length": 0}),
        # depthwise: nine columns need 4 bits
        (288, 32, 100, 32, 2, {"dense": 9216, "bitmap": 3488, "csr": 3600 + 33 * 7, "run-length": 102 * 36}),
    ],
)
def test_encodings_by_hand(weights, rows, nonzero, bits, fillers, expected) -> None:
    assert encoded_bits(weights, rows, nonzero, bits, fillers) == expected


def exact_fillers(weights: int, nonzero: int, run_bits: int) -> float:
    """P(r zeros or more before a weight) is C(weights - r, nonzero) / C(weights, nonzero), for each of them alike."""
    step = 1 << run_bits
    sums = sum(comb(weights - run, nonzero) for run in range(step, weights, step) if weights - run >= nonzero)
    return nonzero * sums / comb(weights, nonzero)


@pytest.mark.parametrize(("weights", "nonzero"), [(1728, 1), (1728, 17), (1728, 170), (1728, 900), (9216, 460)])
@pytest.mark.parametrize("run_bits", [3, 4, 5])
def test_expected_fillers_against_combinatorics(weights: int, nonzero: int, run_bits: int) -> None:
    exact = exact_fillers(weights, nonzero, run_bits)
    assert expected_fillers(weights, nonzero, run_bits) == pytest.approx(exact, rel=0.05, abs=0.5)


def test_expected_fillers_against_random_weights() -> None:
    random = np.random.default_rng(0)
    counts = [fillers_between(random.permutation(36864) < 3686) for _ in range(20)]
    assert expected_fillers(36864, 3686) == pytest.approx(np.mean(counts), rel=0.02)


@given(
    rows=st.integers(1, 64), columns=st.integers(1, 600), share=st.floats(0, 1), bits=st.integers(1, 64), data=st.data()
)
def test_the_best_encoding_is_the_smallest_and_never_above_dense(rows, columns, share, bits, data) -> None:
    layer = Layer("l", "linear", rows, columns, (), 1, nonzero=int(share * rows * columns))
    storage = layer_storage(layer, bits)
    assert storage.size_bits[storage.best] == min(storage.size_bits.values()) <= layer.weights * bits
    assert all(size >= 0 for size in storage.size_bits.values())
    if layer.nonzero == layer.weights:
        assert storage.best == "dense" and not storage.estimated
    fewer = layer_storage(layer, bits, data.draw(st.floats(0.001, 1)) * max(share, 1e-3))
    assert (fewer.nonzero > layer.nonzero) or all(
        fewer.size_bits[name] <= storage.size_bits[name] for name in ("dense", "bitmap", "csr")
    )


def network(*layers: Layer) -> Workload:
    return Workload("net.onnx", layers, {}, {}, ("image",), {})


def test_the_best_is_named_per_layer_and_in_total() -> None:
    """Of a 64 x 576 weight at 8 bits: indices of 10 bits are best below about 0.09, runs up to 0.25, then a bitmap."""
    layers = [
        Layer(name, "conv", 64, 64, (3, 3), 1, nonzero=int(density * 36864))
        for name, density in [("few", 0.05), ("some", 0.15), ("half", 0.5), ("all", 1.0)]
    ]
    memory = parameter_memory(network(*layers))
    assert [each.best for each in memory.layers] == ["csr", "run-length", "bitmap", "dense"]
    sizes = memory.encodings()
    assert memory.best == min(ENCODINGS, key=lambda name: sizes[name]) == "bitmap"
    assert sizes["best"] < sizes["bitmap"] and memory.weight_bytes == sizes["best"]
    assert [each.estimated for each in memory.layers] == [True, True, True, False]
    assert any("expected" in note for note in memory.notes)
    for name in ENCODINGS:
        assert parameter_memory(network(*layers), encoding=name).weight_bytes == sizes[name]


def test_masks_and_indices_are_an_item() -> None:
    layer = Layer("l", "conv", 4, 3, (3, 3), 1, nonzero=5, fillers=3)
    memory = parameter_memory(network(layer), encoding="bitmap")
    assert item(memory, "weights") == (5, 5) and item(memory, "index") == (0, 14)  # 108 bits
    memory = parameter_memory(network(layer), encoding="run-length")
    assert item(memory, "weights") == (5, 5) and item(memory, "index")[1] == 7  # 5 * 4 + 3 * 12 bits
    assert not memory.layers[0].estimated and len(memory.notes) == 1


def test_density_one_changes_nothing(resnet34_read: Workload) -> None:
    plain, same = parameter_memory(resnet34_read), parameter_memory(resnet34_read, density=1.0)
    assert plain == same and plain.best == "dense"
    tenth = parameter_memory(resnet34_read, density=0.1)
    assert tenth.best == "run-length" and tenth.weight_bytes < 0.2 * plain.weight_bytes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"bits": 80}, "bits .=80. must be an integer in 1..64"),
        ({"bits": 0}, "1..64"),
        ({"bits": True}, "1..64"),
        ({"encoding": "zip"}, "known: best, dense"),
        ({"density": 0}, "in .0, 1."),
        ({"density": 1.01}, "in .0, 1."),
        ({"density": float("nan")}, "in .0, 1."),
        ({"method": "float", "noise": "white"}, "known: regenerated, table, stored"),
        ({"method": "oat", "noise": "stored"}, "oat has none"),
        ({"method": "float", "noise": "table"}, "no table of noise"),
        ({"method": "float-stored-noise", "noise": "regenerated"}, "contradicts"),
        ({"method": "magic"}, "unknown"),
    ],
)
def test_what_cannot_be_stored_is_refused(given: dict, words: str) -> None:
    with pytest.raises(HwModelsError, match=words) as caught:
        parameter_memory(network(Layer("l", "linear", 2, 2, (), 1)), **given)
    assert "\n" not in str(caught.value)


def peak(size: int, unknown: tuple[str, ...] = ()) -> Peak:
    return Peak(size, 8, size, "l", "Conv", (("y", size),), True, unknown)


@pytest.mark.parametrize(
    ("budget", "everything", "activations", "words"),
    [(1500, True, True, "^fits"), (1499, False, True, "another memory"), (499, False, False, "activations alone take")],
)
def test_what_fits_a_memory(budget: int, everything: bool, activations: bool, words: str) -> None:
    """1000 bytes of weights and 500 of activations."""
    parameters = parameter_memory(network(Layer("l", "linear", 10, 100, (), 1)))
    fit = fits(budget, parameters, peak(500))
    assert (fit.everything, fit.activations) == (everything, activations)
    assert fit.verdict().startswith(words[1:]) if words[0] == "^" else words in fit.verdict()
    assert "unknown size" in fits(budget, parameters, peak(500, ("y",))).verdict()
    json.dumps(fit.to_dict())


@pytest.mark.parametrize("budget", [0, -1, 1.5, True])
def test_a_memory_without_a_size_is_refused(budget: object) -> None:
    with pytest.raises(WorkloadError, match="positive number of bytes"):
        fits(budget, parameter_memory(network(Layer("l", "linear", 2, 2, (), 1))), peak(1))


def test_the_memory_as_json(resnet34_read: Workload) -> None:
    document = json.loads(json.dumps(parameter_memory(resnet34_read, "float", density=0.5).to_dict(), allow_nan=False))
    assert document["parameter_bytes"] == sum(each["bytes"] for each in document["items"])
    assert document["best_encoding"] == "bitmap" and document["parameter_mb"] == document["parameter_bytes"] / 1e6
    assert len(document["layers"]) == 37 and set(document["encodings_bytes"]) == {*ENCODINGS, "best"}
