"""What a reader must know to use the figures of a report, in words; each note is one line."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hwmodels.energy import ARITHMETIC, energy_costs, missing_energies
from hwmodels.memory import parameter_memory
from hwmodels.methods import Method
from hwmodels.workload import Workload

if TYPE_CHECKING:
    from hwmodels.compare import Comparison
    from hwmodels.report import CostReport

# What paper 5 prints of CIFAR ResNet-34 (section 4.3): parameters, and operations that it calls FLOPs.
PAPER_PARAMS = 21.28e6
PAPER_OPERATIONS = 1.165e9


def report_notes(report: "CostReport") -> list[str]:
    """The notes of a report, the most important ones first."""
    method, workload = report.method, report.workload
    found = _incomplete(workload) + _delay_notes(report)
    found.append(
        "params are weights and biases of convolutions and linear layers"
        + (" and their FiLM layers" if method.film else "")
        + "; weight_bytes are those without biases, and stored noise; MB are 10^6 bytes"
    )
    if method.models > 1:
        found.append(f"weight_bytes are of {method.models} networks; everything else is of the one that runs")
    if method.conditional:
        found.append("this prices lambda changing with every image; a fixed lambda folds away and costs eq. 7")
    if method.film and not any(cost.layer.film for cost in report.layers):
        found.append("no convolution that OAT would give a FiLM layer was found")
    found += _bits_notes(workload, report.profile.b_w) + _sparse_notes(report) + _energy_notes(report)
    found += paper_notes(report)
    if workload.transforms:
        found.append(f"on weights and knobs alone, no inference work: {_counts(workload.transforms)}")
    if workload.free:
        found.append(f"outside the delay model: {_counts(workload.free)}")
    return found


def comparison_notes(comparison: "Comparison") -> list[str]:
    """The notes of a comparison: what holds for all of its lines, and what its lines are."""
    reports = comparison.reports
    profile = reports[0].profile
    found = []
    for workload in {report.workload.file: report.workload for report in reports}.values():
        found += [f"{workload.file}: {note}" for note in _incomplete(workload)]
    if profile.chip() is None:
        found.append(f"profile {profile.name} has no times: delays are null")
    found += [f"{method.label}: {method.description} ({method.equation})" for method in _methods(comparison)]
    found.append("eqs. 8 and 9 price lambda changing with every image; delays are of one image")
    found.append("weight MB (10^6 bytes) are weights, FiLM weights and stored noise, dense; no biases, no batch norms")
    if any(report.workload.width is not None for report in reports):
        found.append("a slimmable file stores the weights of its widest width; those of another are a part of them")
    for report in reports:
        if report.workload is reports[0].workload:
            found += _oat_notes(report)
    if any(report.sparse for report in reports):
        found += [SPARSE, "encoded MB: each layer's weights dense, in bitmap, CSR or run-length form, the smallest"]
    for workload in {report.workload.file: report.workload for report in reports}.values():
        found += [f"{workload.file}: {note}" for note in _bits_notes(workload, profile.b_w)]
    found += _energy_notes(reports[0])
    return found + paper_notes(reports[0])


SPARSE = (
    "sparse_aware_ns is an estimate of ours, not the paper's: a chip that reads and multiplies non-zero weights alone, "
    "at full use of its multipliers, and reads a bitmap of one bit per weight (or the zeros where those are fewer bits)"
)


def paper_notes(report: "CostReport") -> list[str]:
    """Where paper 5's own numbers need care; empty for other networks than its CIFAR ResNet-34."""
    macs = sum(cost.layer.macs for cost in report.layers)
    weights = sum(cost.layer.weights for cost in report.layers)
    convolutions = sum(cost.layer.kind == "conv" for cost in report.layers)
    if convolutions != 36 or not (_near(weights, PAPER_PARAMS) and _near(macs, PAPER_OPERATIONS)):
        return []
    share, printed = weights / macs, PAPER_PARAMS / PAPER_OPERATIONS
    ours = f"{macs / 1e9:.3f} G of them, {2 * macs / 1e9:.3f} GFLOPs"
    found = [
        f"paper 5's 1.165 GFLOPs are multiply-accumulates: here {ours}",
        f"paper 5 prints 1.182 % for the noise additions, but its 21.28 M / 1.165 G is {100 * printed:.3f} %; "
        f"here {100 * share:.3f} % of the multiply-accumulates, and eq. 4 multiplies each weight's noise as well",
        _storage_note(report),
    ]
    if energy_costs(report.profile) is not None:
        found.append(
            "paper 5's addition 32x cheaper than a FLOP is, in Horowitz's figures, an int32 addition against an int32 "
            "multiply-add (0.1 and 3.2 pJ); in fp32 the factor is 5.1 (0.9 and 4.6 pJ)"
        )
    return found


