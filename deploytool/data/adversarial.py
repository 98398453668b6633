"""Saved adversarial examples of training images, appended to the training set.

Reference: D. Schwartz, Y. Alparslan, E. Kim, Regularization and sparsity for adversarial robustness and stable
attribution ("paper 2"), section 4.2: "retrain the networks on the training set augmented with the adversarial images".
"""

import hashlib
from collections.abc import Iterable, Sequence

from torch import Tensor

from deploytool.attacks.store import load_adversarial
from deploytool.data.images import Dataset, Images, JoinedImages, as_unit
from deploytool.errors import DataError

ROWS = 1024  # images turned to float32 at a time


def with_adversarial(data: Dataset, files: Sequence[str]) -> Images | JoinedImages:
    """Return a data set's training images, and after them all adversarial images of the files, truly labelled.

    Every image of a file is taken, also where the attack did not fool its network.

    Args:
        data: the data set; kept in memory as it is.
        files: .npz files that `deploytool.attacks.store.save_adversarial` wrote, attacks on training images.

    Raises:
        DataError: a file is unusable, its images or labels do not fit the data set, or it holds test images.
    """
    if not files:
        return data.train
    parts = [data.train]
    for file in files:
        saved = load_adversarial(file)
        _check(file, saved.adversarial, saved.label, data)
        _check_origin(file, saved.image, data)
        parts.append(Images(saved.adversarial, saved.label))
    return JoinedImages(tuple(parts))


def _check(file: str, image: Tensor, label: Tensor, data: Dataset) -> None:
    """Raise DataError unless the images and labels could be the data set's."""
    info = data.info
    if tuple(image.shape[1:]) != info.shape:
        raise DataError(
            f"data.adversarial: {file} holds images of {tuple(image.shape[1:])}; {info.name} has {info.shape}"
        )
    if int(label.max()) >= len(info.classes):
        raise DataError(
            f"data.adversarial: {file} has labels up to {int(label.max())}; {info.name} has classes 0 to "
            f"{len(info.classes) - 1}"
        )
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:
        raise DataError(f"data.adversarial: {file} holds values from {low:g} to {high:g}; images are in [0, 1]")


def _check_origin(file: str, image: Tensor, data: Dataset) -> None:
    """Raise DataError where images were made from test images: training on them would give the test away."""
    wanted = set(_digests([image]))
    leaked = wanted & set(_digests(_batches(data.test)))
    if leaked:
        leaked -= set(_digests(_batches(data.train)))  # some data sets have an image in both
    if leaked:
        raise DataError(
            f"data.adversarial: {len(leaked)} images of {file} are attacks on test images of {data.info.name}; "
            "attack training images instead"
        )


def _batches(images: Images) -> Iterable[Tensor]:
    return (as_unit(images.images[start : start + ROWS]) for start in range(0, len(images), ROWS))


def _digests(batches: Iterable[Tensor]) -> Iterable[bytes]:
    for batch in batches:
        yield from (hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=16).digest() for image in batch)
