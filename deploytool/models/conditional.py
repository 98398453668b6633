"""The conditional state: a plain backbone, and a pure transform of its parameters.

    state(theta, setting) -> {parameter name: tensor}        logits = functional_call(backbone, state, image)

There is no second copy of any layer: conditioning, width and masks decide which tensors the plain layers see.

Reference: S. Kundu, S. Sundaresan, M. Pedram, P. A. Beerel, A fast and efficient conditional learning for tunable
trade-off between accuracy and robustness, 2022 ("paper 5"), eqs. 4 and 6, sections 3.1 and 3.2.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deploytool.errors import InputError
from deploytool.models.folding import FoldedBackbone
from deploytool.models.noise import make_noise_table, noise_table_size, weight_std
from deploytool.models.reasoning import without_reasoning
from deploytool.models.setting import NoiseMode, Setting

State = dict[str, Tensor]
Network = Callable[[Tensor], Tensor]
Norms = dict[str, nn.BatchNorm2d]

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


class ConditionalModel(nn.Module):
    """A backbone whose state depends on width and masks alone: standard training and PGD-AT.

    Slimmable widths share leading channels: the state of width w is the leading block of every tensor, in the
    shapes of a backbone built at width w; only the batch norms of each width are its own (Yu et al. 2019; paper 5,
    "FLOATS slim").

    Masks make weights sparse. Pruned weights are 0 in the stored tensors themselves (`apply_masks`), so that a
    dense gradient still reaches them: sparse momentum regrows by it.

    With reasoning labels (`set_reasons`) the backbone has a second head and answers (N, K + R): logits, then reasoning
    logits; see `deploytool.models.reasoning`. Whoever does not ask for `reasoning` gets logits (N, K) all the same.

    Args:
        backbone: plain network of width 1, image (N, C, H, W) float32 in [0, 1] -> logits (N, K).
        narrow: backbones of the same kind by width in (0, 1); only their shapes are used, they may be on `meta`.
    """

    reason_vectors: Tensor | None

    def __init__(self, backbone: nn.Module, narrow: Mapping[float, nn.Module] | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self._skeletons = {1.0: backbone, **{width: network.to("meta") for width, network in (narrow or {}).items()}}
        self._folded: dict[float, FoldedBackbone] = {}
        self.width_norms = nn.ModuleDict(
            {_key(width): nn.ModuleDict({"clean": _own_norms(network)}) for width, network in (narrow or {}).items()}
        )
        self.mask_buffers = nn.Module()
        self.register_buffer("reason_vectors", None)

    @property
    def is_conditional(self) -> bool:
        """Whether lambda changes the answer."""
        return False

    @property
    def widths(self) -> tuple[float, ...]:
        """The widths that the model has, ascending; 1 is always among them."""
        return tuple(sorted(self._skeletons))

    @property
    def conditioned(self) -> list[str]:
        """Names of the weights that noise and masks act on: those of convolutions and linear layers."""
        return weight_names(self.backbone)

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks by weight name, bool tensors of the weights' shapes; empty for a dense model."""
        return {name.replace("/", "."): mask for name, mask in self.mask_buffers.named_buffers()}

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Install masks (bool, weight name -> the weight's shape) and zero the weights that they prune."""
        for name, mask in masks.items():
            self.mask_buffers.register_buffer(_key(name), mask)
        self.apply_masks()

    @property
    def reasons(self) -> int:
        """R, the number of reasoning labels; 0 without a second head."""
        return 0 if self.reason_vectors is None else self.reason_vectors.shape[1]

    def set_reasons(self, vectors: Tensor) -> None:
        """Say that the backbone has a second head, and which of its R labels go with each class: (K, R) bool."""
        self.reason_vectors = vectors.bool()

    def logits(self, answer: Tensor) -> Tensor:
        """The class logits (N, K) of a whole answer (N, K + R)."""
        return answer[:, : -self.reasons] if self.reasons else answer

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Zero every pruned weight, in place."""
        for name, mask in self.masks.items():
            self.backbone.get_parameter(name).mul_(mask)

    def state(self, setting: Setting, generator: torch.Generator | None = None) -> State:
        """Return the tensors that differ from the backbone's own at this setting; all of them at a width below 1.

        Args:
            setting: the knobs.
            generator: source of redrawn noise, on the model's device; torch's default where None.

        Raises:
            InputError: the model has no such width.
        """
        changed = self.weights(setting, generator) | self.norms(setting)
        return changed if setting.width == 1 else self._narrowed(changed, setting.width)

    def knobs(self, setting: Setting) -> tuple[float | str, ...]:
        """What the state takes from a setting: two settings with equal knobs are one network."""
        return (setting.width,)

    def weights(self, setting: Setting, generator: torch.Generator | None = None) -> State:
        """The conditioned weights, of full width; none here."""
        return {}

    def norms(self, setting: Setting) -> State:
        """The batch-norm tensors of the setting's width, where they are not the backbone's own."""
        return {} if setting.width == 1 else norm_state(self.norm_set(setting.width))

    def norm_set(self, width: float = 1.0) -> Norms:
        """The batch norms of a width for clean images (BN_C), by their name in the backbone."""
        return dict(batch_norms(self.backbone)) if width == 1 else self._width_set(width, "clean")

    def forward(
        self,
        image: Tensor,
        setting: Setting | None = None,
        generator: torch.Generator | None = None,
        reasoning: bool = False,
    ) -> Tensor:
        """Map image (N, C, H, W) float32 in [0, 1] to logits (N, K) at a setting (lambda 0, width 1 where None).

        With `reasoning` the answer is (N, K + R). In training mode the running statistics of the setting's own batch
        norms are updated in place.
        """
        setting = setting or Setting()
        answer = functional_call(self.skeleton(setting.width), self.state(setting, generator), (image,))
        return answer if reasoning else self.logits(answer)

    def full_state(self, setting: Setting, generator: torch.Generator | None = None) -> State:
        """All tensors of the plain network of one setting, without gradients to any parameter."""
        own = {**dict(self.backbone.named_parameters()), **dict(self.backbone.named_buffers())}
        with torch.no_grad():
            return {name: tensor.detach() for name, tensor in (own | self.state(setting, generator)).items()}

    def plain_network(
        self, setting: Setting, generator: torch.Generator | None = None, reasoning: bool = False
    ) -> nn.Module:
        """An independent plain network of one setting, in evaluation mode, on the CPU, without masks or knobs.

        It answers (N, K), with `reasoning` and a second head (N, K + R).
        """
        network = copy.deepcopy(self.skeleton(setting.width)).to_empty(device="cpu").requires_grad_(False).eval()
        state = self.full_state(setting, generator)
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            tensor.copy_(state[name])
        return network if reasoning or not self.reasons else without_reasoning(network)

    @contextmanager
    def network(
        self, setting: Setting, generator: torch.Generator | None = None, reasoning: bool = False
    ) -> Iterator[Network]:
        """Give the fixed evaluation-mode network of one setting, as attacks and evaluation use it.

        It answers logits (N, K), with `reasoning` (N, K + R).

        The state is computed once, without gradients to any parameter, and batch norms (with their running
        statistics) are folded into the convolutions before them; the image's gradient flows. The model's training
        mode is put back at the end.
        """
        training = self.training
        self.eval()
        try:
            if setting.width not in self._folded:
                self._folded[setting.width] = FoldedBackbone(self.skeleton(setting.width))
            network = self._folded[setting.width]
            folded = network.fold(self.full_state(setting, generator))
            if reasoning or not self.reasons:
                yield lambda image: network(folded, image)
            else:
                yield lambda image: self.logits(network(folded, image))
        finally:
            self.train(training)

    def train(self, mode: bool = True) -> "ConditionalModel":
        """Set training mode, of the shapes-only backbones too."""
        for skeleton in self._skeletons.values():
            skeleton.train(mode)
        return super().train(mode)

    def skeleton(self, width: float) -> nn.Module:
        """The plain network of a width; at widths below 1 it has shapes alone, on `meta`. Raises InputError."""
        if width not in self._skeletons:
            known = ", ".join(f"{width:g}" for width in self.widths)
            raise InputError(f"width (={width:g}) was not trained; this model has {known}")
        return self._skeletons[width]

    def _narrowed(self, changed: State, width: float) -> State:
        """The leading block of every tensor; batch norms are in `changed` at their own size already."""
        narrow = self.skeleton(width)
        shapes = {name: t.shape for name, t in [*narrow.named_parameters(), *narrow.named_buffers()]}
        own = {**dict(self.backbone.named_parameters()), **dict(self.backbone.named_buffers())}
        return {name: _leading(changed.get(name, own[name]), shape) for name, shape in shapes.items()}

    def _width_set(self, width: float, condition: str) -> Norms:
        self.skeleton(width)
        sets = cast(nn.ModuleDict, self.width_norms[_key(width)])
        return _named(cast(nn.ModuleDict, sets[condition]))


class DualNormModel(ConditionalModel):
    """A model with two batch norms for each of the backbone's: BN_C for clean, BN_A for attacked images.

    The backbone's own are BN_C, `adversarial_norms` are BN_A; each further width has a pair of its own.
    """

    def __init__(self, backbone: nn.Module, narrow: Mapping[float, nn.Module] | None = None) -> None:
        super().__init__(backbone, narrow)
        self.adversarial_norms = _own_norms(backbone)
        for width, network in (narrow or {}).items():
            cast(nn.ModuleDict, self.width_norms[_key(width)])["adversarial"] = _own_norms(network)

    @property
    def is_conditional(self) -> bool:
        """Whether lambda changes the answer: it does."""
        return True

    def knobs(self, setting: Setting) -> tuple[float | str, ...]:
        """Width, and the mix of the batch norms."""
        return *super().knobs(setting), setting.norm_mix

    def adversarial_set(self, width: float = 1.0) -> Norms:
        """The batch norms of a width for attacked images (BN_A), by their name in the backbone."""
        if width != 1:
            return self._width_set(width, "adversarial")
        return _named(self.adversarial_norms)

    def norms(self, setting: Setting) -> State:
        """The batch-norm tensors of a setting.

        At the boundary conditions they are the stored ones themselves, not copies, so that a forward in training
        mode updates the right running statistics.
        """
        mix = setting.norm_mix
        if mix == 0:
            return super().norms(setting)
        adversarial = norm_state(self.adversarial_set(setting.width))
        if mix == 1:
            return adversarial
        clean = norm_state(self.norm_set(setting.width))
        return {
            name: tensor if name.endswith("num_batches_tracked") else torch.lerp(clean[name], tensor, mix)
            for name, tensor in adversarial.items()
        }


class FloatModel(DualNormModel):
    r"""FLOAT: every convolution and linear weight, and every batch norm, conditioned on lambda.

        theta_hat_l = (theta_l + s(lambda) * alpha_l * eta_l) * mask_l,    eta_l ~ N(0, std(theta_l)^2)     (eq. 4)

    `s` is `Setting.noise_scale` (lambda itself, or eq. 6); one trainable alpha per layer. The noise's standard
    deviation follows the weight tensor at every step; as in the noise injection that the paper builds on (He et
    al. 2019, where the noise is sampled outside the graph), no gradient flows through it. A narrower width takes the
    leading block of the conditioned weight, noise included.

    Frozen noise is eta_l = std(theta_l) * (a window of a shared table of standard normal draws): the layers read
    consecutive windows of the endlessly repeated table. The table's length is a prime, so that windows never
    fall into step with the filters of a layer: with 2^16 entries, filters of 512x3x3 weights would repeat
    every 128. Values are rounded to float16, which halves the table in the exported file.

    Args:
        backbone: plain network; its convolutions, linear layers and batch norms are found by type.
        alpha_init: noise scaling factor of every layer at the start; the paper's is 0.25.
        noise_seed: seed of the noise table.
        narrow: as in `ConditionalModel`.
    """

    noise_table: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        alpha_init: float = 0.25,
        noise_seed: int = 0,
        narrow: Mapping[float, nn.Module] | None = None,
    ) -> None:
        super().__init__(backbone, narrow)
        weights = weight_names(backbone)
        if not weights:
            raise ValueError("the backbone has no convolution or linear layer to condition")
        self.alpha = nn.Parameter(torch.full((len(weights),), float(alpha_init)))
        sizes = [backbone.get_parameter(name).numel() for name in weights]
        self.register_buffer("noise_table", make_noise_table(noise_table_size(sum(sizes)), noise_seed))
        starts = [sum(sizes[:index]) % len(self.noise_table) for index in range(len(sizes))]
        self.noise_windows = dict(zip(weights, starts, strict=True))

    def knobs(self, setting: Setting) -> tuple[float | str, ...]:
        """Width, the mix of the batch norms, and the noise."""
        return *super().knobs(setting), setting.noise_scale, setting.noise

    def weights(self, setting: Setting, generator: torch.Generator | None = None) -> State:
        """The weights of eq. 4, of full width; none where lambda leaves them as they are."""
        scale = setting.noise_scale
        if scale == 0:
            return {}
        masks = self.masks
        state = {}
        for (name, theta, eta), alpha in zip(self.noise(setting.noise, generator), self.alpha, strict=True):
            strength = scale * alpha * weight_std(theta)
            state[name] = theta + strength * (eta * masks[name] if name in masks else eta)
        return state

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


def norm_state(norms: Norms) -> State:
    """The tensors of batch norms under their names in the backbone; the very tensors, not copies."""
    return {
        f"{name}.{key}": getattr(norm, key)
        for name, norm in norms.items()
        for key in (*NORM_TENSORS, "num_batches_tracked")
    }


def _own_norms(network: nn.Module) -> nn.ModuleDict:
    """Fresh copies of a network's batch norms; those of a network on `meta` are made anew, on the CPU."""
    norms = nn.ModuleDict()
    for name, norm in batch_norms(network):
        fresh = copy.deepcopy(norm)
        if norm.weight.is_meta:
            fresh = fresh.to_empty(device="cpu")
            fresh.reset_parameters()
        norms[_key(name)] = fresh
    return norms


def _named(norms: nn.ModuleDict) -> Norms:
    """The inverse of `_own_norms`: batch norms by their name in the backbone."""
    return {name.replace("/", "."): cast(nn.BatchNorm2d, norm) for name, norm in norms.items()}


def _leading(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The leading block of that shape; the tensor itself where it has that shape."""
    return tensor if tensor.shape == shape else tensor[tuple(slice(size) for size in shape)]


def _key(name: str | float) -> str:
    """A name as a key of torch's dictionaries, which forbid dots."""
    return f"{name:g}".replace(".", "/") if isinstance(name, float) else name.replace(".", "/")
