"""Adversarial examples on disk: one .npz without pickles, and a check of everything it claims.

image        (N, C, H, W) float32, the images as they were
adversarial  (N, C, H, W) float32
label        (N,) int64; `target` (N,) int64 beside it, of a targeted attack
fooled       (N,) bool
distance     (N,) float32, norms of the perturbations
record       JSON as uint8: attack, norm, eps, minimal, budget, seed, model digest, robust accuracy; `acceptance`,
             the rule, where an image counts as fooled only if the wrong class is accepted
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploytool.atomic import atomic_path
from deploytool.attacks.acceptance import AcceptanceRule, AcceptedGoal
from deploytool.attacks.checks import check_classes, check_images
from deploytool.attacks.geometry import distance, slack
from deploytool.attacks.goal import Goal
from deploytool.attacks.names import Norm
from deploytool.attacks.run import BATCH, AttackResult, batches
from deploytool.attacks.victim import Network, Victim
from deploytool.errors import DataError, InputError

FORMAT = 1
MAX_BYTES = 8 << 30  # of all arrays together, unpacked
MAX_RECORD_BYTES = 1 << 20
ARRAYS = {"image": "<f4", "adversarial": "<f4", "label": "<i8", "fooled": "|b1", "distance": "<f4", "record": "|u1"}
OPTIONAL = {"target": "<i8"}
ADVICE = "save it again with evaluate --save"


@dataclass(frozen=True)
class Adversarial:
    """Adversarial examples as a file holds them; the fields are the file's arrays.

    Attributes:
        record: what the file says of them, `model` and `robust_accuracy` among it.
    """

    image: Tensor
    adversarial: Tensor
    label: Tensor
    target: Tensor | None
    fooled: Tensor
    distance: Tensor
    record: dict[str, Any]

    @property
    def norm(self) -> Norm:
        """The norm of `distance`."""
        return self.record["norm"]  # type: ignore[no-any-return]

    @property
    def eps(self) -> float | None:
        """The radius of the budget; None: any distance counts."""
        return self.record["eps"]  # type: ignore[no-any-return]

    @property
    def acceptance(self) -> dict[str, Any] | None:
        """The rule that they were to be accepted by, as `AcceptanceRule.to_dict`; None where the class alone counts."""
        return self.record.get("acceptance")


@dataclass(frozen=True)
class Verification:
    """What became of a file's claims.

    Attributes:
        images: how many.
        outside_ball: perturbations larger than the budget allows; 0 for attacks that look for the smallest one.
        outside_unit: images with values outside [0, 1].
        wrong_distance: images whose norm is not the one on record.
        no_longer_fooled, newly_fooled: images on which the network answers otherwise than on record.
        robust_accuracy: of this network, in [0, 1].
        recorded_robust_accuracy: on record.
        same_model: whether the network is the one attacked; None where no digest was given.
    """

    images: int
    outside_ball: int
    outside_unit: int
    wrong_distance: int
    no_longer_fooled: int
    newly_fooled: int
    robust_accuracy: float
    recorded_robust_accuracy: float
    same_model: bool | None

    @property
    def sound(self) -> bool:
        """Whether the numbers in the file agree with each other, whatever the network."""
        return not (self.outside_ball or self.outside_unit or self.wrong_distance)

    @property
    def holds(self) -> bool:
        """Whether everything on record is true of this network."""
        broken = (
            self.outside_ball, self.outside_unit, self.wrong_distance, self.no_longer_fooled, self.newly_fooled
        )  # fmt: skip
        return (
            not any(broken) and self.robust_accuracy == self.recorded_robust_accuracy and self.same_model is not False
        )


def save_adversarial(
    path: str | os.PathLike[str],
    result: AttackResult,
    image: Tensor,
    label: Tensor,
    model_digest: str,
) -> None:
    """Write an attack's result; the file appears whole or not at all.

    Args:
        path: of the file, `.npz` by custom.
        result: of `run_attack` on these images.
        image: (N, C, H, W) float32 in [0, 1], the images as they were.
        label: (N,) int64.
        model_digest: of the network attacked: `state_digest` or `file_digest`.

    Raises:
        InputError: the images are not those of the result.
        OSError: the file cannot be written.
    """
    check_images(image, label)
    if image.shape != result.image.shape:
        raise InputError(f"image has shape {tuple(image.shape)}, the result {tuple(result.image.shape)}; they differ")
    record = {
        **result.record,
        "format": FORMAT,
        "norm": result.norm,
        "eps": result.eps,
        "minimal": result.minimal,
        "forwards": result.forwards,
        "backwards": result.backwards,
        "found_by": result.found_by,
        "model": model_digest,
        "robust_accuracy": result.robust_accuracy(),
    }
    arrays = {
        "image": image,
        "adversarial": result.image,
        "label": label,
        "fooled": result.fooled,
        "distance": result.distance,
        **({} if result.target is None else {"target": result.target}),
    }
    text = json.dumps(record, allow_nan=False).encode()
    with atomic_path(path) as aside, aside.open("wb") as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            record=np.frombuffer(text, np.uint8),
            **{name: tensor.detach().cpu().numpy() for name, tensor in arrays.items()},
        )


def load_adversarial(path: str | os.PathLike[str]) -> Adversarial:
    """Read a file that `save_adversarial` wrote.

    Raises:
        DataError: it is absent, damaged, too large, or holds something else.
    """
    file = Path(path)
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = _members(file, archive)
        record = json.loads(arrays["record"].tobytes().decode())
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a hostile archive makes zipfile, zlib, numpy and json raise almost anything
        raise DataError(
            f"{file} holds no adversarial examples ({' '.join(str(error).split())[:120]}); {ADVICE}"
        ) from None
    _check_arrays(file, arrays)
    _check_record(file, record, "target" in arrays)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if name != "record"}
    return Adversarial(target=tensors.pop("target", None), record=record, **tensors)


def verify(
    saved: Adversarial | str | os.PathLike[str],
    network: Network,
    model_digest: str | None = None,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
    rule: AcceptanceRule | None = None,
) -> Verification:
    """Check adversarial examples again, from the numbers alone.

    Args:
        saved: the examples, or their file.
        network: image -> logits, in evaluation mode: the one attacked, or another to see what transfers.
        model_digest: of the network, to be compared with the one on record.
        batch: images answered together; the attack's own gives the same bits on the same machine.
        device: of the network.
        rule: of acceptance, for examples that an attack on class and reasoning labels made; the network then answers
            (N, K + R), on the CPU or `device`.

    Raises:
        DataError: the file cannot be used. InputError: the network answers NaN or has too few classes, or the examples
            need a rule.
    """
    examples = saved if isinstance(saved, Adversarial) else load_adversarial(saved)
    goal = Goal(examples.label) if examples.target is None else Goal(examples.target, True)
    if examples.acceptance is not None:
        if rule is None:
            raise InputError(
                "these examples fool reasoning labels together with the class; give the rule of acceptance"
            )
        goal = AcceptedGoal(examples.label, rule=rule.to("cpu"))
    victim = Victim(network)
    fooled = torch.cat([
        goal[rows].reached(victim.logits(examples.adversarial[rows].to(device)).cpu())
        for rows in batches(len(goal), batch)
    ])  # fmt: skip
    classes = (victim.classes or 0) if examples.acceptance is None or rule is None else rule.classes
    check_classes(examples.label, classes)
    check_classes(goal.label, classes, "target" if goal.targeted else "label")
    size = distance(examples.adversarial - examples.image, examples.norm)
    within = torch.ones_like(fooled) if examples.eps is None else size <= examples.eps + slack(examples.eps)
    unit = [((tensor >= 0) & (tensor <= 1)).flatten(1).all(1) for tensor in (examples.image, examples.adversarial)]
    off = (size - examples.distance).abs() > slack(1) * (1 + size)
    return Verification(
        images=len(fooled),
        outside_ball=0 if examples.record["minimal"] else int((~within).sum()),
        outside_unit=int((~(unit[0] & unit[1])).sum()),
        wrong_distance=int(off.sum()),
        no_longer_fooled=int((examples.fooled & ~fooled).sum()),
        newly_fooled=int((fooled & ~examples.fooled).sum()),
        robust_accuracy=int((~(fooled & within)).sum()) / len(fooled),
        recorded_robust_accuracy=examples.record["robust_accuracy"],
        same_model=None if model_digest is None else model_digest == examples.record["model"],
    )


def _members(file: Path, archive: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an archive, once their names and declared sizes are as they should be."""
    names, expected = set(archive.files), set(ARRAYS)
    if not expected <= names <= expected | set(OPTIONAL) or len(archive.files) != len(names):
        odd = sorted(expected - names) or sorted(names - expected)
        raise DataError(f"{file} holds no adversarial examples ({', '.join(odd)[:80]} missing or unknown); {ADVICE}")
    sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.zip.infolist()}
    if sum(sizes.values()) > MAX_BYTES or sizes["record"] > MAX_RECORD_BYTES:
        raise DataError(f"{file} unpacks to {sum(sizes.values())} bytes; at most {MAX_BYTES} are read")
    return {name: archive[name] for name in archive.files}


