"""Which patterns are stored: paper 4's sequential rule, block by block.

    pattern k is stored  <=>  max over the patterns w stored before it of h(w, k)  <  theta          (eq. 1)

One pattern after the other that is a product of a matrix with a vector for each image, bound by memory. Here a block of
images is compared with the stored patterns in products of matrices, and then within itself, one stored pattern after
the other. Whether *any* stored pattern is near enough decides: long patterns are first compared in a thousand of their
values, and with the few that look nearest there in full; whoever that settles leaves (about 9 in 10 of those that are
not new, of ResNet-20's layers on CIFAR-10). The result is that of the sequential rule for every size of block: where
float32 cannot tell a similarity from theta, float64 decides.

Several thresholds share one shelf: a pattern is kept once, and belongs to the libraries of those that it is new to.
"""

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deploytool.errors import InputError
from deploytool.library.patterns import (
    TYPES,
    Scaled,
    encode,
    exact_similarity,
    rounding_error,
    sampled,
    scale,
    similarity,
)
from deploytool.library.recipe import Storage

Array = np.ndarray[Any, Any]

CHUNK = 256  # stored patterns of one product
SKETCH = 1024  # values that long patterns are first compared in
LONG = 4 * SKETCH  # what is long
LOOKED_AT = 6  # stored patterns that look nearest
ROOM = 256  # patterns that a shelf has room for at first
PRODUCT_VALUES = 1 << 17  # of row by row products at once
PAIR_VALUES = 1 << 22  # of float64 decisions at once: 3 * 32 MiB


def check_theta(theta: float) -> float:
    """Return a novelty threshold in (-1, 1]; raise InputError otherwise."""
    if not -1 < theta <= 1:  # also false for NaN
        raise InputError(
            f"theta (={theta:g}) must be in (-1, 1]; it is a cosine similarity, and the higher, the larger the library"
        )
    return float(theta)


