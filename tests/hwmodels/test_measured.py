"""Profiles of onnxruntime joined to layers: hand-made ones, and real ones of graphs in every form it rewrites."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from scipy import stats

from deploytool.cli import cli
from deploytool.export.artefact import export_untrained
from deploytool.recipe import load_recipe
from hwmodels.activations import Flow, Step
from hwmodels.errors import MeasureError
from hwmodels.layers import Layer
from hwmodels.measured import Event, Run, join, marked, measure, read_profile, spearman
from hwmodels.measured_report import MeasuredReport, render
from hwmodels.report import price
from hwmodels.workload import Workload, read_workload

RECIPES = Path(__file__).parents[2] / "recipes"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


def run_json(*arguments: object) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_one_line_error(result: Result, *words: str) -> None:
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def node(name: str, op: str, us: float) -> dict:
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "ts": 0, "args": {"op_name": op}}


def end_of_run(us: float) -> dict:
    return {"cat": "Session", "name": "model_run", "dur": us, "ts": 0, "args": {}}


@pytest.fixture
def chain() -> Workload:
    """Image -> a (convolution) -> ReLU -> b (convolution) -> Add with the ReLU -> ReLU -> head (linear)."""
    layers = (
        Layer("a", "conv", 4, 3, (3, 3), 64, weight_bits=32),
        Layer("b", "conv", 4, 4, (3, 3), 64, weight_bits=32),
        Layer("head", "linear", 10, 256, (), 1, weight_bits=32),
    )
    steps = (
        Step("a", "Conv", ("x",), ("t0",)),
        Step("", "Relu", ("t0",), ("t1",)),
        Step("b", "Conv", ("t1",), ("t2",)),
        Step("", "Add", ("t2", "t1"), ("t3",)),
        Step("", "Relu", ("t3",), ("t4",)),
        Step("head", "Gemm", ("t4",), ("y",)),
    )
    flow = Flow(steps, {}, ("x",), ("y",))
    return Workload("chain.onnx", layers, {}, {}, ("x",), {}, flow=flow, images={"x": (1, 3, 8, 8)})


def test_a_profile_is_read_run_by_run() -> None:
    document = [
        {"cat": "Session", "name": "session_initialization", "dur": 9, "args": {}},
        {**node("before", "Conv", 1), "name": "before_fence_before"},
        node("a", "Conv", 5),
        node("b", "Relu", 2),
        end_of_run(9),
        node("a", "Conv", 7),
        end_of_run(11),
        node("a", "Conv", 99),  # of a run that did not end
    ]
    first, second = read_profile(json.dumps(document))
    assert first == Run((Event("a", "Conv", 5000.0), Event("b", "Relu", 2000.0)), 9000.0)
    assert second == Run((Event("a", "Conv", 7000.0),), 11000.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "7",
        "null",
        "[7]",
        '{"a": 1}',
        json.dumps([node("a", "Conv", 1)])[:-9],
        json.dumps([{**node("a", "Conv", 1), "args": {}}]),
        json.dumps([{**node("a", "Conv", 1), "args": None}]),
        json.dumps([node("a", "Conv", -1), end_of_run(1)]),
        json.dumps([{**node("a", "Conv", 1), "dur": "soon"}, end_of_run(1)]),
        json.dumps([node("a", "Conv", float("nan")), end_of_run(1)]),
        json.dumps([end_of_run(float("inf"))]),
        "[" * 100_000,
    ],
)
def test_a_damaged_profile_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(MeasureError, match=r"^the profile of net\.onnx (is damaged|holds no)") as caught:
        read_profile(text, "net.onnx")
    assert "\n" not in str(caught.value)


def test_operators_join_by_mark_by_tensor_and_by_walking_back(chain: Workload) -> None:
    def one(a: float, b: float) -> Run:
        events = (
            Event("t1_nchwc", "Conv", a),  # took in the ReLU: its name is the ReLU's output
            Event("t4_nchwc", "Conv", b),  # took in Add and ReLU; `a` is behind it as well, and taken
            Event("ReorderOutput", "ReorderOutput", 3.0),
            Event("hwmodels#5#_token_7", "QGemm", 4.0),
        )
        return Run(events, a + b + 10)

    measured = join(chain, [one(10, 20), one(12, 26), one(11, 90)])
    assert measured.layer_ns == {"a": 11, "b": 26, "head": 4}
    assert measured.other_ns == {"ReorderOutput": 3} and not measured.unmeasured and not measured.leftovers
    assert (measured.operators_ns, measured.total_ns, measured.runs) == (45, 48, 3)  # 37, 45, 108


def test_what_is_not_joined_is_listed(chain: Workload) -> None:
    events = (Event("hwmodels#0#", "FusedConv", 10.0), Event("mystery", "Conv", 7.0), Event("hwmodels#3#", "Add", 1.0))
    measured = join(chain, [Run((*events, Event("hwmodels#99#", "Gemm", 2.0)), 25.0)])
    assert measured.layer_ns == {"a": 10} and measured.unmeasured == ("b", "head")
    assert [(each.name, each.op, each.ns) for each in measured.leftovers] == [
        ("mystery", "Conv", 7),
        ("hwmodels#99#", "Gemm", 2),
    ]
    assert measured.other_ns == {"Conv": 7, "Add": 1, "Gemm": 2}
    assert sum(measured.layer_ns.values()) + sum(measured.other_ns.values()) == measured.operators_ns == 20
    report = MeasuredReport(price(chain), measured)
    text = render(report)
    assert "not in the profile: b, head" in text and "mystery (Conv" in text
    rows = {row["name"]: row for row in report.rows()}
    assert rows["b"]["measured_ns"] is None and rows["b"]["share"] is None and rows["b"]["gflops"] is None
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["measured"]["leftovers"][0]["name"] == "mystery"


def test_a_layer_in_several_operators_is_their_sum(chain: Workload) -> None:
    events = (Event("hwmodels#2#", "MatMulInteger", 5.0), Event("hwmodels#2#_scale", "Mul", 2.0))
    assert join(chain, [Run(events, 8.0)]).layer_ns == {"b": 7}


def test_the_report_by_hand(chain: Workload) -> None:
    events = (Event("hwmodels#0#", "Conv", 1000.0), Event("hwmodels#2#", "Conv", 2000.0), Event("x", "Relu", 500.0))
    run = Run((*events, Event("hwmodels#5#", "Gemm", 500.0)), 5000.0)
    bench = {"p50_ms": 0.004, "p99_ms": 0.01, "peak_rss_mb": 50.0, "size_mb": 0.1}
    report = MeasuredReport(price(chain), join(chain, [run]), bench)
    first = report.rows()[0]
    assert first["macs"] == 4 * 27 * 64 and first["gflops"] == 2 * 6912 / 1000 and first["share"] == 0.25
    # eq. 7: 108, 144 and 2560 weights; 8 in a read, 175 in a multiplication
    assert [row["predicted_ns"] for row in report.rows()] == [14 * 9 + 256, 18 * 9 + 256, 320 * 9 + 15 * 4]
    totals = report.totals()
    assert totals["operators_of_run"] == 0.8 and totals["layers_ns"] == 3500 and totals["p99_ms"] == 0.01
    assert totals["gflops"] == 2 * (6912 + 9216 + 2560) / 4000
    assert report.rank_correlation() == -0.5  # ranks 1 2 3 and 2 3 1: 1 - 6 (1 + 1 + 4) / (3 * 8)
    text = render(report, "github")
    assert "| a " in text and "Spearman): -0.500" in text and "p99 0.010 ms" in text and "80.0%" in text


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [30, 20, 10], -1.0),
        ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], 0.8207826816681233),  # scipy's documentation
        ([1, 1, 2], [1, 2, 3], 0.8660254037844387),  # ranks 1.5 1.5 3 and 1 2 3: 1.5 / sqrt(1.5 * 2)
        ([1, 2, 2, 3], [1, 1, 2, 2], 0.7071067811865476),  # 1 2.5 2.5 4 and 1.5 1.5 3.5 3.5: 3 / sqrt(4.5 * 4)
        ([7, 7], [1, 2], None),
        ([1], [1], None),
        ([], [], None),
    ],
)
def test_rank_correlation_by_hand(first: list, second: list, expected: float | None) -> None:
    found = spearman(first, second)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-12))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    found = spearman(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-9)


def test_rank_correlation_needs_pairs() -> None:
    with pytest.raises(MeasureError, match="1 numbers"):
        spearman([1], [1, 2])


def assert_all_joined(file: Path, operators: set[str] = frozenset()) -> None:
    workload = read_workload(file)
    (measured,) = measure([file.read_bytes()], [workload], runs=2, warm_up=1)
    assert set(measured.layer_ns) == {layer.name for layer in workload.layers}
    assert not measured.unmeasured and not measured.leftovers and measured.runs == 2
    assert not any("Conv" in op or "Gemm" in op or "MatMul" in op for op in measured.other_ns), measured.other_ns
    assert operators <= set(measured.other_ns)
    assert 0 < measured.operators_ns <= measured.total_ns
    assert not list(Path(tempfile.gettempdir()).glob("hwmodels-*"))


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet", "lenet"])
def test_every_layer_of_our_networks_is_found(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file = tmp_path / "model.onnx"
    export_untrained(load_recipe(RECIPES / "digits-standard.yaml", [f"model.arch={arch}"]), file)
    assert_all_joined(file)


def test_every_layer_of_a_trained_resnet8_is_found(
    plain_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert_all_joined(plain_file)


def test_every_layer_of_an_int8_network_is_found(trained_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run("export", trained_run.path, "-o", tmp_path / "q.onnx", "--quantize", "int8").exit_code == 0
    document = run_json("specialize", tmp_path / "q.onnx", "--lambda", 0.5, "-o", tmp_path / "int8.onnx")
    assert document["precision"] == "int8"
    assert_all_joined(tmp_path / "int8.onnx", {"QLinearAdd"})


@pytest.mark.parametrize("named", [True, False])
def test_every_layer_of_torchvisions_resnet18_is_found(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file = tmp_path / "resnet18.onnx"
    network = torchvision.models.resnet18(weights=None).eval()
    torch.onnx.export(network, (torch.rand(1, 3, 32, 32),), file, dynamo=False)
    if not named:
        model = onnx.load(file)
        for each in model.graph.node:
            each.name = "same"
        onnx.save(model, file)
    assert_all_joined(file)


def awkward(folder: Path) -> Path:
    """Fusions of all kinds: Clip, Swish, Add and ReLU, Pad, batch norm, a shared weight, MatMul with Add."""
    random = np.random.default_rng(0)
    shapes = {"a": (16, 3, 3, 3), "b": (16, 16, 3, 3), "t": (16, 8, 2, 2), "d": (8, 1, 3, 3), "m": (8, 10), "mb": (10,)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {"lo": np.array(0, np.float32), "hi": np.array(6, np.float32), "s": np.ones(8, np.float32)}
    arrays["pads"] = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["1"], pads=[1] * 4),
        helper.make_node("Clip", ["1", "lo", "hi"], ["2"]),
        helper.make_node("Conv", ["2", "b"], ["3"], pads=[1] * 4),
        helper.make_node("Sigmoid", ["3"], ["4"]),
        helper.make_node("Mul", ["3", "4"], ["5"]),
        helper.make_node("Conv", ["5", "b"], ["6"], pads=[1] * 4),
        helper.make_node("Add", ["6", "5"], ["7"]),
        helper.make_node("Relu", ["7"], ["8"]),
        helper.make_node("ConvTranspose", ["8", "t"], ["9"], strides=[2, 2]),
        helper.make_node("Pad", ["9", "pads"], ["10"]),
        helper.make_node("Conv", ["10", "d"], ["11"], group=8),
        helper.make_node("BatchNormalization", ["11", "s", "s", "s", "s"], ["12"]),
        helper.make_node("Relu", ["12"], ["12r_nchwc"]),
        helper.make_node("GlobalAveragePool", ["12r_nchwc"], ["13"]),
        helper.make_node("Flatten", ["13"], ["14"]),
        helper.make_node("MatMul", ["14", "m"], ["15"]),
        helper.make_node("Add", ["15", "mb"], ["16"]),
        helper.make_node("Relu", ["16"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    file = folder / "awkward.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
    return file


def test_every_layer_of_an_awkward_network_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert_all_joined(awkward(tmp_path))


def test_marking_changes_names_of_nodes_alone(tmp_path: Path) -> None:
    file = awkward(tmp_path)
    data = file.read_bytes()
    model, copy = onnx.load_model_from_string(data), onnx.load_model_from_string(marked(data, read_workload(file)))
    assert len({each.name for each in copy.graph.node}) == len(copy.graph.node)
    for each in (*model.graph.node, *copy.graph.node):
        each.name = ""
    assert model.SerializeToString(deterministic=True) == copy.SerializeToString(deterministic=True)


def test_networks_take_turns(tmp_path: Path) -> None:
    file = awkward(tmp_path)
    workload = read_workload(file)
    found = measure([file.read_bytes()] * 2, [workload, replace(workload, file="again")], runs=3, warm_up=0)
    assert [each.runs for each in found] == [3, 3] and found[1].workload.file == "again"


def test_bad_arguments_are_refused(trained_file: Path, chain: Workload) -> None:
    data = trained_file.read_bytes()
    with pytest.raises(MeasureError, match="takes lambda beside its image"):
        measure([data], [read_workload(trained_file)])
    with pytest.raises(MeasureError, match="runs \\(=0\\)"):
        measure([], [], runs=0)
    with pytest.raises(MeasureError, match="threads \\(=0\\)"):
        measure([data], [chain], threads=0)
    with pytest.raises(MeasureError, match=r"^chain\.onnx is refused by onnxruntime: [^\n]*$"):
        measure([onnx.ModelProto().SerializeToString()], [chain])


def test_cost_measures_a_conditional_file(trained_file: Path, tmp_path: Path) -> None:
    options = ["--measure", "--threads", 1, "--lambda", 0.25, "-o", tmp_path / "out"]
    document = run_json("cost", trained_file, *options)
    assert document["file"] == str(trained_file) and document["settings"]["lambda"] == 0.25
    assert document["method"] == "fixed" and not document["measured"]["unmeasured"]
    assert all(row["measured_ns"] > 0 and row["gflops"] > 0 for row in document["layers"])
    priced = run_json("cost", trained_file, "--method", "fixed")
    assert [(row["macs"], row["predicted_ns"]) for row in document["layers"]] == [
        (row["macs"], row["delay_ns"]) for row in priced["layers"]
    ]
    totals = document["totals"]
    assert totals["p99_ms"] >= totals["p50_ms"] > 0 and totals["peak_rss_mb"] > 10
    assert totals["size_mb"] == pytest.approx(trained_file.stat().st_size / 1e6, abs=1e-6)
    assert -1 <= document["rank_correlation"] <= 1
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"measured.json", "measured.csv", "measured.md"}


def test_cost_measures_files_of_others(tmp_path: Path) -> None:
    result = run("cost", awkward(tmp_path), "--measure", "--threads", 1)
    assert result.exit_code == 0 and "rank correlation" in result.stdout and "GFLOP/s" in result.stdout


def test_cost_measures_at_a_given_size(tmp_path: Path) -> None:
    model = onnx.load(awkward(tmp_path))
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "size"
    onnx.save(model, tmp_path / "open.onnx")
    assert_one_line_error(run("cost", tmp_path / "open.onnx", "--measure"), str(tmp_path / "open.onnx"), "--shape")
    found = run_json("cost", tmp_path / "open.onnx", "--measure", "--threads", 1, "--shape", "3x32x32")
    assert found["layers"][0]["macs"] == 16 * 27 * 32 * 32 and found["totals"]["p50_ms"] > 0


def test_bad_commands_are_refused_in_one_line(trained_file: Path, plain_file: Path, tmp_path: Path) -> None:
    assert_one_line_error(run("cost", tmp_path / "none.onnx", "--measure"), "none.onnx", "cannot be read")
    assert_one_line_error(run("cost", trained_file, "--measure", "--lambda", 2), "lambda (=2", "[0, 1]")
    assert_one_line_error(run("cost", plain_file, "--measure", "--lambda", 0.5), "leave out --lambda")
    assert_one_line_error(run("cost", awkward(tmp_path), "--measure", "--lambda", 0.5), "leave out --lambda")
    for options in (["--measure", "--compare"], ["--measure", "--method", "float"], ["--threads", 1], ["--lambda", 0]):
        assert run("cost", trained_file, *options).exit_code == 2
