"""`export`: write model.onnx, and let it out only when it answers as the model does."""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import Tensor

from deploytool import __version__
from deploytool.atomic import atomic_path
from deploytool.data.catalogue import DatasetInfo
from deploytool.data.datasets import dataset_info, load_dataset
from deploytool.errors import DataError, InputError, ParityError
from deploytool.evaluation import deployed
from deploytool.explain.explainer import Explainer
from deploytool.export.backbone import backbone_to_onnx
from deploytool.export.compress import compress_weights
from deploytool.export.condition import add_condition, clean_setting
from deploytool.export.heads import split_heads
from deploytool.export.library import Libraries, add_cpl, libraries_of, library_note, watched_graph
from deploytool.export.parity import Parity, check_parity, max_difference
from deploytool.export.quantize import Quantizer, quantizer_of_run, quantizer_of_untrained
from deploytool.export.saliency import (
    Companion,
    FullWidthWarning,
    add_saliency,
    explainer_note,
    surrogate_graph,
    surrogate_of,
    told_widths,
)
from deploytool.export.shrink import Shrunk, shrink, weight_count
from deploytool.labels.label_map import LabelMap
from deploytool.library.folder import Library
from deploytool.models.conditional import ConditionalModel, weight_names
from deploytool.models.factory import build_model, recipe_labels, recipe_setting
from deploytool.models.masks import channel_density_of, density_of
from deploytool.models.setting import Conditioning, Setting, check_threshold_value
from deploytool.recipe import DataSection, FloatMethod, Recipe
from deploytool.runtime.library import CPL
from deploytool.runtime.reasoning import Reasoning
from deploytool.runtime.saliency import SALIENCY
from deploytool.training.run import Run

TOLERANCE = 1e-3


def export(
    run: Run,
    file: str | os.PathLike[str] | None = None,
    conditioning: Conditioning | None = None,
    lambda_threshold: float | None = None,
    width: float | None = None,
    round_channels: int = 1,
    compress: bool = False,
    quantize: Literal["int8"] | None = None,
    calibration_images: int | None = None,
    explainer: Explainer | None = None,
    library: Library | None = None,
) -> dict[str, Any]:
    """Export a trained run to one ONNX file and check it against the model.

    Args:
        run: a trained run.
        file: where to write; RUN/model.onnx where None.
        conditioning, lambda_threshold: built in instead of the recipe's; for FLOAT alone.
        width: the one width of a slimmable model that the file is to hold; where None it holds all of them, and
            takes `width` as an input.
        round_channels: 1, 8 or 16; a model with masks loses the channels that nothing reads, but keeps so many
            that widths are multiples of this number, for hardware that works on blocks of channels.
        compress: store weights that are mostly zeros sparse; see `deploytool.export.compress`.
        quantize: make the file fit for INT8; see `deploytool.export.quantize`. Parity is checked before that.
        calibration_images: how many training images to measure activations on; 256 where None.
        explainer: one that was trained on this run; its maps are the file's output `saliency`. It stays float32.
        library: libraries of this run; whether its layers agree is the file's output `cpl`, computed in float32. No
            channel of such a file is cut: stored patterns contain them all.

    Returns:
        `file`, `size_mb` (10^6 bytes), `parity: {max_abs_error, cases}`; for a model with masks also what
        `compression` returns; with `compress` also `storage`, what `compress_weights` returns;
        with `quantize` also `quantization`, what `Quantizer` returns; with `explainer` or `library`, `parity` has the
        errors of each output too, as `outputs`.

    Warns:
        FullWidthWarning: the file has maps, and a width below 1, of which they say nothing.

    Raises:
        ParityError: a logit, a probability of a reasoning label, a value of a map or CPL is off by more than 1e-3;
            nothing is left behind.
        InputError: conditioning or threshold do not fit the method, or `round_channels` is another number; the file has
            several widths, or another one than the libraries, or a library is smaller than its active nodes are many.
        RunError: the explainer or the libraries are not this run's.
        DataError: there are no images to calibrate on.
    """
    recipe, info = run.recipe, run.checkpoint.data
    surrogate = None if explainer is None else surrogate_of(run, explainer)
    images = parity_images(recipe.data, info)
    setting, narrow = _widths(run.model, export_setting(recipe, conditioning, lambda_threshold), width)
    libraries = None if library is None else libraries_of(run, library, setting, narrow)
    quantizer = quantizer_of_run(run, setting, narrow, calibration_images) if quantize else None
    path = file or run.path / "model.onnx"
    options = (True, round_channels, narrow, compress, quantizer, run.labels, surrogate, libraries)
    result = write_artefact(run.model, recipe, info, images, path, setting, *options)
    if surrogate is not None and (told := told_widths((*narrow, setting.width))):
        warnings.warn(told, FullWidthWarning, stacklevel=2)
    return result


