"""Libraries on disk.

LIBRARY/library.yaml              the validated recipe, its target and data among it
LIBRARY/library.safetensors       patterns, connections, thresholds, the target's digest; renamed into place
LIBRARY/build.safetensors         what an interrupted build has so far
LIBRARY/library.json              what `library build` printed
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deploytool.atomic import atomic_path
from deploytool.data.catalogue import DatasetInfo
from deploytool.errors import CheckpointError, DataError, InputError, RunError
from deploytool.explain.target import TORCHVISION, Target, open_target
from deploytool.library.networks import LayerLibrary
from deploytool.library.patterns import TYPES, Reading
from deploytool.library.recipe import DEFAULT_SET, FILE, LayerSection, LibraryRecipe
from deploytool.runtime.library import choose
from deploytool.training.run import read_info

FORMAT = "deploytool-library-1"
DAMAGE = (  # what reading a damaged file may raise
    SafetensorError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    DataError,
)
TENSORS = ("codes", "scales", "source", "member", "rounding", "connections", "index", "mean", "std")


@dataclass(frozen=True)
class Layer:
    """All libraries of one layer: they share its patterns.

    Attributes:
        section: of the recipe.
        reading: how its activity becomes a pattern.
        thetas: novelty thresholds, ascending, one for each library.
        codes: (M, F); scales: (M,) float32: `codes * scales` are patterns of length 1.
        source: (M,) int64, index of the training image that each comes from; of several lambdas, one after the other.
        member: (M, T) bool, to which thresholds' libraries each belongs.
        rounding: (M,) float32, 1 - cosine similarity of the stored pattern to itself before it was stored.
        connections: (M, K) float32, eq. 2.
        seconds: that its search, patterns and connections took.
    """

    section: LayerSection
    reading: Reading
    thetas: tuple[float, ...]
    codes: Tensor
    scales: Tensor
    source: Tensor
    member: Tensor
    rounding: Tensor
    connections: Tensor
    seconds: float = 0.0

    @property
    def features(self) -> int:
        """F, values of a pattern."""
        return self.codes.shape[1]

    def size(self, theta: float) -> int:
        """How many patterns the library of one threshold has."""
        return int(self.member[:, self.thetas.index(theta)].sum())

    def at(self, theta: float) -> LayerLibrary:
        """The library of one threshold.

        Raises:
            InputError: there is none of this threshold.
        """
        if theta not in self.thetas:
            known = ", ".join(f"{each:g}" for each in self.thetas)
            raise InputError(f"theta (={theta:g}): layer {self.section.name} has libraries at {known}")
        rows = self.member[:, self.thetas.index(theta)]
        return LayerLibrary(
            self.section.layer,
            self.section.name,
            theta,
            self.reading,
            self.codes[rows],
            self.scales[rows],
            self.connections[rows],
        )


@dataclass(frozen=True)
class Calibrated:
    """A threshold of CPL, chosen on held-out clean images.

    Attributes:
        lam: the target's lambda; None where it takes none.
        threshold: images of a CPL below it are doubtful.
        false_alarm_rate: the share of clean images that it was chosen for.
        images: how many it was chosen on.
    """

    lam: float | None
    threshold: float
    false_alarm_rate: float
    images: int


@dataclass(frozen=True)
class Library:
    """The libraries of a network.

    Attributes:
        path: their folder.
        recipe: with target and data filled in.
        info: the data set's description.
        digest: of the target.
        switch_at: lambda above which the target's batch norms are others; None where they are mixed, or it has none.
        lambdas: those that libraries were built at, ascending; (None,) of a target without lambda.
        conditions: the layers for each of the lambdas, or once where all share them.
        calibration: a threshold for each of the lambdas, of the first set; none before it was chosen.
    """

    path: Path
    recipe: LibraryRecipe
    info: DatasetInfo
    digest: str
    switch_at: float | None
    lambdas: tuple[float | None, ...]
    conditions: tuple[tuple[Layer, ...], ...]
    calibration: tuple[Calibrated, ...] = ()

    @property
    def sets(self) -> list[str]:
        """Names of the sets of thresholds that are used together; the first is what is deployed."""
        return list(self.recipe.sets) or [DEFAULT_SET]

    def at(self, lam: float | None, name: str | None = None) -> list[LayerLibrary]:
        """The library of each layer that answers at a lambda, in a set, the first where None.

        Raises:
            InputError: there is no such set, or lambda is not what the target takes.
        """
        name = name or self.sets[0]
        if name not in self.sets:
            raise InputError(f"set (={name[:40]!r}) is unknown; {self.path} has {', '.join(self.sets)}")
        pairs = zip(self.layers(lam), self.thetas(lam, name), strict=True)
        return [layer.at(theta) for layer, theta in pairs]

    def layers(self, lam: float | None) -> tuple[Layer, ...]:
        """The layers that answer at a lambda."""
        return self.conditions[0] if len(self.conditions) == 1 else self.conditions[self.which(lam)]

    def which(self, lam: float | None) -> int:
        """The index of the built lambda that answers for a lambda."""
        if self.lambdas == (None,):
            return 0
        return choose([each for each in self.lambdas if each is not None], lam or 0.0, self.switch_at)

    def built_lambda(self, lam: float | None) -> float | None:
        """The lambda that the libraries that answer at a lambda were built at; None where all share them."""
        return self.lambdas[self.which(lam)] if len(self.conditions) > 1 else None

    def origin(self, target: Target, lam: float | None) -> dict[str, Any]:
        """What a measurement at a lambda says of where it is from: `lambda`, `library_lambda`, `library`, `target`."""
        built = self.built_lambda(lam)
        return {"lambda": lam, "library_lambda": built, "library": str(self.path), "target": target.name}

    def thetas(self, lam: float | None, name: str) -> list[float]:
        """The threshold of each layer in a set, at a lambda."""
        return self.recipe.sets.get(name) or [layer.thetas[-1] for layer in self.layers(lam)]

    @property
    def target(self) -> str:
        """The name of the network."""
        assert self.recipe.target is not None, "building writes it down"
        return self.recipe.target

    def open_target(self, name: str | os.PathLike[str] | None = None) -> Target:
        """Open the network that the libraries are of; `name` says where it is now, if not where it was.

        Raises:
            RunError: it is not there, or is another one. Others as `deploytool.explain.target.open_target`.
        """
        if name is None and not self.target.startswith(TORCHVISION) and not Path(self.target).exists():
            raise RunError(f"{self.path} has libraries of {self.target}, which is not there; say where it is now")
        target = open_target(self.target if name is None else name, self.recipe.width)
        self.check_target(target)
        return target

    def check_target(self, target: Target) -> None:
        """Raise RunError unless this is the very network that the libraries were built from."""
        if self.digest != target.digest:
            raise RunError(
                f"{self.path} has libraries of another network ({self.target}, digest {self.digest[:12]}) than "
                f"{target.name} (digest {target.digest[:12]}); build them anew: deploytool library build {target.name}"
            )


def library_path(folder: Path) -> Path:
    """Path of a folder's libraries."""
    return folder / "library.safetensors"


