"""Calibration: the range of every activation, measured on images at every setting that a file can be run with.

A range is the smallest and the largest value over all images. Percentiles and the range of least squared error were
measured too, on a trained CIFAR-10 ResNet-20 (0.915 in float32; 1,000 test images, 256 calibration images, two draws
of them; the error is that of the logits, which are up to 59 apart):

    range                    accuracy of INT8    root mean square error
    minimum to maximum       0.916 and 0.915     0.24 and 0.24
    percentile 99.999        0.916 and 0.916     0.23 and 0.23
    percentile 99.99         0.915 and 0.912     0.37 and 0.38
    percentile 99.9          0.915 and 0.916     1.02 and 1.04
    least squared error      0.912 and 0.915     0.25 and 0.24

None is better than the plain one, and 32 images give the same (0.915, 0.23).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from deploytool.errors import ArtefactError
from deploytool.progress import progress_bar
from deploytool.runtime.artefact import Artefact
from deploytool.runtime.graph import Graph
from deploytool.runtime.network import OwnSession
from deploytool.runtime.partial import specialized_graph
from deploytool.runtime.quantized import measured_tensors, with_pooled_means
from deploytool.runtime.ranges import Range, Ranges, RangeSet, calibration_lambdas

Array = np.ndarray[Any, Any]

BATCH = 32
THRESHOLDS = (0.0, 0.5)


def calibrate(artefact: Artefact, images: Array, lambdas: Sequence[float]) -> Ranges:
    """Measure the ranges of a file at each lambda threshold, width and lambda.

    Args:
        artefact: a conditional or slimmable model.
        images: (n, C, H, W) float32 in [0, 1], as the model will see.
        lambdas: where to measure, beside 0, 1 and both sides of the threshold; ignored where it takes no lambda.

    Raises:
        ArtefactError: an activation is NaN or infinite.
    """
    switched = "lambda_threshold" in artefact.graph.constants
    settings = [
        (threshold, width, calibration_lambdas(lambdas, threshold) if artefact.metadata.conditional else (0.0,))
        for threshold in (THRESHOLDS if switched else (None,))
        for width in artefact.metadata.widths
    ]
    found: dict[bytes, dict[str, Range]] = {}  # thresholds have most of their networks in common
    tensors: tuple[str, ...] = ()
    sets = []
    with progress_bar("calibrating", sum(len(each) for _, _, each in settings)) as bar:
        for threshold, width, points in settings:
            rows = []
            for lam in points:
                at = lam if artefact.metadata.conditional else None
                graph = specialized_graph(artefact, at, threshold, width, precision="float32")
                key = _digest(graph)
                if key not in found:
                    found[key] = measure(with_pooled_means(graph), images, str(artefact.path))
                rows.append(found[key])
                bar.advance(f"lambda {lam:g} width {width:g}")
            tensors = tuple(rows[0])
            low, high = (tuple(tuple(row[name][side] for row in rows) for name in tensors) for side in (0, 1))
            sets.append(RangeSet(threshold, width, points, low, high))
    return Ranges(len(images), tensors, tuple(sets))


def measure(graph: Graph, images: Array, name: str) -> dict[str, Range]:
    """Smallest and largest value of each of `measured_tensors` over images (n, C, H, W), onnxruntime computing them.

    Raises:
        ArtefactError: one is NaN or infinite; `name` is the model's, for the message.
    """
    tensors = measured_tensors(graph)
    nodes, outputs = list(graph.nodes), []
    for tensor in tensors:
        for reduction in ("ReduceMin", "ReduceMax"):
            result = f"{tensor}.{reduction}"
            nodes.append(helper.make_node(reduction, [tensor], [result], keepdims=0))
            outputs.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, []))
    session = OwnSession(replace(graph, nodes=tuple(nodes), outputs=tuple(outputs)), 1, name)
    parts = [session.run({"image": images[start : start + BATCH]}) for start in range(0, len(images), BATCH)]
    values = np.array(parts, np.float64).reshape(len(parts), len(tensors), 2)
    low, high = values[..., 0].min(0), values[..., 1].max(0)
    for index, tensor in enumerate(tensors):
        if not np.isfinite([low[index], high[index]]).all():
            raise ArtefactError(f"{name}: activation {tensor} is NaN or infinite; its weights are damaged")
    return dict(zip(tensors, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def _digest(graph: Graph) -> bytes:
    """Equal for graphs that compute the same: those of one file differ in their constants alone."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(graph.constants.items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.digest()
