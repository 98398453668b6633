"""Images streaming through a watched network, block by block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deploytool.data.images import Images
from deploytool.errors import InputError
from deploytool.explain.attribution import images_at_once
from deploytool.library.folder import Layer
from deploytool.library.networks import LayerLibrary, consistency, predictions
from deploytool.library.patterns import scale, similarity
from deploytool.library.taps import Watched

BLOCK_VALUES = 1 << 25  # activity values of a block at most: 128 MiB
MOST_IMAGES = 1024


@dataclass(frozen=True)
class Block:
    """Some images as their network sees them.

    Attributes:
        first: index of the first one.
        logits: (B, K); activity: (B, ...) by layer.
    """

    first: int
    logits: Tensor
    activity: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def answer(self) -> Tensor:
        """(B,) int64, the network's own."""
        return self.logits.argmax(1)


def block_size(watched: Watched, image: Tensor) -> int:
    """Images of a block: whole groups of those that the network answers at once, as many as memory allows."""
    group = images_at_once(image)
    _, activity = watched(image[:1])
    values = sum(each.numel() for each in activity.values())
    return max(group, min(MOST_IMAGES, BLOCK_VALUES // max(1, values)) // group * group)


@torch.no_grad()
def blocks(watched: Watched, images: Images, size: int, start: int = 0) -> Iterator[Block]:
    """Activity of images in blocks, in order, from block `start` on.

    Raises:
        InputError: the network answers NaN or infinity.
    """
    for first in range(start * size, len(images), size):
        image, _ = images.batch(slice(first, first + size))
        answers = [watched(part) for part in torch.split(image, images_at_once(image))]
        logits = torch.cat([answer.float().cpu() for answer, _ in answers])
        if not logits.isfinite().all():
            raise InputError("the network answers NaN or infinity; nothing can be learned from it, train it again")
        found = {name: torch.cat([activity[name].cpu() for _, activity in answers]) for name in answers[0][1]}
        yield Block(first, logits, found)


def layer_inputs(
    layer: Layer, activity: Tensor, active: int, first: int = 0, silent: bool = False
) -> dict[float, tuple[Tensor, Tensor]]:
    """What the libraries of a layer say at each threshold; they share patterns, which are compared once.

    Args:
        layer: all its libraries.
        activity: (B, ...) of the layer.
        active: k of eq. 3; no library may have fewer patterns.
        first, silent: as `deploytool.library.patterns.scale`.

    Returns:
        By threshold: similarities to the k nearest patterns (B, k), descending, and inputs to the prediction nodes
        (B, K), eq. 3.
    """
    pattern = scale(layer.reading(activity), layer.section.name, first, silent=silent)
    near = similarity(pattern, layer.codes, layer.scales)
    found = {}
    for theta, own in zip(layer.thetas, layer.member.T, strict=True):
        best = near.masked_fill(~own, -torch.inf).topk(active)
        found[theta] = best.values, predictions(best.values, layer.connections[best.indices])
    return found


def block_inputs(block: Block, libraries: Sequence[LayerLibrary], active: int) -> list[Tensor]:
    """Inputs to the prediction nodes (B, K) of each layer, eq. 3; see `LayerLibrary.predict`."""
    return [library.predict(block.activity[library.layer], active) for library in libraries]


def cpl_of(watched: Watched, images: Images, libraries: Sequence[LayerLibrary], active: int) -> Tensor:
    """CPL (N,) float32 of images, eq. 5."""
    size = block_size(watched, images.batch(slice(0, 1))[0])
    return torch.cat([consistency(block_inputs(each, libraries, active)) for each in blocks(watched, images, size)])
