"""The cost report of a network: the delay model applied to its workload."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hwmodels.delay import Delay, film_weights, float_delay, oat_delay, plain_delay
from hwmodels.errors import WorkloadError
from hwmodels.profile import Profile, load_profile
from hwmodels.workload import Layer, Workload, read_workload

METHODS = ("plain", "standard", "pgd-at", "float", "oat")
EQUATIONS = {"float": "eq. 8", "oat": "eq. 9"}  # eq. 7 for all others


@dataclass(frozen=True)
class LayerCost:
    """A layer, its delay with the method, and its delay as a plain layer (eq. 7)."""

    layer: Layer
    delay: Delay
    plain: Delay
    params: int

    @property
    def normalized_delay(self) -> float:
        """Delay divided by the plain layer's, as in paper 5, Fig. 8(c)."""
        return self.delay.total_ns / self.plain.total_ns

    def to_dict(self) -> dict[str, Any]:
        """The layer as JSON."""
        return {
            "name": self.layer.name,
            "kind": self.layer.kind,
            "macs": self.layer.macs,
            "params": self.params,
            "delay_ns": self.delay.total_ns,
            "read_ns": self.delay.read_ns,
            "mult_ns": self.delay.mult_ns,
            "transform_ns": self.delay.transform_ns,
            "normalized_delay": self.normalized_delay,
            "film": self.layer.film,
        }


@dataclass(frozen=True)
class CostReport:
    """What `cost` found.

    Attributes:
        workload: the network.
        method: whose equation was applied.
        profile: the technology.
        layers: one entry per layer, in the order of computation.
    """

    workload: Workload
    method: str
    profile: Profile
    layers: tuple[LayerCost, ...]

    def totals(self) -> dict[str, Any]:
        """Sums over all layers: `macs`, `params`, `delay_ns` and its three parts."""
        return {
            "macs": sum(cost.layer.macs for cost in self.layers),
            "params": sum(cost.params for cost in self.layers),
            "delay_ns": sum(cost.delay.total_ns for cost in self.layers),
            "read_ns": sum(cost.delay.read_ns for cost in self.layers),
            "mult_ns": sum(cost.delay.mult_ns for cost in self.layers),
            "transform_ns": sum(cost.delay.transform_ns for cost in self.layers),
        }

    def normalized(self) -> list[dict[str, Any]]:
        """Minimum, maximum and mean of `normalized_delay` over two sets of layers, each named and counted."""
        convolutions = [cost for cost in self.layers if cost.layer.kind == "conv"]
        groups = {
            "convolutions that OAT gives a FiLM layer": [cost for cost in convolutions if cost.layer.film],
            "all convolutions": convolutions,
        }
        return [
            {
                "over": name,
                "layers": len(costs),
                "min": min(cost.normalized_delay for cost in costs),
                "max": max(cost.normalized_delay for cost in costs),
                "mean": sum(cost.normalized_delay for cost in costs) / len(costs),
            }
            for name, costs in groups.items()
            if costs
        ]

    def notes(self) -> list[str]:
        """What a reader must know to use the figures."""
        notes = [f"{EQUATIONS.get(self.method, 'eq. 7')} of paper 5, one image, reads and multiplications in sequence"]
        notes.append("params are weights and biases of convolutions and linear layers; batch norms are not counted")
        if self.method == "float":
            notes.append("no read is charged for the noise tensor, as printed in the paper")
        if self.method in EQUATIONS:
            notes.append("this prices lambda changing with every image; a fixed lambda folds away and costs eq. 7")
        if self.method == "oat" and not any(cost.layer.film for cost in self.layers):
            notes.append("no convolution that OAT would give a FiLM layer was found")
        if self.workload.free:
            notes.append(f"outside the delay model: {_counts(self.workload.free)}")
        if self.workload.not_counted:
            notes.append(f"incomplete: not counted are {_counts(self.workload.not_counted)}")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON; delays in ns, parameters and MACs as counts."""
        return {
            "file": self.workload.file,
            "method": self.method,
            "profile": {"name": self.profile.name, **self.profile.constants()},
            "layers": [cost.to_dict() for cost in self.layers],
            "totals": self.totals(),
            "normalized": self.normalized(),
            "not_counted": self.workload.not_counted,
            "complete": not self.workload.not_counted,
            "notes": self.notes(),
        }


def cost(
    file: str | os.PathLike[str],
    method: str | None = None,
    profile: str | os.PathLike[str] = "asic-65nm",
    overrides: Mapping[str, str | float] | None = None,
) -> CostReport:
    """Price every convolution and linear layer of an ONNX file with the delay model of paper 5 (eqs. 7 to 9).

    Args:
        file: any ONNX file.
        method: `plain`, `standard` and `pgd-at` are eq. 7, `float` is eq. 8, `oat` is eq. 9 (eq. 7 where OAT has no
            FiLM layer: on shortcuts and linear layers). Where None: the method that the file's metadata names if the
            file still takes `lambda`, else `plain`.
        profile: name of a shipped technology profile, or a YAML file.
        overrides: constants of the profile to replace, as `{"b_w": 8}`.

    Raises:
        WorkloadError: the file cannot be priced, or the method is unknown. ProfileError: the profile is not usable.
    """
    constants = load_profile(profile).override(overrides or {})
    if method is not None and method not in METHODS:
        raise WorkloadError(f"method (={method!r}) is unknown; known: {', '.join(METHODS)}")
    workload = read_workload(file)
    chosen = method or _own_method(workload)
    return CostReport(workload, chosen, constants, tuple(_price(layer, chosen, constants) for layer in workload.layers))


def _own_method(workload: Workload) -> str:
    """A file whose lambda is fixed, or that never had one, costs what a plain network costs."""
    named = workload.properties.get("deploytool.method", "plain")
    return named if "lambda" in workload.inputs and named in EQUATIONS else "plain"


def _price(layer: Layer, method: str, profile: Profile) -> LayerCost:
    plain = plain_delay(layer.weights, layer.positions, profile)
    delay, params = plain, layer.params
    if method == "float":
        delay = float_delay(layer.weights, layer.positions, profile)
    elif method == "oat" and layer.film:
        delay = oat_delay(layer.weights, layer.positions, layer.out_channels, profile)
        params += film_weights(layer.out_channels)
    return LayerCost(layer, delay, plain, params)


def _counts(operators: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(operators.items()))
