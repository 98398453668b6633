"""Partial evaluation: against graphs worked out by hand, and against onnxruntime running the generic graph."""

import hashlib
import subprocess
import sys
from dataclasses import replace
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
from deploytool.runtime.artefact import Artefact, artefact_of, read_artefact, read_metadata
from deploytool.runtime.graph import Graph, assemble, take_apart
from deploytool.runtime.partial import (
    check_outputs,
    check_threshold,
    evaluate,
    fold_batch_norms,
    select_outputs,
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
    return artefact_of(Path("tiny.onnx"), model)


def run(model: onnx.ModelProto, **feed: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def written(graph: Graph) -> bytes:
    """A graph as bytes: equal bytes are equal graphs."""
    return assemble(graph).SerializeToString(deterministic=True)


def tensors_of(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def stored(file: Path, threshold: float | None = None) -> onnx.ModelProto:
    """The generic graph as it stands in the file, read by onnx alone, with another threshold where one is given."""
    model = onnx.load(str(file))
    for tensor in model.graph.initializer:
        if tensor.name == "lambda_threshold" and threshold is not None:
            tensor.CopyFrom(floats(tensor.name, threshold))
    return model


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
    assert properties.pop("deploytool.lambda") == "0.25" and properties.pop("deploytool.precision") == "float32"
    assert properties == {
        "deploytool.version": "0",
        "deploytool.classes": '["a", "b"]',
        "deploytool.preprocessing": '{"mode": "L"}',
        "other.tool": "kept",
    }
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)] and model.ir_version == 10
    metadata = read_metadata(Path("x.onnx"), model)
    assert metadata.lam == 0.25 and not metadata.conditional


def test_the_source_is_not_changed() -> None:
    source = tiny()
    before, properties = written(source.graph), dict(source.properties)
    specialized_model(source, 0.5)
    assert written(source.graph) == before and source.properties == properties


@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_special_answer_is_the_generic_one(lam: float, threshold: float, trained_file: Path) -> None:
    artefact = read_artefact(trained_file)
    images = np.random.default_rng(1).random((5, 1, 8, 8), np.float32)
    special = run(specialized_model(artefact, lam, threshold), image=images)[0]
    generic = run(stored(trained_file, threshold), image=images, **{"lambda": np.array(lam, np.float32)})[0]
    np.testing.assert_allclose(special, generic, rtol=0, atol=1e-4)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_special_answer_is_the_generic_one_with_interpolation(lam: float, trained_interpolate_file: Path) -> None:
    artefact = read_artefact(trained_interpolate_file)
    images = np.random.default_rng(1).random((5, 1, 8, 8), np.float32)
    generic = run(stored(trained_interpolate_file), image=images, **{"lambda": np.array(lam, np.float32)})[0]
    np.testing.assert_allclose(run(specialized_model(artefact, lam), image=images)[0], generic, rtol=0, atol=1e-4)


def test_the_special_answer_of_a_deep_network_is_the_generic_one(resnet34_file: Path) -> None:
    artefact = read_artefact(resnet34_file)
    images = np.random.default_rng(1).random((1, 3, 32, 32), np.float32)
    special = run(specialized_model(artefact, 0.7), image=images)[0]
    generic = run(stored(resnet34_file), image=images, **{"lambda": np.array(0.7, np.float32)})[0]
    np.testing.assert_allclose(special, generic, rtol=0, atol=1e-4 * max(1, float(np.abs(generic).max())))


def test_threshold_decides_which_batch_norms_are_built_in(trained_file: Path) -> None:
    """At lambda 0.3 threshold 0 takes the adversarial statistics, 0.5 the clean ones; both differ in training."""
    artefact = read_artefact(trained_file)
    images = np.random.default_rng(1).random((5, 1, 8, 8), np.float32)
    low, high = (run(specialized_model(artefact, 0.3, t), image=images)[0] for t in (0.0, 0.5))
    assert np.abs(low - high).max() > 1e-3
    noted = {p.key: p.value for p in specialized_model(artefact, 0.3, 0.5).metadata_props}
    assert noted["deploytool.lambda_threshold"] == "0.5"


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


def test_a_graph_that_cannot_be_evaluated_is_an_artefact_error() -> None:
    source = tiny()
    constants = {**source.graph.constants, "eta": np.ones((3, 1, 1, 1), np.float32)}
    damaged = replace(source, graph=replace(source.graph, constants=constants))
    with pytest.raises(ArtefactError, match=r"tiny\.onnx cannot be specialised") as caught:
        specialized_model(damaged, 0.5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("domain", "op"), [("", "NoSuchOperator"), ("", "Sigmoid"), ("some.vendor", "Mul")])
def test_an_operator_not_known_here_stays_with_what_reads_it(domain: str, op: str) -> None:
    source = tiny().graph
    node = helper.make_node(op, ["lambda", "eta"], ["shift"], domain=domain)
    left = evaluate(replace(source, nodes=(node, *source.nodes[1:])), {"lambda": np.array(0.5, np.float32)})
    assert [n.op_type for n in left.nodes] == [
        op,
        "Add",
        "Conv",
        "BatchNormalization",
        "GlobalAveragePool",
        "Flatten",
    ]
    np.testing.assert_array_equal(left.constants["gamma"], [2, 1.5])
    assert set(left.constants) == {"lambda", "eta", "theta", "bias", "gamma", "beta", "mean", "var"}
    assert fold_batch_norms(left).nodes == left.nodes, "the convolution's weight is not constant"


def test_a_weight_that_onnxruntime_has_to_compute_is_its_to_compute() -> None:
    """Sigmoid is not among the operators computed here: eta becomes sigmoid(0) = 1/2, and nothing is folded."""
    source = tiny()
    nodes = (helper.make_node("Sigmoid", ["zeros"], ["eta"]), *source.graph.nodes)
    constants = {name: value for name, value in source.graph.constants.items() if name != "eta"}
    constants["zeros"] = np.zeros((2, 1, 1, 1), np.float32)
    model = specialized_model(replace(source, graph=replace(source.graph, nodes=nodes, constants=constants)), 0.5)
    assert ops(model) == ["Sigmoid", "Mul", "Add", "Conv", "BatchNormalization", "GlobalAveragePool", "Flatten"]
    # weight = (2, -3) + 1/4, gamma = (2, 1.5), a = (1, 3), so logits = ((2.5 - 1) + 0.5, (-1.75 + 1) * 3 - 1)
    np.testing.assert_allclose(run(model, image=np.ones((1, 1, 2, 2), np.float32))[0], [[2, -3.25]], rtol=1e-6)


@pytest.mark.parametrize(("domain", "op"), [("", "NoSuchOperator"), ("", "RandomNormalLike"), ("some.vendor", "Mul")])
def test_an_operator_that_deploytool_never_writes_never_reaches_onnxruntime(domain: str, op: str) -> None:
    source = tiny()
    node = helper.make_node(op, ["lambda", "eta"], ["shift"], domain=domain)
    damaged = replace(source, graph=replace(source.graph, nodes=(node, *source.graph.nodes[1:])))
    with pytest.raises(ArtefactError, match=rf"tiny\.onnx cannot be specialised \(.*{op}, which deploytool never"):
        specialized_model(damaged, 0.5)


SEVERAL = ("logits", "evidence", "second")


def several() -> Artefact:
    """`tiny` with two more outputs: a Gemm on the pooled channels, and the image times a factor made from lambda."""
    single = tiny()
    nodes = [
        helper.make_node("Flatten", ["p"], ["flat"]),
        helper.make_node("Gemm", ["flat", "concepts"], ["evidence"]),
        helper.make_node("Mul", ["lambda", "heat"], ["factor"]),
        helper.make_node("Mul", ["image", "factor"], ["second"]),
    ]
    more = {"concepts": np.array([[1, 2, 3], [4, 5, 6]], np.float32), "heat": np.array(3, np.float32)}
    outputs = (value("logits", ["N", 2]), value("evidence", ["N", 3]), value("second", ["N", 1, 2, 2]))
    graph = single.graph
    graph = replace(graph, nodes=(*graph.nodes, *nodes), constants={**graph.constants, **more}, outputs=outputs)
    model = assemble(graph, single.properties)
    onnx.checker.check_model(model, full_check=True)
    return artefact_of(Path("several.onnx"), model)


def test_logits_alone_drop_what_other_outputs_need() -> None:
    image = np.random.default_rng(0).random((3, 1, 2, 2), np.float32)
    model, alone = specialized_model(several(), 0.5, outputs="logits"), specialized_model(tiny(), 0.5)
    assert [each.name for each in model.graph.output] == ["logits"]
    assert ops(model) == ops(alone) and set(tensors_of(model)) == set(tensors_of(alone))
    np.testing.assert_array_equal(run(model, image=image)[0], run(alone, image=image)[0])


def test_all_outputs_are_kept_unless_some_are_named() -> None:
    assert [each.name for each in specialized_model(several(), 0.5).graph.output] == list(SEVERAL)


# With lambda = 1/2 an image of ones gives the pooled channels (2.25, -3.25), as worked out above;
# evidence = (2.25 - 13, 4.5 - 16.25, 6.75 - 19.5), second = 1 * 3 / 2.
@pytest.mark.parametrize("wanted", [SEVERAL, ("logits", "evidence"), ("second",), ("evidence", "logits")])
def test_the_wanted_outputs_are_kept_in_the_files_order(wanted: tuple[str, ...]) -> None:
    model = specialized_model(several(), 0.5, outputs=wanted)
    onnx.checker.check_model(model, full_check=True)
    names = [each.name for each in model.graph.output]
    assert names == [name for name in SEVERAL if name in wanted]
    answers = dict(zip(names, run(model, image=np.ones((1, 1, 2, 2), np.float32)), strict=True))
    expected = {"logits": [2.25, -3.25], "evidence": [-10.75, -11.75, -12.75], "second": [1.5] * 4}
    for name in names:
        np.testing.assert_allclose(answers[name].ravel(), expected[name], rtol=1e-6)
    assert ("concepts" in tensors_of(model)) == ("Gemm" in ops(model)) == ("evidence" in wanted)
    assert ("Conv" in ops(model)) == (wanted != ("second",))


def test_selecting_changes_neither_the_graph_nor_an_output_that_is_an_input_or_a_constant() -> None:
    graph = several().graph
    graph = replace(graph, outputs=(*graph.outputs, value("lambda", []), value("eta", [2, 1, 1, 1])))
    before = written(graph)
    selected = select_outputs(graph, ["lambda", "eta"])
    assert selected.nodes == () and set(selected.constants) == {"eta"} and written(graph) == before
    assert [each.name for each in selected.outputs] == ["lambda", "eta"]


@pytest.mark.parametrize("wanted", [("scores",), ("logits", "scores"), ()])
def test_an_output_that_the_file_does_not_have_is_refused(wanted: tuple[str, ...]) -> None:
    for check in (lambda: check_outputs(several(), wanted), lambda: specialized_model(several(), 0.5, outputs=wanted)):
        with pytest.raises(InputError, match=r"it has logits, evidence, second") as caught:
            check()
        assert "\n" not in str(caught.value) and ("'scores'" in str(caught.value)) == bool(wanted)


def graph_of(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], inputs: dict[str, list[int | str]], outputs: list[str]
) -> Graph:
    tensors = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in constants.items()]
    taken, given = [value(*pair) for pair in inputs.items()], [helper.make_empty_tensor_value_info(o) for o in outputs]
    return take_apart(model_of(nodes, taken, given, tensors))


