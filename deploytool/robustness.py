"""`robustness`: what sparse regularisation does to robustness and attribution (paper 2, Tables 1 and 2, Figs. 1 and 2).

For every backbone, regularisation and seed, in FOLDER/ARCH-REGULARISATION-seedS/:

    first/         trained with the regularisation
    adversarial/   training and test images, attacked on `first`
    retrained/     `first`, trained on with those training images added (section 4.2: adversarial retraining)
    record.json    what was measured; a unit that has it is not computed again

The paper's text leaves open whether Table 1 shows the retrained network on images attacked before it was retrained, or
attacked anew. Both are measured: `saved`, those kept in `adversarial/`, which is what retraining has seen the like of,
and `white_box`, the accuracy under the attack on the retrained network itself, which is what robustness means today.

Reference: D. Schwartz, Y. Alparslan, E. Kim, Regularization and sparsity for adversarial robustness and stable
attribution, sections 4.1 to 4.3.
"""

import json
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploytool.atomic import write_json, write_text
from deploytool.attacks.registry import make_attack, recipe_base
from deploytool.attacks.store import load_adversarial
from deploytool.data.datasets import load_dataset
from deploytool.data.images import Dataset, Images
from deploytool.digests import state_digest
from deploytool.errors import DataError, RecipeError
from deploytool.evaluation import deployed, evaluate
from deploytool.evaluation.accuracy import clean_accuracy
from deploytool.explain.study import Plan, stability
from deploytool.models.factory import recipe_setting
from deploytool.models.registry import build_backbone
from deploytool.models.setting import Setting
from deploytool.recipe import Recipe, RobustnessSection, make_recipe
from deploytool.training.density import density_metrics
from deploytool.training.run import Run
from deploytool.units import read_record, record_key, trained

Row = dict[str, Any]
Announce = Callable[[str], None]

SINGLE = "single-layer-cnn"


def robustness(
    recipe: Recipe,
    folder: Path,
    seeds: Sequence[int] = (0,),
    device: str = "cpu",
    announce: Announce = lambda line: None,
) -> Row:
    """Train, attack, retrain, attack again and explain; an interrupted study goes on where it stopped.

    Args:
        recipe: images, method, optimiser, and the section `robustness`.
        folder: to write to.
        seeds: every unit is trained once for each.
        device: torch device.
        announce: told one line per unit.

    Returns:
        `rows`, one per backbone, regularisation and attack; `networks`, one per backbone and regularisation, with clean
        accuracies and densities; `stability`, one per backbone, regularisation and change; `densities`, one per lambda
        of eq. 5; `warnings` of the honesty checks; and the conditions. Figures are means over the seeds, with `_std`
        beside them, which is None for one seed.

    Raises:
        RecipeError: a backbone is unknown, or the study cannot be. InputError: an attack cannot be.
        DataError: the data set cannot be loaded.
    """
    section, folder = recipe.robustness, folder.resolve()  # runs keep paths: another working directory may go on
    archs = section.archs or [recipe.model.arch]
    data = load_dataset(recipe.data)
    _refuse_early(recipe, archs, data)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    dense = []
    for lam in section.activations:
        for seed in seeds:
            announce(f"{SINGLE}, activation lambda {lam:g}, seed {seed} ...")
            place = folder / _slug(f"{SINGLE}-activation-{lam:g}-seed{seed}")
            dense.append(_dense(_sparse_coding(recipe, lam, seed), data, place, device))
    units = []
    for arch in archs:
        for name in section.regularizations:
            for seed in seeds:
                announce(f"{arch}, {name}, seed {seed} ...")
                place = folder / _slug(f"{arch}-{name}-seed{seed}")
                units.append(_unit(_variant(recipe, arch, name, seed), name, section, data, place, device))
    test = data.test.head(recipe.evaluate.images)
    return {
        "recipe": recipe.name,
        "digest": recipe.digest(),
        "command": f"deploytool robustness {folder / 'recipe.yaml'} --seeds {','.join(map(str, seeds))}",
        "data": recipe.data.name,
        "n": len(test),
        "train_n": len(data.train),
        "train_images": min(section.train_images, len(data.train)),
        "epochs": recipe.optimizer.epochs,
        "retrain_epochs": section.retrain_epochs,
        "seeds": list(seeds),
        "device": device,
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "captum": version("captum"),
        "rows": means([row for unit in units for row in unit["rows"]], ("arch", "regularization", "attack")),
        "networks": means([unit["network"] for unit in units], ("arch", "regularization")),
        "stability": means(
            [row for unit in units for row in unit["stability"]], ("arch", "regularization", "attribution")
        ),
        "densities": means(dense, ("activation",)),
        "warnings": [warning for unit in units for warning in unit["warnings"]],
    }


