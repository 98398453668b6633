"""What one training step minimises, per method."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from deploytool.attacks.pgd import Pgd, pgd
from deploytool.models.activity import Pass, trained_passes
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import recipe_setting
from deploytool.models.oat import OatModel
from deploytool.models.setting import Setting
from deploytool.recipe import FloatMethod, OatMethod, PgdAtMethod, Recipe
from deploytool.training.objective import Objective, make_objective
from deploytool.training.regularizers import step_penalty


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
    """What one step is to minimise, and how clean and adversarial images fared.

    Attributes:
        loss: the method's own, a scalar with gradient.
        clean, robust: None where there were no such images.
        penalty: of the recipe's regularisation, a scalar with gradient; None where it has none.
    """

    loss: Tensor
    clean: Tally | None = None
    robust: Tally | None = None
    penalty: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """Loss and penalty: what the step minimises."""
        return self.loss if self.penalty is None else self.loss + self.penalty


def training_step(
    model: ConditionalModel, recipe: Recipe, image: Tensor, label: Tensor, generator: torch.Generator
) -> Step:
    """Compute the loss of the recipe's method on one batch; the model must be in training mode.

    The losses of all widths are summed (Yu et al. 2019; paper 5, FLOATS slim); the tallies are the full width's.
    Whatever the method, reasoning labels make an image's loss that of paper 1's eq. 3 (`deploytool.training.objective`)
    and regularisation adds its penalty (`deploytool.training.regularizers`).

    Args:
        model: the model of the recipe.
        recipe: method, attack and regularisation.
        image: (B, C, H, W) float32 in [0, 1].
        label: (B,) int64.
        generator: on the image's device; random starts, redrawn noise and sampled lambdas come from it.
    """
    attack = Pgd(**recipe.attack.model_dump())
    objective = make_objective(model, recipe)
    section = recipe.regularization
    watched = section is not None and section.activation > 0
    steps: list[Step] = []
    passes: list[list[Pass]] = []
    for width in recipe.model.widths:
        watch: AbstractContextManager[list[Pass]] = (
            trained_passes(model.skeleton(width)) if watched else nullcontext([])
        )
        with watch as trained:
            steps.append(_width_step(model, recipe, objective, attack, image, label, generator, width))
        passes.append(trained)
    penalty = None if section is None else step_penalty(model, section, passes)
    return Step(torch.stack([step.loss for step in steps]).sum(), steps[-1].clean, steps[-1].robust, penalty)


def _width_step(
    model: ConditionalModel,
    recipe: Recipe,
    objective: Objective,
    attack: Pgd,
    image: Tensor,
    label: Tensor,
    generator: torch.Generator,
    width: float,
) -> Step:
    method = recipe.method
    if isinstance(method, FloatMethod):
        settings = recipe_setting(recipe, 0.0, width), recipe_setting(recipe, 1.0, width)
        return float_step(model, settings, objective, attack, image, label, generator)
    if isinstance(method, OatMethod):
        assert isinstance(model, OatModel)
        return oat_step(model, method.lambdas, objective, attack, image, label, generator, width)
    lam = method.lam if isinstance(method, PgdAtMethod) else 0.0
    return pgd_at_step(model, lam, objective, attack, image, label, generator, Setting(width=width))


def pgd_at_step(
    model: ConditionalModel,
    lam: float,
    objective: Objective,
    attack: Pgd,
    image: Tensor,
    label: Tensor,
    generator: torch.Generator,
    setting: Setting,
) -> Step:
    """PGD adversarial training (paper 5, eq. 3): `(1 - lam) * L(clean) + lam * L(adversarial)`; eq. 1 at `lam` 0.

    Where both terms count, clean and adversarial images go through the network in one forward, so that the one
    set of batch norms sees both.
    """
    if lam == 0:
        answer = model(image, setting, reasoning=True)
        return Step(objective.loss(answer, label), clean=Tally.of(model.logits(answer), label))
    with model.network(setting, reasoning=True) as network:
        adversarial = pgd(network, image, label, attack, generator, objective.attacked)
    if lam == 1:
        answer = model(adversarial, setting, reasoning=True)
        return Step(objective.loss(answer, label), robust=Tally.of(model.logits(answer), label))
    clean, attacked = model(torch.cat([image, adversarial]), setting, reasoning=True).chunk(2)
    loss = (1 - lam) * objective.loss(clean, label) + lam * objective.loss(attacked, label)
    return Step(loss, Tally.of(model.logits(clean), label), Tally.of(model.logits(attacked), label))


def float_step(
    model: ConditionalModel,
    settings: tuple[Setting, Setting],
    objective: Objective,
    attack: Pgd,
    image: Tensor,
    label: Tensor,
    generator: torch.Generator,
) -> Step:
    """FLOAT (paper 5, Algorithm 1): half the batch clean at lambda 0, half attacked at lambda 1.

    The loss is `0.5 * L_C + 0.5 * L_A`. The attack runs on one state of lambda 1; the loss that follows takes a
    state with gradients, which with redrawn noise is a new draw. `settings` are those of lambda 0 and lambda 1.
    """
    clean_setting, adversarial_setting = settings
    half = len(label) // 2
    clean = model(image[:half], clean_setting, reasoning=True)
    with model.network(adversarial_setting, generator, reasoning=True) as network:
        adversarial = pgd(network, image[half:], label[half:], attack, generator, objective.attacked)
    attacked = model(adversarial, adversarial_setting, generator, reasoning=True)
    loss = 0.5 * objective.loss(clean, label[:half])
    loss = loss + 0.5 * objective.loss(attacked, label[half:])
    return Step(loss, Tally.of(model.logits(clean), label[:half]), Tally.of(model.logits(attacked), label[half:]))


def oat_step(
    model: OatModel,
    lambdas: Sequence[float],
    objective: Objective,
    attack: Pgd,
    image: Tensor,
    label: Tensor,
    generator: torch.Generator,
    width: float,
) -> Step:
    """OAT (Wang et al. 2020, Algorithm 1, efficient variant): a lambda per image, sampled uniformly from a set.

        L = mean_i( (1 - lambda_i) * L(x_i, lambda_i) + lambda_i * L(x_i + delta_i, lambda_i) )

    Images with lambda 0 go through BN_C and are not attacked, their second term being 0; all others go through
    BN_A, clean and attacked.
    """
    drawn = torch.randint(len(lambdas), (len(label),), generator=generator, device=image.device)
    lam = torch.tensor(lambdas, device=image.device)[drawn].sort().values  # images are in random order already
    clean = int((lam == 0).sum())
    answer = model.forward_mixed(image, lam, clean, width)
    losses = (1 - lam) * objective.losses(answer, label)
    tally = Tally.of(model.logits(answer), label)
    if clean == len(label):
        return Step(losses.mean(), tally)
    image, label, lam = image[clean:], label[clean:], lam[clean:]
    with evaluation_mode(model):
        adversarial = pgd(
            lambda x: model.forward_mixed(x, lam, 0, width), image, label, attack, generator, objective.attacked
        )
    answer = model.forward_mixed(adversarial, lam, 0, width)
    robust = lam * objective.losses(answer, label)
    return Step((losses.sum() + robust.sum()) / len(losses), tally, Tally.of(model.logits(answer), label))


@contextmanager
def evaluation_mode(model: ConditionalModel) -> Iterator[None]:
    """Evaluation mode, and no gradient for any parameter, until the context ends."""
    training = model.training
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        model.train(training)
