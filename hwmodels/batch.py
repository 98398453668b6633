"""One network on many chips at once: the sums of `hwmodels.report` as arrays, by the same formulas."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from hwmodels.delay import Chip, index_bits
from hwmodels.energy import EnergyCosts, layer_energy
from hwmodels.errors import SweepError
from hwmodels.memory import ENCODINGS, expected_fillers
from hwmodels.methods import Method
from hwmodels.weights import RUN_BITS
from hwmodels.workload import Workload

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

CELLS = 1 << 19  # layers times chips that are priced at once


def price_chips(
    workload: Workload, method: Method, costs: Mapping[int, EnergyCosts | None], chips: Chip, share: Array | None
) -> dict[str, Array]:
    """Price one network on many chips.

    Args:
        workload: the network.
        method: whose equation applies.
        costs: energies by bit width; None where they are unknown.
        chips: constants; `b_w`, `n_bank` and `n_mult` are arrays of shape (chips,).
        share: of weights that are not zero, for each chip; None takes the network's own.

    Returns:
        Columns of shape (chips,), named as `CostReport.totals` names them; `energy_pj` is NaN where unknown.

    Raises:
        SweepError: the network has no layer, or is too large for 64-bit integers.
    """
    layers = workload.layers
    if not layers:
        raise SweepError(f"{workload.file} has no convolution and no linear layer that is covered; nothing to sweep")
    values = sum(method.tensors * each.weights + 4 * (each.out_channels + 1) ** 2 for each in layers)
    if max(128 * values * method.models, sum(each.macs for each in layers)) >= 1 << 62:  # bits must fit an int64
        raise SweepError(f"{workload.file} is too large for a sweep, at {values:.3g} weights")
    step = max(1, CELLS // len(layers))
    number = len(chips.b_w)
    parts = []
    for start in range(0, number, step):
        some = slice(start, start + step)
        chip = replace(chips, b_w=chips.b_w[some], n_bank=chips.n_bank[some], n_mult=chips.n_mult[some])
        parts.append(_price_some(workload, method, chip, None if share is None else share[some]))
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    energies = {bits: _energy(workload, method, each) for bits, each in costs.items()}
    columns["energy_pj"] = np.asarray([energies[bits] for bits in chips.b_w.tolist()])
    return columns


def _price_some(workload: Workload, method: Method, chip: Chip, share: Array | None) -> dict[str, Array]:
    """Arrays of shape (layers, chips), summed over layers."""
    layers = workload.layers
    weights, positions = _column([each.weights for each in layers]), _column([each.positions for each in layers])
    film = _column([each.out_channels if each.film else 0 for each in layers])
    own = _column([each.nonzero for each in layers])
    nonzero = own if share is None else np.ceil(share * weights).astype(np.int64)
    dense = method.delay(weights, positions, film, chip)
    sparse = dense
    if (nonzero < weights).any():
        index = index_bits(weights, nonzero, method.tensors * chip.b_w)
        sparse = method.delay(nonzero, positions, film, chip, index)
    shape = (len(layers), len(chip.b_w))
    times = {
        key: np.broadcast_to(getattr(dense, key), shape).sum(axis=0) for key in ("read_ns", "mult_ns", "transform_ns")
    }
    sizes, kept = _encoded_bits(workload, nonzero, chip.b_w, counted=share is None)
    film_bits = chip.b_w * int(np.sum(method.film_weights(film)))
    all_bits = chip.b_w * int(weights.sum())
    stored = kept.sum(axis=0) * chip.b_w
    noise = method.tensors - 1
    every = _bytes(film_bits, method)
    return {
        "density": np.broadcast_to(nonzero.sum(axis=0) / weights.sum() if share is None else share, shape[1:]),
        "bits": chip.b_w,
        "n_bank": chip.n_bank,
        "n_mult": chip.n_mult,
        "hardware": chip.n_mult * chip.n_bank,
        "delay_ns": sum(times.values()),
        **times,
        "sparse_aware_ns": np.broadcast_to(sparse.total_ns, shape).sum(axis=0),
        "weight_bytes": _bytes(all_bits, method) * (1 + noise) + every,
        "encoded_weight_bytes": _bytes(stored, method) * (1 + noise)
        + _bytes(sizes.sum(axis=0) - stored, method)
        + every,
    }


def _encoded_bits(workload: Workload, nonzero: Array, bits: Array, *, counted: bool) -> tuple[Array, Array]:
    """Size of each layer's weights in its smallest encoding, and the values that this stores.

    As `hwmodels.memory.encoded_bits`, for arrays; shapes (layers, chips). `counted`: `nonzero` is the file's own.
    """
    layers = workload.layers
    weights, rows = _column([each.weights for each in layers]), _column([each.out_channels for each in layers])
    length = _column([(each.weights // each.out_channels - 1).bit_length() for each in layers])
    if (nonzero == weights).all():
        return np.broadcast_to(weights * bits, (len(layers), len(bits))), weights  # no encoding is smaller
    fillers = np.zeros_like(nonzero)
    for place, layer in enumerate(layers):
        distinct, number = np.unique(nonzero[place], return_inverse=True)
        known = layer.fillers if counted else None
        found = [
            0 if count == layer.weights else round(expected_fillers(layer.weights, count)) if known is None else known
            for count in distinct.tolist()
        ]
        fillers[place] = np.asarray(found, np.int64)[number.reshape(-1)]
    sizes = {
        "dense": weights * bits,
        "bitmap": weights + nonzero * bits,
        "csr": nonzero * (bits + length) + (rows + 1) * np.frexp(nonzero.astype(np.float64))[1],
        "run-length": (nonzero + fillers) * (bits + RUN_BITS),
    }
    stacked = np.stack([np.broadcast_to(sizes[name], (len(weights), len(bits))) for name in ENCODINGS])
    return stacked.min(axis=0), np.where(stacked.argmin(axis=0) == 0, weights, nonzero)


def _energy(workload: Workload, method: Method, costs: EnergyCosts | None) -> float:
    """Of all layers in pJ, dense; NaN where the profile does not price that many bits."""
    if costs is None:
        return np.nan
    total = 0.0
    for layer in workload.layers:
        total += layer_energy(
            layer.macs,
            layer.weights,
            layer.in_values,
            layer.out_values,
            costs,
            transformed=layer.weights if method.transforms else 0,
            noise_values=layer.weights * (method.tensors - 1),
            film_weights=method.film_weights(layer.out_channels if layer.film else 0),
        ).total_pj
    return total


def _bytes(bits: Array, method: Method) -> Array:
    """Of one item in all networks that the method stores, rounded up as `hwmodels.memory.Item` does."""
    rounded: Array = -(-bits * method.models // 8)
    return rounded


def _column(values: Sequence[int]) -> Array:
    return np.asarray(values, np.int64).reshape(-1, 1)
