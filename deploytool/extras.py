"""Optional packages: a missing one is answered with the command that installs it."""

from importlib.util import find_spec

from deploytool.errors import MissingExtraError

EXTRAS = {
    "train": (
        "torch",
        "torchvision",
        "torch_pruning",
        "onnxscript",
        "onnx_ir",
        "safetensors",
        "sklearn",
        "tensorboard",
        "matplotlib",
        "captum",
        "faiss",
    ),
}


def require_extra(extra: str, *packages: str) -> None:
    """Raise MissingExtraError unless every package of an extra, or every named one of them, can be imported."""
    missing = [package for package in packages or EXTRAS[extra] if find_spec(package) is None]
    if missing:
        raise MissingExtraError(f"this needs {', '.join(missing)}; install with: pip install 'deploytool[{extra}]'")
