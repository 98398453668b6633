"""Which choices make a surrogate explainer faithful? Variants of one recipe, on one target, lambdas and seeds.

    python benchmarks/explainer_choices.py runs/digits-float recipes/explainers/digits.yaml -o runs/choices \\
        --vary explanation.fidelity=target explanation.fidelity=student --lambdas 0,0.5,1 --seeds 0,1,2

A variant is `key=value` of the recipe, several joined by `;`; the recipe itself comes first, as `recipe`. Each is
trained once per seed (a finished one is not trained again); its maps are measured on the target's own network at each
lambda, by insertion and deletion, on the same test images; Grad-CAM and a map of the middle stand beside them.
"""

import argparse
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from deploytool.attacks.victim import Network
from deploytool.data.datasets import load_dataset
from deploytool.explain.attribution import grad_cam, predicted_class
from deploytool.explain.controls import center_maps
from deploytool.explain.explainer import load_explainer, surrogate_setting
from deploytool.explain.faithfulness import deletion, insertion
from deploytool.explain.fast import fast_network
from deploytool.explain.recipe import ExplainerRecipe
from deploytool.explain.stability import unit_range
from deploytool.explain.target import Target, open_target
from deploytool.training.surrogate import train_explainer

Numbers = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/choices"))
    parser.add_argument("--vary", nargs="*", default=[])
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--lambdas", default="0,1")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    target = open_target(arguments.target)
    lambdas = [float(lam) for lam in arguments.lambdas.split(",")] if target.takes_lambda else [None]
    data = load_dataset(ExplainerRecipe.load(arguments.recipe, arguments.overrides).data)
    image = data.test.head(arguments.images).batch(slice(None))[0]
    networks = {lam: target.network(lam) for lam in lambdas}
    fast = {lam: fast_network(network, data.info.shape) for lam, network in networks.items()}
    classes = {lam: predicted_class(network, image) for lam, network in networks.items()}
    rows: list[list[Any]] = []
    for variant in ["", *arguments.vary]:
        found = [one(arguments, target, variant, seed, image, fast, classes) for seed in arguments.seeds.split(",")]
        rows += [[variant or "recipe", lam, *means([each[lam] for each in found])] for lam in lambdas]
    for lam in lambdas:
        for name, maps in (
            ("Grad-CAM", unit_range(grad_cam(networks[lam], image, classes[lam]))),
            ("middle", center_maps(image)),
        ):
            rows.append([name, lam, *means([faithfulness(maps, fast[lam], image, classes[lam])])])
    print(f"{arguments.recipe} on {arguments.target}, seeds {arguments.seeds}, {len(image)} test images, mean +- std")
    print(f"torch {torch.__version__}, {arguments.threads} threads, CPU {platform.machine()}\n")
    headers = ["variant", "lambda", "insertion", "deletion", "mean intensity", "agreement"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def one(
    arguments: argparse.Namespace,
    target: Target,
    variant: str,
    seed: str,
    image: Tensor,
    fast: dict[float | None, Network],
    classes: dict[float | None, Tensor],
) -> dict[float | None, Numbers]:
    """Train a variant, and measure its maps at each lambda."""
    changes = [change for change in variant.split(";") if change]
    recipe = ExplainerRecipe.load(arguments.recipe, [*arguments.overrides, *changes, f"seed={seed}"])
    folder = arguments.output / f"{recipe.digest()}"
    train_explainer(target, recipe, folder, resume=True)
    explainer = load_explainer(folder)
    found = {}
    for lam, network in fast.items():
        logits, maps = explainer.explain(image, surrogate_setting(target, lam))
        agreement = float((logits.argmax(1) == classes[lam]).float().mean())
        found[lam] = {**faithfulness(maps, network, image, classes[lam]), "agreement": agreement}
    return found


def faithfulness(maps: Tensor, network: Network, image: Tensor, classes: Tensor) -> Numbers:
    return {
        "insertion": float(insertion(network, image, maps, classes).auc.mean()),
        "deletion": float(deletion(network, image, maps, classes).auc.mean()),
        "intensity": float(maps.mean()),
    }


def means(found: list[Numbers]) -> list[str]:
    """Mean and sample standard deviation over the seeds."""
    values = {name: np.array([each[name] for each in found]) for name in found[0]}
    several = len(found) > 1
    return [f"{each.mean():.4f}" + (f" +- {each.std(ddof=1):.4f}" if several else "") for each in values.values()]


if __name__ == "__main__":
    main()
