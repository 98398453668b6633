"""The training loop: one page, top to bottom, for every method."""

import math
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploytool.atomic import write_json
from deploytool.data.adversarial import with_adversarial
from deploytool.data.batches import batches_per_epoch, training_batches
from deploytool.data.datasets import load_dataset
from deploytool.digests import file_digest
from deploytool.errors import CheckpointError, RunError
from deploytool.evaluation import deployed, evaluate_model
from deploytool.labels.label_map import LabelMap
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import build_model, recipe_labels, recipe_setting
from deploytool.progress import progress_bar
from deploytool.recipe import Recipe
from deploytool.training.consistency import consistency_metrics
from deploytool.training.density import density_metrics
from deploytool.training.methods import Step, training_step
from deploytool.training.pretrained import load_pretrained, weights_file
from deploytool.training.run import (
    Checkpoint,
    checkpoint_path,
    create_run,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    tensor_problems,
)
from deploytool.training.sparsity import move_masks


def train(
    recipe: Recipe,
    run: str | Path,
    resume: bool = False,
    device: str = "cpu",
    labels: LabelMap | None = None,
) -> dict[str, Any]:
    """Train a recipe into a run folder; a checkpoint is written after each epoch (with none to train, at once).

    Everything random in epoch e comes from generators seeded by (recipe.seed, e), so a resumed run walks the very
    steps of an uninterrupted one: on the CPU of one machine the weights are the same bits. That holds for one number
    of threads, so a resumed run takes that of its checkpoint, and for the same `data.adversarial` files, so others are
    refused. `model.weights` are read when a run is started, never again.

    Args:
        recipe: what to train.
        run: folder to write; see `deploytool.training.run`.
        resume: go on from the folder's checkpoint.
        device: torch device.
        labels: reasoning labels to start a run with, of a recipe with them; where None, those of the file it names.

    Returns:
        `run`, `epochs`, `seconds` (of this call), `clean_accuracy` at lambda 0 and `robust_accuracy` at lambda 1
        (of the training attack) on the test images.

    Raises:
        RunError: the folder cannot be used, or the loss stopped being finite, or adversarial images changed.
        CheckpointError: the weights to start from do not fit.
        DataError: the data set or its adversarial images cannot be loaded.
    """
    began = time.monotonic()
    run = Path(run)
    resume = resume and checkpoint_path(run).exists()
    data = load_dataset(recipe.data)
    images = with_adversarial(data, recipe.data.adversarial)
    files = {path: file_digest(path) for path in recipe.data.adversarial}
    place = torch.device(device)
    checkpoint = load_checkpoint(run) if resume else None
    labels = checkpoint.labels if checkpoint else labels or recipe_labels(recipe, data.info)
    model = build_model(recipe, data.info, labels)
    if recipe.model.weights is not None and checkpoint is None:
        load_pretrained(model, recipe.model.weights)
        files[recipe.model.weights] = file_digest(weights_file(recipe.model.weights))
    model.to(place)
    create_run(run, recipe, resume)
    optimizer = make_optimizer(model, recipe)
    history: list[dict[str, Any]] = []
    if checkpoint is not None:
        history, files = restore(run, checkpoint, model, optimizer, files)
    del checkpoint  # its tensors are copied; training needs the memory

    def save() -> None:
        momentum = momentum_buffers(model, optimizer)
        threads = torch.get_num_threads()
        save_checkpoint(
            run,
            Checkpoint(
                len(history), model.state_dict(), momentum, history, data.info, threads, recipe.digest(), files, labels
            ),
        )

    epochs, steps = recipe.optimizer.epochs, batches_per_epoch(len(images), recipe.data.batch_size)
    if epochs == 0 and not resume:
        save()
    with (
        torch.random.fork_rng(),
        progress_bar("training", epochs * steps, len(history) * steps) as bar,
        closing(scalar_log(run, history)) as log,
    ):
        for epoch in range(len(history), epochs):
            order, draws = epoch_generators(recipe.seed, epoch, place)
            torch.manual_seed(draws.initial_seed())  # dropout takes torch's own generator
            model.train()
            totals = Totals()
            batches = training_batches(images, recipe.data, order, place)
            for index, (image, label) in enumerate(batches):
                lr = cosine_lr(recipe.optimizer.lr, epoch * steps + index, epochs * steps)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                step = training_step(model, recipe, image, label, draws)
                optimizer.zero_grad(set_to_none=True)
                step.total.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                model.apply_masks()
                totals.add(step)
                bar.advance(totals.note())
            metrics: dict[str, Any] = {"epoch": epoch + 1, "lr": lr, **totals.means(), **alpha_metrics(model)}
            if not math.isfinite(total := metrics["loss"] + metrics.get("penalty", 0.0)):
                raise RunError(
                    f"the loss became {total} in epoch {epoch + 1}; lower optimizer.lr "
                    f"(={recipe.optimizer.lr:g}), or start afresh in another folder with -o"
                )
            if model.masks and recipe.sparsity is not None:
                momentum = momentum_buffers(model, optimizer)
                metrics |= move_masks(model, momentum, recipe.sparsity, last=epoch + 1 == epochs)
            if recipe.regularization is not None:
                metrics |= density_metrics(model, data.test)
            if recipe.reasoning is not None and due(epoch + 1, epochs, recipe.reasoning.every):
                metrics |= consistency_metrics(model, data.test.head(recipe.evaluate.images), recipe)
            history.append(metrics)
            save()
            log_scalars(log, metrics)

    write_json(run / "metrics.json", history)
    model.eval()
    last = evaluate_model(
        model,
        data.test,
        recipe,
        [f"pgd-{recipe.attack.steps}"],
        [deployed(recipe_setting(recipe, lam)) for lam in (0.0, 1.0)],
    )
    return {
        "run": str(run),
        "epochs": len(history),
        "seconds": round(time.monotonic() - began, 3),
        "clean_accuracy": last[0]["clean_accuracy"],
        "robust_accuracy": last[-1]["robust_accuracy"],
    }


