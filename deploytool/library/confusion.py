r"""Confusion index: which classes the library of a layer mixes up (paper 4, eq. 4).

    CI(d1, d2) = CA(d1, d2) / CA(d1, d1)        CA(d1, d2) = sum_k exp(P_d1^k) exp(P_d2^k) / (sum_i exp(P_i^k))^2

over the images k of class d1 that the library answers rightly: its largest P is that of d1. As printed, the paper's
denominator stands before the sum over k; it depends on k, so it belongs inside, where the terms are products of two
softmax probabilities. The paper's sum runs over the ten classes of its data sets, here over K. CI(d1, d1) is 1. P grows
with the number of training images (eq. 2), so that softmax is nearly one-hot, and CI is small, for large data sets.

Reference: J. H. Lee, Library network, a possible path to explainable neural networks, 2019 ("paper 4"), eq. 4.
"""

from typing import Any

import torch
from torch import Tensor

from deploytool.explain.target import Target
from deploytool.library.agreement import block_answers, check_enough, default_lambda, load_test, watched_blocks
from deploytool.library.folder import Library

Row = dict[str, Any]


def coactivation(inputs: Tensor, label: Tensor) -> Tensor:
    """The sums of eq. 4 over some images.

    Args:
        inputs: (N, K), inputs to the prediction nodes.
        label: (N,) int64.

    Returns:
        CA (K, K) float64; the row of a class without a right answer is 0.
    """
    share = inputs.double().softmax(1)
    right = inputs.argmax(1) == label
    share, label = share[right], label[right]
    sums = torch.zeros(inputs.shape[1], inputs.shape[1], dtype=torch.float64)
    return sums.index_add_(0, label, share * share.gather(1, label[:, None]))


def confusion_index(sums: Tensor) -> Tensor:
    """CI (K, K) of CA; NaN in the row of a class without a right answer."""
    return sums / sums.diagonal()[:, None]


def confusion(
    library: Library, target: Target, lam: float | None = None, active: int | None = None, device: str = "cpu"
) -> Row:
    """The confusion index of every layer and threshold, on the test images.

    Args:
        library, target, lam, active, device: as `deploytool.library.agreement.predict`.

    Returns:
        `layers`: for each layer and threshold `{layer, theta, size, right, matrix}`, `right` being images that the
        library answers rightly, and `matrix` CI (K, K), from class (row) d1 to d2; None in the row of a class of
        which there is none. `most`: the five largest CI of each layer's highest threshold, `{layer, class,
        confused_with, index}`. `classes`, `n`, `active`, `lambda`, `library_lambda`, `library`, `target`.

    Raises:
        As `predict`.
    """
    library.check_target(target)
    test, active, lam = load_test(library), active or library.recipe.active, default_lambda(library, lam)
    layers = library.layers(lam)
    check_enough(layers, active)
    sums: dict[tuple[int, float], Tensor] = {}
    right: dict[tuple[int, float], int] = {}
    for block, label in watched_blocks(library, target, test, lam, device):
        for key, inputs in block_answers(layers, block, active):
            sums[key] = sums.get(key, 0) + coactivation(inputs, label)
            right[key] = right.get(key, 0) + int((inputs.argmax(1) == label).sum())
    rows, most = [], []
    classes = library.info.classes
    for (place, theta), total in sorted(sums.items(), key=lambda item: item[0]):
        index, layer = confusion_index(total), layers[place]
        matrix = [[None if value != value else value for value in row] for row in index.tolist()]
        size, count = layer.size(theta), right[place, theta]
        rows.append({"layer": layer.section.name, "theta": theta, "size": size, "right": count, "matrix": matrix})
        if theta == layer.thetas[-1]:
            most += _largest(index, classes, layer.section.name)
    return {
        "layers": rows,
        "most": most,
        "classes": list(classes),
        "n": len(test),
        "active": active,
        **library.origin(target, lam),
    }


def _largest(index: Tensor, classes: tuple[str, ...], layer: str, count: int = 5) -> list[Row]:
    """The pairs of classes that are mixed up most."""
    off = index.nan_to_num(0.0).fill_diagonal_(0.0)
    found = off.flatten().topk(min(count, off.numel()))
    pairs = [divmod(place, len(classes)) for place in found.indices.tolist()]
    return [
        {"layer": layer, "class": classes[row], "confused_with": classes[column], "index": value}
        for (row, column), value in zip(pairs, found.values.tolist(), strict=True)
        if value > 0
    ]
