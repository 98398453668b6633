"""Consistency of classes and reasons while training goes on (paper 1, Figs. 1 and 2)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deploytool.attacks.acceptance import AcceptanceRule
from deploytool.attacks.registry import make_attack, recipe_base
from deploytool.data.images import Images
from deploytool.evaluation import deployed
from deploytool.evaluation.accuracy import attacked, image_batches
from deploytool.explain.consistency import Answers, answers, read_tally, tally
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import recipe_setting
from deploytool.models.setting import Setting
from deploytool.recipe import Recipe

ATTACK = "fgsm"


def consistency_settings(recipe: Recipe, model: ConditionalModel, widths: Sequence[float] = (1.0,)) -> list[Setting]:
    """Both boundary conditions of a conditional model at each of these widths; the one condition of any other."""
    lambdas = (0.0, 1.0) if model.is_conditional else (0.0,)
    return [deployed(recipe_setting(recipe, lam, width)) for width in widths for lam in lambdas]


def consistency_metrics(model: ConditionalModel, test: Images, recipe: Recipe) -> dict[str, Any]:
    """What the reasons of a model accept and detect now, on test images and on the same attacked by FGSM.

    Returns:
        `consistency`: for each of `consistency_settings`, `lambda` (None where the model takes none) and what
        `deploytool.explain.consistency.tally` counts; and, of the first one at the recipe's threshold, as scalars for
        a plot: `test_accuracy`, `test_coverage`, and `test_accuracy_consistent` where anything is accepted.
    """
    assert recipe.reasoning is not None
    rows = []
    for setting in consistency_settings(recipe, model):
        before = answers_to(model, setting, test)
        right = of_right(test, before)
        after = answers_under_attack(model, setting, right, recipe) if len(right) else before[before.right]
        rows.append({"lambda": setting.lam if model.is_conditional else None, **tally(before, after)})
    now = read_tally(rows[0], recipe.reasoning.threshold)
    names = ("accuracy", "coverage", "accuracy_consistent")
    return {"consistency": rows, **{f"test_{name}": now[name] for name in names if now[name] is not None}}


def answers_to(model: ConditionalModel, setting: Setting, images: Images) -> Answers:
    """Answers of a model with reasoning labels to images as they are."""
    vectors, device = _vectors(model), next(model.parameters()).device
    with model.network(setting, reasoning=True) as network:
        return answers(network, image_batches(images, device), vectors)


def answers_under_attack(
    model: ConditionalModel,
    setting: Setting,
    images: Images,
    recipe: Recipe,
    name: str = ATTACK,
    threshold: float | None = None,
) -> Answers:
    """Answers of a model with reasoning labels to images after an attack on the network of a setting.

    Args:
        model, setting: what is attacked.
        images: right ones, at least one; paper 1, section 4.2, attacks no others.
        recipe: of the model, for the budget and the seed.
        name: of the attack, see `deploytool.attacks.names`; on the class alone, as the paper's, or `consistent-K`.
        threshold: t_rsn that `consistent-K` is to pass; the recipe's where None.
    """
    assert recipe.reasoning is not None
    vectors, device = _vectors(model), next(model.parameters()).device
    rule = AcceptanceRule(vectors, recipe.reasoning.threshold if threshold is None else threshold)
    attack = make_attack(name, recipe_base(recipe))
    with model.network(setting, reasoning=True) as network:
        results = attacked(network, images, attack, recipe.seed, name, device, rule)
        pairs = zip(results, image_batches(images, device), strict=True)
        return answers(network, ((result.image, label) for result, (_, label) in pairs), vectors)


def of_right(images: Images, before: Answers) -> Images:
    """The images that were right as they are."""
    rows = torch.from_numpy(before.right)
    return Images(images.images[rows], images.labels[rows])


def _vectors(model: ConditionalModel) -> Tensor:
    assert model.reason_vectors is not None
    return model.reason_vectors
