"""`pipeline`: every stage of a recipe in one go, resumed at the first unfinished one.

    train -> evaluate -> compare -> export -> bench -> cost -> report

Each stage leaves RUN/stages/NAME.json, written when the stage is done. A stage is skipped when that file is there,
belongs to this recipe, and every stage before it was skipped too.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from deploytool.atomic import atomic_path, write_json
from deploytool.costing import cost_of, workload_of
from deploytool.data.datasets import Images, dataset_info, load_dataset
from deploytool.errors import CheckpointError
from deploytool.evaluation import evaluate
from deploytool.export.artefact import export
from deploytool.labels.label_map import LabelMap
from deploytool.models.factory import build_model
from deploytool.recipe import FloatMethod, OatMethod, Recipe, make_recipe
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.bench import bench
from deploytool.runtime.predict import predict
from deploytool.training.loop import train
from deploytool.training.run import checkpoint_path, create_run, load_checkpoint, load_run

Result = dict[str, Any]
Announce = Callable[[str], None]


def run_pipeline(recipe: Recipe, run: Path, device: str = "cpu", announce: Announce = lambda line: None) -> Result:
    """Run all stages of a recipe.

    Args:
        recipe: the recipe.
        run: the run folder; an unfinished pipeline of the same recipe is continued.
        device: torch device.
        announce: told one line per stage.

    Returns:
        `run`, and `stages`: a list of `{stage, skipped, result}`.

    Raises:
        RunError: the folder holds a run of another recipe; and whatever a stage raises.
    """
    for each, folder in [(recipe, run), *_variants(recipe, run).values()]:
        labels = _trained_labels(each, folder)
        build_model(each, dataset_info(each.data), labels)  # a mistake shows before hours of training, not after
    create_run(run, recipe, resume=True)
    earlier: dict[str, Any] = {}
    stages = []
    fresh = False
    for name, stage in STAGES.items():
        if name == "compare" and recipe.pipeline.compare is None:
            continue
        result = None if fresh else _finished(run, recipe, name)
        skipped = result is not None
        if result is None:
            fresh = True
            announce(f"{name} ...")
            result = stage(recipe, run, device, earlier)
            write_json(_stage_file(run, name), {"recipe": recipe.digest(), "result": result})
        else:
            announce(f"{name}: done before")
        earlier[name] = result
        stages.append({"stage": name, "skipped": skipped, "result": result})
    return {"run": str(run), "stages": stages}


def _train(recipe: Recipe, run: Path, device: str, earlier: Result) -> Result:
    return train(recipe, run, resume=True, device=device)


def _evaluate(recipe: Recipe, run: Path, device: str, earlier: Result) -> Result:
    """Evaluate the run; one with reasoning labels also by attacks that know its rule of acceptance."""
    evaluation = evaluate(load_run(run), device=device, adaptive=recipe.reasoning is not None)
    return {**evaluation.to_dict(), "alphas": learned_alphas(run)}


def _compare(recipe: Recipe, run: Path, device: str, earlier: Result) -> Result:
    """Train and evaluate the recipe at other values of one key, on the strongest attack of its list."""
    compare = recipe.pipeline.compare
    assert compare is not None
    attack = recipe.evaluate.attacks[-1]
    rows: list[Result] = []
    alphas: dict[str, Any] = {}
    for value, (variant, folder) in _variants(recipe, run).items():
        if folder == run:
            variant_rows = [row for row in earlier["evaluate"]["rows"] if row["attack"] == attack]
        else:
            train(variant, folder, resume=folder.exists(), device=device)
            variant_rows = evaluate(load_run(folder), [attack], device=device).rows
        rows += [{"value": value, **row} for row in variant_rows]
        alphas[value] = learned_alphas(folder)
    return {"key": compare.key, "attack": attack, "rows": rows, "alphas": alphas}


def _variants(recipe: Recipe, run: Path) -> dict[str, tuple[Recipe, Path]]:
    """The recipes that `compare` trains and their folders, by the value of its key; the recipe may be one of them."""
    compare = recipe.pipeline.compare
    if compare is None:
        return {}
    document = recipe.model_dump(mode="json", by_alias=True)
    recipes = {
        str(value): make_recipe(document, [f"{compare.key}={json.dumps(value)}"], source="pipeline.compare")
        for value in compare.values
    }
    folders = {
        value: run / "compare" / f"{index}-{''.join(c if c.isalnum() else '-' for c in value)[:40]}"
        for index, value in enumerate(recipes)
    }
    own = recipe.digest()
    return {value: (each, run if each.digest() == own else folders[value]) for value, each in recipes.items()}


def _trained_labels(recipe: Recipe, folder: Path) -> LabelMap | None:
    """The reasoning labels in the checkpoint of a recipe; None where there are none, so that its file is read.

    What is trained needs no label map any more, which may have been moved, or be named from another working folder.
    """
    if recipe.reasoning is None or not checkpoint_path(folder).exists():
        return None
    try:
        checkpoint = load_checkpoint(folder)
    except CheckpointError:  # the stage that needs it says so
        return None
    return checkpoint.labels if checkpoint.recipe == recipe.digest() else None


def _export(recipe: Recipe, run: Path, device: str, earlier: Result) -> Result:
    return export(load_run(run))


def _bench(recipe: Recipe, run: Path, device: str, earlier: Result) -> Result:
    file = earlier["export"]["file"]
    result = {"specialized": bench(file)}
    if isinstance(recipe.method, FloatMethod | OatMethod):
        result["generic"] = bench(file, generic=True)
    return result


def _cost(recipe: Recipe, run: Path, device: str, earlier: Result) -> Result:
    """Price the file, at its widest, by all three methods of paper 5; per layer for the recipe's own."""
    own = recipe.method.name if isinstance(recipe.method, FloatMethod | OatMethod) else "plain"
    workload = workload_of(earlier["export"]["file"])
    reports = {method: cost_of(workload, method).to_dict() for method in ("plain", "float", "oat")}
    return {"method": own, "report": reports[own], "totals": {name: r["totals"] for name, r in reports.items()}}