def convolution_and_norm(
    outputs: tuple[str, ...] = ("n",),
    between: str | None = None,
    after: list[onnx.NodeProto] | None = None,
    **norm: Any,
) -> Graph:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"]),
        *([helper.make_node(between, ["c"], ["r"])] if between else []),
        helper.make_node(
            "BatchNormalization", ["r" if between else "c", "gamma", "beta", "mean", "var"], ["n"], **norm
        ),
        *(after or []),
    ]
    ones = {name: [1, 1] for name in ("gamma", "beta", "mean", "var")}
    return graph_of(nodes, {"w": np.ones((2, 1, 1, 1)), **ones}, {"image": ["N", 1, 2, 2]}, list(outputs))


def assert_not_folded(graph: Graph) -> None:
    before = written(graph)
    folded = fold_batch_norms(graph)
    assert folded.nodes == graph.nodes and written(folded) == written(graph) == before


def test_a_convolution_and_its_batch_norm_are_folded() -> None:
    """The graph that the tests below vary, so that each of them stops what would happen otherwise."""
    folded = fold_batch_norms(convolution_and_norm(epsilon=0.0))
    assert [node.op_type for node in folded.nodes] == ["Conv"]
    weight, bias = (folded.constants[name] for name in folded.nodes[0].input[1:])
    assert weight.tolist() == [[[[1]]], [[[1]]]] and bias.tolist() == [0, 0]


