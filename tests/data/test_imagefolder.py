"""Folders of pictures: both layouts, what is read, and what is refused."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploytool.data.datasets import dataset_info, load_dataset
from deploytool.data.images import Dataset, channel_statistics
from deploytool.errors import DataError, RecipeError
from deploytool.recipe import DataSection, make_recipe
from deploytool.training.loop import train

JPEGS = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.tar.xz"


def picture(file: Path, size: tuple[int, int] = (8, 6), value: int | tuple[int, ...] = 0, mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(file)


def random_picture(file: Path, seed: int, size: tuple[int, int] = (8, 6)) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return pixels


def load(folder: Path, image_size: int | None = None) -> Dataset:
    return load_dataset(DataSection(name=f"imagefolder:{folder}", image_size=image_size))


def two_classes(folder: Path, count: int = 10) -> Path:
    for index in range(count):
        for name in ("cat", "dog"):
            random_picture(folder / name / f"{index}.png", index + 100 * (name == "dog"))
    return folder


def test_train_and_test_folders_are_read_pixel_by_pixel(tmp_path: Path) -> None:
    pixels = {}
    for part, count in (("train", 3), ("test", 2)):
        for name in ("b", "a"):
            for index in range(count):
                seed = len(pixels)
                pixels[part, name, index] = random_picture(tmp_path / part / name / f"{index}.png", seed)
    data = load(tmp_path)
    assert data.info.classes == ("a", "b") and data.info.shape == (3, 6, 8)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and data.test.labels.tolist() == [0, 0, 1, 1]
    for part, images in (("train", data.train), ("test", data.test)):
        expected = np.stack([pixels[key] for key in sorted(pixels) if key[0] == part]).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(images.images.numpy(), expected)
    unit = data.train.images.numpy() / 255
    np.testing.assert_allclose(data.info.mean, unit.mean(axis=(0, 2, 3)), atol=5.1e-5)
    np.testing.assert_allclose(data.info.std, unit.std(axis=(0, 2, 3)), atol=5.1e-5)
    assert dataset_info(DataSection(name=f"imagefolder:{tmp_path}")) == data.info


def test_a_folder_without_parts_is_split_80_20_per_class_and_always_the_same(tmp_path: Path) -> None:
    for folder in (tmp_path / "first", tmp_path / "second"):
        two_classes(folder)
    data, again = load(tmp_path / "first"), load(tmp_path / "second")
    assert data.train.labels.bincount().tolist() == [8, 8] and data.test.labels.bincount().tolist() == [2, 2]
    assert data.test.images.equal(again.test.images) and data.train.images.equal(again.train.images)
    rows = {image.tobytes() for part in (data.train, data.test) for image in part.images.numpy()}
    assert len(rows) == 20  # every picture once: nothing is trained and tested on


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for index in range(2):
        random_picture(tmp_path / "train" / f"{index}.png", index)
        random_picture(tmp_path / "bus" / f"{index}.png", index + 9)
    assert load(tmp_path).info.classes == ("bus", "train")


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "readme.txt").write_text("x")
    data = load(tmp_path)
    assert data.info.classes == ("cat", "dog") and len(data.train) + len(data.test) == 20


def test_all_images_are_resized_to_image_size(tmp_path: Path) -> None:
    for name, value in (("cat", (200, 10, 0)), ("dog", (0, 30, 255))):
        picture(tmp_path / name / "0.png", (9, 5), value)
        picture(tmp_path / name / "1.JPG", (16, 16), value)
    data = load(tmp_path, image_size=12)
    assert data.info.shape == (3, 12, 12)
    np.testing.assert_allclose(data.train.images[0].float().mean(dim=(1, 2)), (200, 10, 0), atol=3)


def test_grey_pictures_have_one_channel_and_mixed_ones_three(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for index, value in enumerate((10, 250)):
            picture(tmp_path / "grey" / name / f"{index}.png", value=value, mode="L")
            picture(tmp_path / "mixed" / name / f"{index}.png", value=value, mode="L")
    picture(tmp_path / "mixed" / "cat" / "2.png", value=(1, 2, 3))
    assert load(tmp_path / "grey").info.shape == (1, 6, 8)
    assert load(tmp_path / "mixed").info.shape == (3, 6, 8)


def test_sizes_are_compared_upright(tmp_path: Path) -> None:
    """A camera's orientation tag turns a 6x8 file into an 8x6 picture."""
    two_classes(tmp_path, 2)
    turned = Image.effect_noise((6, 8), 50).convert("RGB")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "cat" / "turned.jpg", exif=exif)
    assert load(tmp_path).info.shape == (3, 6, 8)


