"""A profile of this machine, fitted to measured layers: the two rates of the delay model.

    time of a layer  ~  a * (bytes of weights)  +  b * (multiply-accumulates),     a, b >= 0

fitted by least squares on the relative error, so that short layers count as much as long ones. Eq. 7 of
`hwmodels.delay` then says the same with

    b_io   = 512 bit          one cache line of 64 bytes
    n_bank = 1
    n_mult = 512 / b_w        what one vector of 64 bytes holds
    tau_read_ns = a * 64,     tau_mult_ns = b * n_mult

but for its ceilings, which add at most one read, and one multiplication per output position, to a layer. The counts
are units, not hardware: only the rates b_io n_bank / tau_read and n_mult / tau_mult are measured.

Eq. 7 has no cost per layer. A third term, c per layer, is fitted beside it and reported, as a measure of what eq. 7
leaves out; it is not in the profile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import yaml

from hwmodels.delay import plain_delay
from hwmodels.errors import MeasureError
from hwmodels.measured import Measured, spearman
from hwmodels.profile import UNITS, Profile

Array = np.ndarray[Any, Any]

LINE_BITS = 512
MIN_LAYERS = 4
FOLDS = 5
LEAST_NS = 1e-9  # for a rate that the fit gives as 0: a profile has positive times


@dataclass(frozen=True)
class Fit:
    """Rates of a machine.

    Attributes:
        ns_per_byte: a, of weights.
        ns_per_mac: b.
        overhead_ns: c, of each layer; 0 where it was not fitted.
    """

    ns_per_byte: float
    ns_per_mac: float
    overhead_ns: float = 0.0

    def predict(self, weight_bytes: Array, macs: Array) -> Array:
        """Time of layers in ns."""
        time: Array = self.ns_per_byte * weight_bytes + self.ns_per_mac * macs + self.overhead_ns
        return time

    def to_dict(self) -> dict[str, float | None]:
        """The rates as JSON, and as rates that people compare machines by."""
        return {
            "ns_per_byte": self.ns_per_byte,
            "ns_per_mac": self.ns_per_mac,
            "overhead_ns": self.overhead_ns,
            "read_gb_per_s": 1 / self.ns_per_byte if self.ns_per_byte > 0 else None,
            "gflops": 2 / self.ns_per_mac if self.ns_per_mac > 0 else None,
        }


def fit_times(weight_bytes: Array, macs: Array, ns: Array, overhead: bool = False) -> Fit:
    """Fit non-negative rates to measured layers by least squares on (fit - time) / time.

    With two or three unknowns the best non-negative solution is found by solving for every set of them in turn.

    Args:
        weight_bytes, macs: of each layer.
        ns: its time; positive.
        overhead: whether to fit a time per layer as well.

    Raises:
        MeasureError: there is no layer, or a time is not positive and finite.
    """
    times = np.asarray(ns, np.float64)
    if not len(times) or not np.isfinite(times).all() or not (times > 0).all():
        raise MeasureError("rates are fitted to measured times; each must be positive, and there must be one")
    terms = [np.asarray(weight_bytes, np.float64), np.asarray(macs, np.float64)]
    terms += [np.ones_like(times)] if overhead else []
    columns = np.stack(terms, axis=1) / times[:, None]
    scale = np.linalg.norm(columns, axis=0)
    scale[scale == 0] = 1
    columns /= scale
    best, least = np.zeros(len(terms)), float(len(times))
    for size in range(1, len(terms) + 1):
        for kept in combinations(range(len(terms)), size):
            solved = np.linalg.lstsq(columns[:, kept], np.ones(len(times)), rcond=None)[0]
            error = float(np.sum((columns[:, kept] @ solved - 1) ** 2))
            if (solved >= 0).all() and error < least:
                best, least = np.zeros(len(terms)), error
                best[list(kept)] = solved
    return Fit(*(best / scale).tolist())


@dataclass(frozen=True)
class Layers:
    """Measured layers of one network as arrays: weights, positions, time in ns."""

    file: str
    weights: Array
    positions: Array
    ns: Array

    @property
    def macs(self) -> Array:
        """Multiply-accumulates of one inference."""
        macs: Array = self.weights * self.positions
        return macs

    def some(self, chosen: Array) -> "Layers":
        """The chosen ones of them."""
        return Layers(self.file, self.weights[chosen], self.positions[chosen], self.ns[chosen])


@dataclass(frozen=True)
class Check:
    """How a profile does on layers.

    Attributes:
        file: whose layers.
        layers: their number.
        median_error: median over the layers of |predicted - measured| / measured.
        total_error: the same of the sums, with its sign: positive where too much was predicted.
        rank_correlation: Spearman's.
        measured_ns, predicted_ns: sums.
    """

    file: str
    layers: int
    median_error: float
    total_error: float
    rank_correlation: float | None
    measured_ns: float
    predicted_ns: float


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        fit: the rates.
        with_overhead: the same with a time per layer.
        bits: of the weights.
        own: how the profile does on the networks it was fitted on.
        held_out: how profiles do that were fitted without the network in question (`by` "network"), or without a fifth
            of its layers each (`by` "layer", of a single network).
        held_out_overhead: the same with a time per layer.
        by: see `held_out`.
        threads, runs: of the measurement.
    """

    fit: Fit
    with_overhead: Fit
    bits: int
    own: tuple[Check, ...]
    held_out: tuple[Check, ...]
    held_out_overhead: tuple[Check, ...]
    by: str
    threads: int
    runs: int

    def error(self) -> float:
        """Median over the networks that were held out of their layers' median error."""
        return float(np.median([check.median_error for check in self.held_out]))

    def total_error(self) -> float:
        """Median over the networks that were held out of the size of the error of their sum."""
        return float(np.median([abs(check.total_error) for check in self.held_out]))

    def verdict(self) -> str:
        """The cross-validated error in one sentence."""
        how = {
            "network": f"on {len(self.held_out)} networks, each predicted by a fit to the others",
            "layer": "on one network alone, a fifth of its layers left out at a time",
        }
        return (
            f"cross-validated {how[self.by]}: median error {self.error():.0%} of a layer's time, "
            f"{self.total_error():.0%} of a network's sum"
        )

    def to_dict(self) -> dict[str, Any]:
        """The calibration as JSON."""
        return {
            "fit": self.fit.to_dict(),
            "fit_with_overhead": self.with_overhead.to_dict(),
            "weight_bits": self.bits,
            "threads": self.threads,
            "runs": self.runs,
            "fitted": [vars(check) for check in self.own],
            "cross_validation": {
                "left_out": self.by,
                "median_error": self.error(),
                "total_error": self.total_error(),
                "networks": [vars(check) for check in self.held_out],
                "networks_with_overhead": [vars(check) for check in self.held_out_overhead],
            },
        }


