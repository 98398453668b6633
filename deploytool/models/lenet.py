"""The small network of paper 4: a variation of LeNet-5 with two convolutions and two linear layers.

Reference: J. H. Lee, Library network, a possible path to explainable neural networks, 2019 ("paper 4"), section 4: the
network of PyTorch's MNIST example (github pytorch/examples, 2018), after Y. LeCun, L. Bottou, Y. Bengio, P. Haffner,
Gradient-based learning applied to document recognition, 1998. Two deviations: the convolutions are padded by 2, so that
images from 4x4 up fit, digits' 8x8 among them (28x28 give 50 * 7 * 7 features for the example's 50 * 4 * 4); and their
weights start as those of the other backbones.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from deploytool.errors import RecipeError
from deploytool.models.layers import Normalize, initialize, scaled

FILTERS, KERNEL, HIDDEN = (20, 50), 5, 500
SMALLEST = 4  # each of the two pools halves it


class LeNet(nn.Module):
    """Two 5x5 convolutions of 20 and 50 filters, padded by 2, two linear layers of 500 and `classes`; no batch norm.

    A module answers with a layer's activity: `conv1` (N, 20, H // 2, W // 2) and `conv2` (N, 50, H // 4, W // 4),
    rectified and max-pooled; `fc1` (N, 500), rectified; `linear` (N, classes), the logits.

    Args:
        shape: (C, H, W) of an image; H and W at least 4. The first linear layer fits this size alone.
        classes, mean, std, width: as in `ResNet`.

    Raises:
        RecipeError: the images are smaller than 4x4.
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
        if min(height, columns) < SMALLEST:
            raise RecipeError(
                f"model.arch (=lenet) needs images of at least {SMALLEST}x{SMALLEST} pixels; "
                f"these have {height}x{columns}"
            )
        first, second = (scaled(filters, width) for filters in FILTERS)
        hidden = scaled(HIDDEN, width)
        self.normalize = Normalize(mean, std)
        self.conv1 = _halving(channels, first)
        self.conv2 = _halving(first, second)
        self.fc1 = nn.Sequential(nn.Linear(second * (height // 4) * (columns // 4), hidden), nn.ReLU())
        self.linear = nn.Linear(hidden, classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map image (N, C, H, W) float32 in [0, 1] to logits (N, classes)."""
        x = self.conv2(self.conv1(self.normalize(image)))
        # with x.flatten(1) the exported graph would compute its sizes anew for every batch
        return self.linear(self.fc1(x.reshape(-1, self.fc1[0].in_features)))  # type: ignore[no-any-return]


def _halving(channels: int, filters: int) -> nn.Sequential:
    """A convolution that keeps height and width, a rectifier, and a pool that halves both."""
    return nn.Sequential(nn.Conv2d(channels, filters, KERNEL, padding=KERNEL // 2), nn.ReLU(), nn.MaxPool2d(2))
