"""`compare`: FLOAT, its compressed variants, OAT and PGD-AT on equal hyper-parameters (paper 5, Table 1, Figs. 7 to 9).

Every variant is the recipe with another method, density or set of widths; images, epochs, attack and seed stay.
A variant that is done (RUN/NAME-seedS/comparison.json) is not trained again.
"""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploytool.atomic import write_json
from deploytool.data.datasets import Dataset, load_dataset
from deploytool.errors import InputError
from deploytool.evaluation import evaluate, evaluation_settings
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import build_model
from deploytool.models.listing import count_macs
from deploytool.models.masks import channel_density_of, density_of
from deploytool.models.oat import OatModel
from deploytool.recipe import FloatMethod, PgdAtMethod, Recipe, make_recipe
from deploytool.timing import interleaved
from deploytool.training.loop import make_optimizer, train
from deploytool.training.methods import training_step
from deploytool.training.run import Run, load_run

Row = dict[str, Any]
Announce = Callable[[str], None]

FLOAT = "FLOAT"
SLIM = "model.widths=[0.5, 1.0]"
TIMED_ROUNDS, TIMED_WARM_UP = 7, 2


def variants(recipe: Recipe) -> dict[str, Recipe]:
    """The recipes to compare by name: paper 5's densities and widths; PGD-AT once for each lambda of the recipe.

    FLOATS-i keeps 10 % of the weights, FLOATS-c 34 %, FLOATS slim 30 % at widths 0.5 and 1 (Table 1).
    """
    own = recipe.method.model_dump(by_alias=True) if isinstance(recipe.method, FloatMethod) else {"name": "float"}
    oat = f"method={{name: oat, lambdas: {recipe.evaluate.lambdas}}}"
    overrides = {
        FLOAT: [],
        "FLOATS-i": ["sparsity={kind: irregular, density: 0.1}"],
        "FLOATS-c": ["sparsity={kind: channel, density: 0.34}"],
        "FLOAT slim": [SLIM],
        "FLOATS slim": [SLIM, "sparsity={kind: irregular, density: 0.3}"],
        "OAT": [oat],
        "OAT slim": [oat, SLIM],
        **{f"PGD-AT lambda {lam:g}": [f"method={{name: pgd-at, lambda: {lam}}}"] for lam in recipe.evaluate.lambdas},
    }
    document = recipe.model_dump(mode="json", by_alias=True) | {"method": own, "sparsity": None}
    document["model"]["widths"], document["evaluate"]["widths"] = [1.0], None
    return {name: make_recipe(document, changes) for name, changes in overrides.items()}


def compare(
    recipe: Recipe,
    run: Path,
    names: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    device: str = "cpu",
    announce: Announce = lambda line: None,
) -> Row:
    """Train, evaluate and time the variants of a recipe.

    Args:
        recipe: images, backbone, attack, optimiser, and the lambdas (`evaluate.lambdas`) to compare at.
        run: folder for the runs and the report.
        names: which variants; all of them where empty. FLOAT, to which times are relative, is always among them.
        seeds: each variant is trained once for each.
        device: torch device.
        announce: told one line per training.

    Returns:
        `attack`, `seeds`, `n`, `device`, `models`: one row per variant and width (`method`, `width`, `params`,
        `storage_mb_8bit`, `compression_ratio`, `channel_reduction_factor`, `macs`, `step_ms`, `relative_time`), and
        `rows`: one per variant, width, lambda and threshold, with mean and standard deviation over the seeds of
        `clean_accuracy` and `robust_accuracy`.

    Raises:
        InputError: a name is unknown.
    """
    known = variants(recipe)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"method {unknown[0]!r} is unknown; known: {', '.join(known)}")
    chosen = {name: known[name] for name in known if not names or name in names or name == FLOAT}
    data = load_dataset(recipe.data)
    results: list[Row] = []
    for name, variant in chosen.items():
        for seed in seeds:
            announce(f"{name}, seed {seed} ...")
            seeded = make_recipe(variant.model_dump(mode="json", by_alias=True), [f"seed={seed}"])
            results.append(_result(name, seeded, run, device))
    announce("timing ...")
    seconds = step_seconds(chosen, data, device)
    return {
        "recipe": recipe.name,
        "attack": results[0]["attack"],
        "seeds": list(seeds),
        "n": results[0]["rows"][0]["n"],
        "device": _device_name(device),
        "torch": torch.__version__,
        "models": [_with_time(row, seconds) for result in _first_seed(results) for row in result["models"]],
        "rows": _means(results),
        "warnings": list(dict.fromkeys(warning for result in results for warning in result["warnings"])),
    }