def _check_arrays(file: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    count, shape = arrays["label"].shape[:1], arrays["image"].shape
    for name, array in arrays.items():
        wanted = shape if name in ("image", "adversarial") else array.shape[:1] if name == "record" else count
        if array.dtype.str != (ARRAYS | OPTIONAL)[name] or array.shape != wanted:
            raise DataError(f"{file}: {name} is {array.dtype} {array.shape}, expected {wanted}; {ADVICE}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{file}: {name} holds NaN or infinity; {ADVICE}")
        if array.dtype.str == "<i8" and array.min(initial=0) < 0:
            raise DataError(f"{file}: {name} holds {array.min()}; classes count from 0")
    if len(shape) != 4 or shape[:1] != count or 0 in shape:
        raise DataError(f"{file}: image has shape {shape}, label {count}; expected (N, C, H, W) and (N,); {ADVICE}")


def _check_record(file: Path, record: Any, targeted: bool) -> None:
    """Raise DataError unless the record says what `verify` needs."""
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{file} is of another format; this version reads format {FORMAT}; {ADVICE}")
    eps: Any = record.get("eps")
    accuracy: Any = record.get("robust_accuracy")
    sound = {
        "norm": record.get("norm") in ("linf", "l2"),
        "eps": eps is None or _is_number(eps),
        "robust_accuracy": _is_number(accuracy) and accuracy <= 1,
        "minimal": isinstance(record.get("minimal"), bool),
        "targeted": record.get("targeted") is targeted,
        "model": isinstance(record.get("model"), str),
        "acceptance": _is_acceptance(record.get("acceptance")),
    }
    for name, good in sound.items():
        if not good:
            raise DataError(f"{file}: its record has {name} {str(record.get(name))[:40]}; {ADVICE}")


def _is_acceptance(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and _is_number(value.get("threshold")) and value["threshold"] <= 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
