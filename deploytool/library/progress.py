"""How far a build has come: in memory, and in BUILD/build.safetensors, from where an interrupted one goes on."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploytool.data.images import Images
from deploytool.digests import state_digest
from deploytool.errors import CheckpointError, RunError
from deploytool.library.folder import DAMAGE, Layer, read_layers, read_tensors, write_layers, write_tensors
from deploytool.library.novelty import Shelf
from deploytool.library.patterns import EPSILON
from deploytool.library.recipe import LibraryRecipe

FORMAT = "deploytool-build-1"
PHASES = ("statistics", "search", "patterns", "connections")
GRID = 10_000  # thresholds are searched for in steps of 1 / GRID
ASKED = 9  # thresholds of one round


@dataclass
class Statistics:
    """Mean and variance of each channel of an activity (N, C, ...), gathered block by block.

    Reference: T. F. Chan, G. H. Golub, R. J. LeVeque, Algorithms for computing the sample variance, 1983, eq. 2.1.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def add(self, activity: Tensor) -> None:
        """Take a block (B, C, ...) in."""
        values = activity.double().flatten(2) if activity.ndim > 2 else activity.double()[:, :, None]
        count = values.shape[0] * values.shape[2]
        mean = values.mean((0, 2))
        squares = (values - mean[:, None]).square().sum((0, 2))
        if not self.count:
            self.mean, self.squares = torch.zeros_like(mean), torch.zeros_like(mean)
        total, move = self.count + count, mean - self.mean
        self.mean = self.mean + move * (count / total)
        self.squares = self.squares + squares + move.square() * (self.count * count / total)
        self.count = total

    def modulation(self, features: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation (population's, with a batch norm's epsilon) of every value, (F,) float32 each."""
        std = (self.squares / self.count + EPSILON).sqrt()
        each = features // len(self.mean)
        mean, std = (part.float().repeat_interleave(each) for part in (self.mean, std))
        return mean, std


@dataclass
class Search:
    """A threshold, in steps of 1 / 10,000, whose library has as many patterns as wanted, or just fewer.

    `low` is known to have no more, `high` to have more; 1 at first is not known to.
    """

    low: int = -GRID
    high: int = GRID + 1

    @property
    def done(self) -> bool:
        """Whether nothing is left to ask."""
        return self.high - self.low <= 1

    @property
    def theta(self) -> float:
        """The threshold found."""
        return max(self.low, 1 - GRID) / GRID

    @property
    def _steps(self) -> list[int]:
        width = self.high - self.low
        steps = {self.low + width * part // (ASKED + 1) for part in range(1, ASKED + 1)}
        return sorted(step for step in steps if self.low < step < self.high)

    @property
    def asked(self) -> list[float]:
        """Thresholds to try next, ascending."""
        return [step / GRID for step in self._steps]

    def answer(self, too_large: list[bool]) -> None:
        """Narrow down, with whether the library of each asked threshold has more patterns than wanted."""
        for step, over in zip(self._steps, too_large, strict=True):
            if over:
                self.high = step
                return
            self.low = step


@dataclass
class Progress:
    """Where a build stands.

    Attributes:
        recipe, digest, images: digests of the recipe, the target and the training images.
        phase: statistics, search, patterns or connections, of the condition after those finished.
        block: blocks that the phase has seen.
        size: images of a block; 0 before it is known.
        statistics, search, shelves, sums, seconds: what the phases have found, for each layer.
        finished: the layers of conditions that are done.
    """

    recipe: str
    digest: str
    images: str
    layers: int
    phase: str = "statistics"
    block: int = 0
    statistics: list[Statistics] = field(default_factory=list)
    search: list[Search | None] = field(default_factory=list)
    shelves: list[Shelf] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    finished: list[tuple[Layer, ...]] = field(default_factory=list)
    size: int = 0

    @classmethod
    def fresh(cls, recipe: LibraryRecipe, digest: str, train: Images) -> "Progress":
        """A build that has not begun."""
        images = state_digest({"image": train.images})
        progress = cls(recipe.digest(), digest, images, len(recipe.layers))
        progress.finish(None)
        return progress

    def mark(self) -> Callable[[], None]:
        """What brings this state back, from anywhere within the next block."""
        block, sums, seconds = self.block, list(self.sums), list(self.seconds)
        statistics, sizes = [replace(each) for each in self.statistics], [shelf.size for shelf in self.shelves]

        def back() -> None:
            self.block, self.sums, self.seconds, self.statistics = block, sums, seconds, statistics
            for shelf, size in zip(self.shelves, sizes, strict=True):
                shelf.size = size  # patterns are only ever put behind those that are there

        return back

    def enter(self, phase: str, **found: Any) -> None:
        """Begin the next phase."""
        self.phase, self.block = phase, 0
        for name, value in found.items():
            setattr(self, name, value)

    def finish(self, layers: tuple[Layer, ...] | None) -> None:
        """End a condition, and be ready for the next."""
        if layers is not None:
            self.finished.append(layers)
        self.enter("statistics", statistics=[Statistics() for _ in range(self.layers)])
        self.search, self.shelves, self.sums, self.seconds = [], [], [], [0.0] * self.layers


def progress_path(folder: Path) -> Path:
    """Path of what an interrupted build has so far."""
    return folder / "build.safetensors"


def save_progress(folder: Path, progress: Progress) -> None:
    """Write down where a build stands, atomically. Raises RunError where that cannot be done."""
    tensors, finished = write_layers(progress.finished)
    for place, statistics in enumerate(progress.statistics):
        tensors |= {f"mean.{place}": statistics.mean, f"squares.{place}": statistics.squares}
    for place, shelf in enumerate(progress.shelves):
        tensors |= {f"shelf.{place}.{name}": tensor for name, tensor in shelf.state().items()}
    tensors |= {f"sums.{place}": sums for place, sums in enumerate(progress.sums)}
    document = {
        "recipe": progress.recipe,
        "digest": progress.digest,
        "images": progress.images,
        "phase": progress.phase,
        "block": progress.block,
        "size": progress.size,
        "counts": [each.count for each in progress.statistics],
        "search": [None if each is None else [each.low, each.high] for each in progress.search],
        "shelves": [[shelf.layer, shelf.thetas, shelf.storage] for shelf in progress.shelves],
        "seconds": progress.seconds,
        "finished": finished,
    }
    write_tensors(progress_path(folder), tensors, {"format": FORMAT, "progress": json.dumps(document)})


def load_progress(folder: Path, recipe: LibraryRecipe, fresh: Progress) -> Progress:
    """Where an interrupted build stands.

    Args:
        folder: of the build.
        recipe: of the build.
        fresh: the same build as it would begin now.

    Raises:
        RunError: target or images have changed since. CheckpointError: the file is damaged.
    """
    file = progress_path(folder)
    try:
        tensors, metadata = read_tensors(file, FORMAT)
        document = json.loads(metadata["progress"])
        found = _progress(document, recipe, tensors)
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{file} is damaged ({reason}); remove {folder} and build anew") from None
    for name in ("recipe", "digest", "images"):
        if getattr(found, name) != getattr(fresh, name):
            what = {"digest": "target", "images": "training images"}.get(name, name)
            raise RunError(f"{folder}: the {what} changed since its build began; name another folder with -o")
    return found


def _progress(document: dict[str, Any], recipe: LibraryRecipe, tensors: dict[str, Tensor]) -> Progress:
    if document["phase"] not in PHASES or not min(int(document["block"]), int(document["size"])) >= 0:
        raise ValueError(f"phase {str(document['phase'])[:40]}, block {document['block']}")
    shelves = []
    for place, (layer, thetas, storage) in enumerate(document["shelves"]):
        own = {name: tensors[f"shelf.{place}.{name}"] for name in Shelf.TENSORS}
        shelves.append(Shelf.restored(layer, thetas, storage, own))
    return Progress(
        document["recipe"],
        document["digest"],
        document["images"],
        len(recipe.layers),
        str(document["phase"]),
        int(document["block"]),
        [Statistics(n, tensors[f"mean.{i}"], tensors[f"squares.{i}"]) for i, n in enumerate(document["counts"])],
        [None if each is None else Search(*each) for each in document["search"]],
        shelves,
        [tensors[f"sums.{place}"] for place in range(len(shelves))] if document["phase"] == "connections" else [],
        [float(each) for each in document["seconds"]],
        read_layers(document["finished"], recipe, tensors),
        int(document["size"]),
    )
