"""Data sets that torchvision reads and downloads: CIFAR-10, CIFAR-100, SVHN, STL-10, MNIST.

torchvision checks the MD5 sum of what it downloads, and writes a half-written archive anew; what is left to do here
is to let it retry, to keep it off stdout, and to say in one line what went wrong.
"""

import contextlib
import io
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploytool.data.catalogue import CATALOGUE, DatasetInfo
from deploytool.data.images import Array, Dataset, Images, from_arrays
from deploytool.errors import DataError

SILENCE_SECONDS = 60.0

# torchvision asks of MNIST's unpacked files only that they exist: bytes of each, header included
MNIST_BYTES = {
    True: {"train-images-idx3-ubyte": 47_040_016, "train-labels-idx1-ubyte": 60_008},
    False: {"t10k-images-idx3-ubyte": 7_840_016, "t10k-labels-idx1-ubyte": 10_008},
}


@dataclass(frozen=True)
class Source:
    """How to get one data set from torchvision.

    Attributes:
        read: (folder, train, download) -> images (N, C, H, W) uint8 and labels (N,).
        contents: what the folder must hold, in words.
        archives: folder -> files that a download writes, with their MD5 sums.
    """

    read: Callable[[Path, bool, bool], tuple[Array, Array]]
    contents: str
    archives: Callable[[Path], list[tuple[Path, str]]]


def data_folder(root: str | None) -> Path:
    """Where data sets lie: `data.root`, or a cache folder in the user's home."""
    return Path(root).expanduser() if root else Path.home() / ".cache" / "deploytool"


def load_torchvision(name: str, folder: Path, download: bool) -> Dataset:
    """Load a data set by its recipe name.

    Args:
        name: a key of `SOURCES`.
        folder: where it lies.
        download: fetch it into the folder if it is absent or damaged.

    Raises:
        DataError: it is absent or damaged, and cannot be had.
    """
    info, source = CATALOGUE[name], SOURCES[name]
    parts = [_load_part(info, source, folder, train, download) for train in (True, False)]
    return Dataset(info, *parts)


def _load_part(info: DatasetInfo, source: Source, folder: Path, train: bool, download: bool) -> Images:
    advice = f"put {source.contents} there, or name another folder with --set data.root=DIR"
    try:
        x, y = source.read(folder, train, False)
    except Exception:  # torchvision says in many ways that files are absent or damaged
        if not download:
            raise DataError(f"{info.name} is not in {folder}, or damaged there; {advice}") from None
        try:
            with _downloading(source.archives(folder)):
                x, y = source.read(folder, train, True)
        except Exception as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise DataError(
                f"{info.name} is not in {folder} and cannot be downloaded ({reason}); try again, {advice}"
            ) from None
    if x.dtype != np.uint8 or x.shape[1:] != info.shape or y.shape != x.shape[:1] or not len(x):
        raise DataError(f"{info.name} in {folder} is damaged: images {x.shape}, labels {y.shape}; {advice}")
    if int(y.min()) < 0 or int(y.max()) >= len(info.classes):
        raise DataError(f"{info.name} in {folder} is damaged: labels {y.min()} to {y.max()}; {advice}")
    return from_arrays(x, y)


@contextlib.contextmanager
def _downloading(archives: list[tuple[Path, str]]) -> Iterator[None]:
    """Download without a word on stdout or on a pipe, with a time limit on silence, leaving no half of a file."""
    before = {file: _stamp(file) for file, _ in archives}
    bars = sys.stderr if sys.stderr.isatty() else io.StringIO()
    limit = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        with contextlib.redirect_stdout(bars), contextlib.redirect_stderr(bars):
            yield
    except BaseException:  # an interrupted download too
        for file, md5 in archives:
            if _stamp(file) not in (None, before[file]) and not _is_whole(file, md5):
                file.unlink()
        raise
    finally:
        socket.setdefaulttimeout(limit)


def _stamp(file: Path) -> tuple[int, int] | None:
    """Size and time of a file, None where there is none: whether the download wrote it."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _is_whole(file: Path, md5: str) -> bool:
    from torchvision.datasets.utils import check_integrity

    return bool(check_integrity(str(file), md5))


def _read_cifar(kind: str) -> Callable[[Path, bool, bool], tuple[Array, Array]]:
    def read(folder: Path, train: bool, download: bool) -> tuple[Array, Array]:
        part = _torchvision(kind)(str(folder), train=train, download=download)
        return part.data.transpose(0, 3, 1, 2), np.asarray(part.targets)

    return read


def _read_split(kind: str) -> Callable[[Path, bool, bool], tuple[Array, Array]]:
    def read(folder: Path, train: bool, download: bool) -> tuple[Array, Array]:
        part = _torchvision(kind)(str(folder), split="train" if train else "test", download=download)
        return part.data, np.asarray(part.labels).astype(np.int64)

    return read


def _read_mnist(folder: Path, train: bool, download: bool) -> tuple[Array, Array]:
    if download:
        for name, size in MNIST_BYTES[train].items():
            stamp = _stamp(file := folder / "MNIST" / "raw" / name)
            if stamp and stamp[0] != size:
                file.unlink()
    part = _torchvision("MNIST")(str(folder), train=train, download=download)
    return part.data.numpy()[:, None], part.targets.numpy()


def _archive_of(kind: str) -> Callable[[Path], list[tuple[Path, str]]]:
    return lambda folder: [(folder / _torchvision(kind).filename, _torchvision(kind).tgz_md5)]


def _svhn_files(folder: Path) -> list[tuple[Path, str]]:
    parts = _torchvision("SVHN").split_list
    return [(folder / parts[part][1], parts[part][2]) for part in ("train", "test")]


def _mnist_files(folder: Path) -> list[tuple[Path, str]]:
    return [(folder / "MNIST" / "raw" / name, md5) for name, md5 in _torchvision("MNIST").resources]


def _torchvision(kind: str) -> Any:
    import torchvision.datasets

    return getattr(torchvision.datasets, kind)


SOURCES = {
    "cifar10": Source(_read_cifar("CIFAR10"), "the folder cifar-10-batches-py", _archive_of("CIFAR10")),
    "cifar100": Source(_read_cifar("CIFAR100"), "the folder cifar-100-python", _archive_of("CIFAR100")),
    "svhn": Source(_read_split("SVHN"), "train_32x32.mat and test_32x32.mat", _svhn_files),
    "stl10": Source(_read_split("STL10"), "the folder stl10_binary", _archive_of("STL10")),
    "mnist": Source(_read_mnist, "the folder MNIST/raw", _mnist_files),
}
