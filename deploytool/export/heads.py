"""From one answer of a network with two heads to the two outputs of a file.

    before:  answer    = Concat(logits, reasoning logits)            (N, K + R)

    after:   logits    = logits                                      (N, K)
             reasoning = Sigmoid(reasoning logits)                   (N, R)

A runtime that is asked for logits alone computes nothing of the second head. Paper 1, section 3.2: the probabilities
of reasoning labels are those of R binary problems.
"""

import onnx
from onnx import helper

LOGITS, REASONING = "logits", "reasoning"


def split_heads(model: onnx.ModelProto, reasons: int) -> onnx.ModelProto:
    """Give a graph of a network with a second head its two outputs, in place, and return it.

    Args:
        model: as `backbone_to_onnx` returns it; its output ends in a concatenation of logits and reasoning logits.
        reasons: R; a graph without a second head, where it is 0, stays as it is.
    """
    if not reasons:
        return model
    graph = model.graph
    (answer,) = graph.output
    (joined,) = (node for node in graph.node if answer.name in node.output)
    assert joined.op_type == "Concat" and len(joined.input) == 2, "a network with two heads ends in torch.cat"
    logits, reasoning = joined.input
    graph.node.remove(joined)
    for node in graph.node:  # the second head may read the logits
        node.input[:] = [LOGITS if name == logits else name for name in node.input]
        node.output[:] = [LOGITS if name == logits else name for name in node.output]
    graph.node.append(helper.make_node("Sigmoid", [reasoning], [REASONING], f"{REASONING}.sigmoid"))
    batch, whole = answer.type.tensor_type.shape.dim
    sizes = {LOGITS: whole.dim_value - reasons, REASONING: reasons}
    kind = answer.type.tensor_type.elem_type
    outputs = [helper.make_tensor_value_info(name, kind, [batch.dim_param, size]) for name, size in sizes.items()]
    del graph.output[:]
    graph.output.extend(outputs)
    return model
