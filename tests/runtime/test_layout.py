"""Learning onnxruntime's layout: weights are found again, and answers are those of a session of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from deploytool.export.artefact import export_untrained
from deploytool.recipe import load_recipe
from deploytool.runtime.artefact import Artefact, read_artefact
from deploytool.runtime.graph import Graph, assemble
from deploytool.runtime.layout import Arrangement, learn_layout
from deploytool.runtime.partial import evaluate, specialized_graph

Array = np.ndarray[Any, Any]
RECIPE = Path(__file__).parents[2] / "recipes" / "cifar10-resnet20-float.yaml"


def prepared(file: Path) -> Artefact:
    artefact = read_artefact(file)
    return replace(artefact, graph=evaluate(artefact.graph))


def stock(graph: Graph, image: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = assemble(graph).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, {"image": image})[
        0
    ]


@pytest.mark.parametrize("arch", ["resnet20", "wrn40-2", "mobilenet", "vgg16"])
def test_an_architecture_answers_as_in_a_session_of_its_own(arch: str, tmp_path: Path) -> None:
    """The layout is learned at one lambda and used at others."""
    export_untrained(load_recipe(RECIPE, [f"model.arch={arch}"]), tmp_path / "x.onnx")
    artefact = prepared(tmp_path / "x.onnx")
    layout = learn_layout(specialized_graph(artefact, 0.5, None, 1.0), artefact.graph.constants, "x")
    assert layout is not None
    image = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)
    answers = []
    for lam in (0.0, 0.5, 1.0):
        graph = specialized_graph(artefact, lam, None, 1.0)
        assert layout.fits(graph)
        answers.append(layout.network(layout.arrange(graph), 1, "x").run({"image": image})[0])
        want = stock(graph, image)
        np.testing.assert_allclose(answers[-1], want, rtol=0, atol=1e-4 * max(1, float(np.abs(want).max())))
    assert not np.array_equal(answers[0], answers[2])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    blocks=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    block=st.sampled_from([4, 8, 16]),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    missing=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    both=st.booleans(),
)
def test_an_arrangement_is_its_definition(
    blocks: tuple[int, int], block: int, window: tuple[int, int], missing: tuple[int, int], both: bool
) -> None:
    """OIHWBiBo: element (o, i, h, w) is at [o // B, i // B, h, w, i % B, o % B]; what is filled up is 0."""
    shape = (blocks[0] * block, blocks[1] * block, *window)
    outs, ins = shape[0] - missing[0], shape[1] - missing[1]
    constant = np.random.default_rng(0).random((outs, ins, *window), np.float32) + 1
    got = Arrangement("w", shape, block, both).apply(constant)
    assert got.shape == shape and got.flags.c_contiguous and got.ctypes.data % 64 == 0
    want = np.zeros((blocks[0], blocks[1], *window, block, block) if both else (blocks[0], shape[1], *window, block))
    for (o, i, h, w), value in np.ndenumerate(constant):
        place = (o // block, i // block, h, w, i % block, o % block) if both else (o // block, i, h, w, o % block)
        want[place] = value
    np.testing.assert_array_equal(got.ravel(), want.ravel())


def test_a_vector_is_filled_up_with_zeros() -> None:
    got = Arrangement("b", (8,), 0, False).apply(np.array([1, 2, 3], np.float32))
    np.testing.assert_array_equal(got, [1, 2, 3, 0, 0, 0, 0, 0])


def graph_of(nodes: list[Any], constants: dict[str, Array]) -> Graph:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 16, 4, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 16, 4, 4])
    header = helper.make_model(helper.make_graph([], "", [], []), opset_imports=[helper.make_opsetid("", 18)])
    header.ClearField("graph")
    header.ir_version = 10
    return Graph(tuple(nodes), constants, (image,), (logits,), header, "g")


def test_weights_that_onnxruntime_computes_with_are_not_taken_for_others() -> None:
    """It multiplies a convolution's weights by a constant that follows: numbers no longer tell where they came from."""
    random = np.random.default_rng(0)
    constants = {
        "w": random.random((16, 16, 1, 1), np.float32),
        "b": random.random(16, np.float32),
        "s": random.random((16, 1, 1), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["c"]),
        helper.make_node("Mul", ["c", "s"], ["logits"]),
    ]
    graph = graph_of(nodes, constants)
    layout = learn_layout(graph, {}, "x")
    if layout is not None:  # an onnxruntime that does not fuse these: then the answer has to be right
        image = random.random((2, 16, 4, 4), np.float32)
        got = layout.network(layout.arrange(graph), 1, "x").run({"image": image})[0]
        np.testing.assert_allclose(got, stock(graph, image), rtol=1e-4)


def test_another_constant_built_in_does_not_fit() -> None:
    constants = {"w": np.random.default_rng(0).random((16, 16, 1, 1), np.float32), "s": np.full(3, 2, np.int64)}
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"]),
        helper.make_node("ReduceMax", ["c", "s"], ["logits"], keepdims=1),
    ]
    graph = graph_of(nodes, constants)
    layout = learn_layout(graph, constants, "x")
    assert layout is not None and layout.fits(graph)
    assert not layout.fits(replace(graph, constants={**constants, "s": np.full(3, 1, np.int64)}))


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    learn_layout(graph_of([helper.make_node("Relu", ["image"], ["logits"])], {}), {}, "x")
    assert list(tmp_path.iterdir()) == []
