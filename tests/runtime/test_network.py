"""Networks: what they hold, what they share, and how a session is opened."""

import sys

import numpy as np
import pytest
from onnx import TensorProto, helper

from deploytool.errors import ArtefactError
from deploytool.runtime.graph import Graph
from deploytool.runtime.network import OwnSession, fed_network, share


def graph() -> Graph:
    """y = x @ w + b, with a weight large enough to be handed over beside the file."""
    random = np.random.default_rng(0)
    header = helper.make_model(helper.make_graph([], "", [], []), opset_imports=[helper.make_opsetid("", 18)])
    header.ClearField("graph")
    header.ir_version = 10
    return Graph(
        (helper.make_node("Gemm", ["x", "w", "b"], ["y"]),),
        {"w": random.random((32, 16), np.float32), "b": random.random(16, np.float32)},
        (helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32]),),
        (helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16]),),
        header,
        "g",
    )


def test_both_kinds_compute_the_product_for_any_batch() -> None:
    tensors = graph().constants
    own, fed = OwnSession(graph(), 1, "x"), fed_network(graph(), 1, "x")
    for n in (1, 5, 2):
        x = np.random.default_rng(n).random((n, 32), np.float32)
        want = x.astype(np.float64) @ tensors["w"] + tensors["b"]
        for answers in (own.run({"x": x}), fed.run({"x": x}), fed.run({"x": np.asfortranarray(x)})):
            np.testing.assert_allclose(answers[0], want, rtol=1e-5)


def test_a_fed_network_uses_the_callers_memory_and_an_own_session_has_its_own() -> None:
    taken = graph()
    fed, own = fed_network(taken, 1, "x"), OwnSession(taken, 1, "x")
    assert fed.footprint() == {id(taken.constants["w"]): 32 * 16 * 4}  # the bias is too small to be worth it
    assert list(own.footprint().values()) == [32 * 16 * 4 + 16 * 4]
    x = np.ones((1, 32), np.float32)
    before = own.run({"x": x})[0]
    taken.constants["w"][:] = 0
    np.testing.assert_array_equal(fed.run({"x": x})[0][0], taken.constants["b"])
    np.testing.assert_array_equal(own.run({"x": x})[0], before)


def test_a_run_that_fails_is_one_line_and_the_next_one_works() -> None:
    for made in (OwnSession(graph(), 1, "name"), fed_network(graph(), 1, "name")):
        with pytest.raises(ArtefactError, match="name fails in onnxruntime") as caught:
            made.run({"x": np.ones((1, 31), np.float32)})
        assert "\n" not in str(caught.value)
        assert made.run({"x": np.ones((1, 32), np.float32)})[0].shape == (1, 16)


def test_equal_arrays_are_shared_and_others_are_not() -> None:
    def arrays(*changed: int) -> dict[str, np.ndarray]:
        value = np.arange(200, dtype=np.float32)
        value[list(changed)] = -1
        return {"a": value, "b": np.ones(3, np.float32)}

    first, other_name = arrays(), {"c": np.arange(200, dtype=np.float32)}
    assert share(arrays(), [other_name, first])["a"] is first["a"]
    for changed in (0, 199):  # at the start, and past what is compared first
        mine = arrays(changed)
        shared = share(mine, [first])
        assert shared["a"] is mine["a"] and shared["b"] is first["b"]
    zero = {"a": np.zeros(5, np.float32)}
    assert share({"a": -np.zeros(5, np.float32)}, [zero])["a"] is not zero["a"]  # bits, not values
    nan = {"a": np.full(5, np.nan, np.float32)}
    assert share({"a": nan["a"].copy()}, [nan])["a"] is nan["a"]
    assert share({"a": np.zeros((5, 1), np.float32)}, [zero])["a"] is not zero["a"]


def test_no_batch_stays_in_memory_after_its_answer() -> None:
    fed = fed_network(graph(), 1, "x")
    x = np.ones((100, 32), np.float32)
    kept = sys.getrefcount(x)
    for _ in range(3):
        fed.run({"x": x})
    assert sys.getrefcount(x) == kept
