"""`library predict`: how often the library of a layer foretells what its network will answer."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from deploytool.data.datasets import load_dataset
from deploytool.data.images import Images
from deploytool.errors import InputError
from deploytool.explain.target import Target
from deploytool.library.folder import Layer, Library
from deploytool.library.networks import check_active
from deploytool.library.streams import Block, block_size, blocks, layer_inputs
from deploytool.library.taps import watch
from deploytool.progress import progress_bar

Row = dict[str, Any]

BEST = 3  # answers that a layer may propose


def predict(
    library: Library, target: Target, lam: float | None = None, active: int | None = None, device: str = "cpu"
) -> Row:
    """Ask the library of every layer and threshold about every test image.

    Args:
        library: the libraries; target: their network.
        lam: lambda; the first that libraries were built at where None.
        active: k of eq. 3; the recipe's where None.
        device: torch device that the network answers on.

    Returns:
        `layers`: for each layer and threshold `{layer, theta, size, features, top1_agreement, top3_agreement,
        top1_accuracy}`: shares of the images, in [0, 1], whose best answer of the library is the network's, whose
        three best hold it, and whose best is the label; `network_accuracy`, `n`, `active`, `lambda`, `library_lambda`
        (at which the libraries that answer were built; None where all share them), `library`, `target`.

    Raises:
        RunError: the libraries are another network's. InputError: lambda is not what it takes, or a library has fewer
        patterns than `active`.

    Reference: paper 4, sections 2.2.1 and 2.2.2, figures 2 and 4.
    """
    library.check_target(target)
    test, active, lam = load_test(library), active or library.recipe.active, default_lambda(library, lam)
    layers = library.layers(lam)
    check_enough(layers, active)
    hits: dict[tuple[int, float], list[int]] = {}
    right = 0
    for block, label in watched_blocks(library, target, test, lam, device):
        right += int((block.answer == label).sum())
        for (place, theta), inputs in block_answers(layers, block, active):
            best = inputs.topk(min(BEST, inputs.shape[1])).indices
            found = [best[:, 0] == block.answer, (best == block.answer[:, None]).any(1), best[:, 0] == label]
            count = hits.setdefault((place, theta), [0, 0, 0])
            count[:] = [total + int(each.sum()) for total, each in zip(count, found, strict=True)]
    rows = []
    for (place, theta), count in sorted(hits.items()):
        top1, top3, accuracy = (each / len(test) for each in count)
        layer = layers[place]
        rows.append(
            {
                "layer": layer.section.name,
                "theta": theta,
                "size": layer.size(theta),
                "features": layer.features,
                "top1_agreement": top1,
                "top3_agreement": top3,
                "top1_accuracy": accuracy,
            }
        )
    return {
        "layers": rows,
        "network_accuracy": right / len(test),
        "n": len(test),
        "active": active,
        **library.origin(target, lam),
    }


def check_enough(layers: Sequence[Layer], active: int) -> None:
    """Raise InputError unless every library has `active` patterns."""
    for layer in layers:
        for theta in layer.thetas:
            check_active(active, layer.size(theta), layer.section.name, theta)


def block_answers(layers: Sequence[Layer], block: Block, active: int) -> Iterator[tuple[tuple[int, float], Tensor]]:
    """Inputs to the prediction nodes (B, K), by the layer's place and the threshold."""
    for place, layer in enumerate(layers):
        found = layer_inputs(layer, block.activity[layer.section.layer], active, block.first)
        for theta, (_, inputs) in found.items():
            yield (place, theta), inputs


def watched_blocks(
    library: Library, target: Target, images: Images, lam: float | None, device: str
) -> Iterator[tuple[Block, Tensor]]:
    """Images as the target sees them, and their labels, block by block."""
    first = images.batch(slice(0, 1))[0]
    watched = watch(target, [layer.section.layer for layer in library.conditions[0]], first, lam, device)
    size = block_size(watched, first)
    with progress_bar("reading layers", -(-len(images) // size)) as bar:
        for block in blocks(watched, images, size):
            yield block, images.labels[block.first : block.first + len(block)]
            bar.advance()


def default_lambda(library: Library, lam: float | None) -> float | None:
    """The lambda asked for, or the first that libraries were built at. Raises InputError where there is none."""
    if library.lambdas == (None,):
        if lam is not None:
            raise InputError(f"target {library.target} takes no lambda; leave --lambda out")
        return None
    return library.lambdas[0] if lam is None else lam


def load_test(library: Library) -> Images:
    """The test images of the libraries' data set."""
    assert library.recipe.data is not None, "building writes it down"
    return load_dataset(library.recipe.data).test
