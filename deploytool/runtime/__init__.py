"""The edge: numpy, onnx and onnxruntime alone."""

from deploytool.runtime.session import Session
from deploytool.runtime.specialize import specialize

__all__ = ["Session", "specialize"]
