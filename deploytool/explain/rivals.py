"""A surrogate and its rivals, each drawing maps of the same images for the same classes.

| method | sees | passes for an image |
| --- | --- | --- |
| surrogate | nothing of the target: its own student | 1, of the student and the explanation network |
| rise | the target's answers | `masks` |
| lime | the target's answers | `samples` |
| grad-cam | the target's last feature map and its gradient | 1 forward, and backward to that layer |
| sliding-patch | the target's answers | about 225: a patch of an eighth of the image, by half its side |
| random, center | nothing | 0: controls, which every method has to beat |
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from deploytool.attacks.checks import check_counts
from deploytool.attacks.victim import Network
from deploytool.errors import InputError
from deploytool.explain.attribution import cam, sliding_patch
from deploytool.explain.controls import center_maps, random_maps
from deploytool.explain.layers import feature_layer
from deploytool.explain.lime import lime
from deploytool.explain.rise import rise

SURROGATE, RISE, LIME, GRAD_CAM, PATCH = "surrogate", "rise", "lime", "grad-cam", "sliding-patch"
CONTROLS = ("random", "center")
METHODS = (SURROGATE, RISE, LIME, GRAD_CAM, PATCH, *CONTROLS)
SLOW = (RISE, LIME)  # thousands of passes for an image


@dataclass(frozen=True)
class ComparePlan:
    """What is compared, on which images, with how much effort; the papers' efforts are the defaults.

    Attributes:
        methods: among `METHODS`, without those that need what the target does not give.
        images: so many random test images; all where there are fewer.
        slow_images: the first so many of them are all that RISE and LIME explain.
        masks: of RISE, for an image; at least 1.
        samples: of LIME, for an image; at least 2.
        seed: draws the images, RISE's masks, LIME's samples and the random control. Not the recipe's: explainers are
            to be compared on the same images.

    Raises:
        InputError: a value is not as above.
    """

    methods: Sequence[str] = METHODS
    images: int = 200
    slow_images: int = 50
    masks: int = 4000
    samples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                near = difflib.get_close_matches(str(name).lower(), METHODS, n=1, cutoff=0.5)
                advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(METHODS)}"
                raise InputError(f"method (={str(name)[:40]!r}) is unknown; {advice}")
        if not self.methods:
            raise InputError(f"no method was named; known are {', '.join(METHODS)}")
        check_counts({"images": self.images, "slow_images": self.slow_images, "masks": self.masks})
        check_counts({"samples": self.samples}, low=2)
        check_counts({"seed": self.seed}, low=0, high=2**63 - 1)
        object.__setattr__(self, "methods", tuple(dict.fromkeys(self.methods)))

    def count(self, method: str, images: int) -> int:
        """How many of so many images a method explains."""
        return min(self.slow_images if method in SLOW else self.images, images)


@dataclass(frozen=True)
class Rivals:
    """Networks ready to be explained, and what explains them, all on one device.

    Attributes:
        plan: how much effort to make.
        surrogate: image (N, C, H, W) float32 in [0, 1] -> (logits, saliency (N, 1, H, W) in [0, 1]).
        network: the target, image -> logits (N, K); a module where it has gradients.
        camera: reads the target for Grad-CAM; None where that cannot be.
    """

    plan: ComparePlan
    surrogate: nn.Module
    network: Network
    camera: LayerGradCam | None

    def maps(self, method: str, image: Tensor, target: Tensor, network: Network | None = None) -> Tensor:
        """Maps (N, H, W) on the method's own scale.

        Args:
            method: one of `METHODS`.
            image: (N, C, H, W) float32 in [0, 1].
            target: (N,) int64, the class to explain; the surrogate takes its student's instead.
            network: gives the target's answers instead of `network`, for methods that need answers alone.

        Raises:
            InputError: an effort does not fit the images, or a network answers NaN.
        """
        asked = self.network if network is None else network
        match method:
            case "surrogate":
                with torch.no_grad():
                    return self.surrogate(image)[1][:, 0]  # type: ignore[no-any-return]
            case "rise":
                cells = min(7, *image.shape[2:])
                return rise(asked, image, target, self.plan.masks, cells, seed=self.plan.seed)
            case "lime":
                segments = min(50, image[0, 0].numel())
                return lime(asked, image, target, self.plan.samples, segments, self.plan.seed)
            case "grad-cam":
                assert self.camera is not None, "it was left out"
                return cam(self.camera, image, target)
            case "sliding-patch":
                return sliding_patch(Answers(asked).eval(), image, target, *patch(image))
            case "random":
                return random_maps(image, self.plan.seed)
            case _:
                return center_maps(image)


class Answers(nn.Module):
    """Any network as a module."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Map image (N, C, H, W) to logits (N, K)."""
        return self.network(image)


def patch(image: Tensor) -> tuple[int, int]:
    """Side and stride of the sliding patch in pixels, for image (N, C, H, W): paper 2's 4 and 2, of 32 pixels."""
    side = max(1, min(image.shape[2:]) // 8)
    return side, max(1, side // 2)


def camera(network: Network, image: Tensor) -> LayerGradCam:
    """What reads a network for Grad-CAM, at its last feature map.

    Raises:
        InputError: the network has no gradients, or no feature map.
    """
    if not isinstance(network, nn.Module):
        raise InputError("the target answers without gradients")
    return LayerGradCam(network, network.get_submodule(feature_layer(network, image)))