def _report(recipe: Recipe, run: Path, device: str, earlier: Result) -> Result:
    from deploytool.report.summary import write_report

    example = write_example(load_dataset(recipe.data).test, run / "example.png")
    said = {"verdicts": example_verdicts(earlier["export"]["file"], example)} if recipe.reasoning is not None else {}
    return {**write_report(recipe, run, {**earlier, "report": said}), "example": example, **said}


def write_example(test: Images, path: Path) -> str:
    """Write the first test image as a PNG, something to try `predict` on; return its path."""
    image, _ = test.batch(slice(0, 1))
    pixels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    with atomic_path(path) as aside:
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(aside, format="PNG")
    return str(path)


def example_verdicts(file: str, example: str) -> list[Result]:
    """What the exported file says of the example: `{lambda, verdict}`, at both ends of lambda where it takes one."""
    lambdas = (0.0, 1.0) if read_artefact(file).metadata.conditional else (None,)
    verdicts = [predict(file, [example], lam)[0]["verdict"] for lam in lambdas]
    return [{"lambda": lam, "verdict": verdict} for lam, verdict in zip(lambdas, verdicts, strict=True)]


Stage = Callable[[Recipe, Path, str, Result], Result]

STAGES: dict[str, Stage] = {
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
    "export": _export,
    "bench": _bench,
    "cost": _cost,
    "report": _report,
}


def learned_alphas(run: Path) -> Result:
    """The learned noise scaling factors by layer name; empty where the recipe has no noise to scale."""
    from deploytool.models.conditional import FloatModel

    loaded = load_run(run)
    model, method = loaded.model, loaded.recipe.method
    if not isinstance(model, FloatModel) or (isinstance(method, FloatMethod) and method.noise == "none"):
        return {}
    names = [name.removesuffix(".weight") for name in model.noise_windows]
    return dict(zip(names, model.alpha.detach().tolist(), strict=True))


def _stage_file(run: Path, name: str) -> Path:
    return run / "stages" / f"{name}.json"


def _finished(run: Path, recipe: Recipe, name: str) -> Result | None:
    """The result of a finished stage; None where it has to run, a damaged record included."""
    try:
        record = json.loads(_stage_file(run, name).read_text(encoding="utf-8"))
        result = record["result"] if record["recipe"] == recipe.digest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(result, dict):
        return None
    needs = [checkpoint_path(run)] if name == "train" else []
    needs += [Path(result[key]) for key in ("file", "markdown", "plot", "example") if isinstance(result.get(key), str)]
    return result if all(file.exists() for file in needs) else None
