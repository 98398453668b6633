"""`explain compare`: a surrogate explainer against its rivals in one run (paper 3, tables 2, 3 and 4).

In EXPLAINER/comparison/units/, one file for each method, which is not computed again.

Reference: H. Lee, S. Kim, Explaining neural networks using attentive knowledge distillation, 2021 ("paper 3"), section
4.2.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import captum
import numpy as np
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from deploytool import __version__
from deploytool.atomic import atomic_path, write_json
from deploytool.attacks.victim import Network, Victim
from deploytool.data.datasets import load_dataset
from deploytool.digests import file_digest, state_digest
from deploytool.errors import InputError
from deploytool.explain.explainer import Explainer, surrogate_setting
from deploytool.explain.faithfulness import Curves, deletion, insertion, mean_intensity
from deploytool.explain.fast import fast_network
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
from deploytool.explain.stability import unit_range
from deploytool.explain.study import draw
from deploytool.explain.target import Target, open_target
from deploytool.models.folding import folded_module
from deploytool.progress import Progress, progress_bar
from deploytool.timing import interleaved, processor
from deploytool.training.run import checkpoint_path
from deploytool.training.surrogate import surrogate_accuracy
from deploytool.units import read_record, record_key

Row = dict[str, Any]

INFERENCE = "inference"  # the target's plain answer
FOLDER = "comparison"  # in an explainer's
SHOWN = 10  # images of the contact sheet
PART = 16  # images between two steps of the progress bar
ROUNDS, WARM_UP = 5, 1
TIMED = 16  # images of a round, one by one; methods with hundreds of passes for an image take the first alone


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
    explainer: Explainer, plan: ComparePlan, lam: float | None = None, device: str = "cpu", target: Target | None = None
) -> tuple[Row, Sheet]:
    """Explain what the target predicts for random test images by every method, and measure the maps and the speed.

    What the maps of a method are worth is kept in EXPLAINER/comparison/units/ as soon as it is known: an interrupted
    comparison goes on with the next method. Speed is measured anew each time, last.

    Args:
        explainer: the surrogate.
        plan: what to compare it with.
        lam: the target's lambda; 0 where None and it takes one.
        device: torch device.
        target: what the explainer was trained on, where it is not to be found under its name.

    Returns:
        A document for JSON, and the contact sheet. `rows`, one for each method: `method`, `insertion` and `deletion`
        (areas in [0, 1], means over `n` images), `mean_intensity` in [0, 1], `fps` (images per second, one at a time),
        `n`; beside them `insertion_se` and `deletion_se`, standard errors over images; `insertion_difference` and
        `deletion_difference`, of the method less the surrogate on the images of both, with `_se`; `constant_maps`,
        share of the images; `times_of_inference`, time over that of the target's plain answer. `inference_fps`,
        `speedup_over_rise` and `time_over_grad_cam` of the surrogate; `student` (table 2); `curves`, means over images;
        `notes`, and what was measured with. None stands for what was not measured.

    Raises:
        RunError: the target is not the one that the explainer was trained on. DataError: the data set cannot be loaded.
        InputError: lambda is not what the target takes, no method is left, or the target answers NaN.
    """
    target = open_target(explainer.target) if target is None else target
    explainer.check_target(target)
    opened = target.network(lam)
    lam = (lam or 0.0) if target.takes_lambda else None
    test, place = load_dataset(explainer.recipe.data).test, torch.device(device)
    image = draw(test, plan.images, plan.seed)
    target.check_data(explainer.info, image[:1])
    network = folded_module(opened, image[:1]).to(place) if isinstance(opened, nn.Module) else opened
    plain = explainer.model.plain_network(surrogate_setting(target, lam))
    image, notes = image.to(place), _notes(explainer, lam)
    methods, reader = _possible(plan, network, image, notes)
    rivals = Rivals(plan, folded_module(plain, image[:1].cpu()).to(place), network, reader)
    victim = Victim(network)
    classes = torch.cat([victim.logits(part).argmax(1) for part in torch.split(image, PART)])
    shown = _shown(classes[: min(plan.count(method, len(image)) for method in methods)])

    folder, surrogate = explainer.path / FOLDER / "units", file_digest(checkpoint_path(explainer.path))
    common = [__version__, torch.__version__, captum.__version__, target.digest, asdict(target.setting), lam, device]
    own = {SURROGATE: [surrogate], RISE: [plan.masks, plan.seed], LIME: [plan.samples, plan.seed]}
    own |= {PATCH: list(patch(image)), "random": [plan.seed]}
    files = {}
    for name in methods:
        digest = state_digest({"image": image[: plan.count(name, len(image))]})
        files[name] = folder / f"{name}-{record_key(*common, name, own.get(name), digest, shown)}.npz"
    found = _found(rivals, files, image, classes, shown)
    key = record_key(*common, surrogate, state_digest({"image": test.images, "label": test.labels}))
    student = read_record(folder / f"student-{key}.json", key)
    if student is None:
        setting = surrogate_setting(target, lam)
        student = {"recipe": key, **surrogate_accuracy(explainer.model.to(place), setting, victim, test)}
        write_json(folder / f"student-{key}.json", student)
    speed = _speed(rivals, methods, image, classes)
    if SURROGATE in found and found[SURROGATE].constant:
        share = found[SURROGATE].constant
        notes.append(f"{share:.1%} of the surrogate's maps have one value everywhere; pixels count in reading order")
    document = {
        "rows": [_row(name, found, speed) for name in methods],
        "inference_fps": speed.fps(INFERENCE),
        "speedup_over_rise": speed.ratio(RISE, SURROGATE),
        "time_over_grad_cam": speed.ratio(SURROGATE, GRAD_CAM),
        "student": {name: value for name, value in student.items() if name != "recipe"},
        "explainer": str(explainer.path),
        "target": target.name,
        "data": explainer.recipe.data.name,
        "lambda": lam,
        "seed": plan.seed,
        "masks": plan.masks,
        "samples": plan.samples,
        "patch": list(patch(image)),
        "device": device,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "captum": captum.__version__,
        "notes": notes,
        "curves": [_mean_curves(name, each) for name, each in found.items()],
    }
    sheet = Sheet(
        image[shown].cpu(),
        [explainer.info.classes[index] for index in classes[shown].tolist()],
        {name: each.maps for name, each in found.items()},
        {name: each.inserted.auc[shown] for name, each in found.items()},
    )
    return document, sheet


def _notes(explainer: Explainer, lam: float | None) -> list[str]:
    notes = [
        "mean intensity: the surrogate's maps as they are, all others scaled to [0, 1] for each image (paper 3 does "
        "not say)",
        "speed: the map alone, its class being known, one image at a time; torch networks have batch norms folded",
    ]
    trained = explainer.recipe.condition.lambdas
    if lam is not None and lam not in trained:
        known = ", ".join(f"{each:g}" for each in trained)
        notes.append(f"lambda {lam:g} is none of those that the explainer was trained at ({known})")
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


def _found(
    rivals: Rivals, files: Mapping[str, Path], image: Tensor, classes: Tensor, shown: list[int]
) -> dict[str, Found]:
    """What every method's maps are worth: what its file holds, or else measured, and kept there."""
    found = {name: known for name, file in files.items() if (known := _load(file)) is not None}
    counts = {name: rivals.plan.count(name, len(image)) for name in files if name not in found}
    network = rivals.network
    if counts and isinstance(network, nn.Module):
        channels, height, width = image.shape[1:]
        network = fast_network(network, (channels, height, width))
    with progress_bar("comparing", sum(len(_parts(count, name)) + 1 for name, count in counts.items())) as bar:
        for name, count in counts.items():
            found[name] = _measure(rivals, name, image[:count], classes[:count], shown, network, bar)
            _save(files[name], found[name])
    return {name: found[name] for name in files}


