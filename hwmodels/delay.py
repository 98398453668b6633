"""The delay of one layer on a von Neumann ASIC: paper 5, eqs. 7, 8 and 9, as pure functions.

Symbols, with the names used here: k^2 C_i C_o = `weights` (for rectangular kernels k_h k_w C_i C_o; for grouped
convolutions C_i counts the channels that one filter reads), H_o W_o = `positions` (1 for a linear layer, a 1x1
convolution on one pixel), C_o = `out_channels`, B_IO, B_W, N_bank, N_mult, tau_read, tau_mult as in `Chip`.

Ceilings are taken over exact integers: ceil(P / ((B_IO / B_W) N_bank)) = ceil(P * B_W / (B_IO * N_bank)). Flooring
B_IO / B_W first would make 12-bit weights cost as much as 12.8-bit ones.

Every count may be an int or a numpy int64 array; arrays broadcast, so that one call prices all layers on all chips of
a sweep: `weights` of shape (layers, 1) with an `n_mult` of shape (1, chips) gives delays of shape (layers, chips).

Reference: S. Kundu, S. Sundaresan, M. Pedram, P. A. Beerel, A fast and efficient conditional learning for tunable
trade-off between accuracy and robustness, 2022, section 4.3.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

Count: TypeAlias = Any  # int, or an int64 array
Time: TypeAlias = Any  # float, or a float64 array


@dataclass(frozen=True)
class Chip:
    """The constants of eqs. 7 to 9; `Profile.chip()` makes a checked one of numbers, a sweep one of arrays.

    Attributes:
        b_io: B_IO, bits that one memory bank delivers per read.
        b_w: B_W, bits per weight.
        n_bank: N_bank, memory banks read in parallel.
        n_mult: N_mult, multipliers.
        tau_read_ns, tau_mult_ns: time of one read and of one multiplication, in ns.
    """

    b_io: Count
    b_w: Count
    n_bank: Count
    n_mult: Count
    tau_read_ns: Time
    tau_mult_ns: Time


@dataclass(frozen=True)
class Delay:
    """Delay of one layer in ns: weight reads, multiplications on activations, and conditioning of the weights."""

    read_ns: Time
    mult_ns: Time
    transform_ns: Time = 0.0

    @property
    def total_ns(self) -> Time:
        """The sum: the model takes the operations as sequential."""
        return self.read_ns + self.mult_ns + self.transform_ns


def plain_delay(weights: Count, positions: Count, chip: Chip, index_bits: Count = 0) -> Delay:
    """Eq. 7, a plain convolution (PGD-AT, or lambda fixed).

    ceil(k^2 C_i C_o / ((B_IO / B_W) N_bank)) tau_read + ceil(k^2 C_i C_o / N_mult) H_o W_o tau_mult

    Args:
        weights: number of weights read and multiplied with.
        positions: output positions of one image.
        chip: the constants.
        index_bits: bits read beside the weights; what says where the non-zero ones are (see `index_bits`).
    """
    return Delay(
        _reads(weights, chip, index_bits) * chip.tau_read_ns,
        _rounds(weights, chip) * positions * chip.tau_mult_ns,
    )


def float_delay(
    weights: Count, positions: Count, chip: Chip, index_bits: Count = 0, *, read_noise: bool = False
) -> Delay:
    """Eq. 8, FLOAT: one more round of multiplications conditions the weights, H_o W_o becomes 1 + H_o W_o.

    As printed, no read is charged for the noise tensor nor for alpha; with `read_noise`, which the paper has not, the
    noise is a stored tensor of as many values as the weights, and P values read become 2 P.
    """
    read = 2 * weights if read_noise else weights
    return Delay(
        _reads(read, chip, index_bits) * chip.tau_read_ns,
        _rounds(weights, chip) * positions * chip.tau_mult_ns,
        _rounds(weights, chip) * chip.tau_mult_ns,
    )


def oat_delay(weights: Count, positions: Count, out_channels: Count, chip: Chip, index_bits: Count = 0) -> Delay:
    """Eq. 9, OAT: the FiLM layer after the convolution adds 2 C_o + 4 C_o^2 weights, read once and used once.

    With `out_channels` 0, for a layer that no FiLM layer follows, this is eq. 7.
    """
    film = film_weights(out_channels)
    return Delay(
        _reads(weights + film, chip, index_bits) * chip.tau_read_ns,
        _rounds(weights, chip) * positions * chip.tau_mult_ns,
        _rounds(film, chip) * chip.tau_mult_ns,
    )


def film_weights(channels: Count) -> Count:
    """Weights of one FiLM layer: from lambda to 2C hidden values, and from these to C scales and C shifts."""
    return 2 * channels + 4 * channels**2


def index_bits(weights: Count, nonzero: Count, bits: Count) -> Count:
    """Bits that say where the non-zero ones of some weights are: a bitmap, or the zeros themselves if that is less.

    Args:
        weights: number of weights, zeros included.
        nonzero: number of those that are not zero.
        bits: of all values stored at one position: B_W, twice that where each weight has a stored noise value.
    """
    zeros = (weights - nonzero) * bits
    return weights - (weights - zeros) * (zeros < weights)  # the smaller one, of ints and of arrays


def ceil_div(numerator: Count, denominator: Count) -> Count:
    """Smallest integer not below numerator / denominator; exact for ints of any size and for int64 arrays."""
    return -(-numerator // denominator)


def _reads(values: Count, chip: Chip, further_bits: Count) -> Count:
    return ceil_div(values * chip.b_w + further_bits, chip.b_io * chip.n_bank)


def _rounds(weights: Count, chip: Chip) -> Count:
    return ceil_div(weights, chip.n_mult)
