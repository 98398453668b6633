"""Pictures of saliency maps: the image that the classifier saw, its map laid over it in colours.

The colours are cividis, from dark blue (0) over grey to yellow (1): lightness grows with the value all the way, and
people with colour vision deficiency see them as others do. Values are drawn as they are, never stretched, so that
pictures of different images can be compared.

Reference: J. R. Nunez, C. R. Anderton, R. S. Renslow, Optimizing colormaps with consideration for color vision
deficiency to enable accurate interpretation of scientific data, 2018.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deploytool.atomic import atomic_path

Array = np.ndarray[Any, Any]

# Cividis at 0, 1/8 ... 1; in between linearly, which is off by 18 of 255 at most, in blue near 0.
CIVIDIS = np.array(
    [
        (0, 34, 78),
        (26, 56, 111),
        (67, 78, 108),
        (97, 101, 111),
        (125, 124, 120),
        (155, 148, 118),
        (188, 174, 108),
        (222, 201, 88),
        (254, 232, 56),
    ],
    np.float32,
)
SIDE = 256  # pixels of the longer side, at least
WEIGHT = 0.6  # of the map's colour, over the image in grey


def overlay(image: Array, saliency: Array) -> Image.Image:
    """Lay a map over its image.

    Args:
        image: (C, H, W) float32 in [0, 1].
        saliency: (H, W) in [0, 1].

    Returns:
        A picture in RGB, enlarged by a whole number to 256 pixels or more on its longer side: the image's pixels as
        squares, the map bilinearly.
    """
    height, width = saliency.shape
    factor = max(1, -(-SIDE // max(height, width)))
    size = width * factor, height * factor
    grey = Image.fromarray(np.clip(image.mean(0), 0, 1).astype(np.float32), "F")
    pixels = np.asarray(grey.resize(size, Image.Resampling.NEAREST))[..., None] * np.float32(255)
    smooth = np.asarray(Image.fromarray(saliency.astype(np.float32), "F").resize(size, Image.Resampling.BILINEAR))
    mixed = (1 - WEIGHT) * pixels + WEIGHT * colours(smooth)
    return Image.fromarray(np.clip(mixed.round(), 0, 255).astype(np.uint8), "RGB")


def colours(values: Array) -> Array:
    """Map values (...) in [0, 1] to cividis (..., 3) in [0, 255]."""
    places = np.linspace(0, 1, len(CIVIDIS))
    return np.stack([np.interp(values, places, channel) for channel in CIVIDIS.T], -1)


def overlay_paths(folder: str | os.PathLike[str], images: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Where the overlays of picture files go: FOLDER/NAME-saliency.png, or -2, -3 ... for further ones of a name.

    No two are the same, letter case aside, and none is one of the pictures themselves.
    """
    taken = {str(Path(image).resolve()).casefold() for image in images}
    paths = []
    for image in images:
        stem, number = Path(image).stem, 1
        path = Path(folder) / f"{stem}-saliency.png"
        while str(path.resolve()).casefold() in taken:
            number += 1
            path = Path(folder) / f"{stem}-saliency-{number}.png"
        taken.add(str(path.resolve()).casefold())
        paths.append(path)
    return paths


def overlay_png(image: Array, saliency: Array) -> bytes:
    """Encode `overlay` as PNG: what is kept of a picture until all are known."""
    stream = io.BytesIO()
    overlay(image, saliency).save(stream, format="PNG")
    return stream.getvalue()


def write_overlay(path: Path, png: bytes) -> None:
    """Write an overlay, atomically; its folder is made. Raises OSError where it cannot be written."""
    with atomic_path(path) as aside:
        aside.write_bytes(png)
