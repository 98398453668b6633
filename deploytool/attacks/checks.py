"""Checks of budgets and of what is attacked: one clear line each."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from deploytool.attacks.names import Norm
from deploytool.errors import InputError


def check_norm(norm: str) -> None:
    """Raise InputError unless the norm is `linf` or `l2`."""
    if norm not in ("linf", "l2"):
        raise InputError(f"norm (={str(norm)[:40]!r}) must be linf or l2")


def check_radius(eps: float, norm: Norm = "linf", name: str = "eps") -> None:
    """Raise InputError unless eps is a finite number from 0 up; for L-infinity, at most 1."""
    check_norm(norm)
    _check_number(name, eps, "from 0 up, in units of the image's [0, 1], such as 8/255")
    if eps < 0:
        raise InputError(f"{name} (={eps:g}) must be at least 0; it is a radius in units of the image's [0, 1]")
    if norm == "linf" and eps > 1:
        raise InputError(f"{name} (={eps:g}) must be at most 1: images are in [0, 1]; write 8/255 rather than 8")


def check_counts(values: Mapping[str, int], low: int = 1, high: int = 1_000_000) -> None:
    """Raise InputError unless every value is an integer in low..high; keys are names for the message."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"{name} (={str(value)[:40]}) must be an integer in {low}..{high}")


def check_between(name: str, value: float, low: float, high: float, open_low: bool = False) -> None:
    """Raise InputError unless a number is in [low, high], or in (low, high] with `open_low`."""
    bounds = f"{'(' if open_low else '['}{low:g}, {high:g}]"
    _check_number(name, value, f"in {bounds}")
    if not low <= value <= high or (open_low and value == low):
        raise InputError(f"{name} (={value:g}) must be in {bounds}")


def check_images(image: Tensor, label: Tensor, name: str = "label") -> None:
    """Raise InputError unless images and labels are what attacks take.

    Args:
        image: (N, C, H, W) float32 in [0, 1], N at least 1.
        label: (N,) int64 from 0 up, on the same device.
        name: of the labels, for the message.
    """
    expected = "(N, C, H, W) float32 in [0, 1]"
    if not isinstance(image, Tensor):
        raise InputError(f"image is a {type(image).__name__}; expected a torch tensor {expected}")
    if image.ndim != 4 or not image.numel():
        raise InputError(f"image has shape {tuple(image.shape)}; expected {expected} with no size 0")
    if image.dtype != torch.float32:
        advice = "; divide by 255" if not image.is_floating_point() else ""
        raise InputError(f"image has dtype {image.dtype}; expected {expected}{advice}")
    low, high = (float(bound) for bound in image.detach().aminmax())
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise InputError(f"image has values from {low:g} to {high:g}; expected {expected}, normalisation in the model")
    if not isinstance(label, Tensor) or label.dtype != torch.int64 or label.shape != image.shape[:1]:
        found = f"{label.dtype} {tuple(label.shape)}" if isinstance(label, Tensor) else type(label).__name__
        raise InputError(f"{name} is {found}; expected int64 ({len(image)},), one for each image")
    if int(label.min()) < 0:
        raise InputError(f"{name} holds {int(label.min())}; classes count from 0")
    if label.device != image.device:
        raise InputError(f"{name} is on {label.device}, image on {image.device}; move them to one device")


def check_classes(label: Tensor, classes: int, name: str = "label") -> None:
    """Raise InputError where a label is no class of the network."""
    if int(label.max()) >= classes:
        raise InputError(f"{name} holds {int(label.max())}; the network has classes 0..{classes - 1}")


def _check_number(name: str, value: float, allowed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} (={str(value)[:40]}) must be a number {allowed}")
