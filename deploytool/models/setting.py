"""The knobs that a user turns after training, and what each does to noise and batch norm.

No torch here: training, export and the edge read the same two formulas.
"""

import struct
from dataclasses import dataclass
from typing import Literal, get_args

from deploytool.errors import InputError

Conditioning = Literal["switch", "interpolate"]
NoiseMode = Literal["redrawn", "frozen", "none"]


def check_lambda(lam: float, name: str = "lambda") -> float:
    """Return a lambda as a float in [0, 1].

    Raises:
        InputError: it is no number, NaN, or outside [0, 1].
    """
    try:
        value = float("nan") if isinstance(lam, bool) else float(lam)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} (={str(lam)[:40]}) must be a number in [0, 1]") from None
    if not 0 <= value <= 1:  # also false for NaN
        raise InputError(f"{name} (={value:g}) must be in [0, 1]; 0 is for clean images, 1 for attacked ones")
    return value


def as_single(value: float) -> float:
    """Round to float32, as the graph's input `lambda` is: 0.5 + 1e-9 is not above a threshold of 0.5, anywhere."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def check_threshold_value(threshold: float) -> float:
    """Return a lambda threshold if it is one of the paper's two, 0 or 0.5; raise InputError otherwise."""
    value = check_lambda(threshold, "lambda threshold")
    if value not in (0.0, 0.5):
        raise InputError(f"lambda threshold (={value:g}) must be 0 or 0.5")
    return value


def check_width(width: float) -> float:
    """Return a width multiplier as a float in (0, 1]; raise InputError otherwise."""
    try:
        value = float(width)
    except (TypeError, ValueError):
        raise InputError(f"width (={width!r}) must be a number in (0, 1]") from None
    if not 0 < value <= 1:  # also false for NaN
        raise InputError(f"width (={value:g}) must be in (0, 1]; 1 is the full network")
    return value


@dataclass(frozen=True)
class Setting:
    """How a conditional model is to answer.

    Attributes:
        lam: lambda in [0, 1]; 0 is the clean boundary condition, 1 the adversarial one.
        lambda_threshold: in [0, 1); with `switch`, a lambda above it selects BN_A (paper 5, section 3.1).
        conditioning: `switch` is the paper's; `interpolate` mixes BN_C and BN_A linearly by lambda.
        noise: `redrawn` draws the noise anew for each state, `frozen` reads it from the model's table,
            `none` leaves it out.
        width: width multiplier in (0, 1] of a slimmable model.
    """

    lam: float = 0.0
    lambda_threshold: float = 0.0
    conditioning: Conditioning = "switch"
    noise: NoiseMode = "frozen"
    width: float = 1.0

    def __post_init__(self) -> None:
        check_lambda(self.lam)
        check_width(self.width)
        for name, value, known in (
            ("conditioning", self.conditioning, get_args(Conditioning)),
            ("noise", self.noise, get_args(NoiseMode)),
        ):
            if value not in known:
                raise InputError(f"{name} (={str(value)[:40]!r}) must be {', '.join(known)}")
        if not 0 <= self.lambda_threshold < 1:
            raise InputError(f"lambda threshold (={self.lambda_threshold}) must be in [0, 1)")

    @property
    def noise_scale(self) -> float:
        """The factor on `alpha * noise` that lambda gives (paper 5, eqs. 4 and 6).

        With threshold t: `lam / t` for `lam <= t`, else `(lam - t) / (1 - t)`. At t = 0 this is lambda itself,
        eq. 4; at t = 0.5 it is eq. 6; other thresholds are our straight generalisation. Interpolation has no
        switch at which the noise would have to start again, so there the factor is lambda itself.
        """
        lam, t = as_single(self.lam), as_single(self.lambda_threshold)
        if self.noise == "none":
            return 0.0
        if self.conditioning == "interpolate" or t == 0:
            return lam
        return lam / t if lam <= t else (lam - t) / (1 - t)

    @property
    def norm_mix(self) -> float:
        """The share of BN_A in the batch norms: 0 is BN_C, 1 is BN_A; in between only with `interpolate`."""
        lam = as_single(self.lam)
        return lam if self.conditioning == "interpolate" else float(lam > as_single(self.lambda_threshold))
