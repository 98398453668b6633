"""What is fixed before a file can be priced: the size of its images, and the width of a slimmable network."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from hwmodels.errors import WorkloadError

Sizes = tuple[int, ...]

MAX_SIZE = 1 << 20
WIDTHS = "deploytool.widths"


def parse_shape(text: str) -> Sizes:
    """Read `3x224x224` (C x H x W) or `1x3x224x224` (N x C x H x W); any number of dimensions.

    Raises:
        WorkloadError: it is something else, or a size is not in 1..1048576.
    """
    sizes = tuple(int(part) for part in text.split("x")) if re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})*", text) else ()
    if not sizes or not all(1 <= size <= MAX_SIZE for size in sizes):
        raise WorkloadError(f"shape (={text!r}) must be sizes in 1..{MAX_SIZE} with x between them, as 3x224x224")
    return sizes


def parse_shapes(texts: Sequence[str]) -> Sizes | dict[str, Sizes] | None:
    """Read the values of `--shape`: none, one shape, or `INPUT=3x224x224` for each of several inputs.

    Raises:
        WorkloadError: one cannot be read, or names are missing.
    """
    if len(texts) == 1 and "=" not in texts[0]:
        return parse_shape(texts[0])
    pairs = [text.rpartition("=") for text in texts]
    if not all(name for name, _, _ in pairs):
        raise WorkloadError(f"--shape (={' '.join(texts)!r}) must name the input of each shape, as image=3x224x224")
    return {name: parse_shape(sizes) for name, _, sizes in pairs} or None


def fix_images(
    path: Path, inputs: Sequence[onnx.ValueInfoProto], shape: Sizes | Mapping[str, Sizes] | None
) -> tuple[dict[str, Sizes], int]:
    """Find the image inputs and fix their sizes.

    Images are inputs of two or more dimensions; fewer make a knob. A dynamic batch becomes 1. A file's own sizes
    stand: a shape may repeat them and fill in what is dynamic, not change them.

    Args:
        path: of the file, for messages.
        inputs: of the graph.
        shape: sizes of the one image input, with or without the batch; or by input.

    Returns:
        Shapes by name, and the number of images in a run: the first dimension of the first image. (An input of
        3 x H x W, which has no batch, is one image.)

    Raises:
        WorkloadError: a size is not known, or `shape` contradicts the file.
    """
    dims = {
        value.name: [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]
        for value in inputs
        if value.type.tensor_type.HasField("shape") and len(value.type.tensor_type.shape.dim) >= 2
    }
    given = _by_name(path, dims, shape)
    images: dict[str, Sizes] = {}
    for name, sizes in dims.items():
        fixed = given.get(name)
        if fixed is not None:
            sizes = _filled(path, name, sizes, fixed)
        images[name] = tuple(size or 1 for size in [sizes[0] or 1, *sizes[1:]])
        if not all(sizes[1:]):
            example = "x".join(str(size or (3 if axis == 0 else 224)) for axis, size in enumerate(sizes[1:]))
            named = f"{name}={example}" if len(dims) > 1 else example
            raise WorkloadError(
                f"{path}: input {name} is {_text(sizes)}, and costs need a fixed height and width; name them with "
                f"--shape {named}"
            )
    first = next(iter(images.values()), (1,))
    return images, 1 if len(first) == 3 and first[0] == 3 else first[0]


def _by_name(
    path: Path, dims: Mapping[str, list[int | None]], shape: Sizes | Mapping[str, Sizes] | None
) -> Mapping[str, Sizes]:
    if shape is None:
        return {}
    names = ", ".join(dims) or "none"
    if not isinstance(shape, Mapping):
        dynamic = [name for name, sizes in dims.items() if not all(sizes[1:])]
        target = list(dims) if len(dims) == 1 else dynamic
        if len(target) != 1:
            raise WorkloadError(f"{path}: name the input that --shape is for, as image=3x224x224; images are {names}")
        shape = {target[0]: shape}
    unknown = [name for name in shape if name not in dims]
    if unknown:
        raise WorkloadError(f"{path}: --shape names input {unknown[0]!r}, which is no image; images are {names}")
    return shape


def _filled(path: Path, name: str, sizes: list[int | None], shape: Sizes) -> list[int | None]:
    full = [sizes[0] or 1, *shape] if len(shape) == len(sizes) - 1 else [*shape]
    fits = len(full) == len(sizes) and all(own in (None, size) for own, size in zip(sizes, full, strict=True))
    if not fits or not all(1 <= size <= MAX_SIZE for size in full):
        raise WorkloadError(f"{path}: --shape {'x'.join(map(str, shape))} does not fit input {name}, {_text(sizes)}")
    return [*full]


def _text(sizes: Sequence[int | None]) -> str:
    return " x ".join("?" if size is None else str(size) for size in sizes)


def fix_width(
    path: Path, inputs: Sequence[onnx.ValueInfoProto], properties: Mapping[str, str], width: float | None
) -> float | None:
    """Choose the width of a slimmable file: one with a scalar input `width`, whose metadata list its widths.

    Returns:
        `width`, by default the widest; None where the file has one width alone.

    Raises:
        WorkloadError: the file does not hold that width, or none was chosen and none is listed.
    """
    held = _widths(path, properties)
    if not any(value.name == "width" for value in inputs):
        if width is not None and [width] != held:
            raise WorkloadError(f"{path} takes no width, so it cannot be priced at width (={width}); leave it out")
        return None
    if width is None:
        if not held:
            raise WorkloadError(f"{path} takes a width and does not list those it holds; choose one with --width")
        return max(held)
    if not (0 < width < math.inf) or (held and width not in held):
        known = ", ".join(f"{each:g}" for each in held) or "positive numbers"
        raise WorkloadError(f"width (={width:g}) is not in {path}; it holds {known}")
    return width


def _widths(path: Path, properties: Mapping[str, str]) -> list[float]:
    try:
        widths = json.loads(properties.get(WIDTHS, "[]"))
        held = sorted(float(each) for each in widths)
        if not all(0 < each < math.inf for each in held):
            raise ValueError
        return held
    except (RecursionError, TypeError, ValueError):
        raise WorkloadError(f"{path}: its metadata {WIDTHS} (={properties[WIDTHS][:80]!r}) are no numbers") from None
