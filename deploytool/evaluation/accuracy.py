"""Rows of accuracies: every attack at every setting."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from deploytool.attacks.acceptance import AcceptanceRule
from deploytool.attacks.detection import Judged, judge
from deploytool.attacks.randomised import redrawn_network
from deploytool.attacks.registry import AttackBase, make_attack, recipe_base, target_rule
from deploytool.attacks.run import (
    BATCH,
    Attack,
    AttackResult,
    attack_batches,
    batches,
    budget_of,
    merge,
    needs_rule,
    passes,
)
from deploytool.attacks.targets import with_targets
from deploytool.data.images import Images
from deploytool.evaluation.adaptive import acceptance_columns, acceptance_rule
from deploytool.models.conditional import ConditionalModel, Network
from deploytool.models.setting import Setting
from deploytool.progress import progress_bar
from deploytool.recipe import Recipe

Row = dict[str, Any]
T = TypeVar("T")
OnResult = Callable[[str, Setting, AttackResult], None]


def evaluate_model(
    model: ConditionalModel,
    test: Images,
    recipe: Recipe,
    attacks: Sequence[str],
    settings: Sequence[Setting],
    base: AttackBase | None = None,
    on_result: OnResult | None = None,
    adaptive: bool = False,
) -> list[Row]:
    """Measure clean and robust accuracy: attacks on exactly the network that answers.

    Settings that amount to the same state (equal noise scale and batch-norm mix) are computed once. Random numbers
    depend on recipe.seed and the batch alone, so every setting meets the same starts.

    Args:
        model: on its device.
        test: the images.
        recipe: for its seed.
        attacks: names, see `deploytool.attacks.names`.
        settings: the knobs.
        base: budgets' base; the recipe's where None.
        on_result: given the adversarial examples of each attack and state; they are held in memory for that.
        adaptive: say in every row what the rule of acceptance makes of the attack, for a model with reasoning labels;
            without, that is said where an attack such as `consistent-20` is on the rule itself.

    Returns:
        Rows `{attack, lambda, lambda_threshold, conditioning, noise, width, clean_accuracy, robust_accuracy, n, norm,
        eps, seed, budget, target_rate, found_by, median_distance}` in the order settings within attacks; accuracies in
        [0, 1]; `lambda` is None where the method has none, `lambda_threshold` None where it is not used; see
        `attack_columns`, and `acceptance_columns` for those that a rule of acceptance adds.

    Raises:
        InputError: no attack has such a name, a budget is out of range, or an attack needs reasoning labels that the
            model does not have.
    """
    device = next(model.parameters()).device
    plans = {name: make_attack(name, base or recipe_base(recipe)) for name in attacks}
    rule = acceptance_rule(model, recipe) if adaptive or any(map(needs_rule, plans.values())) else None
    states = {model.knobs(setting): setting for setting in settings}
    columns: dict[Any, Row] = {}
    with progress_bar("evaluating", len(states) * (1 + len(plans)) * -(-len(test) // BATCH)) as bar:
        for key, setting in states.items():
            with answering(model, setting, recipe.seed, rule is not None) as network:
                before: dict[int, Judged] = {}  # by the number of passes whose mean is the answer
                if rule is None:
                    clean = clean_accuracy(network, test, device, bar.advance)
                else:
                    before[1] = judge(network, noted(image_batches(test, device), bar.advance, "clean"), rule)
                    clean = before[1].accuracy
                for name, attack in plans.items():
                    results = attacked(network, test, attack, recipe.seed, name, device, rule)
                    kept = []
                    for result in noted(results, bar.advance, f"{name} {_label(model, setting)}"):
                        kept.append(result if on_result else without_images(result))
                    whole = merge(kept)
                    if on_result is not None:
                        on_result(name, setting, whole)
                    columns[key, name] = {"clean_accuracy": clean, **attack_columns(whole, attack)}
                    if rule is not None:
                        mean = passes(attack)
                        if mean not in before:
                            before[mean] = judge(network, image_batches(test, device), rule, mean)
                        columns[key, name] |= acceptance_columns(rule, before[mean], whole)
    return [
        {"attack": name, **setting_columns(model, setting), **columns[model.knobs(setting), name]}
        for name in attacks
        for setting in settings
    ]


def setting_columns(model: ConditionalModel, setting: Setting) -> Row:
    """The part of a row that says at which setting; None for knobs that the model does not have."""
    conditional = model.is_conditional
    return {
        "lambda": setting.lam if conditional else None,
        "lambda_threshold": setting.lambda_threshold if conditional and setting.conditioning == "switch" else None,
        "conditioning": setting.conditioning if conditional else None,
        "noise": setting.noise if conditional else None,
        "width": setting.width,
    }


def attack_columns(result: AttackResult, attack: Attack) -> Row:
    """The part of a row that says what an attack did, and with which budget.

    Under a targeted attack `robust_accuracy` is the share of images that keep their label, and `target_rate` the share
    that reach the target; else that is None. Under an attack on class and reasons `robust_accuracy` is the share of all
    images for which no wrong answer that is accepted was found: an image that is rejected counts as robust. `found_by`,
    of AutoAttack, is the number of images that each member fooled; `median_distance`, of attacks that look for the
    smallest perturbation, the median norm over all images, None where more than half withstood at any norm.
    """
    median = float(result.smallest.median()) if result.minimal else float("inf")
    targeted = attack.targeted
    return {
        "robust_accuracy": int(result.correct.sum()) / len(result) if targeted else result.robust_accuracy(),
        "target_rate": int(result.fooled.sum()) / len(result) if targeted else None,
        "n": len(result),
        "norm": attack.norm,
        "eps": attack.eps,
        "seed": result.record["seed"],
        "budget": budget_of(attack),
        "found_by": result.found_by,
        "median_distance": median if median < float("inf") else None,
    }


@contextmanager
def answering(model: ConditionalModel, setting: Setting, seed: int, reasoning: bool = False) -> Iterator[Network]:
    """The network of a setting, as it answers: with redrawn noise, of a new draw for every batch.

    It answers logits (N, K), with `reasoning` (N, K + R).
    """
    if setting.noise == "redrawn" and setting.noise_scale:
        device = next(model.parameters()).device
        yield redrawn_network(model, setting, torch.Generator(device).manual_seed(seed), reasoning)
        return
    with model.network(setting, reasoning=reasoning) as network:
        yield network


@torch.no_grad()
def clean_accuracy(
    network: Network, test: Images, device: torch.device | str = "cpu", on_batch: Callable[[str], object] = str
) -> float:
    """Share of images that a network gets right, in [0, 1]."""
    correct = 0
    for image, label in image_batches(test, device):
        correct += int((network(image).argmax(1) == label).sum())
        on_batch("clean")
    return correct / len(test)


def attacked(
    network: Network,
    test: Images,
    attack: Attack,
    seed: int,
    name: str,
    device: torch.device | str = "cpu",
    rule: AcceptanceRule | None = None,
) -> Iterator[AttackResult]:
    """Attack all images batch by batch; with a rule the network answers (N, K + R), see `run_attack`."""
    named = network if rule is None else rule.to(device).class_network(network)
    parts = with_targets(named, image_batches(test, device), target_rule(name), seed)
    return attack_batches(network, parts, attack, seed, name, rule)


def noted(results: Iterator[T], advance: Callable[[str], object], note: str) -> Iterator[T]:
    """Pass results on, with one step of a progress bar for each."""
    for result in results:
        advance(note)
        yield result


def image_batches(test: Images, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (image (B, C, H, W), label (B,)) of all images, on a device."""
    for rows in batches(len(test), BATCH):
        image, label = test.batch(rows)
        yield image.to(device), label.to(device)


def without_images(result: AttackResult) -> AttackResult:
    """A result whose images are dropped, so that memory does not grow with their number."""
    return replace(result, image=result.image.new_empty(0, *result.image.shape[1:]))  # a slice would hold them all


def _label(model: ConditionalModel, setting: Setting) -> str:
    return f"lambda {setting.lam:g}" if model.is_conditional else ""


def setting_of(columns: Mapping[str, Any]) -> Setting:
    """The setting that `setting_columns` describes."""
    return Setting(
        columns["lambda"] or 0.0,
        columns["lambda_threshold"] or 0.0,
        columns["conditioning"] or "switch",
        columns["noise"] or "none",
        columns["width"],
    )