@lru_cache
def sketch_type() -> torch.dtype:
    """What the first look is taken in: bfloat16 where this processor multiplies it faster, which few older ones do.

    It decides nothing but who is looked at in full.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        one = torch.ones(CHUNK, SKETCH, dtype=dtype)
        times = []
        for _ in range(4):
            began = time.perf_counter()
            one @ one.T
            times.append(time.perf_counter() - began)
        seconds[dtype] = min(times)
    return min(seconds, key=lambda dtype: seconds[dtype])


class Shelf:
    """The stored patterns of one layer, at one or several thresholds.

    Args:
        layer: its name, for messages.
        features: F.
        thetas: novelty thresholds in (-1, 1], ascending.
        storage: of the patterns. What is compared is a pattern as it is with the stored ones as they are stored.
        most: a threshold whose library has more patterns than this is given up, None: none is.

    Attributes:
        size: M, patterns kept.
        codes: (M, F); scales: (M,) float32: `codes * scales` are of length 1.
        source: (M,) int64, index of the image that each comes from.
        member: (M, T) bool, to which thresholds' libraries each belongs.
        rounding: 1 - cosine similarity of the stored pattern to itself before it was stored, (M,) float32.

    Raises:
        InputError: a threshold is out of range.
    """

    TENSORS = ("codes", "scales", "source", "member", "rounding", "given_up")

    def __init__(
        self,
        layer: str,
        features: int,
        thetas: Sequence[float],
        storage: Storage = "float32",
        most: int | None = None,
    ) -> None:
        self.layer = layer
        self.thetas = tuple(map(check_theta, thetas))
        self.storage = storage
        self.most = most
        self.size = 0
        self._codes = torch.empty(0, features, dtype=TYPES[storage])
        self._scales, self._rounding = torch.empty(0), torch.empty(0)
        self._source = torch.empty(0, dtype=torch.int64)
        self._member = torch.empty(0, len(self.thetas), dtype=torch.bool)
        self._room = torch.empty(0, features)
        self._sampled = sampled(SKETCH, features, 0) if features >= LONG else None
        width = 0 if self._sampled is None else SKETCH
        self._sketch = torch.empty(0, width, dtype=sketch_type() if width else torch.float32)
        self.given_up = torch.zeros(len(self.thetas), dtype=torch.bool)
        self._doubt = rounding_error(features)

    @property
    def codes(self) -> Tensor:
        """(M, F)."""
        return self._codes[: self.size]

    @property
    def scales(self) -> Tensor:
        """(M,) float32."""
        return self._scales[: self.size]

    @property
    def source(self) -> Tensor:
        """(M,) int64."""
        return self._source[: self.size]

    @property
    def member(self) -> Tensor:
        """(M, T) bool."""
        return self._member[: self.size]

    @property
    def rounding(self) -> Tensor:
        """(M,) float32."""
        return self._rounding[: self.size]

    @property
    def sizes(self) -> list[int]:
        """Patterns in the library of each threshold."""
        return [int(count) for count in self.member.sum(0)]

    def state(self) -> dict[str, Tensor]:
        """Everything that later blocks depend on, by the names of `TENSORS`."""
        return {name: getattr(self, name) for name in self.TENSORS}

    @classmethod
    def restored(cls, layer: str, thetas: Sequence[float], storage: Storage, state: dict[str, Tensor]) -> "Shelf":
        """The shelf of a state."""
        shelf = cls(layer, state["codes"].shape[1], thetas, storage)
        parts = (state[name] for name in ("codes", "scales", "source", "member", "rounding"))
        shelf._append(*parts)
        shelf.given_up = state["given_up"]
        return shelf

    def offer(self, pattern: Tensor, first: int) -> None:
        """Store those of a block of patterns that are new, each compared with all before it, in this block too.

        Args:
            pattern: (B, F) float32, in order.
            first: index of the first one's image.

        Raises:
            InputError: a pattern is 0 everywhere, NaN or infinite; nothing of the block is stored.
        """
        if len(self._room) < len(pattern):  # fresh memory for each block costs as much as filling it
            self._room = torch.empty_like(pattern)
        block = scale(pattern, self.layer, first, self._room[: len(pattern)])
        waiting = ~self.given_up.expand(len(block), -1)
        waiting = self._unknown(block, waiting.clone())
        rows = waiting.any(1).nonzero()[:, 0]
        if len(rows):
            self._store(block[rows], waiting[rows], rows + first)
        if self.most is not None:
            self.given_up |= torch.tensor(self.sizes) > self.most

    def _unknown(self, block: Scaled, waiting: Tensor) -> Tensor:
        """Which (B, T) of `waiting` have nothing near enough on the shelf."""
        if self._sampled is not None and self.size:
            self._look(block, waiting)
        rows = waiting.any(1).nonzero()[:, 0]
        part = block if len(rows) == len(block) else block[rows]
        for start in range(0, self.size, CHUNK):
            left = waiting[rows].any(1)
            if not left.any():
                break
            if left.sum() < len(rows) / 2:  # a copy of the others costs less than their products
                rows, part = rows[left], part[left]
            chunk = slice(start, min(start + CHUNK, self.size))
            codes = self._codes[chunk]
            near = similarity(part, codes, self._scales[chunk])
            for level, theta in enumerate(self.thetas):
                own = self._member[chunk, level]
                low, high = theta - self._doubt, theta + self._doubt
                known = ((near >= high) & own).any(1)
                unclear = (near > low) & (near < high) & own & (~known & waiting[rows, level])[:, None]
                known |= self._decided(part.values, codes, unclear, theta)
                waiting[rows, level] &= ~known
        return waiting

    def _look(self, block: Scaled, waiting: Tensor) -> None:
        """Settle whoever is near enough to one of the patterns that look nearest in some of their values."""
        assert self._sampled is not None
        seen = F.normalize(block.values.index_select(1, self._sampled)).to(self._sketch.dtype)
        looks = seen @ self._sketch[: self.size].T
        for level, theta in enumerate(self.thetas):
            own = looks.masked_fill(~self.member[:, level], -torch.inf)
            nearest = own.topk(min(LOOKED_AT, self.size), dim=1).indices
            for column in nearest.T:
                rows = waiting[:, level].nonzero()[:, 0]
                if not len(rows):
                    break
                at = column[rows]
                near = _rowwise(block.values, rows, self._codes, at) * self._scales[at] * block.inverse[rows]
                waiting[rows, level] &= ~((near >= theta + self._doubt) & self._member[at, level])

    def _decided(self, values: Tensor, codes: Tensor, unclear: Tensor, theta: float) -> Tensor:
        """Which rows (n,) have a pair among the unclear (n, m) ones that float64 finds near enough."""
        known = torch.zeros(len(values), dtype=torch.bool)
        pairs = unclear.nonzero()
        known[pairs[self._exact(values, codes, pairs) >= theta, 0]] = True
        return known

    def _exact(self, values: Tensor, codes: Tensor, pairs: Tensor) -> Tensor:
        """Similarities (P,) float64 of pairs (P, 2) of a row of values and one of codes."""
        parts = torch.split(pairs, max(1, PAIR_VALUES // values.shape[1]))
        return torch.cat([exact_similarity(values[part[:, 0]], codes[part[:, 1]]) for part in parts])

    def _store(self, block: Scaled, waiting: Tensor, source: Tensor) -> None:
        """Go through candidates (n,) one after the other; whatever one that is stored is near to, waits no more."""
        codes, scales = encode(block.values, self.storage)
        near = similarity(block, codes, scales).T.contiguous().numpy()  # a row is compared sooner there than in torch
        kept = torch.zeros_like(waiting)
        for level, theta in enumerate(self.thetas):
            room = None if self.most is None else self.most + 1 - int(self.member[:, level].sum())
            for row in self._in_order(block, codes, near, waiting[:, level].clone().numpy(), theta, room):
                kept[row, level] = True
        new = kept.any(1)
        codes, scales, block = codes[new], scales[new], block[new]
        lost = torch.zeros_like(scales)
        if self.storage != "float32":
            lost = (codes.float() * scales[:, None] - block.unit()).square().sum(1) / 2  # 1 - cosine, of length 1
        self._append(codes, scales, source[new], kept[new], lost)

    def _in_order(
        self, block: Scaled, codes: Tensor, near: Array, pending: Array, theta: float, room: int | None
    ) -> list[int]:
        """Rows that one threshold stores, `room` at most.

        Args:
            block, codes: (n, F), candidates as they are and as they would be stored.
            near: (n, n) similarities, of the stored row's codes to the column's values.
            pending: (n,) bool, who waits; is written over.
            theta: the threshold.
            room: so many more are too many; None: none are.
        """
        stored: list[int] = []
        low, high = theta - self._doubt, theta + self._doubt
        for row in range(len(pending)):
            if not pending[row] or len(stored) == room:
                continue
            stored.append(row)
            later, column = pending[row + 1 :], near[row, row + 1 :]
            unclear = np.flatnonzero(later & (column > low) & (column < high)) + row + 1
            later &= column < high
            if len(unclear):
                pairs = torch.from_numpy(np.stack([unclear, np.full_like(unclear, row)], axis=1))
                pending[unclear] = (self._exact(block.values, codes, pairs) < theta).numpy()
        return stored

    def _append(self, codes: Tensor, scales: Tensor, source: Tensor, member: Tensor, rounding: Tensor) -> None:
        needed = self.size + len(codes)
        if needed > len(self._codes):
            self._grow(max(needed, ROOM, 2 * len(self._codes)))
        rows = slice(self.size, needed)
        self._codes[rows], self._scales[rows], self._source[rows] = codes, scales, source
        self._member[rows], self._rounding[rows] = member, rounding
        if self._sampled is not None:
            self._sketch[rows] = F.normalize(codes[:, self._sampled].float()).to(self._sketch.dtype)
        self.size = needed

    def _grow(self, room: int) -> None:
        for name in ("_codes", "_scales", "_source", "_member", "_rounding", "_sketch"):
            old = getattr(self, name)
            larger = old.new_empty(room, *old.shape[1:])
            larger[: self.size] = old[: self.size]
            setattr(self, name, larger)


def _rowwise(values: Tensor, rows: Tensor, codes: Tensor, at: Tensor) -> Tensor:
    """Products (n,) float32 of pairs of rows, a few at a time: what fits the processor's cache."""
    size = max(1, PRODUCT_VALUES // values.shape[1])
    pairs = zip(torch.split(rows, size), torch.split(at, size), strict=True)
    return torch.cat([(values[row] * codes[column].float()).sum(1) for row, column in pairs])
