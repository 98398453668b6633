"""What there is to train: every backbone with every method, its parameters and its operations.

Nothing is computed or allocated for that: backbones are built and run on torch's meta device.
"""

from typing import Any

import torch
from torch import Tensor, nn

from deploytool.data.catalogue import DatasetInfo
from deploytool.models.conditional import batch_norms, weight_names
from deploytool.models.oat import Film, filmed_norms
from deploytool.models.registry import BACKBONES, build_backbone

Row = dict[str, Any]

METHODS = ("standard", "pgd-at", "float", "oat")


def list_models(data: DatasetInfo) -> list[Row]:
    """List all backbones with all methods that they can be trained with for a data set.

    Returns:
        Rows of `arch`, `method`, `dataset`; `params`, the parameters of the backbone with one set of batch norms, and
        of OAT's FiLM layers with a scalar lambda (paper 5: 21.28 M for ResNet-34, 31.40 M with OAT); `extra_params`,
        what dual batch norm and FLOAT's alphas add; and `macs`, multiply-accumulate operations of the convolutions
        and linear layers for one image.
    """
    rows = []
    for arch in sorted(BACKBONES):
        with torch.device("meta"):
            backbone = build_backbone(arch, data).eval()
        macs = count_macs(backbone, data.shape)
        for method in METHODS:
            if method == "oat" and not filmed_norms(backbone):
                continue  # OAT has nothing to condition
            params, extra = count_params(backbone, method), extra_params(backbone, method)
            rows.append(
                {
                    "arch": arch,
                    "method": method,
                    "dataset": data.name,
                    "params": params,
                    "extra_params": extra,
                    "macs": macs,
                }
            )
    return rows


def count_params(backbone: nn.Module, method: str) -> int:
    """Parameters of a backbone with one set of batch norms, and of the FiLM layers where the method is OAT."""
    films: list[Film] = []
    if method == "oat":
        with torch.device("meta"):
            films = [Film(norm.num_features, code_size=1) for _, norm in filmed_norms(backbone)]
    return sum(p.numel() for module in [backbone, *films] for p in module.parameters())


def extra_params(backbone: nn.Module, method: str) -> int:
    """Scale and shift of the second batch norms (FLOAT, OAT), and one alpha per layer (FLOAT)."""
    second = sum(p.numel() for _, norm in batch_norms(backbone) for p in norm.parameters())
    alphas = len(weight_names(backbone)) if method == "float" else 0
    return second + alphas if method in ("float", "oat") else 0


def count_macs(backbone: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulate operations of convolutions and linear layers for one image (C, H, W).

    A convolution has K_h * K_w * C_in / groups per output value, a linear layer as many as it has inputs; additions
    of biases are not counted. The backbone is on the meta device, in evaluation mode.
    """
    macs = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal macs
        weight = layer.get_parameter("weight")
        macs += output.numel() * weight[0].numel()

    handles = [layer.register_forward_hook(count) for layer in _layers(backbone)]
    try:
        with torch.no_grad():
            backbone(torch.empty(1, *shape, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return macs


def _layers(backbone: nn.Module) -> list[nn.Module]:
    return [module for module in backbone.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
