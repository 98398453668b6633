"""The plain backbone as an ONNX graph whose initializers carry the state's names."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

OPSET = 18


def backbone_to_onnx(backbone: nn.Module, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """Trace a plain backbone in evaluation mode.

    Batch norms stay nodes of their own (torch's optimizer would fold them into convolutions, and the condition
    acts on both apart). Constants are folded, zero biases that torch spells out are dropped, and whatever the
    exporter recorded of this machine's source files is removed.

    Args:
        backbone: image (N, C, H, W) float32 in [0, 1] -> logits (N, K), with a second head (N, K + R).
        shape: (C, H, W); height and width are fixed in the graph, N is free.

    Returns:
        A model with input `image`, output `logits`, opset 18; initializers are named as in
        `backbone.named_parameters()` and `named_buffers()`, nodes after the layers whose weights they use.
    """
    import onnx_ir
    from onnx_ir.passes import common as passes
    from onnxscript.optimizer import fold_constants

    training = backbone.training
    backbone.eval()
    with _quiet():
        program = torch.onnx.export(
            backbone,
            (torch.zeros(2, *shape),),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            verbose=False,
        )
    backbone.train(training)
    assert program is not None
    graph = program.model
    fold_constants(graph)
    for clean in (
        passes.IdentityEliminationPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),
    ):
        clean(graph)
    model = onnx_ir.to_proto(graph)
    own = {name for name, _ in [*backbone.named_parameters(), *backbone.named_buffers()]}
    _drop_zero_biases(model.graph, own)
    _name_nodes(model.graph)
    del model.graph.value_info[:]
    model.ClearField("metadata_props")
    model.producer_name, model.producer_version = "deploytool", ""
    model.graph.name = "model"
    return model


def drop_unused_initializers(graph: onnx.GraphProto) -> None:
    """Remove initializers that no node reads."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _drop_zero_biases(graph: onnx.GraphProto, own: set[str]) -> None:
    zeros = {
        tensor.name
        for tensor in graph.initializer
        if tensor.name not in own
        and tensor.data_type == onnx.TensorProto.FLOAT
        and not np.any(numpy_helper.to_array(tensor))
    }
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and node.input[2] in zeros:
            del node.input[2]
    drop_unused_initializers(graph)


def _name_nodes(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        weight = next((name for name in node.input if name.endswith(".weight")), None)
        if weight is not None:
            node.name = weight.removesuffix(".weight")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter off stdout and stderr, which carry this tool's own words alone."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
