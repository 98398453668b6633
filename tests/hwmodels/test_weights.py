"""Zeros of weights, stored, restored and conditioned; fillers of run-length codes against the papers' examples."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hwmodels.weights import fillers_between
from hwmodels.workload import read_workload


def walk(values: list[bool], longest: int) -> int:
    """Store a zero whenever `longest` zeros went by and one more comes before the next weight."""
    fillers = waiting = pending = 0
    for value in values:
        if value:
            fillers, pending, waiting = fillers + pending, 0, 0
        elif waiting == longest:
            pending, waiting = pending + 1, 0  # this zero is stored, should a weight follow
        else:
            waiting += 1
    return fillers


def test_the_example_of_eie() -> None:
    """Section III-B: [0, 0, 1, 2, (18 zeros), 3] is v = [1, 2, 0, 3], z = [2, 0, 15, 2]: one filler."""
    assert fillers_between(np.array([0, 0, 1, 2, *[0] * 18, 3]) != 0) == 1


def test_the_example_of_deep_compression() -> None:
    """Fig. 2: weights at 1, 4, 15 and steps of 3 bits: the step of 11 exceeds 8, so one zero is stored."""
    mask = np.zeros(16, bool)
    mask[[1, 4, 15]] = True
    assert fillers_between(mask, run_bits=3) == 1


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 5), st.integers(0, 60), st.integers(0, 60))
def test_fillers_are_those_of_a_walk(values: list[bool], run_bits: int, before: int, after: int) -> None:
    values = [False] * before + values + [False] * after
    assert fillers_between(np.array(values, bool), run_bits) == walk(values, 2**run_bits - 1)


@pytest.mark.parametrize("density", [0.001, 0.05, 0.3, 0.6, 0.97])
def test_few_and_many_zeros_are_counted_alike(density: float) -> None:
    mask = np.random.default_rng(0).random(20_000) < density
    assert fillers_between(mask) == walk(mask.tolist(), 15)


def test_zeros_at_the_end_need_none() -> None:
    mask = np.ones(100, bool)
    mask[60:] = False
    assert fillers_between(mask) == 0 and fillers_between(~mask) == 60 // 16
    mask[-1] = True
    assert fillers_between(mask) == 39 // 16


def test_a_tensor_of_zeros_needs_none() -> None:
    assert fillers_between(np.zeros(1000, bool)) == fillers_between(np.zeros(0, bool)) == 0


OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("com.acme", 1)]


def save(
    folder: Path, nodes: list, weights: dict, image: list, output: str = "y", inputs=(), kind=TensorProto.FLOAT
) -> Path:
    """A file with one image input `x`; `weights` are arrays, or shapes of float32 ones."""
    arrays = {name: np.ones(w, np.float32) if isinstance(w, tuple) else w for name, w in weights.items()}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, image), *inputs],
        [helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    file = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=OPSETS), file)
    return file


def sparse_array(shape: tuple[int, ...], positions: list[int]) -> np.ndarray:
    array = np.zeros(shape, np.float32)
    array.flat[positions] = 2.0
    array.flat[positions[0] + 1] = -0.0  # a zero too
    return array


def test_zeros_are_counted_where_the_weight_is_stored(tmp_path: Path) -> None:
    """Runs of zeros before the weights at 0, 16, 17, 40, 80: 0, 15, 0, 22, 39; 0, 0, 0, 1, 2 fillers; 108 - 5 zeros."""
    weight = sparse_array((4, 3, 3, 3), [0, 16, 17, 40, 80])
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    (layer,) = read_workload(save(tmp_path, [node], {"w": weight}, [1, 3, 8, 8])).layers
    assert (layer.weights, layer.nonzero, layer.fillers) == (108, 5, 3)


def test_zeros_survive_what_keeps_them(tmp_path: Path) -> None:
    """A masked weight conditioned on a knob, at the leading block of its filters."""
    weight = sparse_array((4, 3, 3, 3), [0, 16, 17, 40, 80])
    nodes = [
        helper.make_node("Mul", ["noise", "knob"], ["shift"]),
        helper.make_node("Add", ["w", "shift"], ["noisy"]),
        helper.make_node("Cast", ["w"], ["active"], to=TensorProto.BOOL),
        helper.make_node("Where", ["active", "noisy", "w"], ["hat"]),
        helper.make_node("Slice", ["hat", "zero", "two", "zero"], ["half"]),
        helper.make_node("Conv", ["x", "half"], ["y"]),
        helper.make_node("Conv", ["x", "noisy"], ["z"]),
    ]
    knob = helper.make_tensor_value_info("knob", TensorProto.FLOAT, [])
    tensors = {"w": weight, "noise": (4, 3, 3, 3), "zero": np.array([0]), "two": np.array([2])}
    half, noisy = read_workload(save(tmp_path, nodes, tensors, [1, 3, 8, 8], inputs=[knob])).layers
    assert (half.weights, half.nonzero, half.fillers) == (54, 4, 1)
    assert (noisy.nonzero, noisy.fillers) == (108, None)  # noise is added to the zeros as well


def test_weights_in_onnxs_sparse_format(tmp_path: Path) -> None:
    file = save(tmp_path, [helper.make_node("Conv", ["x", "w"], ["y"])], {}, [1, 3, 8, 8])
    model = onnx.load(file)
    values = numpy_helper.from_array(np.array([1, 0, 3], np.float32), "w")
    indices = numpy_helper.from_array(np.array([5, 20, 100]))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3, 3, 3]))
    file.write_bytes(model.SerializeToString())
    (layer,) = read_workload(file).layers
    assert (layer.macs, layer.nonzero, layer.weight_bits) == (4 * 27 * 36, 2, 32)
    assert layer.fillers == 5 // 16 + 94 // 16  # runs of 5 and 94 zeros
