"""Named data sets from small files in the real formats; a download from this machine, broken and repeated."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as tv
from PIL import Image
from torchvision.models import ResNet50_Weights

from deploytool.data.catalogue import CATALOGUE
from deploytool.data.class_names import CIFAR100_CLASSES, TINY_IMAGENET_CLASSES
from deploytool.data.datasets import dataset_info, load_dataset
from deploytool.data.images import Dataset
from deploytool.errors import DataError
from deploytool.recipe import DataSection

NAMED = ("cifar10", "cifar100", "svhn", "stl10", "mnist", "tiny-imagenet")
RNG = np.random.default_rng(0)


def load(name: str, root: Path, download: bool = False) -> Dataset:
    return load_dataset(DataSection(name=name, root=str(root)), download)


def random_images(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def cifar_batch(images: np.ndarray, labels: list[int], key: str) -> bytes:
    return pickle.dumps({"data": images.reshape(len(images), -1), key: labels})


def idx(array: np.ndarray) -> bytes:
    """MNIST's format: type 8 (bytes), number of dimensions, sizes (big endian), values."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def trust(monkeypatch, module) -> None:
    """Let files of any content through torchvision's MD5 check."""
    monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())


@pytest.mark.parametrize("name", NAMED)
def test_an_absent_data_set_gets_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(name, tmp_path / "none")
    message = str(caught.value)
    assert name in message and str(tmp_path) in message and "--set data.root=DIR" in message and "\n" not in message


@pytest.mark.parametrize("name", NAMED)
def test_a_description_needs_no_files(name: str, tmp_path: Path) -> None:
    info = dataset_info(DataSection(name=name, root=str(tmp_path / "none")))
    assert info is CATALOGUE[name] and not list(tmp_path.iterdir())


def test_class_lists_are_complete() -> None:
    assert len(set(CIFAR100_CLASSES)) == 100 and list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)
    assert len(set(TINY_IMAGENET_CLASSES)) == len(set(TINY_IMAGENET_CLASSES.values())) == 200
    assert list(TINY_IMAGENET_CLASSES) == sorted(TINY_IMAGENET_CLASSES)
    imagenet = iter(ResNet50_Weights.DEFAULT.meta["categories"])  # torchvision's list is in the order of WNIDs too
    assert all(any(name == known for known in imagenet) for name in TINY_IMAGENET_CLASSES.values())


def test_cifar100(tmp_path: Path, monkeypatch) -> None:
    trust(monkeypatch, tv.cifar)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    train, test = random_images(6, 3, 32, 32), random_images(4, 3, 32, 32)
    (folder / "train").write_bytes(cifar_batch(train, [0, 99, 5, 6, 7, 8], "fine_labels"))
    (folder / "test").write_bytes(cifar_batch(test, [3, 2, 1, 0], "fine_labels"))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(CIFAR100_CLASSES)}))
    data = load("cifar100", tmp_path)
    np.testing.assert_array_equal(data.train.images.numpy(), train)
    np.testing.assert_array_equal(data.test.images.numpy(), test)
    assert data.train.labels.tolist() == [0, 99, 5, 6, 7, 8]


def test_svhn(tmp_path: Path, monkeypatch) -> None:
    from scipy.io import savemat

    trust(monkeypatch, tv.svhn)
    images = {part: random_images(32, 32, 3, 5) for part in ("train", "test")}
    for part, x in images.items():
        savemat(tmp_path / f"{part}_32x32.mat", {"X": x, "y": np.array([[1], [10], [9], [2], [10]], np.uint8)})
    data = load("svhn", tmp_path)
    np.testing.assert_array_equal(data.train.images.numpy(), images["train"].transpose(3, 2, 0, 1))
    assert data.test.labels.tolist() == [1, 0, 9, 2, 0]  # the files call a zero 10


def test_stl10(tmp_path: Path, monkeypatch) -> None:
    trust(monkeypatch, tv.stl10)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    x = random_images(3, 3, 96, 96)
    for part in ("train", "test"):
        (folder / f"{part}_X.bin").write_bytes(x.transpose(0, 1, 3, 2).tobytes())  # the files go column by column
        (folder / f"{part}_y.bin").write_bytes(bytes([1, 10, 4]))
    (folder / "unlabeled_X.bin").write_bytes(b"")
    data = load("stl10", tmp_path)
    np.testing.assert_array_equal(data.train.images.numpy(), x)
    assert data.test.labels.tolist() == [0, 9, 3]


def mnist_files(x: np.ndarray, y: np.ndarray) -> dict[str, bytes]:
    files = {}
    for part in ("train", "t10k"):
        files |= {f"{part}-images-idx3-ubyte": idx(x), f"{part}-labels-idx1-ubyte": idx(y)}
    return files


def test_mnist(tmp_path: Path) -> None:
    x, y = random_images(5, 28, 28), np.array([3, 1, 4, 1, 9], np.uint8)
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for name, content in mnist_files(x, y).items():
        (tmp_path / "MNIST" / "raw" / name).write_bytes(content)
    data = load("mnist", tmp_path)
    np.testing.assert_array_equal(data.train.images.numpy(), x[:, None])
    assert data.test.labels.tolist() == [3, 1, 4, 1, 9]


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for name, content in mnist_files(random_images(2, 28, 28), np.array([0, 10], np.uint8)).items():
        (tmp_path / "MNIST" / "raw" / name).write_bytes(content)
    with pytest.raises(DataError, match="damaged: labels 0 to 10"):
        load("mnist", tmp_path)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address on this machine at which a web server shows its files."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "server"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{web.server_port}/"
        web.shutdown()
        thread.join()


