"""Attribution: heat maps of what a classifier's answer rests on, through captum, batches of images at a time.

Both methods work on any torch classifier in evaluation mode that maps image (N, C, H, W) float32 in [0, 1] to logits
(N, K), and explain one class of each image: `target`, as a rule the class that the network predicts
(`predicted_class`). Maps have the image's height and width and the method's own scale.
"""

from collections.abc import Iterator

import torch
from captum.attr import LayerAttribution, LayerGradCam, Occlusion
from torch import Tensor, nn

from deploytool.attacks.checks import check_between, check_classes, check_counts, check_images
from deploytool.errors import InputError
from deploytool.explain.layers import feature_layer

GRAY = 0.5  # the paper's patch is gray; images are in [0, 1]
# Images of one forward pass at most. A CPU is fastest while activations stay in its cache: ResNet-20 on 32x32 images
# takes 1.6 times as long with 64 as with 32, 2.5 times as long again with 1024.
CPU_IMAGES, GPU_IMAGES = 32, 1024
FORWARD_VALUES = 2**22  # their values in all at most: 16 MiB, captum holds a few times that
ROUNDING = 1e-6  # of float32 arithmetic in a network, relative to its largest logit


def predicted_class(network: nn.Module, image: Tensor) -> Tensor:
    """The class with the highest logit of each image.

    Args:
        network: in evaluation mode, image (N, C, H, W) float32 in [0, 1] -> logits (N, K).
        image: (N, C, H, W) float32 in [0, 1].

    Returns:
        (N,) int64.

    Raises:
        InputError: an argument is not as above, or the network answers NaN or infinity.
    """
    check_images(image, torch.zeros(len(image), dtype=torch.int64, device=image.device))
    return torch.cat([_answer(network, part).argmax(1) for (part,) in _parts(image)])


