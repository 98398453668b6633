"""Picture files: every mode to values in [0, 1], everything else to one clear error."""

import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from deploytool.errors import InputError
from deploytool.runtime import images as images_module
from deploytool.runtime.artefact import Metadata
from deploytool.runtime.images import load_image

Array = np.ndarray[Any, Any]
Save = Callable[..., Path]
ORIENTATION = 0x0112


def metadata(channels: int, height: int, width: int) -> Metadata:
    return Metadata(
        name="m", method="standard", recipe="", classes=("a", "b"), shape=(channels, height, width),
        mode="L" if channels == 1 else "RGB", conditional=False, lam=None, lambda_threshold=None, conditioning=None,
        noise=None, widths=(1.0,),
    )  # fmt: skip


GREY, COLOUR = metadata(1, 4, 6), metadata(3, 4, 6)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(picture: Image.Image, name: str = "x.png", **options: object) -> Path:
        picture.save(tmp_path / name, **options)
        return tmp_path / name

    return save


def noise(*shape: int, top: int = 256, dtype: type = np.uint8) -> Array:
    return np.random.default_rng(0).integers(0, top, shape, dtype=dtype)


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG file by hand: 8-bit grey, with whatever compressed data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body or zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def luma(rgb: Array) -> Array:
    """ITU-R 601-2, which Pillow documents for `L`; it rounds to integers."""
    return rgb.astype(np.float64) @ np.array([299, 587, 114]) / 1000


def test_grey_is_divided_by_255(save: Save) -> None:
    pixels = noise(4, 6)
    array = load_image(save(Image.fromarray(pixels)), GREY)
    assert array.shape == (1, 1, 4, 6) and array.dtype == np.float32 and array.flags.c_contiguous
    np.testing.assert_allclose(array[0, 0], pixels / 255, rtol=1e-6)


def test_rgb_becomes_planes(save: Save) -> None:
    pixels = noise(4, 6, 3)
    array = load_image(save(Image.fromarray(pixels)), COLOUR)
    assert array.shape == (1, 3, 4, 6) and array.dtype == np.float32 and array.flags.c_contiguous
    np.testing.assert_allclose(array[0], pixels.transpose(2, 0, 1) / 255, rtol=1e-6)


def test_rgb_for_a_grey_model_is_its_luma(save: Save) -> None:
    pixels = noise(4, 6, 3)
    array = load_image(save(Image.fromarray(pixels)), GREY)
    np.testing.assert_allclose(array[0, 0] * 255, luma(pixels), atol=1.01)


def test_grey_for_a_colour_model_is_three_equal_planes(save: Save) -> None:
    pixels = noise(4, 6)
    array = load_image(save(Image.fromarray(pixels)), COLOUR)
    np.testing.assert_allclose(array[0], np.repeat(pixels[None] / 255, 3, axis=0), rtol=1e-6)


def test_transparency_is_laid_over_black(save: Save) -> None:
    pixels = noise(4, 6, 4)
    pixels[0, 0] = (255, 255, 255, 0)
    pixels[0, 1] = (10, 20, 30, 255)
    array = load_image(save(Image.fromarray(pixels, "RGBA")), COLOUR)
    expected = pixels[..., :3] / 255 * (pixels[..., 3:] / 255)
    np.testing.assert_allclose(array[0], expected.transpose(2, 0, 1), atol=1.01 / 255)
    assert (array[0, :, 0, 0] == 0).all()
    np.testing.assert_allclose(array[0, :, 0, 1] * 255, [10, 20, 30], rtol=1e-6)


def test_grey_with_alpha_is_laid_over_black(save: Save) -> None:
    pixels = noise(4, 6, 2)
    array = load_image(save(Image.fromarray(pixels, "LA")), GREY)
    np.testing.assert_allclose(array[0, 0], pixels[..., 0] / 255 * (pixels[..., 1] / 255), atol=1.01 / 255)