def calibrate(measured: Sequence[Measured]) -> Calibration:
    """Fit a machine to measured networks, and say how well that predicts networks it was not fitted on.

    Raises:
        MeasureError: there are too few layers, or their weights differ in bits.
    """
    if not measured:
        raise MeasureError("calibrate needs at least one measured network")
    bits = _bits(measured)
    networks = [_layers(each) for each in measured]
    count = sum(len(each.ns) for each in networks)
    if count < MIN_LAYERS:
        raise MeasureError(f"{count} measured layers are too few for a fit; give files with {MIN_LAYERS} or more")
    parts = [(each, _others(networks, index)) for index, each in enumerate(networks)]
    if len(networks) == 1:
        fold = np.arange(count) % FOLDS
        parts = [
            (networks[0].some(fold == each), [networks[0].some(fold != each)]) for each in range(min(FOLDS, count))
        ]
    fit, with_overhead = (_fit(networks, bits, overhead) for overhead in (False, True))
    held = [
        _checks([(part, _predict(_fit(rest, bits, overhead), part, bits)) for part, rest in parts], len(networks) == 1)
        for overhead in (False, True)
    ]
    return Calibration(
        fit,
        with_overhead,
        bits,
        own=_checks([(each, _predict(fit, each, bits)) for each in networks]),
        held_out=held[0],
        held_out_overhead=held[1],
        by="layer" if len(networks) == 1 else "network",
        threads=measured[0].threads,
        runs=measured[0].runs,
    )


