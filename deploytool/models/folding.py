"""The evaluation-mode network of an attack, batch norms folded into the convolutions before them.

    before:  Conv(x, W) -> BatchNorm(., gamma, beta, mean, var)
    after:   Conv(x, W * a, beta + (bias - mean) * a)        a = gamma / sqrt(var + epsilon)

An attack runs the same state many times; the batch norms' passes over the activations, forward and backward, are
saved each time, the answers stay the same up to rounding. `deploytool.runtime.partial` does this to ONNX graphs.
"""

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.utils import fuse_conv_bn_eval

State = dict[str, Tensor]

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class FoldedBackbone:
    """A backbone traced once, without the batch norms that are the only reader of a convolution's result.

    Batch norms elsewhere stay (a pre-activation network keeps half of them), and so do all of a backbone that
    cannot be traced.

    Args:
        backbone: plain network; its tensors are not copied, and it is not changed.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.network: nn.Module = backbone
        self.pairs: list[tuple[str, str, float]] = []
        try:
            traced = fx.symbolic_trace(backbone)
        except Exception:  # tracing runs the backbone's own code on proxies, which may raise anything
            return
        self._fold_nodes(traced)
        self.network = traced

    def _fold_nodes(self, traced: fx.GraphModule) -> None:
        modules = dict(traced.named_modules())
        uses = [node.target for node in traced.graph.nodes if node.op == "call_module"]
        for node in list(traced.graph.nodes):
            if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
                continue
            source, norm = node.args[0], modules[node.target]
            conv = modules.get(source.target) if source.op == "call_module" else None
            used_once = len(source.users) == 1 and uses.count(node.target) == uses.count(source.target) == 1
            if not isinstance(conv, nn.Conv2d) or not used_once or not (norm.affine and norm.track_running_stats):
                continue
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
            self.pairs.append((source.target, node.target, norm.eps))
            traced.set_submodule(source.target, _with_bias(conv))
        traced.recompile()

    def fold(self, state: State) -> State:
        """Map a full state of the backbone (all parameters and buffers) to one of the folded network."""
        folded = dict(state)
        for conv, norm, eps in self.pairs:
            gamma, beta, mean, variance, _ = (folded.pop(f"{norm}.{key}") for key in NORM_TENSORS)
            a = gamma * (variance + eps).rsqrt()
            weight = folded[f"{conv}.weight"]
            bias = folded.get(f"{conv}.bias")
            folded[f"{conv}.weight"] = weight * a.view(-1, *[1] * (weight.dim() - 1))
            folded[f"{conv}.bias"] = beta + ((-mean if bias is None else bias - mean) * a)
        return folded

    def __call__(self, folded: State, image: Tensor) -> Tensor:
        """Map image (N, C, H, W) to logits (N, K) with a state that `fold` made; evaluation mode is the caller's."""
        return functional_call(self.network, folded, (image,))  # type: ignore[no-any-return]


def _with_bias(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution with a bias, on the meta device: every call brings its tensors along."""
    return nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        True,
        conv.padding_mode,
        device="meta",
    )


def folded_network(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """An evaluation-mode network with its batch norms folded: the same answers up to rounding, sooner."""
    folded = FoldedBackbone(module)
    state = folded.fold({**dict(module.named_parameters()), **dict(module.named_buffers())})
    return lambda image: folded(state, image)


@torch.no_grad()
def folded_module(module: nn.Module, image: Tensor) -> nn.Module:
    """A copy of an evaluation-mode network with its batch norms folded, its submodules under the names they had.

    Hooks find their layers there, and a single image is answered sooner than by `folded_network`, which brings its
    tensors along with every call. Where the whole cannot be traced, its parts are folded one by one; where the copy
    then answers otherwise, because a parent calls something inside of them, it comes back with its batch norms.

    Args:
        module: answers a tensor, or a tuple of them; it stays as it is.
        image: (N, C, H, W), to compare answers on, where the module is.
    """
    folded = copy.deepcopy(module).eval().requires_grad_(False)
    _fold_parts(folded)
    before, after = (answer if isinstance(answer, tuple) else (answer,) for answer in (module(image), folded(image)))
    same = all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max())) for a, b in zip(before, after, strict=True)
    )
    return folded if same else copy.deepcopy(module).eval().requires_grad_(False)


def _fold_parts(module: nn.Module) -> None:
    traced = FoldedBackbone(module)
    if traced.network is module:
        for child in module.children():
            _fold_parts(child)
    for conv, norm, _ in traced.pairs:
        pair = cast(nn.Conv2d, module.get_submodule(conv)), cast(nn.BatchNorm2d, module.get_submodule(norm))
        module.set_submodule(conv, fuse_conv_bn_eval(*pair))
        module.set_submodule(norm, nn.Identity())
