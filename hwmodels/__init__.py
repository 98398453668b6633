"""hwmodels: what a convolutional network costs in hardware, read from any ONNX file.

Imports neither torch nor deploytool. Names are imported on first use.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Comparison": "hwmodels.compare",
    "CostReport": "hwmodels.report",
    "HwModelsError": "hwmodels.errors",
    "Method": "hwmodels.methods",
    "Profile": "hwmodels.profile",
    "Workload": "hwmodels.workload",
    "compare_costs": "hwmodels.compare",
    "cost": "hwmodels.report",
    "find_method": "hwmodels.methods",
    "load_profile": "hwmodels.profile",
    "price": "hwmodels.report",
    "read_workload": "hwmodels.workload",
}

__all__ = [
    "Comparison",
    "CostReport",
    "HwModelsError",
    "Method",
    "Profile",
    "Workload",
    "compare_costs",
    "cost",
    "find_method",
    "load_profile",
    "price",
    "read_workload",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hwmodels' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