def fitted_profile(
    fit: Fit, bits: int, name: str = "this-machine", source: str = "fitted", remark: str = ""
) -> Profile:
    """The profile by which eq. 7 says what a fit says; see the module. The fit's time per layer is left out."""
    n_mult = max(LINE_BITS // bits, 1)
    read, mult = fit.ns_per_byte * LINE_BITS / 8, fit.ns_per_mac * n_mult
    unit = "Our choice of unit, not hardware: "
    zero = "; the fit gave 0, and this stands for it"
    return Profile(
        name=name,
        b_w=bits,
        b_io=LINE_BITS,
        n_bank=1,
        n_mult=n_mult,
        tau_read_ns=max(read, LEAST_NS),
        tau_mult_ns=max(mult, LEAST_NS),
        remarks=(remark,) if remark else (),
        sources={
            "tau_read_ns": source + (zero if read < LEAST_NS else f"; {1 / fit.ns_per_byte:.3g} GB/s of weights"),
            "tau_mult_ns": source + (zero if mult < LEAST_NS else f"; {2 / fit.ns_per_mac:.3g} GFLOP/s"),
            "b_io": f"{unit}a cache line of 64 bytes is one read.",
            "n_bank": f"{unit}see b_io.",
            "n_mult": f"{unit}as many weights as a vector of 64 bytes holds.",
            "b_w": "The bits of the weights in the measured files.",
        },
    )


def profile_of_calibration(calibration: Calibration, name: str, machine: str, versions: str) -> Profile:
    """The profile of a calibration.

    Args:
        calibration: the fit.
        name: of the profile.
        machine: the processor, for the sources.
        versions: what it was measured with, as `onnxruntime 1.20.0`.
    """
    threads = f"{calibration.threads} thread{'s' if calibration.threads > 1 else ''}"
    networks = f"{len(calibration.own)} network{'s' if len(calibration.own) > 1 else ''}"
    layers = sum(check.layers for check in calibration.own)
    source = (
        f"measured on {machine} with {versions}, {threads}; non-negative least squares on the relative error of "
        f"{layers} layers of {networks}, medians of {calibration.runs} runs"
    )
    remark = (
        f"fitted to onnxruntime on {machine}, {threads}, weights as warm as inferences in a row leave them; "
        f"{calibration.verdict()}"
    )
    return fitted_profile(calibration.fit, calibration.bits, name, source, remark)


def as_yaml(profile: Profile, description: str) -> str:
    """A profile with times as the YAML file that `load_profile` reads."""
    constants: Mapping[str, float] = profile.constants()
    document = {
        "name": profile.name,
        "description": description,
        "remarks": list(profile.remarks),
        "constants": {
            key: {"value": constants[key], "unit": UNITS[key], "source": profile.sources[key]} for key in constants
        },
    }
    return str(yaml.safe_dump(document, sort_keys=False, width=118, allow_unicode=True))


def _bits(measured: Sequence[Measured]) -> int:
    found = {layer.weight_bits for each in measured for layer, _ in each.layers()}
    if len(found) != 1 or None in found:
        known = " and ".join(str(bits) for bits in sorted(bits or 0 for bits in found)) or "no"
        raise MeasureError(
            f"the weights of these files have {known} bits (0: unknown); calibrate files of one precision at a time"
        )
    return next(bits for bits in found if bits)


def _layers(measured: Measured) -> Layers:
    layers = measured.layers()
    numbers = np.array([(layer.weights, layer.positions * measured.batch) for layer, _ in layers], np.int64)
    weights, positions = numbers.reshape(-1, 2).T
    return Layers(measured.workload.file, weights, positions, np.array([ns for _, ns in layers], np.float64))


def _others(networks: Sequence[Layers], index: int) -> list[Layers]:
    return [each for number, each in enumerate(networks) if number != index]


def _fit(networks: Sequence[Layers], bits: int, overhead: bool) -> Fit:
    weights, macs, ns = (
        np.concatenate([getattr(each, name) for each in networks]) for name in ("weights", "macs", "ns")
    )
    return fit_times(weights * bits / 8, macs, ns, overhead)


def _predict(fit: Fit, layers: Layers, bits: int) -> Array:
    """Eq. 7 with the profile of a fit, and its time per layer."""
    chip = fitted_profile(fit, bits).chip()
    assert chip is not None  # it has times
    delay: Array = plain_delay(layers.weights, layers.positions, chip).total_ns + fit.overhead_ns
    return delay


def _checks(predictions: Sequence[tuple[Layers, Array]], together: bool = False) -> tuple[Check, ...]:
    """One check of each network; `together` one of all parts of a single one."""
    pairs = [(layers.file, layers.ns, predicted) for layers, predicted in predictions]
    if together:
        measured, found = (np.concatenate([pair[index] for pair in pairs]) for index in (1, 2))
        pairs = [(pairs[0][0], measured, found)]
    return tuple(_check(file, ns, predicted) for file, ns, predicted in pairs if len(ns))


def _check(file: str, ns: Array, predicted: Array) -> Check:
    measured, sum_predicted = float(ns.sum()), float(predicted.sum())
    return Check(
        file,
        layers=len(ns),
        median_error=float(np.median(np.abs(predicted - ns) / ns)),
        total_error=sum_predicted / measured - 1,
        rank_correlation=spearman(predicted.tolist(), ns.tolist()),
        measured_ns=measured,
        predicted_ns=sum_predicted,
    )
