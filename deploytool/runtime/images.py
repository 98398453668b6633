"""From a picture file to what a model takes."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from deploytool.errors import InputError

Array = np.ndarray[Any, Any]

MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG")
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class Wanted(Protocol):
    """What a picture is to become: (C, H, W), and `L` or `RGB`; a model's metadata say so."""

    @property
    def shape(self) -> tuple[int, int, int]: ...  # noqa: D102

    @property
    def mode(self) -> str: ...  # noqa: D102


def load_image(path: str | os.PathLike[str], metadata: Wanted) -> Array:
    """Read a PNG or JPEG file as the model's input.

    The camera's orientation tag is applied; transparency is laid over black; 16-bit greys are scaled to [0, 1];
    colours become the model's `L` or `RGB`; another size is resized (bilinear, antialiased).

    Args:
        path: picture file, at most 64 MiB and 64 million pixels; larger ones are refused before they are decoded.
        metadata: of the model that is to see it.

    Returns:
        (1, C, H, W) float32 in [0, 1].

    Raises:
        InputError: the file is absent, too large, damaged, or neither PNG nor JPEG.
    """
    with opened_picture(path) as picture:
        return _to_array(ImageOps.exif_transpose(picture), metadata)


@contextmanager
def opened_picture(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open a PNG or JPEG file within its bounds; whatever is wrong with it, then or inside, is an InputError."""
    file = Path(path)
    try:
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{file} has {size} bytes; at most {MAX_FILE_BYTES}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, milder bomb warning, and those on damaged EXIF data
            with Image.open(file, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise InputError(f"{file} has {picture.width}x{picture.height} pixels; at most {MAX_PIXELS} in all")
                yield picture
    except UnidentifiedImageError:
        raise InputError(f"{file} is no PNG or JPEG picture") from None
    except Image.DecompressionBombError:
        raise InputError(f"{file} unpacks to too many pixels; at most {MAX_PIXELS}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise InputError(f"{file} cannot be read as a picture: {reason}") from None


def _to_array(picture: Image.Image, metadata: Wanted) -> Array:
    _, height, width = metadata.shape
    if picture.mode in SIXTEEN_BIT:
        grey = np.clip(np.asarray(picture, np.float32) / 65535, 0, 1)
        picture = Image.fromarray(grey, "F")
        picture = picture if picture.size == (width, height) else picture.resize((width, height), _BILINEAR)
        planes: Array = np.repeat(np.asarray(picture, np.float32)[None], metadata.shape[0], axis=0)
    else:
        if picture.mode == "P" or "transparency" in picture.info or picture.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
        picture = picture.convert(metadata.mode)
        picture = picture if picture.size == (width, height) else picture.resize((width, height), _BILINEAR)
        pixels = np.asarray(picture, np.float32) / np.float32(255)
        planes = pixels[None] if metadata.mode == "L" else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(np.clip(planes, 0, 1)[None], np.float32)


_BILINEAR = Image.Resampling.BILINEAR
