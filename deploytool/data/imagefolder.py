"""Data sets made of folders of pictures: `imagefolder:PATH`.

Either PATH/train/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/*, of which a fifth of each class becomes test images.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np

from deploytool.data.catalogue import DatasetInfo
from deploytool.data.images import Dataset, Images, channel_statistics, from_arrays
from deploytool.data.pictures import pictures_in, read_header, read_pictures, subfolders
from deploytool.errors import DataError

Classes = dict[str, list[Path]]

TEST_SHARE = 0.2


def load_imagefolder(name: str, image_size: int | None) -> Dataset:
    """Load PNG and JPEG files into memory; grey images if all files are grey, else RGB.

    The last folder is kept for the next call in this process, which sees no later change of the files.

    Args:
        name: `imagefolder:PATH`, as in the recipe.
        image_size: height and width that all pictures are resized to; None if they share one size.

    Raises:
        DataError: the folder is absent, has fewer than two classes, a class without pictures, a broken picture, or
            pictures of different sizes without `image_size`; or train/ and test/ do not fit each other.
    """
    path = name.removeprefix("imagefolder:")
    if not path:
        raise DataError("data.name (='imagefolder:') needs a folder: imagefolder:PATH")
    return _load(name, Path(path).expanduser().absolute(), image_size)


@lru_cache(maxsize=1)
def _load(name: str, folder: Path, image_size: int | None) -> Dataset:
    try:
        train, test = _find_parts(folder)
    except OSError as error:
        raise DataError(f"data.name (={name}): {error.filename} cannot be read: {error.strerror}") from None
    shape = _common_shape([file for part in (train, test) for files in part.values() for file in files], image_size)
    images = [_images(part, shape, title) for part, title in ((train, "training images"), (test, "test images"))]
    mean, std = channel_statistics(images[0].images.numpy())
    return Dataset(DatasetInfo(name, shape, tuple(train), mean, std), *images)


def _find_parts(folder: Path) -> tuple[Classes, Classes]:
    """Files per class to train and to test with, classes sorted by name."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; imagefolder:PATH needs PATH/CLASS/*.png or PATH/train/CLASS/*")
    parts = [folder / "train", folder / "test"]
    if not (parts[0].is_dir() and subfolders(parts[0])):
        return _split(_classes(folder))
    if not parts[1].is_dir():
        raise DataError(f"{folder} has train/ but no test/; add it, or give the folder that holds the classes")
    train, test = (_classes(part) for part in parts)
    if list(train) != list(test):
        odd = sorted(set(train) ^ set(test))
        raise DataError(f"{folder}: train/ and test/ must hold the same classes; only one of them has {_some(odd)}")
    return train, test


def _classes(folder: Path) -> Classes:
    classes = {path.name: pictures_in(path) for path in subfolders(folder)}
    if len(classes) < 2:
        found = f"only {', '.join(classes)}" if classes else "none"
        raise DataError(f"{folder} must hold a folder per class, at least 2; found {found}")
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise DataError(f"{folder}: no .png, .jpg or .jpeg file in {_some(empty)}; add pictures or remove the folder")
    return classes


def _split(classes: Classes) -> tuple[Classes, Classes]:
    """Take a fifth of each class, at least one picture, for testing; the same ones for every seed of a recipe."""
    train: Classes = {}
    test: Classes = {}
    for index, (name, files) in enumerate(classes.items()):
        if len(files) < 2:
            raise DataError(f"{files[0].parent} has 1 picture; a class needs at least 2, one of them to test with")
        held = set(np.random.default_rng((0, index)).permutation(len(files))[: max(1, round(TEST_SHARE * len(files)))])
        train[name] = [file for row, file in enumerate(files) if row not in held]
        test[name] = [file for row, file in enumerate(files) if row in held]
    return train, test


def _common_shape(files: list[Path], image_size: int | None) -> tuple[int, int, int]:
    """(C, H, W) of all images; every header is read, so that a wrong file shows before the long work."""
    headers = [read_header(file) for file in files]
    channels = 1 if all(header.grey for header in headers) else 3
    if image_size is not None:
        return channels, image_size, image_size
    first = headers[0]
    for file, header in zip(files, headers, strict=True):
        if (header.width, header.height) != (first.width, first.height):
            raise DataError(
                f"{file} has {header.width}x{header.height} pixels but {files[0].name} has "
                f"{first.width}x{first.height}; resize all with --set data.image_size=N"
            )
    return channels, first.height, first.width


def _images(part: Classes, shape: tuple[int, int, int], title: str) -> Images:
    labels = np.repeat(np.arange(len(part)), [len(files) for files in part.values()])
    return from_arrays(read_pictures([file for files in part.values() for file in files], shape, title), labels)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
