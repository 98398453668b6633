"""The cost report of a network: delay, energy and storage of every layer of its workload."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

from hwmodels.activations import Peak, peak_activations
from hwmodels.delay import Chip, Delay, index_bits
from hwmodels.energy import Energy, EnergyCosts, energy_costs, flops, layer_energy, transform_ops
from hwmodels.errors import WorkloadError
from hwmodels.inputs import Sizes
from hwmodels.memory import Fit, ParameterMemory, fits, parameter_memory
from hwmodels.methods import Method, find_method
from hwmodels.notes import report_notes
from hwmodels.profile import Profile, load_profile
from hwmodels.workload import Layer, Workload, read_workload

DEFAULT_PROFILE = "asic-65nm"
FILM_LAYERS = "convolutions that OAT gives a FiLM layer"
ALL_LAYERS = "all convolutions"


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs.

    Attributes:
        layer: the layer.
        params: weights and biases, those of its FiLM layer included.
        nonzero: weights that are not zero.
        transform_ops: operations that condition its weights or its output, for one change of lambda.
        delay: with the method; None, as the next two, where the profile has no times.
        plain: as a plain layer (eq. 7).
        sparse: with the method, reads and multiplications of non-zero weights only: an estimate.
        energy: with the method; None where the profile has no energies.
    """

    layer: Layer
    params: int
    nonzero: int
    transform_ops: int
    delay: Delay | None
    plain: Delay | None
    sparse: Delay | None
    energy: Energy | None

    @property
    def normalized_delay(self) -> float | None:
        """Delay divided by the plain layer's, as in paper 5, Fig. 8(c)."""
        return None if self.delay is None or self.plain is None else self.delay.total_ns / self.plain.total_ns

    def to_dict(self) -> dict[str, Any]:
        """The layer as JSON."""
        return {
            "name": self.layer.name,
            "kind": self.layer.kind,
            "macs": self.layer.macs,
            "params": self.params,
            "flops": flops(self.layer.macs, self.transform_ops),
            "transform_ops": self.transform_ops,
            "nonzero": self.nonzero,
            **_times(self.delay),
            "sparse_aware_ns": None if self.sparse is None else self.sparse.total_ns,
            "normalized_delay": self.normalized_delay,
            "energy_pj": None if self.energy is None else self.energy.total_pj,
            "energy": None if self.energy is None else self.energy.items(),
            "film": self.layer.film,
        }


