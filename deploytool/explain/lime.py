"""LIME: heat maps from a linear model that is fitted to the classifier's answers around an image.

The network is a black box: any callable will do, an ONNX session as well as a torch module.
"""

from collections.abc import Iterator
from math import exp, sqrt

import numpy as np
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import LimeBase
from sklearn.cluster import KMeans
from torch import Tensor

from deploytool.attacks.checks import check_classes, check_counts, check_images
from deploytool.attacks.victim import Network, Victim
from deploytool.explain.attribution import images_at_once

KERNEL_WIDTH = 0.25
RIDGE = 1.0  # weight of the penalty
COMPACTNESS = 0.4  # one superpixel's width away is as far as a colour that differs by this
ROUNDS = 10  # of k-means; SLIC's


def lime(
    network: Network, image: Tensor, target: Tensor, samples: int = 1000, segments: int = 50, seed: int = 0
) -> Tensor:
    r"""Heat maps of local interpretable model-agnostic explanations, LIME.

        w, v = argmin  sum over z of  pi(z) (p_t(x_z) - w . z - v)^2 + |w|^2                (eqs. 1 and 2)
        pi(z) = sqrt(exp(-D(z)^2 / 0.25^2)),    D(z) = 1 - cos(z, 1) = 1 - sqrt(|z|_1 / S)
        map(i, j) = w of the superpixel that pixel (i, j) belongs to

    z in {0, 1}^S says which of S superpixels are seen, and x_z is the image with all others hidden; p_t is the softmax
    probability of class t. The first z is all 1, the others are fair coins.

    From the paper: the weighted squared loss, the exponential kernel, superpixels as what an explanation is made of.
    From the authors' published code for images, where the paper says otherwise or nothing: the cosine distance of z
    (the paper's is L2 for images) and its width, the kernel's root, ridge regression with a penalty of 1 (the paper's
    is K-Lasso, which keeps K superpixels; all keep their weight here), a hidden superpixel shows its mean colour (the
    paper's is gray). Our choice: how superpixels are made, see `superpixels`; the code uses scikit-image's quickshift.

    Args:
        network: image (N, C, H, W) float32 in [0, 1] -> logits (N, K), in evaluation mode; no gradient is needed.
        image: (N, C, H, W) float32 in [0, 1].
        target: (N,) int64, the class to explain.
        samples: z of each image, each a forward pass; at least 2.
        segments: superpixels of each image at most, up to its pixels.
        seed: of the samples; an image's samples do not depend on the others of the batch.

    Returns:
        (N, H, W) float32, in units of probability; positive where seeing the superpixel speaks for the class.

    Raises:
        InputError: an argument is not as above, or the network answers NaN or infinity.

    Reference: M. T. Ribeiro, S. Singh, C. Guestrin, "Why should I trust you?" Explaining the predictions of any
    classifier, 2016, section 3; sampled and fitted by captum's `LimeBase` with scikit-learn's ridge.
    """
    victim = Victim(network)
    check_images(image, target, "target")
    check_counts({"samples": samples}, low=2)
    check_counts({"segments": segments}, high=image[0, 0].numel())
    check_classes(target, victim.logits(image[:1]).shape[1], "target")
    maps = []
    for picture, label, where in zip(image, target.tolist(), superpixels(image, segments), strict=True):
        hidden, count = _means(picture.flatten(1), where.flatten())[:, where], int(where.max()) + 1
        drawn = torch.rand(samples, count, generator=torch.Generator().manual_seed(seed)) < 0.5
        drawn[0] = True
        fit = LimeBase(
            lambda shown, label=label: victim.logits(shown).softmax(1)[:, label],
            SkLearnRidge(alpha=RIDGE),
            similarity_func=_similarity,
            perturb_func=_each_row,
            perturb_interpretable_space=True,
            from_interp_rep_transform=_shown,
            to_interp_rep_transform=None,
        )
        weight = fit.attribute(
            picture[None],
            n_samples=samples,
            perturbations_per_eval=images_at_once(image),
            rows=drawn.to(image.device),
            where=where,
            hidden=hidden,
        )
        maps.append(weight.flatten().to(image.device)[where])
    return torch.stack(maps).float()


def superpixels(image: Tensor, segments: int) -> Tensor:
    r"""Divide images into patches of similar colour: k-means over colour and place, after SLIC.

        D^2 = |c - c'|^2 + (m / g)^2 |s - s'|^2,    g = sqrt(H W / segments)

    c is a pixel's colour, s its place in pixels, g the width of a superpixel, m = 0.4 how compact it is. Centres start
    as the means of a grid's fields, at most `segments` of them and as square as can be, so that there is no chance in
    it. Unlike SLIC, colours are the image's own rather than CIELAB, a centre draws pixels from everywhere rather than
    from 2g around it (so m is the upper end of what SLIC's authors use, 1 to 40 of CIELAB's 100), and what is not
    connected is not made so.

    Args:
        image: (N, C, H, W) float32 in [0, 1].
        segments: at most so many, up to the image's pixels.

    Returns:
        (N, H, W) int64, from 0 up without a gap, on the image's device.

    Reference: R. Achanta et al., SLIC superpixels compared to state-of-the-art superpixel methods, 2012, eq. 3.
    """
    height, width = image.shape[2:]
    rows = max(1, min(height, segments, round(sqrt(segments * height / width))))
    columns = min(width, segments // rows)
    scale = COMPACTNESS / sqrt(height * width / segments)
    i, j = (torch.arange(side, dtype=torch.float64) for side in (height, width))
    place = scale * torch.stack(torch.meshgrid(i, j, indexing="ij"), -1).view(-1, 2)
    block = (torch.arange(height) * rows // height)[:, None] * columns + torch.arange(width) * columns // width
    found = []
    for picture in image.cpu().double():
        pixels = torch.cat([picture.flatten(1).T, place], 1)
        start = _means(pixels.T, block.flatten()).T.numpy()
        label = KMeans(len(start), init=start, n_init=1, max_iter=ROUNDS).fit(pixels.numpy()).labels_
        found.append(torch.from_numpy(np.unique(label, return_inverse=True)[1]).view(height, width))  # a gap is closed
    return torch.stack(found).to(image.device)


def _means(values: Tensor, group: Tensor) -> Tensor:
    """Means (C, G) of values (C, P) over the pixels of each group (P,), int64 in 0..G - 1, none of them empty."""
    count = group.bincount()
    return values.new_zeros(len(values), len(count)).index_add_(1, group, values) / count


def _each_row(picture: Tensor, rows: Tensor, **rest: object) -> Iterator[Tensor]:
    yield from torch.split(rows, 1)


def _shown(row: Tensor, picture: Tensor, where: Tensor, hidden: Tensor, **rest: object) -> Tensor:
    return picture.where(row[0][where], hidden)


def _similarity(picture: Tensor, shown: Tensor, row: Tensor, **rest: object) -> float:
    distance = 1 - sqrt(float(row.float().mean()))
    return exp(-(distance**2) / (2 * KERNEL_WIDTH**2))
