"""Where a network spends its time on this machine: onnxruntime's profile of every operator, by layer.

onnxruntime fuses and renames nodes before it runs them, so names of the file are no key. A copy of the model is
profiled instead, each node of it named `hwmodels#INDEX#`. What then appears in the profile (onnxruntime 1.20 to 1.31):

    Gemm, FusedConv, QGemm, QLinearAdd     the name of the node that took in its neighbours
    QLinearConv                            the same with `_token_N` after it
    Conv of NCHWc blocks                   the name of the tensor it makes with `_nchwc` after it: its own, or that of
                                           the activation or batch norm that it took in; the layer is found by walking
                                           back from there
    ReorderOutput, Transpose ...           made by onnxruntime, of no node: counted beside the layers, by operator

A layer that nothing was joined to, and a convolution or product that belongs to no layer, are listed.
"""

import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime

from hwmodels.errors import MeasureError
from hwmodels.workload import Layer, Workload

MARK = re.compile(r"hwmodels#(\d+)#")
KERNEL, BLOCKED = "_kernel_time", "_nchwc"
LAYER_OPERATOR = re.compile(r"Conv|Gemm|MatMul")  # in all names of operators that do a layer's work
RUNS, WARM_UP = 30, 5
RESOLUTION_NS = 1000.0  # the profiler counts whole microseconds
SEARCH = 64  # nodes to walk back over; fusions take in two or three
TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}
TYPES |= {"tensor(uint8)": np.uint8, "tensor(int8)": np.int8}


@dataclass(frozen=True)
class Event:
    """One operator in one run of a profile."""

    name: str
    op: str
    ns: float


@dataclass(frozen=True)
class Run:
    """One inference of a profile: its operators in the order they ran, and the time from end to end."""

    events: tuple[Event, ...]
    total_ns: float


@dataclass(frozen=True)
class Leftover:
    """A convolution or product in the profile that could be joined to no layer."""

    name: str
    op: str
    ns: float


