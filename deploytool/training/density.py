"""How sparse a model has become: its activations, and its weights.

Reference: D. Schwartz, Y. Alparslan, E. Kim, Regularization and sparsity for adversarial robustness and stable
attribution ("paper 2"), section 4.1.
"""

from typing import Any

import torch

from deploytool.data.images import Images
from deploytool.models.activity import activity_ratio
from deploytool.models.conditional import ConditionalModel
from deploytool.models.setting import Setting

NEAR_ZERO = 1e-3
IMAGES = 512


@torch.no_grad()
def zero_weights(model: ConditionalModel, near: float = NEAR_ZERO) -> tuple[float, float]:
    """Shares in [0, 1] of the convolution and linear weights that are exactly 0, and that are below `near` in size.

    The L1 norm drives weights exactly to 0 where a solver sets them there (paper 2, section 2); SGD's subgradients
    step over 0 and back, so most of them end near it. The second share holds the first.
    """
    weights = [model.backbone.get_parameter(name) for name in model.conditioned]
    total = sum(weight.numel() for weight in weights)
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    small = sum(int((weight.abs() < near).sum()) for weight in weights)
    return zeros / total, small / total


def density_metrics(model: ConditionalModel, test: Images) -> dict[str, Any]:
    """Sparsity of a model at lambda 0 and width 1, on the first 512 test images at most.

    Returns:
        `activity_ratio`, of the whole network, and `activity_ratios`, by layer: see
        `deploytool.models.activity.activity_ratio`; `zero_weights` and `near_zero_weights` as `zero_weights` gives
        them. All in [0, 1].
    """
    image, _ = test.head(IMAGES).batch(slice(None))
    device = next(model.parameters()).device
    activity = activity_ratio(model, image.to(device), Setting(noise="none"))
    zeros, small = zero_weights(model)
    return {
        "activity_ratio": activity.ratio,
        "activity_ratios": activity.ratios,
        "zero_weights": zeros,
        "near_zero_weights": small,
    }
