"""Roofline: what limits each layer on the chip of the delay model, and how much of the chip it uses.

With reads of `b_io * n_bank` bits in `tau_read_ns`, and `n_mult` products in `tau_mult_ns`:

    bound                     memory where read_ns > mult_ns + transform_ns (both occupy the multipliers), else compute
    intensity_macs_per_byte   macs / (bits read / 8); the model reads weights, FiLM weights and stored noise alone
    multiplier_utilisation    weights / (ceil(weights / n_mult) * n_mult): what the ceiling of eqs. 7 to 9 loses
    read_utilisation          bits / (reads * b_io * n_bank), reads = ceil(bits / (b_io * n_bank)): the same for reads
    gmacs                     macs / delay_ns, attained; reading and multiplying one after the other, as the model does
    roof_gmacs                min(peak, intensity * bandwidth), what reading and multiplying at once would allow

The chip has a peak of n_mult / tau_mult_ns (GMAC/s), a bandwidth of b_io * n_bank / 8 / tau_read_ns (GB/s) and a
ridge, peak / bandwidth: the intensity above which the roof is flat. Weights are dense here.

Reference: S. Williams, A. Waterman, D. Patterson, Roofline: an insightful visual performance model for multicore
architectures, CACM 52(4), 2009.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hwmodels.delay import Chip, ceil_div
from hwmodels.errors import ProfileError
from hwmodels.report import CostReport
from hwmodels.table import make_table

Row = dict[str, Any]


@dataclass(frozen=True)
class LayerRoof:
    """One layer; attributes as in the module's text."""

    name: str
    bound: str
    intensity_macs_per_byte: float
    multiplier_utilisation: float
    read_utilisation: float
    gmacs: float
    roof_gmacs: float

    def to_dict(self) -> Row:
        """The figures as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Roofline:
    """What `roofline` found.

    Attributes:
        chip: the constants.
        layers: in the order of computation.
        memory_bound_ns, compute_bound_ns: delay of the layers that are bound by each.
        multiplier_utilisation: of all layers: products made, over products that the rounds taken could have made.
        read_utilisation: of all layers: bits read, over bits that the reads taken could have delivered.
    """

    chip: Chip
    layers: tuple[LayerRoof, ...]
    memory_bound_ns: float
    compute_bound_ns: float
    multiplier_utilisation: float
    read_utilisation: float

    @property
    def peak_gmacs(self) -> float:
        """Products per ns."""
        return float(self.chip.n_mult / self.chip.tau_mult_ns)

    @property
    def bandwidth_gb_s(self) -> float:
        """Bytes per ns."""
        return float(self.chip.b_io * self.chip.n_bank / 8 / self.chip.tau_read_ns)

    def to_dict(self) -> Row:
        """The chip and the sums as JSON; layers are beside the report's, see `add_roofline`."""
        return {
            "peak_gmacs": self.peak_gmacs,
            "bandwidth_gb_s": self.bandwidth_gb_s,
            "ridge_macs_per_byte": self.peak_gmacs / self.bandwidth_gb_s,
            "memory_bound_layers": self._count("memory"),
            "compute_bound_layers": self._count("compute"),
            "memory_bound_ns": self.memory_bound_ns,
            "compute_bound_ns": self.compute_bound_ns,
            "multiplier_utilisation": self.multiplier_utilisation,
            "read_utilisation": self.read_utilisation,
        }

    def _count(self, bound: str) -> int:
        return sum(layer.bound == bound for layer in self.layers)


def roofline(report: CostReport) -> Roofline:
    """Find what bounds each layer of a report.

    Args:
        report: what `price` found, with one layer or more.

    Raises:
        ProfileError: the profile has no times, or there is no layer.
    """
    chip = report.profile.chip()
    if chip is None:
        raise ProfileError(f"profile {report.profile.name} has no times, so no roofline; add --profile asic-65nm")
    if not report.layers:
        raise ProfileError(f"{report.workload.file} has no layer that is covered, so no roofline")
    peak, width = chip.n_mult / chip.tau_mult_ns, chip.b_io * chip.n_bank
    found, times = [], {"memory": 0.0, "compute": 0.0}
    bits_read = bits_held = products = slots = 0
    for cost in report.layers:
        layer, delay = cost.layer, cost.delay
        assert delay is not None
        film = report.method.film_weights(layer.out_channels if layer.film else 0)
        bits = (report.method.tensors * layer.weights + film) * chip.b_w
        held, rounds = ceil_div(bits, width) * width, ceil_div(layer.weights, chip.n_mult)
        bound = "memory" if delay.read_ns > delay.mult_ns + delay.transform_ns else "compute"
        times[bound] += delay.total_ns
        bits_read, bits_held = bits_read + bits, bits_held + held
        products, slots = products + layer.macs, slots + rounds * chip.n_mult * layer.positions
        intensity = layer.macs / (bits / 8)
        found.append(
            LayerRoof(
                name=layer.name,
                bound=bound,
                intensity_macs_per_byte=intensity,
                multiplier_utilisation=layer.weights / (rounds * chip.n_mult),
                read_utilisation=bits / held,
                gmacs=layer.macs / delay.total_ns,
                roof_gmacs=min(peak, intensity * width / 8 / chip.tau_read_ns),
            )
        )
    return Roofline(chip, tuple(found), times["memory"], times["compute"], products / slots, bits_read / bits_held)


def add_roofline(document: Row, roofs: Roofline) -> Row:
    """A report as JSON with the columns of each layer, and the sums as `roofline`."""
    pairs: Sequence[tuple[Row, LayerRoof]] = list(zip(document["layers"], roofs.layers, strict=True))
    return {
        **document,
        "layers": [{**row, **roof.to_dict()} for row, roof in pairs],
        "roofline": roofs.to_dict(),
    }


def render_roofline(roofs: Roofline, tablefmt: str = "simple") -> str:
    """Render one line per layer and what it says of the chip; `tablefmt` of tabulate, `github` makes Markdown."""
    columns = [
        ("layer", lambda row: row["name"]),
        ("bound", lambda row: row["bound"]),
        ("MACs / byte", lambda row: f"{row['intensity_macs_per_byte']:,.1f}"),
        ("multipliers used", lambda row: f"{100 * row['multiplier_utilisation']:.1f} %"),
        ("reads used", lambda row: f"{100 * row['read_utilisation']:.1f} %"),
        ("GMAC/s", lambda row: f"{row['gmacs']:.2f}"),
        ("roof GMAC/s", lambda row: f"{row['roof_gmacs']:.2f}"),
    ]
    table = make_table([layer.to_dict() for layer in roofs.layers], columns, tablefmt, texts=2)
    sums = roofs.to_dict()
    total = roofs.memory_bound_ns + roofs.compute_bound_ns
    shares = [
        f"{sums[f'{bound}_bound_layers']} {bound}-bound "
        f"({100 * getattr(roofs, f'{bound}_bound_ns') / total:.1f} % of the delay)"
        for bound in ("memory", "compute")
    ]
    lines = [
        f"roofline: peak {roofs.peak_gmacs:.2f} GMAC/s, weights at {roofs.bandwidth_gb_s:.2f} GB/s, "
        f"ridge at {sums['ridge_macs_per_byte']:.2f} MACs per byte",
        f"layers: {', '.join(shares)}; multipliers used {100 * roofs.multiplier_utilisation:.1f} %, "
        f"reads used {100 * roofs.read_utilisation:.1f} %",
    ]
    if tablefmt == "github":
        return "\n".join(["## Roofline", "", table, "", *(f"- {line}" for line in lines)])
    return "\n".join([table, "", *lines])
