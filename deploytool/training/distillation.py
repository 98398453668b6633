r"""The losses of a surrogate explainer (paper 3, eqs. 4 to 11), means over a batch.

    L_soft = t^2 * KL( softmax(z_T / t) || softmax(z_S / t) )                                        (eq. 6)
    L_hard = CE( softmax(z_S), label )                                                               (eq. 7)
    L_KD   = alpha * L_soft + (1 - alpha) * L_hard                                                   (eq. 4)
    L_EXP  = KL( softmax(z_T(x)) || softmax(z_?(H * x)) )                                            (eq. 9)
    J_EXP  = L_EXP + lambda * |H|_1                                                                  (eq. 8)
    L      = L_KD + L_EXP + lambda * |H|_1                                                           (eq. 11)

z_T, z_S are the logits of target and student, H the saliency map, t the temperature. Eq. 7 is printed with the target's
answer, a constant that teaches the student nothing; "unlike typical distillation" the paper changes the student's size
alone, so the student's answer is meant, and taken here. Eq. 9 is printed with z_S for the explained image H * x, while
section 3.1 says that "the outputs of T for x_0 and its explanation should be similar", z_T: whose logits are passed in
is the caller's choice.

Reference: H. Lee, S. Kim, Explaining neural networks using attentive knowledge distillation, 2021.
"""

from torch import Tensor
from torch.nn import functional as F


def soft_loss(student: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Eq. 6, of logits (N, K): how far the student's probabilities are from the target's; a scalar from 0 up."""
    log_s, log_t = (F.log_softmax(logits / temperature, 1) for logits in (student, target))
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def distillation_loss(student: Tensor, target: Tensor, label: Tensor, alpha: float, temperature: float) -> Tensor:
    """Eq. 4, of logits (N, K) and true classes (N,) int64: a scalar from 0 up."""
    return alpha * soft_loss(student, target, temperature) + (1 - alpha) * F.cross_entropy(student, label)


def explanation_loss(explained: Tensor, target: Tensor, saliency: Tensor, l1: float) -> Tensor:
    """Eq. 8, a scalar from 0 up.

    Args:
        explained: logits (N, K) for the explained images H * x.
        target: the target's logits (N, K) for x.
        saliency: H (N, 1, H, W) in [0, 1].
        l1: lambda, of the sum over the pixels of a map.
    """
    return soft_loss(explained, target) + l1 * saliency.sum((1, 2, 3)).mean()
