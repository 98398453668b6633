"""hwmodels: what a convolutional network costs in hardware, read from any ONNX file.

Imports neither torch nor deploytool. Names are imported on first use.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOME = {
    "CostReport": "hwmodels.cost",
    "HwModelsError": "hwmodels.errors",
    "Profile": "hwmodels.profile",
    "Workload": "hwmodels.workload",
    "cost": "hwmodels.cost",
    "load_profile": "hwmodels.profile",
    "read_workload": "hwmodels.workload",
}

__all__ = ["CostReport", "HwModelsError", "Profile", "Workload", "cost", "load_profile", "read_workload"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hwmodels' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


class _Package(ModuleType):
    """A package whose `cost` stays the function when the submodule of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
