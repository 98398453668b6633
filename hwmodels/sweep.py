"""What-if: one network on many chips, or many sizes of it, priced at once by the formulas of `hwmodels.report`.

Terms, for a configuration (width, density, bits, n_bank, n_mult):

    network      its width, density and bits: what changes accuracy, of which this model knows nothing
    hardware     n_mult * n_bank, multipliers times banks: a measure of size without area, power or price
    time         delay_ns by the method's equation; sparse_aware_ns, an estimate, once a density is named
    memory       weight_bytes, dense; encoded_weight_bytes once a density is named

Pareto front: the configurations that no other beats, that is, none is at least as good in time, hardware and memory
(and energy, where the profile prices it at every bit width of the sweep) and better in one of them. Less network costs
less in all of them, so the front of everything mostly shows the smallest network; the front of each network, time
against hardware, is kept beside it.

Cheapest configuration within a time: least hardware, then fewest bits, least memory, least time, first in the sweep.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np

from hwmodels.axes import check_axes
from hwmodels.batch import Array, price_chips
from hwmodels.delay import Chip
from hwmodels.energy import energy_costs
from hwmodels.errors import ProfileError, SweepError
from hwmodels.methods import Method, find_method
from hwmodels.notes import SPARSE
from hwmodels.profile import Profile, load_profile
from hwmodels.report import DEFAULT_PROFILE, own_method
from hwmodels.scaling import scaled
from hwmodels.workload import Workload

OWN_WIDTHS, ESTIMATED_WIDTHS = "the file's own", "an estimate: channels scaled, ceil(width * channels)"
NETWORK = ("width", "density", "bits")


@dataclass(frozen=True, eq=False)
class Sweep:
    """What `sweep` found; each column has a value per configuration.

    Attributes:
        workload: the network, at its first width.
        method: whose equation was applied.
        profile: the technology; its own b_w, n_bank and n_mult stand where they are not swept.
        axes: what was swept.
        columns: by name. `width` is NaN where the network has one alone, `energy_pj` where the profile prices none.
        ranked_sparse: whether time and memory are those of the sparse-aware estimate.
        widths: where widths come from; empty where none are swept.
    """

    workload: Workload
    method: Method
    profile: Profile
    axes: Mapping[str, tuple[float, ...]]
    columns: Mapping[str, Array]
    ranked_sparse: bool
    widths: str

    def __len__(self) -> int:
        return len(self.time)

    @property
    def time_key(self) -> str:
        """The column that is the time."""
        return "sparse_aware_ns" if self.ranked_sparse else "delay_ns"

    @property
    def memory_key(self) -> str:
        """The column that is the memory."""
        return "encoded_weight_bytes" if self.ranked_sparse else "weight_bytes"

    @property
    def time(self) -> Array:
        """In ns."""
        return self.columns[self.time_key]

    @cached_property
    def objectives(self) -> tuple[str, ...]:
        """Columns of which less is better."""
        energy = ["energy_pj"] if np.isfinite(self.columns["energy_pj"]).all() else []
        return (self.time_key, "hardware", self.memory_key, *energy)

    @cached_property
    def front(self) -> Array:
        """Which configurations no other beats."""
        return pareto_front(np.stack([self.columns[key] for key in self.objectives], axis=1))

    @cached_property
    def network(self) -> Array:
        """Number of each configuration's network, in the order of the sweep."""
        _, first, number = np.unique(
            np.stack([np.nan_to_num(self.columns[key]) for key in NETWORK], axis=1),
            axis=0,
            return_index=True,
            return_inverse=True,
        )
        place: Array = np.argsort(np.argsort(first))
        return place[number.reshape(-1)]

    @cached_property
    def network_front(self) -> Array:
        """Which configurations no other of the same network beats, in time and hardware."""
        hardware = self.columns["hardware"]
        order = np.lexsort([hardware, self.time, self.network])
        # Each network's values lie below those of the one before, so that the running minimum starts anew with it.
        sizes = hardware[order] - self.network[order] * (int(hardware.max()) + 1)
        smaller = np.append(True, sizes[1:] < np.minimum.accumulate(sizes)[:-1])
        equal = np.append(False, (sizes[1:] == sizes[:-1]) & (self.time[order][1:] == self.time[order][:-1]))
        found = np.zeros(len(self), bool)
        found[order] = smaller[~equal][np.cumsum(~equal) - 1]
        return found

    @cached_property
    def order(self) -> Array:
        """Indices, the fastest first; then least hardware, least memory, first in the sweep."""
        return np.lexsort([self.columns[self.memory_key], self.columns["hardware"], self.time])

    def cheapest(self, target_ms: float) -> int:
        """The index of the cheapest configuration within a time; see above.

        Raises:
            SweepError: the time is not positive, or no configuration is as fast.
        """
        return self._cheapest(target_ms)[0]

    def cheapest_by_network(self, target_ms: float) -> list[int]:
        """The same for each network that can be as fast, the cheapest first."""
        found = self._cheapest(target_ms)
        _, first = np.unique(self.network[found], return_index=True)
        return [found[place] for place in sorted(first.tolist())]

    def _cheapest(self, target_ms: float) -> list[int]:
        """All that are fast enough, the cheapest first."""
        if not (isfinite(target_ms) and target_ms > 0):
            raise SweepError(f"--target-ms (={target_ms:g}) must be a positive number of ms")
        keys = (self.time_key, self.memory_key, "bits", "hardware")
        order = np.lexsort([self.columns[key] for key in keys])
        found: list[int] = order[self.time[order] <= target_ms * 1e6].tolist()
        if not found:
            fastest = int(self.order[0])
            raise SweepError(
                f"no configuration of the sweep takes --target-ms {target_ms:g} or less; the fastest takes "
                f"{self.time[fastest] / 1e6:.4g} ms: {self.name(fastest)}"
            )
        return found

    def name(self, index: int) -> str:
        """A configuration in words: what is swept, and its multipliers and banks."""
        shown = [key for key in self.columns if key in self.axes or key in ("n_bank", "n_mult")]
        return " ".join(f"{key}={self.columns[key][index]:g}" for key in shown)

    def rows(self, indices: Sequence[int] | Array | None = None) -> list[dict[str, Any]]:
        """One row per configuration, the fastest first unless `indices` choose; None where there is no figure."""
        chosen = self.order if indices is None else np.asarray(indices, dtype=np.int64)
        columns = {**self.columns, "front": self.front, "network_front": self.network_front}
        lists = [column[chosen].tolist() for column in columns.values()]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
        for row in rows:
            for key in ("width", "energy_pj"):
                row[key] = row[key] if isfinite(row[key]) else None
        return rows

    def notes(self) -> list[str]:
        """What a reader must know to use the figures."""
        found = []
        if self.workload.not_counted:
            operators = ", ".join(f"{count} {name}" for name, count in sorted(self.workload.not_counted.items()))
            found.append(f"incomplete: not counted are {operators}")
        found.append(
            f"{self.method.equation} of paper 5, one image; hardware is n_mult * n_bank, a measure without area or "
            "power; weight MB (10^6 bytes) are weights, FiLM weights and stored noise"
        )
        better = ", ".join(self.objectives)
        found.append(f"front *: no configuration is as good in all of {better} and better in one")
        if len(set(self.network.tolist())) > 1:
            found.append(
                f"front +: the same among configurations of one network, in {self.time_key} and hardware; width, "
                "density and bits change accuracy, which is not known here, so compare within a network"
            )
        if self.widths:
            found.append(f"widths are {self.widths}")
        if self.ranked_sparse:
            found.append(f"ranked by sparse_aware_ns and encoded bytes. {SPARSE}")
            found.append("delay_ns and energy_pj are dense")
        energy = np.isfinite(self.columns["energy_pj"])
        if self.profile.energies and not energy.all():
            known = sorted(set(self.columns["bits"][energy].tolist()))
            at = f"at {', '.join(map(str, known))} bits alone" if known else "at none of these bits"
            found.append(f"energy is priced {at}, so it does not enter the front")
        return found

    def to_dict(self, target_ms: float | None = None) -> dict[str, Any]:
        """The sweep as JSON, the fastest configuration first.

        Raises:
            SweepError: as `cheapest`.
        """
        target = None
        if target_ms is not None:
            best = self.rows(self.cheapest_by_network(target_ms))
            target = {"target_ms": target_ms, "cheapest": best[0], "by_network": best}
        return {
            "file": self.workload.file,
            "images": {name: list(shape) for name, shape in self.workload.images.items()},
            "method": self.method.name,
            "equation": self.method.equation,
            "profile": self.profile.to_dict(),
            "axes": {key: list(values) for key, values in self.axes.items()},
            "widths": self.widths or None,
            "configurations": len(self),
            "time": self.time_key,
            "objectives": list(self.objectives),
            "target": target,
            "rows": self.rows(),
            "not_counted": self.workload.not_counted,
            "complete": not self.workload.not_counted,
            "notes": self.notes(),
        }


