"""The network under attack: its logits and gradients, checked and counted."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deploytool.errors import InputError

Network = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor], Tensor]


class Victim:
    """A network as attacks see it.

    A randomised network is attacked through the expectation over its noise: with `eot_iter` above 1, logits, losses
    and gradients are means over so many forward passes (expectation over transformation, EOT).

        g(x) = 1/T * sum_{t=1..T} grad_x loss(network_t(x))        T = eot_iter, network_t with the t-th draw

    Reference: A. Athalye et al., Obfuscated gradients give a false sense of security, 2018, section 3.2.

    Args:
        network: image (N, C, H, W) float32 in [0, 1] -> logits (N, K); a module must be in evaluation mode. Logits of
            another precision are taken as float32, so that points stay float32 as well.

    Attributes:
        network: as given.
        forwards: images passed forward so far.
        backwards: images for which a gradient of one number was computed so far.
        classes: K, None before the first pass.

    Raises:
        InputError: the network is a module in training mode.
    """

    def __init__(self, network: Network) -> None:
        if isinstance(network, nn.Module) and network.training:
            raise InputError("the network is in training mode, where images change each other's answers; call .eval()")
        self.network = network
        self.forwards = 0
        self.backwards = 0
        self.classes: int | None = None

    @torch.no_grad()
    def logits(self, image: Tensor, eot_iter: int = 1) -> Tensor:
        """Logits (N, K) of images, without gradient.

        Raises:
            InputError: the answer has a wrong shape, or holds NaN or infinity.
        """
        total = self._answer(image)
        for _ in range(eot_iter - 1):
            total = total + self._answer(image)
        return total / eot_iter if eot_iter > 1 else total

    def gradient(self, image: Tensor, loss: Loss, eot_iter: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, K), losses (N,), and the gradient of each image's loss (N, C, H, W).

        Args:
            image: (N, C, H, W).
            loss: logits (N, K) -> one value per image (N,).
            eot_iter: forward passes to average over.

        Raises:
            InputError: as `logits`, or the network has no gradient, or a gradient that is NaN or infinite.
        """
        logits, values, gradients = self.gradients(image, lambda answer: [loss(answer)])
        gradient, value = gradients[0], values[0]
        for _ in range(eot_iter - 1):
            more_logits, more_values, more_gradients = self.gradients(image, lambda answer: [loss(answer)])
            logits, value, gradient = logits + more_logits, value + more_values[0], gradient + more_gradients[0]
        if eot_iter > 1:
            logits, value, gradient = logits / eot_iter, value / eot_iter, gradient / eot_iter
        return logits, value, gradient

    def gradients(self, image: Tensor, losses: Callable[[Tensor], Sequence[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """As `gradient`, for J losses of one forward pass: logits (N, K), losses (J, N), gradients (J, N, C, H, W)."""
        leaf = image.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self._answer(leaf)
            if not logits.requires_grad:
                if torch.is_inference_mode_enabled():
                    raise InputError("torch.inference_mode() is on, where there are no gradients; attack outside of it")
                raise InputError("the network has no gradient (an ONNX file?); use a black-box attack, such as square")
            values = list(losses(logits))
            gradients = []
            for number, value in enumerate(values):
                (gradient,) = torch.autograd.grad(value.sum(), leaf, retain_graph=number + 1 < len(values))
                gradients.append(gradient)
                self.backwards += len(image)
        stacked = torch.stack(gradients) if len(gradients) > 1 else gradients[0][None]
        if not stacked.isfinite().all():
            raise InputError("the network's gradient is NaN or infinite; it cannot be attacked by gradients")
        return logits.detach(), torch.stack(values).detach(), stacked

    def _answer(self, image: Tensor) -> Tensor:
        logits = self.network(image)
        self.forwards += len(image)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(image) or logits.shape[1] < 2:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(
                f"the network answers {found} to {len(image)} images; expected logits (N, K), K at least 2"
            )
        finite = logits.detach().isfinite().all(1)
        if not finite.all():
            raise InputError(f"the network answers NaN or infinity to {int((~finite).sum())} of {len(image)} images")
        self.classes = logits.shape[1]
        return logits.float()