def test_a_convolution_read_twice_is_not_folded() -> None:
    assert_not_folded(convolution_and_norm(("sum",), after=[helper.make_node("Add", ["c", "n"], ["sum"])]))


def test_the_whole_model_answers_alike_when_a_convolution_is_read_twice() -> None:
    artefact = tiny([helper.make_node("Mul", ["c", "n"], ["product"])], extra_outputs=["product"])
    model = specialized_model(artefact, 0.5, outputs=("logits", "product"))
    assert "BatchNormalization" in ops(model)
    logits, product = run(model, image=np.ones((1, 1, 2, 2), np.float32))
    np.testing.assert_allclose(logits, [[2.5 - 0.25, -8.25 + 5]], rtol=1e-6)
    np.testing.assert_allclose(product[0, :, 0, 0], [2.75 * 2.25, -1.75 * -3.25], rtol=1e-6)


def test_a_reader_that_no_wanted_output_needs_does_not_stop_folding() -> None:
    artefact = tiny([helper.make_node("Mul", ["c", "n"], ["product"])], extra_outputs=["product"])
    model = specialized_model(artefact, 0.5, outputs=("logits",))
    assert ops(model) == ["Conv", "GlobalAveragePool", "Flatten"]
    logits = run(model, image=np.ones((1, 1, 2, 2), np.float32))[0]
    np.testing.assert_allclose(logits, [[2.5 - 0.25, -8.25 + 5]], rtol=1e-6)


