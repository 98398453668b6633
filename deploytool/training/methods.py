"""What one training step minimises, per method."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deploytool.attacks.pgd import Pgd, pgd
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import recipe_setting
from deploytool.models.setting import Setting
from deploytool.recipe import FloatMethod, PgdAtMethod, Recipe


@dataclass(frozen=True)
class Tally:
    """Correct answers among `count` images, as tensors on the device (no synchronisation in the hot path)."""

    correct: Tensor
    count: int

    @staticmethod
    def of(logits: Tensor, label: Tensor) -> "Tally":
        """Count the correct answers of a batch."""
        return Tally((logits.detach().argmax(1) == label).sum(), len(label))


@dataclass(frozen=True)
class Step:
    """The loss of one step (a scalar with gradient), and how clean and adversarial images fared."""

    loss: Tensor
    clean: Tally | None = None
    robust: Tally | None = None


def training_step(
    model: ConditionalModel, recipe: Recipe, image: Tensor, label: Tensor, generator: torch.Generator
) -> Step:
    """Compute the loss of the recipe's method on one batch; the model must be in training mode.

    Args:
        model: the model of the recipe.
        recipe: method and attack.
        image: (B, C, H, W) float32 in [0, 1].
        label: (B,) int64.
        generator: on the image's device; random starts and redrawn noise come from it.
    """
    attack = Pgd(**recipe.attack.model_dump())
    method = recipe.method
    if isinstance(method, FloatMethod):
        return float_step(model, recipe, attack, image, label, generator)
    if isinstance(method, PgdAtMethod):
        return pgd_at_step(model, method.lam, attack, image, label, generator)
    logits = model(image)
    return Step(F.cross_entropy(logits, label), clean=Tally.of(logits, label))


def pgd_at_step(
    model: ConditionalModel, lam: float, attack: Pgd, image: Tensor, label: Tensor, generator: torch.Generator
) -> Step:
    """PGD adversarial training (paper 5, eq. 3): `(1 - lam) * L(clean) + lam * L(adversarial)`.

    Where both terms count, clean and adversarial images go through the network in one forward, so that the one
    set of batch norms sees both.
    """
    if lam == 0:
        logits = model(image)
        return Step(F.cross_entropy(logits, label), clean=Tally.of(logits, label))
    with model.network(Setting()) as network:
        adversarial = pgd(network, image, label, attack, generator)
    if lam == 1:
        logits = model(adversarial)
        return Step(F.cross_entropy(logits, label), robust=Tally.of(logits, label))
    clean_logits, adversarial_logits = model(torch.cat([image, adversarial])).chunk(2)
    loss = (1 - lam) * F.cross_entropy(clean_logits, label) + lam * F.cross_entropy(adversarial_logits, label)
    return Step(loss, Tally.of(clean_logits, label), Tally.of(adversarial_logits, label))


def float_step(
    model: ConditionalModel,
    recipe: Recipe,
    attack: Pgd,
    image: Tensor,
    label: Tensor,
    generator: torch.Generator,
) -> Step:
    """FLOAT (paper 5, Algorithm 1 without pruning): half the batch clean at lambda 0, half attacked at lambda 1.

    The loss is `0.5 * L_C + 0.5 * L_A`. The attack runs on one state of lambda 1; the loss that follows takes a
    state with gradients, which with redrawn noise is a new draw.
    """
    clean_setting, adversarial_setting = recipe_setting(recipe, 0.0), recipe_setting(recipe, 1.0)
    half = len(label) // 2
    clean_logits = model(image[:half], clean_setting)
    with model.network(adversarial_setting, generator) as network:
        adversarial = pgd(network, image[half:], label[half:], attack, generator)
    adversarial_logits = model(adversarial, adversarial_setting, generator)
    loss = 0.5 * F.cross_entropy(clean_logits, label[:half])
    loss = loss + 0.5 * F.cross_entropy(adversarial_logits, label[half:])
    return Step(loss, Tally.of(clean_logits, label[:half]), Tally.of(adversarial_logits, label[half:]))
