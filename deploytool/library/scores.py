"""What can be said of how usual an image is: its CPL, and what libraries have to be better than.

| score | high for usual images | reference |
| --- | --- | --- |
| cpl | the layers' libraries agree (eq. 5) | paper 4 |
| max_softmax | the network is confident | Hendrycks and Gimpel 2017 |
| knn | the features before the last layer have been seen: minus the distance to the k-th nearest | Sun et al. 2022 |

Beside them stand the traits of an image, from which a detector can be fitted: the cosine of each pair of layers (whose
mean is CPL), how near each layer's nearest stored pattern is, how much each layer's library is for the network's own
answer, and the two other scores.

References: J. H. Lee, Library network, a possible path to explainable neural networks, 2019 ("paper 4"); D. Hendrycks,
K. Gimpel, A baseline for detecting misclassified and out-of-distribution examples in neural networks, 2017; Y. Sun,
Y. Ming, X. Zhu, Y. Li, Out-of-distribution detection with deep nearest neighbors, 2022.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from deploytool.data.datasets import load_dataset
from deploytool.data.images import Images
from deploytool.explain.target import Target
from deploytool.library.agreement import check_enough
from deploytool.library.folder import Library
from deploytool.library.networks import consistency
from deploytool.library.patterns import sampled
from deploytool.library.search import most_active
from deploytool.library.streams import Block, block_size, blocks, layer_inputs
from deploytool.library.taps import feature_name, watch

NEIGHBOURS = 10  # k of the distance to the k-th nearest training image
MOST_FEATURES = 4096  # of those; so many random ones where there are more
SINGLE = ("max_softmax", "knn", "traits", "answer")  # fields of `Scores` that are one tensor


@dataclass(frozen=True)
class Scores:
    """Of N images.

    Attributes:
        cpl: by set of thresholds, (N,) in [-1, 1].
        max_softmax: (N,) in [0, 1].
        knn: (N,) in [-2, 0], minus the distance between directions of length 1.
        traits: (N, D) float32, of the first set.
        answer: (N,) int64, the network's own.
    """

    cpl: dict[str, Tensor]
    max_softmax: Tensor
    knn: Tensor
    traits: Tensor
    answer: Tensor

    def __len__(self) -> int:
        return len(self.answer)


def joined_scores(parts: Sequence[Scores]) -> Scores:
    """Scores of several images after each other."""
    cpl = {name: torch.cat([part.cpl[name] for part in parts]) for name in parts[0].cpl}
    return Scores(cpl, *(torch.cat([getattr(part, name) for part in parts]) for name in SINGLE))


class Scorer:
    """Scores images by the libraries of a network at one lambda, and by what they are compared with.

    The network's training images are read once more, for the distances.

    Args:
        library: the libraries; target: their network.
        lam: lambda.
        device: torch device that the network answers on.
    """

    def __init__(self, library: Library, target: Target, lam: float | None, device: str = "cpu") -> None:
        assert library.recipe.data is not None, "building writes it down"
        train = load_dataset(library.recipe.data).train.head(library.recipe.images)
        image = train.batch(slice(0, 8))[0]
        self.features = feature_name(target, image)
        layers = [layer.section.layer for layer in library.conditions[0]]
        self.watched = watch(target, [*layers, self.features], image, lam, device)
        self.layers, self.active = library.layers(lam), library.recipe.active
        check_enough(self.layers, self.active)
        self.sets = {name: library.thetas(lam, name) for name in library.sets}
        only = watch(target, [self.features], image, lam, device)
        count = only(image[:1])[1][self.features].numel()
        self.index = sampled(MOST_FEATURES, count, library.recipe.seed)
        read = blocks(only, train, block_size(only, image[:1]))
        self.bank = torch.cat([self._directions(block.activity[self.features]) for block in read])

    def _directions(self, features: Tensor) -> Tensor:
        flat = features.flatten(1)
        return F.normalize(flat if self.index is None else flat[:, self.index])

    def __call__(self, images: Images) -> Scores:
        """Score images (their labels are not read).

        Raises:
            InputError: the network answers NaN.
        """
        size = block_size(self.watched, images.batch(slice(0, 1))[0])
        parts = [self._block(block) for block in blocks(self.watched, images, size)]
        return joined_scores(parts)

    def _block(self, block: Block) -> Scores:
        known = [
            layer_inputs(layer, block.activity[layer.section.layer], self.active, block.first, silent=True)
            for layer in self.layers
        ]
        inputs = {
            name: [found[theta][1] for found, theta in zip(known, thetas, strict=True)]
            for name, thetas in self.sets.items()
        }
        softmax = block.logits.softmax(1).amax(1)
        product, _ = most_active(
            self._directions(block.activity[self.features]), self.bank, min(NEIGHBOURS, len(self.bank))
        )
        knn = -(2 - 2 * product[:, -1]).clamp(min=0).sqrt()
        first = next(iter(self.sets))
        nearest = [found[theta][0][:, 0] for found, theta in zip(known, self.sets[first], strict=True)]
        beside = [*nearest, knn, block.logits.logsumexp(1), _log_odds(block.logits)]
        return Scores(
            {name: consistency(own) for name, own in inputs.items()},
            softmax,
            knn,
            torch.stack([*traits(inputs[first], block.answer), *beside], dim=1),
            block.answer,
        )


def traits(inputs: Sequence[Tensor], answer: Tensor) -> list[Tensor]:
    """Cosines of each pair of layers (N,), and each layer's share for the network's answer (N,).

    Args:
        inputs: of each layer: inputs to the prediction nodes (N, K).
        answer: (N,) int64.
    """
    units = [F.normalize(each) for each in inputs]
    pairs = [(one * other).sum(1) for one, other in combinations(units, 2)]
    return [*pairs, *(unit.gather(1, answer[:, None])[:, 0] for unit in units)]


def _log_odds(logits: Tensor) -> Tensor:
    """log(p / (1 - p)) of the largest softmax probability p, (N,): max softmax without its saturation."""
    best, place = logits.max(1)
    return best - logits.scatter(1, place[:, None], -torch.inf).logsumexp(1)