def sweep(
    networks: Workload | Mapping[float, Workload],
    axes: Mapping[str, Sequence[float]],
    method: str | Method | None = None,
    profile: Profile | None = None,
    *,
    models: int | None = None,
    density: float | None = None,
) -> Sweep:
    """Price every combination of some values; each figure is what `price` finds for that combination.

    Args:
        networks: the network, or that of each width on the axis `width`. Of one network alone the others are
            estimates, see `hwmodels.scaling.scaled`.
        axes: values by key of `hwmodels.axes.AXES`; what is left out stays as it is in network and profile.
        method, profile, models, density: as `price`; the profile must have times.

    Raises:
        SweepError: an axis is not usable, there are too many configurations, or the network is too large.
        MethodError: the method is unknown. ProfileError: the profile has no times.
    """
    found = check_axes({**({} if density is None else {"density": [density]}), **axes})
    workloads, widths = _workloads(networks, found.get("width"))
    first = next(iter(workloads.values()))
    profile = load_profile(DEFAULT_PROFILE) if profile is None else profile
    if not isinstance(method, Method):
        method = find_method(method or own_method(first), models)
    chip = profile.chip()
    if chip is None:
        raise ProfileError(f"profile {profile.name} has no times, so nothing can be swept; add --profile asic-65nm")
    own = {"bits": chip.b_w, "n_bank": chip.n_bank, "n_mult": chip.n_mult}
    values = [np.asarray(found.get(key, (own[key],)), np.int64) for key in ("bits", "n_bank", "n_mult")]
    densities = np.asarray(found.get("density", (np.nan,)), np.float64)
    share, bits, n_bank, n_mult = (axis.ravel() for axis in np.meshgrid(densities, *values, indexing="ij"))
    chips = Chip(chip.b_io, bits, n_bank, n_mult, chip.tau_read_ns, chip.tau_mult_ns)
    costs = {each: energy_costs(profile.override({"b_w": each})) for each in np.unique(bits).tolist()}
    parts = []
    for width, workload in workloads.items():
        part = price_chips(workload, method, costs, chips, share if "density" in found else None)
        parts.append({"width": np.full(len(bits), width), **part})
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    swept = {key: each for key, each in found.items() if key in axes or key != "density"}
    return Sweep(first, method, profile, swept, columns, "density" in found, widths)


