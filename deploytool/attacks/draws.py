"""Random numbers of an attack that depend on the seed and an image's place in its batch alone.

Images that are fooled leave the batch, so that work shrinks. Were numbers drawn for those that are left, an image's
random start would depend on which other images were fooled before. Here every draw is made for the whole batch, and
the rows of the images that are left are taken from it: an image meets the same numbers whoever else is still there.
"""

import torch
from torch import Tensor


class Draws:
    """The random numbers of one batch.

    Args:
        count: images of the whole batch.
        generator: their source; torch's default where None.
        device: where the images are, and the generator.
        rows: indices (M,) of the images in use; all where None.
    """

    def __init__(
        self,
        count: int,
        generator: torch.Generator | None,
        device: torch.device | str = "cpu",
        rows: Tensor | None = None,
    ) -> None:
        self._count = count
        self._generator = generator
        self._device = device
        self._rows = rows

    @staticmethod
    def seeded(seed: int, count: int, device: torch.device | str = "cpu") -> "Draws":
        """The draws of a batch with a generator of its own."""
        return Draws(count, torch.Generator(device).manual_seed(seed), device)

    def __getitem__(self, rows: Tensor) -> "Draws":
        """The draws of some images: indices (M,) or a mask (N,) over the images of these draws."""
        whole = torch.arange(self._count, device=self._device) if self._rows is None else self._rows
        return Draws(self._count, self._generator, self._device, whole[rows])

    def rewound(self) -> "Draws":
        """The same images' draws from the seed on: each member of AutoAttack meets what it would meet alone."""
        seed = torch.initial_seed() if self._generator is None else self._generator.initial_seed()
        return Draws(self._count, torch.Generator(self._device).manual_seed(seed), self._device, self._rows)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), float32, `shape` for each image: (M, *shape)."""
        return self._take(torch.rand(self._count, *shape, generator=self._generator, device=self._device))

    def normal(self, *shape: int) -> Tensor:
        """Numbers of the standard normal distribution, (M, *shape) float32."""
        return self._take(torch.randn(self._count, *shape, generator=self._generator, device=self._device))

    def signs(self, *shape: int) -> Tensor:
        """Numbers -1 or 1 with equal probability, (M, *shape) float32."""
        return (self.uniform(*shape) < 0.5).float().mul_(2).sub_(1)

    def integer(self, high: int) -> int:
        """One integer in 0..high - 1 for all images."""
        return int(torch.randint(high, (), generator=self._generator, device=self._device))

    def _take(self, whole: Tensor) -> Tensor:
        return whole if self._rows is None else whole[self._rows]
