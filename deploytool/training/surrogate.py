"""Training a surrogate explainer: the student on the target's answers, the explanation network on explained images."""

import math
import time
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deploytool.atomic import write_json
from deploytool.attacks.victim import Victim
from deploytool.data.adversarial import with_adversarial
from deploytool.data.batches import batches_per_epoch, training_batches
from deploytool.data.datasets import load_dataset
from deploytool.digests import file_digest
from deploytool.errors import InputError, RunError
from deploytool.explain.agreement import surrogate_accuracy
from deploytool.explain.explainer import build_explainer, surrogate_setting
from deploytool.explain.recipe import FILE, ExplainerRecipe, Part
from deploytool.explain.target import Target, working_network
from deploytool.models.conditional import ConditionalModel, DualNormModel
from deploytool.models.setting import Setting
from deploytool.models.surrogate import Surrogate
from deploytool.progress import progress_bar
from deploytool.training.distillation import distillation_loss, explanation_loss
from deploytool.training.loop import epoch_generators, log_scalars, momentum_buffers, nesterov, restore, scalar_log
from deploytool.training.masking import explained_image
from deploytool.training.run import (
    Checkpoint,
    checkpoint_path,
    create_run,
    load_checkpoint,
    save_checkpoint,
    tensor_problems,
)


def train_explainer(
    target: Target, recipe: ExplainerRecipe, folder: str | Path, resume: bool = False, device: str = "cpu"
) -> dict[str, Any]:
    """Train a surrogate explainer of a target into a folder; a checkpoint is written after each epoch.

    As in `deploytool.training.loop.train`, an interrupted training walks on in the very steps of an uninterrupted one.
    The target stays as it is, in evaluation mode.

    Args:
        target: what to explain.
        recipe: how; its target and fidelity are filled in here.
        folder: see `deploytool.explain.explainer`.
        resume: go on from the folder's checkpoint.
        device: torch device.

    Returns:
        `explainer`, `target`, `fidelity`, `epochs`, `seconds` (of this call), and `rows`, one for each of the recipe's
        lambdas: `lambda` (None for a target without), and what `surrogate_accuracy` returns.

    Raises:
        RunError: the folder cannot be used, the target changed, or the loss stopped being finite.
        DataError: the data set cannot be loaded, or is not one that the target classifies.
        InputError: the target answers NaN, or has no gradients and the recipe asks for them.
    """
    began = time.monotonic()
    folder = Path(folder)
    data = load_dataset(recipe.data)
    images = with_adversarial(data, recipe.data.adversarial)
    target.check_data(data.info, data.test.batch(slice(0, 8))[0])
    recipe = _filled_in(recipe, target)
    lambdas = _lambdas(recipe, target)
    files = {path: file_digest(path) for path in recipe.data.adversarial} | {target.name: target.digest}
    resume = resume and checkpoint_path(folder).exists()
    place = torch.device(device)
    model = build_explainer(recipe, data.info, target.takes_lambda)
    if not resume and recipe.student.start == "target":
        _start_from(target, model)
    model.to(place)
    create_run(folder, recipe, resume, FILE)
    schedule = recipe.schedule
    optimizer = nesterov(model.parameters(), 0.0, schedule.momentum, schedule.weight_decay)
    history: list[dict[str, Any]] = []
    if resume:
        history, files = restore(folder, load_checkpoint(folder), model, optimizer, files)
    victims = [Victim(working_network(target.network(lam), place)) for lam in lambdas]
    plan = [(part, phase.rate(epoch)) for part, phase in schedule.phases for epoch in range(phase.epochs)]
    steps = batches_per_epoch(len(images), recipe.data.batch_size)
    with (
        progress_bar("explaining", len(plan) * steps, len(history) * steps) as bar,
        closing(scalar_log(folder, history)) as log,
    ):
        for epoch in range(len(history), len(plan)):
            part, lr = plan[epoch]
            order, draws = epoch_generators(recipe.seed, epoch, torch.device("cpu"))
            for group in optimizer.param_groups:
                group["lr"] = lr
            model.train()
            totals: dict[str, Tensor] = {}
            for image, label in training_batches(images, recipe.data, order, place):
                chosen = int(torch.randint(len(lambdas), (), generator=draws))
                setting = surrogate_setting(target, lambdas[chosen])
                losses = step_losses(model, recipe, part, setting, victims[chosen], image, label, draws)
                optimizer.zero_grad(set_to_none=True)  # what a phase does not learn has no gradient, and is left alone
                torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                for name, value in losses.items():
                    totals[name] = totals.get(name, torch.zeros((), device=place)) + value.detach()
                bar.advance(part)
            means = {name: float(total) / steps for name, total in totals.items()}
            if not all(map(math.isfinite, means.values())):
                raise RunError(
                    f"the loss stopped being finite in epoch {epoch + 1}; lower its phase's lr (={lr:g}), or start "
                    "afresh in another folder with -o"
                )
            history.append({"epoch": epoch + 1, "part": part, "lr": lr, **means})
            momentum, threads = momentum_buffers(model, optimizer), torch.get_num_threads()
            digest = recipe.digest()
            checkpoint = Checkpoint(
                len(history), model.state_dict(), momentum, history, data.info, threads, digest, files
            )
            save_checkpoint(folder, checkpoint)
            log_scalars(log, {"epoch": epoch + 1, "lr": lr, **means})
    write_json(folder / "metrics.json", history)
    model.eval()
    rows = [
        {"lambda": lam, **surrogate_accuracy(model, surrogate_setting(target, lam), victim, data.test)}
        for lam, victim in zip(lambdas, victims, strict=True)
    ]
    return {
        "explainer": str(folder),
        "target": target.name,
        "fidelity": recipe.explanation.fidelity,
        "epochs": len(history),
        "seconds": round(time.monotonic() - began, 3),
        "rows": rows,
    }


