"""Parameter memory: what a network stores, itemised, and how its weights are encoded. MB are 10^6 bytes.

What paper 5 prints for CIFAR ResNet-34 at 8 bits (section 4.3, Fig. 8(b)) is the sum of these items, each value at 8
bits:

    FLOAT  21.28 MB    weights, biases, gamma and beta of one set of batch norms
    OAT    31.40 MB    the same, and FiLM layers with their biases
    ratio  1.47        of the weights alone, FiLM weights among them: the figure leaves out batch norms and alphas

The items that it leaves out (running statistics, the second set of batch norms, alphas) are listed here beside them.

Reference: S. Kundu, S. Sundaresan, M. Pedram, P. A. Beerel, A fast and efficient conditional learning for tunable
trade-off between accuracy and robustness, 2022.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from hwmodels.activations import Peak, check_bits
from hwmodels.errors import WorkloadError
from hwmodels.layers import Layer
from hwmodels.methods import Method, find_method
from hwmodels.weights import RUN_BITS
from hwmodels.workload import Workload

Encoding = Literal["dense", "bitmap", "csr", "run-length", "best"]
Noise = Literal["regenerated", "table", "stored"]

ENCODINGS: tuple[Encoding, ...] = ("dense", "bitmap", "csr", "run-length")
NOISES: tuple[Noise, ...] = ("regenerated", "table", "stored")


@dataclass(frozen=True)
class Item:
    """One kind of stored number.

    Attributes:
        name: what it is.
        values: how many; 0 for an index, which has bits alone.
        size_bits: of all of them.
    """

    name: str
    values: int
    size_bits: int

    @property
    def bytes(self) -> int:
        """Size in bytes, rounded up."""
        return ceil_div(self.size_bits, 8)


@dataclass(frozen=True)
class LayerStorage:
    """One layer's weights in every encoding.

    Attributes:
        name: of the layer.
        weights, nonzero: number of weights, and of those that are not zero.
        size_bits: by encoding, indices included.
        best: the smallest encoding; dense where it ties.
        estimated: whether the run-length size is an expectation, since positions are unknown.
    """

    name: str
    weights: int
    nonzero: int
    size_bits: Mapping[str, int]
    best: str
    estimated: bool


@dataclass(frozen=True)
class ParameterMemory:
    """What a network stores with one method.

    Attributes:
        method: of `hwmodels.methods`.
        bits: of each value.
        encoding: of the weights; `best` takes the smallest for each layer.
        items: what is stored, in bits.
        layers: the weights of one network in every encoding.
        notes: how the items were counted.
    """

    method: Method
    bits: int
    encoding: str
    items: tuple[Item, ...]
    layers: tuple[LayerStorage, ...]
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Everything, in bytes."""
        return sum(item.bytes for item in self.items)

    @property
    def weight_bytes(self) -> int:
        """Weights with their index, and the weights of FiLM layers: what Fig. 8(b) compares."""
        return self.sum_bytes("weights", "index", "film")

    def sum_bytes(self, *names: str) -> int:
        """Bytes of some items together; an item that the method does not have counts 0."""
        return sum(item.bytes for item in self.items if item.name in names)

    def encodings(self) -> dict[str, int]:
        """Bytes of all weights of one network with one encoding for all layers, and with `best`, each layer's own."""
        sizes = {name: sum(each.size_bits[name] for each in self.layers) for name in ENCODINGS}
        sizes["best"] = sum(each.size_bits[each.best] for each in self.layers)
        return {name: ceil_div(size, 8) for name, size in sizes.items()}

    @property
    def best(self) -> str:
        """The one encoding that is smallest for all layers together; dense where it ties."""
        sizes = self.encodings()
        return min(ENCODINGS, key=lambda name: sizes[name])

    def to_dict(self) -> dict[str, Any]:
        """The memory as JSON; `_bytes` are bytes, `_mb` 10^6 bytes."""
        return {
            "method": self.method.name,
            "bits": self.bits,
            "encoding": self.encoding,
            "parameter_bytes": self.bytes,
            "parameter_mb": self.bytes / 1e6,
            "weight_bytes": self.weight_bytes,
            "items": [{"name": each.name, "values": each.values, "bytes": each.bytes} for each in self.items],
            "encodings_bytes": self.encodings(),
            "best_encoding": self.best,
            "layers": [
                {
                    "name": each.name,
                    "weights": each.weights,
                    "nonzero": each.nonzero,
                    "best_encoding": each.best,
                    **{f"{name}_bytes": ceil_div(each.size_bits[name], 8) for name in ENCODINGS},
                }
                for each in self.layers
            ],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Fit:
    """Whether a network fits a memory.

    Attributes:
        budget_bytes: size of the memory.
        parameter_bytes, activation_bytes: what it must hold.
        lower_bound: whether some activation's size is unknown, so that what fits may not.
    """

    budget_bytes: int
    parameter_bytes: int
    activation_bytes: int
    lower_bound: bool

    @property
    def everything(self) -> bool:
        """Whether parameters and the peak of activations fit together."""
        return self.parameter_bytes + self.activation_bytes <= self.budget_bytes

    @property
    def activations(self) -> bool:
        """Whether the peak of activations fits, with the parameters read from another memory."""
        return self.activation_bytes <= self.budget_bytes

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON."""
        return {
            "budget_bytes": self.budget_bytes,
            "parameter_bytes": self.parameter_bytes,
            "activation_bytes": self.activation_bytes,
            "fits": self.everything,
            "activations_fit": self.activations,
            "lower_bound": self.lower_bound,
            "verdict": self.verdict(),
        }

    def verdict(self) -> str:
        """One line."""
        size, need = self.budget_bytes / 1e6, (self.parameter_bytes + self.activation_bytes) / 1e6
        unsure = "; some activations are of unknown size and left out" if self.lower_bound else ""
        if self.everything:
            return f"fits: parameters and activations take {need:.3f} MB of {size:.3f} MB{unsure}"
        held = self.activation_bytes / 1e6
        if self.activations:
            return (
                f"does not fit: parameters and activations take {need:.3f} MB of {size:.3f} MB; activations alone "
                f"({held:.3f} MB) do, with parameters in another memory{unsure}"
            )
        return f"does not fit: activations alone take {held:.3f} MB of {size:.3f} MB{unsure}"


def fits(budget_bytes: int, parameters: ParameterMemory, activations: Peak) -> Fit:
    """Whether a network fits a memory (SRAM) of `budget_bytes`.

    Raises:
        WorkloadError: the budget is not positive.
    """
    if isinstance(budget_bytes, bool) or not isinstance(budget_bytes, int) or budget_bytes <= 0:
        raise WorkloadError(f"memory budget (={budget_bytes}) must be a positive number of bytes")
    return Fit(budget_bytes, parameters.bytes, activations.bytes, bool(activations.unknown))


def parameter_memory(
    workload: Workload,
    method: Method | str = "plain",
    bits: int = 8,
    encoding: Encoding = "best",
    density: float | None = None,
    noise: Noise | None = None,
) -> ParameterMemory:
    """Itemise what a network stores with a method.

    Items, each value at `bits`: `weights`, `index` (all that a sparse encoding adds to the weights that are not zero),
    `biases`, `norm_affine` (gamma and beta, 2 per channel) and `norm_statistics` (running mean and variance, 2 per
    channel), the same with `second_` before it for the second set of FLOAT and OAT, `alphas` (FLOAT, one per layer),
    `film` (OAT, 2 C + 4 C^2 weights per FiLM layer as in eq. 9) and `film_biases` (4 C, which eq. 9 leaves out),
    `noise` and `other` (stored numbers that other operators read: position embeddings, layer norms, input scaling).

    Args:
        workload: as read.
        method: name or entry of `hwmodels.methods`; `pgd-at:nt` stores everything once per network.
        bits: of each value, 1 to 64.
        encoding: of the weights: `dense`, `bitmap`, `csr`, `run-length`, or `best`, the smallest for each layer.
        density: share of weights that are not zero in every layer, in (0, 1], instead of the file's own; their
            positions are then taken as random.
        noise: of FLOAT: `regenerated` (a generator on the chip, 0 bytes), `table` (the file's shared table, as stored
            there) or `stored` (one value for each stored weight). By default what the method says.

    Raises:
        WorkloadError: an argument is out of range or does not go with the method. MethodError: it is unknown.
    """
    method = find_method(method) if isinstance(method, str) else method
    check_bits("bits", bits)
    if encoding not in (*ENCODINGS, "best"):
        raise WorkloadError(f"encoding (={encoding!r}) is unknown; known: best, {', '.join(ENCODINGS)}")
    if density is not None and not 0 < density <= 1:
        raise WorkloadError(f"density (={density}) must be in (0, 1]; 1 is dense")
    noise = _check_noise(workload, method, noise)
    layers = tuple(layer_storage(layer, bits, density) for layer in workload.layers)
    chosen = [each.best if encoding == "best" else encoding for each in layers]
    kept = [
        each.weights if name == "dense" else each.nonzero for each, name in zip(layers, chosen, strict=True)
    ]  # the values that each layer stores
    size = sum(each.size_bits[name] for each, name in zip(layers, chosen, strict=True))
    norms, biases, notes = _norms_and_biases(workload, method)
    items = [
        Item("weights", sum(kept), sum(kept) * bits),
        Item("index", 0, size - sum(kept) * bits),
        Item("biases", biases, biases * bits),
    ]
    for prefix in ("", "second_")[: 1 + method.conditional] if norms else ():
        items += [Item(f"{prefix}norm_{name}", 2 * norms, 2 * norms * bits) for name in ("affine", "statistics")]
    if method.transforms:
        items.append(Item("alphas", len(layers), len(layers) * bits))
    if method.film:
        channels = [layer.out_channels for layer in workload.layers if layer.film]
        film = sum(method.film_weights(each) for each in channels)
        items += [Item("film", film, film * bits), Item("film_biases", 4 * sum(channels), 4 * sum(channels) * bits)]
    if noise == "table":
        items.append(Item("noise", workload.noise_table_values, 8 * workload.noise_table_bytes))
    elif noise is not None:
        values = sum(kept) if noise == "stored" else 0
        items.append(Item("noise", values, values * bits))
    items.append(Item("other", workload.other_values, workload.other_values * bits))
    if method.models > 1:
        notes.append(f"everything is stored {method.models} times, once per network")
        items = [Item(each.name, each.values * method.models, each.size_bits * method.models) for each in items]
    if any(each.estimated for each in layers):
        notes.append("run-length sizes are expected ones, for weights that are not zero at random positions")
    return ParameterMemory(method, bits, encoding, tuple(items), layers, tuple(notes))


def layer_storage(layer: Layer, bits: int, density: float | None = None) -> LayerStorage:
    """One layer's weights in every encoding; arguments as in `parameter_memory`."""
    nonzero = layer.nonzero if density is None else ceil(density * layer.weights)
    fillers = layer.fillers if density is None else None
    if nonzero == layer.weights:
        fillers = 0
    sizes = encoded_bits(layer.weights, layer.out_channels, nonzero, bits, fillers)
    best = min(ENCODINGS, key=lambda name: sizes[name])
    return LayerStorage(layer.name, layer.weights, nonzero, sizes, best, fillers is None)


def encoded_bits(weights: int, rows: int, nonzero: int, bits: int, fillers: int | None = None) -> dict[str, int]:
    """Size in bits of a weight matrix, by encoding, indices included.

        dense        weights * bits
        bitmap       weights + nonzero * bits
        csr          nonzero * (bits + ceil(log2(columns))) + (rows + 1) * ceil(log2(nonzero + 1))
        run-length   (nonzero + fillers) * (bits + 4)

    Args:
        weights: k^2 C_i C_o (C_i of one group).
        rows: output filters, C_o; columns are weights / rows.
        nonzero: weights that are not zero.
        bits: of each stored value.
        fillers: as `hwmodels.weights.fillers_between` counts them; the expected number where None.
    """
    columns = weights // rows
    if fillers is None:
        fillers = round(expected_fillers(weights, nonzero))
    return {
        "dense": weights * bits,
        "bitmap": weights + nonzero * bits,
        "csr": nonzero * (bits + (columns - 1).bit_length()) + (rows + 1) * nonzero.bit_length(),
        "run-length": (nonzero + fillers) * (bits + RUN_BITS),
    }


def expected_fillers(weights: int, nonzero: int, run_bits: int = RUN_BITS) -> float:
    """Expected fillers of a run-length code where all positions are equally likely.

    A run of zeros before a weight is r or longer with probability of about q^r, q = (weights - nonzero) / (weights +
    1), which has the exact mean run of (weights - nonzero) / (nonzero + 1). The expected floor(run / 2^b) is then
    Q / (1 - Q) with Q = q^(2^b), for each weight that is not zero.
    """
    share = ((weights - nonzero) / (weights + 1)) ** (1 << run_bits)
    return nonzero * share / (1 - share)


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer not below numerator / denominator."""
    return -(-numerator // denominator)


def _check_noise(workload: Workload, method: Method, noise: Noise | None) -> Noise | None:
    """The form of the noise that a method stores; None where it has none."""
    if noise is None or not method.transforms:
        if noise is not None:
            raise WorkloadError(f"noise (={noise!r}) was given, but method {method.name} has none; leave it out")
        return ("stored" if method.noise_read else "regenerated") if method.transforms else None
    if noise not in NOISES:
        raise WorkloadError(f"noise (={noise!r}) is unknown; known: {', '.join(NOISES)}")
    if method.noise_read and noise != "stored":
        raise WorkloadError(f"noise (={noise!r}) contradicts method {method.name}, which stores it; use method float")
    if noise == "table" and not workload.noise_table_bytes:
        raise WorkloadError(f"{workload.file} has no table of noise; use noise regenerated or stored")
    return noise


def _norms_and_biases(workload: Workload, method: Method) -> tuple[int, int, list[str]]:
    """Channels of all batch norms, number of biases, and how they were found."""
    convolutions = [layer for layer in workload.layers if layer.kind != "linear"]
    own = sum(layer.biases for layer in convolutions)
    rest = sum(layer.biases for layer in workload.layers) - own
    channels = sum(workload.norms)
    if method.name == "fixed":
        return 0, rest + max(own, channels), ["batch norms fold into weights and biases, one bias per channel"]
    if channels:
        found = f"{len(workload.norms)} BatchNormalization nodes in the file, {channels} channels"
        return channels, rest + own, [f"batch norms: {found}"]
    if not method.conditional:
        return 0, rest + own, ["batch norms: none in the file; they may be folded into its biases"]
    channels = sum(layer.out_channels for layer in convolutions)
    found = f"none in the file; one assumed after each convolution in place of its biases, {channels} channels"
    return channels, rest, [f"batch norms: {found}"]
