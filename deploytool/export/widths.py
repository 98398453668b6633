"""All widths of a slimmable model in one graph, chosen by the scalar input `width`.

    index    = ArgMin(|widths - width|)
    W_w      = Slice(W, 0, Gather(shapes_of_W, index))            the leading block of every weight
    norms_w  = Slice(norms, Gather(starts, index), Gather(ends, index))      each width's own batch norms, end to end

Everything above depends on `width` alone, so a runtime that knows the width folds it away. The weights are stored
once; a further width adds its batch norms.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from deploytool.errors import InputError

Array = np.ndarray[Any, Any]
Shapes = list[tuple[int, ...]]


def width_differences(graphs: Sequence[onnx.GraphProto], own: set[str]) -> tuple[dict[str, Shapes], dict[str, Array]]:
    """Compare the plain graphs of several widths, the widest last.

    Args:
        graphs: one per width, as `backbone_to_onnx` returns them.
        own: names of the backbone's tensors.

    Returns:
        Shapes per width of every tensor of the backbone, and per name of another constant that differs between the
        widths (in the widest graph) its values, stacked: (widths, ...).

    Raises:
        InputError: the graphs differ in more than that.
    """
    values = [{t.name: t for t in graph.initializer} for graph in graphs]
    shapes = {name: [tuple(v[name].dims) for v in values] for name in values[-1] if name in own}
    constants: dict[str, Array] = {}
    if len({len(graph.node) for graph in graphs}) > 1:
        raise _not_together("the number of operators")
    for nodes in zip(*(graph.node for graph in graphs), strict=True):
        widest = nodes[-1]
        if any(node.op_type != widest.op_type or list(node.attribute) != list(widest.attribute) for node in nodes):
            raise _not_together(f"an attribute of {widest.op_type} {widest.name}")
        for names in zip(*(node.input for node in nodes), strict=True):
            if names[-1] in own or names[-1] not in values[-1]:
                continue
            arrays = [numpy_helper.to_array(v[name]) for v, name in zip(values, names, strict=True)]
            if any(array.shape != arrays[-1].shape for array in arrays):
                raise _not_together(f"the shape of a constant of {widest.op_type} {widest.name}")
            if any(not np.array_equal(array, arrays[-1]) for array in arrays):
                constants[names[-1]] = np.stack(arrays)
    return shapes, constants


def _not_together(what: str) -> InputError:
    return InputError(f"{what} depends on the width, so one file cannot hold several; export each with --width")