def export_untrained(
    recipe: Recipe,
    file: str | os.PathLike[str],
    conditioning: Conditioning | None = None,
    lambda_threshold: float | None = None,
    width: float | None = None,
    round_channels: int = 1,
    compress: bool = False,
    quantize: Literal["int8"] | None = None,
    calibration_images: int | None = None,
) -> dict[str, Any]:
    """Export a recipe's freshly initialised model, for latency and cost work; arguments and result as `export`.

    With `quantize` it is calibrated on random images, 32 where `calibration_images` is None.
    """
    info = dataset_info(recipe.data)
    labels = recipe_labels(recipe, info)
    model = build_model(recipe, info, labels).eval()
    setting, narrow = _widths(model, export_setting(recipe, conditioning, lambda_threshold), width)
    images = random_images(info)
    quantizer = quantizer_of_untrained(model, recipe, info, setting, narrow, calibration_images) if quantize else None
    return write_artefact(
        model, recipe, info, images, file, setting, False, round_channels, narrow, compress, quantizer, labels
    )


def _widths(model: ConditionalModel, setting: Setting, width: float | None) -> tuple[Setting, Sequence[float]]:
    """The setting at the widest width that a file holds, and the narrower ones beside it."""
    if width is not None:
        model.skeleton(width)  # refuses a width that was not trained
        return replace(setting, width=width), ()
    return setting, model.widths[:-1]


def export_setting(recipe: Recipe, conditioning: Conditioning | None, lambda_threshold: float | None) -> Setting:
    """The setting that a file is built with: the recipe's, with what the arguments replace.

    Raises:
        InputError: the method has no condition, or the conditioning has no threshold, or the threshold is off.
    """
    setting = deployed(recipe_setting(recipe))
    if conditioning is None and lambda_threshold is None:
        return setting
    if not isinstance(recipe.method, FloatMethod):
        raise InputError(f"method {recipe.method.name} has no conditioning and no lambda threshold; leave them out")
    setting = replace(setting, conditioning=conditioning or setting.conditioning)
    if lambda_threshold is None:
        return setting
    if setting.conditioning == "interpolate":
        raise InputError("--lambda-threshold has no effect with interpolate; leave it out or use --conditioning switch")
    return replace(setting, lambda_threshold=check_threshold_value(lambda_threshold))


def parity_images(section: DataSection, info: DatasetInfo) -> Tensor:
    """Seven test images (7, C, H, W) float32 in [0, 1]; random ones where the data set is not at hand."""
    try:
        return load_dataset(section, download=False).test.head(7).batch(slice(0, 7))[0]
    except DataError:
        return random_images(info)


def random_images(info: DatasetInfo) -> Tensor:
    """Seven uniform images (7, C, H, W) float32 in [0, 1]."""
    return torch.rand(7, *info.shape, generator=torch.Generator().manual_seed(0))


