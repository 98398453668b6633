r"""The adaptive attack on CPL: another answer of the network, on which its layers agree.

Within the L-infinity ball and [0, 1] it looks for images that are fooled and have the highest CPL. It climbs

    - max(0, margin(x) + kappa)^2 / scale^2  -  (1 - agreement(x))^2                    margin = z_y - max_{j != y} z_j

with z the logits, y the answer to the image as it is, kappa = 0.1 scale, and scale the margin that the image starts
from. Once an image is fooled by a margin, the first part no longer pulls (`deploytool.attacks.consistent`, which has
this shape, says where it is from). `agreement` is CPL with another prediction: instead of the k most active nodes,
whose choice has no gradient, every node has a say, by a softmax of its similarity,

    P_soft = sum_n softmax(h / 0.02)_n h_n W_n

A second run aims at one class, the best one beside the answer: its agreement is the mean cosine of every layer's P_soft
with the mean P of that class's clean images. Of both runs' iterates each image keeps the fooled one of the highest CPL
(the exact one, eq. 5), which a detector is to be judged by.

References: N. Carlini, D. Wagner, Adversarial examples are not easily detected, 2017; F. Tramer et al., On adaptive
attacks to adversarial example defenses, 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deploytool.attacks.checks import check_counts, check_images, check_radius
from deploytool.attacks.losses import margin
from deploytool.errors import InputError
from deploytool.library.networks import LayerLibrary, consistency, predictions
from deploytool.library.taps import Watched
from deploytool.progress import progress_bar

TEMPERATURE = 0.02  # of similarities; cosines of neighbours differ by hundredths
KAPPA = 0.1  # of the starting margin
BATCH = 32


@dataclass(frozen=True)
class Adaptive:
    """A budget.

    Attributes:
        eps: radius of the L-infinity ball, in units of the image's [0, 1].
        steps: of each of the two runs; their length falls linearly from eps / 4.

    Raises:
        InputError: a number is outside its range.
    """

    eps: float
    steps: int = 100

    def __post_init__(self) -> None:
        check_radius(self.eps)
        check_counts({"steps": self.steps})

    @property
    def name(self) -> str:
        """In tables."""
        return f"adaptive-{self.steps}"


@dataclass(frozen=True)
class _Layer:
    """A layer's library, its patterns (M, F) decoded once, of length 1."""

    library: LayerLibrary
    patterns: Tensor

    def similarities(self, activity: Tensor) -> Tensor:
        return F.normalize(self.library.reading(activity)) @ self.patterns.T

    def soft(self, near: Tensor) -> Tensor:
        return ((near / TEMPERATURE).softmax(1) * near) @ self.library.connections

    def exact(self, near: Tensor, active: int) -> Tensor:
        best = near.topk(active)
        return predictions(best.values, self.library.connections[best.indices])


def evade(
    watched: Watched,
    libraries: Sequence[LayerLibrary],
    active: int,
    image: Tensor,
    budget: Adaptive,
    clean: Tensor,
) -> Tensor:
    """Attack a network and the agreement of its layers at once.

    Args:
        watched: a torch module's, so that activities have gradients.
        libraries: of each layer.
        active: k of eq. 3.
        image: (N, C, H, W) float32 in [0, 1]; the answer to each is what it is to leave.
        budget: of the attack.
        clean: (K, L, K) float32, each class's mean P of every layer, as `class_means` gives them.

    Returns:
        (N, C, H, W) float32 in [0, 1], within eps; where nothing fooled the network, the last iterate.

    Raises:
        InputError: the images are not as above, or the network has no gradients (an ONNX file).
    """
    check_images(image, torch.zeros(len(image), dtype=torch.int64))
    layers = [_Layer(each, each.codes.float() * each.scales[:, None]) for each in libraries]
    parts = torch.split(image, BATCH)
    found = []
    with progress_bar(f"{budget.name} eps {budget.eps:g}", len(parts)) as bar:
        for part in parts:
            found.append(_evade(watched, layers, active, part, budget, clean))
            bar.advance()
    return torch.cat(found)


def class_means(inputs: Sequence[Tensor], answer: Tensor, classes: int) -> Tensor:
    """Each class's mean direction of P in every layer, (K, L, K); 0 for a class that nothing was answered with."""
    units = torch.stack([F.normalize(each) for each in inputs], dim=1)
    means = torch.zeros(classes, *units.shape[1:]).index_add_(0, answer, units)
    return F.normalize(means, dim=2)


def _evade(
    watched: Watched, layers: Sequence[_Layer], active: int, image: Tensor, budget: Adaptive, clean: Tensor
) -> Tensor:
    with torch.no_grad():
        logits, _ = watched(image)
    answer = logits.argmax(1)
    scale = margin(logits, answer).clamp(min=1e-3)
    aim = clean[logits.scatter(1, answer[:, None], -torch.inf).argmax(1)]
    best, score = image.clone(), torch.full((len(image),), -torch.inf)
    last = image
    for agreement in (consistency, lambda soft: _towards(soft, aim)):
        point = image.clone()
        for step in range(budget.steps + 1):
            point.requires_grad_(True)
            logits, activity = watched(point)
            if not logits.requires_grad:
                raise InputError("the network has no gradients, which the adaptive attack needs; attack a run instead")
            near = [layer.similarities(activity[layer.library.layer]) for layer in layers]
            ahead = margin(logits, answer)
            with torch.no_grad():
                cpl = consistency([layer.exact(each, active) for layer, each in zip(layers, near, strict=True)])
                better = (ahead < 0) & (cpl > score)
                best[better], score[better] = point.detach()[better], cpl[better]
            if step == budget.steps:
                break
            soft = [layer.soft(each) for layer, each in zip(layers, near, strict=True)]
            pull = (F.relu(ahead / scale + KAPPA).square() + (1 - agreement(soft)).square()).sum()
            (gradient,) = torch.autograd.grad(pull, point)
            length = budget.eps / 4 * (1 - step / budget.steps)
            moved = point.detach() - length * gradient.sign()
            point = (image + (moved - image).clamp(-budget.eps, budget.eps)).clamp(0, 1)
        last = point.detach()
    missed = score == -torch.inf
    best[missed] = last[missed]
    return best


def _towards(soft: list[Tensor], aim: Tensor) -> Tensor:
    """Mean cosine (N,) of every layer's prediction with that of a class, aim (N, L, K)."""
    return (F.normalize(torch.stack(soft, dim=1), dim=2) * aim).sum(2).mean(1)
