"""What a data set looks like, known without loading it."""

import difflib
import math
from dataclasses import dataclass

from deploytool.errors import DataError


@dataclass(frozen=True)
class DatasetInfo:
    """Shape and meaning of a data set.

    Attributes:
        name: as in the recipe.
        shape: (C, H, W) of one image.
        classes: class names, in the order of the labels.
        mean, std: per channel, over the training images in [0, 1]; the model normalises with them.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise DataError(f"data set {self.name} has {len(self.classes)} classes; a classifier needs at least 2")
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not (len(self.mean) == len(self.std) == self.shape[0] and finite and min(self.std, default=0) > 0):
            raise DataError(f"data set {self.name} needs one finite mean and one positive std per channel")


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

CATALOGUE = {
    "digits": DatasetInfo("digits", (1, 8, 8), tuple("0123456789"), (0.305,), (0.376,)),
    "cifar10": DatasetInfo("cifar10", (3, 32, 32), CIFAR10_CLASSES, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
}


def unknown_dataset(name: str) -> DataError:
    """The error for a name that no data set has."""
    near = difflib.get_close_matches(name, CATALOGUE, n=1)
    advice = f"did you mean {near[0]}? " if near else ""
    return DataError(f"data.name (={name!r}) is unknown; {advice}known: {', '.join(sorted(CATALOGUE))}, npz:PATH")