def write_artefact(
    model: ConditionalModel,
    recipe: Recipe,
    info: DatasetInfo,
    images: Tensor,
    file: str | os.PathLike[str],
    setting: Setting,
    trained: bool = True,
    round_channels: int = 1,
    narrow: Sequence[float] = (),
    compress: bool = False,
    quantizer: Quantizer | None = None,
    labels: LabelMap | None = None,
    surrogate: Companion | None = None,
    libraries: Libraries | None = None,
) -> dict[str, Any]:
    """Build, check and write; see `export`.

    `images` (7, C, H, W) are what parity is measured on; `labels` are those of a model with reasoning labels, and
    `surrogate` draws the maps of a file that has them; `libraries` give its CPL.
    """
    graph = build_graph(model, info, setting, round_channels, narrow, libraries)
    properties = metadata(model, recipe, info, setting, trained, narrow, labels)
    if surrogate is not None:
        add_saliency(graph, surrogate_graph(surrogate.explainer, surrogate.at(setting), [SALIENCY]))
        properties |= explainer_note(surrogate.explainer).to_properties()
    if libraries is not None:
        properties |= library_note(libraries, setting).to_properties()
    onnx.helper.set_model_props(graph, properties)
    numbers: dict[str, Any] = compression(model, graph, setting)
    if compress and quantizer is None:  # parity is that of the file as it stands
        numbers["storage"] = compress_weights(graph)
    path = Path(file)
    with atomic_path(path) as aside:
        aside.write_bytes(graph.SerializeToString())
        parity = check_parity(aside, model, setting, images, narrow, surrogate, libraries)
        accept_parity(path, parity)
        if quantizer is not None:  # rounding is no fault of the graph: accuracy is measured instead
            numbers["quantization"] = quantizer(graph)
            dense = graph.SerializeToString()
            if compress:
                numbers["storage"] = compress_weights(graph)
                error = max_difference(dense, graph.SerializeToString(), images)
                if not error <= TOLERANCE:
                    raise ParityError(f"{path} was not written: weights stored sparse move its answers by {error:.2e}")
            aside.write_bytes(graph.SerializeToString())
        onnx.checker.check_model(str(aside), full_check=True)
    return {
        "file": str(path),
        "size_mb": round(path.stat().st_size / 1e6, 6),
        "parity": parity_dict(parity),
        **numbers,
    }


def build_graph(
    model: ConditionalModel,
    info: DatasetInfo,
    setting: Setting,
    round_channels: int = 1,
    narrow: Sequence[float] = (),
    libraries: Libraries | None = None,
) -> onnx.ModelProto:
    """Build the ONNX graph of a model without metadata: conditional for FLOAT and OAT, plain otherwise.

    It holds the setting's width, and those of `narrow` beside it. In a graph of one width, channels that no mask lets
    anything read are left out; see `deploytool.export.shrink`. Not so where it has libraries, whose patterns contain
    all channels of their layers.
    """
    clean = clean_setting(setting)
    if narrow and round_channels != 1:
        raise InputError("channels are cut and rounded in files of one width alone; name it with --width")
    if libraries is not None:
        return _graph_with_cpl(model, info, setting, round_channels, libraries)
    if narrow:
        networks = {w: model.plain_network(replace(clean, width=w), reasoning=True) for w in (*narrow, setting.width)}
        shrunk = Shrunk(networks[setting.width])
    else:
        shrunk = shrink(model, clean, round_channels, info.shape)
        networks = {setting.width: shrunk.network}
    others = {w: split_heads(backbone_to_onnx(each, info.shape), model.reasons) for w, each in networks.items()}
    graph = others.pop(setting.width)
    if others or model.is_conditional:
        add_condition(graph, model, setting, shrunk, others)
    return graph


def _graph_with_cpl(
    model: ConditionalModel, info: DatasetInfo, setting: Setting, round_channels: int, libraries: Libraries
) -> onnx.ModelProto:
    """`build_graph` of one width, with the output `cpl`."""
    if round_channels != 1:
        raise InputError(
            f"--round-channels (={round_channels}) has no effect with libraries, whose patterns contain all channels; "
            "leave it out"
        )
    network = model.plain_network(clean_setting(setting), reasoning=True)
    graph = split_heads(watched_graph(network, info.shape, libraries), model.reasons)
    if model.is_conditional:
        add_condition(graph, model, setting, Shrunk(network))
    add_cpl(graph, libraries)
    return graph


