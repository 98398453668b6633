"""What saliency maps cost at run time: a surrogate explainer beside a classifier, and RISE on the same classifier.

    OMP_NUM_THREADS=1 python benchmarks/saliency.py [--recipe recipes/cifar10-resnet20-float.yaml] [--masks 4000]

The recipe is exported untrained, an untrained explainer with two sets of batch norms beside it, and specialised at
lambda 0.5; all run in onnxruntime through `Session`, batch 1, one thread. Networks take turns within each round, in an
order that rotates; a ratio is the median over rounds of a time / that of the plain forward in the same round. The plain
forward is timed twice, in two sessions: how far that ratio is from 1 is this machine's noise. RISE asks the very
session of the plain forward, its masks in batches; its ratio is its median time over that of the maps. Budgets: maps
at most 1.5 times a plain forward, RISE at least 500 times the maps.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from tabulate import tabulate

from deploytool.attacks.session_network import session_network
from deploytool.data.datasets import dataset_info
from deploytool.explain.explainer import Explainer, build_explainer
from deploytool.explain.recipe import ExplainerRecipe
from deploytool.explain.rise import rise
from deploytool.export.artefact import export_setting, random_images, write_artefact
from deploytool.export.saliency import Companion
from deploytool.models.factory import build_model
from deploytool.recipe import Recipe, load_recipe
from deploytool.runtime.session import Session
from deploytool.runtime.specialize import specialize
from deploytool.timing import interleaved, processor
from deploytool.training.run import Checkpoint

BUDGET, LEAST_RISE = 1.5, 500
LAMBDA = 0.5


def write(recipe: Recipe, arch: str, overrides: list[str], folder: Path) -> Path:
    """The specialised file of a recipe and of an explainer whose student has an architecture."""
    info = dataset_info(recipe.data)
    document = {"name": arch, "target": "untrained", "student": {"arch": arch}}
    chosen = ExplainerRecipe.make(document, overrides)
    surrogate = build_explainer(chosen, info, True).eval()
    explainer = Explainer(folder, chosen, surrogate, Checkpoint(0, {}, {}, [], info, 1, "", {"untrained": ""}))
    model, setting = build_model(recipe, info).eval(), export_setting(recipe, None, None)
    source, file = folder / f"{arch}.onnx", folder / f"{arch}-specialised.onnx"
    write_artefact(
        model, recipe, info, random_images(info), source, setting, False, surrogate=Companion(explainer, True)
    )
    specialize(source, LAMBDA, file)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cifar10-resnet20-float.yaml"))
    parser.add_argument("--students", nargs="+", default=["resnet8", "resnet20"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the explainer's recipe")
    parser.add_argument("--masks", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--rise-rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(arguments.recipe)
    with tempfile.TemporaryDirectory() as folder:
        files = {arch: write(recipe, arch, arguments.set, Path(folder)) for arch in arguments.students}
        rows = measure(files, arguments.rounds, arguments.masks, arguments.rise_rounds)
    print(f"{arguments.recipe.name}, lambda {LAMBDA}, batch 1, 1 thread, {arguments.rounds} rounds,")
    print(f"onnxruntime {onnxruntime.__version__}, {processor()}, {os.cpu_count()} CPUs\n")
    heads = ["student", "what", "median", "ratio", "budget", ""]
    print(tabulate(rows, heads, tablefmt="github", disable_numparse=True))


def measure(files: dict[str, Path], rounds: int, masks: int, rise_rounds: int) -> list[list[str]]:
    """A row of the table for each thing that was timed."""

    def opened(file: Path, *outputs: str) -> Session:
        return Session(file, threads=1, outputs=outputs, background=False)

    first = next(iter(files.values()))
    plain, again = opened(first, "logits"), opened(first, "logits")
    image = np.random.default_rng(0).random((1, *plain.metadata.shape), np.float32)
    sessions = {("", "logits"): plain, ("", "logits, another session"): again}
    for arch, file in files.items():
        sessions[arch, "saliency"] = opened(file, "saliency")
        sessions[arch, "logits and saliency"] = opened(file, "logits", "saliency")
    times = interleaved([lambda s=s: s.run(image) for s in sessions.values()], rounds=rounds, warm_up=10)
    ratios, medians = np.median(times / times[:, :1], axis=0), np.median(times, axis=0)
    rows = []
    for (arch, what), seconds, ratio in zip(sessions, medians, ratios, strict=True):
        verdict = [f"{BUDGET:g}x", "pass" if ratio <= BUDGET else "short"] if what == "saliency" else ["", ""]
        rows.append([arch, what, f"{seconds * 1e3:.3f} ms", f"{ratio:.3f}x", *verdict])
    network, pixels = session_network(plain), torch.from_numpy(image)
    target, taken = network(pixels).argmax(1), []
    for _ in range(rise_rounds):
        began = time.perf_counter()
        rise(network, pixels, target, masks)
        taken.append(time.perf_counter() - began)
    for (arch, what), seconds in zip(sessions, medians, strict=True):
        if what == "saliency":
            ratio = float(np.median(taken)) / seconds
            verdict = [f">= {LEAST_RISE}x", "pass" if ratio >= LEAST_RISE else "short"]
            rows.append(
                [arch, f"RISE, {masks} masks / saliency", f"{np.median(taken):.2f} s", f"{ratio:.0f}x", *verdict]
            )
    return rows


if __name__ == "__main__":
    main()
