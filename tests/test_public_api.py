"""The names that deploytool and hwmodels promise, and that importing them costs nothing."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import deploytool
import hwmodels

HEAVY = {"torch", "torchvision", "numpy", "onnx", "onnxruntime", "pydantic", "yaml", "sklearn", "matplotlib"}
PACKAGES = pytest.mark.parametrize("package", [deploytool, hwmodels], ids=lambda package: package.__name__)


@PACKAGES
def test_all_is_sorted_and_has_no_name_twice(package: ModuleType) -> None:
    assert package.__all__ == sorted(set(package.__all__))


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in (deploytool, hwmodels) for name in package.__all__]
)
def test_every_promised_name_can_be_imported(package: ModuleType, name: str) -> None:
    value = getattr(package, name)
    assert isinstance(value, type) or callable(value)
    assert value.__name__ == name and value.__module__.startswith(package.__name__ + ".")
    assert value.__doc__


def test_the_promised_names_are_those_of_their_modules() -> None:
    for name, home in (("export", "export.artefact"), ("train", "training.loop"), ("evaluate", "evaluation")):
        assert getattr(deploytool, name) is getattr(import_module(f"deploytool.{home}"), name)
    assert hwmodels.cost is import_module("hwmodels.report").cost


@PACKAGES
def test_an_unknown_name_is_an_attribute_error(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'nonsense'"):
        _ = package.nonsense


def test_dir_lists_the_promised_names() -> None:
    assert set(deploytool.__all__) <= set(dir(deploytool)) and dir(deploytool) == sorted(dir(deploytool))


def test_the_version_is_that_of_the_package() -> None:
    document = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert deploytool.__version__ == document["project"]["version"]


@PACKAGES
def test_importing_the_package_loads_nothing_heavy(package: ModuleType) -> None:
    code = f"import sys, {package.__name__}; print(sorted({HEAVY!r} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_names_come_one_by_one() -> None:
    code = "import sys\nfrom deploytool import DeploytoolError, Recipe\nassert 'pydantic' in sys.modules\n"
    code += "print(sorted({'torch', 'onnxruntime', 'onnx'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


HOMES = [
    "from hwmodels import cost, CostReport; import hwmodels; again = hwmodels.cost",
    "from hwmodels import CostReport, cost; import hwmodels; again = hwmodels.cost",
    "import hwmodels; hwmodels.CostReport; cost = hwmodels.cost; again = hwmodels.cost",
    "import hwmodels.report; from hwmodels import cost; again = cost",
    "from deploytool.costing import cost_of; import hwmodels; from hwmodels import cost; again = hwmodels.cost",
    "import deploytool; deploytool.load_run; from deploytool import export as cost; again = deploytool.export",
]


@pytest.mark.parametrize("code", HOMES)
def test_a_function_named_like_its_module_is_the_function_whatever_was_imported_before(code: str) -> None:
    check = f"{code}\nprint(callable(cost), callable(again))"
    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "True True"
