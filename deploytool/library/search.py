"""The stored patterns nearest to a new one: the k largest inner products, exactly.

    s_ij = <p_i, w_j>      of a pattern p_i and a stored pattern w_j; their cosine where both have length 1

There are two ways to the same answer. Both make products of matrices in parts, so that the N x M products never stand
in memory at once: torch's product and `topk`, part by part; and faiss's exhaustive search, which takes 16 MiB for any
number. Sums are rounded in another order, so of patterns that are nearly as near, either may come first.

Reference: J. Johnson, M. Douze, H. Jegou, Billion-scale similarity search with GPUs, 2019 (faiss); its approximate
indices are not used.
"""

import torch
from torch import Tensor

from deploytool.errors import InputError

PRODUCTS = 1 << 22  # that torch makes at a time, unless a single row has more: 16 MiB

# Measured by benchmarks/pattern_search.py (AMD EPYC, 1 and 2 threads; 64 to 16,384 features, 100 to 20,000 stored):
# faiss takes 0.3 to 0.95 times torch's time for 1 to 3 patterns, which it multiplies without a matrix library, and 0.4
# to 0.95 times for patterns of 2^17 and more values together; for others mostly 0.7 to 2 times, up to 3.4. How many are
# stored does not decide. Exceptions are of a tenth of a millisecond. On a machine that is busy otherwise, two threads
# wait for each other in either way, and no ratio means anything.
FEW = 4
MANY_VALUES = 1 << 17


def most_active(patterns: Tensor, library: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k stored patterns that have the largest inner products with each pattern.

    Args:
        patterns: (N, F) float32, finite; of length 1 where the products are to be cosines.
        library: (M, F) float32, on the same device, finite (which is not checked: it would be a pass over all of it).
        k: from 1 to M.

    Returns:
        The products, descending, (N, k) float32, and whose they are, (N, k) int64; of equal products the lower index
        comes first.

    Raises:
        InputError: k is out of range, a type or shape does not fit, or a pattern or a product is NaN or infinite.
    """
    _check(patterns, library, k)
    patterns, library = patterns.detach(), library.detach()
    faster = patterns.numel() >= MANY_VALUES or 0 < len(patterns) < FEW
    search = by_faiss if faster and patterns.device.type == "cpu" else by_torch
    asked = min(k + 1, len(library))  # one more than wanted shows whether equal ones may stand outside
    products, indices = search(patterns, library, asked)
    if not bool(products.isfinite().all()) or bool((indices < 0).any()):  # where all is NaN, faiss finds none
        raise InputError("a product with a stored pattern is NaN or infinite; a pattern or the library is damaged")
    indices, order = indices.sort(dim=1)
    best, order = products.gather(1, order).sort(dim=1, descending=True, stable=True)
    best, whose = best[:, :k].contiguous(), indices.gather(1, order)[:, :k].contiguous()
    if asked > k:
        tied = (products[:, k - 1] == products[:, k]).nonzero()[:, 0]
        for rows in torch.split(tied, _rows(library)):
            whole = (patterns[rows] @ library.T).sort(descending=True, stable=True)
            best[rows], whose[rows] = whole.values[:, :k], whole.indices[:, :k]
    return best, whose


def by_torch(patterns: Tensor, library: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest products, descending, (N, k) each; equal ones in any order."""
    found = [(part @ library.T).topk(k) for part in torch.split(patterns, _rows(library))]
    return torch.cat([top.values for top in found]), torch.cat([top.indices for top in found])


def by_faiss(patterns: Tensor, library: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same, with as many threads as torch has; of tensors on the CPU."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())  # its OpenMP is another than torch's
    products, indices = faiss.knn(patterns.numpy(), library.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(products), torch.from_numpy(indices)


def _rows(library: Tensor) -> int:
    """Patterns whose products torch makes at a time."""
    return max(1, PRODUCTS // len(library))


def _check(patterns: Tensor, library: Tensor, k: int) -> None:
    """Refuse what cannot be searched."""
    for name, tensor in (("patterns", patterns), ("library", library)):
        if tensor.ndim != 2 or tensor.dtype != torch.float32:
            raise InputError(f"{name} ({tuple(tensor.shape)}, {tensor.dtype}) must be (rows, features), torch.float32")
    features, own = library.shape[1], patterns.shape[1]
    if own != features or not own:
        raise InputError(f"patterns have {own} features and stored ones {features}; both must have the same, 1 or more")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(library):
        raise InputError(
            f"k (={k}) must be an integer from 1 to the number of stored patterns (={len(library)}); "
            "take a smaller k, or a higher theta, which stores more"
        )