@dataclass(frozen=True)
class CostReport:
    """What `price` found.

    Attributes:
        workload: the network.
        method: whose equation was applied.
        profile: the technology.
        layers: one entry per layer, in the order of computation.
        density: of the weights, where it was given instead of counted in the file.
    """

    workload: Workload
    method: Method
    profile: Profile
    layers: tuple[LayerCost, ...]
    density: float | None = None

    @cached_property
    def memory(self) -> ParameterMemory:
        """What the method stores at `b_w` bits, itemised, weights dense; sparse encodings are beside them."""
        return parameter_memory(self.workload, self.method, self.profile.b_w, "dense", self.density)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights, FiLM weights and stored noise, dense, of all networks that are stored."""
        return self.memory.sum_bytes("weights", "film", "noise")

    @cached_property
    def encoded_weight_bytes(self) -> int:
        """The same with each layer's weights in the encoding that makes them smallest, index included."""
        best = parameter_memory(self.workload, self.method, self.profile.b_w, "best", self.density)
        return best.sum_bytes("weights", "index", "film", "noise")

    @cached_property
    def peak(self) -> Peak | None:
        """Peak activation memory at `b_w` bits; None for a workload that was not read from a graph."""
        return peak_activations(self.workload.flow, self.profile.b_w) if self.workload.flow.steps else None

    @property
    def sparse(self) -> bool:
        """Whether some weight of some layer is zero."""
        return any(cost.nonzero < cost.layer.weights for cost in self.layers)

    def fit(self, budget_bytes: int) -> Fit:
        """Whether the network fits a memory.

        Raises:
            WorkloadError: the budget is not positive, or the workload was not read from a graph.
        """
        return fits(budget_bytes, self.memory, self.peak or peak_activations(self.workload.flow, self.profile.b_w))

    def totals(self) -> dict[str, Any]:
        """Sums over all layers, and what is known of the whole network alone."""
        energies = [cost.energy for cost in self.layers if cost.energy is not None]
        delays = [cost.delay for cost in self.layers if cost.delay is not None]
        sparse = [cost.sparse.total_ns for cost in self.layers if cost.sparse is not None]
        items = [energy.items() for energy in energies]
        has_times, has_energies = self.profile.chip() is not None, energy_costs(self.profile) is not None
        times = Delay(*(sum(getattr(d, key) for d in delays) for key in ("read_ns", "mult_ns", "transform_ns")))
        return {
            "macs": sum(cost.layer.macs for cost in self.layers),
            "params": sum(cost.params for cost in self.layers),
            "flops": sum(flops(cost.layer.macs, cost.transform_ops) for cost in self.layers),
            "transform_ops": sum(cost.transform_ops for cost in self.layers),
            "nonzero": sum(cost.nonzero for cost in self.layers),
            **_times(times if has_times else None),
            "sparse_aware_ns": sum(sparse) if has_times else None,
            "energy_pj": sum(energy.total_pj for energy in energies) if has_energies else None,
            "energy": {key: sum(item[key] for item in items) for key in items[0]} if items else None,
            "weight_bytes": self.weight_bytes,
            "encoded_weight_bytes": self.encoded_weight_bytes,
            "parameter_bytes": self.memory.bytes,
            "peak_activation_bytes": None if self.peak is None else self.peak.bytes,
            "not_counted": sorted(self.workload.not_counted),
        }

    def normalized(self) -> list[dict[str, Any]]:
        """Minimum, maximum and mean of `normalized_delay` over two sets of layers, each named and counted."""
        convolutions = [cost for cost in self.layers if cost.layer.kind == "conv"]
        groups = {FILM_LAYERS: [cost for cost in convolutions if cost.layer.film], ALL_LAYERS: convolutions}
        rows = []
        for name, costs in groups.items():
            ratios = [ratio for cost in costs if (ratio := cost.normalized_delay) is not None]
            if ratios:
                spread = {"min": min(ratios), "max": max(ratios), "mean": sum(ratios) / len(ratios)}
                rows.append({"over": name, "layers": len(ratios), **spread})
        return rows

    def repriced(self, method: str) -> "CostReport":
        """The same network on the same technology by another method."""
        return price(self.workload, method, self.profile, density=self.density)

    def oat_ratios(self) -> dict[str, float]:
        """OAT's delay (eq. 9) over this method's, by name of each layer that OAT gives a FiLM layer."""
        chip, oat = self.profile.chip(), find_method("oat")
        ratios = {}
        for cost in self.layers:
            if cost.layer.film and chip is not None and cost.delay is not None:
                other = oat.delay(cost.layer.weights, cost.layer.positions, cost.layer.out_channels, chip)
                ratios[cost.layer.name] = other.total_ns / cost.delay.total_ns
        return ratios

    def against_oat(self) -> dict[str, Any] | None:
        """The spread of `oat_ratios`, and where; paper 5's "up to 1.66x" is `max` of FLOAT. None without ratios."""
        ratios = self.oat_ratios()
        if not ratios:
            return None
        low, high = min(ratios, key=lambda name: ratios[name]), max(ratios, key=lambda name: ratios[name])
        return {
            "over": FILM_LAYERS,
            "layers": len(ratios),
            "oat_faster_in": sum(ratio < 1 for ratio in ratios.values()),
            "mean": sum(ratios.values()) / len(ratios),
            "min": ratios[low],
            "min_in": low,
            "max": ratios[high],
            "max_in": high,
        }

    def notes(self) -> list[str]:
        """What a reader must know to use the figures."""
        return report_notes(self)

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON; delays in ns, energies in pJ, parameters and operations as counts."""
        return {
            "file": self.workload.file,
            "images": {name: list(shape) for name, shape in self.workload.images.items()},
            "width": self.workload.width,
            "method": self.method.name,
            "equation": self.method.equation,
            "models": self.method.models,
            "profile": self.profile.to_dict(),
            "layers": [cost.to_dict() for cost in self.layers],
            "totals": self.totals(),
            "normalized": self.normalized(),
            "memory": self.memory.to_dict(),
            "peak": None if self.peak is None else self.peak.to_dict(),
            "oat_over_this": self.against_oat() if self.method.transforms else None,
            "transforms": self.workload.transforms,
            "not_counted": self.workload.not_counted,
            "complete": not self.workload.not_counted,
            "notes": self.notes(),
        }


def cost(
    file: str | os.PathLike[str],
    method: str | None = None,
    profile: str | os.PathLike[str] = DEFAULT_PROFILE,
    overrides: Mapping[str, str | float] | None = None,
    *,
    models: int | None = None,
    density: float | None = None,
    shape: Sizes | Mapping[str, Sizes] | None = None,
    width: float | None = None,
) -> CostReport:
    """Read an ONNX file and price every convolution and linear layer of it: `read_workload`, then `price`.

    Args:
        file: any ONNX file.
        method: as `price`.
        profile: name of a shipped technology profile, or a YAML file.
        overrides: constants of the profile to replace, as `{"b_w": 8}`.
        models, density: as `price`.
        shape, width: as `read_workload`.

    Raises:
        WorkloadError: the file cannot be priced. ProfileError: the profile is not usable. MethodError: the method is
            unknown.
    """
    constants = load_profile(profile).override(overrides or {})
    chosen = None if method is None else find_method(method, models)
    return price(read_workload(file, shape, width), chosen, constants, models=models, density=density)


def price(
    workload: Workload,
    method: str | Method | None = None,
    profile: Profile | None = None,
    *,
    models: int | None = None,
    density: float | None = None,
) -> CostReport:
    """Price every layer of a workload: delay by paper 5's eqs. 7 to 9, energy, operations, storage. Reads no file.

    Args:
        workload: the network.
        method: one of `hwmodels.methods.METHODS` or its name. Where None: the one that the file's metadata names if
            the file still takes `lambda`, `fixed` if it no longer does, else `plain`.
        profile: the technology, asic-65nm by default.
        models: networks that `pgd-at:nt` stores.
        density: share of weights in (0, 1] taken to be non-zero, for `sparse_aware_ns`; where None, counted in the
            file.

    Raises:
        MethodError: the method is unknown. WorkloadError: the density is not in (0, 1].
    """
    if density is not None and not 0 < density <= 1:
        raise WorkloadError(f"density (={density}) must be in (0, 1]; 1 is dense")
    if not isinstance(method, Method):
        method = find_method(method or own_method(workload), models)
    profile = load_profile(DEFAULT_PROFILE) if profile is None else profile
    chip, costs = profile.chip(), energy_costs(profile)
    layers = tuple(_price(layer, method, chip, costs, density) for layer in workload.layers)
    return CostReport(workload, method, profile, layers, density)


def own_method(workload: Workload) -> str:
    """The name of a file's own method: the one its metadata names, unless its lambda was fixed or it never had one."""
    named = workload.properties.get("deploytool.method", "plain")
    if named not in ("float", "oat"):
        return "plain"
    return named if "lambda" in workload.inputs else "fixed"