def test_a_palette_is_looked_up(save: Save) -> None:
    palette = noise(4, 3)
    indices = noise(4, 6, top=4)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(palette.tobytes())
    array = load_image(save(picture), COLOUR)
    np.testing.assert_allclose(array[0] * 255, palette[indices].transpose(2, 0, 1), rtol=1e-6)


def test_a_transparent_palette_entry_is_black(save: Save) -> None:
    picture = Image.fromarray(noise(4, 6, top=2), "P")
    picture.putpalette(bytes([255, 255, 255, 200, 100, 50]))
    array = load_image(save(picture, transparency=0), COLOUR)
    expected = np.array([[0, 0, 0], [200, 100, 50]])[np.asarray(picture)]
    np.testing.assert_allclose(array[0] * 255, expected.transpose(2, 0, 1), rtol=1e-6)


@pytest.mark.parametrize("model", [GREY, COLOUR], ids=["L", "RGB"])
def test_sixteen_bit_grey_keeps_its_precision(model: Metadata, save: Save) -> None:
    pixels = noise(4, 6, top=65536, dtype=np.uint16)
    pixels[0, :2] = 0, 65535
    array = load_image(save(Image.fromarray(pixels)), model)
    assert array.shape == (1, *model.shape)
    for plane in array[0]:
        np.testing.assert_allclose(plane, pixels / 65535, rtol=1e-6)


@pytest.mark.parametrize("mode", ["1", "CMYK"])
def test_other_modes_are_converted(mode: str, save: Save) -> None:
    black = Image.new("RGB", (6, 4))
    white = Image.new("RGB", (6, 4), (255, 255, 255))
    name = "x.png" if mode == "1" else "x.jpg"
    assert load_image(save(black.convert(mode), name), COLOUR).max() <= 2 / 255
    assert load_image(save(white.convert(mode), name), GREY).min() >= 253 / 255


def test_jpeg_is_read(save: Save) -> None:
    array = load_image(save(Image.new("RGB", (6, 4), (200, 100, 50)), "x.jpg", quality=95), COLOUR)
    np.testing.assert_allclose(array[0].mean(axis=(1, 2)) * 255, [200, 100, 50], atol=4)


def test_the_suffix_does_not_matter(save: Save) -> None:
    assert load_image(save(Image.fromarray(noise(4, 6)), "picture.dat", format="PNG"), GREY).shape == (1, 1, 4, 6)


UPRIGHT = noise(4, 6)
# EXIF 2.3, tag 274: where row 0 and column 0 of the stored picture lie when it is shown.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", sorted(STORED))
def test_the_orientation_tag_is_applied(orientation: int, save: Save) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    array = load_image(save(Image.fromarray(np.ascontiguousarray(STORED[orientation])), exif=exif), GREY)
    np.testing.assert_allclose(array[0, 0] * 255, UPRIGHT, rtol=1e-6)


def test_the_orientation_tag_is_applied_to_sixteen_bit_grey(save: Save) -> None:
    upright = noise(4, 6, top=65536, dtype=np.uint16)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    array = load_image(save(Image.fromarray(np.ascontiguousarray(np.rot90(upright, 1))), exif=exif), GREY)
    np.testing.assert_allclose(array[0, 0], upright / 65535, rtol=1e-6)


@pytest.mark.parametrize("size", [(6, 4), (12, 8), (60, 40), (3, 2), (1, 1), (7, 301)])
@pytest.mark.parametrize("deep", [False, True], ids=["8bit", "16bit"])
def test_a_constant_picture_of_any_size_stays_constant(size: tuple[int, int], deep: bool, save: Save) -> None:
    width, height = size
    pixels = np.full((height, width), 30_000, np.uint16) if deep else np.full((height, width), 77, np.uint8)
    array = load_image(save(Image.fromarray(pixels)), GREY)
    assert array.shape == (1, 1, 4, 6)
    np.testing.assert_allclose(array, 30_000 / 65535 if deep else 77 / 255, rtol=1e-5)


