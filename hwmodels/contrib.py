"""onnxruntime's own operators in ONNX's terms, so that files it quantised or fused have shapes and layers.

ONNX knows no shapes of what is in domain `com.microsoft`. Those below compute on activations as an operator of ONNX
does, but for scales and zero points; they are read as that one.
"""

from collections.abc import Iterable, Iterator, Mapping

import onnx
from onnx import helper

DOMAIN = "com.microsoft"

# operator -> ONNX's, and which of its operands that one has
EQUIVALENT: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "BiasGelu": ("Gelu", (0,)),
    "FastGelu": ("Gelu", (0,)),
    "FusedConv": ("Conv", (0, 1, 2)),
    "FusedGemm": ("Gemm", (0, 1, 2)),
    "Gelu": ("Gelu", (0,)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearLeakyRelu": ("LeakyRelu", (0,)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearSigmoid": ("Sigmoid", (0,)),
    "QLinearSoftmax": ("Softmax", (0,)),
    "QuickGelu": ("Gelu", (0,)),
}


def in_onnx_terms(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes with onnxruntime's own replaced by ONNX's; those that are not covered stay as they are."""
    for node in nodes:
        covered = node.domain == DOMAIN and not any(each.name == "channels_last" and each.i for each in node.attribute)
        if covered and node.op_type in EQUIVALENT:
            op, positions = EQUIVALENT[node.op_type]
            yield _read_as(node, op, [node.input[i] for i in positions if i < len(node.input)])
        elif covered and node.op_type == "QLinearConcat":  # scale and zero point of the result, then threes
            yield _read_as(node, "Concat", node.input[2::3])
        elif covered and node.op_type == "QGemm" and len(node.input) > 5 and node.output:
            transposed = any(each.name == "transB" and each.i for each in node.attribute)
            weight = f"{node.input[3]}/{node.output[0]}"
            yield helper.make_node("DequantizeLinear", node.input[3:6], [weight], axis=0 if transposed else 1)
            yield _read_as(node, "Gemm", [node.input[0], weight, *node.input[6:7]])
        else:
            yield node


def _read_as(node: onnx.NodeProto, op: str, inputs: Iterable[str]) -> onnx.NodeProto:
    result = onnx.NodeProto()
    result.CopyFrom(node)
    result.op_type, result.domain = op, ""
    result.input[:] = inputs
    return result
