"""How long is a training step of FLOAT beside OAT's, PGD-AT's, and a straightforward FLOAT step? Interleaved ratios.

    python benchmarks/training_step.py [--recipe recipes/cifar10-resnet34-float.yaml] [--batch 16] [--rounds 5]

Straightforward: the attack calls the conditional model as training does, so that every attack step computes the noisy
weights anew, runs the batch norms, and has gradients of all weights computed. Every method gets the same batch, PGD
and optimiser; a ratio is the median over rounds of a method's time / FLOAT's in that round. Paper 5, Fig. 8(a), has
OAT at 1.43 times and PGD-AT at 1.37 times FLOAT's time (ResNet-34, on a GPU).
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from deploytool.attacks.pgd import Pgd
from deploytool.data.datasets import dataset_info
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import build_model, recipe_setting
from deploytool.recipe import Recipe, load_recipe
from deploytool.timing import interleaved
from deploytool.training.loop import make_optimizer
from deploytool.training.methods import training_step

FLOAT = "FLOAT"
WARM_UP = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cifar10-resnet34-float.yaml"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    methods = {
        FLOAT: [],
        "FLOAT, straightforward": [],
        "OAT": ["method={name: oat}"],
        "PGD-AT, lambda 1": ["method={name: pgd-at, lambda: 1}"],
        "PGD-AT, lambda 0.2": ["method={name: pgd-at, lambda: 0.2}"],
        "FLOATS-i, density 0.1": ["sparsity={density: 0.1}"],
        "FLOAT slim, widths 0.5 and 1": ["model.widths=[0.5, 1.0]"],
        "OAT slim, widths 0.5 and 1": ["method={name: oat}", "model.widths=[0.5, 1.0]"],
    }
    steps = {
        name: one_step(load_recipe(arguments.recipe, changes), arguments, name) for name, changes in methods.items()
    }
    times = interleaved(list(steps.values()), rounds=arguments.rounds, warm_up=WARM_UP)
    ratios, medians = np.median(times / times[:, :1], axis=0), np.median(times, axis=0)
    print(f"{arguments.recipe.name}, batch {arguments.batch}, {arguments.rounds} rounds, {arguments.device},")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} CPUs\n")
    rows = [[name, f"{ms * 1e3:.0f}", f"{ratio:.2f}"] for name, ms, ratio in zip(steps, medians, ratios, strict=True)]
    print(tabulate(rows, ["one training step", "ms", "time / FLOAT"], tablefmt="github"))


def one_step(recipe: Recipe, arguments: argparse.Namespace, name: str) -> Callable[[], None]:
    info, device = dataset_info(recipe.data), torch.device(arguments.device)
    model = build_model(recipe, info).to(device).train()
    optimizer = make_optimizer(model, recipe)
    generator = torch.Generator(device).manual_seed(0)
    image = torch.rand(arguments.batch, *info.shape, generator=generator, device=device)
    label = torch.randint(len(info.classes), (arguments.batch,), generator=generator, device=device)

    def run() -> None:
        if name == "FLOAT, straightforward":
            loss = straightforward_float_loss(model, recipe, image, label, generator)
        else:
            loss = training_step(model, recipe, image, label, generator).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        model.apply_masks()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def straightforward_float_loss(
    model: ConditionalModel, recipe: Recipe, image: Tensor, label: Tensor, generator: torch.Generator
) -> Tensor:
    attack, setting, half = Pgd(**recipe.attack.model_dump()), recipe_setting(recipe, 1.0), len(label) // 2
    clean = F.cross_entropy(model(image[:half], recipe_setting(recipe, 0.0)), label[:half])
    start = torch.rand(image[half:].shape, generator=generator, device=image.device) * 2 - 1
    adversarial = (image[half:] + attack.eps * start).clamp(0, 1)
    model.eval()
    for _ in range(attack.steps):
        adversarial = adversarial.detach().requires_grad_(True)
        F.cross_entropy(model(adversarial, setting, generator), label[half:]).backward()
        moved = adversarial.detach() + attack.step_size * adversarial.grad.sign()
        ball = torch.minimum(torch.maximum(moved, image[half:] - attack.eps), image[half:] + attack.eps)
        adversarial = ball.clamp(0, 1)
    model.train()
    robust = F.cross_entropy(model(adversarial, setting, generator), label[half:])
    return 0.5 * clean + 0.5 * robust


if __name__ == "__main__":
    main()