def _refuse_early(recipe: Recipe, archs: Sequence[str], data: Dataset) -> None:
    """Raise what would else be found after hours of training."""
    section = recipe.robustness
    for arch in archs:
        build_backbone(arch, data.info)
    if recipe.model.weights is not None and archs != [recipe.model.arch]:
        raise RecipeError("robustness.archs must be left out where model.weights is given: they fit model.arch alone")
    for name in section.attacks:
        make_attack(name, recipe_base(recipe))
    if section.activations and not recipe.optimizer.epochs:
        raise RecipeError("robustness.activations must be [] where optimizer.epochs is 0: Fig. 1 is about training")
    places = [_slug(name) for name in section.regularizations]
    if len(set(places)) < len(places):
        raise RecipeError(f"robustness.regularizations: two names would share a folder ({', '.join(places)})")


def _variant(recipe: Recipe, arch: str, name: str, seed: int) -> Recipe:
    """The recipe of one backbone, regularisation and seed; the rest of the study is not part of it."""
    penalty = recipe.robustness.regularizations[name].model_dump(mode="json")
    document = _alone(recipe) | {"regularization": penalty, "seed": seed}
    document["model"]["arch"] = arch
    return make_recipe(document)


def _sparse_coding(recipe: Recipe, lam: float, seed: int) -> Recipe:
    """The single-layer CNN of Fig. 1 at one lambda of eq. 5, trained plainly."""
    document = _alone(recipe)
    document |= {"regularization": {"activation": lam}, "seed": seed, "method": {"name": "standard"}, "sparsity": None}
    document["model"] = {"arch": SINGLE}
    document["optimizer"]["lr"] = recipe.robustness.activation_lr
    document["data"]["adversarial"] = []
    return make_recipe(document)


def _alone(recipe: Recipe) -> dict[str, Any]:
    """A recipe's document without its study: units stay what they are when backbones or penalties are added."""
    document = recipe.model_dump(mode="json", by_alias=True)
    del document["robustness"]
    return document


def _unit(recipe: Recipe, name: str, section: RobustnessSection, data: Dataset, place: Path, device: str) -> Row:
    """Everything about one backbone, regularisation and seed."""
    key = _key(recipe, section)
    record = read_record(place / "record.json", key)
    if record is not None:
        return record
    test, setting = data.test.head(recipe.evaluate.images), deployed(recipe_setting(recipe))
    where = {"arch": recipe.model.arch, "regularization": name}
    first = trained(recipe, place / "first", device)
    before = _attack(first, setting, section.attacks, place / "adversarial" / "test", "test", len(test), device)
    retrained = _retrained(recipe, section, first, setting, place, device)
    after = evaluate(retrained, section.attacks, [setting], device=device)
    rows = []
    for old, new in zip(before["rows"], after.rows, strict=True):
        rows.append({
            **where,
            "attack": new["attack"],
            "norm": new["norm"],
            "eps": new["eps"],
            "before": old["robust_accuracy"],
            "before_any": _accuracy_on(first, setting, old["file"], device),
            "saved": _accuracy_on(retrained, setting, old["file"], device),
            "white_box": new["robust_accuracy"],
        })  # fmt: skip
    found = {"before": before["warnings"], "retrained": [finding.message for finding in after.findings]}
    result = {
        "recipe": key,
        "rows": rows,
        "network": {
            **where,
            "clean": before["rows"][0]["clean_accuracy"],
            "clean_retrained": after.rows[0]["clean_accuracy"],
            **_sparsity(first, test),
        },
        "stability": [{**where, **row} for row in _stability(first, section.stability_images, setting, device)],
        "warnings": [f"{recipe.model.arch}, {name}, {when}: {line}" for when, lines in found.items() for line in lines],
    }
    write_json(place / "record.json", result)
    return result


def _retrained(
    recipe: Recipe, section: RobustnessSection, first: Run, setting: Setting, place: Path, device: str
) -> Run:
    """The first network, trained on with attacked training images added (section 4.2)."""
    document = recipe.model_dump(mode="json", by_alias=True)
    if section.train_images:
        folder = place / "adversarial" / "train"
        kept = _attack(first, setting, section.attacks, folder, "train", section.train_images, device)
        document["data"]["adversarial"] += [row["file"] for row in kept["rows"]]
    document["model"] |= {"weights": str(place / "first")}
    document["optimizer"]["epochs"] = section.retrain_epochs
    return trained(make_recipe(document), place / "retrained", device)


