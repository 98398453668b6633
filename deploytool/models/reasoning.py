"""The second head: reasoning labels beside the class, from any layer of a plain backbone.

    before:  image -> ... -> h -> ... -> logits                          (N, K)
    after:   image -> ... -> h -> ... -> logits
                              \\-> mean over H, W -> linear -> reasoning     (N, K + R), logits first

The backbone is traced as far as the chosen layer and no further, so that its modules, and all names of its tensors,
stay what they are; the head is one linear layer, `reasoning`. Its output is before the sigmoid.

Reference: V. Nanda, J. Ali, K. P. Gummadi, M. B. Zafar, Unifying model explainability and robustness via reasoning
labels ("paper 1"), section 3.2, eqs. 1 and 2: the two heads share all hidden layers, or sit on different ones.
"""

import difflib
from typing import Any

import torch
from torch import Tensor, fx, nn

from deploytool.errors import RecipeError

HEAD = "reasoning"


def with_reasoning(
    backbone: nn.Module, reasons: int, shape: tuple[int, int, int], layer: str | None = None
) -> fx.GraphModule:
    """Put a head for reasoning labels on a backbone.

    Args:
        backbone: image (N, C, H, W) -> logits (N, K), its last layer linear; on `meta` the head is, too. Its modules
            are taken over, not copied.
        reasons: R, the number of labels.
        shape: (C, H, W) of an image.
        layer: path of the module on whose output (N, F) or (N, F, H, W) the head sits; where None, it reads what the
            classifier reads, as in eqs. 1 and 2.

    Returns:
        image (N, C, H, W) -> (N, K + R): logits, then reasoning logits.

    Raises:
        RecipeError: there is no such layer, it is called more than once or answers something else, or the backbone
            cannot be traced so far.
    """
    tap = _classifier(backbone) if layer is None else _known_layer(backbone, layer)
    try:
        graph = _Tracer(tap).trace(backbone)
    except Exception as error:  # tracing runs the backbone's own code on proxies, which may raise anything
        reason = " ".join(str(error).split())[:120]
        raise RecipeError(
            f"reasoning.layer (={layer}): the backbone cannot be traced ({reason}); leave it out"
        ) from None
    nodes = [node for node in graph.nodes if node.op == "call_module" and node.target == tap]
    if len(nodes) != 1:
        raise RecipeError(
            f"reasoning.layer (={tap}) is called {len(nodes)} times in a forward pass; name another layer"
        )
    source = nodes[0] if layer is not None else nodes[0].args[0]
    size = _answer_size(backbone, shape, tap, before=layer is None)
    if len(size) not in (2, 4):
        raise RecipeError(f"reasoning.layer (={tap}) answers {size}; a head needs (N, F) or (N, F, H, W)")
    device = next(backbone.parameters()).device
    network = fx.GraphModule(backbone, graph)
    network.add_submodule(HEAD, nn.Linear(size[1], reasons, device=device))
    output = next(node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        if len(size) == 4:
            source = graph.call_method("mean", (source, (2, 3)))
        reasoning = graph.call_module(HEAD, (source,))
        output.args = (graph.call_function(torch.cat, ([output.args[0], reasoning], 1)),)
    network.recompile()
    return network.train(backbone.training)


def without_reasoning(network: nn.Module) -> fx.GraphModule:
    """Take the head off a network that `with_reasoning` made, in place, and return it: it answers logits (N, K)."""
    assert isinstance(network, fx.GraphModule)
    output = next(node for node in network.graph.nodes if node.op == "output")
    (joined,) = output.args
    output.args = (joined.args[0][0],)
    network.graph.eliminate_dead_code()
    network.delete_submodule(HEAD)
    network.recompile()
    return network


class _Tracer(fx.Tracer):
    """Looks into the modules around one layer, and into no other."""

    def __init__(self, tap: str) -> None:
        super().__init__()
        self.tap = tap

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays one call."""
        return not self.tap.startswith(f"{module_qualified_name}.")


def _classifier(backbone: nn.Module) -> str:
    """The path of the last linear layer."""
    linear: list[str] = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise RecipeError(
            "reasoning.layer must be named: the backbone has no linear layer whose input could be shared; "
            f"known: {_some(_layers(backbone))}"
        )
    return linear[-1]


def _known_layer(backbone: nn.Module, layer: str) -> str:
    known = _layers(backbone)
    if layer not in known:
        near = difflib.get_close_matches(layer, known, n=1)
        advice = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(
            f"reasoning.layer (={layer[:60]!r}) is no layer of the backbone; {advice}known: {_some(known)}"
        )
    return layer


def _layers(backbone: nn.Module) -> list[str]:
    """Paths of all modules, the outer ones first."""
    names = [name for name, _ in backbone.named_modules() if name]
    return sorted(names, key=lambda name: name.count("."))


def _some(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@torch.no_grad()
def _answer_size(backbone: nn.Module, shape: tuple[int, int, int], layer: str, before: bool) -> tuple[int, ...]:
    """Shape of what a layer reads (`before`) or answers, for one image."""
    sizes: list[tuple[int, ...]] = []

    def note(_: nn.Module, given: tuple[Any, ...], answer: Any = None) -> None:
        value = given[0] if before else answer
        sizes.append(tuple(value.shape) if isinstance(value, Tensor) else ())

    module = backbone.get_submodule(layer)
    hook = module.register_forward_pre_hook(note) if before else module.register_forward_hook(note)
    training = backbone.training
    try:
        backbone.eval()(torch.zeros(1, *shape, device=next(backbone.parameters()).device))
    finally:
        hook.remove()
        backbone.train(training)
    return sizes[0] if sizes else ()
