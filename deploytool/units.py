"""Units of a study: runs trained to their end, and records that are not computed again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from deploytool.errors import RunError
from deploytool.labels.label_map import LabelMap
from deploytool.recipe import Recipe
from deploytool.training.loop import train
from deploytool.training.run import Run, checkpoint_path, load_run

Row = dict[str, Any]


def trained(recipe: Recipe, place: Path, device: str = "cpu", labels: LabelMap | None = None) -> Run:
    """The run of a recipe in a folder, trained to its end; an interrupted one goes on, a finished one is only read.

    Args:
        recipe: what to train.
        place: the run's folder.
        device: torch device.
        labels: reasoning labels of a recipe with them, whatever has become of the file that it names.

    Raises:
        RunError: the folder holds a run of another recipe or other labels. And whatever `train` raises.
    """
    if checkpoint_path(place).exists():
        run = load_run(place)
        own = None if run.labels is None else run.labels.to_dict()
        if run.recipe.digest() == recipe.digest() and labels is not None and own != labels.to_dict():
            raise RunError(f"{place} was trained with other reasoning labels than the rest of this study; remove it")
        if run.recipe.digest() == recipe.digest() and run.checkpoint.epochs == recipe.optimizer.epochs:
            return run
    train(recipe, place, resume=place.exists(), device=device, labels=labels)
    return load_run(place)


def read_record(file: Path, key: str) -> Row | None:
    """What a finished unit found (its `recipe` being its key); None where it is absent, damaged or another's."""
    try:
        record: Row = json.loads(file.read_text(encoding="utf-8"))
        return record if record["recipe"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def record_key(*parts: Any) -> str:
    """Digest of what a unit depends on, plain values: 16 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
