"""From a layer's activity to a pattern, and patterns in storage.

    f = (a[index] - mean) / std                activity a, flattened; the index and modulation only where asked for
    h = <w, f> / (||w|| ||f||)                 similarity to a stored pattern w (paper 4, eq. 1)

Lengths are kept beside patterns instead of dividing by them: a stored pattern is `codes * scale`, of length 1.

| storage | codes | bytes per value |
| --- | --- | --- |
| float32 | f times a power of two, so exact | 4 |
| float16 | the same, rounded | 2 |
| int8 | round(127 f / max |f|) | 1 |
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deploytool.errors import InputError
from deploytool.library.recipe import Storage

TYPES: dict[Storage, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
LARGEST_CODE = 127
MAX_EXPONENT = 120  # 2 to more than this is no float32
RUN = 1024  # values that are summed without a break: the bound of rounding grows with it, and with the number of runs
EPSILON = 1e-5  # of the modulation's variance, as of a batch norm


@dataclass(frozen=True)
class Reading:
    """How a layer's activity becomes a pattern.

    Attributes:
        layer: its name, for messages.
        index: (F,) int64, sampled places of the flattened activity; None: all.
        mean, std: (F,) float32, batch-norm modulation; None: none.
    """

    layer: str
    index: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None

    def __call__(self, activity: Tensor) -> Tensor:
        """Patterns (N, F) float32 of an activity (N, ...); gradients flow."""
        flat = activity.float().flatten(1)
        if self.index is not None:
            if int(self.index[-1]) >= flat.shape[1]:  # ascending
                raise InputError(
                    f"layer {self.layer} has {flat.shape[1]} values, its libraries read number {int(self.index[-1])}; "
                    "build them anew"
                )
            flat = flat[:, self.index]
        return flat if self.mean is None or self.std is None else (flat - self.mean) / self.std


def sampled(count: int, features: int, seed: int) -> Tensor | None:
    """`count` random places of `features`, ascending (count,) int64; None where that is all of them."""
    if count >= features:
        return None
    drawn = torch.randperm(features, generator=torch.Generator().manual_seed(seed))
    return drawn[:count].sort().values


@dataclass(frozen=True)
class Scaled:
    """Patterns ready to be compared.

    Attributes:
        values: (N, F) float32, each row times a power of two so that its largest magnitude is in [0.5, 1).
        inverse: (N,) float32, 1 / length of each row.
    """

    values: Tensor
    inverse: Tensor

    def __len__(self) -> int:
        return len(self.inverse)

    def __getitem__(self, rows: Tensor | slice) -> "Scaled":
        return Scaled(self.values[rows], self.inverse[rows])

    def unit(self) -> Tensor:
        """Rows of length 1, (N, F) float32."""
        return self.values * self.inverse[:, None]


def scale(pattern: Tensor, layer: str, first: int = 0, room: Tensor | None = None, silent: bool = False) -> Scaled:
    """Make patterns (N, F) comparable.

    Args:
        pattern: float32.
        layer: its name, for messages.
        first: index of the first image, for messages.
        room: (N, F) float32 that the result is written to, where there is some already.
        silent: let patterns pass that are 0 everywhere; they are similar to nothing, as in an exported file.

    Raises:
        InputError: a pattern has no direction (it is 0 everywhere), or holds NaN or infinity.
    """
    largest = torch.maximum(pattern.amax(1), -pattern.amin(1))
    bad = (~largest.isfinite()).nonzero()  # NaN stays NaN under amax
    if len(bad):
        raise InputError(
            f"layer {layer}: the activity of image {first + int(bad[0])} is NaN or infinite; the network is damaged"
        )
    zero = (largest == 0).nonzero()
    if len(zero) and not silent:
        raise InputError(
            f"layer {layer}: the activity of image {first + int(zero[0])} is 0 everywhere, a pattern without "
            "direction; sample more of its values, set modulation batch-norm, or name another layer"
        )
    _, exponent = torch.frexp(largest)
    powers = torch.ldexp(torch.ones_like(largest), -exponent.clamp(min=-MAX_EXPONENT))
    values = torch.mul(pattern, powers[:, None], out=room)
    return Scaled(values, 1 / _lengths(values).where(largest > 0, 1.0))


def encode(values: Tensor, storage: Storage) -> tuple[Tensor, Tensor]:
    """Codes (N, F) and scales (N,) float32 of the values of `Scaled`."""
    if storage == "int8":
        codes = (values * (LARGEST_CODE / values.abs().amax(1, keepdim=True))).round().to(torch.int8)
    else:
        codes = values.to(TYPES[storage])
    return codes, 1 / _lengths(codes)


def _lengths(rows: Tensor) -> Tensor:
    """Euclidean lengths (N,) float32 of rows, `RUN` values at a time."""
    runs: Tensor = torch.stack([part.float().norm(dim=1) for part in torch.split(rows, RUN, dim=1)])
    lengths: Tensor = torch.linalg.vector_norm(runs, dim=0)
    return lengths


def similarity(pattern: Scaled, codes: Tensor, scales: Tensor) -> Tensor:
    """Cosine similarities (N, M) float32 of patterns to stored ones, accumulated in float32, `RUN` values at a time."""
    near = torch.zeros(len(pattern), len(codes))
    runs = (torch.split(each, RUN, dim=1) for each in (pattern.values, codes))
    for values, stored in zip(*runs, strict=True):
        near.addmm_(values, stored.float().T)
    near *= scales
    near *= pattern.inverse[:, None]
    return near


def exact_similarity(values: Tensor, codes: Tensor) -> Tensor:
    """Cosine similarities (P,) float64 of pairs of rows: exactly 1 for equal rows, whatever their length.

    The root is numpy's, which is correctly rounded; torch 2.15's of 170.0 is not.

    Args:
        values: (P, F), of `Scaled`.
        codes: (P, F), of any storage.
    """
    a, b = values.double(), codes.double()
    dot, one, other = torch.stack([a * b, a * a, b * b]).sum(2).numpy()
    return torch.from_numpy(dot / np.sqrt(one * other))


def rounding_error(features: int) -> float:
    """By how much `similarity` may be off, whatever the order of its sums.

    For rows of length 1, |fl(<a, b>) - <a, b>| <= n u / (1 - n u) with u = 2^-24 and n roundings: those of a sum, which
    are `RUN` and one for each of its runs, for the product and again for the two lengths (half for each, under its
    root), and a few that divide by them and that round theta.

    Reference: N. J. Higham, Accuracy and stability of numerical algorithms, 2002, section 3.1.
    """
    n = (2 * (min(features, RUN) - features // -RUN) + 16) * 2.0**-24
    return float(n / (1 - n))
