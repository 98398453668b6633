"""Black-box attacks on ONNX files: ours at a lambda and width, or any classifier with one image input."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from deploytool.attacks.checks import check_radius
from deploytool.attacks.names import black_box_names, parse_name, split_name
from deploytool.attacks.registry import AttackBase, make_attack
from deploytool.attacks.run import BATCH, merge
from deploytool.attacks.session_network import file_networks
from deploytool.data.datasets import load_dataset
from deploytool.errors import InputError
from deploytool.evaluation.accuracy import Row, attack_columns, attacked, clean_accuracy, noted, without_images
from deploytool.evaluation.honesty import Finding, check_rows
from deploytool.evaluation.whole import Evaluation
from deploytool.progress import progress_bar
from deploytool.recipe import DataSection


def file_base(eps: float | None = None, eps_l2: float | None = None) -> AttackBase:
    """From which attacks take their budgets where no recipe says: radius 8/255 in L-infinity, 0.5 in L2."""
    radius = 8 / 255 if eps is None else eps
    check_radius(radius)
    return AttackBase(radius, radius / 4, eps_l2=0.5 if eps_l2 is None else eps_l2)


def evaluate_file(
    file: Path,
    data: DataSection,
    attacks: Sequence[str],
    base: AttackBase,
    lambdas: Sequence[float] | None = None,
    widths: Sequence[float] | None = None,
    images: int | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> Evaluation:
    """Clean and robust accuracy of an ONNX file, which has no gradient.

    Args:
        file: one of ours, or any with one float32 input (N, C, H, W) in [0, 1] and logits as its first output.
        data: the images, of the classes in the order of the logits.
        attacks: names of black-box attacks.
        base: from which attacks take their budgets.
        lambdas, widths: settings, of a file that takes them.
        images: at most so many.
        seed: of the attacks.
        threads: of onnxruntime.

    Raises:
        ArtefactError: the file cannot be used. DataError: the data set cannot be loaded.
        InputError: an attack needs gradients, or the file does not take such a lambda, width or image.
    """
    for name in attacks:
        if not parse_name(split_name(name)[0]).black_box:
            known = ", ".join(black_box_names())
            raise InputError(
                f"attack (={name!r}) needs gradients, which an ONNX file has not; black-box attacks: {known}"
            )
    plans = {name: make_attack(name, base) for name in attacks}
    every: list[float | None] = [None]
    settings = [(lam, width) for width in widths or every for lam in lambdas or every]
    at = file_networks(file, threads)
    networks = {setting: at(*setting) for setting in settings}
    test = load_dataset(data).test.head(images)
    rows: list[Row] = []
    with progress_bar("evaluating", len(networks) * (1 + len(plans)) * -(-len(test) // BATCH)) as bar:
        for (lam, width), network in networks.items():
            clean = clean_accuracy(network, test, on_batch=bar.advance)
            for name, attack in plans.items():
                results = noted(attacked(network, test, attack, seed, name), bar.advance, name)
                whole = merge([without_images(result) for result in results])
                columns = {"lambda": lam, "lambda_threshold": None, "conditioning": None, "noise": None, "width": width}
                rows.append({"attack": name, **columns, "clean_accuracy": clean, **attack_columns(whole, attack)})
    bound = Finding(
        "black-box-alone",
        f"{file.name} was attacked without gradients alone: its robust accuracy is at most what is shown, likely less",
    )
    conditions: dict[str, Any] = {
        "device": "cpu",
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "split": "test",
    }
    return Evaluation(rows, [*check_rows(rows), bound], [], conditions)
