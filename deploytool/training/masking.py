"""Explained images: what is left of an image where its saliency map says so."""

import torch
from torch import Tensor

from deploytool.explain.faithfulness import blurred
from deploytool.explain.recipe import ExplanationSection

LEAST_SPREAD = 1e-6  # of evidence
SOFTNESS = 0.2


def explained_image(image: Tensor, evidence: Tensor, section: ExplanationSection, draws: torch.Generator) -> Tensor:
    """An image with its important pixels alone: M * x + (1 - M) * background.

    The paper's M is the map, H = sigmoid(evidence), its background 0: H * x. The blur is the one insertion starts from.
    With `ranked`, the second half of the images has ranked masks; the first keeps the maps, else nothing would say how
    bright they are.

    Args:
        image: x (N, C, H, W) float32 in [0, 1].
        evidence: (N, 1, H, W), the map's logits.
        section: `mask` and `background`.
        draws: on the CPU; of ranked masks.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Reference: H. Lee, S. Kim, Explaining neural networks using attentive knowledge distillation, 2021, section 3.4.
    """
    mask = evidence.sigmoid()
    if section.mask == "ranked":
        half = -(-len(image) // 2)
        mask = torch.cat([mask[:half], ranked_mask(evidence[half:], draws)])
    if section.background == "black":
        return mask * image
    return torch.lerp(blurred(image), image, mask)


def ranked_mask(evidence: Tensor, draws: torch.Generator) -> Tensor:
    r"""The most important pixels of each map, a random share of them, softly.

        u = standardised(evidence),   t = the q-quantile of u,   q ~ U(0, 1),   M = sigmoid((u - t) / T)

    Insertion and deletion look at the order of the pixels alone, at every share of them. H * x looks at one share, the
    one that lambda buys, and where H is 1 its pixels have no order. T is in standard deviations of u.

    Args:
        evidence: (N, 1, H, W), the map's logits.
        draws: on the CPU.

    Returns:
        M (N, 1, H, W) in [0, 1].
    """
    shape = evidence.shape
    spread = evidence.std((2, 3), keepdim=True) + LEAST_SPREAD
    evidence = ((evidence - evidence.mean((2, 3), keepdim=True)) / spread).flatten(1)
    rank = (torch.rand(shape[0], 1, generator=draws) * evidence.shape[1]).long().to(evidence.device)
    threshold = evidence.detach().sort(1).values.gather(1, rank)
    return torch.sigmoid((evidence - threshold) / SOFTNESS).view(shape)
