"""Adversarial examples of an evaluation: written, and checked again against a run or a file."""

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from deploytool.attacks.acceptance import AcceptanceRule
from deploytool.attacks.run import AttackResult
from deploytool.attacks.session_network import file_networks
from deploytool.attacks.store import Verification, load_adversarial, save_adversarial, verify
from deploytool.data.images import Images
from deploytool.digests import file_digest, state_digest
from deploytool.errors import DataError, DeploytoolError, InputError
from deploytool.evaluation.accuracy import answering, setting_columns, setting_of
from deploytool.evaluation.adaptive import acceptance_rule
from deploytool.models.conditional import ConditionalModel
from deploytool.models.setting import Setting, check_lambda
from deploytool.training.run import load_run


def save_examples(
    folder: Path, name: str, model: ConditionalModel, setting: Setting, part: Images, result: AttackResult
) -> str:
    """Write the adversarial examples of one attack at one setting; return the file's path.

    The setting is on record, so that `verify_examples` finds the network that was attacked.
    """
    columns = setting_columns(model, setting)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{file_stem(name, columns)}.npz"
    image, label = part.batch(slice(0, len(part)))
    kept = replace(result, image=result.image.cpu(), record={**result.record, "setting": columns})
    save_adversarial(file, kept, image, label, state_digest(model.state_dict()))
    return str(file)


def file_stem(name: str, columns: dict[str, Any]) -> str:
    """The file's name: attack and setting, as in `pgd-20-lambda-0.2-switch`."""
    parts = [name]
    if columns["lambda"] is not None:
        parts += [f"lambda-{columns['lambda']:g}", str(columns["conditioning"])]
    if columns["lambda_threshold"]:
        parts.append(f"threshold-{columns['lambda_threshold']:g}")
    if columns["width"] not in (None, 1):
        parts.append(f"width-{columns['width']:g}")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def verify_examples(
    file: Path, target: Path, lam: float | None = None, width: float | None = None, device: str = "cpu"
) -> tuple[Verification, dict[str, Any]]:
    """Check adversarial examples again.

    Args:
        file: of `save_examples`.
        target: the run that was attacked, or another run or ONNX file, to see what transfers.
        lam, width: the setting; where None, the one on record.
        device: torch device, for a run.

    Returns:
        What became of the file's claims, and its record.

    Raises:
        DataError: the file cannot be used. RunError, ArtefactError: the target cannot.
        InputError: the target takes no such setting, or other images.
    """
    examples = load_adversarial(file)
    columns = {"lambda": None, "lambda_threshold": None, "conditioning": None, "noise": None, "width": 1.0}
    recorded = examples.record.get("setting")
    if isinstance(recorded, dict):
        columns |= {key: recorded[key] for key in columns if key in recorded}
    columns |= {key: value for key, value in (("lambda", lam), ("width", width)) if value is not None}
    if target.is_file():
        if examples.acceptance is not None:
            raise InputError(
                f"{file} fools reasoning labels together with the class; verify it on a run, not an ONNX file"
            )
        network = file_networks(target)(columns["lambda"], width)
        return verify(examples, network, file_digest(target)), examples.record
    run = load_run(target)
    if lam is not None:
        check_lambda(lam)
        if not run.model.is_conditional:
            raise InputError(f"{target} takes no lambda; leave --lambda out")
    try:
        setting = setting_of(columns)
    except (DeploytoolError, TypeError):
        raise DataError(f"{file}: its record has an impossible setting {str(columns)[:80]}; save it again") from None
    model = run.model.to(device).eval()
    if lam is None and model.is_conditional and columns["lambda"] is None:
        raise DataError(f"{file} was made on a network without lambda; name one for {target} with --lambda")
    shape = tuple(examples.image.shape[1:])
    if shape != run.checkpoint.data.shape:
        raise DataError(f"{file} has images of shape {shape}; {target} takes {run.checkpoint.data.shape}")
    rule = None
    if examples.acceptance is not None:
        rule = acceptance_rule(model, run.recipe)
        if rule is None:
            raise InputError(f"{file} fools reasoning labels together with the class, and {target} has no such labels")
        rule = AcceptanceRule(rule.vectors, examples.acceptance["threshold"])
    digest = state_digest(model.state_dict())
    with answering(model, setting, run.recipe.seed, rule is not None) as network:
        return verify(examples, network, digest, device=device, rule=rule), examples.record


def verification_document(
    file: Path, result: Verification, record: dict[str, Any], device: str = "cpu"
) -> dict[str, Any]:
    """For a JSON document: what was found, beside what was attacked.

    `holds` is None where nothing could repeat it: the network draws noise. On another device or with another torch,
    rounding differs, and images that an attack left on the boundary may flip: one in a hundred is let pass.
    """
    keys = ("attack", "norm", "eps", "seed", "setting", "device", "torch")
    holds: bool | None = result.holds
    if result.same_model and _redraws(record):
        holds = None
    elif result.same_model and (record.get("device"), record.get("torch")) != (device, torch.__version__):
        holds = result.sound and result.no_longer_fooled + result.newly_fooled <= max(1, result.images // 100)
    return {"file": str(file), **{key: record.get(key) for key in keys}, **asdict(result), "holds": holds}


def _redraws(record: dict[str, Any]) -> bool:
    """Whether the network attacked drew its noise with every answer, so that it answers otherwise now."""
    setting = record.get("setting")
    return isinstance(setting, dict) and setting.get("noise") == "redrawn" and bool(setting.get("lambda"))
