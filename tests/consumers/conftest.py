"""One exported file for each kind of condition, and the logits that its torch model gives."""

import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploytool.data.datasets import dataset_info
from deploytool.export.artefact import export_setting, write_artefact
from deploytool.export.parity import LAMBDAS
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import build_model
from deploytool.models.oat import OatModel
from deploytool.models.setting import Setting
from deploytool.recipe import Recipe, load_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "digits-float.yaml"
SWITCH = "method={name: float, noise: frozen, conditioning: switch, lambda_threshold: 0.5}"
KINDS: Mapping[str, Sequence[str]] = {
    "float": (),
    "switch": (SWITCH,),
    "slim": ("model.widths=[0.5, 1.0]",),
    "oat": ("method={name: oat}",),
    "sparse": ("sparsity={kind: irregular, density: 0.1}",),
}


@dataclass(frozen=True)
class Case:
    """What one call is fed, by input name, and the logits (N, K) that the torch model answers."""

    feed: dict[str, np.ndarray]
    expected: np.ndarray

    def __str__(self) -> str:
        knobs = ", ".join(f"{name} {value:g}" for name, value in self.feed.items() if name != "image")
        return f"{knobs}, batch {len(self.expected)}"


@dataclass(frozen=True)
class Exported:
    """A file and the cases that each of its consumers has to answer."""

    file: Path
    cases: tuple[Case, ...]


@pytest.fixture(scope="session")
def exported_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """All kinds side by side in one folder, which is what the converter takes."""
    torch.set_num_threads(1)  # session fixtures come before those of a test
    folder = tmp_path_factory.mktemp("consumers")
    return {kind: export_kind(load_recipe(RECIPE, KINDS[kind]), folder / f"{kind}.onnx") for kind in KINDS}


@pytest.fixture(params=KINDS)
def exported(request: pytest.FixtureRequest, exported_files: dict[str, Exported]) -> Exported:
    return exported_files[request.param]


@pytest.fixture(scope="session")
def ort_folders(exported_files: dict[str, Exported], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every file as KIND.ort, by onnxruntime's own command: with its default optimisations, and with none."""
    source = next(iter(exported_files.values())).file.parent
    return {level: convert(source, tmp_path_factory.mktemp(f"ort-{level}"), level) for level in ("all", "disable")}


def convert(source: Path, folder: Path, level: str) -> Path:
    command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(source)]
    command += ["--optimization_style", "Fixed", "--output_dir", str(folder)]
    environment = os.environ | {"ORT_CONVERT_ONNX_MODELS_TO_ORT_OPTIMIZATION_LEVEL": level}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    for made in folder.glob(f"*.{level}.ort"):  # the command names every level but its default
        made.rename(made.with_name(made.name.replace(f".{level}.", ".")))
    return folder


def export_kind(recipe: Recipe, file: Path) -> Exported:
    """Export a recipe's model and ask it for the logits of all cases."""
    info = dataset_info(recipe.data)
    model = trained_like(build_model(recipe, info), info.shape)
    setting, narrow = export_setting(recipe, None, None), model.widths[:-1]
    images = random_images(7, info.shape)
    compress = recipe.sparsity is not None  # so that every consumer restores weights that are stored sparse
    write_artefact(model, recipe, info, images, file, setting, trained=False, narrow=narrow, compress=compress)
    cases = []
    for lam, width, batch in itertools.product(LAMBDAS, model.widths, (1, len(images))):
        feed = {"image": images[:batch].numpy(), "lambda": np.array(lam, np.float32)}
        if narrow:
            feed["width"] = np.array(width, np.float32)
        with model.network(replace(setting, lam=lam, width=width)) as network, torch.no_grad():
            cases.append(Case(feed, network(images[:batch]).numpy()))
    return Exported(file, tuple(cases))


def trained_like(model: ConditionalModel, shape: tuple[int, ...]) -> ConditionalModel:
    """Give batch norms statistics of both conditions, and FiLM an effect: fresh ones would hide a swap of the two."""
    generator = torch.Generator().manual_seed(0)
    norms = [norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d) and not norm.weight.is_meta]
    momentum = norms[0].momentum
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0, 0.1, generator=generator)
            norm.momentum = 1.0
        for film in model.films.values() if isinstance(model, OatModel) else ():
            film.out.weight.normal_(0, 0.1, generator=generator)
            film.out.bias[: film.channels].uniform_(0.5, 1.5, generator=generator)
        model.train()
        for width, lam in itertools.product(model.widths, (0.0, 1.0)):
            model(random_images(64, shape), Setting(lam, width=width))
        for norm in norms:
            norm.momentum = momentum  # the exported operator names it
    return model.eval()


def random_images(count: int, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(count))
