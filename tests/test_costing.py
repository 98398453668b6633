"""`deploytool cost`: its files, its table of methods and networks, and one clear line for bad input."""

import csv
import json
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from deploytool.cli import cli
from deploytool.costing import cost_of, profile_of, workload_of, workloads_of
from deploytool.errors import CostError
from hwmodels.methods import METHODS


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["cost", *map(str, arguments)])


def run_json(*arguments: object) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_one_line_error(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stdout == "" and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def save(file: Path, size: object = 8, last: str = "Relu", zeros: int = 0) -> Path:
    """A network of two convolutions, 3 -> 8 -> 16 channels, 3x3, each at every pixel."""
    stem, conv = np.ones((8, 3, 3, 3), np.float32), np.ones((16, 8, 3, 3), np.float32)
    conv.reshape(-1)[:zeros] = 0
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "conv.weight"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node(last, ["c"], ["y"], domain="" if last == "Relu" else "com.acme"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(stem, "stem.weight"), numpy_helper.from_array(conv, "conv.weight")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), file)
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save(tmp_path / "net.onnx")


def test_a_folder_holds_the_report_in_every_form(file: Path, tmp_path: Path) -> None:
    document = run_json(file, "-o", tmp_path / "out")
    written = document.pop("files")
    assert written == {kind: str(tmp_path / "out" / f"cost.{kind}") for kind in ("json", "csv", "md", "png", "svg")}
    assert json.loads(Path(written["json"]).read_text()) == document == run_json(file)
    with Path(written["csv"]).open() as lines:
        assert [line["name"] for line in csv.DictReader(lines)] == ["stem", "conv"]
    table = Path(written["md"]).read_text()
    assert "| stem" in table and "| conv" in table and "| total" in table
    assert Path(written["png"]).read_bytes().startswith(b"\x89PNG") and "<svg" in Path(written["svg"]).read_text()
    assert "written to" in run(file, "-o", tmp_path / "out").stdout


