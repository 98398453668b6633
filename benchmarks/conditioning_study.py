"""Which noise and which conditioning should a recipe use? Seeds x noise modes x conditionings, on one recipe.

    python benchmarks/conditioning_study.py recipes/digits-float.yaml -o runs/study --seeds 0,1,2

Trains the recipe once per seed and noise mode (a finished run is not trained again), attacks every run white-box at
every conditioning, threshold and lambda, and prints Markdown tables of mean and standard deviation over the seeds.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from deploytool.atomic import write_json
from deploytool.evaluation import evaluate, evaluation_settings
from deploytool.recipe import load_recipe
from deploytool.training.loop import train
from deploytool.training.run import load_run

LAMBDAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--noise", default="redrawn,frozen,none")
    parser.add_argument("--attack", default="pgd-20")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for noise in arguments.noise.split(","):
        for seed in map(int, arguments.seeds.split(",")):
            rows += one_run(arguments, noise, seed)
    print(f"{arguments.recipe}, seeds {arguments.seeds}, attack {arguments.attack}, {rows[0]['n']} test images, CPU")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    print(summary(rows))
    print("\nalpha per layer, mean over the seeds")
    for noise in arguments.noise.split(","):
        alphas = [row["alpha"] for row in rows if row["noise_trained"] == noise]
        print(f"  {noise:8}", " ".join(f"{a:6.3f}" for a in np.mean(alphas, axis=0)))


def one_run(arguments: argparse.Namespace, noise: str, seed: int) -> list[dict[str, Any]]:
    recipe = load_recipe(arguments.recipe, [*arguments.overrides, f"method.noise={noise}", f"seed={seed}"])
    folder = arguments.output / f"{recipe.name}-{noise}-seed{seed}"
    done = folder / "study.json"
    if done.exists():
        return json.loads(done.read_text())
    train(recipe, folder, resume=folder.exists())
    run = load_run(folder)
    settings = evaluation_settings(recipe, LAMBDAS, (0.0, 0.5), ("switch", "interpolate"))
    alpha = run.checkpoint.history[-1]["alpha"]
    rows = [
        {**row, "noise_trained": noise, "seed": seed, "alpha": alpha}
        for row in evaluate(run, [arguments.attack], settings).rows
    ]
    write_json(done, rows)
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    table = []
    keys = dict.fromkeys((row["noise_trained"], row["conditioning"], row["lambda_threshold"]) for row in rows)
    for noise, conditioning, threshold in keys:
        for measure in ("clean_accuracy", "robust_accuracy"):
            cells = []
            for lam in LAMBDAS:
                values = [
                    row[measure]
                    for row in rows
                    if (row["noise_trained"], row["conditioning"], row["lambda_threshold"])
                    == (noise, conditioning, threshold)
                    and row["lambda"] == lam
                ]
                cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")
            name = conditioning if threshold is None else f"{conditioning}, threshold {threshold:g}"
            table.append([noise, name, measure.removesuffix("_accuracy"), *cells])
    return tabulate(
        table, ["noise", "conditioning", "accuracy", *(f"lambda {lam:g}" for lam in LAMBDAS)], tablefmt="github"
    )


if __name__ == "__main__":
    main()
