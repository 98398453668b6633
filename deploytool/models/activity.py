"""What the hidden neurons of a network answer: recorded while it runs, and the share of them that is active.

A hidden neuron is one output value of a nonlinearity that the network calls as a module, as a function or as a
method. Other layers' outputs and the logits are none.

Reference: D. Schwartz, Y. Alparslan, E. Kim, Regularization and sparsity for adversarial robustness and stable
attribution ("paper 2"), section 4.1: average activity ratio, or average density.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from deploytool.errors import InputError
from deploytool.models.conditional import ConditionalModel
from deploytool.models.setting import Setting

Network = Callable[[Tensor], Tensor]
Stack = list[tuple[str, nn.Module | None]]

BATCH = 256
NONLINEARITIES: frozenset[Callable[..., Any]] = frozenset({
    torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.elu, F.gelu,
    F.silu, F.mish, F.hardswish, F.softplus, torch.sigmoid, Tensor.sigmoid, F.hardsigmoid, torch.tanh, Tensor.tanh,
})  # fmt: skip


class Recorder(TorchFunctionMode):
    """Tells `on_output` the name of each nonlinearity's function and its output, in call order, while it is active.

    A function that calls another of them (ReLU6 runs hardtanh) counts once. Nothing is copied and no graph is cut:
    outputs carry their gradients.
    """

    def __init__(self, on_output: Callable[[str, Tensor], object]) -> None:
        super().__init__()
        self.on_output = on_output

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function; torch switches this mode off while it runs."""
        result = func(*args, **(kwargs or {}))
        if func in NONLINEARITIES:
            self.on_output(func.__name__, result)
        return result


@dataclass
class Pass:
    """One training forward: how many images, and the sum of |a_j| of each nonlinearity over all of them (scalars)."""

    images: int
    sums: list[Tensor]


@contextmanager
def trained_passes(network: nn.Module) -> Iterator[list[Pass]]:
    """Give the list of the network's forwards in training mode, which grows until the context ends.

    Forwards in evaluation mode, as attacks run them, are not recorded, nor are networks traced from this one; what a
    caller computes before and after the forward (the state, FiLM) is not part of it.
    """
    passes: list[Pass] = []
    plain = network.forward

    def forward(image: Tensor) -> Tensor:
        if not network.training:
            return plain(image)  # type: ignore[no-any-return]
        current = Pass(len(image), [])
        passes.append(current)
        with Recorder(lambda _, output: current.sums.append(torch.linalg.vector_norm(output, 1))):
            return plain(image)  # type: ignore[no-any-return]

    network.forward = forward
    try:
        yield passes
    finally:
        del network.forward


@dataclass(frozen=True)
class Activity:
    """How many hidden neurons were active (not 0) over some images.

    Attributes:
        images: how many.
        active: by layer in call order, the number of activations that are not 0, over all images.
        neurons: by layer, the number of hidden neurons.
    """

    images: int
    active: dict[str, int]
    neurons: dict[str, int]

    @property
    def ratio(self) -> float:
        """Average activity ratio of the whole network, in [0, 1]: active neurons per image, by all its neurons."""
        return sum(self.active.values()) / (self.images * sum(self.neurons.values()))

    @property
    def ratios(self) -> dict[str, float]:
        """Average activity ratio by layer, in [0, 1]."""
        return {name: count / (self.images * self.neurons[name]) for name, count in self.active.items()}


def activity_ratio(
    network: Network | ConditionalModel, images: Tensor, setting: Setting | None = None, batch: int = BATCH
) -> Activity:
    """Count the active hidden neurons of a network, exactly.

        ratio = 1 / (M * J) * sum_{i=1..M} card{ j : a_ij != 0 }          M images, J hidden neurons

    A layer's name is the path of its module (`features.2`), or of the module that calls a function, and the
    function's name (`layer1.0.relu`, the second one `layer1.0.relu_2`).

    Args:
        network: image (N, C, H, W) -> logits: a module in evaluation mode, any function of torch (its layers are
            named by their functions alone), or a run's conditional model, whose training mode is put back.
        images: (M, C, H, W) float32 in [0, 1], on the network's device.
        setting: of a conditional model; lambda 0 and width 1 where None.
        batch: images passed forward together; memory grows with it, not with M.

    Raises:
        InputError: there are no images, the module is in training mode, or nothing in the network is recorded.
    """
    if images.ndim != 4 or not len(images):
        raise InputError(f"images have shape {tuple(images.shape)}; expected (M, C, H, W), M at least 1")
    if isinstance(network, ConditionalModel):
        return _model_activity(network, images, setting or Setting(), batch)
    if isinstance(network, nn.Module) and network.training:
        raise InputError("the network is in training mode, where it answers otherwise; call .eval()")
    return _count(network, network if isinstance(network, nn.Module) else None, images, batch)


def _model_activity(model: ConditionalModel, images: Tensor, setting: Setting, batch: int) -> Activity:
    training, skeleton = model.training, model.skeleton(setting.width)
    model.eval()
    try:
        state = model.full_state(setting)
        return _count(lambda image: functional_call(skeleton, state, (image,)), skeleton, images, batch)
    finally:
        model.train(training)


@torch.no_grad()
def _count(network: Network, modules: nn.Module | None, images: Tensor, batch: int) -> Activity:
    active: dict[str, int] = {}
    neurons: dict[str, int] = {}
    with _paths(modules) as path:
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            found: dict[str, tuple[Tensor, int]] = {}
            with Recorder(partial(_add, found, path)):
                network(part)
            for name, (count, size) in found.items():
                active[name] = active.get(name, 0) + int(count)
                neurons[name] = size // len(part)
    if not neurons:
        raise InputError("the network calls no nonlinearity of torch that is known here; there is nothing to count")
    return Activity(len(images), active, neurons)


def _add(found: dict[str, tuple[Tensor, int]], path: Stack, function: str, output: Tensor) -> None:
    """Count an output under a name that no other of the same forward has."""
    place, module = path[-1]
    own = module is not None and not list(module.children()) and not list(module.parameters(recurse=False))
    name = place if own and place else f"{place}.{function}".lstrip(".")
    count = 1 + sum(known == name or known.startswith(f"{name}_") for known in found)
    found[name if count == 1 else f"{name}_{count}"] = output.count_nonzero(), output.numel()


@contextmanager
def _paths(network: nn.Module | None) -> Iterator[Stack]:
    """Give the stack of modules that are running, by path; the last is the innermost."""
    stack: Stack = [("", None)]
    with ExitStack() as hooks:
        for name, module in network.named_modules() if network is not None else ():
            entered = (name, module)
            before = module.register_forward_pre_hook(lambda *_, entered=entered: stack.append(entered))
            after = module.register_forward_hook(lambda *_: _pop(stack), always_call=True)
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        yield stack


def _pop(stack: Stack) -> None:
    stack.pop()
