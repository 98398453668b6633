"""Loading data sets into memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploytool.data.catalogue import CATALOGUE, CIFAR10_CLASSES, DatasetInfo, unknown_dataset
from deploytool.errors import DataError
from deploytool.recipe import DataSection

MAX_NPZ_BYTES = 8 << 30
MAX_CLASSES = 1 << 16


@dataclass(frozen=True)
class Images:
    """Labelled images held in memory.

    Attributes:
        images: (N, C, H, W), uint8 in [0, 255] or float32 in [0, 1].
        labels: (N,) int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return images (n, C, H, W) float32 in [0, 1] and labels (n,) int64 of the given rows."""
        return as_unit(self.images[index]), self.labels[index]

    def head(self, count: int | None) -> "Images":
        """Return the first `count` images, all where None."""
        return self if count is None else Images(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Dataset:
    """A data set's description, its training images and its test images."""

    info: DatasetInfo
    train: Images
    test: Images


def as_unit(images: Tensor) -> Tensor:
    """Map uint8 images in [0, 255] to float32 in [0, 1]; pass float32 through."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def dataset_info(section: DataSection) -> DatasetInfo:
    """Describe the recipe's data set; only `npz:PATH` has to read a file for that."""
    if section.name.startswith("npz:"):
        return _load_npz(section.name).info
    if section.name not in CATALOGUE:
        raise unknown_dataset(section.name)
    return CATALOGUE[section.name]


def load_dataset(section: DataSection, download: bool = True) -> Dataset:
    """Load the recipe's data set into memory.

    Args:
        section: which data set, and where it lies.
        download: fetch it where torchvision can and the folder lacks it.

    Raises:
        DataError: the name is unknown, or the files are absent, damaged or of the wrong shape.
    """
    if section.name.startswith("npz:"):
        return _load_npz(section.name)
    if section.name == "digits":
        return _load_digits()
    if section.name == "cifar10":
        return _load_cifar10(section.root, download)
    raise unknown_dataset(section.name)


def _load_digits() -> Dataset:
    """UCI handwritten digits, 8x8, as shipped with scikit-learn: 1297 images to train, 500 to test, stratified.

    The split is the same for every seed, so that seeds vary the training alone.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = (source.images / 16).astype(np.float32)[:, None]
    x_train, x_test, y_train, y_test = train_test_split(
        images, source.target.astype(np.int64), test_size=500, stratify=source.target, random_state=0
    )
    return Dataset(CATALOGUE["digits"], _images(x_train, y_train), _images(x_test, y_test))


def _load_cifar10(root: str | None, download: bool) -> Dataset:
    from torchvision.datasets import CIFAR10

    folder = Path(root) if root else Path.home() / ".cache" / "deploytool"
    parts = []
    for train in (True, False):
        try:
            part = CIFAR10(str(folder), train=train, download=download and not (folder / CIFAR10.base_folder).is_dir())
        except Exception as error:
            raise DataError(
                f"cifar10 is not in {folder} and cannot be had: {' '.join(str(error).split())[:160]}; "
                "put cifar-10-batches-py there, or name another folder with --set data.root=DIR"
            ) from None
        parts.append(_images(part.data.transpose(0, 3, 1, 2), np.asarray(part.targets)))
    return Dataset(CATALOGUE["cifar10"], parts[0], parts[1])


def _load_npz(name: str) -> Dataset:
    """Read `x_train`, `y_train`, `x_test`, `y_test` (and optional `classes`) from a .npz without pickles."""
    path = Path(name.removeprefix("npz:"))
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: _member(path, archive, key) for key in ("x_train", "y_train", "x_test", "y_test")}
            names = tuple(map(str, _member(path, archive, "classes").ravel())) if "classes" in archive.files else ()
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"data.name (={name}): {path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a hostile archive makes zipfile, zlib and numpy raise almost anything
        raise DataError(
            f"data.name (={name}): {path} is no usable .npz: {' '.join(str(error).split())[:160]}"
        ) from None
    for part in ("train", "test"):
        _check_arrays(name, arrays[f"x_{part}"], arrays[f"y_{part}"], part)
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise DataError(f"{name}: training and test images differ in shape")
    count = int(max(arrays["y_train"].max(), arrays["y_test"].max())) + 1
    if count > MAX_CLASSES:
        raise DataError(f"{name}: labels go up to {count - 1}; at most {MAX_CLASSES - 1} is allowed")
    classes = names or (CIFAR10_CLASSES if count == 10 and "cifar10" in path.name else tuple(map(str, range(count))))
    if len(classes) < count:
        raise DataError(f"{name}: labels go up to {count - 1} but only {len(classes)} classes are named")
    x = arrays["x_train"]
    unit = x.astype(np.float32) / (255 if x.dtype == np.uint8 else 1)
    mean, std = unit.mean(axis=(0, 2, 3), dtype=np.float64), unit.std(axis=(0, 2, 3), dtype=np.float64)
    info = DatasetInfo(
        name,
        tuple(x.shape[1:]),
        classes,
        tuple(round(float(v), 4) for v in mean),
        tuple(round(float(v), 4) for v in std),
    )
    return Dataset(info, _images(arrays["x_train"], arrays["y_train"]), _images(arrays["x_test"], arrays["y_test"]))


def _member(path: Path, archive: Any, key: str) -> np.ndarray[Any, Any]:
    if key not in archive.files:
        raise DataError(f"{path} lacks the array {key}; it needs x_train, y_train, x_test, y_test")
    declared = archive.zip.getinfo(f"{key}.npy").file_size
    if declared > MAX_NPZ_BYTES:
        raise DataError(f"{path}: {key} unpacks to {declared} bytes; at most {MAX_NPZ_BYTES}")
    array = archive[key]
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {key} is no array")
    return array


def _check_arrays(name: str, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], part: str) -> None:
    if x.ndim != 4 or y.shape != x.shape[:1] or not x.size:
        raise DataError(
            f"{name}: x_{part} must be (N, C, H, W) and y_{part} (N,), none of them 0; got {x.shape} and {y.shape}"
        )
    if y.dtype.kind not in "iu" or y.min() < 0:
        raise DataError(f"{name}: y_{part} must hold integers from 0 up; got {y.dtype} from {y.min()}")
    if x.dtype == np.float32:
        if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
            raise DataError(f"{name}: float32 x_{part} must be in [0, 1]; got {x.min()} to {x.max()}")
    elif x.dtype != np.uint8:
        raise DataError(f"{name}: x_{part} must be uint8 in [0, 255] or float32 in [0, 1]; got {x.dtype}")


def _images(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Images:
    return Images(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64)))
