r"""Library networks: what the stored patterns of a layer say of an image, and whether layers agree.

    W_mn = sum_k g(h_n^k) O_m^k        g(x) = exp(-(1 - x) / 0.01)      O_c = 1, O_j = -1 for all others      (eq. 2)

    P_m  = sum over the `active` nodes a of largest h of  W_ma h_a                                            (eq. 3)

    CPL  = mean over the pairs i > j of layers of  <P_i, P_j> / (||P_i|| ||P_j||)                             (eq. 5)

h_n^k is the similarity of image k's pattern to the stored pattern n, c the network's own answer to image k. Where P_i
is 0 (no similarity is above 0, say) its cosines count as 0.

Reference: J. H. Lee, Library network, a possible path to explainable neural networks, 2019 ("paper 4").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deploytool.errors import InputError
from deploytool.library.patterns import Reading, Scaled, scale, similarity
from deploytool.library.search import most_active

KERNEL = 0.01  # of g
NODES = 1024  # stored patterns of one product
TINY = 1e-30  # below every length that counts


@dataclass(frozen=True)
class LayerLibrary:
    """The stored patterns of one layer at one threshold, and their functional connections.

    Attributes:
        layer: its name among the network's layers; title: in tables and figures.
        theta: the novelty threshold that they were stored at.
        reading: how the layer's activity becomes a pattern.
        codes: (M, F) float32, float16 or int8; scales: (M,) float32: `codes * scales` are patterns of length 1.
        connections: (M, K) float32, eq. 2; W transposed.
    """

    layer: str
    title: str
    theta: float
    reading: Reading
    codes: Tensor
    scales: Tensor
    connections: Tensor

    def __len__(self) -> int:
        return len(self.scales)

    @property
    def features(self) -> int:
        """F, values of a pattern."""
        return self.codes.shape[1]

    def check_active(self, active: int) -> int:
        """Return k of eq. 3 if there are so many nodes; raise InputError otherwise."""
        return check_active(active, len(self), self.title, self.theta)

    def nearest(self, pattern: Scaled, active: int) -> tuple[Tensor, Tensor]:
        """The k most similar stored patterns: similarities (N, k) float32, descending, and indices (N, k) int64."""
        self.check_active(active)
        return most_active(pattern.unit(), self.codes.float() * self.scales[:, None], active)

    def predict(self, activity: Tensor, active: int) -> Tensor:
        """Inputs to the prediction nodes, eq. 3.

        Args:
            activity: (N, ...) of the layer.
            active: k, the number of nodes that predict.

        Returns:
            (N, K) float32.

        Raises:
            InputError: there are fewer than k patterns, or an activity is 0 everywhere, NaN or infinite.
        """
        near, index = self.nearest(scale(self.reading(activity), self.title), active)
        return predictions(near, self.connections[index])


def check_active(active: int, size: int, layer: str, theta: float) -> int:
    """Return k of eq. 3 if a library has so many patterns; raise InputError otherwise."""
    if not 1 <= active <= size:
        raise InputError(
            f"active (={active}) must be in 1..{size}: so many patterns has layer {layer} at theta {theta:g}; lower "
            "active, or raise theta"
        )
    return active


def predictions(near: Tensor, connections: Tensor) -> Tensor:
    """Eq. 3: (N, K) from similarities (N, k) and the connections (N, k, K) of those nodes."""
    return (near[:, None] @ connections)[:, 0]


def consistency(inputs: Sequence[Tensor]) -> Tensor:
    """CPL, eq. 5.

    Args:
        inputs: of each layer, at least two: inputs to the prediction nodes (N, K).

    Returns:
        (N,) in [-1, 1]. All pairs at once: sum over i > j of <p_i, p_j> = (||sum_i p_i||^2 - sum_i ||p_i||^2) / 2.

    Raises:
        InputError: there are fewer than two layers.
    """
    count = len(inputs)
    if count < 2:
        raise InputError(f"consistency of {count} layer has no pairs; name at least 2 layers")
    units = torch.stack([_unit(_unit(each, torch.inf)) for each in inputs])  # small squares would be 0
    together = units.sum(0).square().sum(1) - units.square().sum((0, 2))
    return together / (count * (count - 1))


def _unit(rows: Tensor, order: float = 2) -> Tensor:
    """Rows (N, K) of length 1 in a norm; 0 stays 0."""
    lengths: Tensor = torch.linalg.vector_norm(rows, order, dim=1, keepdim=True)
    return rows / lengths.clamp(min=TINY)


def kernel(near: Tensor) -> Tensor:
    """G of eq. 2, at most 1."""
    return ((near.clamp(max=1) - 1) / KERNEL).exp()


def correlate(pattern: Scaled, codes: Tensor, scales: Tensor, answer: Tensor, classes: int) -> Tensor:
    """The sum of eq. 2 over some images.

    Args:
        pattern: of N images.
        codes, scales: (M, F) and (M,), stored patterns.
        answer: (N,) int64, the network's own.
        classes: K.

    Returns:
        (M, K) float64.
    """
    targets = torch.nn.functional.one_hot(answer, classes).float() * 2 - 1
    sums = torch.empty(len(scales), classes, dtype=torch.float64)
    for start in range(0, len(scales), NODES):
        rows = slice(start, start + NODES)
        sums[rows] = kernel(similarity(pattern, codes[rows], scales[rows])).T @ targets
    return sums
