"""From a recipe to a model: the backbone's own multiplier, with widths as shares of what it leaves."""

import torch

from deploytool.data.catalogue import CATALOGUE
from deploytool.models.factory import build_model
from deploytool.models.setting import Setting
from deploytool.recipe import make_recipe

RECIPE = {"name": "x", "data": {"name": "cifar10"}, "method": {"name": "float"}}


def test_a_multiplier_narrows_every_layer_and_widths_are_shares_of_it() -> None:
    recipe = make_recipe(RECIPE | {"model": {"arch": "vgg16", "multiplier": 0.25, "widths": [0.5, 1.0]}})
    model = build_model(recipe, CATALOGUE["cifar10"]).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.backbone.named_parameters()}
    assert shapes["features.0.weight"] == (16, 3, 3, 3) and shapes["classifier.4.weight"] == (10, 128)
    image = torch.rand(2, 3, 32, 32)
    assert model(image, Setting(0.2)).shape == model(image, Setting(0.2, width=0.5)).shape == (2, 10)
    half = model.plain_network(Setting(width=0.5))
    assert half.get_parameter("features.0.weight").shape == (8, 3, 3, 3)
