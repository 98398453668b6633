"""ONNX files as networks to attack: logits alone, so for black-box attacks."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from deploytool.attacks.victim import Network
from deploytool.errors import ArtefactError, InputError
from deploytool.runtime.artefact import artefact_of, read_onnx
from deploytool.runtime.network import open_session, run_session
from deploytool.runtime.session import Session
from deploytool.runtime.threads import check_threads

Array = np.ndarray[Any, Any]

MAX_IMAGE_VALUES = 1 << 26


def file_networks(
    path: str | os.PathLike[str], threads: int | None = None
) -> Callable[[float | None, float | None], Network]:
    """Any ONNX file, opened once, as networks to attack: one of ours at each setting, or else a foreign one.

    Returns:
        (lambda, width) -> network, both None for a foreign file; InputError where the file does not take them.

    Raises:
        ArtefactError: the file cannot be read, is damaged, or does not take images.
    """
    model = read_onnx(path)
    if any(prop.key.startswith("deploytool.") for prop in model.metadata_props):
        return partial(session_network, Session(artefact_of(Path(path), model), threads=threads, background=False))
    foreign = _foreign(str(path), model, threads)

    def network(lam: float | None, width: float | None) -> Network:
        for name, value in (("lambda", lam), ("width", width)):
            if value is not None:
                raise InputError(f"{path} is no file of deploytool and takes no {name}; leave --{name} out")
        return foreign

    return network


def session_network(session: Session, lam: float | None = None, width: float | None = None) -> Network:
    """An exported model at one setting, as a network to attack.

    Open the session with `background=False`: else it answers from two graphs, which differ by rounding.

    Args:
        session: of the file.
        lam: lambda in [0, 1]; required by a conditional model.
        width: one of the file's widths; the widest where None.

    Returns:
        image (N, C, H, W) float32 in [0, 1] -> logits (N, K) on the image's device, without gradient.

    Raises:
        InputError: lambda or width is not what the file takes.
    """
    session.check_lambda(lam)
    session.check_width(width)

    def network(image: Tensor) -> Tensor:
        return torch.from_numpy(session(_as_array(image), lam, width)).to(image.device)

    return network


def foreign_network(path: str | os.PathLike[str], threads: int | None = None) -> Network:
    """Any ONNX classifier with one input, as a network to attack.

    The input must be float32 (N, C, H, W) images in [0, 1]: normalisation has to be in the file. The answer is the
    output `logits`, or else the first; probabilities do as well, for an attack that asks for margins. A file with a
    fixed N is given images in groups of N, the last one filled up.

    onnxruntime is native code: onnx's checker sees the file first, but open only files whose source you trust.

    Args:
        path: the file; weights inside.
        threads: of one inference; those that affinity and cgroup quota allow where None.

    Returns:
        image (N, C, H, W) float32 in [0, 1] -> the file's answer (N, K) on the image's device, without gradient.

    Raises:
        ArtefactError: the file cannot be read, is damaged, or has not one image input.
    """
    return _foreign(str(path), read_onnx(path), threads)


def _foreign(name: str, model: onnx.ModelProto, threads: int | None) -> Network:
    """What `foreign_network` gives, of a file that is read already."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        found = ", ".join(value.name for value in inputs)[:80]
        advice = "; use session_network" if {"image", "lambda"} <= {value.name for value in inputs} else ""
        raise ArtefactError(f"{name} has the inputs {found or 'none'}; one image input is needed{advice}")
    size, shape = _image_shape(name, inputs[0])
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # whatever onnx and protobuf say of a damaged graph
        raise ArtefactError(f"{name}: damaged graph ({' '.join(str(error).split())[:160]})") from None
    session = open_session(model.SerializeToString(), check_threads(threads), name)
    outputs = [value.name for value in model.graph.output]
    wanted = "logits" if "logits" in outputs else outputs[0]

    def network(image: Tensor) -> Tensor:
        if any(expected not in (0, found) for expected, found in zip(shape, image.shape[1:], strict=True)):
            raise InputError(f"image has shape {tuple(image.shape)}; {name} takes (N, C, H, W) with {shape}")
        array = _as_array(image)
        group = size or len(array)
        answers = []
        for filled, count in filled_groups(array, group):
            (answer,) = run_session(session, [wanted], {inputs[0].name: filled}, name)
            if not isinstance(answer, np.ndarray) or answer.dtype != np.float32 or answer.shape[:1] != (group,):
                raise ArtefactError(f"{name}: its output {wanted} is not (N, K) float32")
            answers.append(answer[:count])
        return torch.from_numpy(np.concatenate(answers)).to(image.device)

    return network


def filled_groups(array: Array, group: int) -> Iterator[tuple[Array, int]]:
    """Images (N, ...) in groups of a fixed size, the last one filled up with its last image, and how many are real."""
    for start in range(0, len(array), group):
        part = array[start : start + group]
        yield np.concatenate([part, np.repeat(part[-1:], group - len(part), axis=0)]), len(part)


def _image_shape(name: str, value: onnx.ValueInfoProto) -> tuple[int, tuple[int, ...]]:
    """The fixed N of an image input, 0 where it is free, and (C, H, W), 0 where a size is free."""
    kind = value.type.tensor_type
    dims = [dim.dim_value for dim in kind.shape.dim]
    if kind.elem_type != onnx.TensorProto.FLOAT or len(dims) != 4 or min(dims) < 0 or prod(dims) > MAX_IMAGE_VALUES:
        raise ArtefactError(f"{name}: its input {value.name[:40]} is no float32 image (N, C, H, W)")
    return dims[0], tuple(dims[1:])


def _as_array(image: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.ascontiguousarray(image.detach().cpu().numpy())
