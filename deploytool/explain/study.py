"""The stability of a run's attributions over its settings: what `deploytool stability` measures."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import captum
import torch
from torch import Tensor, nn

from deploytool.data.datasets import load_dataset
from deploytool.data.images import draw
from deploytool.errors import InputError
from deploytool.evaluation import evaluation_settings
from deploytool.evaluation.accuracy import setting_columns
from deploytool.explain.attribution import GRAY
from deploytool.explain.layers import feature_layer
from deploytool.explain.stability import (
    BATCH,
    MapPair,
    Stability,
    blur_maps,
    blur_stability,
    patch_maps,
    patch_stability,
    ssd,
)
from deploytool.models.setting import Conditioning, Setting
from deploytool.progress import progress_bar
from deploytool.recipe import FloatMethod, Recipe
from deploytool.training.run import Run

Method = Literal["sliding-patch", "grad-cam"]
METHODS: tuple[Method, ...] = ("sliding-patch", "grad-cam")


@dataclass(frozen=True)
class Plan:
    """What is changed, and on which images; paper 2's values are the defaults.

    Attributes:
        methods: `sliding-patch` changes the patch's size, `grad-cam` blurs the image.
        sizes: sides of the two patches in pixels.
        stride: pixels from one patch to the next.
        sigma: standard deviation of the blur in pixels.
        layer: the layer that Grad-CAM reads; None: the last convolutional feature map.
        images: so many random test images; all where there are fewer.
        seed: that draws them. Not the recipe's: runs are to be compared on the same images.
    """

    methods: Sequence[Method] = METHODS
    sizes: Sequence[int] = (4, 2)
    stride: int = 2
    sigma: float = 0.5
    layer: str | None = None
    images: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.images, bool) or not isinstance(self.images, int) or self.images < 1:
            raise InputError(f"images (={self.images}) must be an integer from 1 up")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed (={self.seed}) must be an integer from 0 up")
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            raise InputError(f"attribution (={', '.join(unknown) or 'none'}) must be among {', '.join(METHODS)}")

    def change(self, method: Method) -> str:
        """What the two maps of a pair differ by."""
        if method == "grad-cam":
            return f"blur sigma {self.sigma:g}"
        return f"patch {self.sizes[0]} to {self.sizes[1]}, stride {self.stride}"

    def sides(self, method: Method) -> tuple[str, str]:
        """What the first and what the second map of a pair is made with."""
        if method == "grad-cam":
            return "image unchanged", "image blurred"
        return f"patch {self.sizes[0]}x{self.sizes[0]}", f"patch {self.sizes[1]}x{self.sizes[1]}"

    def measure(
        self, method: Method, network: nn.Module, image: Tensor, on_batch: Callable[[int], object] = lambda images: None
    ) -> Stability:
        """Compare the maps of image (N, C, H, W)."""
        if method == "grad-cam":
            return blur_stability(network, image, self.sigma, self.layer, on_batch)
        return patch_stability(network, image, self.sizes, self.stride, on_batch)

    def maps(self, method: Method, network: nn.Module, image: Tensor) -> MapPair:
        """The maps that `measure` compares."""
        if method == "grad-cam":
            return blur_maps(network, image, self.sigma, self.layer)
        return patch_maps(network, image, self.sizes, self.stride)


@dataclass(frozen=True)
class Example:
    """Some images and their maps at one setting, for a figure.

    Attributes:
        method, change: of attribution, and what the two maps of a pair differ by.
        sides: what the first and what the second map is made with.
        setting: in words; empty where the model has no knobs.
        image: (N, C, H, W) float32 in [0, 1].
        pair: their maps, on the CPU.
        ssd: (N,) float64.
        classes: (N,) name of the class that is explained.
    """

    method: Method
    change: str
    sides: tuple[str, str]
    setting: str
    image: Tensor
    pair: MapPair
    ssd: Tensor
    classes: list[str]


def study_settings(
    recipe: Recipe,
    lambdas: Iterable[float] | None = None,
    thresholds: Iterable[float] | None = None,
    conditionings: Sequence[Conditioning] | None = None,
    widths: Iterable[float] | None = None,
) -> list[Setting]:
    """The settings to measure; arguments that are None come from the recipe.

    As `deploytool.evaluation.evaluation_settings`, but with the conditioning and threshold of the recipe's method
    alone: maps cost hundreds of forward passes per image, and the grid of an evaluation has up to 3 times the states.

    Raises:
        InputError: as `evaluation_settings`.
    """
    if isinstance(recipe.method, FloatMethod):
        if conditionings is None:
            conditionings = ["switch"] if thresholds is not None else [recipe.method.conditioning]
        if thresholds is None and "switch" in conditionings:
            thresholds = [recipe.method.lambda_threshold]
    return evaluation_settings(recipe, lambdas, thresholds, conditionings, widths)


def stability(run: Run, plan: Plan, settings: Sequence[Setting], device: str = "cpu") -> dict[str, Any]:
    """Measure the stability of a run's attributions at every setting.

    Settings that amount to the same network are computed once.

    Returns:
        A document with `rows`, one per method and setting, settings within methods: `{attribution, change, lambda,
        lambda_threshold, conditioning, noise, width, layer, ssd_mean, ssd_std, ssd_unrelated_mean,
        rank_correlation_mean, constant_maps, prediction_changed, n, seed, seconds}`. SSDs are in [0, pixels], their
        standard deviation is that of the n images (divided by n); `constant_maps` and `prediction_changed` are shares
        of the images in [0, 1]. None stands for what has no meaning: `prediction_changed` where the image stays as it
        is, `lambda` of a method without it, `ssd_unrelated_mean` of one image. Beside it: what was measured with.

    Raises:
        DataError: the data set cannot be loaded; InputError: an argument is out of range, or the run has no such
            width or layer, or answers NaN.
    """
    image = draw(load_dataset(run.recipe.data).test, plan.images, plan.seed)
    states = {run.model.knobs(setting): setting for setting in settings}
    for setting in states.values():
        run.model.skeleton(setting.width)  # raises now what would else be found after hours
    network = run.model.plain_network(next(iter(states.values()))).to(device)
    for method in plan.methods:
        plan.maps(method, network, image[:1].to(device))
    batches = -(-len(image) // BATCH)
    measured: dict[Any, dict[str, Any]] = {}
    with progress_bar("comparing maps", len(states) * len(plan.methods) * batches) as bar:
        for key, setting in states.items():
            network = run.model.plain_network(setting).to(device)
            for method in plan.methods:

                def advance(images: int, note: str = f"{method} {describe(run, setting)}") -> None:
                    bar.advance(note)

                measured[method, key] = _measure(plan, method, network, image.to(device), advance)
    rows = [
        {
            "attribution": method,
            "change": plan.change(method),
            **setting_columns(run.model, setting),
            **measured[method, run.model.knobs(setting)],
            "n": len(image),
            "seed": plan.seed,
        }
        for method in plan.methods
        for setting in settings
    ]
    return {
        "rows": rows,
        "run": str(run.path),
        "data": run.recipe.data.name,
        "pixels": image[0, 0].numel(),
        "patch": list(plan.sizes),
        "stride": plan.stride,
        "fill": GRAY,
        "sigma": plan.sigma,
        "scale": "each map to [0, 1]",
        "device": device,
        "torch": torch.__version__,
        "captum": captum.__version__,
    }


def examples(
    run: Run, plan: Plan, settings: Sequence[Setting], count: int = 5, device: str = "cpu"
) -> dict[Method, list[Example]]:
    """Maps of the first images that `stability` measures, at the first and the last setting, for a figure per method.

    Raises:
        DataError, InputError: as `stability`.
    """
    dataset = load_dataset(run.recipe.data)
    image = draw(dataset.test, plan.images, plan.seed)[:count]
    ends = {run.model.knobs(setting): setting for setting in (settings[0], settings[-1])}
    found: dict[Method, list[Example]] = {method: [] for method in plan.methods}
    for setting in ends.values():
        network = run.model.plain_network(setting).to(device)
        for method in plan.methods:
            pair = plan.maps(method, network, image.to(device))
            pair = MapPair(*(getattr(pair, name).cpu() for name in MapPair.__dataclass_fields__))
            classes = [dataset.info.classes[index] for index in pair.target.tolist()]
            found[method].append(
                Example(
                    method,
                    plan.change(method),
                    plan.sides(method),
                    describe(run, setting),
                    image,
                    pair,
                    ssd(pair.first, pair.second),
                    classes,
                )
            )
    return found


def describe(run: Run, setting: Setting) -> str:
    """A setting in a few words: what the model has of lambda, threshold, conditioning and width."""
    knobs = setting_columns(run.model, setting)
    words = {"lambda": "lambda", "lambda_threshold": "threshold"}
    parts = [f"{word} {knobs[key]:g}" for key, word in words.items() if knobs[key] is not None]
    if run.model.is_conditional and setting.conditioning != "switch":
        parts.append(setting.conditioning)
    if len(run.model.widths) > 1:
        parts.append(f"width {setting.width:g}")
    return ", ".join(parts)


def _measure(
    plan: Plan, method: Method, network: nn.Module, image: Tensor, on_batch: Callable[[int], object]
) -> dict[str, Any]:
    layer = feature_layer(network, image, plan.layer) if method == "grad-cam" else None
    started = time.perf_counter()
    found = plan.measure(method, network, image, on_batch)
    return {
        "layer": layer,
        "ssd_mean": float(found.ssd.mean()),
        "ssd_std": float(found.ssd.std(correction=0)),
        "ssd_unrelated_mean": _mean(found.unrelated),
        "rank_correlation_mean": _mean(found.correlation),
        "constant_maps": float(found.constant.double().mean()),
        "prediction_changed": float(found.changed.double().mean()) if method == "grad-cam" else None,
        "seconds": time.perf_counter() - started,
    }


def _mean(values: Tensor) -> float | None:
    """The mean of those that are numbers; None where none is."""
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else None
