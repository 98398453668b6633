"""A trained surrogate explainer: its folder, and the maps that it draws.

EXPLAINER/explainer.yaml            the validated recipe, its target among it
EXPLAINER/checkpoint.safetensors    model, momentum, history, the target's digest
EXPLAINER/metrics.json              the history again
EXPLAINER/tensorboard/              scalars per epoch
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from deploytool.data.catalogue import DatasetInfo
from deploytool.errors import CheckpointError, RunError
from deploytool.explain.attribution import images_at_once
from deploytool.explain.recipe import FILE, ExplainerRecipe
from deploytool.explain.target import TORCHVISION, Target, open_target
from deploytool.models.conditional import ConditionalModel, DualNormModel
from deploytool.models.setting import Setting
from deploytool.models.surrogate import build_surrogate
from deploytool.training.run import Checkpoint, checkpoint_path, load_checkpoint, load_weights

TAKES_LAMBDA = "adversarial_norms."  # tensors that only a surrogate with two sets of batch norms has


@dataclass(frozen=True)
class Explainer:
    """A trained surrogate.

    Attributes:
        path: its folder.
        recipe: with the target's name and how it was explained.
        model: in evaluation mode, on the CPU; its network answers (logits (N, K), saliency (N, 1, H, W)).
        checkpoint: with the data set's description, and the target's digest under its name.
    """

    path: Path
    recipe: ExplainerRecipe
    model: ConditionalModel
    checkpoint: Checkpoint

    @property
    def target(self) -> str:
        """The name of what it explains."""
        assert self.recipe.target is not None, "training writes it down"
        return self.recipe.target

    @property
    def info(self) -> DatasetInfo:
        """The data set that it was trained on."""
        return self.checkpoint.data

    def open_target(self, name: str | os.PathLike[str] | None = None) -> Target:
        """Open what the explainer was trained on; `name` says where it is now, if not where it was.

        Raises:
            RunError: it is not there, or is another one. Others as `deploytool.explain.target.open_target`.
        """
        if name is None and not self.target.startswith(TORCHVISION) and not Path(self.target).exists():
            raise RunError(f"{self.path} explains {self.target}, which is not there; say where it is now with --target")
        target = open_target(self.target if name is None else name)
        self.check_target(target)
        return target

    def check_target(self, target: Target) -> None:
        """Raise RunError unless this is the very target that the explainer was trained on."""
        if self.checkpoint.files.get(self.target) != target.digest:
            raise RunError(f"{target.name} is not what {self.path} was trained to explain; train another explainer")

    @torch.no_grad()
    def explain(self, image: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
        """The student's logits (N, K), and saliency maps (N, H, W) in [0, 1].

        Args:
            image: (N, C, H, W) float32 in [0, 1], on the model's device.
            setting: lambda, and how the target's batch norms follow it: `Target.setting`.
        """
        with self.model.network(setting) as network:
            answers = [network(part) for part in torch.split(image, images_at_once(image))]
        logits, maps = zip(*answers, strict=True)
        return torch.cat(logits), torch.cat(maps)[:, 0]


def build_explainer(recipe: ExplainerRecipe, info: DatasetInfo, takes_lambda: bool) -> ConditionalModel:
    """Build the freshly initialised surrogate of a recipe; its seed decides the weights.

    Args:
        recipe: what to build.
        info: the data set's description.
        takes_lambda: whether the target does, so that two sets of batch norms have a meaning.

    Raises:
        RecipeError: the student's architecture is no ResNet.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        student, explanation = recipe.student, recipe.explanation
        everywhere = student.attention == "blocks"
        surrogate = build_surrogate(
            student.arch, info, student.multiplier, everywhere, explanation.hidden, explanation.stride
        )
        dual = takes_lambda and recipe.condition.norms == "dual"
        return DualNormModel(surrogate) if dual else ConditionalModel(surrogate)


def surrogate_setting(target: Target, lam: float | None) -> Setting:
    """The setting of a surrogate at one of its target's lambdas; 0 where None."""
    return replace(target.setting, lam=lam or 0.0)


def load_explainer(path: str | os.PathLike[str]) -> Explainer:
    """Load a trained explainer.

    Raises:
        RunError: the folder holds none; CheckpointError: its checkpoint is unusable.
    """
    folder = Path(path)
    if not (folder / FILE).is_file():
        raise RunError(f"{folder} is no explainer (no {FILE}); make one: deploytool explain train TARGET RECIPE")
    recipe = ExplainerRecipe.load(folder / FILE)
    if not checkpoint_path(folder).is_file():
        raise CheckpointError(
            f"{folder} has no checkpoint.safetensors; train it: deploytool explain train TARGET RECIPE -o {folder}"
        )
    checkpoint = load_checkpoint(folder)
    if checkpoint.recipe != recipe.digest() or recipe.target is None:
        raise CheckpointError(f"{folder}: its checkpoint is of another recipe than its {FILE}; train it again")
    dual = any(name.startswith(TAKES_LAMBDA) for name in checkpoint.model)
    model = build_explainer(recipe, checkpoint.data, dual)
    load_weights(model, checkpoint.model, str(checkpoint_path(folder)))
    return Explainer(folder, recipe, model.eval(), checkpoint)
