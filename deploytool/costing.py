"""The bridge from the command line to `hwmodels`, which knows nothing of deploytool."""

import os
from collections.abc import Iterable

from deploytool.errors import CostError
from hwmodels.cost import CostReport, cost
from hwmodels.errors import HwModelsError


def cost_of(
    file: str | os.PathLike[str],
    method: str | None = None,
    profile: str = "asic-65nm",
    overrides: Iterable[str] = (),
) -> CostReport:
    """Price an ONNX file; arguments as `hwmodels.cost`, `overrides` as `key=value`.

    Raises:
        CostError: whatever hwmodels objects to, in its words.
    """
    values = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise CostError(f"--set {override!r} must have the form key=value, as in n_mult=175")
        values[key.strip()] = value.strip()
    try:
        return cost(file, method=method, profile=profile, overrides=values)
    except HwModelsError as error:
        raise CostError(str(error)) from None