def _parts(count: int, name: str) -> list[slice]:
    """Rows between two steps of the progress bar; the controls draw all at once."""
    size = 1 if name in SLOW else count if name in CONTROLS else PART
    return [slice(start, start + size) for start in range(0, count, size)]


def _measure(
    rivals: Rivals, name: str, image: Tensor, classes: Tensor, shown: list[int], fast: Network, bar: Progress
) -> Found:
    """Draw one method's maps of image (N, C, H, W), and measure them; `fast` gives the target's answers."""
    drawn = []
    for part in _parts(len(image), name):
        drawn.append(rivals.maps(name, image[part], classes[part], fast))
        bar.advance(name)
    maps = torch.cat(drawn)
    inserted, deleted = (curves(fast, image, maps, classes) for curves in (insertion, deletion))
    bar.advance(name)
    scaled = maps if name == SURROGATE else unit_range(maps)
    constant = float((maps.amax((1, 2)) == maps.amin((1, 2))).double().mean())
    return Found(inserted, deleted, mean_intensity(scaled), constant, unit_range(maps[shown]).cpu())


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


@dataclass(frozen=True)
class Speed:
    """Seconds of an image, of every method and of the target's plain answer, in rounds.

    Attributes:
        names: of the columns.
        seconds: (rounds, names) float64.
    """

    names: list[str]
    seconds: Any

    def fps(self, name: str) -> float:
        """Images per second: the median over rounds."""
        return 1 / float(np.median(self.seconds[:, self.names.index(name)]))

    def ratio(self, name: str, other: str) -> float | None:
        """Time of one over that of the other, round by round, the median; None where one was not timed."""
        if name not in self.names or other not in self.names:
            return None
        one, two = (self.seconds[:, self.names.index(each)] for each in (name, other))
        return float(np.median(one / two))


def _speed(rivals: Rivals, methods: Sequence[str], image: Tensor, classes: Tensor) -> Speed:
    """Time everything in turns on the same images, one by one."""
    names = [INFERENCE, *methods]
    counts = [1 if name in (*SLOW, PATCH) else min(TIMED, len(image)) for name in names]

    @torch.no_grad()
    def infer(picture: Tensor, label: Tensor) -> Tensor:
        return rivals.network(picture)

    def candidate(name: str, count: int) -> Callable[[], object]:
        answer = infer if name == INFERENCE else partial(rivals.maps, name)
        pairs = [(image[each : each + 1], classes[each : each + 1]) for each in range(count)]
        return lambda: [answer(*pair).cpu() for pair in pairs]

    with progress_bar("timing", ROUNDS) as bar:
        candidates = [candidate(*each) for each in zip(names, counts, strict=True)]
        times = interleaved(candidates, ROUNDS, warm_up=WARM_UP, after_round=bar.advance)
    return Speed(names, times / np.array(counts))


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


def _mean(name: str, values: Tensor) -> Row:
    """The mean of values (N,), and its standard error; None for one value alone."""
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return {name: float(values.mean()), f"{name}_se": error}


def _mean_curves(name: str, found: Found) -> Row:
    curves = {"insertion": found.inserted, "deletion": found.deleted}
    means = {key: curve.probability.double().mean(0).tolist() for key, curve in curves.items()}
    return {"method": name, "share": found.inserted.share.tolist(), **means}
