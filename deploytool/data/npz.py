"""Data sets in one .npz file: `npz:PATH`."""

from pathlib import Path
from typing import Any

import numpy as np

from deploytool.data.catalogue import DatasetInfo
from deploytool.data.class_names import CIFAR10_CLASSES
from deploytool.data.images import Array, Dataset, from_arrays
from deploytool.errors import DataError

MAX_NPZ_BYTES = 8 << 30
MAX_CLASSES = 1 << 16


def load_npz(name: str) -> Dataset:
    """Read `x_train`, `y_train`, `x_test`, `y_test` (and optional `classes`) from a .npz without pickles.

    Args:
        name: `npz:PATH`, as in the recipe.

    Raises:
        DataError: the file is absent or damaged, or an array is missing or of the wrong shape or type.
    """
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
    return Dataset(
        info, from_arrays(arrays["x_train"], arrays["y_train"]), from_arrays(arrays["x_test"], arrays["y_test"])
    )


def _member(path: Path, archive: Any, key: str) -> Array:
    if key not in archive.files:
        raise DataError(f"{path} lacks the array {key}; it needs x_train, y_train, x_test, y_test")
    declared = archive.zip.getinfo(f"{key}.npy").file_size
    if declared > MAX_NPZ_BYTES:
        raise DataError(f"{path}: {key} unpacks to {declared} bytes; at most {MAX_NPZ_BYTES}")
    array = archive[key]
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {key} is no array")
    return array


def _check_arrays(name: str, x: Array, y: Array, part: str) -> None:
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
