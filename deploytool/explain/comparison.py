"""`explain compare`: a surrogate explainer against its rivals in one run (paper 3, tables 2, 3 and 4).

In EXPLAINER/comparison/units/, or units/ of another folder, one file for each method, which is not computed again.

Reference: H. Lee, S. Kim, Explaining neural networks using attentive knowledge distillation, 2021 ("paper 3"), section
4.2.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import captum
import numpy as np
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from deploytool import __version__
from deploytool.atomic import atomic_path, writable_folder, write_json
from deploytool.attacks.victim import Network, Victim
from deploytool.data.datasets import load_dataset
from deploytool.data.images import Images, draw
from deploytool.digests import file_digest, state_digest
from deploytool.errors import InputError
from deploytool.explain.agreement import surrogate_accuracy
from deploytool.explain.explainer import Explainer, surrogate_setting
from deploytool.explain.faithfulness import Curves, deletion, insertion, mean_intensity
from deploytool.explain.rivals import (
    CONTROLS,
    GRAD_CAM,
    LIME,
    PATCH,
    RISE,
    SLOW,
    SURROGATE,
    ComparePlan,
    Rivals,
    camera,
    patch,
)
from deploytool.explain.speed import DEPLOYED, DEPLOYED_MAP, INFERENCE, Speed, measure_speed, sessions
from deploytool.explain.stability import unit_range
from deploytool.explain.target import Target
from deploytool.models.folding import folded_module
from deploytool.models.setting import Setting
from deploytool.progress import Progress, progress_bar
from deploytool.timing import processor
from deploytool.training.run import checkpoint_path
from deploytool.units import read_record, record_key

Row = dict[str, Any]

FOLDER = "comparison"  # in an explainer's
ADVICE = "choose another with -o FOLDER"
SHOWN = 10  # images of the contact sheet
PART = 16  # images between two steps of the progress bar


@dataclass(frozen=True)
class Found:
    """What one method's maps of N images are worth.

    Attributes:
        inserted, deleted: the explained class's probability.
        intensity: mean pixel intensity, in [0, 1].
        constant: share of images whose map has one value everywhere, in [0, 1].
        maps: (S, H, W) float32, those of the contact sheet, each scaled to [0, 1].
    """

    inserted: Curves
    deleted: Curves
    intensity: float
    constant: float
    maps: Tensor

    def __len__(self) -> int:
        return len(self.inserted.probability)


@dataclass(frozen=True)
class Sheet:
    """Some images and every method's maps of them, for a person to judge.

    Attributes:
        image: (S, C, H, W) float32 in [0, 1].
        classes: (S,) name of the class that is explained.
        maps: method -> (S, H, W) float32, each map scaled to [0, 1].
        insertion: method -> (S,) float64, the area under each image's insertion curve.
    """

    image: Tensor
    classes: list[str]
    maps: dict[str, Tensor]
    insertion: dict[str, Tensor]


def compare(
    explainer: Explainer,
    plan: ComparePlan,
    lam: float | None = None,
    device: str = "cpu",
    target: Target | None = None,
    folder: Path | None = None,
) -> tuple[Row, Sheet]:
    """Explain what the target predicts for random test images by every method, and measure the maps and the speed.

    What the maps of a method are worth is kept in FOLDER/units/ as soon as it is known: an interrupted comparison goes
    on with the next method. Speed is measured anew each time, last.

    Args:
        explainer: the surrogate.
        plan: what to compare it with.
        lam: the target's lambda; 0 where None and it takes one.
        device: torch device.
        target: what the explainer was trained on, where it is not to be found under its name.
        folder: of what is kept; EXPLAINER/comparison where None.

    Returns:
        A document for JSON, and the contact sheet. `rows`, one for each method: `method`, `insertion` and `deletion`
        (areas in [0, 1], means over `n` images), `mean_intensity` in [0, 1], `fps` (images per second, one at a time),
        `n`; beside them `insertion_se` and `deletion_se`, standard errors over images; `insertion_difference` and
        `deletion_difference`, of the method less the surrogate on the images of both, with `_se`; `constant_maps`,
        share of the images; `times_of_inference`, time over that of the target's plain answer. `inference_fps`,
        `speedup_over_rise` and `time_over_grad_cam` of the surrogate; `deployed`, both networks in onnxruntime:
        `saliency_fps`, `inference_fps` and `ratio` of their times; `student` (table 2); `curves`, means over images;
        `notes`, and what was measured with. None stands for what was not measured.

    Raises:
        RunError: the target is not the one that the explainer was trained on. DataError: the data set cannot be loaded.
        InputError: lambda is not what the target takes, no method is left, the target answers NaN, or the folder cannot
            be written to.
    """
    if target is None:
        target = explainer.open_target()
    else:
        explainer.check_target(target)
    scene = _open(explainer, plan, lam, torch.device(device), target)
    place = writable_folder(folder or explainer.path / FOLDER, ADVICE)
    units = writable_folder(place / "units", ADVICE)
    fast, deployed = sessions(explainer, scene.setting, scene.rivals.network, scene.image)
    weights = file_digest(checkpoint_path(explainer.path))
    common = [__version__, torch.__version__, captum.__version__, target.digest, asdict(scene.setting), device]
    found = _found(scene, units, common, weights, fast)
    student = _student(explainer, scene, units, [*common, weights])
    speed = measure_speed(scene.rivals, scene.methods, scene.image, scene.classes, deployed)
    if SURROGATE in found and found[SURROGATE].constant:
        share = found[SURROGATE].constant
        scene.notes.append(f"{share:.1%} of the surrogate's maps have one value everywhere: reading order decides")
    document = {
        "rows": [_row(name, found, speed) for name in scene.methods],
        "inference_fps": speed.fps(INFERENCE),
        "speedup_over_rise": speed.ratio(RISE, SURROGATE),
        "time_over_grad_cam": speed.ratio(SURROGATE, GRAD_CAM),
        "deployed": _deployed(speed),
        "student": student,
        "explainer": str(explainer.path),
        "target": target.name,
        "data": explainer.recipe.data.name,
        "lambda": scene.setting.lam if target.takes_lambda else None,
        "seed": plan.seed,
        "masks": plan.masks,
        "samples": plan.samples,
        "patch": list(patch(scene.image)),
        "device": device,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "captum": captum.__version__,
        "notes": scene.notes,
        "curves": [_mean_curves(name, each) for name, each in found.items()],
    }
    sheet = Sheet(
        scene.image[scene.shown].cpu(),
        [explainer.info.classes[index] for index in scene.classes[scene.shown].tolist()],
        {name: each.maps for name, each in found.items()},
        {name: each.inserted.auc[scene.shown] for name, each in found.items()},
    )
    return document, sheet


@dataclass(frozen=True)
class _Scene:
    """All that is needed to measure: `rivals` and the `methods` that the target allows, the surrogate's `setting`.

    And images: `image` (N, C, H, W) float32 in [0, 1], `classes` (N,) int64 that the target predicts, the indices
    `shown` in the contact sheet, all `test` images; and `notes`, which grow.
    """

    rivals: Rivals
    methods: list[str]
    setting: Setting
    image: Tensor
    classes: Tensor
    shown: list[int]
    test: Images
    notes: list[str]


def _open(explainer: Explainer, plan: ComparePlan, lam: float | None, device: torch.device, target: Target) -> _Scene:
    """Open networks and images, and refuse what would else be found after hours."""
    opened, setting = target.network(lam), surrogate_setting(target, lam)
    test = load_dataset(explainer.recipe.data).test
    image = draw(test, plan.images, plan.seed)
    target.check_data(explainer.info, image[:1])
    surrogate = folded_module(explainer.model.plain_network(setting), image[:1]).to(device)
    network = folded_module(opened, image[:1]).to(device) if isinstance(opened, nn.Module) else opened
    image, notes = image.to(device), _notes(explainer, target, setting, isinstance(network, nn.Module))
    methods, reader = _possible(plan, network, image, notes)
    victim = Victim(network)
    classes = torch.cat([victim.logits(part).argmax(1) for part in torch.split(image, PART)])
    shown = _shown(classes[: min(plan.count(method, len(image)) for method in methods)])
    return _Scene(Rivals(plan, surrogate, network, reader), methods, setting, image, classes, shown, test, notes)


def _notes(explainer: Explainer, target: Target, setting: Setting, in_torch: bool) -> list[str]:
    notes = [
        "mean intensity: the surrogate's maps as they are, all others scaled to [0, 1] for each image (paper 3 does "
        "not say)",
        "speed: the map alone, its class being known, one image at a time; "
        + (
            "all networks in torch, batch norms folded"
            if in_torch
            else "the target in onnxruntime, the surrogate in torch, and in onnxruntime as `deployed`"
        ),
    ]
    trained = explainer.recipe.condition.lambdas
    if target.takes_lambda and setting.lam not in trained:
        known = ", ".join(f"{each:g}" for each in trained)
        notes.append(f"lambda {setting.lam:g} is none of those that the explainer was trained at ({known})")
    return notes


def _possible(
    plan: ComparePlan, network: Network, image: Tensor, notes: list[str]
) -> tuple[list[str], LayerGradCam | None]:
    """The methods that the target allows, and what Grad-CAM reads; a note is added on what is left out."""
    methods = list(plan.methods)
    if GRAD_CAM not in methods:
        return methods, None
    try:
        return methods, camera(network, image[:1])
    except InputError as error:
        notes.append(f"{GRAD_CAM} is left out: {error}")
        methods.remove(GRAD_CAM)
        if not methods:
            raise InputError(f"{notes[-1]}; name another method") from None
        return methods, None


def _shown(classes: Tensor) -> list[int]:
    """Images for the contact sheet: the first of each class, then others in their order, SHOWN at most."""
    first = {label: index for index, label in reversed(list(enumerate(classes.tolist())))}
    others = [index for index in range(len(classes)) if index not in first.values()]
    return [*sorted(first.values()), *others][:SHOWN]


def _found(scene: _Scene, folder: Path, common: list[Any], weights: str, fast: Network) -> dict[str, Found]:
    """What every method's maps are worth: what its file holds, or else measured, and kept there.

    Args:
        scene: what is measured.
        folder: of the files.
        common: what every method's maps depend on.
        weights: digest of the surrogate, on which its own maps depend.
        fast: gives the target's answers.
    """
    plan, image = scene.rivals.plan, scene.image
    counts = {name: plan.count(name, len(image)) for name in scene.methods}
    own = {SURROGATE: [weights], RISE: [plan.masks, plan.seed], LIME: [plan.samples, plan.seed]}
    own |= {PATCH: list(patch(image)), "random": [plan.seed]}
    files = {}
    for name, count in counts.items():
        digest = state_digest({"image": image[:count]})
        files[name] = folder / f"{name}-{record_key(*common, own.get(name), digest, scene.shown)}.npz"
    found = {name: known for name, file in files.items() if (known := _load(file)) is not None}
    missing = [name for name in files if name not in found]
    with progress_bar("comparing", sum(len(_parts(counts[name], name)) + 1 for name in missing)) as bar:
        for name in missing:
            found[name] = _measure(scene, name, counts[name], fast, bar)
            _save(files[name], found[name])
    return {name: found[name] for name in files}


def _student(explainer: Explainer, scene: _Scene, folder: Path, common: list[Any]) -> Row:
    """Table 2, on all test images."""
    key = record_key(*common, state_digest({"image": scene.test.images, "label": scene.test.labels}))
    file = folder / f"student-{key}.json"
    record = read_record(file, key)
    if record is None:
        model = explainer.model.to(scene.image.device)
        accuracy = surrogate_accuracy(model, scene.setting, Victim(scene.rivals.network), scene.test)
        record = {"recipe": key, **accuracy}
        write_json(file, record)
    return {name: value for name, value in record.items() if name != "recipe"}


def _parts(count: int, name: str) -> list[slice]:
    """Rows between two steps of the progress bar; the controls draw all at once."""
    size = 1 if name in SLOW else count if name in CONTROLS else PART
    return [slice(start, start + size) for start in range(0, count, size)]


def _measure(scene: _Scene, name: str, count: int, fast: Network, bar: Progress) -> Found:
    """Draw one method's maps of the first `count` images, and measure them."""
    image, classes, drawn = scene.image[:count], scene.classes[:count], []
    for part in _parts(count, name):
        drawn.append(scene.rivals.maps(name, image[part], classes[part], fast))
        bar.advance(name)
    maps = torch.cat(drawn)
    inserted, deleted = (curves(fast, image, maps, classes) for curves in (insertion, deletion))
    bar.advance(name)
    scaled = maps if name == SURROGATE else unit_range(maps)
    constant = float((maps.amax((1, 2)) == maps.amin((1, 2))).double().mean())
    return Found(inserted, deleted, mean_intensity(scaled), constant, unit_range(maps[scene.shown]).cpu())


