"""The single-layer CNN of paper 2: one hidden layer, wide enough to watch how sparse its activations become.

Reference: D. Schwartz, Y. Alparslan, E. Kim, Regularization and sparsity for adversarial robustness and stable
attribution ("paper 2"), section 4.1 and Fig. 1. The paper names no filters: 50 of 5x5 without padding on CIFAR's
32x32 give its 39,200 = 50 * 28 * 28 hidden neurons.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deploytool.errors import RecipeError
from deploytool.models.layers import Normalize, initialize, scaled

FILTERS, KERNEL = 50, 5


class SingleLayerCNN(nn.Module):
    """One 5x5 convolution of 50 filters without padding, rectified, and a linear layer; no batch norm.

    Args:
        shape: (C, H, W) of an image; H and W at least 5. The linear layer fits this size alone.
        classes, mean, std, width: as in `ResNet`.

    Raises:
        RecipeError: the images are smaller than the kernel.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        width: float = 1.0,
    ) -> None:
        super().__init__()
        channels, height, columns = shape
        if min(height, columns) < KERNEL:
            raise RecipeError(
                f"model.arch (=single-layer-cnn) needs images of at least {KERNEL}x{KERNEL} pixels; "
                f"these have {height}x{columns}"
            )
        filters = scaled(FILTERS, width)
        self.normalize = Normalize(mean, std)
        self.conv = nn.Conv2d(channels, filters, KERNEL)
        self.linear = nn.Linear(filters * (height - KERNEL + 1) * (columns - KERNEL + 1), classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map image (N, C, H, W) float32 in [0, 1] to logits (N, classes)."""
        x = torch.relu(self.conv(self.normalize(image)))
        # with x.flatten(1) the exported graph would compute its sizes anew for every batch
        return self.linear(x.reshape(-1, self.linear.in_features))  # type: ignore[no-any-return]
