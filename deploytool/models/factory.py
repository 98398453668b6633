"""From a recipe to a model."""

from dataclasses import replace

import torch
from torch import nn

from deploytool.data.catalogue import DatasetInfo
from deploytool.errors import RecipeError
from deploytool.models.conditional import ConditionalModel, FloatModel, weight_names
from deploytool.models.masks import initial_masks
from deploytool.models.oat import OatModel, filmed_norms
from deploytool.models.registry import build_backbone
from deploytool.models.setting import Setting
from deploytool.recipe import FloatMethod, OatMethod, Recipe


def build_model(recipe: Recipe, data: DatasetInfo) -> ConditionalModel:
    """Build the freshly initialised model of a recipe; the recipe's seed decides its weights and first masks.

    It normalises with `model.mean` and `model.std`, the data set's where they are null. `model.weights` are not
    read here: `deploytool.training.pretrained` does that when a run is started.

    Raises:
        RecipeError: the architecture is unknown or does not fit the method, mean or std are not one number per
            channel, or the density is too low.
    """
    data = _normalized(recipe, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = _method_model(recipe, _backbone(recipe, data), _narrow_backbones(recipe, data))
    if recipe.sparsity is not None and recipe.sparsity.density < 1:
        weights = {name: model.backbone.get_parameter(name).detach() for name in weight_names(model.backbone)}
        generator = torch.Generator().manual_seed(recipe.seed)
        section = recipe.sparsity
        model.set_masks(initial_masks(weights, section.density, section.kind, generator, data.shape[0]))
    return model


def _backbone(recipe: Recipe, data: DatasetInfo, width: float = 1.0) -> nn.Module:
    """The recipe's backbone at a width."""
    return build_backbone(recipe.model.arch, data, width * recipe.model.multiplier)


def _normalized(recipe: Recipe, data: DatasetInfo) -> DatasetInfo:
    """The data set's description with the recipe's own mean and std, where it has them."""
    mean, std = recipe.model.mean, recipe.model.std
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != data.shape[0]:
            raise RecipeError(
                f"model.{name} (={values}) must have one number per channel; {data.name} has {data.shape[0]}"
            )
    return replace(data, mean=tuple(mean or data.mean), std=tuple(std or data.std))


def _method_model(recipe: Recipe, backbone: nn.Module, narrow: dict[float, nn.Module]) -> ConditionalModel:
    method = recipe.method
    if isinstance(method, FloatMethod):
        return FloatModel(backbone, method.alpha_init, method.noise_seed, narrow)
    if isinstance(method, OatMethod):
        if not filmed_norms(backbone):
            raise RecipeError(
                f"method.name (=oat) conditions batch norms and model.arch (={recipe.model.arch}) has none; "
                "take float, pgd-at or standard"
            )
        return OatModel(backbone, method.lambdas, method.encoding, method.encoding_size, recipe.seed, narrow)
    return ConditionalModel(backbone, narrow)


def _narrow_backbones(recipe: Recipe, data: DatasetInfo) -> dict[float, nn.Module]:
    """The shapes of every width below 1, without memory for tensors."""
    with torch.device("meta"):
        return {w: _backbone(recipe, data, w) for w in recipe.model.widths if w < 1}


def recipe_setting(recipe: Recipe, lam: float = 0.0, width: float = 1.0) -> Setting:
    """The setting at which a recipe's model is trained, evaluated and exported, at a lambda and a width."""
    method = recipe.method
    if isinstance(method, FloatMethod):
        return Setting(lam, method.lambda_threshold, method.conditioning, method.noise, width)
    return Setting(lam, noise="none", width=width)