def pareto_front(points: Array) -> Array:
    """Which points no other beats: none is as small everywhere and smaller somewhere. Equal points stay together.

    Args:
        points: shape (points, objectives), finite.

    Returns:
        Booleans, shape (points,).
    """
    distinct, number = np.unique(points, axis=0, return_inverse=True)  # sorted, so that nothing beats the first left
    best = np.zeros(len(distinct), bool)
    left = np.arange(len(distinct))
    while len(left):
        first = left[0]
        best[first] = True
        left = left[(distinct[left] < distinct[first]).any(axis=1)]
    chosen: Array = best[number.reshape(-1)]
    return chosen


def _workloads(
    networks: Workload | Mapping[float, Workload], widths: Sequence[float] | None
) -> tuple[dict[float, Workload], str]:
    """The network of each width, and where widths come from."""
    if not isinstance(networks, Workload):
        lacks = [f"{width:g}" for width in widths or () if width not in networks]
        if widths is None or lacks:
            raise SweepError(f"networks of widths {', '.join(lacks)} are missing" if lacks else "no width is swept")
        return {width: networks[width] for width in widths}, OWN_WIDTHS
    if widths is None:
        return {np.nan if networks.width is None else networks.width: networks}, ""
    if networks.width is not None:
        raise SweepError(f"{networks.file} has widths of its own; give the network of each instead of an estimate")
    return {width: scaled(networks, width) for width in widths}, ESTIMATED_WIDTHS
