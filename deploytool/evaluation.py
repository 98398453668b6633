"""Clean and robust accuracy over attacks and settings."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deploytool.attacks.registry import make_attack, recipe_base
from deploytool.attacks.run import BATCH, Attack, attack_batches, batches
from deploytool.data.datasets import Images, load_dataset
from deploytool.errors import InputError
from deploytool.models.conditional import ConditionalModel, Network
from deploytool.models.factory import recipe_setting
from deploytool.models.setting import Conditioning, Setting, check_threshold_value
from deploytool.progress import progress_bar
from deploytool.recipe import FloatMethod, OatMethod, Recipe
from deploytool.training.run import Run


def evaluate(
    run: Run,
    attacks: Sequence[str] | None = None,
    settings: Sequence[Setting] | None = None,
    images: int | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Evaluate a trained run on its test images; arguments that are None come from the recipe.

    Returns:
        One row per attack and setting; see `evaluate_model`.

    Raises:
        DataError: the data set cannot be loaded.
    """
    recipe = run.recipe
    test = load_dataset(recipe.data).test.head(images or recipe.evaluate.images)
    return evaluate_model(
        run.model.to(device), test, recipe, attacks or recipe.evaluate.attacks, settings or evaluation_settings(recipe)
    )


def evaluation_settings(
    recipe: Recipe,
    lambdas: Iterable[float] | None = None,
    thresholds: Iterable[float] | None = None,
    conditionings: Iterable[Conditioning] | None = None,
    widths: Iterable[float] | None = None,
) -> list[Setting]:
    """The grid of settings that a recipe (or the arguments instead) asks to evaluate.

    A method without lambda has one setting. `interpolate` has no threshold: it gives one row per lambda.
    Redrawn noise is evaluated as it will be deployed, in one frozen draw.

    Raises:
        InputError: a lambda is outside [0, 1], a threshold is neither 0 nor 0.5, or an argument has no meaning for the
            recipe's method.
    """
    method = recipe.method
    if lambdas is not None and not isinstance(method, FloatMethod | OatMethod):
        raise InputError(f"method {method.name} takes no lambda; leave --lambda out")
    if (thresholds is not None or conditionings is not None) and not isinstance(method, FloatMethod):
        raise InputError(f"method {method.name} has no conditioning and no lambda threshold; leave them out")
    if thresholds is not None and conditionings is not None and set(conditionings) == {"interpolate"}:
        raise InputError("--lambda-threshold has no effect with interpolate; leave it out or use --conditioning switch")
    section = recipe.evaluate
    chosen_widths = widths or section.widths or recipe.model.widths
    chosen_lambdas = section.lambdas if lambdas is None else list(lambdas)
    chosen_thresholds = section.lambda_thresholds if thresholds is None else [*map(check_threshold_value, thresholds)]
    base = [deployed(recipe_setting(recipe, width=width)) for width in chosen_widths]
    if isinstance(recipe.method, OatMethod):
        return [replace(at, lam=lam) for at in base for lam in chosen_lambdas]
    if not isinstance(recipe.method, FloatMethod):
        return base
    return [
        replace(at, lam=lam, lambda_threshold=threshold, conditioning=conditioning)
        for at in base
        for conditioning in conditionings or section.conditionings or [recipe.method.conditioning]
        for threshold in ([0.0] if conditioning == "interpolate" else chosen_thresholds)
        for lam in chosen_lambdas
    ]


def deployed(setting: Setting) -> Setting:
    """The setting as an exported file runs it: a file holds one frozen draw of the noise."""
    return replace(setting, noise="frozen") if setting.noise == "redrawn" else setting


def evaluate_model(
    model: ConditionalModel, test: Images, recipe: Recipe, attacks: Sequence[str], settings: Sequence[Setting]
) -> list[dict[str, Any]]:
    """Measure clean and robust accuracy: white-box attacks on exactly the network that answers.

    Settings that amount to the same state (equal noise scale and batch-norm mix) are computed once. The random
    starts depend on recipe.seed and the batch alone, so every setting meets the same starts.

    Returns:
        Rows `{attack, lambda, lambda_threshold, conditioning, noise, width, clean_accuracy, robust_accuracy, n}`
        in the order settings within attacks; accuracies in [0, 1]; `lambda` is None where the method has none,
        `lambda_threshold` None where it is not used.
    """
    device = next(model.parameters()).device
    plans = {name: make_attack(name, recipe_base(recipe.attack)) for name in attacks}
    states = {model.knobs(setting): setting for setting in settings}
    clean: dict[Any, float] = {}
    robust: dict[Any, float] = {}
    with progress_bar("evaluating", len(states) * (1 + len(attacks))) as bar:
        for key, setting in states.items():
            with model.network(setting) as network:
                clean[key] = _accuracy(network, test, None, recipe.seed, device)
                bar.advance()
                for name in plans:
                    robust[key, name] = _accuracy(network, test, plans[name], recipe.seed, device)
                    bar.advance(f"{name} lambda {setting.lam:g}")
    return [
        {
            "attack": name,
            "lambda": setting.lam if model.is_conditional else None,
            "lambda_threshold": setting.lambda_threshold if _has_threshold(model, setting) else None,
            "conditioning": setting.conditioning if model.is_conditional else None,
            "noise": setting.noise if model.is_conditional else None,
            "width": setting.width,
            "clean_accuracy": clean[model.knobs(setting)],
            "robust_accuracy": robust[model.knobs(setting), name],
            "n": len(test),
        }
        for name in attacks
        for setting in settings
    ]


def _has_threshold(model: ConditionalModel, setting: Setting) -> bool:
    return model.is_conditional and setting.conditioning == "switch"


def _accuracy(network: Network, test: Images, attack: Attack | None, seed: int, device: torch.device) -> float:
    if attack is None:
        return sum(int(correct.sum()) for correct in clean_answers(network, test, device)) / len(test)
    parts = ((image, label, None) for image, label in image_batches(test, device))
    return sum(int(result.robust().sum()) for result in attack_batches(network, parts, attack, seed)) / len(test)


@torch.no_grad()
def clean_answers(network: Network, test: Images, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Yield (B,) bool for each batch of test images: which ones the network gets right."""
    for image, label in image_batches(test, device):
        yield network(image).argmax(1) == label


def image_batches(test: Images, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (image (B, C, H, W), label (B,)) of all test images, on a device."""
    for rows in batches(len(test), BATCH):
        image, label = test.batch(rows)
        yield image.to(device), label.to(device)
