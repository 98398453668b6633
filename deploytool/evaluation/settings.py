"""Which settings are evaluated."""

from collections.abc import Iterable
from dataclasses import replace

from deploytool.errors import InputError
from deploytool.models.factory import recipe_setting
from deploytool.models.setting import Conditioning, NoiseMode, Setting, check_threshold_value
from deploytool.recipe import FloatMethod, OatMethod, Recipe


def evaluation_settings(
    recipe: Recipe,
    lambdas: Iterable[float] | None = None,
    thresholds: Iterable[float] | None = None,
    conditionings: Iterable[Conditioning] | None = None,
    widths: Iterable[float] | None = None,
    noise: NoiseMode | None = None,
) -> list[Setting]:
    """The grid of settings that a recipe (or the arguments instead) asks to evaluate.

    A method without lambda has one setting. `interpolate` has no threshold: it gives one row per lambda.
    Redrawn noise is evaluated as it will be deployed, in one frozen draw, unless `noise` says otherwise.

    Raises:
        InputError: a lambda is outside [0, 1], a threshold is neither 0 nor 0.5, or an argument has no meaning for the
            recipe's method.
    """
    method = recipe.method
    if lambdas is not None and not isinstance(method, FloatMethod | OatMethod):
        raise InputError(f"method {method.name} takes no lambda; leave --lambda out")
    if (thresholds is not None or conditionings is not None) and not isinstance(method, FloatMethod):
        raise InputError(f"method {method.name} has no conditioning and no lambda threshold; leave them out")
    if noise is not None and not isinstance(method, FloatMethod):
        raise InputError(f"method {method.name} has no noise; leave --noise out")
    if thresholds is not None and conditionings is not None and set(conditionings) == {"interpolate"}:
        raise InputError("--lambda-threshold has no effect with interpolate; leave it out or use --conditioning switch")
    section = recipe.evaluate
    chosen_widths = widths or section.widths or recipe.model.widths
    chosen_lambdas = section.lambdas if lambdas is None else list(lambdas)
    chosen_thresholds = section.lambda_thresholds if thresholds is None else [*map(check_threshold_value, thresholds)]
    base = [deployed(recipe_setting(recipe, width=width)) for width in chosen_widths]
    base = base if noise is None else [replace(at, noise=noise) for at in base]
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
