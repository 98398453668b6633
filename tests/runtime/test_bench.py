"""`bench`: which figures, of which files; how fast this machine is, is not tested."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploytool import timing
from deploytool.errors import ArtefactError, InputError
from deploytool.export.artefact import export_untrained
from deploytool.recipe import load_recipe
from deploytool.runtime import bench as bench_module
from deploytool.runtime.bench import bench, prepare
from deploytool.runtime.session import Session
from deploytool.runtime.threads import available_threads

RECIPES = Path(__file__).parents[2] / "recipes"
KEYS = {
    "file", "p50_ms", "p90_ms", "p99_ms", "throughput_ips", "peak_rss_mb", "size_mb", "threads", "batch", "lambda",
    "width", "precision", "outputs", "runs",
}  # fmt: skip
QUICK = {"seconds": 0.05, "threads": 1}
NO_KNOBS = {"lambda": None, "width": None, "precision": None, "outputs": ["y"]}


@pytest.fixture(scope="module")
def reasoned_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLOAT network with reasoning labels, freshly initialised."""
    file = tmp_path_factory.mktemp("reasoned-file") / "model.onnx"
    labels = f"reasoning.labels={RECIPES / 'labels' / 'digits.yaml'}"
    export_untrained(load_recipe(RECIPES / "digits-float.yaml", ["model.arch=resnet8", labels]), file)
    return file


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that measures memory costs a second; only some tests are about it."""
    monkeypatch.setattr(bench_module, "_peak_rss_mb", lambda *arguments: 1.0)


def third_party(file: Path, shape: list[int | str], dtype: int = TensorProto.FLOAT, inputs: int = 1) -> Path:
    """Somebody else's model: the sum of its inputs, averaged over the picture."""
    names = [f"x{index}" for index in range(inputs)]
    nodes = [
        helper.make_node("Sum", names, ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, dtype, shape) for name in names]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("y", dtype, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    file.write_bytes(model.SerializeToString())
    return file


def test_the_figures_of_a_conditional_file(trained_file: Path) -> None:
    result = bench(trained_file, threads=1, batch=3, lam=0.3, seconds=0.2)
    assert set(result) == KEYS
    assert (result["file"], result["threads"], result["batch"], result["lambda"]) == (str(trained_file), 1, 3, 0.3)
    assert 0 < result["p50_ms"] <= result["p90_ms"] <= result["p99_ms"]
    assert result["throughput_ips"] > 0 and result["runs"] >= 30
    assert result["size_mb"] == pytest.approx(trained_file.stat().st_size / 1e6, abs=1e-6)
    assert result["peak_rss_mb"] > result["size_mb"]
    json.dumps(result, allow_nan=False)


def test_two_files_are_compared(trained_file: Path, plain_file: Path) -> None:
    result = bench(trained_file, plain_file, threads=1, lam=0.3, seconds=0.2)
    assert set(result) == KEYS | {"ratio_vs", "vs"} and set(result["vs"]) == KEYS
    assert result["ratio_vs"] > 0 and result["runs"] == result["vs"]["runs"]
    assert (result["file"], result["vs"]["file"]) == (str(trained_file), str(plain_file))
    assert (result["lambda"], result["vs"]["lambda"]) == (0.3, None)


def test_figures_come_from_the_times_that_a_clock_gave(
    plain_file: Path, trained_file: Path, no_probe: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock by hand: the first file takes 4 ms, the second 2 ms, in every round."""
    now = 0.0
    calls: list[str] = []

    def runner(name: str, seconds: float) -> Any:
        def run() -> None:
            nonlocal now
            now += seconds
            calls.append(name)

        return run, NO_KNOBS

    runs = {plain_file: runner("a", 0.004), trained_file: runner("b", 0.002)}
    monkeypatch.setattr(bench_module, "prepare", lambda path, *rest: runs[path])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    result = bench(plain_file, trained_file, batch=8, threads=1, seconds=0.6)
    assert result["runs"] == pytest.approx(100, abs=1)  # 0.6 s at 6 ms per round
    assert [result[f"p{q}_ms"] for q in (50, 90, 99)] == pytest.approx([4, 4, 4])
    assert result["throughput_ips"] == pytest.approx(8 / 0.004)
    assert result["vs"]["p50_ms"] == pytest.approx(2) and result["ratio_vs"] == pytest.approx(2)
    measured = calls[-2 * result["runs"] :]
    pairs = [first + second for first, second in zip(measured[::2], measured[1::2], strict=True)]
    assert pairs[:4] == ["ab", "ba", "ab", "ba"]


@pytest.mark.parametrize(("lam", "generic"), [(None, False), (0.7, False), (0.7, True)])
def test_lambda_is_zero_unless_given(lam: float | None, generic: bool, trained_file: Path, no_probe: None) -> None:
    assert bench(trained_file, lam=lam, generic=generic, **QUICK)["lambda"] == (0.0 if lam is None else lam)


@pytest.mark.parametrize("generic", [False, True])
def test_what_is_run_is_specialised_unless_generic(
    generic: bool, trained_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploytool.runtime import session as session_module

    made: list[float] = []
    real = session_module.specialized_graph
    monkeypatch.setattr(
        session_module,
        "specialized_graph",
        lambda artefact, lam, *knobs: made.append(lam) or real(artefact, lam, *knobs),
    )
    run, knobs = prepare(trained_file, 1, 2, 0.3, generic)
    (logits,) = run().values()
    assert isinstance(logits, np.ndarray) and logits.shape == (2, 10)
    assert (knobs["lambda"], made) == (0.3, [] if generic else [pytest.approx(0.3)])


@pytest.mark.parametrize("generic", [False, True])
def test_a_slimmable_file_runs_at_the_width_asked_for(generic: bool, wide_file: Path, no_probe: None) -> None:
    for asked, used in ((None, 1.0), (0.5, 0.5), (1.0, 1.0)):
        assert bench(wide_file, width=asked, generic=generic, **QUICK)["width"] == used
    run, _ = prepare(wide_file, 1, 2, 0.3, generic, 0.5)
    image = bench_module.random_images((2, 1, 8, 8))
    expected = Session(wide_file, threads=1).generic(image, 0.3, 0.5)
    np.testing.assert_allclose(run()["logits"], expected, atol=1e-4)


def test_a_file_with_two_precisions_runs_at_the_fastest_or_the_one_asked_for(
    wide_file: Path, tmp_path: Path, no_probe: None
) -> None:
    file = tmp_path / "int8.onnx"
    recipe = load_recipe(RECIPES / "digits-float.yaml", ["model.arch=resnet8"])
    export_untrained(recipe, file, quantize="int8", calibration_images=4)
    for asked, used in ((None, "int8"), ("float32", "float32"), ("int8", "int8")):
        assert bench(file, precision=asked, **QUICK)["precision"] == used
    assert bench(file, generic=True, **QUICK)["precision"] == "float32"  # what the graph as stored computes in
    result = bench(file, wide_file, precision="int8", **QUICK)
    assert (result["precision"], result["vs"]["precision"]) == ("int8", "float32")
    with pytest.raises(InputError, match=r"precision \(=int4\)|precision \(='int4'\)"):
        bench(file, precision="int4", **QUICK)
    with pytest.raises(InputError, match=r"precision \(=int8\) was given, but .* float32; leave it out"):
        bench(wide_file, precision="int8", **QUICK)


def test_width_is_for_files_that_have_it(wide_file: Path, plain_file: Path, tmp_path: Path, no_probe: None) -> None:
    with pytest.raises(InputError, match=r"width \(=0.75\) is not in .*holds 0.5, 1"):
        bench(wide_file, width=0.75, **QUICK)
    result = bench(wide_file, plain_file, width=0.5, **QUICK)
    assert (result["width"], result["vs"]["width"]) == (0.5, 1.0)
    for file in (plain_file, third_party(tmp_path / "other.onnx", [1, 3, 4, 4])):
        with pytest.raises(InputError, match=r"width \(=0.5\) was given, but .*\.onnx .*leave it out"):
            bench(file, width=0.5, **QUICK)


def test_a_plain_file_ignores_lambda(plain_file: Path, no_probe: None) -> None:
    assert bench(plain_file, lam=0.3, **QUICK)["lambda"] is None


def test_a_third_party_file_of_fixed_batch_runs_as_it_is(tmp_path: Path) -> None:
    result = bench(third_party(tmp_path / "other.onnx", [2, 3, 4, 4]), batch=2, **QUICK)
    assert set(result) == KEYS and (result["batch"], result["lambda"]) == (2, None)


@pytest.mark.parametrize("batch", [1, 5])
def test_a_third_party_file_of_free_batch_takes_any(batch: int, tmp_path: Path) -> None:
    run, knobs = prepare(third_party(tmp_path / "other.onnx", ["N", 3, 4, 4]), 1, batch, 0.5, False)
    (answer,) = run()  # type: ignore[misc]
    assert knobs == NO_KNOBS and answer.shape == (batch, 3, 1, 1)
    assert (answer >= 0).all() and (answer <= 1).all()


def test_weights_listed_among_the_inputs_are_no_inputs(tmp_path: Path, no_probe: None) -> None:
    """As files of the first ONNX versions do."""
    file = third_party(tmp_path / "old.onnx", [1, 3, 4, 4], inputs=2)
    model = onnx.load(str(file))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 3, 4, 4), np.float32), "x1"))
    file.write_bytes(model.SerializeToString())
    assert bench(file, **QUICK)["runs"] >= 30


def test_a_batch_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"batch \(=3\) does not fit .*batch 2"):
        bench(third_party(tmp_path / "other.onnx", [2, 3, 4, 4]), batch=3, **QUICK)


@pytest.mark.parametrize("shape", [["N", 3, "H", "W"], ["N", "C", 4, 4], [1, 3, 4, "W"], ["N", 0, 4, 4]])
def test_free_sizes_are_refused(shape: list[int | str], tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="free C, H or W"):
        bench(third_party(tmp_path / "other.onnx", shape), **QUICK)


@pytest.mark.parametrize(
    ("shape", "dtype"), [([1, 3, 4, 4], TensorProto.DOUBLE), ([1, 3, 4], TensorProto.FLOAT), ([], TensorProto.FLOAT)]
)
def test_an_input_that_is_no_image_is_refused(shape: list[int | str], dtype: int, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no float32 image"):
        bench(third_party(tmp_path / "other.onnx", shape, dtype), **QUICK)


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="inputs x0, x1"):
        bench(third_party(tmp_path / "other.onnx", [1, 3, 4, 4], inputs=2), **QUICK)


def test_a_graph_that_fails_at_this_batch_is_an_artefact_error(tmp_path: Path) -> None:
    """Free batch outside, a Reshape to one picture inside: common among exported files."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([1, 16]), "shape")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "one.onnx").write_bytes(model.SerializeToString())
    assert bench(tmp_path / "one.onnx", batch=1, **QUICK)["batch"] == 1
    with pytest.raises(ArtefactError, match=r"one\.onnx fails in onnxruntime") as caught:
        bench(tmp_path / "one.onnx", batch=2, **QUICK)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_model_is_refused(trained_file: Path, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    for files in ([tmp_path / "x.onnx"], [trained_file, tmp_path / "x.onnx"], [tmp_path / "absent.onnx"]):
        with pytest.raises(ArtefactError):
            bench(*files, **QUICK)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch": 0},
        {"batch": -1},
        {"seconds": 0},
        {"seconds": -1.0},
        {"seconds": float("nan")},
        {"seconds": 1e9},
        {"lam": 1.5},
        {"lam": float("nan")},
        {"threads": 0},
        {"threads": -1},
        {"threads": 5000},
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], trained_file: Path) -> None:
    with pytest.raises(InputError, match="|".join([*arguments, "lambda"])):
        bench(trained_file, **{**QUICK, **arguments})


@pytest.mark.parametrize("threads", [-1, 5000])
def test_threads_out_of_range_are_refused_for_a_third_party_file(threads: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="threads"):
        bench(third_party(tmp_path / "other.onnx", [1, 3, 4, 4]), seconds=0.05, threads=threads)


def test_threads_default_to_those_available(plain_file: Path, no_probe: None) -> None:
    assert bench(plain_file, seconds=0.05)["threads"] == available_threads()


@pytest.mark.parametrize("generic", [False, True])
def test_the_memory_probe_prints_one_number(generic: bool, trained_file: Path) -> None:
    request = {"file": str(trained_file), "threads": 1, "batch": 2, "generic": generic, **NO_KNOBS, "lambda": 0.3}
    command = [sys.executable, "-m", "deploytool.runtime.memory_probe", json.dumps(request)]
    document = json.loads(subprocess.check_output(command, text=True))
    assert set(document) == {"peak_rss_mb"}
    assert 10 < document["peak_rss_mb"] < 5000  # numpy and onnxruntime alone take tens of megabytes


def test_a_probe_that_fails_or_hangs_is_an_artefact_error(
    trained_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtefactError, match=r"absent\.onnx: the process .* failed: .*cannot be read"):
        bench_module._peak_rss_mb(tmp_path / "absent.onnx", 1, 1, NO_KNOBS, False)
    monkeypatch.setattr(bench_module, "PROBE_TIMEOUT_S", 0.01)
    with pytest.raises(ArtefactError, match="more than"):
        bench_module._peak_rss_mb(trained_file, 1, 1, {**NO_KNOBS, "lambda": 0.3}, False)


def test_images_too_large_to_hold_are_refused(plain_file: Path, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 60_000, 60_000, 60_000])],
        [helper.make_empty_tensor_value_info("y")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "huge.onnx")
    with pytest.raises(ArtefactError, match="at most"):
        bench(tmp_path / "huge.onnx", seconds=0.05)
    with pytest.raises(InputError, match="at most"):
        bench(plain_file, batch=2**26, seconds=0.05)