def default_folder(target: str | os.PathLike[str]) -> Path:
    """Where the libraries of a target are, where nothing else is said: RUN/library, FILE-library, runs/NAME-library."""
    path = Path(target)
    if path.is_dir():
        return path / "library"
    if str(target).startswith(TORCHVISION):
        return Path("runs") / f"{str(target).removeprefix(TORCHVISION)}-library"
    return path.with_name(f"{path.stem}-library")


def save_library(library: Library) -> None:
    """Write libraries atomically; safetensors, no pickle.

    Raises:
        RunError: they cannot be written.
    """
    tensors, layers = write_layers(library.conditions)
    metadata = {
        "format": FORMAT,
        "recipe": library.recipe.digest(),
        "digest": library.digest,
        "data": json.dumps(asdict(library.info)),
        "switch_at": json.dumps(library.switch_at),
        "lambdas": json.dumps(library.lambdas),
        "layers": json.dumps(layers),
        "calibration": json.dumps([asdict(each) for each in library.calibration]),
    }
    write_tensors(library_path(library.path), tensors, metadata)


def write_layers(conditions: Sequence[Sequence[Layer]]) -> tuple[dict[str, Tensor], list[list[dict[str, Any]]]]:
    """The layers of each condition as tensors by name, and plain values for JSON; `read_layers` reads them back."""
    tensors: dict[str, Tensor] = {}
    for number, layers in enumerate(conditions):
        for place, layer in enumerate(layers):
            parts = {**vars(layer.reading), **vars(layer)}
            tensors |= {f"{number}.{place}.{name}": parts[name] for name in TENSORS if parts[name] is not None}
    documents = [
        [{"section": layer.section.model_dump(), "thetas": layer.thetas, "seconds": layer.seconds} for layer in layers]
        for layers in conditions
    ]
    return tensors, documents


