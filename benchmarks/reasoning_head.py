"""What reasoning labels cost at run time: a specialised file with logits and reasons against its logits alone.

    python benchmarks/reasoning_head.py [--recipe recipes/cifar10-resnet34-float.yaml] [--labels FILE] [--threads 1]

The recipe is exported untrained with a second head for the label map, and specialised. Networks take turns within each
round, batch 1, in an order that rotates; a ratio is the median over rounds of a network's time / that of logits alone
in the same round. Logits alone are timed twice, in two sessions: how far that ratio is from 1 is this machine's noise.
The verdict is what a session adds to make words of the answer, and is no part of the network. Budget: 1.02, at
ResNet-34's shape.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from tabulate import tabulate

from deploytool.export.artefact import export_untrained
from deploytool.recipe import load_recipe
from deploytool.runtime.session import Session
from deploytool.runtime.specialize import specialize
from deploytool.timing import interleaved, processor

BUDGET = 1.02
LAMBDA = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cifar10-resnet34-float.yaml"))
    parser.add_argument("--labels", type=Path, default=Path("recipes/labels/cifar10.yaml"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--int8", action="store_true", help="an INT8 network, instead of a float32 one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, file = Path(folder) / "model.onnx", Path(folder) / "specialised.onnx"
        recipe = load_recipe(arguments.recipe, [f"reasoning.labels={arguments.labels}"])
        export_untrained(recipe, source, quantize="int8" if arguments.int8 else None)
        specialize(source, LAMBDA, file)
        rows = latencies(file, arguments.threads, arguments.rounds)
        reasoning = Session(file, threads=1).metadata.reasoning
        assert reasoning is not None
    kind = "int8" if arguments.int8 else "float32"
    print(f"{arguments.recipe.name}, {kind}, {len(reasoning.labels)} reasoning labels, lambda {LAMBDA}, batch 1,")
    print(f"threads {arguments.threads}, {arguments.rounds} rounds, onnxruntime {onnxruntime.__version__},")
    print(f"{processor()}, {os.cpu_count()} CPUs\n")
    print(tabulate(rows, ["outputs", "median", "ratio", "budget", ""], tablefmt="github", disable_numparse=True))


def latencies(file: Path, threads: int, rounds: int) -> list[list[str]]:
    """The same file with different outputs, in turns; a row of the table for each."""

    def opened(*outputs: str) -> Session:
        return Session(file, threads=threads, outputs=outputs)

    alone, again, both = opened("logits"), opened("logits"), opened("logits", "reasoning")
    image = np.random.default_rng(0).random((1, *alone.metadata.shape), np.float32)
    candidates = {
        "logits": lambda: alone.run(image),
        "logits, another session": lambda: again.run(image),
        "logits and reasoning": lambda: both.run(image),
        "logits and reasoning, and the verdict": lambda: both.judge(image),
    }
    times = interleaved(list(candidates.values()), rounds=rounds, warm_up=10)
    ratios, medians = np.median(times / times[:, :1], axis=0), np.median(times, axis=0) * 1e3
    rows = []
    for name, ms, ratio in zip(candidates, medians, ratios, strict=True):
        verdict = ["", ""]
        if name == "logits and reasoning":
            verdict = [f"{BUDGET:g}x", "pass" if ratio <= BUDGET else "short"]
        rows.append([name, f"{ms:.3f} ms", f"{ratio:.4f}x", *verdict])
    return rows


if __name__ == "__main__":
    main()
