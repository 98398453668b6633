"""Networks to measure a machine with where none is at hand: shapes of known families, random weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8  # old enough for every onnxruntime that we support
CLASSES = 10


class _Builder:
    """One network, layer after layer; every convolution is followed by a ReLU."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.tensor, self.channels = "image", 3
        self.random = np.random.default_rng(0)

    def conv(self, channels: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> "_Builder":
        layer = f"conv{len(self.weights)}"
        shape = (channels, self.channels // groups, kernel, kernel)
        self._weight(layer, shape, self.channels // groups * kernel * kernel)
        pads = [kernel // 2] * 4
        options = {"kernel_shape": [kernel] * 2, "pads": pads, "strides": [stride] * 2, "group": groups}
        self._node("Conv", [self.tensor, f"{layer}.weight"], layer, **options)
        self._node("Relu", [layer], f"{layer}.relu")
        self.channels = channels
        return self

    def depthwise(self, stride: int = 1) -> "_Builder":
        return self.conv(self.channels, 3, stride, self.channels)

    def add(self, other: str) -> "_Builder":
        self._node("Add", [self.tensor, other], f"{self.tensor}.sum")
        return self

    def save(self, folder: Path) -> Path:
        self._node("GlobalAveragePool", [self.tensor], "pool")
        self._node("Flatten", ["pool"], "flat")
        self._weight("head", (CLASSES, self.channels), self.channels)
        self._node("Gemm", ["flat", "head.weight"], "logits", transB=1)
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, self.size, self.size])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])
        graph = helper.make_graph(self.nodes, self.name, [image], [logits], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        file = folder / f"{self.name}.onnx"
        onnx.save(model, file)
        return file

    def _weight(self, layer: str, shape: tuple[int, ...], reads: int) -> None:
        """Of a size that keeps activations in range (He et al., Delving deep into rectifiers, 2015)."""
        values = self.random.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / reads))
        self.weights.append(numpy_helper.from_array(values, f"{layer}.weight"))

    def _node(self, op: str, reads: Iterable[str], output: str, **options: Any) -> None:
        self.nodes.append(helper.make_node(op, list(reads), [output], name=output, **options))
        self.tensor = output


def save_synthetic(folder: Path) -> list[Path]:
    """Write the networks into a folder: 3x3 stacks, residual and bottleneck blocks, separable ones, and wide late ones.

    Together some 0.24 G multiply-accumulates and 41 MB of weights.
    """
    return [make(folder) for make in (_stack, _residual, _bottleneck, _separable, _late)]


def _stack(folder: Path) -> Path:
    net = _Builder("synthetic-stack", 32).conv(32).conv(32)
    for channels in (64, 128, 256):
        net.conv(channels, stride=2).conv(channels)
    return net.save(folder)


def _residual(folder: Path) -> Path:
    net = _Builder("synthetic-residual", 48).conv(24)
    for channels in (48, 96, 192):
        net.conv(channels, stride=2)
        before = net.tensor
        net.conv(channels).conv(channels).add(before)
    return net.save(folder)


def _bottleneck(folder: Path) -> Path:
    net = _Builder("synthetic-bottleneck", 32).conv(64)
    for channels in (128, 256, 512):
        net.conv(channels // 4, 1).conv(channels // 4, 3, 2).conv(channels, 1)
        before = net.tensor
        net.conv(channels // 4, 1).conv(channels // 4, 3).conv(channels, 1).add(before)
    return net.save(folder)


def _separable(folder: Path) -> Path:
    net = _Builder("synthetic-separable", 64).conv(32, 3, 2)
    for channels, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)):
        net.depthwise(stride).conv(channels, 1)
    return net.save(folder)


def _late(folder: Path) -> Path:
    net = _Builder("synthetic-late", 16).conv(64, 3, 2).conv(256, 3, 2).conv(512).conv(512, 1)
    net.conv(512, 3, 2).conv(512).conv(1024, 1).conv(256, 1, 2)
    return net.save(folder)