def read_layers(
    documents: list[list[dict[str, Any]]], recipe: LibraryRecipe, tensors: Mapping[str, Tensor]
) -> list[tuple[Layer, ...]]:
    """What `write_layers` wrote; ValueError, KeyError and the like where it is damaged."""
    conditions = []
    for number, per_layer in enumerate(documents):
        layers = []
        for place, document in enumerate(per_layer):
            section = LayerSection.model_validate(document["section"])
            own: dict[str, Any] = {name: tensors.get(f"{number}.{place}.{name}") for name in TENSORS}
            reading = Reading(section.name, own.pop("index"), own.pop("mean"), own.pop("std"))
            layer = Layer(section, reading, tuple(document["thetas"]), **own, seconds=float(document["seconds"]))
            _check_layer(layer, recipe)
            layers.append(layer)
        conditions.append(tuple(layers))
    return conditions


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to a safetensors file atomically; RunError where that cannot be done."""
    try:
        with atomic_path(file) as aside:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, dict(metadata))
    except SafetensorError as error:
        reason = " ".join(str(error).split())[:160]
        raise RunError(f"{file} cannot be written ({reason}); make room and use --resume") from None


def read_tensors(file: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file whose `format` is `kind`; one of `DAMAGE` where it is none."""
    with safe_open(file, framework="pt") as archive:
        metadata: dict[str, str] = archive.metadata() or {}
        if metadata.get("format") != kind:
            raise ValueError(f"no {kind}")
        return {name: archive.get_tensor(name) for name in archive.keys()}, metadata  # noqa: SIM118 - no mapping


def load_library(path: str | os.PathLike[str]) -> Library:
    """Load the libraries of a folder.

    Raises:
        RunError: the folder holds none; CheckpointError: its file is damaged, or of another recipe.
    """
    folder = Path(path)
    if not (folder / FILE).is_file():
        raise RunError(f"{folder} has no libraries (no {FILE}); build them: deploytool library build RUN")
    recipe = LibraryRecipe.load(folder / FILE)
    file = library_path(folder)
    if not file.is_file():
        raise CheckpointError(f"{folder} has no {file.name}; finish it: deploytool library build RUN --resume")
    try:
        tensors, metadata = read_tensors(file, FORMAT)
        library = _library(folder, recipe, metadata, tensors)
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{file} is damaged ({reason}); build it anew") from None
    if metadata.get("recipe") != recipe.digest():
        raise CheckpointError(f"{folder}: its libraries are of another recipe than its {FILE}; build them anew")
    return library


