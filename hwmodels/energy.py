"""The energy of one layer, itemised by operation and by memory access, as pure functions.

What is counted, for one image: a multiplication and an addition per multiply-accumulate; what conditions the weights;
and each weight, input and output crossing its memory once, in accesses that use every bit. Operands that stay near
the multipliers are reused without charge, so the memory items are lower bounds: a chip that reads an input again for
each filter pays more. Control, clocks, leakage and biases are left out. A write costs what a read costs.

Every count may be an int or a numpy int64 array, as in `hwmodels.delay`.

Reference: M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014, for the kind of model
and the constants of the profile horowitz-45nm.
"""

from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from hwmodels.delay import Count
from hwmodels.profile import ACCESS_BITS, Profile

Joules: TypeAlias = Any  # in pJ; float, or a float64 array

# Arithmetic by bits per value: the format of operands, and that of the sums. Integer products need a wider sum.
ARITHMETIC = {8: ("int8", "int32"), 16: ("fp16", "fp16"), 32: ("fp32", "fp32")}


@dataclass(frozen=True)
class EnergyCosts:
    """What one operation and one bit cost.

    Attributes:
        bits: per weight and activation.
        mult_pj, accumulate_pj: multiplication of two values, and addition of a product to a sum.
        add_pj: addition of two values.
        weight_bit_pj, activation_bit_pj: access to one bit of the memory that holds the weights, the activations.
    """

    bits: int
    mult_pj: Joules
    accumulate_pj: Joules
    add_pj: Joules
    weight_bit_pj: Joules
    activation_bit_pj: Joules


@dataclass(frozen=True)
class Energy:
    """Energy of one layer for one image, in pJ.

    Attributes:
        mult_pj, accumulate_pj: the multiply-accumulates on activations.
        transform_pj: arithmetic that conditions: FLOAT's weights, or OAT's FiLM layer.
        weight_read_pj: the weights, from their memory.
        transform_read_pj: what conditioning reads from the same memory: FiLM weights, stored noise.
        activation_read_pj, activation_write_pj: inputs and outputs, from and to their memory.
    """

    mult_pj: Joules
    accumulate_pj: Joules
    transform_pj: Joules
    weight_read_pj: Joules
    transform_read_pj: Joules
    activation_read_pj: Joules
    activation_write_pj: Joules

    @property
    def total_pj(self) -> Joules:
        """The sum of all items."""
        return sum(self.items().values())

    def items(self) -> dict[str, Joules]:
        """The items by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def energy_costs(profile: Profile) -> EnergyCosts | None:
    """What a profile's operations and accesses cost at its `b_w`; None where it does not know (`missing_energies`)."""
    if missing_energies(profile):
        return None
    energies = profile.energies
    mult, accumulate, add = (energies[key] for key in _needed(profile.b_w))
    weight, activation = (energies[f"read_{name}_pj"] for name in (profile.weights_from, profile.activations_in))
    return EnergyCosts(profile.b_w, mult, accumulate, add, weight / ACCESS_BITS, activation / ACCESS_BITS)


def missing_energies(profile: Profile) -> str:
    """Why a profile cannot price energy at its `b_w`, in words; empty where it can."""
    if not profile.energies:
        return f"profile {profile.name} has no energies"
    known = [bits for bits in ARITHMETIC if all(key in profile.energies for key in _needed(bits))]
    if profile.b_w in known:
        return ""
    answer = f"b_w {', '.join(map(str, known))}" if known else "none of 8, 16 and 32 bits"
    return f"profile {profile.name} has no energies of {profile.b_w}-bit arithmetic; it has those of {answer}"


def _needed(bits: int) -> tuple[str, str, str]:
    operand, total = ARITHMETIC.get(bits, ("", ""))
    return f"mult_{operand}_pj", f"add_{total}_pj", f"add_{operand}_pj"


def layer_energy(
    macs: Count,
    weights: Count,
    in_values: Count,
    out_values: Count,
    costs: EnergyCosts,
    *,
    transformed: Count = 0,
    noise_values: Count = 0,
    film_weights: Count = 0,
) -> Energy:
    """Energy of one layer for one image.

    Args:
        macs: multiply-accumulates.
        weights: weights read.
        in_values, out_values: activations read and written.
        costs: what an operation and a bit cost.
        transformed: weights that FLOAT conditions: theta + (lambda alpha) eta, one multiplication and one addition
            each, once per change of lambda (paper 5, eq. 4).
        noise_values: stored noise values read.
        film_weights: weights of the FiLM layer, each read once and used in one multiply-accumulate.
    """
    mac_pj = costs.mult_pj + costs.accumulate_pj
    return Energy(
        mult_pj=macs * costs.mult_pj,
        accumulate_pj=macs * costs.accumulate_pj,
        transform_pj=transformed * (costs.mult_pj + costs.add_pj) + film_weights * mac_pj,
        weight_read_pj=memory_pj(weights, costs.bits, costs.weight_bit_pj),
        transform_read_pj=memory_pj(noise_values + film_weights, costs.bits, costs.weight_bit_pj),
        activation_read_pj=memory_pj(in_values, costs.bits, costs.activation_bit_pj),
        activation_write_pj=memory_pj(out_values, costs.bits, costs.activation_bit_pj),
    )


def memory_pj(values: Count, bits: Count, bit_pj: Joules) -> Joules:
    """Energy of moving values of so many bits through a memory whose accesses cost `bit_pj` per bit."""
    return values * bits * bit_pj


def flops(macs: Count, transform_ops: Count = 0) -> Count:
    """Floating-point operations: two per multiply-accumulate, and those that condition.

    Paper 5 and many others print multiply-accumulates as "FLOPs"; torch's flop counter agrees with this.
    """
    return 2 * macs + transform_ops


def transform_ops(transformed: Count, film_weights: Count) -> Count:
    """Operations that condition: a multiplication and an addition per FLOAT weight, and per weight of a FiLM layer."""
    return 2 * (transformed + film_weights)
