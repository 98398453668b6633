"""`reasoning`: what reasoning labels accept and detect (paper 1, Figs. 1 and 2), against the softmax and an adversary.

In RUN/reasoning/, beside the run itself:

    base/           the same recipe without reasoning labels: the paper's dotted line
    alpha-0.25/     the same recipe and labels at another alpha of eq. 3
    answers/        answers to images before and after each attack, which are not computed again

Reference: V. Nanda, J. Ali, K. P. Gummadi, M. B. Zafar, Unifying model explainability and robustness via reasoning
labels, section 4.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploytool import __version__
from deploytool.attacks.detection import Detection
from deploytool.attacks.names import is_reasoned
from deploytool.attacks.registry import make_attack, recipe_base
from deploytool.attacks.run import budget_of
from deploytool.data.datasets import load_dataset
from deploytool.data.images import Images
from deploytool.digests import state_digest
from deploytool.errors import InputError
from deploytool.evaluation.accuracy import clean_accuracy
from deploytool.explain.consistency import (
    Answers,
    area_under,
    auroc,
    curve,
    load_answers,
    read_tally,
    save_answers,
    share,
)
from deploytool.models.setting import Setting
from deploytool.progress import progress_bar
from deploytool.recipe import Recipe, make_recipe
from deploytool.runtime.reasoning import check_reasoning_threshold
from deploytool.training.consistency import answers_to, answers_under_attack, consistency_settings, of_right
from deploytool.training.run import Run
from deploytool.units import record_key, trained

Row = dict[str, Any]
Announce = Callable[[str], None]

ALPHAS = (0.25, 0.5, 0.75)
THRESHOLDS = (0.9, 1.0)
ATTACKS = ("fgsm", "pgd-20", "pgd-20:iterate=last", "consistent-20")


@dataclass(frozen=True)
class Grid:
    """What a study measures.

    Attributes:
        alphas: of eq. 3, in (0, 1).
        thresholds: t_rsn, in [0, 1].
        attacks: names; those on the class alone as the paper's, `consistent-K` on class and reasons together.
        images: at most so many test images; where None, as many as the recipe evaluates.

    Raises:
        InputError: a number is out of range, or there is no alpha or no threshold.
    """

    alphas: Sequence[float] = ALPHAS
    thresholds: Sequence[float] = THRESHOLDS
    attacks: Sequence[str] = ATTACKS
    images: int | None = None

    def __post_init__(self) -> None:
        for alpha in self.alphas:
            if not 0 < alpha < 1:  # also true for NaN
                raise InputError(f"alpha (={alpha:g}) must be between 0 and 1; it is the weight of the class loss")
        if not self.alphas or not self.thresholds:
            raise InputError("no alpha or no t_rsn was named; give at least one of each")
        for name, values in (
            ("alphas", self.alphas),
            ("thresholds", map(check_reasoning_threshold, self.thresholds)),
            ("attacks", self.attacks),
        ):
            object.__setattr__(self, name, tuple(dict.fromkeys(values)))


def reasoning(
    source: Run | Recipe,
    grid: Grid | None = None,
    folder: Path | None = None,
    device: str = "cpu",
    announce: Announce = lambda line: None,
) -> Row:
    """Measure consistency on a run, on the same recipe at other alphas, and on the one without reasoning labels.

    What is not trained yet is trained; an interrupted study goes on where it stopped.

    Args:
        source: a run with reasoning labels, or a recipe to train first; its own alpha needs no other run.
        grid: what to measure.
        folder: where to train a recipe; runs/NAME where None.
        device: torch device.
        announce: told one line per network.

    Returns:
        `rows`, one per alpha, width, lambda, t_rsn and attack (None: images as they are); see `_row`; lambdas are both
        boundary conditions, None where the method has none. Accuracies are in [0, 1]; None stands for what no image
        says. `epochs`: coverage, accuracy and detection over training, under FGSM at full width; `curves`: coverage
        and accuracy over all thresholds, by agreement and by the largest softmax probability, with the area under the
        risk-coverage curve; `warnings`: of attacks that are too weak to say what the rule is worth.

    Raises:
        InputError: there are no reasoning labels, or an argument is out of range. DataError: no images.
    """
    recipe, grid = source if isinstance(source, Recipe) else source.recipe, grid or Grid()
    name = recipe.name if isinstance(source, Recipe) else source.path
    if recipe.reasoning is None:
        raise InputError(f"{name} has no reasoning labels; add a section reasoning to its recipe and train it")
    base = recipe_base(recipe)
    for attack in grid.attacks:
        make_attack(attack, base)  # refuses before anything is trained
    data = load_dataset(recipe.data)
    test = data.test.head(grid.images or recipe.evaluate.images)
    if isinstance(source, Recipe):
        announce(f"alpha {recipe.reasoning.alpha:g} ...")
        run = trained(recipe, folder or Path("runs") / recipe.name, device)
    else:  # one that was interrupted goes on
        run = source if source.checkpoint.epochs == recipe.optimizer.epochs else trained(recipe, source.path, device)
    place = run.path / "reasoning"
    announce("without reasoning labels ...")
    plain = trained(_variant(recipe, None), place / "base", device)
    accuracy_base = {}
    for setting in consistency_settings(recipe, plain.model, plain.model.widths):
        with plain.model.to(device).network(setting) as network:
            accuracy_base[_knobs(plain, setting)] = clean_accuracy(network, test, device)
    rows, epochs, curves = [], [], []
    for alpha in grid.alphas:
        announce(f"alpha {alpha:g} ...")
        own = alpha == recipe.reasoning.alpha
        unit = run if own else trained(_variant(recipe, alpha), place / f"alpha-{alpha!r}", device, run.labels)
        measured, points = _measured(unit, place / "answers", test, grid, device)
        rows += [{**row, "accuracy_base": accuracy_base[row["width"], row["lambda"]]} for row in measured]
        curves += points
        epochs += _epochs(unit, grid.thresholds)
    return {
        "run": str(run.path),
        "recipe": recipe.name,
        "digest": recipe.digest(),
        "data": recipe.data.name,
        "train_n": len(data.train),
        "n": len(test),
        "arch": recipe.model.arch,
        "method": recipe.method.name,
        "epochs_trained": recipe.optimizer.epochs,
        "labels": run.model.reasons,
        "eps": base.eps,
        "seed": recipe.seed,
        "device": device,
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
        "epochs": epochs,
        "curves": curves,
        "warnings": _warnings(rows),
    }


def _variant(recipe: Recipe, alpha: float | None) -> Recipe:
    """The recipe at another alpha, or without reasoning labels where None."""
    document = recipe.model_dump(mode="json", by_alias=True)
    if alpha is None:
        names = document["evaluate"]["attacks"]
        document["reasoning"] = None
        document["evaluate"]["attacks"] = [name for name in names if not is_reasoned(name)] or ["fgsm"]
    else:
        document["reasoning"]["alpha"] = alpha
    return make_recipe(document)


def _knobs(run: Run, setting: Setting) -> tuple[float, float | None]:
    """Width, and lambda where the method has one."""
    return setting.width, setting.lam if run.model.is_conditional else None


def _measured(run: Run, folder: Path, test: Images, grid: Grid, device: str) -> tuple[list[Row], list[Row]]:
    """Rows and curves of one network; answers that were computed before are read back."""
    assert run.recipe.reasoning is not None
    alpha, model = run.recipe.reasoning.alpha, run.model.to(device)
    state = state_digest(model.state_dict())
    settings = consistency_settings(run.recipe, model, model.widths)
    rows: list[Row] = []
    curves: list[Row] = []
    with progress_bar("measuring", len(settings) * (1 + len(grid.attacks))) as bar:
        for setting in settings:
            width, lam = _knobs(run, setting)
            where: Row = {"alpha": alpha, "width": width, "lambda": lam}

            def kept(ask: Callable[[], Answers], *what: Any, where: Row = where) -> Answers:
                """What `ask` gives, or gave before."""
                key = record_key(__version__, run.recipe.digest(), state, len(test), where, *what)
                found = load_answers(folder / f"{key}.npz", key)
                if found is None:
                    found = ask()
                    save_answers(folder / f"{key}.npz", found, key)
                return found

            before = kept(partial(answers_to, model, setting, test))
            right = of_right(test, before)
            attacked = partial(answers_under_attack, model, setting, right, run.recipe)
            curves.append({**where, **_curves(before)})
            rows += [_row(where, t, before) for t in grid.thresholds]
            bar.advance(f"alpha {alpha:g}")
            for name in grid.attacks:
                budget = budget_of(make_attack(name, recipe_base(run.recipe)))
                for t in grid.thresholds:
                    goal = t if is_reasoned(name) else None
                    after = kept(partial(attacked, name, goal), name, budget, goal) if len(right) else None
                    rows.append(_row(where, t, before, name, after))
                bar.advance(f"{name} alpha {alpha:g}")
    return rows, curves


SCORES = {"auroc": "agreements", "auroc_max_softmax": "confidence"}
MEASURES = (
    "coverage_right", "class_changed", "detection_rate", "detection_rate_changed", "rejected_rate", "evasion_rate",
    "detection_rate_max_softmax", "evasion_rate_max_softmax", *SCORES,
)  # fmt: skip


def _row(where: Row, threshold: float, before: Answers, attack: str | None = None, after: Answers | None = None) -> Row:
    """What one rule makes of images, and of an attack.

    Args:
        where: alpha, width and lambda.
        threshold: t_rsn.
        before: the answers to all images as they are.
        attack: its name; None for a row of images as they are.
        after: the answers to what it made of the images that were right, in their order; None where there were none.

    Returns:
        `accuracy` of all images, `coverage`, `accuracy_consistent` and, of the softmax rule that accepts as many,
        `accuracy_max_softmax`. Without attack, `auroc` and `auroc_max_softmax`: telling right answers from wrong ones.
        With one, all of the images that were right before, as the paper measures it: `coverage_right`, accepted as
        they are; `class_changed`; `detection_rate`, rejected after the attack; `detection_rate_changed`, the same of
        changed classes; `rejected_rate`, the same of those accepted before; `evasion_rate`, wrong and accepted after;
        the AUROCs of telling them from what they were. The `_max_softmax` ones are None for attacks on class and
        reasons together, which know of one of the two rules alone.
    """
    least = before.confidence_at(before.coverage(threshold))
    sure = before.judged(before.confidence >= least)
    row: Row = {
        **where,
        "t_rsn": threshold,
        "coverage": before.coverage(threshold),
        "accuracy_consistent": before.accuracy_consistent(threshold),
        "accuracy_max_softmax": sure.accuracy_accepted,
        "accuracy": before.accuracy,
        "attack": attack,
        "n": len(before),
        "n_attacked": None if attack is None else int(before.right.sum()),
        **dict.fromkeys(MEASURES),
    }
    if attack is None:
        row["auroc"], row["auroc_max_softmax"] = before.error_auroc()
    elif after is not None:
        right = before[before.right]
        found = Detection(right.judged(right.accepted(threshold)), after.judged(after.accepted(threshold)))
        rival = Detection(right.judged(right.confidence >= least), after.judged(after.confidence >= least))
        row |= {
            "coverage_right": found.before.coverage,
            "class_changed": share(int((~after.right).sum()), len(after)),
            "detection_rate": found.detection_rate,
            "detection_rate_changed": found.detection_rate_changed,
            "rejected_rate": found.rejected_rate,
            "evasion_rate": found.undetected_rate,
            "auroc": _separation(right, after, "agreements"),
        }
        if not is_reasoned(attack):
            row |= {
                "detection_rate_max_softmax": rival.detection_rate,
                "evasion_rate_max_softmax": rival.undetected_rate,
                "auroc_max_softmax": _separation(right, after, "confidence"),
            }
    return row


def _separation(right: Answers, after: Answers, score: str) -> float | None:
    """AUROC of a score that is to be high for images as they are, low for attacked ones."""
    values = np.concatenate([getattr(answers, score) for answers in (right, after)])
    return auroc(values, np.arange(len(values)) < len(right))


def _curves(before: Answers) -> Row:
    """Coverage against accuracy, and the area under risk and coverage, by both scores."""
    agreement, softmax = (curve(score, before.right) for score in (before.agreements, before.confidence))
    return {
        "agreement": agreement,
        "max_softmax": softmax,
        "aurc": area_under(agreement),
        "aurc_max_softmax": area_under(softmax),
    }


def _epochs(run: Run, thresholds: Sequence[float]) -> list[Row]:
    """What training noted, read at each threshold; empty where the recipe's `reasoning.every` is 0."""
    assert run.recipe.reasoning is not None
    return [
        {
            "alpha": run.recipe.reasoning.alpha,
            "width": 1.0,
            "lambda": counts["lambda"],
            "t_rsn": threshold,
            "epoch": metrics["epoch"],
            **read_tally(counts, threshold),
        }
        for metrics in run.checkpoint.history
        for counts in metrics.get("consistency", [])
        for threshold in thresholds
    ]


def _warnings(rows: Sequence[Row]) -> list[str]:
    """One line where no attack knew the rule, or where one that did let less through than one that did not."""
    attacks = {row["attack"] for row in rows if row["attack"] is not None}
    if attacks and not any(map(is_reasoned, attacks)):
        return ["no attack knew of the rule of acceptance: detection rates are upper bounds; add consistent-20"]
    found = []
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["evasion_rate"] is not None:
            groups.setdefault((row["alpha"], row["width"], row["lambda"], row["t_rsn"]), []).append(row)
    for group in groups.values():
        aware = max(row["evasion_rate"] for row in group if is_reasoned(row["attack"]))
        best = max(group, key=lambda row: row["evasion_rate"])
        if best["evasion_rate"] > aware + 1 / best["n_attacked"] ** 0.5:
            found.append(
                f"{best['attack']} evades the rule at {best['evasion_rate']:.3f} without knowing it, attacks that know "
                f"it at {aware:.3f} (alpha {best['alpha']:g}, t_rsn {best['t_rsn']:g}): use more steps or restarts"
            )
    return found