def _price(
    layer: Layer, method: Method, chip: Chip | None, costs: EnergyCosts | None, density: float | None
) -> LayerCost:
    film_channels = layer.out_channels if layer.film else 0
    film = method.film_weights(film_channels)
    conditioned = layer.weights if method.transforms else 0
    nonzero = layer.nonzero if density is None else ceil(density * layer.weights)
    delay = plain = sparse = energy = None
    if chip is not None:
        work = (layer.positions, film_channels, chip)
        index = index_bits(layer.weights, nonzero, method.tensors * chip.b_w)
        delay, sparse = method.delay(layer.weights, *work), method.delay(nonzero, *work, index)
        plain = find_method("plain").delay(layer.weights, *work)
    if costs is not None:
        energy = layer_energy(
            layer.macs,
            layer.weights,
            layer.in_values,
            layer.out_values,
            costs,
            transformed=conditioned,
            noise_values=layer.weights * (method.tensors - 1),
            film_weights=film,
        )
    return LayerCost(
        layer=layer,
        params=layer.params + film,
        nonzero=nonzero,
        transform_ops=transform_ops(conditioned, film),
        delay=delay,
        plain=plain,
        sparse=sparse,
        energy=energy,
    )


def _times(delay: Delay | None) -> dict[str, float | None]:
    if delay is None:
        return dict.fromkeys(("delay_ns", "read_ns", "mult_ns", "transform_ns"))
    parts = {"read_ns": delay.read_ns, "mult_ns": delay.mult_ns, "transform_ns": delay.transform_ns}
    return {"delay_ns": delay.total_ns, **parts}
