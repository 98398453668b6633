"""Once-for-all adversarial training (OAT), the FiLM-conditioned baseline of paper 5.

Reference: H. Wang, T. Chen, S. Gui, T.-K. Hu, J. Liu, Z. Wang, Once-for-all adversarial training: in-situ tradeoff
between robustness and accuracy for free, NeurIPS 2020 ("OAT"); S. Kundu et al. 2022 ("paper 5"), sections 2 and 4.3.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import cos, pi
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from deploytool.models.conditional import DualNormModel, State, batch_norms, norm_state
from deploytool.models.setting import Setting

Encoding = Literal["none", "onehot", "dct", "random"]


class Film(nn.Module):
    """Feature-wise linear modulation: from a code of lambda to a scale and a shift per channel.

        gamma, beta = split(leaky_relu(W_2 leaky_relu(W_1 code + b_1) + b_2))        hidden width 2C

    2C + 4C^2 weights with a scalar code (paper 5, eq. 9) and 4C biases, as in OAT's published code; that makes the
    31.40 M parameters that paper 5 gives for ResNet-34.

    Args:
        channels: C, of the batch norm it follows.
        code_size: length of a code.
    """

    def __init__(self, channels: int, code_size: int) -> None:
        super().__init__()
        self.channels = channels
        self.hidden = nn.Linear(code_size, 2 * channels)
        self.out = nn.Linear(2 * channels, 2 * channels)

    def forward(self, code: Tensor, channels: int | None = None) -> tuple[Tensor, Tensor]:
        """Map code (B, code_size) to gamma and beta (B, c), c the leading `channels` of a narrower width.

        A narrower FiLM reads and writes leading units alone, like the other layers of a slimmable network.
        """
        c = self.channels if channels is None else channels
        hidden = F.leaky_relu(F.linear(code, self.hidden.weight[: 2 * c], self.hidden.bias[: 2 * c]))
        heads = []
        for start in (0, self.channels):
            rows = slice(start, start + c)
            heads.append(F.leaky_relu(F.linear(hidden, self.out.weight[rows, : 2 * c], self.out.bias[rows])))
        return heads[0], heads[1]


class OatModel(DualNormModel):
    """OAT: dual batch norm, and a FiLM layer after every batch norm but those of shortcuts.

    At one lambda, gamma and beta fold into the batch norm before them (gamma * (w x + b) + beta = BN with weight
    gamma w and bias gamma b + beta), so the state is that of the plain backbone; only training, where each image of
    a batch has a lambda of its own, runs FiLM layers.

    Args:
        backbone, narrow: as in `ConditionalModel`.
        lambdas: the set that training samples from; what the encodings index.
        encoding: `none` feeds lambda itself; `onehot`, `dct` and `random` feed the row of a square matrix (identity,
            DCT-II, a random orthogonal one) at the index of lambda in the set. A lambda between two of the set gets
            the mix of their rows, which is our extension: OAT evaluates at the set alone.
        encoding_size: length of a row.
        seed: of the random matrix.
    """

    codes: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        lambdas: Sequence[float] = (0.0, 0.2, 0.7, 1.0),
        encoding: Encoding = "none",
        encoding_size: int = 128,
        seed: int = 0,
        narrow: Mapping[float, nn.Module] | None = None,
    ) -> None:
        super().__init__(backbone, narrow)
        self.lambdas = tuple(sorted(lambdas))
        codes = encoding_rows(encoding, len(self.lambdas), encoding_size, seed)
        self.encoding: Encoding = encoding
        self.register_buffer("codes", codes if codes is not None else torch.empty(0))
        size = 1 if codes is None else codes.shape[1]
        self.films = nn.ModuleDict(
            {name.replace(".", "/"): Film(norm.num_features, size) for name, norm in filmed_norms(backbone)}
        )

    def knobs(self, setting: Setting) -> tuple[float | str, ...]:
        """Width, the mix of the batch norms, and lambda."""
        return *super().knobs(setting), setting.lam

    def code(self, lam: Tensor) -> Tensor:
        """Encode lambda (B,) float32 in [0, 1] as (B, code_size)."""
        if self.encoding == "none":
            return lam[:, None]
        grid = torch.tensor(self.lambdas, device=lam.device, dtype=lam.dtype)
        upper = torch.bucketize(lam, grid).clamp(1, len(grid) - 1)
        low, high = grid[upper - 1], grid[upper]
        share = ((lam - low) / (high - low)).clamp(0, 1)[:, None]
        return torch.lerp(self.codes[upper - 1], self.codes[upper], share)

    def norms(self, setting: Setting) -> State:
        """The batch-norm tensors of a setting, FiLM's scale and shift folded in."""
        chosen = self.adversarial_set(setting.width) if setting.norm_mix else self.norm_set(setting.width)
        state = super().norms(setting)
        code = self.code(torch.tensor([float(setting.lam)], device=next(self.parameters()).device))
        for key, film in self.films.items():
            name = key.replace("/", ".")
            norm = chosen[name]
            gamma, beta = film(code, norm.num_features)
            state[f"{name}.weight"] = norm.weight * gamma[0]
            state[f"{name}.bias"] = norm.bias * gamma[0] + beta[0]
        return state

    def film_params(self, width: float = 1.0) -> int:
        """Weights and biases of all FiLM layers, as a network of that width reads them."""
        total = 0
        code_size = 1 if self.encoding == "none" else self.codes.shape[1]
        for name, norm in self.norm_set(width).items():
            if name.replace(".", "/") in self.films:
                c = norm.num_features
                total += 2 * c * (code_size + 1) + 2 * c * (2 * c + 1)
        return total

    def forward_mixed(self, image: Tensor, lam: Tensor, clean: int, width: float = 1.0) -> Tensor:
        """Classify images that each have their own lambda.

        Args:
            image: (B, C, H, W) float32 in [0, 1]; the first `clean` go through BN_C, the others through BN_A.
            lam: (B,) float32 in [0, 1].
            clean: how many images have lambda 0.
            width: one of the model's.

        Returns:
            logits (B, K), with a second head (B, K + R). In training mode each set of batch norms sees its own images.
        """
        skeleton = self.skeleton(width)
        state = {} if width == 1 else self._narrowed(norm_state(self.norm_set(width)), width)
        with self._filmed(skeleton, self.code(lam), clean, width):
            return functional_call(skeleton, state, (image,))  # type: ignore[no-any-return]

    @contextmanager
    def _filmed(self, skeleton: nn.Module, code: Tensor, clean: int, width: float) -> Iterator[None]:
        """Let the skeleton's batch norms answer per image, with both sets and FiLM, until the context ends."""
        c_set, a_set = self.norm_set(width), self.adversarial_set(width)
        changed = batch_norms(skeleton)
        films = {key.replace("/", "."): film for key, film in self.films.items()}
        try:
            for name, norm in changed:
                film = films.get(name)
                modulation = film(code, norm.num_features) if film is not None else None
                norm.forward = _DualNorm(c_set[name], a_set[name], clean, modulation)  # type: ignore[assignment, method-assign]
            yield
        finally:
            for _, norm in changed:
                norm.__dict__.pop("forward", None)


