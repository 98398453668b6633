"""Which patterns are stored: paper 4's sequential rule, block by block.

    pattern k is stored  <=>  max over the patterns w stored before it of h(w, k)  <  theta          (eq. 1)

One pattern after the other that is a product of a matrix with a vector for each image, bound by memory. Here a block of
images is compared with the stored patterns in products of matrices, and then within itself, one stored pattern after
the other. Whether *any* stored pattern is near enough decides, so the popular ones are asked first and whoever is
settled leaves. The result is that of the sequential rule for every size of block: where float32 cannot tell a
similarity from theta, float64 decides.

Several thresholds share one shelf: a pattern is kept once, and belongs to the libraries of those that it is new to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deploytool.errors import InputError
from deploytool.library.patterns import TYPES, Scaled, encode, exact_similarity, rounding_error, scale, similarity
from deploytool.library.recipe import Storage

CHUNK = 256  # stored patterns of one product
ROOM = 256  # patterns that a shelf has room for at first
PAIR_VALUES = 1 << 22  # of float64 decisions at once: 3 * 32 MiB


def check_theta(theta: float) -> float:
    """Return a novelty threshold in (-1, 1]; raise InputError otherwise."""
    if not -1 < theta <= 1:  # also false for NaN
        raise InputError(
            f"theta (={theta:g}) must be in (-1, 1]; it is a cosine similarity, and the higher, the larger the library"
        )
    return float(theta)


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

    TENSORS = ("codes", "scales", "source", "member", "rounding", "popularity", "given_up")

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
        self._popularity = torch.empty(0, dtype=torch.int64)
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
        parts = {name: getattr(self, name) for name in self.TENSORS if name != "popularity"}
        return {**parts, "popularity": self._popularity[: self.size]}

    @classmethod
    def restored(cls, layer: str, thetas: Sequence[float], storage: Storage, state: dict[str, Tensor]) -> "Shelf":
        """The shelf of a state."""
        shelf = cls(layer, state["codes"].shape[1], thetas, storage)
        parts = (state[name] for name in ("codes", "scales", "source", "member", "rounding"))
        shelf._append(*parts)
        shelf._popularity[: shelf.size], shelf.given_up = state["popularity"], state["given_up"]
        return shelf

    def offer(self, pattern: Tensor, first: int) -> None:
        """Store those of a block of patterns that are new, each compared with all before it, in this block too.

        Args:
            pattern: (B, F) float32, in order.
            first: index of the first one's image.

        Raises:
            InputError: a pattern is 0 everywhere, NaN or infinite; nothing of the block is stored.
        """
        block = scale(pattern, self.layer, first)
        waiting = ~self.given_up.expand(len(block), -1)
        waiting = self._unknown(block, waiting.clone())
        rows = waiting.any(1).nonzero()[:, 0]
        if len(rows):
            self._store(block[rows], waiting[rows], rows + first)
        if self.most is not None:
            self.given_up |= torch.tensor(self.sizes) > self.most

    def _unknown(self, block: Scaled, waiting: Tensor) -> Tensor:
        """Which (B, T) of `waiting` have nothing near enough on the shelf."""
        order = self._popularity[: self.size].argsort(descending=True)
        rows, part = torch.arange(len(block)), block
        for chosen in torch.split(order, CHUNK):
            left = waiting[rows].any(1)
            if not left.any():
                break
            if not left.all():
                rows, part = rows[left], part[left]
            codes, member = self._codes[chosen], self._member[chosen]
            near = similarity(part, codes, self._scales[chosen])
            for level, theta in enumerate(self.thetas):
                own = member[:, level]
                if not own.any() or not waiting[rows, level].any():
                    continue
                found = (near >= theta + self._doubt) & own
                known = found.any(1)
                unclear = ((near - theta).abs() < self._doubt) & own & (~known & waiting[rows, level])[:, None]
                known |= self._decided(part.values, codes, unclear, theta)
                if level == 0 or len(self.thetas) == 1:
                    self._popularity[chosen] += found.sum(0)
                waiting[rows, level] &= ~known
        return waiting

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
        near = similarity(block, codes, scales).T.contiguous()
        kept = torch.zeros_like(waiting)
        for level, theta in enumerate(self.thetas):
            pending = waiting[:, level].clone()
            for row in range(len(block)):
                if not pending[row]:
                    continue
                kept[row, level] = True
                later, column = pending[row + 1 :], near[row, row + 1 :]
                unclear = (later & ((column - theta).abs() < self._doubt)).nonzero()[:, 0] + row + 1
                later &= column < theta
                if len(unclear):
                    pairs = torch.stack([unclear, torch.full_like(unclear, row)], dim=1)
                    pending[unclear] = self._exact(block.values, codes, pairs) < theta
        new = kept.any(1)
        lost = 1 - self._exact(block.values, codes, new.nonzero()[:, 0].expand(2, -1).T)
        self._append(codes[new], scales[new], source[new], kept[new], lost.float())

    def _append(self, codes: Tensor, scales: Tensor, source: Tensor, member: Tensor, rounding: Tensor) -> None:
        needed = self.size + len(codes)
        if needed > len(self._codes):
            self._grow(max(needed, ROOM, len(self._codes) * 3 // 2))
        rows = slice(self.size, needed)
        self._codes[rows], self._scales[rows], self._source[rows] = codes, scales, source
        self._member[rows], self._rounding[rows] = member, rounding
        self.size = needed

    def _grow(self, room: int) -> None:
        for name in ("_codes", "_scales", "_source", "_member", "_rounding", "_popularity"):
            old = getattr(self, name)
            larger = old.new_zeros(room, *old.shape[1:])
            larger[: self.size] = old[: self.size]
            setattr(self, name, larger)