def compression(model: ConditionalModel, graph: onnx.ModelProto, setting: Setting) -> dict[str, float]:
    """How much smaller masks make a model, and its file; nothing for a model without masks.

    Returns:
        `density`, the share of weights that are active, and `compression_ratio`, its inverse; `channel_density`, the
        share of input channels with an active weight, and `channel_reduction_factor`, its inverse (paper 5, table
        1), all from the masks of the full width. Where channels were removed, `params_ratio`: weights of the
        convolutions and linear layers of the network of the file's width, over those in the file.
    """
    if not model.masks:
        return {}
    density, channel_density = density_of(model.masks), channel_density_of(model.masks)
    numbers = {
        "density": density,
        "compression_ratio": 1 / density,
        "channel_density": channel_density,
        "channel_reduction_factor": 1 / channel_density,
    }
    names = weight_names(model.backbone)
    held = sum(prod(tensor.dims) for tensor in graph.graph.initializer if tensor.name in names)
    full = weight_count(model.plain_network(clean_setting(setting), reasoning=True))
    if held < full:
        numbers["params_ratio"] = full / held
    return {name: round(number, 6) for name, number in numbers.items()}


def metadata(
    model: ConditionalModel,
    recipe: Recipe,
    info: DatasetInfo,
    setting: Setting,
    trained: bool,
    narrow: Sequence[float] = (),
    labels: LabelMap | None = None,
) -> dict[str, str]:
    """The file's `deploytool.*` properties, the contract with the runtime."""
    properties: dict[str, Any] = {"arch": recipe.model.arch, "method": recipe.method.name, "trained": trained}
    if isinstance(recipe.method, FloatMethod):
        properties["noise_seed"] = recipe.method.noise_seed
    reasons: dict[str, str] = {}
    if model.reason_vectors is not None:
        assert labels is not None and recipe.reasoning is not None
        vectors = model.reason_vectors.cpu().numpy()
        reasons = Reasoning(info.classes, labels.labels, vectors, recipe.reasoning.threshold).to_properties()
    common = common_metadata(model, info, setting, recipe.name, recipe.digest(), narrow)
    return reasons | common | _as_texts(properties)


def common_metadata(
    model: ConditionalModel,
    info: DatasetInfo,
    setting: Setting,
    name: str,
    recipe: str,
    narrow: Sequence[float] = (),
) -> dict[str, str]:
    """The properties that files of classifiers and of explainers have; `recipe` is a digest."""
    channels, height, width = info.shape
    properties: dict[str, Any] = {
        "version": __version__,
        "recipe": recipe,
        "name": name,
        "classes": list(info.classes),
        "preprocessing": {
            "mode": "L" if channels == 1 else "RGB",
            "size": [height, width],
            "resize": "bilinear",
        },
        "widths": [*narrow, setting.width],
        "density": round(density_of(model.masks), 6),
    }
    if model.is_conditional:
        properties |= {
            "conditioning": setting.conditioning,
            "lambda_threshold": setting.lambda_threshold,
            "noise": "none" if setting.noise == "none" else "frozen draw",
        }
    return _as_texts(properties)


def _as_texts(properties: dict[str, Any]) -> dict[str, str]:
    return {
        f"deploytool.{key}": value if isinstance(value, str) else json.dumps(value) for key, value in properties.items()
    }


def accept_parity(path: Path, parity: Parity) -> None:
    """Raise ParityError where a file is off by more than 1e-3."""
    if not parity.max_abs_error <= TOLERANCE:
        raise ParityError(
            f"{path} was not written: its answers differ from the model's by {parity.max_abs_error:.2e} "
            f"({parity.worst}), allowed {TOLERANCE:.0e}; please report this with the recipe"
        )


def parity_dict(parity: Parity) -> dict[str, Any]:
    """The parity as `export --json` prints it."""
    errors = {"outputs": parity.outputs} if {SALIENCY, CPL} & set(parity.outputs) else {}
    return {"max_abs_error": parity.max_abs_error, "cases": parity.cases, **errors}