def absent(folder: Path) -> None:
    pass


def one_class(folder: Path) -> None:
    picture(folder / "cat" / "0.png")


def pictures_alone(folder: Path) -> None:
    picture(folder / "0.png")


def an_empty_class(folder: Path) -> None:
    two_classes(folder, 2)
    (folder / "eel").mkdir()


def one_picture_to_split(folder: Path) -> None:
    two_classes(folder, 2)
    picture(folder / "eel" / "0.png")


def a_text_file(folder: Path) -> None:
    two_classes(folder, 2)
    (folder / "cat" / "note.png").write_text("no picture")


def half_a_picture(folder: Path) -> None:
    two_classes(folder, 2)
    file = folder / "cat" / "half.jpg"
    Image.effect_noise((8, 6), 50).convert("RGB").save(file)
    file.write_bytes(file.read_bytes()[:-60])


def a_bomb(folder: Path) -> None:
    two_classes(folder, 2)
    Image.new("1", (70_000, 1_000)).save(folder / "cat" / "bomb.png")


def two_sizes(folder: Path) -> None:
    two_classes(folder, 2)
    picture(folder / "cat" / "large.png", (40, 30))


def no_test_part(folder: Path) -> None:
    two_classes(folder / "train", 2)


def other_test_classes(folder: Path) -> None:
    two_classes(folder / "train", 2)
    two_classes(folder / "test", 2)
    picture(folder / "test" / "eel" / "0.png")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (absent, ["no folder", "PATH/CLASS"]),
        (one_class, ["at least 2", "only cat"]),
        (pictures_alone, ["at least 2", "none"]),
        (an_empty_class, ["eel", ".jpg"]),
        (one_picture_to_split, ["eel", "at least 2"]),
        (a_text_file, ["note.png", "no PNG or JPEG", "repair or remove"]),
        (half_a_picture, ["half.jpg", "repair or remove"]),
        (a_bomb, ["bomb.png", "70000x1000", "64000000"]),
        (two_sizes, ["large.png", "40x30", "8x6", "--set data.image_size"]),
        (no_test_part, ["no test/"]),
        (other_test_classes, ["same classes", "eel"]),
    ],
)
def test_what_cannot_be_used_gets_one_line(make, words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    make(folder)
    with pytest.raises(DataError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_image_size_is_for_folders_alone() -> None:
    with pytest.raises(RecipeError, match=r"data.image_size \(=64\).*imagefolder"):
        make_recipe({"name": "x", "data": {"name": "cifar10", "image_size": 64}, "method": {"name": "standard"}})


def test_statistics_by_hand() -> None:
    x = np.array([0, 255, 255, 0], np.uint8).reshape(1, 1, 2, 2)
    assert channel_statistics(x) == ((0.5,), (0.5,))
    assert channel_statistics(np.full((2, 1, 1, 1), 51, np.uint8)) == ((0.2,), (1.0,))


@pytest.mark.skipif(not JPEGS.is_file(), reason="../shared/data with CIFAR-10 as JPEG files is absent")
def test_real_jpeg_pictures_of_cifar10_can_be_trained_on(tmp_path: Path) -> None:
    names = ("airplane", "frog", "truck")
    wanted = {f"train/{name}/{index:04}.jpg" for name in names for index in range(16)}
    wanted |= {f"test/{name}/{index:04}.jpg" for name in names for index in range(4)}
    with tarfile.open(JPEGS) as archive:
        archive.extractall(tmp_path / "cifar", [m for m in archive if m.name in wanted], filter="data")
    data = load(tmp_path / "cifar")
    assert data.info.classes == names and data.info.shape == (3, 32, 32)
    assert data.train.labels.bincount().tolist() == [16] * 3 and data.test.labels.bincount().tolist() == [4] * 3
    assert all(0.3 < mean < 0.7 for mean in data.info.mean) and all(0.1 < std < 0.4 for std in data.info.std)
    recipe = make_recipe(
        {
            "name": "pictures",
            "data": {"name": f"imagefolder:{tmp_path / 'cifar'}", "batch_size": 16},
            "model": {"arch": "resnet8"},
            "method": {"name": "standard"},
            "optimizer": {"epochs": 1},
        }
    )
    assert 0 <= train(recipe, tmp_path / "run")["clean_accuracy"] <= 1
