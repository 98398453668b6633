"""Workloads made by hand, so that reports can be worked out without a file."""

import pytest

from hwmodels.layers import Layer
from hwmodels.workload import Workload


@pytest.fixture
def small() -> Workload:
    """The start of CIFAR ResNet-34's second stage, half of its first convolution zero, and a linear layer."""
    layers = (
        Layer("stem", "conv", 64, 3, (3, 3), 1024, film=True, in_values=3072, out_values=65536, weight_bits=32),
        Layer("conv", "conv", 128, 64, (3, 3), 256, film=True, nonzero=36864, in_values=65536, out_values=32768),
        Layer("shortcut", "conv", 128, 64, (1, 1), 256, in_values=65536, out_values=32768),
        Layer("head", "linear", 10, 128, (), 1, biases=10, in_values=128, out_values=10),
    )
    return Workload("small.onnx", layers, {"Relu": 3}, {}, ("image", "lambda"), {"deploytool.method": "float"})


@pytest.fixture(scope="session")
def resnet34() -> Workload:
    """ResNet-34 for CIFAR, worked out from He et al. 2016, Table 1: 3, 4, 6 and 3 blocks of two 3x3 convolutions."""
    layers = [Layer("conv1", "conv", 64, 3, (3, 3), 32 * 32, film=True, in_values=3 * 1024, out_values=64 * 1024)]
    before, size = 64, 32
    for stage, (channels, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), start=1):
        for block in range(blocks):
            name, image = f"layer{stage}.{block}", before * size * size
            size = size // 2 if block == 0 and stage > 1 else size
            values = channels * size * size
            ends = {"positions": size * size, "out_values": values}
            layers.append(Layer(f"{name}.conv1", "conv", channels, before, (3, 3), film=True, in_values=image, **ends))
            layers.append(
                Layer(f"{name}.conv2", "conv", channels, channels, (3, 3), film=True, in_values=values, **ends)
            )
            if before != channels:
                layers.append(Layer(f"{name}.shortcut.0", "conv", channels, before, (1, 1), in_values=image, **ends))
            before = channels
    layers.append(Layer("linear", "linear", 10, 512, (), 1, biases=10, in_values=512, out_values=10))
    return Workload("resnet34", tuple(layers), {}, {}, ("image", "lambda"), {"deploytool.method": "float"})
