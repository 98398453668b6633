"""From a trained run to one ONNX file with lambda as an input."""
