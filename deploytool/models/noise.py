"""The noise of FLOAT: a shared table of standard normal draws, and the spread that scales it."""

import torch
from torch import Tensor


def weight_std(theta: Tensor) -> Tensor:
    """Population standard deviation of a weight tensor, a scalar without gradient.

    Two plain passes: torch's own `std` is a one-pass algorithm that is many times slower on a CPU.
    """
    theta = theta.detach()
    return (theta - theta.mean()).square_().mean().sqrt()


def noise_table_size(weights: int) -> int:
    """Length of the shared noise table for a network of so many weights: a prime, at most 65521.

    About one entry per 256 weights keeps the table (float16) near 0.2 % of the file; at least 251 entries.
    """
    size = min(65521, max(251, weights // 256))
    while any(size % divisor == 0 for divisor in range(2, int(size**0.5) + 1)):
        size -= 1
    return size


def make_noise_table(size: int, seed: int) -> Tensor:
    """Draw the table: (size,) float32 standard normal values that float16 holds exactly.

    Drawn on the CPU, so that a seed means the same table on every device. The table is centred and scaled to
    mean 0 and standard deviation 1, since one short draw would otherwise bias every layer the same way.
    """
    draws = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((draws - draws.mean()) / draws.std()).half().float()
