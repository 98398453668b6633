"""`reasoning`: what reasoning labels accept and detect (paper 1, Figs. 1 and 2), against the softmax and an adversary.

In RUN/reasoning/, beside the run itself:

    base/           the same recipe without reasoning labels: the paper's dotted line
    alpha-0.25/     the same recipe at another alpha of eq. 3
    alpha-*.json    what was measured on each; a finished one is not computed again

Reference: V. Nanda, J. Ali, K. P. Gummadi, M. B. Zafar, Unifying model explainability and robustness via reasoning
labels, section 4.
"""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploytool.atomic import write_json
from deploytool.attacks.names import parse_name, split_name
from deploytool.attacks.registry import make_attack, recipe_base
from deploytool.data.datasets import load_dataset
from deploytool.data.images import Images
from deploytool.digests import state_digest
from deploytool.errors import InputError
from deploytool.evaluation.accuracy import clean_accuracy
from deploytool.explain.consistency import Answers, area_under, auroc, curve, read_tally, share
from deploytool.models.setting import Setting
from deploytool.progress import progress_bar
from deploytool.recipe import Recipe, make_recipe
from deploytool.runtime.reasoning import check_reasoning_threshold
from deploytool.training.consistency import answers_to, answers_under_attack, consistency_settings, of_right
from deploytool.training.run import Run, load_run
from deploytool.units import read_record, record_key, trained

Row = dict[str, Any]
Announce = Callable[[str], None]

ALPHAS = (0.25, 0.5, 0.75)
THRESHOLDS = (0.9, 1.0)
ATTACKS = ("fgsm", "pgd-20", "pgd-20:iterate=last", "consistent-20")


def reasoning(
    run: Run,
    alphas: Sequence[float] = ALPHAS,
    thresholds: Sequence[float] = THRESHOLDS,
    attacks: Sequence[str] = ATTACKS,
    images: int | None = None,
    device: str = "cpu",
    announce: Announce = lambda line: None,
) -> Row:
    """Measure consistency on a run, on the same recipe at other alphas, and on the one without reasoning labels.

    What is not trained yet is trained; an interrupted study goes on where it stopped.

    Args:
        run: trained with reasoning labels.
        alphas: of eq. 3, in (0, 1); the run's own among them is the run itself.
        thresholds: t_rsn, in [0, 1].
        attacks: names; those on the class alone as the paper's, `consistent-K` on class and reasons together.
        images: at most so many test images; where None, as many as the recipe evaluates.
        device: torch device.
        announce: told one line per network.

    Returns:
        `rows`, one per alpha, lambda, t_rsn and attack (None: images as they are), with `accuracy` of all images,
        `coverage`, `accuracy_consistent` and `accuracy_base` (of the network without reasoning labels); `auroc`, of
        agreement, and `auroc_max_softmax`: telling right from wrong images as they are, or right images from what an
        attack made of them. Of attacks, all of the images that were right before: `detection_rate`, the share rejected
        (the paper's measure), `detection_rate_changed`, the same of changed classes, `class_changed`, the share whose
        class the attack changed, and `evasion_rate`, the share wrong and accepted: what the defence lets through.
        `accuracy_max_softmax`, `detection_rate_max_softmax` and `evasion_rate_max_softmax` are those of the softmax
        rule that accepts as many of the images as they are.
        `epochs`: the same over training, under FGSM; `curves`: coverage and accuracy over all thresholds, by agreement
        and by the largest softmax probability, with the area under the risk-coverage curve. Accuracies are in [0, 1];
        None stands for what no image says.

    Raises:
        InputError: the run has no reasoning labels, or an argument is out of range. DataError: no images.
    """
    if run.recipe.reasoning is None:
        raise InputError(
            f"{run.path} was trained without reasoning labels; add a section reasoning to its recipe and train it"
        )
    alphas, thresholds = _checked(alphas, thresholds)
    base = recipe_base(run.recipe)
    for name in attacks:
        make_attack(name, base)  # refuses before anything is trained
    folder, data = run.path / "reasoning", load_dataset(run.recipe.data)
    test = data.test.head(images or run.recipe.evaluate.images)
    announce("without reasoning labels ...")
    plain = trained(_variant(run.recipe, None), folder / "base", device)
    accuracy_base = {}
    for setting in consistency_settings(run.recipe, plain.model):
        with plain.model.to(device).network(setting) as network:
            accuracy_base[_lambda(plain, setting)] = clean_accuracy(network, test, device)
    units = []
    for alpha in alphas:
        announce(f"alpha {alpha:g} ...")
        own = alpha == run.recipe.reasoning.alpha
        unit = run if own else trained(_variant(run.recipe, alpha), folder / f"alpha-{alpha:g}", device)
        units.append(_measured(unit, folder / f"alpha-{alpha:g}.json", test, thresholds, attacks, device))
    return {
        "run": str(run.path),
        "recipe": run.recipe.name,
        "digest": run.recipe.digest(),
        "data": run.recipe.data.name,
        "train_n": len(data.train),
        "n": len(test),
        "arch": run.recipe.model.arch,
        "method": run.recipe.method.name,
        "epochs_trained": run.recipe.optimizer.epochs,
        "labels": run.model.reasons,
        "eps": base.eps,
        "seed": run.recipe.seed,
        "device": device,
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": [{**row, "accuracy_base": accuracy_base[row["lambda"]]} for unit in units for row in unit["rows"]],
        "epochs": [row for unit in units for row in unit["epochs"]],
        "curves": [row for unit in units for row in unit["curves"]],
    }