def sliding_patch(
    network: nn.Module, image: Tensor, target: Tensor, size: int = 4, stride: int = 2, fill: float = GRAY
) -> Tensor:
    r"""Heat maps of a patch that slides over the image and hides what is under it.

        map(i, j) = mean over the patches q that cover pixel (i, j) of  p_t(x) - p_t(x with all of q = fill)

    p_t is the softmax probability of class t, x the image. The first patch lies at the top left corner, the next ones
    `stride` further right and down until the image is covered; where (H - size) or (W - size) is no multiple of the
    stride, the last patches are cut off at the border. All channels are hidden at once.

    The difference is taken between the probabilities of all other classes, 1 - p_t, summed: a confident network has
    p_t = 1 - 1e-8, of which rounding would leave no map. Differences that float32 arithmetic in the network explains
    are set to 0.

    Args:
        network: in evaluation mode, image -> logits (N, K).
        image: (N, C, H, W) float32 in [0, 1].
        target: (N,) int64, the class to explain.
        size: side of the square patch in pixels, at most the image's height and width.
        stride: pixels from one patch to the next, at most `size`: else some pixels would never be hidden.
        fill: the patch's value in [0, 1].

    Returns:
        (N, H, W) float32 in [-1, 1]; positive where hiding the pixels takes from the class.

    Raises:
        InputError: an argument is not as above, or the network answers NaN or infinity.

    Reference: M. D. Zeiler, R. Fergus, Visualizing and understanding convolutional networks, 2014, section 2.2 (the
    occluder); computed by captum's `Occlusion`.
    """
    check_images(image, target, "target")
    check_patch(size, stride, image)
    check_between("fill", fill, 0, 1)
    channels = image.shape[1]
    occlusion = Occlusion(lambda hidden, classes: -_doubt(network(hidden), classes))
    maps = []
    for part, classes in _parts(image, target):
        logits = _answer(network, part, classes)
        doubt = _doubt(logits, classes)
        found = occlusion.attribute(
            part,
            sliding_window_shapes=(channels, size, size),
            strides=(channels, stride, stride),
            baselines=float(fill),
            additional_forward_args=classes,
            perturbations_per_eval=max(1, images_at_once(image) // len(part)),
        )[:, 0]
        noise = ROUNDING * logits.abs().amax(1) * doubt * (1 - doubt)
        maps.append(_finite(found).where(found.abs() > noise[:, None, None], 0.0))
    return torch.cat(maps)


def grad_cam(network: nn.Module, image: Tensor, target: Tensor, layer: str | None = None) -> Tensor:
    r"""Heat maps of gradient-weighted class activation mapping, Grad-CAM.

        a_k = mean over (i, j) of  d y_t / d A_k(i, j)                                                 (eq. 1)
        map = upsampled( ReLU( sum over k of  a_k A_k ) )                                              (eq. 2)

    y_t is the logit of class t, A_k channel k of a layer's feature map. The sum is upsampled bilinearly to the image.

    Args:
        network: in evaluation mode, image -> logits (N, K).
        image: (N, C, H, W) float32 in [0, 1].
        target: (N,) int64, the class to explain.
        layer: name of a submodule that gives a feature map (N, K, h, w); None: the last convolutional one, see
            `deploytool.explain.layers.feature_layer`.

    Returns:
        (N, H, W) float32 from 0 up, in units of the logit; all 0 where nothing in the layer speaks for the class.

    Raises:
        InputError: an argument is not as above, the network has no such layer, or it answers NaN or infinity.

    Reference: R. R. Selvaraju, M. Cogswell, A. Das, R. Vedantam, D. Parikh, D. Batra, Grad-CAM: visual explanations
    from deep networks via gradient-based localization, 2017, eqs. 1 and 2; computed by captum's `LayerGradCam`.
    """
    check_images(image, target, "target")
    _answer(network, image[:1])
    method = LayerGradCam(network, network.get_submodule(feature_layer(network, image, layer)))
    maps = []
    for part, classes in _parts(image, target):
        _answer(network, part, classes)
        maps.append(cam(method, part, classes))
    return _finite(torch.cat(maps))


def cam(method: LayerGradCam, image: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM's maps in one forward and one backward pass, nothing checked: what the method itself costs."""
    coarse: Tensor = method.attribute(image, target, relu_attributions=True).detach()
    maps: Tensor = LayerAttribution.interpolate(coarse, tuple(image.shape[2:]), "bilinear")
    return maps[:, 0]


def check_patch(size: int, stride: int, image: Tensor) -> None:
    """Raise InputError unless a patch of that size and stride covers image (N, C, H, W)."""
    check_counts({"patch size": size, "stride": stride})
    height, width = image.shape[2:]
    if size > min(height, width):
        raise InputError(f"patch size (={size}) must be at most {min(height, width)}: images are {height}x{width}")
    if stride > size:
        raise InputError(
            f"stride (={stride}) must be in 1..{size}, the patch's size; pixels between patches would never be hidden"
        )


@torch.no_grad()
def _answer(network: nn.Module, image: Tensor, target: Tensor | None = None) -> Tensor:
    """The logits (N, K) of a network that is what its callers need."""
    if network.training:
        raise InputError("the network is in training mode, where answers depend on the batch; call network.eval()")
    logits = network(image)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(image):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(f"the network answers {found} to {len(image)} images; expected logits (N, K)")
    if target is not None:
        check_classes(target, logits.shape[1], "target")
    return _finite(logits)


def _doubt(logits: Tensor, target: Tensor) -> Tensor:
    """1 - p_t (N,), exact to the last digit however close p_t is to 1."""
    return logits.softmax(1).scatter(1, target[:, None], 0.0).sum(1)


def _finite(answer: Tensor) -> Tensor:
    if not answer.isfinite().all():
        raise InputError("the network answers NaN or infinity; nothing can be attributed, train it again")
    return answer


def _parts(image: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of all tensors for each forward pass."""
    for start in range(0, len(image), images_at_once(image)):
        yield tuple(tensor[start : start + images_at_once(image)] for tensor in (image, *others))


def images_at_once(image: Tensor) -> int:
    """Images of one forward pass."""
    most = CPU_IMAGES if image.device.type == "cpu" else GPU_IMAGES
    return max(1, min(most, FORWARD_VALUES // image[0].numel()))
