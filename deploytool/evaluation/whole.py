"""The evaluation of a run: rows, the checks that go with them, and adversarial examples to keep."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from deploytool.attacks.randomised import is_randomised
from deploytool.attacks.registry import AttackBase, make_attack, recipe_base
from deploytool.attacks.run import AttackResult, needs_rule
from deploytool.data.datasets import load_dataset
from deploytool.data.images import Images
from deploytool.errors import InputError
from deploytool.evaluation.accuracy import Row, answering, evaluate_model, setting_columns
from deploytool.evaluation.adaptive import acceptance_rule, adaptive_attacks
from deploytool.evaluation.honesty import EOT, Finding, Ladder, check_network, check_randomness, check_rows, describe
from deploytool.evaluation.saved import save_examples
from deploytool.evaluation.settings import evaluation_settings
from deploytool.models.conditional import ConditionalModel
from deploytool.models.setting import Setting
from deploytool.progress import progress_bar
from deploytool.recipe import Recipe
from deploytool.training.run import Run

Split = Literal["test", "train"]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        rows: see `evaluate_model`; with `file` where the adversarial examples were kept.
        findings: of the honesty checks.
        ladders: robust accuracy over growing radii, per setting.
        conditions: device and versions.
    """

    rows: list[Row]
    findings: list[Finding]
    ladders: list[Ladder] = field(default_factory=list)
    conditions: Row = field(default_factory=dict)

    def to_dict(self) -> Row:
        """For a JSON document."""
        return {
            "rows": self.rows,
            "warnings": [finding.to_dict() for finding in self.findings],
            "checks": [row for ladder in self.ladders for row in ladder.to_rows()],
            **self.conditions,
        }


def evaluate(
    run: Run,
    attacks: Sequence[str] | None = None,
    settings: Sequence[Setting] | None = None,
    images: int | None = None,
    device: str = "cpu",
    base: AttackBase | None = None,
    save: Path | None = None,
    split: Split = "test",
    checks: bool = True,
    adaptive: bool = False,
) -> Evaluation:
    """Evaluate a trained run; arguments that are None come from the recipe.

    Args:
        run: the run.
        attacks: names, see `deploytool.attacks.names`.
        settings: the knobs.
        images: at most so many.
        device: torch device.
        base: from which attacks take their budgets.
        save: folder for the adversarial examples, one file per attack and setting.
        split: the images.
        checks: False to leave the honesty checks out, where adversarial examples are all that is wanted.
        adaptive: attack the rule of acceptance too, and say in every row what it makes of the attack; see
            `evaluation.adaptive`.

    Raises:
        DataError: the data set cannot be loaded.
        InputError: no attack has such a name, a budget is out of range, or the run has no reasoning labels where
            `adaptive` or an attack needs them.
    """
    recipe, model = run.recipe, run.model
    names = list(dict.fromkeys(attacks or recipe.evaluate.attacks))
    base = base or recipe_base(recipe)
    if adaptive:
        refuse_adaptive(run)
        names = adaptive_attacks(names, base)
    for name in names:  # refuses before anything is computed
        if needs_rule(make_attack(name, base)) and acceptance_rule(model, recipe) is None:
            raise InputError(
                f"attack (={name[:60]!r}) is on class and reasoning labels, and {run.path} has no reasoning labels; "
                "use an attack on the class alone, such as apgd-t"
            )
    data = load_dataset(recipe.data)
    part = (data.test if split == "test" else data.train).head(images or recipe.evaluate.images)
    chosen = settings or evaluation_settings(recipe)
    files: dict[Any, str] = {}

    def keep(name: str, setting: Setting, result: AttackResult) -> None:
        assert save is not None
        files[model.knobs(setting), name] = save_examples(save, name, model, setting, part, result)

    rows = evaluate_model(
        model.to(device), part, recipe, names, chosen, base, keep if save is not None else None, adaptive
    )
    if save is not None:
        keys = [(model.knobs(setting), name) for name in names for setting in chosen]
        rows = [{**row, "file": files[key]} for row, key in zip(rows, keys, strict=True)]
    if not checks:
        return Evaluation(rows, [])
    findings = check_rows(rows)
    ladders, more = check_settings(model, part, recipe, rows, chosen, base.eps)
    conditions = {"device": device, "torch": torch.__version__, "processor": platform.machine(), "split": split}
    return Evaluation(
        rows, [*findings, *(f for ladder in ladders for f in ladder.findings()), *more], ladders, conditions
    )


def check_settings(
    model: ConditionalModel, part: Images, recipe: Recipe, rows: Sequence[Row], settings: Sequence[Setting], eps: float
) -> tuple[list[Ladder], list[Finding]]:
    """Attack a few images of each state with growing radii, and see whether it draws noise."""
    states = {model.knobs(setting): setting for setting in settings}
    device = next(model.parameters()).device
    image, label = (tensor.to(device) for tensor in part.batch(slice(0, 64)))
    budgets = {row["attack"]: row for row in rows}.values()
    ladders, findings = [], []
    with progress_bar("checking", len(states)) as bar:
        for setting in states.values():
            at = describe(setting_columns(model, setting)).strip(" ()")
            with answering(model, setting, recipe.seed) as network:
                randomised = is_randomised(network, image[:8])
                findings += check_randomness(randomised, budgets, at)
                if eps > 0:
                    passes = EOT if randomised else 1
                    ladders.append(check_network(network, image, label, eps, recipe.seed, at, passes))
            bar.advance(at)
    return ladders, findings


def refuse_adaptive(run: Run) -> None:
    """Raise InputError where nothing that a deployment could rely on beside the logits is in a run.

    Every attack here is adaptive towards the logits: it is run on the very network of each setting. What decides on
    acceptance beside them (the consistency of reasoning labels, CPL) has to be attacked together with them.
    """
    if acceptance_rule(run.model, run.recipe) is None:
        raise InputError(
            f"{run.path} answers with logits alone, which all attacks adapt to already; --adaptive attacks the "
            "acceptance rules of runs with reasoning labels or a library, and this run has neither; leave it out"
        )