def _save(file: Path, found: Found) -> None:
    """Write what was found as .npz, whole or not at all; the file's name says of what."""
    with atomic_path(file) as aside, aside.open("wb") as stream:
        np.savez(
            stream,
            share=found.inserted.share.numpy(),
            inserted=found.inserted.probability.numpy(),
            deleted=found.deleted.probability.numpy(),
            maps=found.maps.numpy(),
            numbers=np.array([found.intensity, found.constant]),
        )


def _load(file: Path) -> Found | None:
    """What a file holds; None where it is absent or damaged."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            names = ("share", "inserted", "deleted", "maps")
            share, inserted, deleted, maps = (torch.from_numpy(archive[name]) for name in names)
            intensity, constant = archive["numbers"].tolist()
            return Found(Curves(share, inserted), Curves(share, deleted), intensity, constant, maps)
    except Exception:  # a damaged archive makes zipfile, zlib and numpy raise almost anything
        return None


def _row(name: str, found: Mapping[str, Found], speed: Speed) -> Row:
    mine = found[name]
    row: Row = {"method": name}
    for measure, key in (("insertion", "inserted"), ("deletion", "deleted")):
        area = getattr(mine, key).auc
        row |= _mean(measure, area)
        if SURROGATE in found and name != SURROGATE:
            both = min(len(mine), len(found[SURROGATE]))
            row |= _mean(f"{measure}_difference", area[:both] - getattr(found[SURROGATE], key).auc[:both])
        else:
            row |= dict.fromkeys((f"{measure}_difference", f"{measure}_difference_se"))
    return {
        **row,
        "mean_intensity": mine.intensity,
        "constant_maps": mine.constant,
        "fps": speed.fps(name),
        "times_of_inference": speed.ratio(name, INFERENCE),
        "n": len(mine),
    }


def _deployed(speed: Speed) -> Row | None:
    """Both networks in onnxruntime."""
    if DEPLOYED not in speed.names:
        return None
    ratio = speed.ratio(DEPLOYED_MAP, DEPLOYED)
    return {"saliency_fps": speed.fps(DEPLOYED_MAP), "inference_fps": speed.fps(DEPLOYED), "ratio": ratio}


def _mean(name: str, values: Tensor) -> Row:
    """The mean of values (N,), and its standard error; None for one value alone."""
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return {name: float(values.mean()), f"{name}_se": error}


def _mean_curves(name: str, found: Found) -> Row:
    curves = {"insertion": found.inserted, "deletion": found.deleted}
    means = {key: curve.probability.double().mean(0).tolist() for key, curve in curves.items()}
    return {"method": name, "share": found.inserted.share.tolist(), **means, "n": len(found)}