def step_losses(
    model: ConditionalModel,
    recipe: ExplainerRecipe,
    part: Part,
    setting: Setting,
    target: Victim,
    image: Tensor,
    label: Tensor,
    draws: torch.Generator,
) -> dict[str, Tensor]:
    """The losses of one training step, to be added up.

    Args:
        model: the surrogate, in training mode.
        recipe: weights of the losses, and who looks at the explained image.
        part: what is learned. While the explanation network is, the student is in evaluation mode and without gradient.
        setting: lambda, for the surrogate's batch norms.
        target: the network to explain, at that lambda.
        image: (N, C, H, W) float32 in [0, 1].
        label: (N,) int64, true classes.
        draws: on the CPU; of ranked masks.

    Returns:
        `distillation` (eq. 4) unless the explanation network alone is learned, and `explanation` (eq. 8) unless the
        student alone is.
    """
    surrogate = cast(Surrogate, model.backbone)
    learning = part != "explanation"
    own = model.state(setting)
    state = own if learning else model.full_state(setting)
    truth = target.logits(image)
    surrogate.student.train(learning)
    with torch.set_grad_enabled(learning):
        logits, features = _call(surrogate.student, "student", state, image)
    losses = {}
    if learning:
        section = recipe.distillation
        losses["distillation"] = distillation_loss(logits, truth, label, section.alpha, section.temperature)
    if part == "student":
        return losses
    evidence = _call(surrogate.explanation, "explanation", own, features, image.shape[2:])
    explained = explained_image(image, evidence, recipe.explanation, draws)
    if recipe.explanation.fidelity == "target":
        seen = target.network(explained)
    else:
        surrogate.student.eval()  # an explained image is none of those that its statistics are of
        seen, _ = _call(surrogate.student, "student", state, explained)
    return losses | {"explanation": explanation_loss(seen, truth, evidence.sigmoid(), recipe.explanation.l1)}


def _filled_in(recipe: ExplainerRecipe, target: Target) -> ExplainerRecipe:
    """The recipe with its target's name, and who looks at the explained image."""
    explanation = recipe.explanation
    if explanation.fidelity == "target" and not target.has_gradients:
        raise InputError(
            f"explanation.fidelity (=target) needs gradients, and {target.name} answers without; take student, or "
            "explain the run that the file was exported from"
        )
    fidelity = explanation.fidelity
    if fidelity == "auto":
        fidelity = "target" if target.has_gradients else "student"
    update = {"target": target.name, "explanation": explanation.model_copy(update={"fidelity": fidelity})}
    return recipe.model_copy(update=update)


def _start_from(target: Target, model: ConditionalModel) -> None:
    """Give the student the weights of a target of its own architecture, batch norms of both conditions among them."""
    student = cast(Surrogate, model.backbone).student.resnet
    names = {name: name.replace(".block.", ".") for name in student.state_dict() if ".attention." not in name}
    expected = {plain: student.state_dict()[name] for name, plain in names.items()}

    def tensors(lam: float | None) -> dict[str, Tensor]:
        network = target.network(lam)
        found = network.state_dict() if isinstance(network, nn.Module) else {}
        problems = tensor_problems(expected, found)
        if problems:
            raise InputError(
                f"student.start (=target) needs a target with weights, of the student's architecture: {problems[0]}"
            )
        return found

    clean = tensors(0.0 if target.takes_lambda else None)
    student.load_state_dict({name: clean[plain] for name, plain in names.items()}, strict=False)
    if isinstance(model, DualNormModel):
        attacked = tensors(1.0)
        for name, norm in model.adversarial_set().items():
            own = names.get(name.removeprefix("student.resnet.") + ".weight")
            if own is not None:
                norm.load_state_dict({key: attacked[own.removesuffix("weight") + key] for key in norm.state_dict()})


def _lambdas(recipe: ExplainerRecipe, target: Target) -> list[float | None]:
    """The lambdas to train at, None for a target without; InputError where a set of batch norms would learn nothing."""
    if not target.takes_lambda:
        return [None]
    lambdas = recipe.condition.lambdas
    mixes = {surrogate_setting(target, lam).norm_mix for lam in lambdas}
    if recipe.condition.norms == "dual" and not {0.0, 1.0} <= mixes:
        raise InputError(
            f"condition.lambdas (={lambdas}) leaves one of two sets of batch norms untrained; hold 0 and 1, or take "
            "condition.norms=shared"
        )
    return list(lambdas)


def _call(module: nn.Module, prefix: str, state: dict[str, Tensor], *arguments: Any) -> Any:
    """Run one half of a surrogate with its part of a state; what the state lacks is the module's own."""
    own = {name.removeprefix(f"{prefix}."): tensor for name, tensor in state.items() if name.startswith(f"{prefix}.")}
    return functional_call(module, own, arguments)
