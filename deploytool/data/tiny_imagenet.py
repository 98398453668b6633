"""Tiny-ImageNet from its usual folder; torchvision has no class for it, and cannot download it."""

from pathlib import Path

import numpy as np

from deploytool.data.catalogue import CATALOGUE
from deploytool.data.class_names import TINY_IMAGENET_CLASSES
from deploytool.data.images import Dataset, Images, from_arrays
from deploytool.data.pictures import pictures_in, read_pictures
from deploytool.errors import DataError

FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MAX_ANNOTATION_BYTES = 16 << 20


def load_tiny_imagenet(root: Path) -> Dataset:
    """Load 200 classes of 64x64 images: train/WNID/images/*.JPEG to train, val/images/*.JPEG to test.

    Args:
        root: the folder that holds `tiny-imagenet-200`.

    Raises:
        DataError: the folder or a part of it is absent, or a picture is broken.
    """
    folder = root / FOLDER
    if not folder.is_dir():
        raise DataError(
            f"tiny-imagenet is not in {root}: it has no folder {FOLDER}; unpack {URL} there, "
            "or name another folder with --set data.root=DIR"
        )
    try:
        train, test = _training_files(folder), _test_files(folder / "val")
    except OSError as error:
        raise DataError(
            f"tiny-imagenet in {folder} is incomplete: {error.filename}: {error.strerror}; unpack {URL} again"
        ) from None
    return Dataset(CATALOGUE["tiny-imagenet"], _images(train, "training images"), _images(test, "test images"))


def _training_files(folder: Path) -> list[tuple[Path, int]]:
    files = []
    for label, wnid in enumerate(TINY_IMAGENET_CLASSES):
        pictures = pictures_in(folder / "train" / wnid / "images")
        if not pictures:
            raise DataError(f"{folder}/train/{wnid}/images has no pictures; unpack {URL} again")
        files += [(picture, label) for picture in pictures]
    return files


def _test_files(folder: Path) -> list[tuple[Path, int]]:
    """Files and labels as val_annotations.txt gives them: name, WNID and four numbers, separated by tabs."""
    annotations = folder / "val_annotations.txt"
    if annotations.stat().st_size > MAX_ANNOTATION_BYTES:
        raise DataError(f"{annotations} has {annotations.stat().st_size} bytes; at most {MAX_ANNOTATION_BYTES}")
    labels = {wnid: label for label, wnid in enumerate(TINY_IMAGENET_CLASSES)}
    files = []
    for number, line in enumerate(annotations.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in labels or Path(name).name != name:
            raise DataError(f"{annotations}, line {number}, must be FILE, WNID and four numbers; got {line[:60]!r}")
        files.append((folder / "images" / name, labels[wnid]))
    if not files:
        raise DataError(f"{annotations} is empty; unpack {URL} again")
    return files


def _images(files: list[tuple[Path, int]], title: str) -> Images:
    shape = CATALOGUE["tiny-imagenet"].shape
    return from_arrays(
        read_pictures([file for file, _ in files], shape, title), np.array([label for _, label in files])
    )