def _dense(recipe: Recipe, data: Dataset, place: Path, device: str) -> Row:
    """One lambda of Fig. 1."""
    assert recipe.regularization is not None
    record = read_record(place / "record.json", recipe.digest())
    if record is not None:
        return record
    run = trained(recipe, place / "first", device)
    test = data.test.head(recipe.evaluate.images)
    with run.model.to(device).network(Setting()) as network:
        accuracy = clean_accuracy(network, test, device)
    result = {
        "recipe": recipe.digest(),
        "activation": recipe.regularization.activation,
        "train_accuracy": run.checkpoint.history[-1]["train_clean_accuracy"],
        "test_accuracy": accuracy,
        "density": _sparsity(run, test)["activity_ratio"],
    }
    write_json(place / "record.json", result)
    return result


def _attack(
    run: Run, setting: Setting, attacks: Sequence[str], place: Path, split: Any, images: int, device: str
) -> Row:
    """`rows`, and `warnings` of test images, of attacks whose images are kept; read back where they were made."""
    kept = _kept(place, attacks, state_digest(run.model.state_dict()))
    if kept is not None:
        return kept
    found = evaluate(run, attacks, [setting], images, device, save=place, split=split, checks=split == "test")
    result = {"rows": found.rows, "warnings": [finding.message for finding in found.findings]}
    write_json(place / "rows.json", result)
    return result


def _kept(place: Path, attacks: Sequence[str], digest: str) -> Row | None:
    """What a folder holds, where it is of these attacks on that very network; else None.

    `first` may have been deleted and trained again: images that fooled another network say nothing of this one.
    """
    try:
        kept: Row = json.loads((place / "rows.json").read_text(encoding="utf-8"))
        if [row["attack"] for row in kept["rows"]] != list(dict.fromkeys(attacks)):
            return None
        rows = [
            {**row, "file": str(place / Path(row["file"]).name)} for row in kept["rows"]
        ]  # the folder may have moved
        sound = all(load_adversarial(row["file"]).record["model"] == digest for row in rows)
        return {**kept, "rows": rows} if sound else None
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None


def _accuracy_on(run: Run, setting: Setting, file: str, device: str) -> float:
    """Share of the adversarial images of a file that a run gets right, in [0, 1], at whatever distance they are."""
    examples = load_adversarial(file)
    with run.model.to(device).network(setting) as network:
        return clean_accuracy(network, Images(examples.adversarial, examples.label), device)


def _sparsity(run: Run, test: Images) -> Row:
    metrics = density_metrics(run.model, test)
    return {key: metrics[key] for key in ("activity_ratio", "zero_weights", "near_zero_weights")}


def _stability(run: Run, images: int, setting: Setting, device: str) -> list[Row]:
    """Table 2: how far the maps move, for patches of 4 and of 2 pixels, and under a blur of sigma 0.5."""
    if not images:
        return []
    keys = ("attribution", "change", "ssd_mean", "ssd_std", "ssd_unrelated_mean", "constant_maps", "n")
    return [{key: row[key] for key in keys} for row in stability(run, Plan(images=images), [setting], device)["rows"]]


def means(rows: Iterable[Row], keys: Sequence[str]) -> list[Row]:
    """Rows of equal keys as one: numbers become their mean, with the standard deviation over seeds as NAME_std.

    `n`, `eps`, text, and `ssd_std` (a deviation over images) stay as they are but for their mean; the deviation is None
    where there is one row. Values that are None are left out.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    merged = []
    for group in groups.values():
        line = {name: value for name, value in group[0].items() if name != "recipe"}
        for name in line:
            values = [row[name] for row in group if isinstance(row[name], float)]
            if values and name not in (*keys, "eps"):
                deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
                line = {**line, name: float(np.mean(values))}
                line |= {} if name.endswith("_std") else {f"{name}_std": deviation}
        merged.append(line)
    return merged


def _key(recipe: Recipe, section: RobustnessSection) -> str:
    """Digest of what a unit depends on: the other regularisations and backbones of the study are none of it."""
    own = section.model_dump(mode="json", exclude={"archs", "regularizations", "activations"})
    return record_key(recipe.digest(), own)


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in text)
