"""What tells one network or file from another: SHA-256."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network's tensors by name: of a module's `state_dict()`, or `ConditionalModel.full_state`."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, an ONNX model say. Raises OSError where it cannot be read."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