def test_a_module_beside_the_model_is_never_run(plain_file: Path, tmp_path: Path, monkeypatch) -> None:
    """The memory probe is a Python of its own; the current folder must not be on its module path."""
    for name in ("json", "resource", "onnx", "deploytool"):
        (tmp_path / f"{name}.py").write_text("open('owned', 'w')\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    assert bench(plain_file, seconds=0.05, threads=1)["peak_rss_mb"] > 0
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("generic", [False, True])
def test_reasons_are_computed_too_and_the_result_says_so(
    generic: bool, reasoned_file: Path, trained_file: Path, no_probe: None
) -> None:
    """What predict computes; --vs may be a file without them."""
    run, _ = prepare(reasoned_file, 1, 2, 0.3, generic)
    image = bench_module.random_images((2, 1, 8, 8))
    expected = Session(reasoned_file, outputs=("logits", "reasoning"), threads=1).run_generic(image, 0.3)
    answers = run()
    assert list(answers) == ["logits", "reasoning"]
    for name, values in answers.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-4)
    result = bench(reasoned_file, trained_file, generic=generic, **QUICK)
    assert (result["outputs"], result["vs"]["outputs"]) == (["logits", "reasoning"], ["logits"])
    result = bench(trained_file, reasoned_file, generic=generic, **QUICK)
    assert (result["outputs"], result["vs"]["outputs"]) == (["logits"], ["logits", "reasoning"])


def test_the_memory_of_all_outputs_is_measured(reasoned_file: Path) -> None:
    assert bench(reasoned_file, lam=0.3, **QUICK)["peak_rss_mb"] > 10
