"""What a data set looks like, known without loading it."""

import difflib
import math
from dataclasses import dataclass

from deploytool.data.class_names import CIFAR10_CLASSES, CIFAR100_CLASSES, STL10_CLASSES, TINY_IMAGENET_CLASSES
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


DIGITS = tuple("0123456789")

# Mean and std are those of the training images, as widely published; Tiny-ImageNet's test images are its "val".
CATALOGUE = {
    info.name: info
    for info in (
        DatasetInfo("digits", (1, 8, 8), DIGITS, (0.305,), (0.376,)),
        DatasetInfo("mnist", (1, 28, 28), DIGITS, (0.1307,), (0.3081,)),
        DatasetInfo("cifar10", (3, 32, 32), CIFAR10_CLASSES, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        DatasetInfo("cifar100", (3, 32, 32), CIFAR100_CLASSES, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        DatasetInfo("svhn", (3, 32, 32), DIGITS, (0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197)),
        DatasetInfo("stl10", (3, 96, 96), STL10_CLASSES, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
        DatasetInfo(
            "tiny-imagenet",
            (3, 64, 64),
            tuple(TINY_IMAGENET_CLASSES.values()),
            (0.4802, 0.4481, 0.3975),
            (0.2764, 0.2689, 0.2816),
        ),
    )
}


def unknown_dataset(name: str) -> DataError:
    """The error for a name that no data set has."""
    near = difflib.get_close_matches(name, CATALOGUE, n=1)
    advice = f"did you mean {near[0]}? " if near else ""
    known = ", ".join([*sorted(CATALOGUE), "imagefolder:PATH", "npz:PATH"])
    return DataError(f"data.name (={name!r}) is unknown; {advice}known: {known}")
