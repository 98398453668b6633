"""The delay of one layer on a von Neumann ASIC: paper 5, eqs. 7, 8 and 9, as pure functions.

Symbols, with the names used here: k^2 C_i C_o = `weights` (for rectangular kernels k_h k_w C_i C_o; for grouped
convolutions C_i counts the channels that one filter reads), H_o W_o = `positions` (1 for a linear layer, a 1x1
convolution on one pixel), B_IO, B_W, N_bank, N_mult, tau_read, tau_mult as in `Profile`.

Ceilings are taken over exact integers: ceil(P / ((B_IO / B_W) N_bank)) = ceil(P * B_W / (B_IO * N_bank)). Flooring
B_IO / B_W first would make 12-bit weights cost as much as 12.8-bit ones.

Reference: S. Kundu, S. Sundaresan, M. Pedram, P. A. Beerel, A fast and efficient conditional learning for tunable
trade-off between accuracy and robustness, 2022, section 4.3.
"""

from dataclasses import dataclass

from hwmodels.profile import Profile


@dataclass(frozen=True)
class Delay:
    """Delay of one layer in ns: weight reads, multiplications on activations, and conditioning of the weights."""

    read_ns: float
    mult_ns: float
    transform_ns: float = 0.0

    @property
    def total_ns(self) -> float:
        """The sum: the model takes the operations as sequential."""
        return self.read_ns + self.mult_ns + self.transform_ns


def plain_delay(weights: int, positions: int, profile: Profile) -> Delay:
    """Eq. 7, a plain convolution (PGD-AT, or lambda fixed).

    ceil(k^2 C_i C_o / ((B_IO / B_W) N_bank)) tau_read + ceil(k^2 C_i C_o / N_mult) H_o W_o tau_mult
    """
    return Delay(
        _reads(weights, profile) * profile.tau_read_ns,
        _rounds(weights, profile) * positions * profile.tau_mult_ns,
    )


def float_delay(weights: int, positions: int, profile: Profile) -> Delay:
    """Eq. 8, FLOAT: one more round of multiplications conditions the weights, H_o W_o becomes 1 + H_o W_o.

    As printed, no read is charged for the noise tensor nor for alpha.
    """
    plain = plain_delay(weights, positions, profile)
    return Delay(plain.read_ns, plain.mult_ns, _rounds(weights, profile) * profile.tau_mult_ns)


def oat_delay(weights: int, positions: int, out_channels: int, profile: Profile) -> Delay:
    """Eq. 9, OAT: the FiLM layer after the convolution adds 2 C_o + 4 C_o^2 weights, read once and used once."""
    film = film_weights(out_channels)
    return Delay(
        _reads(weights + film, profile) * profile.tau_read_ns,
        _rounds(weights, profile) * positions * profile.tau_mult_ns,
        _rounds(film, profile) * profile.tau_mult_ns,
    )


def film_weights(channels: int) -> int:
    """Weights of one FiLM layer: from lambda to 2C hidden values, and from these to C scales and C shifts."""
    return 2 * channels + 4 * channels**2


def _reads(weights: int, profile: Profile) -> int:
    return ceil_div(weights * profile.b_w, profile.b_io * profile.n_bank)


def _rounds(weights: int, profile: Profile) -> int:
    return ceil_div(weights, profile.n_mult)


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer not below numerator / denominator, exact for any size."""
    return -(-numerator // denominator)