def test_a_convolution_that_is_an_output_is_not_folded() -> None:
    model = specialized_model(tiny(extra_outputs=["c"]), 0.5, outputs=("logits", "c"))
    onnx.checker.check_model(model, full_check=True)
    logits, c = run(model, image=np.ones((1, 1, 2, 2), np.float32))
    np.testing.assert_allclose(logits, [[2.25, -3.25]], rtol=1e-6)
    np.testing.assert_allclose(c[0, :, 0, 0], [2.5 + 0.25, -2.75 + 1])


def test_an_output_that_depends_on_lambda_alone_is_kept() -> None:
    source = tiny()
    outputs = (*source.graph.outputs, value("gamma", [2]))
    model = specialized_model(
        replace(source, graph=replace(source.graph, outputs=outputs)), 0.5, None, None, ("logits", "gamma")
    )
    np.testing.assert_array_equal(run(model, image=np.ones((1, 1, 2, 2), np.float32))[1], [2, 1.5])


def test_a_batch_norm_after_anything_else_stays() -> None:
    assert_not_folded(convolution_and_norm(between="Relu"))


def test_a_batch_norm_on_the_image_stays() -> None:
    graph = convolution_and_norm()
    norm = onnx.NodeProto()
    norm.CopyFrom(graph.nodes[1])
    norm.input[0] = "image"
    assert_not_folded(replace(graph, nodes=(norm,)))


def test_a_batch_norm_in_training_mode_stays() -> None:
    assert_not_folded(convolution_and_norm(training_mode=1))


