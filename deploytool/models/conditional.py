"""The conditional state: a plain backbone, and a pure transform of its parameters.

    state(theta, setting) -> {parameter name: tensor}        logits = functional_call(backbone, state, image)

There is no second copy of any layer: conditioning decides which tensors the plain layers see.

Reference: S. Kundu, S. Sundaresan, M. Pedram, P. A. Beerel, A fast and efficient conditional learning for tunable
trade-off between accuracy and robustness, 2022 ("paper 5"), eqs. 4 and 6, section 3.1.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deploytool.models.folding import FoldedBackbone
from deploytool.models.setting import NoiseMode, Setting

State = dict[str, Tensor]
Network = Callable[[Tensor], Tensor]

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


class ConditionalModel(nn.Module):
    """A backbone whose state does not depend on the setting: standard training and PGD-AT.

    Args:
        backbone: plain network, image (N, C, H, W) float32 in [0, 1] -> logits (N, K).
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self._folded: FoldedBackbone | None = None

    @property
    def is_conditional(self) -> bool:
        """Whether lambda changes the answer."""
        return False

    def state(self, setting: Setting, generator: torch.Generator | None = None) -> State:
        """Return the tensors that differ from the backbone's own at this setting: here none.

        Args:
            setting: the knobs.
            generator: source of redrawn noise, on the model's device; torch's default where None.
        """
        return {}

    def forward(
        self, image: Tensor, setting: Setting | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Map image (N, C, H, W) float32 in [0, 1] to logits (N, K) at a setting (lambda 0 where None).

        In training mode the running statistics of the setting's own batch norms are updated in place.
        """
        return self._call(self.state(setting or Setting(), generator), image)

    @contextmanager
    def network(self, setting: Setting, generator: torch.Generator | None = None) -> Iterator[Network]:
        """Give the fixed evaluation-mode network of one setting, as attacks and evaluation use it.

        The state is computed once, without gradients to any parameter, and batch norms (with their running
        statistics) are folded into the convolutions before them; the image's gradient flows. The model's training
        mode is put back at the end.
        """
        training = self.backbone.training
        self.backbone.eval()
        if self._folded is None:
            self._folded = FoldedBackbone(self.backbone)
        network = self._folded
        try:
            with torch.no_grad():
                own = {**dict(self.backbone.named_parameters()), **dict(self.backbone.named_buffers())}
                folded = network.fold({name: t.detach() for name, t in (own | self.state(setting, generator)).items()})
            yield lambda image: network(folded, image)
        finally:
            self.backbone.train(training)

    def _call(self, state: State, image: Tensor) -> Tensor:
        return functional_call(self.backbone, state, (image,))  # type: ignore[no-any-return]


class FloatModel(ConditionalModel):
    r"""FLOAT: every convolution and linear weight, and every batch norm, conditioned on lambda.

        theta_hat_l = theta_l + s(lambda) * alpha_l * eta_l,    eta_l ~ N(0, std(theta_l)^2)        (eq. 4)

    `s` is `Setting.noise_scale` (lambda itself, or eq. 6); one trainable alpha per layer. The noise's standard
    deviation follows the weight tensor at every step; as in the noise injection that the paper builds on (He et
    al. 2019, where the noise is sampled outside the graph), no gradient flows through it.

    Frozen noise is eta_l = std(theta_l) * (a window of a shared table of standard normal draws): the layers read
    consecutive windows of the endlessly repeated table. The table's length is a prime, so that windows never
    fall into step with the filters of a layer: with 2^16 entries, filters of 512x3x3 weights would repeat
    every 128. Values are rounded to float16, which halves the table in the exported file.

    Dual batch norm: the backbone's own batch norms are BN_C, `adversarial_norms` are BN_A.

    Args:
        backbone: plain network; its convolutions, linear layers and batch norms are found by type.
        alpha_init: noise scaling factor of every layer at the start; the paper's is 0.25.
        noise_seed: seed of the noise table.
    """

    noise_table: Tensor

    def __init__(self, backbone: nn.Module, alpha_init: float = 0.25, noise_seed: int = 0) -> None:
        super().__init__(backbone)
        weights = weight_names(backbone)
        if not weights:
            raise ValueError("the backbone has no convolution or linear layer to condition")
        self.alpha = nn.Parameter(torch.full((len(weights),), float(alpha_init)))
        self.adversarial_norms = nn.ModuleDict(
            {name.replace(".", "/"): copy.deepcopy(norm) for name, norm in batch_norms(backbone)}
        )
        sizes = [backbone.get_parameter(name).numel() for name in weights]
        self.register_buffer("noise_table", make_noise_table(noise_table_size(sum(sizes)), noise_seed))
        starts = [sum(sizes[:index]) % len(self.noise_table) for index in range(len(sizes))]
        self.noise_windows = dict(zip(weights, starts, strict=True))

    @property
    def is_conditional(self) -> bool:
        """Whether lambda changes the answer: it does."""
        return True

    def state(self, setting: Setting, generator: torch.Generator | None = None) -> State:
        """Return the weights and batch-norm tensors of a setting; see the base class.

        At the boundary conditions the batch-norm tensors are the stored ones themselves, not copies, so that a
        forward in training mode updates the right running statistics.
        """
        return self._weights(setting, generator) | self._norms(setting.norm_mix)

    def noise(self, mode: NoiseMode, generator: torch.Generator | None = None) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield (weight name, theta, eta / std(theta)) per layer, in the order of `alpha`; no draw for `none`."""
        if mode == "none":
            return
        longest = max(self.backbone.get_parameter(name).numel() for name in self.noise_windows)
        stream = self.noise_table.repeat(-(-longest // len(self.noise_table)) + 1) if mode == "frozen" else None
        for name, start in self.noise_windows.items():
            theta = self.backbone.get_parameter(name)
            if stream is None:
                eta = torch.randn(theta.shape, generator=generator, device=theta.device, dtype=theta.dtype)
            else:
                eta = stream[start : start + theta.numel()].view_as(theta)
            yield name, theta, eta

    def _weights(self, setting: Setting, generator: torch.Generator | None) -> State:
        scale = setting.noise_scale
        if scale == 0:
            return {}
        return {
            name: theta + (scale * alpha * weight_std(theta)) * eta
            for (name, theta, eta), alpha in zip(self.noise(setting.noise, generator), self.alpha, strict=True)
        }

    def _norms(self, mix: float) -> State:
        state: State = {}
        if mix == 0:
            return state
        for name, clean in batch_norms(self.backbone):
            adversarial = self.adversarial_norms[name.replace(".", "/")]
            for key in NORM_TENSORS:
                a, c = getattr(adversarial, key), getattr(clean, key)
                state[f"{name}.{key}"] = a if mix == 1 else torch.lerp(c, a, mix)
            state[f"{name}.num_batches_tracked"] = adversarial.num_batches_tracked  # type: ignore[assignment]
        return state


def weight_names(backbone: nn.Module) -> list[str]:
    """Names of the weights of all convolutions and linear layers, in the order of registration."""
    return [
        f"{name}.weight" if name else "weight"
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
    ]


def batch_norms(backbone: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    """All 2-D batch norms by name."""
    return [(name, module) for name, module in backbone.named_modules() if isinstance(module, nn.BatchNorm2d)]


def weight_std(theta: Tensor) -> Tensor:
    """Population standard deviation of a weight tensor, a scalar without gradient.

    Two plain passes: torch's own `std` is a one-pass algorithm that is many times slower on a CPU.
    """
    theta = theta.detach()
    return (theta - theta.mean()).square_().mean().sqrt()


def noise_table_size(weights: int) -> int:
    """Length of the shared noise table for a network of so many weights: a prime, at most 65521.

    About one entry per 256 weights keeps the table (float16) near 0.2 % of the file; at least 251 entries.
    """
    size = min(65521, max(251, weights // 256))
    while any(size % divisor == 0 for divisor in range(2, int(size**0.5) + 1)):
        size -= 1
    return size


def make_noise_table(size: int, seed: int) -> Tensor:
    """Draw the table: (size,) float32 standard normal values that float16 holds exactly.

    Drawn on the CPU, so that a seed means the same table on every device. The table is centred and scaled to
    mean 0 and standard deviation 1, since one short draw would otherwise bias every layer the same way.
    """
    draws = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((draws - draws.mean()) / draws.std()).half().float()
