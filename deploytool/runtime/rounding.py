"""The arithmetic of INT8: from floats to scales, zero points and integers.

    activation    x ~ s_x (x.q - z_x)    x.q uint8,  s_x = (high - low) / 255,  z_x = round(-low / s_x)
    weight        W ~ s_w W.q            W.q int8,   s_w = max |W_c| / 127 per output channel c; 1 where all are 0
    bias          b ~ s_x s_w b.q        b.q int32

Rounding is half to even, as in ONNX. 0 is exact everywhere: padding and pruned weights stay what they are.

Reference: B. Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only
inference, 2018, section 2.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LEVELS, WEIGHT_LEVELS, BIAS_LEVELS = 255, 127, 1 << 30
TINY = 1e-30  # a scale below this is that of zeros


def activation_scale(low: float, high: float) -> tuple[Array, Array]:
    """Scale (float32) and zero point (uint8) of a range, widened to hold 0; both are scalars."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / LEVELS)
    if scale < TINY:
        return np.array(1, np.float32), np.array(0, np.uint8)
    return np.array(scale), np.array(np.clip(np.rint(-low / scale), 0, LEVELS), np.uint8)


def weight_scales(weight: Array, axis: int = 0) -> Array:
    """`s_w` of every channel on an axis: (C,) float32."""
    scales = _largest(weight, axis) / np.float32(WEIGHT_LEVELS)
    return np.where(scales < TINY, np.float32(1), scales)


def layer_scales(weight: Array, bias: Array, activation: Array, axis: int = 0) -> Array:
    """`s_w` of a layer whose bias (C,) is to fit int32 in steps of `s_x s_w`: (C,) float32.

    Where it would not, `s_w` is larger. A channel without weights gets all of it from its bias; with the scale 1,
    that bias would be rounded to whole `s_x`.
    """
    least = np.abs(bias) / (activation * np.float32(BIAS_LEVELS))
    scales = np.maximum(_largest(weight, axis) / np.float32(WEIGHT_LEVELS), least)
    return np.where(scales < TINY, np.float32(1), scales)


def rounded_weight(weight: Array, scales: Array, axis: int = 0) -> Array:
    """`W.q`: int8 of the weight's shape; a weight is off by half a scale at the most."""
    steps = weight / scales.reshape([-1 if other == axis else 1 for other in range(weight.ndim)])
    np.rint(steps, out=steps)
    np.clip(steps, -WEIGHT_LEVELS, WEIGHT_LEVELS, out=steps)
    return steps.astype(np.int8)


def _largest(weight: Array, axis: int) -> Array:
    """`max |W_c|` of every channel on an axis, without a copy of the weight's size: (C,)."""
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    largest: Array = np.maximum(rows.max(1, initial=0), -rows.min(1, initial=0))
    return largest


def rounded_bias(bias: Array, scales: Array) -> Array:
    """`b.q` (C,) int32 for steps (C,) of `s_x s_w`."""
    return np.rint(bias.astype(np.float64) / scales).astype(np.int32)