def _result(name: str, recipe: Recipe, run: Path, device: str) -> Row:
    """Train and evaluate one variant with one seed, or read what was found before."""
    folder = run / f"{name.replace(' ', '-')}-seed{recipe.seed}"
    record = folder / "comparison.json"
    try:
        result: Row = json.loads(record.read_text(encoding="utf-8"))
        if result["recipe"] == recipe.digest():
            return result
    except (OSError, ValueError, KeyError, TypeError):
        pass
    train(recipe, folder, resume=folder.exists(), device=device)
    trained = load_run(folder)
    attack = f"pgd-{recipe.attack.steps}"
    found = evaluate(trained, [attack], evaluation_settings(recipe), device=device)
    rows = found.rows
    if isinstance(recipe.method, PgdAtMethod):  # a model of its own for each lambda
        rows = [{**row, "lambda": recipe.method.lam} for row in rows]
    result = {
        "recipe": recipe.digest(),
        "method": name,
        "seed": recipe.seed,
        "attack": attack,
        "rows": rows,
        "models": sizes(name, trained),
        "warnings": [f"{name}: {finding.message}" for finding in found.findings],
    }
    write_json(record, result)
    return result


def sizes(name: str, run: Run) -> list[Row]:
    """What each width of a trained model needs.

    Returns:
        Rows `method`, `width`; `params`, stored parameters: weights that are not pruned, biases, one set of batch
        norms, FiLM layers (second batch norms and alphas are neglected, as in paper 5, Fig. 8b); `storage_mb_8bit`,
        those at one byte each, in 10^6 bytes; `compression_ratio`, the full backbone's weights / those kept;
        `channel_reduction_factor`, 1 / share of input channels present; `macs` of one image, zeros multiplied too.
    """
    model, shape = run.model, run.checkpoint.data.shape
    full = _weights(model, 1.0)
    rows = []
    for width in model.widths:
        weights = _weights(model, width)
        masks = {key: weight != 0 for key, weight in weights.items()} if model.masks else {}
        kept = sum(int((weight != 0).sum()) if masks else weight.numel() for weight in weights.values())
        skeleton = model.skeleton(width)
        others = sum(p.numel() for key, p in skeleton.named_parameters() if key not in weights)
        params = kept + others + (model.film_params(width) if isinstance(model, OatModel) else 0)
        channels = sum(w.shape[1] for w in full.values()) / sum(w.shape[1] for w in weights.values())
        rows.append(
            {
                "method": name,
                "width": width,
                "params": params,
                "storage_mb_8bit": params / 1e6,
                "density": density_of(masks),
                "compression_ratio": sum(w.numel() for w in full.values()) / kept,
                "channel_reduction_factor": channels / channel_density_of(masks),
                "macs": count_macs(_on_meta(skeleton), shape),
            }
        )
    return rows


def _weights(model: ConditionalModel, width: float) -> dict[str, torch.Tensor]:
    shapes = dict(model.skeleton(width).named_parameters())
    return {
        name: theta[tuple(slice(size) for size in shapes[name].shape)]
        for name, theta in model.backbone.named_parameters()
        if name in model.conditioned
    }


def _on_meta(network: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(network).to("meta").eval()


def step_seconds(recipes: dict[str, Recipe], data: Dataset, device: str) -> dict[str, float]:
    """Seconds of one training step (forward, attack, backward, update) of each recipe, the median of rounds.

    The recipes take turns within each round, so that whatever else this machine does meets them alike.
    """
    steps = [_one_step(recipe, data, torch.device(device)) for recipe in recipes.values()]
    medians = np.median(interleaved(steps, rounds=TIMED_ROUNDS, warm_up=TIMED_WARM_UP), axis=0)
    return dict(zip(recipes, medians.tolist(), strict=True))


def _one_step(recipe: Recipe, data: Dataset, place: torch.device) -> Callable[[], None]:
    model = build_model(recipe, data.info).to(place).train()
    optimizer = make_optimizer(model, recipe)
    image, label = (part.to(place) for part in data.train.batch(slice(0, recipe.data.batch_size)))

    def run() -> None:
        step = training_step(model, recipe, image, label, torch.Generator(place))
        optimizer.zero_grad(set_to_none=True)
        step.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.apply_masks()
        if place.type == "cuda":
            torch.cuda.synchronize()

    return run


def _with_time(row: Row, seconds: dict[str, float]) -> Row:
    own = seconds[row["method"]]
    return {**row, "step_ms": own * 1e3, "relative_time": own / seconds[FLOAT]}


def _first_seed(results: Sequence[Row]) -> list[Row]:
    seen: dict[str, Row] = {}
    for result in results:
        seen.setdefault(result["method"], result)
    return list(seen.values())


def _means(results: Sequence[Row]) -> list[Row]:
    """Mean and sample standard deviation over the seeds (0 for one seed), per method and setting."""
    keys = ("lambda", "lambda_threshold", "conditioning", "width")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for result in results:
        for row in result["rows"]:
            groups.setdefault((result["method"], *(row[key] for key in keys)), []).append(row)
    rows = []
    for (method, *setting), group in groups.items():
        figures: Row = {}
        for key in ("clean_accuracy", "robust_accuracy"):
            values = [row[key] for row in group]
            figures[key] = float(np.mean(values))
            figures[f"{key}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        rows.append({"method": method, **dict(zip(keys, setting, strict=True)), **figures})
    return rows


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"