def _library(folder: Path, recipe: LibraryRecipe, metadata: dict[str, str], tensors: dict[str, Tensor]) -> Library:
    """What a file holds; ValueError and the like where it is damaged."""
    info, lambdas = read_info(json.loads(metadata["data"])), tuple(json.loads(metadata["lambdas"]))
    switch_at = json.loads(metadata["switch_at"])
    conditions = read_layers(json.loads(metadata["layers"]), recipe, tensors)
    if not lambdas or len(conditions) not in (1, len(lambdas)):
        raise ValueError("lambdas and libraries do not fit")
    if any(len(layers) != len(recipe.layers) for layers in conditions) or not recipe.layers:
        raise ValueError("layers and recipe do not fit")
    numbers = [each for each in lambdas if lambdas != (None,)]
    if not all(_is_share(each) for each in numbers) or numbers != sorted(set(numbers)):
        raise ValueError(f"lambdas {str(lambdas)[:40]}")
    if switch_at is not None and not _is_share(switch_at):
        raise ValueError(f"switch_at {str(switch_at)[:40]}")
    if any(layer.connections.shape[1] != len(info.classes) for layers in conditions for layer in layers):
        raise ValueError("connections and classes do not fit")
    calibration = tuple(Calibrated(**each) for each in json.loads(metadata["calibration"]))
    _check_calibration(calibration, lambdas)
    return Library(
        folder,
        recipe,
        info,
        metadata["digest"],
        switch_at,
        lambdas,
        tuple(conditions),
        calibration,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _check_calibration(calibration: Sequence[Calibrated], lambdas: Sequence[float | None]) -> None:
    """Raise ValueError unless there is a threshold for each lambda, in their order, or none at all."""
    if calibration and [each.lam for each in calibration] != list(lambdas):
        raise ValueError("thresholds of CPL and lambdas do not fit")
    for each in calibration:
        known = (each.lam is None or _is_share(each.lam)) and _is_number(each.threshold)
        rate = each.false_alarm_rate
        counted = isinstance(each.images, int) and not isinstance(each.images, bool) and each.images >= 1
        if not (known and counted and _is_share(rate) and 0 < rate < 1):
            raise ValueError(f"threshold of CPL {str(each)[:100]}")


def _check_layer(layer: Layer, recipe: LibraryRecipe) -> None:
    """Raise ValueError where a layer's tensors do not fit each other."""
    count, features = layer.codes.shape
    size = {"scales": (count,), "source": (count,), "member": (count, len(layer.thetas)), "rounding": (count,)}
    for name, shape in {**size, "connections": (count, *layer.connections.shape[1:])}.items():
        if tuple(getattr(layer, name).shape) != shape:
            raise ValueError(
                f"{name} of layer {layer.section.name} is {tuple(getattr(layer, name).shape)}, not {shape}"
            )
    if layer.codes.dtype != TYPES[recipe.storage] or layer.member.dtype != torch.bool:
        raise ValueError(f"layer {layer.section.name} is stored as {layer.codes.dtype}")
    if not prod(layer.codes.shape) or not layer.member.any(0).all():
        raise ValueError(f"layer {layer.section.name} has an empty library")
    if layer.scales.dtype != torch.float32 or layer.connections.dtype != torch.float32:
        raise ValueError(f"scales or connections of layer {layer.section.name} are no float32")
    reading = layer.reading
    for name, part in (("index", reading.index), ("mean", reading.mean), ("std", reading.std)):
        if part is not None and tuple(part.shape) != (features,):
            raise ValueError(f"{name} of layer {layer.section.name} is {tuple(part.shape)}")
    if reading.index is not None and (int(reading.index[0]) < 0 or not (reading.index.diff() > 0).all()):
        raise ValueError(f"index of layer {layer.section.name} does not ascend from 0 up")
    numbers = [layer.codes, layer.scales, layer.connections, *(p for p in (reading.mean, reading.std) if p is not None)]
    if not all(bool(torch.isfinite(part.float()).all()) for part in numbers):
        raise ValueError(f"layer {layer.section.name} holds NaN or infinity")
