"""From a recipe to a model."""

import torch

from deploytool.data.catalogue import DatasetInfo
from deploytool.models.conditional import ConditionalModel, FloatModel
from deploytool.models.registry import build_backbone
from deploytool.models.setting import Setting
from deploytool.recipe import FloatMethod, Recipe


def build_model(recipe: Recipe, data: DatasetInfo) -> ConditionalModel:
    """Build the freshly initialised model of a recipe; the recipe's seed decides its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        backbone = build_backbone(recipe.model.arch, data)
    method = recipe.method
    if isinstance(method, FloatMethod):
        return FloatModel(backbone, method.alpha_init, method.noise_seed)
    return ConditionalModel(backbone)


def recipe_setting(recipe: Recipe, lam: float = 0.0) -> Setting:
    """The setting at which a recipe's model is trained, evaluated and exported, at a lambda."""
    method = recipe.method
    if isinstance(method, FloatMethod):
        return Setting(lam, method.lambda_threshold, method.conditioning, method.noise)
    return Setting(lam)