def _storage_note(report: "CostReport") -> str:
    """What paper 5's 21.28 MB, 31.4 MB and 1.47x are of."""
    few, many = (parameter_memory(report.workload, method, 8, "dense") for method in ("float", "oat"))
    weights = few.weight_bytes, many.weight_bytes
    beside = ("biases", "norm_affine", "film_biases")
    printed = tuple(size + memory.sum_bytes(*beside) for size, memory in zip(weights, (few, many), strict=True))
    return (
        f"paper 5's 21.28 and 31.4 MB at 8 bits hold biases, FiLM biases and one set of gamma and beta (here "
        f"{printed[0] / 1e6:.2f} and {printed[1] / 1e6:.2f}, ratio {printed[1] / printed[0]:.4f}); its 1.47x is of the "
        f"weights alone (here {weights[1] / weights[0]:.4f}), as Fig. 8(b) says"
    )


def _delay_notes(report: "CostReport") -> list[str]:
    method = report.method
    if report.profile.chip() is None:
        return [f"profile {report.profile.name} has no times: delays are null"]
    found = [f"{method.equation} of paper 5, one image, reads and multiplications in sequence"]
    if method.transforms and not method.noise_read:
        found.append("no read is charged for the noise tensor, as printed in the paper")
    return found + _oat_notes(report)


def _oat_notes(report: "CostReport") -> list[str]:
    """How FLOAT stands against OAT, layer by layer; with stored noise also where the printed FLOAT is best."""
    found = report.against_oat() if report.method.transforms else None
    if found is None:
        return []
    spread = f"min {found['min']:.3f} in {found['min_in']}, mean {found['mean']:.3f}, max {found['max']:.3f} in"
    line = f"OAT / {report.method.label} per layer, over {found['layers']} {found['over']}: {spread} {found['max_in']}"
    if not report.method.noise_read or not found["oat_faster_in"]:
        return [line]
    printed = report.repriced("float").against_oat()
    assert printed is not None
    best = printed["max_in"]
    return [
        f"with the noise stored and read FLOAT loses to OAT in {found['oat_faster_in']} of {found['layers']} layers; "
        f"OAT / FLOAT in {best} is {report.oat_ratios()[best]:.3f}, where it is {printed['max']:.3f} as printed",
        line,
    ]


def _sparse_notes(report: "CostReport") -> list[str]:
    if not report.sparse or report.profile.chip() is None:
        return []
    nonzero = sum(cost.nonzero for cost in report.layers)
    weights = sum(cost.layer.weights for cost in report.layers)
    given = "given" if report.density is not None else "counted in the file"
    return [SPARSE, f"density {nonzero / weights:.4f}, {given}; delay_ns and energy_pj are dense"]


def _energy_notes(report: "CostReport") -> list[str]:
    profile = report.profile
    missing = missing_energies(profile)
    if missing:
        of_times = () if profile.energies else profile.remarks
        return [f"{missing}: energy_pj is null", *of_times]
    operand, total = ARITHMETIC[profile.b_w]
    return [
        f"energy_pj is a lower bound: {operand} products summed in {total}; each weight crosses {profile.weights_from} "
        f"and each input and output {profile.activations_in} once per image",
        *profile.remarks,
    ]


def _bits_notes(workload: Workload, bits: int) -> list[str]:
    stored = sorted({layer.weight_bits for layer in workload.layers if layer.weight_bits is not None})
    if not stored or stored == [bits]:
        return []
    sizes = " and ".join(map(str, stored))
    return [f"the file stores weights of {sizes} bits; all are priced at {bits}, which --set b_w changes"]


def _incomplete(workload: Workload) -> list[str]:
    found = [f"incomplete: not counted are {_counts(workload.not_counted)}"] if workload.not_counted else []
    parts = {"saliency": "an explainer", "cpl": "libraries"}
    found += [
        f"what the output {name} alone needs, {parts.get(name, 'another network')}, is not counted"
        for name in workload.left_out
    ]
    return found


def _methods(comparison: "Comparison") -> list[Method]:
    return list({report.method.label: report.method for report in comparison.reports}.values())


def _near(value: float, expected: float) -> bool:
    return abs(value / expected - 1) < 0.01


def _counts(operators: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(operators.items()))