@dataclass(frozen=True)
class Measured:
    """What a network's profile says; times are medians over the runs, for one inference.

    Attributes:
        workload: the network.
        layer_ns: time of each layer by its name; activations and additions that were fused into it included.
        other_ns: time of all other operators, by operator; the leftovers are among them.
        unmeasured: names of layers that nothing in the profile was joined to.
        leftovers: convolutions and products that belong to no layer.
        operators_ns: sum over all operators.
        total_ns: from end to end, the profiler running.
        threads: of one inference.
        runs: how many were made after warm-up.
        batch: images in one inference.
    """

    workload: Workload
    layer_ns: Mapping[str, float]
    other_ns: Mapping[str, float]
    unmeasured: tuple[str, ...]
    leftovers: tuple[Leftover, ...]
    operators_ns: float
    total_ns: float
    threads: int
    runs: int
    batch: int = 1

    def layers(self) -> list[tuple[Layer, float]]:
        """The layers that were measured with their times in ns, at least half of what the profiler can tell."""
        found = [layer for layer in self.workload.layers if layer.name in self.layer_ns]
        return [(layer, max(self.layer_ns[layer.name], RESOLUTION_NS / 2)) for layer in found]

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON."""
        return {
            "layer_ns": dict(self.layer_ns),
            "other_ns": dict(self.other_ns),
            "unmeasured": list(self.unmeasured),
            "leftovers": [{"name": each.name, "op": each.op, "ns": each.ns} for each in self.leftovers],
            "operators_ns": self.operators_ns,
            "total_ns": self.total_ns,
            "threads": self.threads,
            "runs": self.runs,
            "batch": self.batch,
        }


class Profiled:
    """An onnxruntime session that keeps a profile; a context, so that its files go away with it.

    Args:
        model: the ONNX file's bytes.
        workload: the same file as `read_workload` reads it. Its inputs must all be images.
        threads: of one inference.

    Raises:
        MeasureError: the network takes more than images, or onnxruntime refuses it.
    """

    def __init__(self, model: bytes, workload: Workload, threads: int = 1) -> None:
        knobs = [name for name in workload.inputs if name not in workload.images]
        if knobs:
            raise MeasureError(
                f"{workload.file} takes {', '.join(knobs)} beside its image; measure a file in which they are fixed"
            )
        if threads < 1:
            raise MeasureError(f"threads (={threads}) must be at least 1")
        self.workload, self.threads = workload, threads
        self.runs = 0
        self._folder = tempfile.TemporaryDirectory(prefix="hwmodels-")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        try:
            self._session = onnxruntime.InferenceSession(
                marked(model, workload), options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            self._feed = {each.name: self._image(each.name, each.type) for each in self._session.get_inputs()}
        except Exception as error:
            self._folder.cleanup()
            if isinstance(error, MeasureError):
                raise
            raise MeasureError(f"{workload.file} is refused by onnxruntime: {_line(error)}") from None

    def __enter__(self) -> "Profiled":
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def run(self) -> None:
        """Run one inference on fixed random images. Raises MeasureError where it fails."""
        try:
            self._session.run(None, self._feed)
        except Exception as error:
            raise MeasureError(f"{self.workload.file} fails in onnxruntime: {_line(error)}") from None
        self.runs += 1

    def finish(self, warm_up: int = WARM_UP) -> Measured:
        """End the profile and join it to the layers; the first `warm_up` runs do not count."""
        try:
            text = Path(self._session.end_profiling()).read_text(encoding="utf-8", errors="replace")
        except OSError as error:  # a full disk
            raise MeasureError(
                f"the profile of {self.workload.file} cannot be read: {error.strerror}; is the temporary folder full?"
            ) from None
        runs = read_profile(text, self.workload.file)
        if len(runs) <= warm_up:
            raise MeasureError(f"the profile of {self.workload.file} holds {len(runs)} runs, {warm_up} for warm-up")
        return join(self.workload, runs[warm_up:], self.threads)

    def _image(self, name: str, kind: str) -> np.ndarray[Any, Any]:
        if kind not in TYPES:
            raise MeasureError(f"{self.workload.file}: input {name} is a {kind}; measured are {', '.join(TYPES)}")
        values = np.random.default_rng(0).random(self.workload.images[name])
        scale = 1 if np.issubdtype(TYPES[kind], np.floating) else 100
        return (values * scale).astype(TYPES[kind])


def measure(
    models: Sequence[bytes], workloads: Sequence[Workload], threads: int = 1, runs: int = RUNS, warm_up: int = WARM_UP
) -> list[Measured]:
    """Profile networks in turns, so that whatever else the machine does meets them alike.

    Args:
        models: the ONNX files' bytes.
        workloads: the same files as `read_workload` reads them.
        threads: of one inference.
        runs: inferences of each network.
        warm_up: inferences before those, which do not count.

    Raises:
        MeasureError: a network cannot be measured.
    """
    if runs < 1:
        raise MeasureError(f"runs (={runs}) must be at least 1")
    opened: list[Profiled] = []
    try:
        for model, workload in zip(models, workloads, strict=True):
            opened.append(Profiled(model, workload, threads))
        for turn in range(warm_up + runs):
            for index in range(len(opened)):
                opened[(index + turn) % len(opened)].run()
        return [each.finish(warm_up) for each in opened]
    finally:
        for each in opened:
            each.__exit__()


def marked(data: bytes, workload: Workload) -> bytes:
    """A copy of a model, its nodes named by their place in `workload.flow`, all others by none."""
    model = onnx.load_model_from_string(data)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    places = _places(workload)
    for node in model.graph.node:
        place = next((places[name] for name in node.output if name in places), None)
        node.name = "" if place is None else f"hwmodels#{place}#"
    return model.SerializeToString()


def read_profile(text: str, file: str = "the network") -> list[Run]:
    """Read the JSON that onnxruntime's profiler writes.

    Args:
        text: of the JSON file.
        file: for messages.

    Raises:
        MeasureError: it is damaged, or holds no finished run.
    """
    try:
        document = json.loads(text)
        runs: list[Run] = []
        events: list[Event] = []
        for entry in document:
            name, category = entry.get("name", ""), entry.get("cat")
            if category == "Node" and name.endswith(KERNEL):
                op, ns = str(entry["args"]["op_name"]), _nanoseconds(entry)
                events.append(Event(name.removesuffix(KERNEL), op, ns))
            elif category == "Session" and name == "model_run":
                runs.append(Run(tuple(events), _nanoseconds(entry)))
                events = []
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise MeasureError(
            f"the profile of {file} is damaged ({type(error).__name__}: {_line(error)[:80]}); measure again"
        ) from None
    if not runs:
        raise MeasureError(f"the profile of {file} holds no finished run; measure again")
    return runs


def join(workload: Workload, runs: Sequence[Run], threads: int = 1) -> Measured:
    """Give each operator of a profile of `marked` to the layer that it computes; see the module."""
    steps = workload.flow.steps
    places = _places(workload)
    owner: dict[tuple[str, str], str] = {}  # layer by name and operator in the profile
    names = dict.fromkeys((event.name, event.op) for run in runs for event in run.events)
    for name, op in names:  # first what says itself which layer it is
        place = _place(name, places)
        if place is not None and steps[place].layer:
            owner[name, op] = steps[place].layer
    claimed = set(owner.values())
    for name, op in names:
        place = _place(name, places)
        if (name, op) not in owner and place is not None and LAYER_OPERATOR.search(op):
            layer = _layer_behind(workload, place, places, claimed)
            if layer:
                owner[name, op] = layer
                claimed.add(layer)
    by_layer: dict[str, list[float]] = {}
    by_other: dict[str, list[float]] = {}
    left: dict[tuple[str, str], list[float]] = {}
    for number, run in enumerate(runs):
        for event in run.events:
            key = event.name, event.op
            into, label = (by_layer, owner[key]) if key in owner else (by_other, event.op)
            into.setdefault(label, [0.0] * len(runs))[number] += event.ns
            if key not in owner and LAYER_OPERATOR.search(event.op):
                left.setdefault(key, [0.0] * len(runs))[number] += event.ns
    order = [layer.name for layer in workload.layers]
    return Measured(
        workload,
        layer_ns={name: median(by_layer[name]) for name in order if name in by_layer},
        other_ns={op: median(times) for op, times in by_other.items()},
        unmeasured=tuple(name for name in order if name not in by_layer),
        leftovers=tuple(Leftover(name, op, median(times)) for (name, op), times in left.items()),
        operators_ns=median(sum(event.ns for event in run.events) for run in runs),
        total_ns=median(run.total_ns for run in runs),
        threads=threads,
        runs=len(runs),
        batch=_batch(workload),
    )


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation: Pearson's of the ranks, ties having the mean of the ranks they share.

    Reference: C. Spearman, The proof and measurement of association between two things, 1904.

    Args:
        first, second: as many numbers each.

    Returns:
        In [-1, 1]; None with fewer than two numbers, or where all of one side are equal.
    """
    if len(first) != len(second):
        raise MeasureError(f"{len(first)} numbers have no rank correlation with {len(second)}")
    if len(first) < 2:
        return None
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (first, second)]
    x, y = (rank - rank.mean() for rank in ranks)
    spread = math.sqrt(float(x @ x) * float(y @ y))
    return None if spread == 0 else max(-1.0, min(1.0, float(x @ y) / spread))


