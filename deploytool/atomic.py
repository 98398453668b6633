"""Files appear whole or not at all: write aside, flush, rename. Folders are tried before the work that fills them."""

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploytool.errors import InputError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `path` to write to; rename it to `path` on success, remove it on any failure.

    The temporary name carries the process and thread id, so that two writers never share one. A process that is killed
    leaves at most such a file behind, never a damaged `path`.

    Raises:
        OSError: the file cannot be written; `filename` is `path`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(target)
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(target)) from None
    finally:
        aside.unlink(missing_ok=True)


def writable_folder(path: str | os.PathLike[str], advice: str) -> Path:
    """Make a folder and see that a file can be written there, before work whose results go there.

    Args:
        path: the folder; its parents are made, too.
        advice: what to do where it cannot be written to, as in "choose another with -o FOLDER".

    Raises:
        InputError: it cannot be made, or no file can be made in it.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to folder {folder} ({error.strerror or error}); {advice}") from None
    return folder


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers of ours left in a folder; nobody else may be writing there."""
    for aside in folder.glob(".*.[0-9]*.tmp"):
        aside.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], document: Any) -> None:
    """Write one JSON document atomically, keys in the order given."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")
