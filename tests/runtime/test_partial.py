"""Partial evaluation: against graphs worked out by hand, and against onnxruntime running the generic graph."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deploytool.errors import ArtefactError, InputError
from deploytool.runtime.artefact import Artefact, read_artefact, read_metadata
from deploytool.runtime.partial import (
    check_threshold,
    evaluate_constant_part,
    fold_batch_norms,
    specialized_model,
)

Array = np.ndarray[Any, Any]
LAMBDAS = (0.0, 0.2, 0.5, 0.7, 1.0)


def floats(name: str, values: object) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.float32), name)


def value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    tensors: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(
        model,
        {
            "deploytool.version": "0",
            "deploytool.classes": '["a", "b"]',
            "deploytool.preprocessing": '{"mode": "L"}',
            "other.tool": "kept",
        },
    )
    return model


def tiny(extra_nodes: list[onnx.NodeProto] | None = None, extra_outputs: list[str] | None = None) -> Artefact:
    """Conv by theta + lambda * eta, then a batch norm whose gamma is clean + lambda * step, then the mean."""
    nodes = [
        helper.make_node("Mul", ["lambda", "eta"], ["shift"]),
        helper.make_node("Add", ["theta", "shift"], ["weight"]),
        helper.make_node("Mul", ["lambda", "gamma_step"], ["gamma_shift"]),
        helper.make_node("Add", ["gamma_clean", "gamma_shift"], ["gamma"]),
        helper.make_node("Conv", ["image", "weight", "bias"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], epsilon=0.0),
        *(extra_nodes or []),
        helper.make_node("GlobalAveragePool", ["n"], ["p"]),
        helper.make_node("Flatten", ["p"], ["logits"]),
    ]
    tensors = [
        floats("theta", [[[[2]]], [[[-3]]]]),
        floats("eta", [[[[1]]], [[[0.5]]]]),
        floats("bias", [0.25, 1]),
        floats("gamma_clean", [1, 2]),
        floats("gamma_step", [2, -1]),
        floats("beta", [0.5, -1]),
        floats("mean", [1, -1]),
        floats("var", [4, 0.25]),
    ]
    outputs = [value("logits", ["N", 2]), *(value(name, ["N", 2, 2, 2]) for name in extra_outputs or [])]
    model = model_of(nodes, [value("image", ["N", 1, 2, 2]), value("lambda", [])], outputs, tensors)
    onnx.checker.check_model(model, full_check=True)
    return Artefact(Path("tiny.onnx"), model, read_metadata(Path("tiny.onnx"), model))


def run(model: onnx.ModelProto, **feed: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def tensors_of(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def with_threshold(model: onnx.ModelProto, threshold: float) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name == "lambda_threshold":
            tensor.CopyFrom(floats(tensor.name, threshold))
    return changed


# lambda = 1/2: weight = (2.5, -2.75), gamma = (2, 1.5), a = gamma / sqrt(var) = (1, 3);
# W = weight * a = (2.5, -8.25), B = beta + (bias - mean) * a = (0.5 - 0.75, -1 + 2 * 3) = (-0.25, 5).
# lambda = 0:   a = (0.5, 4), W = (1, -12), B = (0.5 - 0.75 / 2, -1 + 2 * 4) = (0.125, 7).
# lambda = 1:   weight = (3, -2.5), gamma = (3, 1), a = (1.5, 2), W = (4.5, -5), B = (0.5 - 1.125, 3) = (-0.625, 3).
@pytest.mark.parametrize(
    ("lam", "weight", "bias"),
    [(0.5, [2.5, -8.25], [-0.25, 5]), (0.0, [1, -12], [0.125, 7]), (1.0, [4.5, -5], [-0.625, 3])],
)
def test_a_tiny_graph_becomes_the_convolution_worked_out_by_hand(
    lam: float, weight: list[float], bias: list[float]
) -> None:
    model = specialized_model(tiny(), lam)
    onnx.checker.check_model(model, full_check=True)
    assert ops(model) == ["Conv", "GlobalAveragePool", "Flatten"]
    conv, tensors = model.graph.node[0], tensors_of(model)
    assert set(tensors) == set(conv.input[1:])
    np.testing.assert_array_equal(tensors[conv.input[1]].ravel(), weight)
    np.testing.assert_array_equal(tensors[conv.input[2]], bias)
    logits = run(model, image=np.ones((3, 1, 2, 2), np.float32))[0]
    np.testing.assert_array_equal(logits, np.tile(np.add(weight, bias), (3, 1)))


def test_metadata_and_opset_are_kept_and_lambda_is_noted() -> None:
    source = tiny()
    model = specialized_model(source, 0.25)
    properties = {p.key: p.value for p in model.metadata_props}
    assert properties.pop("deploytool.lambda") == "0.25"
    assert properties == {p.key: p.value for p in source.model.metadata_props}
    assert model.opset_import == source.model.opset_import and model.ir_version == source.model.ir_version
    metadata = read_metadata(Path("x.onnx"), model)
    assert metadata.lam == 0.25 and not metadata.conditional


def test_the_source_is_not_changed() -> None:
    source = tiny()
    before = source.model.SerializeToString()
    specialized_model(source, 0.5)
    assert source.model.SerializeToString() == before


@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_special_answer_is_the_generic_one(lam: float, threshold: float, trained_file: Path) -> None:
    artefact = read_artefact(trained_file)
    images = np.random.default_rng(1).random((5, 1, 8, 8), np.float32)
    special = run(specialized_model(artefact, lam, threshold), image=images)[0]
    generic = run(with_threshold(artefact.model, threshold), image=images, **{"lambda": np.array(lam, np.float32)})[0]
    np.testing.assert_allclose(special, generic, rtol=0, atol=1e-4)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_special_answer_is_the_generic_one_with_interpolation(lam: float, trained_interpolate_file: Path) -> None:
    artefact = read_artefact(trained_interpolate_file)
    images = np.random.default_rng(1).random((5, 1, 8, 8), np.float32)
    generic = run(artefact.model, image=images, **{"lambda": np.array(lam, np.float32)})[0]
    np.testing.assert_allclose(run(specialized_model(artefact, lam), image=images)[0], generic, rtol=0, atol=1e-4)


def test_the_special_answer_of_a_deep_network_is_the_generic_one(resnet34_file: Path) -> None:
    artefact = read_artefact(resnet34_file)
    images = np.random.default_rng(1).random((1, 3, 32, 32), np.float32)
    special = run(specialized_model(artefact, 0.7), image=images)[0]
    generic = run(artefact.model, image=images, **{"lambda": np.array(0.7, np.float32)})[0]
    np.testing.assert_allclose(special, generic, rtol=0, atol=1e-4 * max(1, float(np.abs(generic).max())))


def test_threshold_decides_which_batch_norms_are_built_in(trained_file: Path) -> None:
    """At lambda 0.3 threshold 0 takes the adversarial statistics, 0.5 the clean ones; both differ in training."""
    artefact = read_artefact(trained_file)
    images = np.random.default_rng(1).random((5, 1, 8, 8), np.float32)
    low, high = (run(specialized_model(artefact, 0.3, t), image=images)[0] for t in (0.0, 0.5))
    assert np.abs(low - high).max() > 1e-3
    stored = {p.key: p.value for p in specialized_model(artefact, 0.3, 0.5).metadata_props}
    assert stored["deploytool.lambda_threshold"] == "0.5"


@pytest.mark.parametrize("name", ["trained_file", "trained_interpolate_file", "resnet34_file"])
def test_a_specialised_model_is_plain_and_valid(name: str, request: pytest.FixtureRequest) -> None:
    model = specialized_model(read_artefact(request.getfixturevalue(name)), 0.3)
    onnx.checker.check_model(model, full_check=True)
    assert [v.name for v in model.graph.input] == ["image"]
    assert [v.name for v in model.graph.output] == ["logits"]
    assert "BatchNormalization" not in ops(model)
    assert not {"Where", "Greater", "Slice", "Split", "Tile"} & set(ops(model))
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read


def test_made_twice_the_bytes_are_the_same(trained_file: Path) -> None:
    once, again = (specialized_model(read_artefact(trained_file), 0.3, 0.5).SerializeToString() for _ in range(2))
    assert once == again


def test_another_process_makes_the_same_bytes(trained_file: Path) -> None:
    """With another order of sets and dicts of strings."""
    code = (
        "import sys, hashlib; from deploytool.runtime.artefact import read_artefact;"
        "from deploytool.runtime.partial import specialized_model;"
        "print(hashlib.sha256(specialized_model(read_artefact(sys.argv[1]), 0.3).SerializeToString()).hexdigest())"
    )
    here = hashlib.sha256(specialized_model(read_artefact(trained_file), 0.3).SerializeToString()).hexdigest()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, str(trained_file)]
        assert subprocess.check_output(command, text=True, env={"PYTHONHASHSEED": seed}).strip() == here


@pytest.mark.parametrize("lam", [-0.1, 1.1, float("nan"), float("inf"), "half", None])
def test_a_lambda_out_of_range_is_refused(lam: Any) -> None:
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        specialized_model(tiny(), lam)


def test_a_plain_file_is_refused(plain_file: Path) -> None:
    with pytest.raises(InputError, match="plain model already"):
        specialized_model(read_artefact(plain_file), 0.5)


@pytest.mark.parametrize("threshold", [0.3, 1.0, -0.5, float("nan")])
def test_a_threshold_other_than_the_papers_is_refused(threshold: float, trained_file: Path) -> None:
    with pytest.raises(InputError, match="threshold"):
        check_threshold(read_artefact(trained_file), threshold)
    with pytest.raises(InputError, match="threshold"):
        specialized_model(read_artefact(trained_file), 0.3, threshold)


def test_a_threshold_where_the_graph_has_none_is_refused(trained_interpolate_file: Path) -> None:
    with pytest.raises(InputError, match=r"no lambda threshold \(conditioning interpolate\)"):
        specialized_model(read_artefact(trained_interpolate_file), 0.3, 0.5)


@pytest.mark.parametrize("damage", ["shape", "operator"])
def test_a_graph_that_cannot_be_evaluated_is_an_artefact_error(damage: str) -> None:
    source = tiny()
    if damage == "shape":
        tensor = next(tensor for tensor in source.model.graph.initializer if tensor.name == "eta")
        tensor.CopyFrom(floats("eta", [[[[1]]], [[[2]]], [[[3]]]]))
    else:
        source.model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ArtefactError, match=r"tiny\.onnx cannot be specialised") as caught:
        specialized_model(source, 0.5)
    assert "\n" not in str(caught.value)


def convolution_and_norm(**norm: Any) -> tuple[list[onnx.NodeProto], dict[str, onnx.TensorProto]]:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], **norm),
    ]
    ones = {name: floats(name, [1, 1]) for name in ("gamma", "beta", "mean", "var")}
    return nodes, {"w": floats("w", np.ones((2, 1, 1, 1))), **ones}


def test_a_convolution_read_twice_is_not_folded() -> None:
    nodes, constants = convolution_and_norm()
    nodes.append(helper.make_node("Add", ["c", "n"], ["sum"]))
    assert fold_batch_norms(nodes, constants) == nodes


def test_the_whole_model_answers_alike_when_a_convolution_is_read_twice() -> None:
    artefact = tiny([helper.make_node("Mul", ["c", "n"], ["unused_product"])])
    model = specialized_model(artefact, 0.5)
    assert "BatchNormalization" in ops(model)
    logits = run(model, image=np.ones((1, 1, 2, 2), np.float32))[0]
    np.testing.assert_allclose(logits, [[2.5 - 0.25, -8.25 + 5]], rtol=1e-6)


def test_a_convolution_that_is_an_output_is_not_folded() -> None:
    model = specialized_model(tiny(extra_outputs=["c"]), 0.5)
    onnx.checker.check_model(model, full_check=True)
    logits, c = run(model, image=np.ones((1, 1, 2, 2), np.float32))
    np.testing.assert_allclose(logits, [[2.25, -3.25]], rtol=1e-6)
    np.testing.assert_allclose(c[0, :, 0, 0], [2.5 + 0.25, -2.75 + 1])


def test_an_output_that_depends_on_lambda_alone_is_kept() -> None:
    source = tiny()
    source.model.graph.output.append(value("gamma", [2]))
    model = specialized_model(source, 0.5)
    np.testing.assert_array_equal(run(model, image=np.ones((1, 1, 2, 2), np.float32))[1], [2, 1.5])


def test_a_batch_norm_after_anything_else_stays() -> None:
    nodes, constants = convolution_and_norm()
    between = [nodes[0], helper.make_node("Relu", ["c"], ["r"]), nodes[1]]
    between[2].input[0] = "r"
    assert fold_batch_norms(between, constants) == between


def test_a_batch_norm_on_the_image_stays() -> None:
    nodes, constants = convolution_and_norm()
    nodes[1].input[0] = "image"
    assert fold_batch_norms(nodes[1:], constants) == nodes[1:]


def test_a_batch_norm_in_training_mode_stays() -> None:
    nodes, constants = convolution_and_norm(training_mode=1)
    assert fold_batch_norms(nodes, constants) == nodes


@pytest.mark.parametrize("missing", ["w", "gamma", "var"])
def test_a_batch_norm_that_is_not_constant_stays(missing: str) -> None:
    nodes, constants = convolution_and_norm()
    del constants[missing]
    assert fold_batch_norms(nodes, constants) == nodes


def test_epsilon_is_1e_5_where_the_node_names_none() -> None:
    """The default in the ONNX specification of BatchNormalization."""
    nodes, constants = convolution_and_norm()
    constants["var"] = floats("var", [0, 1e-5])
    folded = fold_batch_norms(nodes, constants)
    weight = numpy_helper.to_array(constants[folded[0].input[1]])
    np.testing.assert_allclose(weight.ravel(), [1 / np.sqrt(1e-5), 1 / np.sqrt(2e-5)], rtol=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.sampled_from([1, 2]),
    with_bias=st.booleans(),
    epsilon=st.floats(1e-6, 1e-1),
    stride=st.sampled_from([1, 2]),
)
def test_folding_is_the_formula_and_changes_no_answer(
    seed: int, groups: int, with_bias: bool, epsilon: float, stride: int
) -> None:
    random = np.random.default_rng(seed)
    theta = random.standard_normal((4, 4 // groups, 3, 3)).astype(np.float32)
    gamma, beta, mean, bias = (random.standard_normal(4).astype(np.float32) for _ in range(4))
    var = random.uniform(0.1, 4, 4).astype(np.float32)
    names = ["x", "theta", *(["bias"] if with_bias else [])]
    nodes = [
        helper.make_node("Conv", names, ["c"], group=groups, strides=[stride, stride], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"], epsilon=epsilon),
    ]
    arrays = {"theta": theta, "gamma": gamma, "beta": beta, "mean": mean, "var": var, "bias": bias}
    constants = {name: floats(name, array) for name, array in arrays.items()}
    before = nodes[0].SerializeToString()
    folded = fold_batch_norms(nodes, constants)
    assert [node.op_type for node in folded] == ["Conv"] and nodes[0].SerializeToString() == before
    a = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + epsilon)
    weight, shift = (numpy_helper.to_array(constants[name]) for name in folded[0].input[1:])
    np.testing.assert_allclose(weight, theta * a[:, None, None, None], rtol=1e-5)
    np.testing.assert_allclose(shift, beta + ((bias if with_bias else 0) - mean) * a, rtol=1e-4, atol=1e-5)
    assert weight.dtype == shift.dtype == np.float32

    x = random.standard_normal((2, 4, 6, 6)).astype(np.float32)
    inputs, outputs = [value("x", ["N", 4, 6, 6])], [value("y", ["N", 4, "H", "W"])]
    want = run(model_of(nodes, inputs, outputs, list(constants.values())[:6]), x=x)[0]
    got = run(model_of(folded, inputs, outputs, [constants[name] for name in folded[0].input[1:]]), x=x)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", ["RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_random_operators_are_not_folded(op: str) -> None:
    bare = op in ("RandomNormal", "RandomUniform")
    attributes = {"shape": [2]} if bare else {}
    nodes = [
        helper.make_node("Mul", ["half", "half"], ["quarter"]),
        helper.make_node(op, [] if bare else ["quarter"], ["drawn"], **attributes),
        helper.make_node("Add", ["drawn", "quarter"], ["after"]),
        helper.make_node("Add", ["after", "x"], ["y"]),
    ]
    constants = {"half": floats("half", [0.5, 0.5])}
    model = model_of(nodes, [value("x", [2])], [value("y", [2])], list(constants.values()))
    rest = evaluate_constant_part(model, constants)
    assert rest == nodes[1:]
    np.testing.assert_array_equal(numpy_helper.to_array(constants["quarter"]), [0.25, 0.25])
    assert "drawn" not in constants and "after" not in constants


def test_a_node_with_an_optional_input_left_out_is_evaluated() -> None:
    nodes = [
        helper.make_node("Clip", ["c", "", "top"], ["clipped"]),
        helper.make_node("Add", ["clipped", "x"], ["y"]),
    ]
    constants = {"c": floats("c", [-2, 5]), "top": floats("top", 3)}
    model = model_of(nodes, [value("x", [2])], [value("y", [2])], list(constants.values()))
    assert evaluate_constant_part(model, constants) == nodes[1:]
    np.testing.assert_array_equal(numpy_helper.to_array(constants["clipped"]), [-2, 3])


def test_where_nothing_is_constant_nothing_changes() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    constants: dict[str, onnx.TensorProto] = {}
    assert evaluate_constant_part(model_of(nodes, [value("x", [2])], [value("y", [2])], []), constants) == nodes
    assert constants == {}
