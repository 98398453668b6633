"""Any setting at plain speed: what lambda, width and INT8 cost beside a plain network, and whether that is in budget.

    python benchmarks/settings_latency.py [--recipe recipes/cifar10-resnet34-float.yaml] [--threads 1] [--int8]

The plain network is the same backbone trained by `standard`; all files are exported untrained. Each round times every
network once, in an order that rotates, at batch 1; a ratio is the median over rounds of a network's time / the plain
one's in that round. The plain file is timed twice, in two sessions: how far that ratio is from 1 is this machine's
noise. Budgets are those of ResNet-34's shape.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from tabulate import tabulate

from deploytool.export.artefact import export_untrained
from deploytool.recipe import load_recipe
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.partial import specialized_graph
from deploytool.runtime.session import Session
from deploytool.timing import interleaved, processor

LAMBDAS = (0.0, 0.2, 0.5, 1.0)
FRESH = np.linspace(0.03, 0.97, 12).tolist()
BUDGETS = {"lambda": 1.02, "width": 0.28, "int8": 1 / 2.5, "int8 width": 0.12, "file": 1.02, "int8 file": 0.27}
SPECIALISE_S, FIRST_MS, SWITCH_MS, MEMORY = 0.25, 5.0, 1.0, 4.5

# Peak memory counts from the start of a process: each is measured in one of its own.
MEMORY_PROBE = """
import sys
import numpy as np
from deploytool.runtime.memory_probe import peak_rss_bytes
from deploytool.runtime.session import Session
session = Session(sys.argv[1], threads=int(sys.argv[2]), cache_mb=1e6, background=False)
image = np.zeros((1, *session.metadata.shape), np.float32)
lambdas = [float(lam) for lam in sys.argv[3:]]
session.warm(lambdas)
for lam in lambdas:
    session(image, lam)
