"""From a recipe to a model."""

import warnings
from dataclasses import replace

import torch
from torch import nn

from deploytool.data.catalogue import DatasetInfo
from deploytool.errors import RecipeError
from deploytool.labels.files import read_labels
from deploytool.labels.label_map import EqualVectorsWarning, LabelMap
from deploytool.models.conditional import ConditionalModel, FloatModel, weight_names
from deploytool.models.masks import initial_masks
from deploytool.models.oat import OatModel, filmed_norms
from deploytool.models.reasoning import with_reasoning
from deploytool.models.registry import build_backbone
from deploytool.models.setting import Setting
from deploytool.recipe import FloatMethod, OatMethod, Recipe


def build_model(recipe: Recipe, data: DatasetInfo, labels: LabelMap | None = None) -> ConditionalModel:
    """Build the freshly initialised model of a recipe; the recipe's seed decides its weights and first masks.

    It normalises with `model.mean` and `model.std`, the data set's where they are null. `model.weights` are not
    read here: `deploytool.training.pretrained` does that when a run is started. The backbone of a recipe with
    reasoning labels starts from the same weights as without.

    Args:
        recipe: what to build.
        data: the data set's description.
        labels: of a recipe with reasoning labels, as `recipe_labels` gives them, which is asked where None.

    Raises:
        RecipeError: the architecture is unknown or does not fit the method or the reasoning layer, mean or std are not
            one number per channel, or the density is too low.
        LabelError: as `recipe_labels`.

    Warns:
        EqualVectorsWarning: as `recipe_labels`, where it is asked.
    """
    data = _normalized(recipe, data)
    labels = None if recipe.reasoning is None else labels or recipe_labels(recipe, data)
    reasons = len(labels.labels) if labels is not None else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = _method_model(recipe, _backbone(recipe, data, reasons), _narrow_backbones(recipe, data, reasons))
    if labels is not None:
        model.set_reasons(torch.from_numpy(labels.vectors()))
    if recipe.sparsity is not None and recipe.sparsity.density < 1:
        weights = {name: model.backbone.get_parameter(name).detach() for name in weight_names(model.backbone)}
        generator = torch.Generator().manual_seed(recipe.seed)
        section = recipe.sparsity
        model.set_masks(initial_masks(weights, section.density, section.kind, generator, data.shape[0]))
    return model


def recipe_labels(recipe: Recipe, data: DatasetInfo) -> LabelMap | None:
    """The reasoning labels that a recipe names, classes in the data set's order; None where it names none.

    Raises:
        LabelError: the file cannot be read, is no label map, or is for other classes.

    Warns:
        EqualVectorsWarning: classes have the same labels, of those that the recipe takes; names them.
    """
    if recipe.reasoning is None:
        return None
    labels = read_labels(recipe.reasoning.labels).for_classes(data.classes)
    if recipe.reasoning.per_class is not None:
        labels = labels.top(recipe.reasoning.per_class)
    for line in labels.equal_lines():
        warnings.warn(line, EqualVectorsWarning, stacklevel=2)
    return labels


def _backbone(recipe: Recipe, data: DatasetInfo, reasons: int, width: float = 1.0) -> nn.Module:
    """The recipe's backbone at a width, with a head for so many reasoning labels."""
    backbone = build_backbone(recipe.model.arch, data, width * recipe.model.multiplier)
    if recipe.model.dropout is not None:
        layers = [module for module in backbone.modules() if isinstance(module, nn.Dropout)]
        if not layers:
            arch = recipe.model.arch
            raise RecipeError(f"model.dropout (={recipe.model.dropout:g}): {arch} has no dropout; leave it out")
        for layer in layers:
            layer.p = recipe.model.dropout
    if recipe.reasoning is None:
        return backbone
    return with_reasoning(backbone, reasons, data.shape, recipe.reasoning.layer)


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


def _narrow_backbones(recipe: Recipe, data: DatasetInfo, reasons: int) -> dict[float, nn.Module]:
    """The shapes of every width below 1, without memory for tensors."""
    with torch.device("meta"):
        return {w: _backbone(recipe, data, reasons, w) for w in recipe.model.widths if w < 1}


def recipe_setting(recipe: Recipe, lam: float = 0.0, width: float = 1.0) -> Setting:
    """The setting at which a recipe's model is trained, evaluated and exported, at a lambda and a width."""
    method = recipe.method
    if isinstance(method, FloatMethod):
        return Setting(lam, method.lambda_threshold, method.conditioning, method.noise, width)
    return Setting(lam, noise="none", width=width)
