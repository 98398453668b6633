"""Libraries made by hand from a network's activity: small, in seconds, of any model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploytool.data.catalogue import DatasetInfo
from deploytool.data.datasets import load_dataset
from deploytool.evaluation import deployed
from deploytool.explain.target import open_target
from deploytool.library.folder import Calibrated, Layer, Library
from deploytool.library.networks import correlate
from deploytool.library.novelty import Shelf
from deploytool.library.patterns import Reading, sampled, scale
from deploytool.library.recipe import LibraryRecipe
from deploytool.library.taps import watch_module
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import recipe_setting
from deploytool.models.setting import Setting
from deploytool.training.run import Run

LAYERS = ("layer1", "layer2.0", "layer3+linear:input", "logits")
THETAS = {"layer1": 0.97, "layer2.0": 0.95, "layer3+linear:input": 0.93, "logits": 0.999}


def make_library(
    model: ConditionalModel,
    info: DatasetInfo,
    setting: Setting,
    images: Tensor,
    layers: Sequence[str] = LAYERS,
    lambdas: Sequence[float | None] = (0.0, 1.0),
    thetas: Sequence[float] | None = None,
    switch_at: float | None = None,
    digest: str = "",
    **changes: Any,
) -> Library:
    """A library for each of the lambdas, or a shared one, of so many images.

    Args:
        model, info, setting: the network and its data set; lambda of the setting does not matter.
        images: (N, C, H, W).
        layers: names.
        lambdas: (None,) of a model that takes none.
        thetas: novelty thresholds, one for each condition, all layers the same; 0.93 to 0.999 where None.
        switch_at: as of a library.
        digest: of the target.
        changes: fields of the recipe; `sample` and `modulation` are those of every layer but the logits.
    """
    fields = {"sample": changes.pop("sample", None), "modulation": changes.pop("modulation", "none")}
    shared = changes.pop("shared", False)
    sections = [
        {"layer": name, "theta": THETAS.get(name, 0.95), **({} if name == "logits" else fields)} for name in layers
    ]
    document = {"name": "by-hand", "target": "somewhere/run", "layers": sections, "active": 3, **changes}
    document["condition"] = {"libraries": "shared" if shared else "each"}
    recipe = LibraryRecipe.make(document)
    groups = [list(lambdas)] if shared else [[lam] for lam in lambdas]
    conditions = []
    for number, group in enumerate(groups):
        seen = []
        for lam in group:
            with torch.no_grad():
                network = model.plain_network(replace(setting, lam=lam or 0.0))
                seen.append(watch_module(network, layers)(images))
        answer = torch.cat([logits.argmax(1) for logits, _ in seen])
        built = []
        for place, section in enumerate(recipe.layers):
            activity = torch.cat([found[section.layer] for _, found in seen]).flatten(1)
            index = None if section.sample is None else sampled(section.sample, activity.shape[1], place)
            reading = Reading(section.name, index)
            if section.modulation != "none":
                patterns = reading(activity)
                reading = Reading(section.name, index, patterns.mean(0), (patterns.var(0) + 1e-5).sqrt())
            theta = thetas[number] if thetas is not None else section.theta[0]
            shelf = Shelf(section.name, reading(activity).shape[1], [theta], recipe.storage)
            shelf.offer(reading(activity), 0)
            scaled = scale(reading(activity), section.name)
            sums = correlate(scaled, shelf.codes, shelf.scales, answer, len(info.classes))
            parts = (shelf.codes, shelf.scales, shelf.source, shelf.member, shelf.rounding)
            built.append(Layer(section, reading, shelf.thetas, *(each.clone() for each in parts), sums.float()))
        conditions.append(tuple(built))
    calibration = tuple(Calibrated(lam, 0.5 + 0.1 * place, 0.05, 100) for place, lam in enumerate(lambdas))
    return Library(Path("lib"), recipe, info, digest, switch_at, tuple(lambdas), tuple(conditions), calibration)


def library_of(run: Run, images: int = 150, **options: Any) -> Library:
    """A library of a run, of the first of its training images; options as of `make_library`."""
    width = options.get("width", 1.0)
    setting = deployed(recipe_setting(run.recipe, width=width))
    target = open_target(run.path, width)
    some = load_dataset(run.recipe.data).train.batch(slice(0, images))[0]
    options.setdefault("lambdas", (0.0, 1.0) if target.takes_lambda else (None,))
    switch_at = setting.lambda_threshold if target.setting.conditioning == "switch" else None
    info = run.checkpoint.data
    return make_library(run.model, info, setting, some, digest=target.digest, switch_at=switch_at, **options)
