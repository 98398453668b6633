"""Layers whose feature maps Grad-CAM can read, found by running the network."""

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deploytool.errors import InputError

Size = tuple[int, int]


def feature_layer(network: nn.Module, image: Tensor, name: str | None = None) -> str:
    """Name the layer that Grad-CAM reads; by default the last convolutional feature map.

    That is what the last module gives that has, in the order of execution, the height and width of the last
    convolution's result: the whole last block of a residual network rather than the last convolution inside it, the
    batch norm and activation after a plain one, but no pooling that follows. Convolutions whose result has one pixel
    (squeeze and excitation, classifiers made of 1x1 convolutions, small images shrunk away) do not count.

    Args:
        network: any torch module, in evaluation mode, image -> logits.
        image: (N, C, H, W) float32 in [0, 1]; the first is run.
        name: a submodule, instead of the default.

    Raises:
        InputError: there is no such layer, or it gives no feature map of more than one pixel.
    """
    sizes = feature_sizes(network, image)
    modules = dict(network.named_modules())
    convolutions = [at for at, size in sizes.items() if isinstance(modules[at], nn.Conv2d) and size != (1, 1)]
    names = list(sizes)
    default = None
    if convolutions:
        last = convolutions[-1]
        default = [at for at in names[names.index(last) :] if sizes[at] == sizes[last]][-1]
    if name is None:
        if default is None:
            raise InputError(
                "the network has no convolution with a result of more than one pixel, which Grad-CAM needs; "
                "use sliding-patch"
            )
        return default
    advice = f"the default is {default}" if default else "this network has none: use sliding-patch"
    if name not in modules or not name:
        near = difflib.get_close_matches(name, sizes, n=3, cutoff=0.5)
        guess = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"layer (={name[:80]!r}) is unknown; {guess}{advice}")
    if name not in sizes or sizes[name] == (1, 1):
        found = "one pixel" if name in sizes else "no result of shape (N, K, h, w)"
        raise InputError(f"layer (={name!r}) gives {found}; Grad-CAM needs a feature map; {advice}")
    return name


def feature_sizes(network: nn.Module, image: Tensor) -> dict[str, Size]:
    """Height and width of every submodule's result (N, K, h, w) for image (N, C, H, W), in the order of execution.

    A module ends after those inside it. One that runs more than once stands where it ran last.
    """
    sizes: dict[str, Size] = {}

    def reader(name: str) -> Callable[..., None]:
        def read(module: nn.Module, arguments: Any, result: Any) -> None:
            sizes.pop(name, None)
            if isinstance(result, Tensor) and result.ndim == 4:
                sizes[name] = (result.shape[2], result.shape[3])

        return read

    hooks = [module.register_forward_hook(reader(name)) for name, module in network.named_modules() if name]
    try:
        with torch.no_grad():
            network(image[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return sizes
