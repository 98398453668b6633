"""Data sets by name: what they are, and their images in memory."""

import numpy as np

from deploytool.data.catalogue import CATALOGUE, DatasetInfo, unknown_dataset
from deploytool.data.imagefolder import load_imagefolder
from deploytool.data.images import Dataset, Images, as_unit, from_arrays
from deploytool.data.npz import load_npz
from deploytool.data.tiny_imagenet import load_tiny_imagenet
from deploytool.data.torchvision_sets import SOURCES, data_folder, load_torchvision
from deploytool.recipe import DataSection

__all__ = ["Dataset", "Images", "as_unit", "dataset_info", "load_dataset"]


def dataset_info(section: DataSection) -> DatasetInfo:
    """Describe the recipe's data set; only `npz:PATH` and `imagefolder:PATH` have to read files for that.

    Raises:
        DataError: the name is unknown, or the files of a PATH are unusable.
    """
    if section.name.startswith("npz:"):
        return load_npz(section.name).info
    if section.name.startswith("imagefolder:"):
        return load_imagefolder(section.name, section.image_size).info
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
        return load_npz(section.name)
    if section.name.startswith("imagefolder:"):
        return load_imagefolder(section.name, section.image_size)
    if section.name == "digits":
        return _load_digits()
    if section.name == "tiny-imagenet":
        return load_tiny_imagenet(data_folder(section.root))
    if section.name in SOURCES:
        return load_torchvision(section.name, data_folder(section.root), download)
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
    return Dataset(CATALOGUE["digits"], from_arrays(x_train, y_train), from_arrays(x_test, y_test))
