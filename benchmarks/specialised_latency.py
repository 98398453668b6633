"""Does a specialised FLOAT model run as fast as a plain one? Ratios of inferences interleaved in one process.

    python benchmarks/specialised_latency.py [--recipe recipes/cifar10-resnet20-float.yaml] [--threads 1] [--batch 1]

The plain model is the same backbone trained by `standard`, exported the same way. Each round times every candidate
once, in an order that rotates; a ratio is the median over rounds of candidate time / plain time of that round. The
plain file is timed twice, as two separate sessions: how far that ratio is from 1 is the noise of this machine.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from tabulate import tabulate

from deploytool.export.artefact import export_untrained
from deploytool.recipe import load_recipe
from deploytool.runtime.session import Session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cifar10-resnet20-float.yaml"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=400)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        float_file, plain_file = Path(folder) / "float.onnx", Path(folder) / "plain.onnx"
        export_untrained(load_recipe(arguments.recipe), float_file)
        export_untrained(load_recipe(arguments.recipe, ["method={name: standard}"]), plain_file)
        sizes = float_file.stat().st_size / plain_file.stat().st_size
        conditional = Session(float_file, threads=arguments.threads)
        plain, again = (Session(plain_file, threads=arguments.threads) for _ in range(2))
    image = np.random.default_rng(0).random((arguments.batch, *plain.metadata.shape), np.float32)
    candidates: dict[str, Callable[[], object]] = {"plain": lambda: plain(image), "plain, again": lambda: again(image)}
    for lam in (0.0, 0.2, 0.5, 1.0):
        candidates[f"specialised, lambda {lam:g}"] = lambda lam=lam: conditional(image, lam)
    candidates["generic graph, lambda 0.5"] = lambda: conditional.generic(image, 0.5)
    times = interleaved(list(candidates.values()), arguments.rounds)
    ratios = np.median(times / times[:, :1], axis=0)
    p50 = np.median(times, axis=0) * 1e3
    print(f"{arguments.recipe.name}, batch {arguments.batch}, {arguments.threads} threads, {arguments.rounds} rounds,")
    print(f"onnxruntime {onnxruntime.__version__}, {os.cpu_count()} CPUs; file / plain file {sizes:.4f}\n")
    rows = [[name, f"{ms:.3f}", f"{ratio:.3f}"] for name, ms, ratio in zip(candidates, p50, ratios, strict=True)]
    print(tabulate(rows, ["network", "p50 ms", "ratio to plain"], tablefmt="github"))


def interleaved(candidates: list[Callable[[], object]], rounds: int) -> np.ndarray:
    """Seconds per (round, candidate); each round starts with another candidate."""
    times = np.zeros((rounds + 10, len(candidates)))
    for index in range(len(times)):
        for offset in range(len(candidates)):
            chosen = (index + offset) % len(candidates)
            began = time.perf_counter()
            candidates[chosen]()
            times[index, chosen] = time.perf_counter() - began
    return times[10:]  # the first rounds warm up


if __name__ == "__main__":
    main()
