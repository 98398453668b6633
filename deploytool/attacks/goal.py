"""What an attack wants of each image: leave its class, or reach another."""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor


@dataclass(frozen=True)
class Goal:
    """The aim of an attack on some images.

    Attributes:
        label: (N,) int64, the class to leave, or with `targeted` the class to reach.
        targeted: which of the two.
    """

    label: Tensor
    targeted: bool = False

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """The goal of some of the images: a slice, indices (M,) or a mask (N,)."""
        return replace(self, label=self.label[rows])

    def reached(self, logits: Tensor) -> Tensor:
        """Whether logits (N, K) answer as the attack wants, (N,) bool."""
        hit: Tensor = logits.argmax(1) == self.label
        return hit if self.targeted else ~hit
