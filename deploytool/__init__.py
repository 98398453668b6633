"""deploytool: compression and export of robust vision models for edge devices.

Names are imported on first use, so that `import deploytool` costs nothing and the edge never loads torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AcceptanceRule": "deploytool.attacks.acceptance",
    "AttackBase": "deploytool.attacks.registry",
    "DeploytoolError": "deploytool.errors",
    "ExplainerRecipe": "deploytool.explain.recipe",
    "LabelMap": "deploytool.labels.label_map",
    "LibraryRecipe": "deploytool.library.recipe",
    "Recipe": "deploytool.recipe",
    "Session": "deploytool.runtime.session",
    "Setting": "deploytool.models.setting",
    "activity_ratio": "deploytool.models.activity",
    "build_library": "deploytool.library.build",
    "deletion": "deploytool.explain.faithfulness",
    "evaluate": "deploytool.evaluation",
    "export": "deploytool.export.artefact",
    "insertion": "deploytool.explain.faithfulness",
    "load_explainer": "deploytool.explain.explainer",
    "load_labels": "deploytool.labels.files",
    "load_library": "deploytool.library.folder",
    "load_recipe": "deploytool.recipe",
    "load_run": "deploytool.training.run",
    "make_attack": "deploytool.attacks.registry",
    "measure_detection": "deploytool.attacks.detection",
    "open_target": "deploytool.explain.target",
    "run_attack": "deploytool.attacks.run",
    "specialize": "deploytool.runtime.specialize",
    "train": "deploytool.training.loop",
    "train_explainer": "deploytool.training.surrogate",
}

__all__ = [
    "AcceptanceRule",
    "AttackBase",
    "DeploytoolError",
    "ExplainerRecipe",
    "LabelMap",
    "LibraryRecipe",
    "Recipe",
    "Session",
    "Setting",
    "activity_ratio",
    "build_library",
    "deletion",
    "evaluate",
    "export",
    "insertion",
    "load_explainer",
    "load_labels",
    "load_library",
    "load_recipe",
    "load_run",
    "make_attack",
    "measure_detection",
    "open_target",
    "run_attack",
    "specialize",
    "train",
    "train_explainer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deploytool' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


class _Package(ModuleType):
    """A package whose `export` stays the function when the submodule of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