def test_without_matplotlib_the_rest_is_written(file: Path, tmp_path: Path, monkeypatch) -> None:
    import builtins

    real = builtins.__import__

    def hidden(name: str, *arguments: object, **options: object) -> object:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", hidden)
    result = run(file, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0 and set(json.loads(result.stdout)["files"]) == {"json", "csv", "md"}
    assert result.stderr.startswith("no figure: ") and "pip install" in result.stderr and result.stderr.count("\n") == 1


def test_macs_and_delay_of_two_convolutions_by_hand(file: Path) -> None:
    """216 and 1152 weights at 64 pixels; 8 weights of 32 bits a read, 175 products a round."""
    totals = run_json(file, "--method", "pgd-at")["totals"]
    assert totals["macs"] == 64 * (216 + 1152) and totals["flops"] == 2 * totals["macs"]
    assert totals["read_ns"] == 9 * (27 + 144) and totals["mult_ns"] == 4 * 64 * (2 + 7)
    assert totals["weight_bytes"] == 4 * (216 + 1152) and totals["not_counted"] == []
    # the last Relu writes over its operand: at most 8 and 16 channels of 64 float32 are held
    assert totals["peak_activation_bytes"] == 4 * 64 * (8 + 16)


def test_compare_prices_every_method_of_one_file(file: Path) -> None:
    document = run_json(file, "--compare", "--models", 3)
    assert [row["method"] for row in document["rows"]] == [method.name for method in METHODS]
    assert document["rows"][1]["label"] == "PGD-AT:3T"
    text = run(file, "--compare", "--profile", "asic-65nm", "--profile", "horowitz-45nm").stdout
    for word in ("PGD-AT:1T", "PGD-AT:4T", "FLOAT", "OAT", "lambda fixed", "ratio", "mean", "weight MB", "energy mJ"):
        assert word in text


def test_compare_sets_files_beside_each_other(file: Path, wide_file: Path, tmp_path: Path) -> None:
    half = save(tmp_path / "half.onnx", zeros=576)
    document = run_json(file, half, wide_file, "--compare", "-o", tmp_path / "out")
    rest = document["rows"][len(METHODS) :]
    assert [(row["file"], row["width"], row["method"]) for row in rest] == [
        (str(half), None, "plain"),
        (str(wide_file), 1, "float"),
        (str(wide_file), 0.5, "float"),
    ]
    assert rest[0]["nonzero"] == 216 + 576 and rest[0]["sparse_aware_ns"] < rest[0]["delay_ns"]
    assert set(document["files"]) == {"json", "csv", "md"}
    assert [row["file"] for row in run_json(file, half, "--compare", "--method", "oat")["rows"]] == [
        str(file),
        str(half),
    ]
    assert [w.width for w in workloads_of([file, wide_file], width=0.5)] == [None, 0.5]


def test_an_operator_that_is_not_covered_is_listed(tmp_path: Path) -> None:
    document = run_json(save(tmp_path / "net.onnx", last="Fancy"))
    assert document["totals"]["not_counted"] == ["Fancy"] and document["complete"] is False
    assert document["notes"][0] == "incomplete: not counted are 1 Fancy"


def test_a_free_size_is_filled_in(tmp_path: Path, file: Path) -> None:
    free = save(tmp_path / "free.onnx", size="H")
    assert run_json(free, "--shape", "3x8x8")["totals"] == run_json(file)["totals"]
    assert_one_line_error(run(free), "--shape")
    assert_one_line_error(run(free, "--shape", "3xHx8"), "3xHx8", "3x224x224")


def test_profiles_and_their_constants(file: Path) -> None:
    assert run_json(file, "--profile", "horowitz-45nm")["totals"]["delay_ns"] is None
    both = run_json(file, "--profile", "asic-65nm", "--profile", "horowitz-45nm", "--set", "weights_from=sram_8kb")
    assert both["totals"]["delay_ns"] > 0 and both["totals"]["energy"]["weight_read_pj"] == 1368 * 32 / 64 * 10
    assert both["profile"]["name"] == "asic-65nm+horowitz-45nm"
    assert profile_of() == profile_of(["asic-65nm"])
    assert cost_of(workload_of(file), "float", profile_of((), ["n_mult = 1"])).profile.n_mult == 1


def test_a_memory_budget_gets_its_verdict(file: Path) -> None:
    assert run_json(file, "--sram-mb", 1)["fit"]["fits"] is True
    assert "SRAM of 0.006 MB: does not fit" in run(file, "--sram-mb", 0.006).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "flot"], ["'flot'", "did you mean float"]),
        (["--method", "pgd-at:0t"], ["1..10000"]),
        (["--compare", "--method", "otter"], ["'otter'", "known: plain"]),
        (["--method", "float", "--models", 3], ["pgd-at:nt alone"]),
        (["--profile", "horowitz"], ["'horowitz'", "did you mean horowitz-45nm"]),
        (["--profile", "absent.yaml"], ["absent.yaml", "No such file"]),
        (["--set", "b_w=80"], ["b_w (=80)", "1..64"]),
        (["--set", "n_bank=-4"], ["n_bank (=-4)", "positive integer"]),
        (["--set", "tau_read_ns=-9"], ["tau_read_ns (=-9", "positive number"]),
        (["--set", "n_mul=3"], ["did you mean n_mult"]),
        (["--set", "n_mult"], ["key=value"]),
        (["--profile", "horowitz-45nm", "--set", "n_mult=3"], ["horowitz-45nm lacks b_io"]),
        (["--density", "1.5"], ["density (=1.5)", "(0, 1]"]),
        (["--width", "0.5"], ["width", "leave it out"]),
        (["--sram-mb", "0"], ["--sram-mb (=0)", "positive"]),
        (["--sram-mb", "nan"], ["--sram-mb (=nan)", "positive"]),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(file: Path, tmp_path: Path, arguments: list, words: list) -> None:
    assert_one_line_error(run(file, *arguments, "-o", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_what_is_no_onnx_file_gets_one_line(tmp_path: Path, file: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    assert_one_line_error(run(tmp_path / "text.onnx"), "no ONNX model")
    assert_one_line_error(run(file, tmp_path / "none.onnx", "--compare"), "none.onnx", "No such file")


@pytest.mark.parametrize("arguments", [[], ["a.onnx", "b.onnx"], ["a.onnx", "--method", "oat", "--method", "float"]])
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
    assert run("a.onnx", "--compare", "--sram-mb", "1").exit_code == 2


def test_errors_of_hwmodels_become_those_of_deploytool(tmp_path: Path) -> None:
    with pytest.raises(CostError, match="No such file"):
        workload_of(tmp_path / "none.onnx")
    with pytest.raises(CostError, match="key=value"):
        profile_of((), ["b_w"])


def test_a_report_takes_no_time(resnet34_file: Path) -> None:
    """Under 0.2 s after import with the file read, which is at the mercy of the disk; pricing alone is a fraction."""
    workload = workload_of(resnet34_file)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        cost_of(workload, "float").to_dict()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1