print(peak_rss_bytes())
"""


class Line(NamedTuple):
    """A line of the table: what was measured, the time or size itself, and the figure that has a budget."""

    what: str
    measured: str
    figure: float | None
    unit: str = "x"
    budget: float | None = None

    def cells(self) -> list[str]:
        figure = "" if self.figure is None else f"{self.figure:.3f}{self.unit}"
        if self.budget is None or self.figure is None:
            return [self.what, self.measured, figure, "", ""]
        verdict = "pass" if self.figure <= self.budget else "short"
        return [self.what, self.measured, figure, f"{self.budget:g}{self.unit}", verdict]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cifar10-resnet34-float.yaml"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--int8", action="store_true", help="INT8 networks, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = export_files(arguments.recipe, Path(folder), arguments.int8)
        lines = latencies(files, arguments.threads, arguments.rounds)
        lines += specialising(files["float"], arguments.threads)
        lines += first_answers(files["float"], arguments.threads)
        lines += [switching(files["float"], arguments.threads), memory(files["float"], arguments.threads)]
        lines += sizes(files)
    print(f"{arguments.recipe.name}, batch 1, threads {arguments.threads}, {arguments.rounds} rounds,")
    print(f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}, {processor()}, {os.cpu_count()} CPUs\n")
    heads = ["what", "measured", "figure", "budget", ""]
    print(tabulate([line.cells() for line in lines], heads, tablefmt="github", disable_numparse=True))


def export_files(recipe: Path, folder: Path, int8: bool) -> dict[str, Path]:
    """Export the recipe untrained: its FLOAT network, the plain one, a slimmable one, that for INT8."""
    changes = {"float": [], "plain": ["method={name: standard}"], "slim": ["model.widths=[0.25, 0.5, 0.75, 1.0]"]}
    files = {name: folder / f"{name}.onnx" for name in changes}
    for name, file in files.items():
        export_untrained(load_recipe(recipe, changes[name]), file)
    if int8:
        files["int8"] = folder / "int8.onnx"
        export_untrained(load_recipe(recipe, ["model.widths=[0.5, 1.0]"]), files["int8"], quantize="int8")
    return files


def latencies(files: dict[str, Path], threads: int, rounds: int) -> list[Line]:
    """Every way to run the network, in turns."""

    def opened(name: str, **options: object) -> Session:
        return Session(files[name], threads=threads, cache_mb=1e6, background=False, **options)

    plain, again, conditional, slim = (opened(name) for name in ("plain", "plain", "float", "slim"))
    image = np.random.default_rng(0).random((1, *plain.metadata.shape), np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    stock = onnxruntime.InferenceSession(str(files["float"]), options, providers=["CPUExecutionProvider"])
    feed = {"image": image, "lambda": np.array(0.5, np.float32)}
    candidates: dict[str, tuple[Callable[[], object], float | None]] = {
        "plain network": (lambda: plain(image), None),
        "the same file in a second session: this machine's noise": (lambda: again(image), None),
    }
    for lam in LAMBDAS:
        candidates[f"specialised, lambda {lam:g}"] = (lambda lam=lam: conditional(image, lam)), BUDGETS["lambda"]
    candidates["specialised, width 0.5"] = (lambda: slim(image, 0.5, 0.5)), BUDGETS["width"]
    if "int8" in files:
        int8 = opened("int8", precision="int8")
        candidates["int8"] = (lambda: int8(image, 0.5)), BUDGETS["int8"]
        candidates["int8, width 0.5"] = (lambda: int8(image, 0.5, 0.5)), BUDGETS["int8 width"]
    candidates["graph as stored, lambda an input, in Session"] = (lambda: conditional.generic(image, 0.5)), None
    candidates["the same in stock onnxruntime"] = (lambda: stock.run(None, feed)), None
    times = interleaved([run for run, _ in candidates.values()], rounds=rounds, warm_up=10)
    ratios, medians = np.median(times / times[:, :1], axis=0), np.median(times, axis=0) * 1e3
    return [
        Line(name, f"{ms:.3f} ms", ratio, budget=budget)
        for (name, (_, budget)), ms, ratio in zip(candidates.items(), medians, ratios, strict=True)
    ]


def specialising(file: Path, threads: int) -> list[Line]:
    """A plain graph of a lambda, alone and until a session can run it: the first time in a process, and later ones."""
    artefact = read_artefact(file)
    width = artefact.metadata.widths[-1]
    session = Session(artefact, threads=threads, background=False)
    ways: dict[str, Callable[[float], object]] = {
        "specialising, graph to graph": lambda lam: specialized_graph(artefact, lam, None, width),
        "specialising, until the network can run": lambda lam: session.warm([lam]),
    }
    lines = []
    for what, specialise in ways.items():
        seconds = [seconds_of(specialise, lam) for lam in FRESH[:6]]
        lines.append(Line(f"{what}, first of a process", "", seconds[0], " s", SPECIALISE_S))
        lines.append(Line(f"{what}, median of later ones", "", float(np.median(seconds[1:])), " s", SPECIALISE_S))
    return lines


def first_answers(file: Path, threads: int) -> list[Line]:
    """The first answer at a new lambda, minus one of the graph as stored: at rest, and while another is made."""
    session = Session(file, threads=threads)
    image = np.random.default_rng(0).random((1, *session.metadata.shape), np.float32)
    rows = []
    for lam in FRESH:
        while session.counters().waiting:
            time.sleep(0.01)
        session.generic(image, lam)  # wakes the processor up
        stored, again = (seconds_of(session.generic, image, lam) for _ in range(2))
        first, busy = (seconds_of(session, image, new) for new in (lam, lam + 1e-3))
        rows.append([again - stored, first - stored, busy - stored])
    (noise, median, busy), (most_noise, most, _) = (f(rows, axis=0) * 1e3 for f in (np.median, np.max))
    what, count = "first answer for a new lambda - graph as stored", len(rows)
    return [
        Line(f"{what}, median of {count}", f"noise {noise:.3f} ms", median, " ms", FIRST_MS),
        Line(f"{what}, most of {count}", f"noise {most_noise:.3f} ms", most, " ms", FIRST_MS),
        Line(f"{what}, while another is specialised, median", "", busy, " ms", FIRST_MS),
    ]


def switching(file: Path, threads: int) -> Line:
    """A call at the other one of two cached lambdas, minus a call at the same one."""
    session = Session(file, threads=threads, cache_mb=1e6, background=False)
    image = np.random.default_rng(0).random((1, *session.metadata.shape), np.float32)
    lambdas = [0.2, 0.8]
    session.warm(lambdas)

    def stay() -> None:
        session(image, lambdas[0])

    def switch() -> None:
        lambdas.reverse()
        session(image, lambdas[0])

    times = interleaved([stay, switch], rounds=200, warm_up=10) * 1e3
    difference = float(np.median(times[:, 1] - times[:, 0]))
    p50 = np.median(times, axis=0)
    return Line("switching between cached lambdas", f"{p50[1]:.3f} - {p50[0]:.3f} ms", difference, " ms", SWITCH_MS)


def memory(file: Path, threads: int) -> Line:
    """Peak memory of a process with four cached lambdas, over that with one."""
    peaks = []
    for lambdas in ([0.2], [0.2, 0.4, 0.6, 0.8]):
        command = [sys.executable, "-c", MEMORY_PROBE, str(file), str(threads), *map(str, lambdas)]
        peaks.append(int(subprocess.check_output(command, text=True)) / 1e6)
    measured = f"{peaks[1]:.0f} / {peaks[0]:.0f} MB"
    return Line("peak memory with four cached lambdas / with one", measured, peaks[1] / peaks[0], "x", MEMORY)


def sizes(files: dict[str, Path]) -> list[Line]:
    """Files over the plain one."""
    plain = files["plain"].stat().st_size
    names = {"float": "file of one width", "slim": "file of four widths", "int8": "int8 file of two widths"}
    lines = []
    for name, what in names.items():
        if name in files:
            size = files[name].stat().st_size
            budget = BUDGETS["int8 file" if name == "int8" else "file"]
            lines.append(Line(f"{what} / plain file", f"{size / 1e6:.2f} MB", size / plain, budget=budget))
    return lines


def seconds_of(run: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
