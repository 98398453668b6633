"""A run: the folder that holds one training, and everything later stages read from it.

RUN/recipe.yaml               the validated recipe, defaults written out
RUN/checkpoint.safetensors    model, momentum, epochs done, history: one file, renamed into place each epoch
RUN/metrics.json              the history again, for people and plots
RUN/tensorboard/              scalars per epoch
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deploytool.atomic import atomic_path, remove_leftovers, write_text
from deploytool.data.catalogue import DatasetInfo
from deploytool.documents import Document
from deploytool.errors import CheckpointError, DataError, LabelError, RunError
from deploytool.labels.files import parse_labels
from deploytool.labels.label_map import LabelMap
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import build_model
from deploytool.recipe import Recipe, load_recipe

MODEL, MOMENTUM = "model.", "momentum."


@dataclass(frozen=True)
class Checkpoint:
    """What training needs to go on as if it had never stopped.

    Attributes:
        epochs: epochs done.
        model: state dict of the model.
        momentum: SGD's momentum buffers by parameter name; empty before the first step.
        history: one dictionary of metrics per epoch done.
        data: the data set's description, so that a run is complete without its images.
        threads: torch's threads; another number sums in another order.
        recipe: digest of the recipe that was trained.
        files: SHA-256 by path of the files that training reads beside the data set.
        labels: the reasoning labels trained with, classes in the data set's order; None without them.
    """

    epochs: int
    model: dict[str, Tensor]
    momentum: dict[str, Tensor]
    history: list[dict[str, Any]]
    data: DatasetInfo
    threads: int
    recipe: str
    files: dict[str, str] = field(default_factory=dict)
    labels: LabelMap | None = None


def checkpoint_path(run: Path) -> Path:
    """Path of a run's checkpoint."""
    return run / "checkpoint.safetensors"


