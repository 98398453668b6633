"""Peak activation memory: which tensors are alive together while a network runs, one image at a time.

Nodes run one after the other in the file's order. A tensor is held from the node that makes it (an image from the
start) to the last node that reads it (a result of the network to the end); a node's inputs and outputs are held
together. Two tensors share their memory

- when the second is the first in another shape: Reshape, Flatten, Identity ... (always);
- when an elementwise node writes over an operand of the same size that nobody reads afterwards (`in_place`). The image
  itself is never written over.

Scratch memory of a kernel (im2col, accumulators) is not in it, and tensors that depend on no image are weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hwmodels.errors import WorkloadError

ALIASES = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
ELEMENTWISE = frozenset(
    {
        "Abs", "Add", "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "DequantizeLinear", "Div", "Elu", "Erf",
        "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg",
        "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus",
        "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Where",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One node that works on images.

    Attributes:
        layer: name of the layer that it is, "" for any other operator.
        op: its operator.
        reads, writes: tensors that depend on an image.
    """

    layer: str
    op: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Flow:
    """The tensors of a network that depend on an image.

    Attributes:
        steps: in the order of computation.
        values: elements of each tensor for one image; absent where unknown.
        images: the inputs among them.
        outputs: results of the network.
    """

    steps: tuple[Step, ...] = ()
    values: Mapping[str, int] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peak:
    """The largest sum of activations that are held together.

    Attributes:
        bytes: of them, at `bits` for each value.
        bits: of each value.
        values: number of them.
        layer: the layer that runs at the peak; the last one before it where another operator does.
        op: operator that runs at the peak.
        tensors: what is held then: (name, values), the largest first. Tensors that share memory appear once.
        in_place: whether elementwise operators write over their operands.
        unknown: tensors whose size is unknown and which are left out; where there are any, `bytes` is a lower bound.
    """

    bytes: int
    bits: int
    values: int
    layer: str
    op: str
    tensors: tuple[tuple[str, int], ...]
    in_place: bool
    unknown: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The peak as JSON; MB are 10^6 bytes."""
        return {
            "peak_activation_bytes": self.bytes,
            "peak_activation_mb": self.bytes / 1e6,
            "activation_bits": self.bits,
            "layer": self.layer,
            "operator": self.op,
            "in_place": self.in_place,
            "tensors": [{"name": name, "values": values} for name, values in self.tensors],
            "unknown": list(self.unknown),
        }


def peak_activations(flow: Flow, bits: int = 8, in_place: bool = True) -> Peak:
    """Find the largest sum of activations that are held together; see the module.

    Args:
        flow: of a workload.
        bits: of each activation, 1 to 64.
        in_place: whether elementwise operators write over their operands; batch norms and activation functions then
            need no memory of their own, as when they are fused into the layer before them.

    Raises:
        WorkloadError: bits is not in 1..64, or there is nothing to hold.
    """
    check_bits("activation bits", bits)
    if not flow.steps:
        raise WorkloadError("a flow without steps has no activations; read it with read_workload")
    buffer, last = _buffers(flow, in_place)
    start: dict[str, int] = {}
    end: dict[str, int] = {}
    for tensor, made in _made(flow).items():
        root = buffer[tensor]
        start[root] = min(start.get(root, made), made)
        end[root] = max(end.get(root, made), last[tensor])
    changes = [0] * (len(flow.steps) + 1)
    for root, values in ((root, flow.values.get(root, 0)) for root in start):
        changes[max(start[root], 0)] += values
        changes[min(end[root], len(flow.steps) - 1) + 1] -= values
    held, peak, at = 0, -1, 0
    for index, change in enumerate(changes[:-1]):
        held += change
        if held > peak:
            peak, at = held, index
    alive = [(root, flow.values.get(root, 0)) for root in start if start[root] <= at <= end[root]]
    layers = [step.layer for step in flow.steps[: at + 1] if step.layer]
    return Peak(
        bytes=-(-peak * bits // 8),
        bits=bits,
        values=peak,
        layer=layers[-1] if layers else "",
        op=flow.steps[at].op,
        tensors=tuple(sorted(alive, key=lambda each: (-each[1], each[0]))),
        in_place=in_place,
        unknown=tuple(sorted(name for name in buffer if name not in flow.values)),
    )


def check_bits(name: str, bits: int) -> int:
    """Return a number of bits per value in 1..64; raise WorkloadError otherwise."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 64:
        raise WorkloadError(f"{name} (={bits}) must be an integer in 1..64; 32 is float32, 8 is int8")
    return bits


def _made(flow: Flow) -> dict[str, int]:
    """The step that makes each tensor, -1 for images."""
    made = {name: index for index, step in enumerate(flow.steps) for name in step.writes}
    return made | dict.fromkeys(flow.images, -1)


def _buffers(flow: Flow, in_place: bool) -> tuple[dict[str, str], dict[str, int]]:
    """For each tensor: the one whose memory it is in, and the last step that needs it."""
    last = _made(flow)
    for index, step in enumerate(flow.steps):
        last.update((name, index) for name in step.reads)
    last.update((name, len(flow.steps)) for name in flow.outputs)
    buffer = {name: name for name in flow.images}
    needed = {name: last[name] for name in flow.images}  # by buffer
    for index, step in enumerate(flow.steps):
        for position, name in enumerate(step.writes):
            root = name
            size = flow.values.get(name)
            same = [each for each in step.reads if flow.values.get(each) == size and each in buffer]
            if position or size is None:
                pass
            elif step.op in ALIASES and step.reads[:1] == tuple(same[:1]):
                root = buffer[step.reads[0]]
            elif in_place and step.op in ELEMENTWISE:
                free = [each for each in same if needed[buffer[each]] <= index and buffer[each] not in flow.images]
                root = buffer[free[0]] if free else name
            buffer[name] = root
            needed[root] = max(needed.get(root, -1), last[name])
    return buffer, last