@pytest.fixture
def cifar_server(server: tuple[Path, str], monkeypatch) -> Path:
    """A CIFAR-100 archive on the web server; returns its file."""
    batch = cifar_batch(random_images(4, 3, 32, 32), [0, 1, 2, 99], "fine_labels")
    members = {"train": batch, "test": batch, "meta": pickle.dumps({"fine_label_names": list(CIFAR100_CLASSES)})}
    archive = server[0] / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"cifar-100-python/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in members.items()}
    monkeypatch.setattr(tv.CIFAR100, "url", server[1] + archive.name)
    monkeypatch.setattr(tv.CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(tv.CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(tv.CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(tv.CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5["meta"]})
    return archive


def test_a_download_that_breaks_off_leaves_nothing_and_a_retry_works(cifar_server, tmp_path, capsys) -> None:
    root, whole = tmp_path / "root", cifar_server.read_bytes()
    cifar_server.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cifar100 .* cannot be downloaded .*; try again, .*--set data.root=DIR"):
        load("cifar100", root, download=True)
    assert list(root.iterdir()) == []
    cifar_server.write_bytes(whole)
    assert load("cifar100", root, download=True).train.labels.tolist() == [0, 1, 2, 99]
    assert load("cifar100", root).train.labels.tolist() == [0, 1, 2, 99]  # now without a network
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_leaves_nothing(cifar_server, tmp_path, monkeypatch) -> None:
    def interrupted(url: str, filename: str, *rest: object) -> None:
        Path(filename).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(tv.utils, "_urlretrieve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("cifar100", tmp_path / "root", download=True)
    assert list((tmp_path / "root").iterdir()) == []


def test_a_half_unpacked_folder_is_mended(cifar_server, tmp_path) -> None:
    root = tmp_path / "root"
    load("cifar100", root, download=True)
    (root / "cifar-100-python" / "test").unlink()
    (root / "cifar-100-python" / "train").write_bytes(b"half")
    with pytest.raises(DataError, match="damaged"):
        load("cifar100", root)
    assert len(load("cifar100", root, download=True).test) == 4


def test_files_that_were_there_before_survive_a_failed_download(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(tv.SVHN.split_list, "train", ["http://127.0.0.1:9/x", "train_32x32.mat", "0" * 32])
    mine = tmp_path / "train_32x32.mat"
    mine.write_bytes(b"something of mine")
    with pytest.raises(DataError, match="svhn"):
        load("svhn", tmp_path, download=True)
    assert mine.read_bytes() == b"something of mine"


def test_mnist_files_cut_short_are_fetched_anew(server: tuple[Path, str], tmp_path: Path, monkeypatch) -> None:
    """torchvision itself takes any file of the right name for a whole one."""
    root = tmp_path / "root"
    (root / "MNIST" / "raw").mkdir(parents=True)
    resources = []
    for name, content in mnist_files(random_images(5, 28, 28), np.arange(5, dtype=np.uint8)).items():
        packed = gzip.compress(content)
        (server[0] / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
        (root / "MNIST" / "raw" / name).write_bytes(content[: len(content) // 2])
    monkeypatch.setattr(tv.MNIST, "resources", resources)
    monkeypatch.setattr(tv.MNIST, "mirrors", [server[1]])
    with pytest.raises(DataError, match="damaged"):
        load("mnist", root)
    assert load("mnist", root, download=True).test.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Two training images per class, three test images."""
    folder = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(TINY_IMAGENET_CLASSES):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (64, 64), (label, 0, 0)).save(images / f"{wnid}_{index}.JPEG", quality=100)
    (folder / "val" / "images").mkdir(parents=True)
    wnids = list(TINY_IMAGENET_CLASSES)
    for index, mode in enumerate(("RGB", "L", "RGB")):
        Image.new(mode, (64, 64)).save(folder / "val" / "images" / f"val_{index}.JPEG")
    lines = [f"val_{index}.JPEG\t{wnids[label]}\t0\t0\t62\t62\n" for index, label in enumerate((199, 0, 7))]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def test_tiny_imagenet(tiny: Path) -> None:
    data = load("tiny-imagenet", tiny.parent)
    assert data.info.classes[0] == "goldfish" and data.info.classes[199] == "acorn"
    assert data.train.images.shape == (400, 3, 64, 64) and data.test.labels.tolist() == [199, 0, 7]
    red = data.train.images[:, 0].float().mean(dim=(1, 2))
    np.testing.assert_allclose(red, data.train.labels.float(), atol=2)


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ("val_0.JPEG n01443537\n", ["line 1", "WNID"]),
        ("val_0.JPEG\tn99999999\t0\t0\t1\t1\n", ["line 1", "n99999999"]),
        ("../../x.JPEG\tn01443537\t0\t0\t1\t1\n", ["line 1", "x.JPEG"]),
        ("val_9.JPEG\tn01443537\t0\t0\t1\t1\n", ["val_9.JPEG", "No such file"]),
        ("", ["empty"]),
        (None, ["val_annotations.txt", "No such file"]),
    ],
)
def test_tiny_imagenet_annotations_are_checked(annotations: str | None, words: list[str], tiny: Path) -> None:
    file = tiny / "val" / "val_annotations.txt"
    if annotations is None:
        file.unlink()
    else:
        file.write_text(annotations)
    with pytest.raises(DataError) as caught:
        load("tiny-imagenet", tiny.parent)
    for word in words:
        assert word in str(caught.value)


def test_tiny_imagenet_without_a_class_is_incomplete(tiny: Path) -> None:
    (tiny / "train" / "n12267677").rename(tiny / "away")
    with pytest.raises(DataError, match=r"incomplete: .*n12267677.*unpack http"):
        load("tiny-imagenet", tiny.parent)