class _DualNorm:
    """BN_C for the first images, BN_A for the others, then gamma and beta per image."""

    def __init__(
        self, clean: nn.BatchNorm2d, adversarial: nn.BatchNorm2d, count: int, modulation: tuple[Tensor, Tensor] | None
    ) -> None:
        self.clean, self.adversarial, self.count, self.modulation = clean, adversarial, count, modulation

    def __call__(self, x: Tensor) -> Tensor:
        parts = [(self.clean, x[: self.count]), (self.adversarial, x[self.count :])]
        y = torch.cat([nn.BatchNorm2d.forward(norm, part) for norm, part in parts if len(part)])
        if self.modulation is None:
            return y
        gamma, beta = self.modulation
        return torch.addcmul(beta[:, :, None, None], y, gamma[:, :, None, None])


def filmed_norms(backbone: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    """The batch norms that OAT puts a FiLM layer after: all but those of shortcuts."""
    return [(name, norm) for name, norm in batch_norms(backbone) if "shortcut" not in name.split(".")]


def encoding_rows(encoding: Encoding, count: int, size: int, seed: int) -> Tensor | None:
    """The first `count` rows of an encoding's matrix, (count, size) float32; None for `none`.

    DCT-II without normalisation: row n, column k is 2 cos(pi n (2k + 1) / (2 size)), as scipy's `dct` of the unit
    matrix along its first axis.
    """
    if encoding == "none":
        return None
    if encoding == "onehot":
        return torch.eye(size)[:count]
    if encoding == "dct":
        return torch.tensor([[2 * cos(pi * n * (2 * k + 1) / (2 * size)) for k in range(size)] for n in range(count)])
    draws = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    orthogonal: Tensor = torch.linalg.qr(draws)[0]
    return orthogonal[:count].float()