def _ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray[Any, Any] = (last - (counts - 1) / 2)[inverse.ravel()]
    return ranks


def _places(workload: Workload) -> dict[str, int]:
    """The step of the flow that makes each tensor."""
    return {name: place for place, step in enumerate(workload.flow.steps) for name in step.writes}


def _place(name: str, places: Mapping[str, int]) -> int | None:
    """The step that a name in the profile stands for."""
    found = MARK.search(name)
    if found:
        place = int(found[1])
        return place if place in places.values() else None
    return places.get(name.removesuffix(BLOCKED))


def _layer_behind(workload: Workload, place: int, places: Mapping[str, int], claimed: set[str]) -> str:
    """The nearest layer before a step that nothing else in the profile computes; "" where there is none."""
    steps = workload.flow.steps
    queue, seen = [place], {place}
    while queue and len(seen) < SEARCH:
        step = steps[queue.pop(0)]
        if step.layer:
            if step.layer not in claimed:
                return step.layer
            continue
        for name in step.reads:
            before = places.get(name)
            if before is not None and before not in seen:
                seen.add(before)
                queue.append(before)
    return ""


def _batch(workload: Workload) -> int:
    """Images in one run, as `hwmodels.inputs.fix_images` counts them."""
    first = next(iter(workload.images.values()), (1,))
    return 1 if len(first) == 3 and first[0] == 3 else first[0]


def _nanoseconds(entry: Mapping[str, Any]) -> float:
    ns = float(entry["dur"]) * 1e3
    if not 0 <= ns < math.inf:
        raise ValueError(f"a duration of {entry['dur']}")
    return ns


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]
