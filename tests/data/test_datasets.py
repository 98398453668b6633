"""Data sets as loaded: what is in them, and every way a file can be wrong."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploytool.data import npz
from deploytool.data.catalogue import CATALOGUE
from deploytool.data.datasets import Dataset, Images, as_unit, dataset_info, load_dataset
from deploytool.errors import DataError
from deploytool.recipe import DataSection

SHARED = Path(__file__).parents[3] / "shared" / "data" / "cifar10-lossless-6k.npz"


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    """Six training and three test images of 3 classes; a change to None takes an array away."""
    chance = np.random.default_rng(0)
    whole = {
        "x_train": chance.integers(0, 256, (6, 3, 4, 5), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": chance.integers(0, 256, (3, 3, 4, 5), dtype=np.uint8),
        "y_test": np.array([2, 1, 0]),
        **changes,
    }
    return {name: array for name, array in whole.items() if array is not None}


def load(file: Path) -> Dataset:
    return load_dataset(DataSection(name=f"npz:{file}"))


def refusal(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(file)
    message = str(caught.value)
    assert str(file) in message and "\n" not in message and len(message) < 400 + 3 * len(str(file))
    return message


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "images.npz"


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DataSection(name="digits"))


# digits


def test_digits_have_1297_images_to_train_and_500_to_test(digits: Dataset) -> None:
    assert digits.info == CATALOGUE["digits"]
    for part, count in ((digits.train, 1297), (digits.test, 500)):
        assert len(part) == count and part.images.shape == (count, 1, 8, 8) and part.labels.shape == (count,)
        assert part.images.dtype == torch.float32 and part.labels.dtype == torch.int64
        assert part.images.min() == 0 and part.images.max() == 1


def test_digits_are_sklearns_images_each_in_one_part(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    expected = sorted(
        (*image.reshape(-1).tolist(), int(label)) for image, label in zip(source.images, source.target, strict=True)
    )
    got = sorted(
        (*(image * 16).reshape(-1).tolist(), int(label))
        for part in (digits.train, digits.test)
        for image, label in zip(part.images, part.labels, strict=True)
    )
    assert got == expected


def test_digits_are_stratified(digits: Dataset) -> None:
    train, test = (torch.bincount(part.labels, minlength=10) for part in (digits.train, digits.test))
    expected = (train + test) * 500 / 1797
    assert ((test - expected).abs() < 1).all()


def test_digits_are_split_alike_whatever_the_seeds(digits: Dataset) -> None:
    np.random.seed(123)
    torch.manual_seed(123)
    again = load_dataset(DataSection(name="digits", batch_size=7))
    for part, other in ((digits.train, again.train), (digits.test, again.test)):
        assert torch.equal(part.images, other.images) and torch.equal(part.labels, other.labels)


# Images


def test_uint8_images_become_255ths_and_the_source_stays() -> None:
    source = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    held = Images(source.clone(), torch.arange(4))
    image, label = held.batch(torch.tensor([3, 1]))
    assert image.dtype == torch.float32 and label.tolist() == [3, 1]
    np.testing.assert_array_equal(image.numpy(), source.numpy()[[3, 1]].astype(np.float32) / np.float32(255))
    assert torch.equal(held.images, source) and as_unit(source).max() == 1


def test_float_images_pass_through() -> None:
    source = torch.rand(4, 1, 8, 8)
    assert torch.equal(as_unit(source), source)
    assert torch.equal(Images(source, torch.arange(4)).batch(slice(1, 3))[0], source[1:3])


@pytest.mark.parametrize(("count", "expected"), [(None, 5), (2, 2), (5, 5), (9, 5)])
def test_head_takes_the_first_images(count: int | None, expected: int) -> None:
    held = Images(torch.rand(5, 1, 2, 2), torch.arange(5))
    head = held.head(count)
    assert len(head) == expected and torch.equal(head.images, held.images[:expected])
    assert head.labels.tolist() == list(range(expected))


# By name


def test_an_unknown_name_is_refused_by_both() -> None:
    for call in (load_dataset, dataset_info):
        with pytest.raises(DataError, match="did you mean digits"):
            call(DataSection(name="digitz"))


def test_the_description_is_that_of_the_data(file: Path) -> None:
    np.savez(file, **arrays())
    assert dataset_info(DataSection(name=f"npz:{file}")) == load(file).info
    assert dataset_info(DataSection(name="cifar10")) == CATALOGUE["cifar10"]


# cifar10


def test_cifar10_in_no_folder_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(DataSection(name="cifar10", root=str(tmp_path / "absent")), download=False)
    message = str(caught.value)
    assert str(tmp_path / "absent") in message and "--set data.root=DIR" in message and "\n" not in message
    assert not (tmp_path / "absent").exists()


def test_damaged_cifar10_is_refused_and_not_downloaded_over(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": [], "labels": []}))
    with pytest.raises(DataError, match="cifar10 is not in"):
        load_dataset(DataSection(name="cifar10", root=str(tmp_path)))
    assert [path.name for path in tmp_path.rglob("*")] == ["cifar-10-batches-py", "data_batch_1"]


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} with real CIFAR-10 images is absent")
def test_real_cifar10_images_load_and_look_as_published() -> None:
    loaded = load(SHARED)
    assert loaded.info.shape == (3, 32, 32) and loaded.info.classes == CATALOGUE["cifar10"].classes
    assert (len(loaded.train), len(loaded.test)) == (5085, 1017)
    assert loaded.info.mean == pytest.approx(CATALOGUE["cifar10"].mean, abs=0.01)
    assert loaded.info.std == pytest.approx(CATALOGUE["cifar10"].std, abs=0.01)
    assert torch.bincount(loaded.train.labels).tolist() == pytest.approx([508.5] * 10, abs=80)
    image, label = loaded.test.batch(slice(0, 8))
    assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
    # the first eight test images of CIFAR-10: cat, ship, ship, airplane, frog, frog, automobile, frog
    assert label.tolist() == [3, 8, 8, 0, 6, 6, 1, 6]


# npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_an_npz_is_loaded_as_it_was_saved(file: Path, save: Any, kind: type) -> None:
    saved = arrays()
    if kind is np.float32:
        saved = {n: (a / 255).astype(np.float32) if n.startswith("x") else a for n, a in saved.items()}
    save(file, **saved)
    loaded = load(file)
    for part, held in (("train", loaded.train), ("test", loaded.test)):
        np.testing.assert_array_equal(held.images.numpy(), saved[f"x_{part}"])
        np.testing.assert_array_equal(held.labels.numpy(), saved[f"y_{part}"])
        assert held.labels.dtype == torch.int64
    assert loaded.info.shape == (3, 4, 5) and loaded.info.classes == ("0", "1", "2")
    for channel in range(3):
        values = saved["x_train"][:, channel].astype(np.float64) / (255 if kind is np.uint8 else 1)
        assert loaded.info.mean[channel] == pytest.approx(values.sum() / values.size, abs=6e-5)
        spread = ((values - values.mean()) ** 2).sum() / values.size
        assert loaded.info.std[channel] == pytest.approx(spread**0.5, abs=6e-5)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint32, np.int64, ">i4"])
def test_labels_may_be_any_integers(file: Path, kind: Any) -> None:
    np.savez(file, **arrays(y_train=np.array([0, 1, 2, 0, 1, 2], kind)))
    assert load(file).train.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_classes_are_named_by_the_file_and_may_exceed_the_labels(file: Path) -> None:
    np.savez(file, **arrays(classes=np.array(["cat", "dog", "eel", "fox"])))
    assert load(file).info.classes == ("cat", "dog", "eel", "fox")


def test_ten_classes_in_a_file_called_cifar10_are_those_of_cifar10(tmp_path: Path) -> None:
    ten = arrays(y_train=np.array([0, 1, 2, 3, 4, 9]))
    np.savez(tmp_path / "my-cifar10.npz", **ten)
    np.savez(tmp_path / "other.npz", **ten)
    assert load(tmp_path / "my-cifar10.npz").info.classes == CATALOGUE["cifar10"].classes
    assert load(tmp_path / "other.npz").info.classes == tuple("0123456789")


F32 = np.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": None}, ["lacks the array x_train"]),
        ({"y_train": None}, ["lacks the array y_train"]),
        ({"x_test": None}, ["lacks the array x_test"]),
        ({"y_test": None}, ["lacks the array y_test"]),
        ({"x_train": np.array([{"a": 1}] * 6, dtype=object)}, ["no usable .npz", "allow_pickle"]),
        ({"y_test": np.array([0, 1, None], dtype=object)}, ["no usable .npz", "allow_pickle"]),
        ({"classes": np.array(["a", 1, None], dtype=object)}, ["no usable .npz", "allow_pickle"]),
        ({"x_train": np.zeros((6, 3, 4, 5))}, ["x_train", "float64"]),
        ({"x_test": np.zeros((3, 3, 4, 5), np.int64)}, ["x_test", "int64"]),
        ({"x_train": np.zeros((6, 3, 4, 5), ">f4")}, ["x_train", ">f4"]),
        ({"x_train": np.zeros((6, 3, 4, 5), bool)}, ["x_train", "bool"]),
        ({"x_train": np.full((6, 3, 4, 5), np.nan, F32)}, ["x_train", "[0, 1]", "nan"]),
        ({"x_test": np.full((3, 3, 4, 5), np.inf, F32)}, ["x_test", "[0, 1]", "inf"]),
        ({"x_train": np.full((6, 3, 4, 5), 1.5, F32)}, ["x_train", "[0, 1]", "1.5"]),
        ({"x_train": np.full((6, 3, 4, 5), -0.5, F32)}, ["x_train", "[0, 1]", "-0.5"]),
        ({"x_train": np.zeros((6, 3, 20), np.uint8)}, ["x_train", "(N, C, H, W)", "(6, 3, 20)"]),
        ({"x_test": np.ones((3, 3, 5, 4), np.uint8)}, ["differ in shape"]),
        ({"x_train": np.zeros((0, 3, 4, 5), np.uint8), "y_train": np.zeros(0, int)}, ["x_train", "(0, 3, 4, 5)"]),
        ({"x_train": np.zeros((6, 3, 0, 5), F32), "x_test": np.zeros((3, 3, 0, 5), F32)}, ["x_train", "(6, 3, 0, 5)"]),
        ({"x_train": np.zeros((6, 0, 4, 5), np.uint8)}, ["x_train", "(6, 0, 4, 5)"]),
        ({"y_train": np.arange(5)}, ["y_train", "(5,)"]),
        ({"y_train": np.zeros((6, 1), int)}, ["y_train", "(6, 1)"]),
        ({"y_train": np.array(3)}, ["y_train", "()"]),
        ({"y_train": np.zeros(6)}, ["y_train", "integers", "float64"]),
        ({"y_train": np.ones(6, bool)}, ["y_train", "integers", "bool"]),
        ({"y_train": np.arange(6).astype("m8[s]")}, ["y_train", "integers", "timedelta64"]),
        ({"y_test": np.array([0, -1, 1])}, ["y_test", "integers from 0 up", "-1"]),
        ({"y_test": np.array([0, 1, 3]), "classes": np.array(["a", "b", "c"])}, ["go up to 3", "only 3 classes"]),
        ({"classes": np.array("alone")}, ["go up to 2", "only 1 classes"]),
        ({"y_train": np.array([0, 1, 2, 3, 4, 65536])}, ["go up to 65536"]),
        ({"y_train": np.array([0, 1, 2, 3, 4, 2**63], np.uint64)}, ["go up to 9223372036854775808"]),
        ({"y_train": np.zeros(6, int), "y_test": np.zeros(3, int)}, ["has 1 classes"]),
        ({"x_train": np.full((6, 3, 4, 5), 7, np.uint8)}, ["positive std"]),
    ],
)  # fmt: skip
def test_a_wrong_array_is_refused_by_name(file: Path, changes: dict[str, Any], words: list[str]) -> None:
    np.savez(file, **arrays(**changes))
    message = refusal(file)
    assert all(word in message for word in words), message


def test_65536_classes_are_allowed(file: Path) -> None:
    np.savez(file, **arrays(y_train=np.array([0, 1, 2, 3, 4, 65535])))
    assert len(load(file).info.classes) == 65536


def test_pickles_in_an_npz_are_not_run(file: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
            import os

            return os.mkdir, (str(tmp_path / "owned"),)

    np.savez(file, **arrays(x_train=np.array([Hostile()], dtype=object)))
    assert "no usable .npz" in refusal(file)
    file.write_bytes(pickle.dumps(Hostile()))
    assert "no usable .npz" in refusal(file)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["x_train", "y_test", "classes"])
def test_an_array_that_unpacks_to_too_much_is_refused_unread(file: Path, name: str, monkeypatch) -> None:
    bomb = np.zeros((6, 3, 400, 500), np.uint8) if name != "classes" else np.zeros(4_000_000, np.uint8)
    np.savez_compressed(file, **arrays(**{name: bomb}))
    assert file.stat().st_size < 20_000
    monkeypatch.setattr(npz, "MAX_NPZ_BYTES", 100_000)
    monkeypatch.setattr(np.lib.format, "read_array", read_array_below(100_000))
    message = refusal(file)
    assert f"{name} unpacks to" in message and "at most 100000" in message


def read_array_below(limit: int) -> Any:
    original = np.lib.format.read_array

    def read(*arguments: Any, **options: Any) -> Any:
        array = original(*arguments, **options)
        if array.nbytes > limit:
            pytest.fail("the bomb was unpacked")
        return array

    return read


def header(shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return out.getvalue()


@pytest.mark.parametrize(
    "member",
    [b"", b"hello", header((10**15, 3, 4, 5)) + b"\0" * 9, header((10**30, 3, 4, 5)), header((6, 3, 4, 5)) + b"\0"],
    ids=["empty", "no array", "petabytes declared", "10**30 declared", "too short"],
)
def test_a_member_that_is_not_the_array_it_says_is_refused(file: Path, member: bytes) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name in arrays():
            archive.writestr(f"{name}.npy", member)
    assert refusal(file)


def test_a_member_without_its_suffix_is_refused(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name in arrays():
            archive.writestr(name, b"hello")
    assert refusal(file)


@pytest.mark.parametrize("content", [b"", b"PK", b"just text", b"PK\x03\x04" + b"\0" * 60])
def test_a_file_that_is_no_archive_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert "no usable .npz" in refusal(file)


def test_a_single_array_is_refused(file: Path) -> None:
    with file.open("wb") as out:
        np.save(out, np.zeros(3))
    assert "no usable .npz" in refusal(file)


def test_absent_files_and_folders_are_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.npz")
    assert "Is a directory" in refusal(tmp_path)


@pytest.fixture(scope="module")
def whole_archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("npz") / "whole.npz"
    np.savez_compressed(file, **arrays(classes=np.array(["a", "b", "c"])))
    return file.read_bytes()


@settings(deadline=None, max_examples=60)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_truncated_archive_is_refused(
    whole_archive: bytes, tmp_path_factory: pytest.TempPathFactory, cut: float
) -> None:
    file = tmp_path_factory.getbasetemp() / "truncated.npz"
    file.write_bytes(whole_archive[: int(cut * len(whole_archive))])
    assert refusal(file)


@settings(deadline=None, max_examples=300)
@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_a_damaged_archive_is_refused_or_still_whole(
    whole_archive: bytes, tmp_path_factory: pytest.TempPathFactory, place: float, mask: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.npz"
    damaged = bytearray(whole_archive)
    damaged[int(place * len(damaged))] ^= mask
    file.write_bytes(damaged)
    try:
        loaded = load(file)
    except DataError as error:
        assert str(file) in str(error)
    else:  # the byte was one that nobody reads, such as a date
        np.testing.assert_array_equal(loaded.train.images.numpy(), arrays()["x_train"])
        np.testing.assert_array_equal(loaded.test.labels.numpy(), arrays()["y_test"])