@pytest.mark.parametrize("missing", ["w", "gamma", "var"])
def test_a_batch_norm_that_is_not_constant_stays(missing: str) -> None:
    graph = convolution_and_norm()
    assert_not_folded(replace(graph, constants={n: v for n, v in graph.constants.items() if n != missing}))


def test_epsilon_is_1e_5_where_the_node_names_none() -> None:
    """The default in the ONNX specification of BatchNormalization."""
    graph = convolution_and_norm()
    constants = {**graph.constants, "var": np.array([0, 1e-5], np.float32)}
    folded = fold_batch_norms(replace(graph, constants=constants))
    weight = folded.constants[folded.nodes[0].input[1]]
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
    arrays = {"theta": theta, "gamma": gamma, "beta": beta, "mean": mean, "var": var}
    graph = graph_of(nodes, arrays | ({"bias": bias} if with_bias else {}), {"x": ["N", 4, 6, 6]}, ["y"])
    before = written(graph)
    folded = fold_batch_norms(graph)
    assert [node.op_type for node in folded.nodes] == ["Conv"] and written(graph) == before
    assert set(folded.constants) == set(folded.nodes[0].input[1:]), "what was folded away is still stored"
    a = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + epsilon)
    weight, shift = (folded.constants[name] for name in folded.nodes[0].input[1:])
    np.testing.assert_allclose(weight, theta * a[:, None, None, None], rtol=1e-5)
    np.testing.assert_allclose(shift, beta + ((bias if with_bias else 0) - mean) * a, rtol=1e-4, atol=1e-5)
    assert weight.dtype == shift.dtype == np.float32

    x = random.standard_normal((2, 4, 6, 6)).astype(np.float32)
    want, got = (run(assemble(each), x=x)[0] for each in (graph, folded))
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
    graph = graph_of(nodes, {"half": [0.5, 0.5]}, {"x": [2]}, ["y"])
    left = evaluate(graph)
    assert left.nodes == graph.nodes[1:]
    assert set(left.constants) == {"quarter"}
    np.testing.assert_array_equal(left.constants["quarter"], [0.25, 0.25])


def test_a_node_with_an_optional_input_left_out_is_evaluated() -> None:
    """Slice of every second value: its axes are left out, its steps are not."""
    nodes = [
        helper.make_node("Slice", ["c", "start", "end", "", "step"], ["part"]),
        helper.make_node("Add", ["part", "x"], ["y"]),
    ]
    graph = graph_of(nodes, {"c": [-2, 5, 7]}, {"x": [2]}, ["y"])
    ends = {"start": np.array([0]), "end": np.array([3]), "step": np.array([2])}
    left = evaluate(replace(graph, constants={**graph.constants, **ends}))
    assert left.nodes == graph.nodes[1:] and set(left.constants) == {"part"}
    np.testing.assert_array_equal(left.constants["part"], [-2, 7])


def test_where_nothing_is_constant_nothing_changes() -> None:
    graph = graph_of([helper.make_node("Relu", ["x"], ["y"])], {}, {"x": [2]}, ["y"])
    assert written(evaluate(graph)) == written(graph)


def test_what_is_given_is_no_input_any_more_and_overrides_a_constant() -> None:
    nodes = [helper.make_node("Mul", ["lambda", "scale"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])]
    graph = graph_of(nodes, {"scale": 3}, {"x": [1], "lambda": []}, ["y"])
    left = evaluate(graph, {"lambda": np.array(2, np.float32), "scale": np.array(5, np.float32)})
    assert [each.name for each in left.inputs] == ["x"] and graph.constants["scale"] == 3
    np.testing.assert_array_equal(left.constants["s"], 10)


def test_evaluating_in_two_steps_is_evaluating_at_once(trained_file: Path) -> None:
    """Sessions compute what depends on no input once, and the rest for each setting."""
    graph, given = read_artefact(trained_file).graph, {"lambda": np.array(0.7, np.float32)}
    assert written(evaluate(evaluate(graph), given)) == written(evaluate(graph, given))
