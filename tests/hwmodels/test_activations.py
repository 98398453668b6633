"""Peak activation memory: graphs worked by hand, and an oracle that simulates every step on random graphs."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodels.activations import ALIASES, ELEMENTWISE, Flow, Step, peak_activations
from hwmodels.errors import WorkloadError
from hwmodels.workload import read_workload


def simulated(flow: Flow, in_place: bool) -> int:
    """Values held at the worst step, by brute force: cells of memory, and all later steps looked at in every step."""
    cells = [{name} for name in flow.images]
    image_cells = list(cells)
    worst = 0
    for index, step in enumerate(flow.steps):
        later = {name for each in flow.steps[index + 1 :] for name in each.reads} | set(flow.outputs)
        for position, name in enumerate(step.writes):
            size = flow.values.get(name)
            fitting = [cell for read in step.reads for cell in cells if read in cell and flow.values.get(read) == size]
            chosen = None
            if position == 0 and size is not None:
                if step.op in ALIASES and step.reads and flow.values.get(step.reads[0]) == size:
                    chosen = next(cell for cell in cells if step.reads[0] in cell)
                elif in_place and step.op in ELEMENTWISE:
                    dead = [cell for cell in fitting if not cell & later and not any(cell is c for c in image_cells)]
                    chosen = dead[0] if dead else None
            if chosen is None:
                cells.append({name})
            else:
                chosen.add(name)
        needed = later | set(step.reads) | set(step.writes)
        worst = max(worst, sum(flow.values.get(sorted(cell)[0], 0) for cell in cells if cell & needed))
    return worst


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    tensors = [f"image{i}" for i in range(draw(st.integers(1, 2)))]
    images = tuple(tensors)
    steps = []
    for index in range(draw(st.integers(1, 12))):
        op = draw(st.sampled_from(["Conv", "Relu", "Relu", "Add", "Reshape", "Identity", "Dropout", "Split"]))
        count = 2 if op in ("Conv", "Add") else 1
        reads = draw(st.lists(st.sampled_from(tensors[-5:]), min_size=1, max_size=count, unique=True))
        writes = [f"t{index}.{i}" for i in range(2 if op in ("Dropout", "Split") else 1)]
        steps.append(Step("", op, tuple(reads), tuple(writes)))
        tensors += writes
    values = {name: draw(st.sampled_from([1, 1, 1, 2])) for name in tensors}
    for step in steps:  # a reshaped tensor has as many values
        if step.op in ALIASES:
            values[step.writes[0]] = values[step.reads[0]]
    outputs = draw(st.lists(st.sampled_from(tensors[len(images) :]), unique=True, max_size=3))
    return Flow(tuple(steps), values, images, tuple({*outputs, tensors[-1]}))


@given(flow=flows(), in_place=st.booleans())
@settings(max_examples=400)
def test_the_peak_is_that_of_a_simulation(flow: Flow, in_place: bool) -> None:
    peak = peak_activations(flow, bits=8, in_place=in_place)
    assert peak.values == peak.bytes == simulated(flow, in_place)
    assert sum(values for _, values in peak.tensors) == peak.values and peak.unknown == ()


@given(flow=flows())
def test_writing_in_place_never_takes_more(flow: Flow) -> None:
    apart, together = (peak_activations(flow, in_place=in_place).values for in_place in (False, True))
    largest = max(sum(flow.values[name] for name in {*step.writes}) for step in flow.steps)
    assert largest <= together <= apart <= sum(flow.values.values())


def test_memory_is_needed_as_long_as_any_of_its_tensors() -> None:
    """b is a in another shape; the Relu is the last to read b, and may not write over a, which is read later."""
    steps = (
        Step("", "Conv", ("x",), ("a",)),
        Step("", "Reshape", ("a",), ("b",)),
        Step("", "Relu", ("b",), ("c",)),
        Step("", "Add", ("c", "a"), ("y",)),
    )
    flow = Flow(steps, {"x": 1, "a": 10, "b": 10, "c": 10, "y": 10}, ("x",), ("y",))
    assert peak_activations(flow).values == 20


CHAIN = Flow(
    steps=(
        Step("stem", "Conv", ("x",), ("a",)),
        Step("", "Relu", ("a",), ("b",)),
        Step("block", "Conv", ("b",), ("c",)),
        Step("", "Add", ("c", "b"), ("d",)),
        Step("", "Flatten", ("d",), ("e",)),
        Step("head", "Gemm", ("e",), ("y",)),
    ),
    values={"x": 30, "a": 100, "b": 100, "c": 100, "d": 100, "e": 100, "y": 10},
    images=("x",),
    outputs=("y",),
)


def test_a_residual_block_by_hand() -> None:
    """In place b, c and then nothing more: 200; apart b, c and d in the Add: 300."""
    together, apart = peak_activations(CHAIN), peak_activations(CHAIN, in_place=False)
    assert (together.values, together.layer, together.op) == (200, "block", "Conv")
    assert together.tensors == (("a", 100), ("c", 100))  # b is in a's memory
    assert (apart.values, apart.layer, apart.op) == (300, "block", "Add")


@pytest.mark.parametrize(("bits", "size"), [(8, 200), (32, 800), (4, 100), (1, 25), (3, 75)])
def test_bits_of_an_activation(bits: int, size: int) -> None:
    assert peak_activations(CHAIN, bits).bytes == size


def test_an_image_is_not_written_over() -> None:
    flow = Flow((Step("", "Relu", ("x",), ("y",)),), {"x": 5, "y": 5}, ("x",), ("y",))
    assert peak_activations(flow).values == 10


def test_a_result_is_held_to_the_end() -> None:
    steps = (*CHAIN.steps, Step("", "Relu", ("y",), ("z",)))
    flow = replace(CHAIN, steps=steps, values={**CHAIN.values, "z": 10}, outputs=("z", "b"))
    peak = peak_activations(flow)
    assert (peak.values, peak.layer) == (210, "head")  # b; c, which the Add writes over; y
    assert peak_activations(replace(flow, outputs=("z", "b", "c"))).values == 310  # the Add may not write over c


def test_tensors_of_unknown_size_are_named() -> None:
    values = {name: size for name, size in CHAIN.values.items() if name != "c"}
    peak = peak_activations(replace(CHAIN, values=values))
    assert peak.unknown == ("c",) and peak.values == 130 and peak.layer == "stem"  # x and a


def test_our_resnet34(resnet34_file: Path) -> None:
    """The first block's second convolution: its input, its output and the shortcut, 64 x 32 x 32 each."""
    peak = peak_activations(read_workload(resnet34_file).flow)
    assert (peak.bytes, peak.layer, peak.unknown) == (3 * 64 * 32 * 32, "layer1.0.conv2", ())
    assert peak.to_dict()["peak_activation_mb"] == pytest.approx(0.196608)


@pytest.mark.parametrize("bits", [0, 65, True, 8.0])
def test_bits_that_no_number_has_are_refused(bits: object) -> None:
    with pytest.raises(WorkloadError, match=r"activation bits .* 1..64"):
        peak_activations(CHAIN, bits)


def test_nothing_to_hold_is_refused() -> None:
    with pytest.raises(WorkloadError, match="no activations"):
        peak_activations(Flow())