def _checked(alphas: Sequence[float], thresholds: Sequence[float]) -> tuple[list[float], list[float]]:
    for alpha in alphas:
        if not 0 < alpha < 1:  # also true for NaN
            raise InputError(f"alpha (={alpha:g}) must be between 0 and 1; it is the weight of the class loss")
    if not alphas or not thresholds:
        raise InputError("no alpha or no t_rsn was named; give at least one of each")
    return list(dict.fromkeys(alphas)), list(dict.fromkeys(map(check_reasoning_threshold, thresholds)))


def _variant(recipe: Recipe, alpha: float | None) -> Recipe:
    """The recipe at another alpha, or without reasoning labels where None."""
    document = recipe.model_dump(mode="json", by_alias=True)
    if alpha is None:
        names = document["evaluate"]["attacks"]
        document["reasoning"] = None
        document["evaluate"]["attacks"] = [name for name in names if not _reasoned(name)] or ["fgsm"]
    else:
        document["reasoning"]["alpha"] = alpha
    return make_recipe(document)


def _reasoned(attack: str) -> bool:
    """Whether an attack is on class and reasons together."""
    return parse_name(split_name(attack)[0]).reasoned


def _lambda(run: Run, setting: Setting) -> float | None:
    return setting.lam if run.model.is_conditional else None


def _measured(
    run: Run, file: Path, test: Images, thresholds: Sequence[float], attacks: Sequence[str], device: str
) -> Row:
    """Rows, epochs and curves of one network, read back where they were measured before."""
    assert run.recipe.reasoning is not None
    key = record_key(
        run.recipe.digest(), state_digest(run.model.state_dict()), len(test), list(thresholds), list(attacks)
    )
    record = read_record(file, key)
    if record is not None:
        return record
    alpha, model = run.recipe.reasoning.alpha, run.model.to(device)
    rows, curves = [], []
    settings = consistency_settings(run.recipe, model)
    with progress_bar("measuring", len(settings) * len(attacks)) as bar:
        for setting in settings:
            where = {"alpha": alpha, "lambda": _lambda(run, setting)}
            before = answers_to(model, setting, test)
            right = of_right(test, before)
            by_reasons, by_softmax = (curve(score, before.right) for score in (before.agreements, before.confidence))
            curves.append({
                **where,
                "agreement": by_reasons,
                "max_softmax": by_softmax,
                "aurc": area_under(by_reasons),
                "aurc_max_softmax": area_under(by_softmax),
            })  # fmt: skip
            rows += [_row(where, t, before) for t in thresholds]
            for name in attacks:
                after: dict[float, Answers] = {}
                for t in thresholds:
                    if len(right) and (_reasoned(name) or not after):  # whose goal depends on the threshold
                        after[t] = answers_under_attack(model, setting, right, run.recipe, name, t)
                    rows.append(_row(where, t, before, name, after.get(t) or next(iter(after.values()), None)))
                bar.advance(f"{name} alpha {alpha:g}")
    result = {"recipe": key, "rows": rows, "epochs": _epochs(run, thresholds), "curves": curves}
    write_json(file, result)
    return result


