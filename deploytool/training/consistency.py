"""Consistency of classes and reasons while training goes on (paper 1, Figs. 1 and 2)."""

from typing import Any

import torch

from deploytool.attacks.registry import make_attack, recipe_base
from deploytool.attacks.run import attack_batches
from deploytool.data.images import Images
from deploytool.evaluation import deployed
from deploytool.evaluation.accuracy import image_batches
from deploytool.explain.consistency import Answers, answers, read_tally, tally
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import recipe_setting
from deploytool.models.setting import Setting
from deploytool.recipe import Recipe

ATTACK = "fgsm"


def consistency_settings(recipe: Recipe, model: ConditionalModel) -> list[Setting]:
    """Both boundary conditions of a conditional model, at full width; the one setting of any other."""
    return [deployed(recipe_setting(recipe, lam)) for lam in ((0.0, 1.0) if model.is_conditional else (0.0,))]


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
        before, after = before_and_after(model, setting, test, recipe)
        rows.append({"lambda": setting.lam if model.is_conditional else None, **tally(before, after)})
    now = read_tally(rows[0], recipe.reasoning.threshold)
    names = ("accuracy", "coverage", "accuracy_consistent")
    return {"consistency": rows, **{f"test_{name}": now[name] for name in names if now[name] is not None}}


def before_and_after(
    model: ConditionalModel, setting: Setting, test: Images, recipe: Recipe, name: str = ATTACK
) -> tuple[Answers, Answers]:
    """Answers to test images, and to those of them that were right, after an attack on the class (section 4.2)."""
    assert model.reason_vectors is not None
    vectors, device = model.reason_vectors, next(model.parameters()).device
    attack = make_attack(name, recipe_base(recipe))
    with model.network(setting, reasoning=True) as network:
        before = answers(network, image_batches(test, device), vectors)
        right = Images(test.images[torch.from_numpy(before.right)], test.labels[torch.from_numpy(before.right)])
        if not len(right):
            return before, before[before.right]
        parts = ((image, label, None) for image, label in image_batches(right, device))
        results = attack_batches(lambda image: model.logits(network(image)), parts, attack, recipe.seed, name)
        labels = image_batches(right, device)
        attacked = ((result.image, label) for result, (_, label) in zip(results, labels, strict=True))
        return before, answers(network, attacked, vectors)