def create_run(
    run: Path,
    recipe: Document,
    resume: bool,
    name: str = "recipe.yaml",
    held: Path | None = None,
    kind: str = "run",
) -> None:
    """Make the folder and write the recipe to a file; with `resume`, check that the folder's recipe is this one.

    A folder whose training never reached a checkpoint holds nothing to lose: its recipe is replaced. What holds more
    than a recipe is the file `held`, a checkpoint where None; messages call the folder a `kind`.

    Raises:
        RunError: the folder holds a trained run already, or (with `resume`) one of another recipe, or other files.
    """
    file, held = run / name, held or checkpoint_path(run)
    if held.exists() and file.exists():
        if not resume:
            raise RunError(f"{run} already holds a {kind}; continue it with --resume, or name another folder with -o")
        differing = _differences(type(recipe).load(file), recipe)
        if differing:
            raise RunError(
                f"{run} was started with another recipe ({'; '.join(differing)}); name another folder with -o"
            )
    elif run.exists() and not file.exists() and (not run.is_dir() or any(run.iterdir())):
        raise RunError(f"{run} exists and is no {kind} of deploytool; name another folder with -o")
    run.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run)
    if not held.exists():
        write_text(file, recipe.to_yaml())


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint atomically; safetensors, no pickle.

    Raises:
        RunError: it cannot be written; an older one is kept.
    """
    tensors = {MODEL + name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.items()}
    tensors |= {MOMENTUM + name: tensor.cpu().contiguous() for name, tensor in checkpoint.momentum.items()}
    metadata = {
        "format": "deploytool-checkpoint-1",
        "recipe": checkpoint.recipe,
        "epochs": str(checkpoint.epochs),
        "history": json.dumps(checkpoint.history),
        "data": json.dumps(asdict(checkpoint.data)),
        "threads": str(checkpoint.threads),
        "files": json.dumps(checkpoint.files),
    }
    if checkpoint.labels is not None:
        metadata["labels"] = json.dumps({"classes": checkpoint.labels.to_dict()})
    try:
        with atomic_path(checkpoint_path(run)) as aside:
            save_file(tensors, aside, metadata)
    except SafetensorError as error:
        reason = " ".join(str(error).split())[:160]
        raise RunError(f"{checkpoint_path(run)} cannot be written ({reason}); make room and use --resume") from None


def load_checkpoint(run: Path) -> Checkpoint:
    """Read a run's checkpoint onto the CPU.

    Raises:
        CheckpointError: it is absent or damaged.
    """
    path = checkpoint_path(run)
    if not path.is_file():
        raise CheckpointError(f"{run} has no checkpoint.safetensors; train it first: deploytool train RECIPE -o {run}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if metadata.get("format") != "deploytool-checkpoint-1":
            raise CheckpointError(f"{path} is no checkpoint of deploytool; train again, or copy the file anew")
        epochs, history = int(metadata["epochs"]), json.loads(metadata["history"])
        if not isinstance(history, list) or len(history) != epochs or not all(isinstance(e, dict) for e in history):
            raise ValueError(f"its history does not fit its {epochs} epochs")
        data, threads = read_info(json.loads(metadata["data"])), int(metadata["threads"])
        files = {str(name): str(digest) for name, digest in json.loads(metadata.get("files", "{}")).items()}
        labels = None
        if "labels" in metadata:
            labels = parse_labels(metadata["labels"], "its label map").for_classes(data.classes)
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        DataError,
        LabelError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path} is damaged ({reason}); copy it anew, or train again") from None
    return Checkpoint(
        epochs,
        {name.removeprefix(MODEL): tensor for name, tensor in tensors.items() if name.startswith(MODEL)},
        {name.removeprefix(MOMENTUM): tensor for name, tensor in tensors.items() if name.startswith(MOMENTUM)},
        history,
        data,
        threads,
        metadata.get("recipe", ""),
        files,
        labels,
    )


def read_info(document: dict[str, Any]) -> DatasetInfo:
    """The description of a data set of its plain values; KeyError, TypeError or DataError where they are none."""
    lists = {key: tuple(document[key]) for key in ("shape", "classes", "mean", "std")}
    return DatasetInfo(str(document["name"]), **lists)


def load_weights(model: ConditionalModel, tensors: dict[str, Tensor], source: str) -> None:
    """Load a state dict strictly: every missing, extra, misshapen or impossible tensor is named.

    Raises:
        CheckpointError: the tensors are not exactly the model's.
    """
    problems = tensor_problems(model.state_dict(), tensors)
    if problems:
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(problems)}")
    model.load_state_dict(tensors)


def tensor_problems(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """What keeps tensors from being those that are expected, one phrase each."""
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unexpected" for name in tensors if name not in expected]
    for name, tensor in tensors.items():
        if name not in expected:
            continue
        if tensor.shape != expected[name].shape:
            problems.append(f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
        elif tensor.dtype != expected[name].dtype:
            problems.append(f"{name} is {tensor.dtype}, expected {expected[name].dtype}")
        elif tensor.is_floating_point() and not torch.isfinite(tensor).all():
            problems.append(f"{name} holds NaN or infinity")
        elif name.endswith("running_var") and (tensor < 0).any():
            problems.append(f"{name} is negative")
    return problems


@dataclass(frozen=True)
class Run:
    """A trained run: its folder, recipe, model (evaluation mode, on the CPU) and the epochs it was trained."""

    path: Path
    recipe: Recipe
    model: ConditionalModel
    checkpoint: Checkpoint

    @property
    def labels(self) -> LabelMap | None:
        """The reasoning labels of the second head, classes in the order of the logits; None without one."""
        return self.checkpoint.labels


def load_run(path: str | os.PathLike[str]) -> Run:
    """Load a run's recipe and trained model.

    Raises:
        RunError: the folder is no run, or was not trained yet; CheckpointError: its checkpoint is unusable.
    """
    run = Path(path)
    if not (run / "recipe.yaml").is_file():
        raise RunError(f"{run} is no run of deploytool (no recipe.yaml); make one: deploytool train RECIPE -o {run}")
    recipe = load_recipe(run / "recipe.yaml")
    checkpoint = load_checkpoint(run)
    if checkpoint.recipe != recipe.digest():
        raise CheckpointError(f"{run}: its checkpoint is of another recipe than its recipe.yaml; train it again")
    labels = checkpoint.labels
    if (labels is None) != (recipe.reasoning is None):
        raise CheckpointError(f"{run}: its checkpoint's label map does not fit its recipe.yaml; train it again")
    model = build_model(recipe, checkpoint.data, labels)
    load_weights(model, checkpoint.model, str(checkpoint_path(run)))
    vectors = model.reason_vectors
    if labels is not None and vectors is not None and not np.array_equal(vectors.numpy(), labels.vectors()):
        raise CheckpointError(f"{checkpoint_path(run)} is damaged (vectors and label map differ); copy it anew")
    return Run(run, recipe, model.eval(), checkpoint)


def _differences(old: Document, new: Document) -> list[str]:
    """Dotted keys whose values differ, at most five, as `key old -> new`."""
    before, after = (
        _flat(old.model_dump(mode="json", by_alias=True)),
        _flat(new.model_dump(mode="json", by_alias=True)),
    )
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key} {before.get(key)} -> {after.get(key)}" for key in keys[:5]]


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
