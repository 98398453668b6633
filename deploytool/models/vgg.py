"""VGG-16 for small images, with batch norm and dropout.

Reference: K. Simonyan, A. Zisserman, Very deep convolutional networks for large-scale image recognition, 2015,
configuration D; for CIFAR as S. Zagoruyko, 92.45% on CIFAR-10 in Torch, 2015 (torch.ch/blog/2015/07/30/cifar.html):
batch norm after each convolution, dropout between them, a classifier of one hidden layer. Two deviations: the
convolutions have no bias, which their batch norms would subtract again, and the hidden linear layer has no batch
norm, so that every batch norm of the network is one that conditioning and folding know.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from deploytool.models.layers import Normalize, initialize, scaled

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
HIDDEN = 512


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five stages, each halved by a max pool; global average; two linear layers.

    Dropout is active in training mode alone: 0.3 in the first stage, 0.4 in the others, 0.5 in the classifier.

    Args:
        channels, classes, mean, std: as in `ResNet`.
        width: multiplier in (0, 1] of all channel counts but the image's and the classes'.
    """

    def __init__(
        self, channels: int, classes: int, mean: Sequence[float], std: Sequence[float], width: float = 1.0
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        previous = channels
        layers: list[nn.Module] = []
        for stage, widths in enumerate(STAGES):
            for index, full in enumerate(widths):
                current = scaled(full, width)
                layers += [nn.Conv2d(previous, current, 3, 1, 1, bias=False), nn.BatchNorm2d(current), nn.ReLU()]
                if index < len(widths) - 1:
                    layers.append(nn.Dropout(0.4 if stage else 0.3))
                previous = current
            layers.append(nn.MaxPool2d(2, ceil_mode=True))  # so that images below 32x32 do not vanish
        self.features = nn.Sequential(*layers)
        hidden = scaled(HIDDEN, width)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(previous, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, classes)
        )
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map image (N, C, H, W) float32 in [0, 1] to logits (N, classes)."""
        x = self.features(self.normalize(image))
        return self.classifier(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]
