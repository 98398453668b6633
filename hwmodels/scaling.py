"""What-if: a network with all of its channels scaled, for files that hold one width alone. An estimate.

Pattern before and after, for a width w:

    conv, linear      C_o, C_i                 ceil(w C_o), ceil(w C_i)
    depthwise         C groups of 1            ceil(w C) groups of 1
    grouped           C_o, C_i in G groups     G ceil(w C_o / G), G ceil(w C_i / G) in G groups

The channels of the image and the outputs of the network (classes) stay. What it leaves out: channels that a residual
or a concatenation would force to agree elsewhere, rounding to multiples of 8, and accuracy.
"""

from collections.abc import Collection
from dataclasses import replace
from math import ceil, prod

from hwmodels.activations import Flow
from hwmodels.errors import SweepError
from hwmodels.layers import Layer
from hwmodels.workload import Workload

MAX_WIDTH = 16


def scaled(workload: Workload, width: float) -> Workload:
    """Scale the channels of a network.

    Args:
        workload: as read.
        width: in (0, 16]; 1 returns the network as it is.

    Returns:
        The estimate: zeros keep their share, sizes of images stay; the flow of activations is left out.

    Raises:
        SweepError: the width is out of range.
    """
    if not 0 < width <= MAX_WIDTH:
        raise SweepError(f"width (={width:g}) must be in (0, {MAX_WIDTH}]; 1 is the network as it is")
    if width == 1:
        return workload
    first, last = _ends(workload)
    layers = tuple(
        _scaled(layer, width, inputs=layer.name not in first, outputs=layer.name not in last)
        for layer in workload.layers
    )
    norms = tuple(ceil(width * channels) for channels in workload.norms)
    return replace(workload, layers=layers, norms=norms, flow=Flow())


def _scaled(layer: Layer, width: float, *, inputs: bool, outputs: bool) -> Layer:
    groups, reads, out = layer.groups, layer.in_channels_per_group, layer.out_channels
    if groups > 1 and reads == 1:  # depthwise: one filter per input channel, or several
        groups = ceil(width * groups) if inputs else groups
        out = groups * (layer.out_channels // layer.groups)
    else:
        reads = ceil(width * reads) if inputs else reads
        out = groups * ceil(width * out / groups) if outputs else out
    weights = out * reads * prod(layer.kernel)
    nonzero = -(-layer.nonzero * weights // layer.weights)
    return replace(
        layer,
        groups=groups,
        in_channels_per_group=reads,
        out_channels=out,
        biases=-(-layer.biases * out // layer.out_channels),
        nonzero=nonzero,
        fillers=0 if nonzero == weights else None,
        in_values=-(-layer.in_values * reads * groups // (layer.in_channels_per_group * layer.groups)),
        out_values=-(-layer.out_values * out // layer.out_channels),
    )


def _ends(workload: Workload) -> tuple[Collection[str], Collection[str]]:
    """Names of the layers that read the image, and of those that make the outputs, with no layer between."""
    flow = workload.flow
    if not flow.steps:  # a workload made by hand
        names = [layer.name for layer in workload.layers]
        return names[:1], names[-1:]
    image, outputs = set(flow.images), set(flow.outputs)
    first, last = set(), set()
    for step in flow.steps:
        if image.issuperset(step.reads):
            first.add(step.layer)
            image.update(() if step.layer else step.writes)
    for step in reversed(flow.steps):
        if outputs.intersection(step.writes):
            last.add(step.layer)
            outputs.update(() if step.layer else step.reads)
    return first, last