def make_optimizer(model: ConditionalModel, recipe: Recipe) -> torch.optim.SGD:
    """The optimizer of a recipe, of all parameters of its model."""
    section = recipe.optimizer
    return nesterov(model.parameters(), section.lr, section.momentum, section.weight_decay)


def nesterov(parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay on convolution and linear weights alone.

    Batch norms, biases and alphas are left undecayed: decay would pull alpha, the strength of the noise, to 0
    for no reason that the loss knows.
    """
    every = list(parameters)
    groups = [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=True)


def cosine_lr(start: float, step: int, steps: int) -> float:
    """Learning rate of a step: `start * (1 + cos(pi * step / steps)) / 2`."""
    return start * 0.5 * (1 + math.cos(math.pi * step / steps))


def epoch_generators(seed: int, epoch: int, device: torch.device) -> tuple[torch.Generator, torch.Generator]:
    """Two generators for one epoch: order and augmentation (on the CPU), attack starts and noise (on the device)."""
    base = (seed * 1_000_003 + epoch) * 2
    return torch.Generator().manual_seed(base), torch.Generator(device).manual_seed(base + 1)


def momentum_buffers(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, torch.Tensor]:
    """The optimizer's momentum by parameter name; zeros, which mean the same, where no gradient ever came."""
    buffers = {}
    for name, parameter in model.named_parameters():
        buffer = optimizer.state[parameter].get("momentum_buffer")
        buffers[name] = torch.zeros_like(parameter) if buffer is None else buffer
    return buffers


def restore(
    run: Path, checkpoint: Checkpoint, model: ConditionalModel, optimizer: torch.optim.SGD, files: dict[str, str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Load a run's checkpoint into model, optimizer and torch's thread count.

    Returns:
        The history so far, and the digests of all files that the run was started with.

    Raises:
        CheckpointError: weights or momentum do not fit the model.
        RunError: one of `files` (SHA-256 by path) is not what it was when the run was started.
    """
    changed = [path for path, digest in files.items() if checkpoint.files.get(path) != digest]
    if changed:
        raise RunError(
            f"{changed[0]} is no longer the file that {run} was started with; put that one back, or start afresh in "
            "another folder with -o"
        )
    load_weights(model, checkpoint.model, str(checkpoint_path(run)))
    parameters = dict(model.named_parameters())
    problems = tensor_problems(parameters, checkpoint.momentum)
    if problems:
        raise CheckpointError(f"{checkpoint_path(run)}: its momentum does not fit the model: {'; '.join(problems)}")
    for name, parameter in parameters.items():
        optimizer.state[parameter]["momentum_buffer"] = checkpoint.momentum[name].to(parameter.device)
    torch.set_num_threads(max(1, min(checkpoint.threads, 1024)))
    return list(checkpoint.history), checkpoint.files


def due(epoch: int, epochs: int, every: int) -> bool:
    """Whether something is measured after this epoch of so many: every so often and at the end; with 0, never."""
    return every > 0 and (epoch % every == 0 or epoch == epochs)


def alpha_metrics(model: ConditionalModel) -> dict[str, list[float]]:
    """The learned noise scaling factors, where the model has them."""
    alpha = getattr(model, "alpha", None)
    return {} if alpha is None else {"alpha": [round(float(a), 6) for a in alpha.detach()]}


def log_scalars(log: Any, metrics: dict[str, Any]) -> None:
    """Write one epoch's numbers to TensorBoard; lists and dictionaries of them get a curve per entry."""
    for name, value in metrics.items():
        if name == "consistency":  # counts, of which test_coverage and others are scalars
            continue
        entries = dict(enumerate(value)) if isinstance(value, list) else value if isinstance(value, dict) else None
        for key, number in [(name, value)] if entries is None else entries.items():
            log.add_scalar(name if entries is None else f"{name}/{key}", number, metrics["epoch"])


def scalar_log(run: Path, history: list[dict[str, Any]]) -> Any:
    """Open the TensorBoard log; scalars that a killed process wrote past the checkpoint are purged."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"), purge_step=len(history) + 1)


class Totals:
    """Running means of an epoch; they stay on the device until somebody reads them."""

    def __init__(self) -> None:
        self.steps = 0
        self.loss: torch.Tensor | float = 0.0
        self.penalty: torch.Tensor | float | None = None
        self.correct: dict[str, torch.Tensor | int] = {}
        self.count: dict[str, int] = {}
        self.last_note = ""

    def add(self, step: Step) -> None:
        """Take one step's numbers."""
        self.steps += 1
        self.loss = self.loss + step.loss.detach().double()
        if step.penalty is not None:
            self.penalty = (0.0 if self.penalty is None else self.penalty) + step.penalty.detach().double()
        for name, tally in (("clean", step.clean), ("robust", step.robust)):
            if tally is not None:
                self.correct[name] = self.correct.get(name, 0) + tally.correct
                self.count[name] = self.count.get(name, 0) + tally.count

    def means(self) -> dict[str, float]:
        """Mean loss and, apart, penalty; clean and robust training accuracy in [0, 1] where there were such images."""
        accuracies = {f"train_{name}_accuracy": int(self.correct[name]) / self.count[name] for name in self.count}
        penalty = {} if self.penalty is None else {"penalty": float(self.penalty) / self.steps}
        return {"loss": float(self.loss) / self.steps, **penalty, **accuracies}

    def note(self) -> str:
        """The means as one short line for the progress bar, from every tenth step to keep the device busy."""
        if self.steps % 10 == 1:
            self.last_note = "  ".join(
                f"{name.removeprefix('train_').removesuffix('_accuracy')} {value:.3f}"
                for name, value in self.means().items()
            )
        return self.last_note
