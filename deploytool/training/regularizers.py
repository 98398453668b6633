"""Penalties on kernels and activations, added to any method's loss.

Kernels are the stored weights theta of convolutions and linear layers, as Keras's kernel regularisers see them:
biases, batch norms, FLOAT's alphas and noise, and OAT's FiLM layers are not penalised. Sums run over all weights
(no mean), and a kernel counts once per step, however many widths and conditions share it. At 0 every penalty's
(sub)gradient is 0, so weights that a mask has pruned are not pushed off 0.

Reference: D. Schwartz, Y. Alparslan, E. Kim, Regularization and sparsity for adversarial robustness and stable
attribution ("paper 2"), sections 2, 4.1 (eq. 5) and 4.2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deploytool.models.activity import Pass
from deploytool.models.conditional import ConditionalModel
from deploytool.recipe import RegularizationSection


def l1(weights: Sequence[Tensor]) -> Tensor:
    """`sum |w|` over all tensors (paper 2, section 2); a scalar with gradient sign(w), 0 at 0."""
    return torch.stack([torch.linalg.vector_norm(weight, 1) for weight in weights]).sum()


def l2(weights: Sequence[Tensor]) -> Tensor:
    """`sum w^2` over all tensors (paper 2, section 2); a scalar with gradient 2 w.

    Half of it, times a factor, is what SGD's weight decay of that factor adds.
    """
    return torch.stack([weight.square().sum() for weight in weights]).sum()


def elastic_net(weights: Sequence[Tensor], alpha: float) -> Tensor:
    """`alpha * sum |w| + (1 - alpha) * sum w^2` (paper 2, section 2), alpha in [0, 1].

    Keras's `L1L2(0.01, 0.01)` is a factor of 0.02 at alpha 0.5.
    """
    return alpha * l1(weights) + (1 - alpha) * l2(weights)


def kernel_penalty(weights: Sequence[Tensor], section: RegularizationSection) -> Tensor | None:
    """`factor * R(w)` of a recipe's kernel penalty (paper 2, eq. 1 and section 4.2); None where it has none."""
    if section.kernel is None or section.factor == 0:
        return None
    if section.kernel == "l1":
        return section.factor * l1(weights)
    if section.kernel == "l2":
        return section.factor * l2(weights)
    return section.factor * elastic_net(weights, section.alpha)


def activation_penalty(passes: Sequence[Pass], lam: float) -> Tensor | None:
    r"""The second term of eq. 5 (paper 2, section 4.1), a mean over images.

        L = V + lam * 1/m * sum_{i=1..m} sum_j |a_ij|        a_ij: hidden neuron j's activation for image i

    V stays the method's own loss, the cross-entropy of the classes; eq. 5 prints the binary one, summed over one-hot
    labels, though the network of Fig. 1 tells ten classes apart. The printed second term names no image; the text
    beside it says "for each example the sum of activations".

    Args:
        passes: the forwards that are trained, m images in all: where a method trains clean and attacked images, both
            count alike, whatever lambda weighs their losses with.
        lam: eq. 5's lambda, at least 0; not the lambda of conditional training.

    Returns:
        A scalar with gradient; None where there is nothing to penalise.
    """
    sums = [value for each in passes for value in each.sums]
    if lam == 0 or not sums:
        return None
    return lam / sum(each.images for each in passes) * torch.stack(sums).sum()


def step_penalty(
    model: ConditionalModel, section: RegularizationSection, passes: Sequence[Sequence[Pass]]
) -> Tensor | None:
    """What a training step adds to its method's loss: the kernel penalty once, the activation penalty per width.

    Args:
        model: whose kernels count.
        section: which penalties, how much.
        passes: of each width, the forwards that are trained; the penalties of the widths are summed, as their losses.

    Returns:
        A scalar with gradient; None where the section penalises nothing.
    """
    terms = [activation_penalty(each, section.activation) for each in passes]
    terms.append(kernel_penalty([model.backbone.get_parameter(name) for name in model.conditioned], section))
    present = [term for term in terms if term is not None]
    return torch.stack(present).sum() if present else None
