"""The edge: with every training package hidden, runtime and hwmodels import and their commands work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from deploytool.cli import cli
from deploytool.explain.explainer import Explainer
from deploytool.export.artefact import export
from deploytool.training.run import Run

TRAINING = ["torch", "torchvision", "onnxscript", "onnx_ir", "safetensors", "sklearn", "matplotlib", "tensorboard"]
TRAINING += ["faiss"]
RECIPE = Path(__file__).parents[1] / "recipes" / "digits-float.yaml"

# Runs at the start of the process and of those it starts: the packages are as good as not installed.
SITECUSTOMIZE = """
import sys
HIDDEN = {hidden!r}

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""

IMPORT_ALL = """
import importlib, pkgutil, sys
for root in sys.argv[1:]:
    package = importlib.import_module(root)
    print(root)
    for module in pkgutil.walk_packages(package.__path__, root + "."):
        importlib.import_module(module.name)
        print(module.name)
"""


def without(hidden: list[str], folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python where `hidden` packages cannot be found."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE.format(hidden=hidden))
    paths = [str(folder / "site"), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


def edge_json(folder: Path, *arguments: object) -> dict:
    done = without(TRAINING, folder, "-m", "deploytool", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def full_json(*arguments: object) -> dict:
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    file = tmp_path / "digit.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(file)
    return file


@pytest.mark.parametrize("package", [*TRAINING, "deploytool"])
def test_the_hiding_hides(package: str, tmp_path: Path) -> None:
    done = without([package], tmp_path, "-c", f"import numpy, {package}")
    assert done.returncode == 1 and f"No module named '{package}'" in done.stderr


def test_every_module_of_the_edge_imports_without_training_packages(tmp_path: Path) -> None:
    done = without(TRAINING, tmp_path, "-c", IMPORT_ALL, "deploytool.runtime", "hwmodels", "deploytool.report")
    assert done.returncode == 0, done.stderr
    edge = {"deploytool.runtime.session", "deploytool.runtime.memory_probe", "hwmodels.report", "hwmodels.profile"}
    assert edge <= set(done.stdout.split())


def test_predict_answers_as_it_does_beside_torch(trained_file: Path, digit: Path, tmp_path: Path) -> None:
    arguments = ["predict", trained_file, digit, "--lambda", 0.3, "--top", 10]
    (edge,), (full,) = (
        document["predictions"] for document in (edge_json(tmp_path, *arguments), full_json(*arguments))
    )
    assert edge["class"] == full["class"] and len(edge["top"]) == 10
    assert edge["probability"] == pytest.approx(full["probability"], abs=1e-6)
    assert sum(candidate["probability"] for candidate in edge["top"]) == pytest.approx(1, abs=1e-5)


def test_predict_draws_maps_without_torch(
    trained_run: Run, float_explainer: Explainer, digit: Path, tmp_path: Path
) -> None:
    export(trained_run, tmp_path / "model.onnx", explainer=float_explainer)
    arguments = ["predict", tmp_path / "model.onnx", digit, "--lambda", 0.3, "--saliency"]
    (edge,) = edge_json(tmp_path, *arguments, tmp_path / "edge")["predictions"]
    (full,) = full_json(*arguments, tmp_path / "full")["predictions"]
    assert Path(edge["saliency"]).read_bytes() == Path(full["saliency"]).read_bytes()


def test_specialize_writes_a_file_that_answers_alike(trained_file: Path, digit: Path, tmp_path: Path) -> None:
    special = tmp_path / "special.onnx"
    result = edge_json(tmp_path, "specialize", trained_file, "--lambda", 0.7, "-o", special)
    assert result["max_abs_error"] <= 1e-4
    fixed = full_json("predict", special, digit)["predictions"][0]
    free = full_json("predict", trained_file, digit, "--lambda", 0.7)["predictions"][0]
    assert fixed["class"] == free["class"]
    assert fixed["probability"] == pytest.approx(free["probability"], abs=1e-4)


def test_bench_measures_its_memory_probe_included(trained_file: Path, tmp_path: Path) -> None:
    result = edge_json(tmp_path, "bench", trained_file, "--threads", 1)
    assert 0 < result["p50_ms"] <= result["p99_ms"] and result["peak_rss_mb"] > 1
    assert result["size_mb"] == pytest.approx(trained_file.stat().st_size / 1e6, abs=1e-6)


def test_a_sweep_without_matplotlib_writes_its_table_and_says_how_to_get_a_figure(
    trained_file: Path, tmp_path: Path
) -> None:
    arguments = ["bench", trained_file, "--sweep", "--lambda", "0,1", "--threads", 1, "-o", tmp_path / "swept"]
    done = without(TRAINING, tmp_path, "-m", "deploytool", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1 and "matplotlib" in done.stderr
    assert done.stderr.endswith("pip install 'deploytool[train]'\n")
    result = json.loads(done.stdout)
    assert set(result["files"]) == {"json", "md"} == {file.suffix[1:] for file in (tmp_path / "swept").iterdir()}
    assert [row["lambda"] for row in result["rows"]] == [0, 1]


def test_cost_prices_as_it_does_beside_torch(trained_file: Path, tmp_path: Path) -> None:
    assert edge_json(tmp_path, "cost", trained_file) == full_json("cost", trained_file)


def test_training_asks_for_the_extra_in_one_line(tmp_path: Path) -> None:
    done = without(TRAINING, tmp_path, "-m", "deploytool", "train", RECIPE)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "pip install 'deploytool[train]'" in done.stderr
    assert all(package in done.stderr for package in TRAINING)


def test_hwmodels_needs_neither_deploytool_nor_torch(trained_file: Path, tmp_path: Path) -> None:
    hidden = [*TRAINING, "deploytool"]
    imported = without(hidden, tmp_path, "-c", IMPORT_ALL, "hwmodels")
    assert imported.returncode == 0, imported.stderr
    code = "import json, sys, hwmodels; print(json.dumps(hwmodels.cost(sys.argv[1]).to_dict()))"
    priced = without(hidden, tmp_path, "-c", code, trained_file)
    assert priced.returncode == 0, priced.stderr
    assert json.loads(priced.stdout) == full_json("cost", trained_file)