def test_halving_weighs_neighbours_with_the_triangle_filter(save: Save) -> None:
    """Bilinear with antialiasing to half the size: weights 1, 3, 3, 1 (of 8), cut and renormalised at the border."""
    row = np.array([0, 200, 40, 120], np.uint8)
    array = load_image(save(Image.fromarray(np.repeat(row[None], 2, axis=0))), metadata(1, 1, 2))
    left, right = (3 * 0 + 3 * 200 + 40) / 7, (200 + 3 * 40 + 3 * 120) / 7
    np.testing.assert_allclose(array[0, 0, 0] * 255, [left, right], atol=0.51)


@pytest.mark.parametrize("square", [(100_000, 100_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1), (64_000_001, 1)])
def test_a_pixel_bomb_is_refused_before_decoding(square: tuple[int, int], tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(png(*square))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="64000000"):
            load_image(file, GREY)


def test_a_file_too_large_is_not_opened(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save(Image.fromarray(UPRIGHT))
    monkeypatch.setattr(images_module, "MAX_FILE_BYTES", file.stat().st_size - 1)
    with pytest.raises(InputError, match="at most"):
        load_image(file, GREY)


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_picture_is_refused(name: str, share: float, save: Save) -> None:
    file = save(Image.fromarray(noise(40, 60, 3)), name)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=file.name):
        load_image(file, COLOUR)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_are_refused_whatever_their_name(kind: str, save: Save) -> None:
    buffer = BytesIO()
    Image.fromarray(UPRIGHT).save(buffer, kind)
    file = save(Image.fromarray(UPRIGHT), "x.png")
    file.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="no PNG or JPEG"):
        load_image(file, GREY)


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_a_file_that_is_no_picture_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "note.png"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"note\.png"):
        load_image(file, GREY)


def test_an_absent_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_image(tmp_path / "absent.png", GREY)
    with pytest.raises(InputError, match="cannot be read"):
        load_image(tmp_path, GREY)


def test_damaged_exif_data_are_no_reason_to_warn(save: Save) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    file = save(Image.fromarray(UPRIGHT), "x.jpg", exif=exif)
    data = file.read_bytes()
    at = data.index(b"Exif\0\0") + 6 + 8  # past the TIFF header: how many entries the first directory has
    file.write_bytes(data[:at] + b"\xff\xff" + data[at + 2 :])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(file, GREY).shape == (1, 1, 4, 6)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
    model=st.sampled_from([GREY, COLOUR]),
)
def test_every_picture_gives_values_in_range_and_of_the_right_shape(
    data: st.DataObject, mode: str, model: Metadata, tmp_path: Path
) -> None:
    width, height = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    size = {"1": (width + 7) // 8 * height}.get(mode, len(Image.new(mode, (width, height)).tobytes()))
    picture = Image.frombytes(mode, (width, height), np.random.default_rng(data.draw(st.integers(0, 99))).bytes(size))
    if mode == "P":
        picture.putpalette(bytes(range(256)) * 3)
    picture.save(tmp_path / "x.png")
    array = load_image(tmp_path / "x.png", model)
    assert array.shape == (1, *model.shape) and array.dtype == np.float32
    assert array.min() >= 0 and array.max() <= 1


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG"]))
def test_flipped_bytes_give_a_picture_or_our_error(data: st.DataObject, kind: str, tmp_path: Path) -> None:
    buffer = BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(noise(12, 10, 3)).save(buffer, kind, exif=exif)
    damaged = bytearray(buffer.getvalue())
    edits = st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    for at, value in data.draw(edits):
        damaged[at] = value
    file = tmp_path / "x.bin"
    file.write_bytes(damaged)
    try:
        array = load_image(file, COLOUR)
        assert array.shape == (1, 3, 4, 6) and array.min() >= 0 and array.max() <= 1
    except InputError as error:
        assert "\n" not in str(error)