SCORES = {"auroc": "agreements", "auroc_max_softmax": "confidence"}
MEASURES = (
    "detection_rate", "detection_rate_changed", "detection_rate_max_softmax", "class_changed", "evasion_rate",
    "evasion_rate_max_softmax", *SCORES,
)  # fmt: skip


def _row(where: Row, threshold: float, before: Answers, attack: str | None = None, after: Answers | None = None) -> Row:
    """One row; `after` are the answers to what the attack made of the right images, None where there were none."""
    least = before.confidence_at(before.coverage(threshold))
    sure = before.confidence >= least
    row: Row = {
        **where,
        "t_rsn": threshold,
        "coverage": before.coverage(threshold),
        "accuracy_consistent": before.accuracy_consistent(threshold),
        "accuracy_max_softmax": float(before.right[sure].mean()) if sure.any() else None,
        "accuracy": before.accuracy,
        "attack": attack,
        "n": len(before),
        "n_attacked": None if attack is None else int(before.right.sum()),
    }
    row |= dict.fromkeys(MEASURES)
    if attack is None:
        row["auroc"], row["auroc_max_softmax"] = before.error_auroc()
    elif after is not None:
        accepted, changed, right = after.accepted(threshold), ~after.right, before[before.right]
        row |= {
            "detection_rate": float((~accepted).mean()),
            "detection_rate_changed": share(int((changed & ~accepted).sum()), int(changed.sum())),
            "class_changed": float(changed.mean()),
            "evasion_rate": float((changed & accepted).mean()),
            "detection_rate_max_softmax": float((after.confidence < least).mean()),
            "evasion_rate_max_softmax": float((changed & (after.confidence >= least)).mean()),
            **{name: _separation(right, after, score) for name, score in SCORES.items()},
        }
    return row


def _separation(right: Answers, after: Answers, score: str) -> float | None:
    """AUROC of a score that is to be high for images as they are, low for attacked ones."""
    values = np.concatenate([getattr(answers, score) for answers in (right, after)])
    return auroc(values, np.arange(len(values)) < len(right))


def _epochs(run: Run, thresholds: Sequence[float]) -> list[Row]:
    """What training noted, read at each threshold; empty where the recipe's `reasoning.every` is 0."""
    assert run.recipe.reasoning is not None
    return [
        {
            "alpha": run.recipe.reasoning.alpha,
            "lambda": counts["lambda"],
            "t_rsn": threshold,
            "epoch": metrics["epoch"],
            **read_tally(counts, threshold),
        }
        for metrics in run.checkpoint.history
        for counts in metrics.get("consistency", [])
        for threshold in thresholds
    ]


def reasoning_run(source: Path, recipe: Recipe | None, folder: Path | None = None, device: str = "cpu") -> Run:
    """The run that a study starts from: a trained one, or a recipe's, trained now where it is not yet.

    Args:
        source: the run's folder, where `recipe` is None.
        recipe: to train instead.
        folder: where to; runs/NAME where None.
        device: torch device.
    """
    if recipe is None:
        return load_run(source)
    return trained(recipe, folder or Path("runs") / recipe.name, device)
