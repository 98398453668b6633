"""From folders of PNG and JPEG files to arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploytool.data.images import Array
from deploytool.errors import DataError, InputError
from deploytool.progress import progress_bar
from deploytool.runtime.images import SIXTEEN_BIT, load_image, opened_picture

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_TOTAL_BYTES = 8 << 30

_GREY = ("1", "L", "LA", "La", "F", *SIXTEEN_BIT)
_ORIENTATION, _TRANSPOSED = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class Header:
    """What a picture file says of itself before it is decoded: upright size in pixels, and whether it is grey."""

    width: int
    height: int
    grey: bool


@dataclass(frozen=True)
class _Wanted:
    """What `load_image` has to make of a picture where there is no model yet."""

    shape: tuple[int, int, int]
    mode: str


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted by name; hidden ones are left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def pictures_in(folder: Path) -> list[Path]:
    """PNG and JPEG files in a folder itself, by suffix, sorted by name; hidden ones are left out."""
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def read_header(file: Path) -> Header:
    """Read a picture's header.

    Raises:
        DataError: the file is no PNG or JPEG, unreadable or larger than 64 MiB or 64 million pixels.
    """
    try:
        with opened_picture(file) as picture:
            width, height = picture.size
            if picture.getexif().get(_ORIENTATION) in _TRANSPOSED:
                width, height = height, width
            return Header(width, height, picture.mode in _GREY)
    except InputError as error:
        raise DataError(f"{error}; repair or remove it") from None


def read_pictures(files: Sequence[Path], shape: tuple[int, int, int], title: str) -> Array:
    """Decode picture files as `deploytool predict` does, resized where their size is another.

    Args:
        files: PNG or JPEG files.
        shape: (C, H, W) wanted, C 1 or 3.
        title: of the progress bar.

    Returns:
        (len(files), C, H, W) uint8.

    Raises:
        DataError: a file cannot be decoded, or all of them would not fit into 8 GiB.
    """
    if len(files) * np.prod(shape) > MAX_TOTAL_BYTES:
        raise DataError(
            f"{len(files)} pictures of {shape[2]}x{shape[1]} pixels unpack to more than {MAX_TOTAL_BYTES} bytes; "
            "use fewer, or make them smaller with data.image_size"
        )
    wanted = _Wanted(shape, "L" if shape[0] == 1 else "RGB")
    pixels = np.empty((len(files), *shape), np.uint8)
    with progress_bar(title, len(files)) as bar:
        for row, file in enumerate(files):
            try:
                pixels[row] = np.rint(load_image(file, wanted)[0] * 255)
            except InputError as error:
                raise DataError(f"{error}; repair or remove it") from None
            bar.advance()
    return pixels
