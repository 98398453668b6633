"""Damaged and hostile files end in an answer or in one line: not in another error, a crash, a hang or a full memory.

The files are examined in child processes (`tests/runtime/hostile/child.py`), which a crash ends, not the tests.
"""

import os
import runpy
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploytool.explain.explainer import Explainer
from deploytool.export.artefact import export, export_untrained
from deploytool.library.folder import Library
from deploytool.recipe import load_recipe
from deploytool.training.run import Run

CHILD = Path(__file__).parent / "hostile" / "child.py"
FOUND = [name for name in runpy.run_path(str(CHILD.with_name("found.py")))["FOUND"] if not name.startswith("sound")]
RECIPE = Path(__file__).parents[2] / "recipes" / "digits-float.yaml"
SOURCES = ("conditional", "plain", "wide", "small", "explained", "agreeing")
SEEDS = 700
SILENT_S = 60.0  # of one case on a slow machine; each takes milliseconds


@dataclass(frozen=True)
class Outcome:
    """What became of a case: `refused`, `failed`, `answered`, or how the process ended; and what else came out."""

    end: str
    faults: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def folder(
    trained_file: Path,
    plain_file: Path,
    wide_file: Path,
    trained_run: Run,
    float_explainer: Explainer,
    float_library: Library,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("sources")
    for name, file in {"conditional": trained_file, "plain": plain_file, "wide": wide_file}.items():
        (folder / f"{name}.onnx").write_bytes(file.read_bytes())
    sparse = ["model.arch=resnet8", "sparsity.kind=irregular", "sparsity.density=0.2"]
    export_untrained(load_recipe(RECIPE, sparse), folder / "small.onnx", compress=True, quantize="int8")
    export(trained_run, folder / "explained.onnx", explainer=float_explainer)
    export(trained_run, folder / "agreeing.onnx", conditioning="switch", library=float_library)
    return folder


def lines(process: subprocess.Popen[bytes], silent_s: float) -> Iterator[str]:
    """What a process prints, until it ends or is silent for too long."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        rest, deadline = b"", time.monotonic() + silent_s
        while time.monotonic() < deadline:
            if not selector.select(1.0):
                continue
            some = process.stdout.read()
            if not some:
                return
            *whole, rest = (rest + some).split(b"\n")
            yield from (line.decode() for line in whole)
            deadline = time.monotonic() + silent_s
    process.kill()


def examined(folder: Path, cases: Sequence[str], silent_s: float = SILENT_S) -> dict[str, Outcome]:
    """Examine cases; after one that ends the process, the others go on in another."""
    outcomes: dict[str, Outcome] = {}
    waiting = list(cases)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    while waiting:
        command = [sys.executable, str(CHILD), str(folder), *waiting]
        with (
            tempfile.TemporaryFile() as said,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=environment) as process,
        ):
            case, faults = "", []
            for line in lines(process, silent_s):
                word, _, rest = line.partition(" ")
                if word == "case":
                    case, faults = rest, []
                elif word == "fault":
                    faults.append(rest)
                else:
                    outcomes[case] = Outcome(rest, tuple(faults))
            process.wait()
            said.seek(0)
            error = said.read().decode(errors="replace").strip()[-300:]
        assert case, f"no case was begun: {error}"
        if case not in outcomes:
            outcomes[case] = Outcome(f"ended the process ({process.returncode}): {error}", tuple(faults))
        elif process.returncode:
            raise AssertionError(f"after {case} the process ended with {process.returncode}: {error}")
        waiting = waiting[waiting.index(case) + 1 :]
    return outcomes


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Outcome]:
    """What becomes of the files that once did harm."""
    return examined(folder, FOUND)


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once_is_refused(name: str, found: dict[str, Outcome]) -> None:
    """When the file is read, but for the groups of a convolution, which only onnxruntime compares with its weight."""
    assert found[name] == Outcome("failed" if "groups" in name else "refused")


def test_the_undamaged_files_answer(folder: Path) -> None:
    """Or else nothing here would say anything."""
    sound = {f"sound_{name}": Outcome("answered") for name in SOURCES}
    assert examined(folder, list(sound)) == sound


def test_files_damaged_at_random_end_in_an_answer_or_in_one_line(folder: Path) -> None:
    outcomes = examined(folder, [str(seed) for seed in range(SEEDS)])
    assert len(outcomes) == SEEDS
    wrong = {seed: outcome for seed, outcome in outcomes.items() if outcome.faults or " " in outcome.end}
    assert not wrong
    ends = [outcome.end for outcome in outcomes.values()]
    assert min(ends.count(end) for end in ("refused", "answered")) > SEEDS / 20, "the damage is always of one kind"
