"""`library detect`: attacked and foreign images told from clean ones.

Test images are split by the recipe: what is chosen (the verdict's threshold, the combination) is chosen on one part,
what is measured is measured on the other. Attacks are on the network's own answer to an image, which needs no label:

| attack | images |
| --- | --- |
| a name of `evaluate`, as pgd-40 | the measured ones, attacked within eps; PGD's last iterates, as the paper's |
| adaptive-S | the same, by the attack that knows the libraries (`deploytool.library.adaptive`) |
| foreign:NAME | another data set's |

The combination is fitted on calibration images, attacked by the first attack and by a PGD that stops at the first wrong
answer (pgd-40), at every measured eps: its AUROC is that of known attacks at known radii, on other images. What it is
worth against others, the other attacks' and the foreign images' rows say.

In LIBRARY/detection/units/ one file for each of them, which is not computed again.

Reference: J. H. Lee, Library network, a possible path to explainable neural networks, 2019 ("paper 4"), section 2.2.3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploytool import __version__
from deploytool.atomic import atomic_path, writable_folder
from deploytool.attacks.checks import check_counts, check_radius
from deploytool.attacks.names import parse_name, split_name
from deploytool.attacks.registry import AttackBase, make_attack
from deploytool.attacks.run import BATCH, Attack, run_attack
from deploytool.data.datasets import load_dataset
from deploytool.data.foreign import foreign_images
from deploytool.data.images import Images
from deploytool.digests import file_digest, state_digest
from deploytool.errors import InputError
from deploytool.explain.consistency import auroc
from deploytool.explain.target import Target, working_network
from deploytool.library.adaptive import Adaptive, class_means, evade
from deploytool.library.agreement import default_lambda
from deploytool.library.calibration import split
from deploytool.library.detector import Detector
from deploytool.library.folder import Library, library_path
from deploytool.library.scores import SINGLE, Scorer, Scores, joined_scores
from deploytool.library.streams import block_inputs, block_size, blocks
from deploytool.library.taps import watch
from deploytool.progress import progress_bar
from deploytool.timing import processor
from deploytool.units import record_key

Row = dict[str, Any]

FOLDER = "detection"  # in that of libraries
ATTACK = "pgd-40:iterate=last"
FIRST = "pgd-40"  # that stops at the first wrong answer: the combination has to know it too
STEP_SIZE = 0.01  # the paper's, at every eps
ADVICE = "choose another with -o FOLDER"


@dataclass(frozen=True)
class DetectPlan:
    """What is to be detected.

    Attributes:
        attacks: names, as of `evaluate`; the combination is fitted on the first, and on pgd-40 unless gradients lack.
        eps: radii, in units of the image's [0, 1].
        foreign: names of other data sets, or `noise`.
        images: of each part of the test images, at most.
        adaptive: steps of each run of the adaptive attack; 0: it is left out.
        seed: of attacks and foreign images.

    Raises:
        InputError: a number is out of range, or an attack unknown.
    """

    attacks: Sequence[str] = (ATTACK,)
    eps: Sequence[float] = (0.01, 0.02, 0.03, 0.06, 0.1)
    foreign: Sequence[str] = ()
    images: int = 200
    adaptive: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts({"images": self.images})
        check_counts({"adaptive": self.adaptive, "seed": self.seed}, 0, 2**31 - 1)
        if not (self.attacks or self.foreign or self.adaptive):
            raise InputError("there is nothing to detect: name an attack, or foreign images")
        for eps in self.eps:
            check_radius(eps)
        for name in self.attacks:
            self.attack(name, 0.01)

    def attack(self, name: str, eps: float) -> Attack:
        """An attack at a radius."""
        return make_attack(name, AttackBase(eps, STEP_SIZE, eps_l2=eps))


def detect(
    library: Library,
    target: Target,
    plan: DetectPlan,
    lam: float | None = None,
    folder: str | Path | None = None,
    device: str = "cpu",
) -> Row:
    """Measure how well CPL, its rivals and the combination tell attacked and foreign images from clean ones.

    Args:
        library: the libraries; target: their network.
        plan: what is to be detected.
        lam: lambda; the first that libraries were built at where None.
        folder: of what is kept; LIBRARY/detection where None.
        device: torch device that the network answers on.

    Returns:
        `rows`, for each attack, radius and set of thresholds: `attack`, `eps` (None of foreign images), `set`,
        `auroc_cpl`, `auroc_max_softmax`, `auroc_knn`, `auroc_combined` (of the first set; 0.5 is a guess, below it
        attacked images look more usual than clean ones), `fooled` (share whose answer the attack changed, None of
        foreign images), `detected` (share below the first set's threshold, None of others), `cpl_mean`, `n`.
        `clean`: `{set, cpl_mean}`; `verdict`: `{threshold, false_alarm_rate, false_alarms, false_alarms_se,
        false_alarm_images}`, what was asked for and what all test images that nothing was chosen on say, with the
        binomial standard error and their number; `cpl`: the first set's values by name, for histograms;
        `combined_fitted_on`: the attacks on calibration images, `{attack, eps}`; `library_lambda`: of several lambdas'
        libraries, the one whose libraries answered, else None; and what was measured with.

    Raises:
        RunError: the libraries are another network's. DataError: a foreign data set cannot be loaded.
        InputError: lambda is not what the target takes, an attack needs gradients that an ONNX file has not, a library
        has fewer patterns than the recipe's `active`, or the folder cannot be written to.
    """
    library.check_target(target)
    check_gradients(plan, target)
    lam = default_lambda(library, lam)
    if len(library.layers(lam)) < 2:
        raise InputError(
            f"{library.path} has libraries of one layer, which agrees with itself; build them of 2 or more"
        )
    foreign = {name: foreign_images(name, library.info.shape, plan.images, plan.seed) for name in plan.foreign}
    place = writable_folder(Path(folder or library.path / FOLDER), ADVICE)
    study = _Study(library, target, plan, lam, foreign, writable_folder(place / "units", ADVICE), device)
    return study.document()


def check_gradients(plan: DetectPlan, target: Target) -> None:
    """Raise InputError where a plan needs gradients that a target (an ONNX file) has not."""
    if target.has_gradients:
        return
    if plan.adaptive:
        raise InputError(
            f"target {target.name} has no gradients, which the adaptive attack needs; leave --adaptive out, or attack "
            "the run that it was exported from"
        )
    for name in plan.attacks:
        if not parse_name(split_name(name)[0]).black_box:
            raise InputError(
                f"target {target.name} has no gradients, which attack {name} needs; use --attack square, or --attack "
                "none with --foreign NAME"
            )


class _Study:
    """The units of one detection, each a set of scores, made when first asked for."""

    def __init__(
        self,
        library: Library,
        target: Target,
        plan: DetectPlan,
        lam: float | None,
        foreign: dict[str, Tensor],
        units: Path,
        device: str,
    ) -> None:
        self.library, self.target, self.plan, self.lam = library, target, plan, lam
        self.others, self.units, self.device = foreign, units, device
        assert library.recipe.data is not None, "building writes it down"
        data = load_dataset(library.recipe.data)
        chosen, measured = split(data.test, library.recipe.calibration, library.recipe.seed)
        self.parts = {"calibration": chosen.head(plan.images), "measured": measured.head(plan.images)}
        self.measured = measured
        weights = file_digest(library_path(library.path))
        train = data.train.head(library.recipe.images).images
        images = state_digest({"calibration": chosen.images, "measured": measured.images, "train": train})
        self.common = [__version__, torch.__version__, weights, images, lam, plan.seed, plan.images, device]
        self._scorer: Scorer | None = None
        self.names = [(name, eps) for name in plan.attacks for eps in plan.eps]

    @property
    def scorer(self) -> Scorer:
        """Made when the first unit is missing: it reads all training images."""
        if self._scorer is None:
            self._scorer = Scorer(self.library, self.target, self.lam, self.device)
        return self._scorer

    def document(self) -> Row:
        """Everything that was measured."""
        plan, library = self.plan, self.library
        adaptive = [Adaptive(eps, plan.adaptive) for eps in plan.eps] if plan.adaptive else []
        known_names = {*plan.attacks[:1], *([FIRST] if self.target.has_gradients else [])} if self.names else set()
        kinds = sorted((name, eps) for name in known_names for eps in set(plan.eps))
        total = 2 + len(self.names) + len(kinds) + len(adaptive) + len(plan.foreign)
        with progress_bar("detecting", total) as bar:

            def done(scores: Scores, note: str) -> Scores:
                bar.advance(note)
                return scores

            calibration = done(self.clean("calibration"), "clean")
            clean = done(self.clean("measured"), "clean")
            found: dict[tuple[str, float | None], Scores] = {}
            for name, eps in self.names:
                found[name, eps] = done(self.attacked("measured", name, eps), f"{name} eps {eps:g}")
            for budget in adaptive:
                found[budget.name, budget.eps] = done(self.adaptive(budget), f"{budget.name} eps {budget.eps:g}")
            for name in plan.foreign:
                found[f"foreign:{name}", None] = done(self.foreign(name), name)
            known = [done(self.attacked("calibration", *kind), "combination") for kind in kinds]
            detector = Detector(calibration, joined_scores(known)) if known else None
        verdict = self._verdict()
        usual = None if detector is None else detector(clean)
        rows = []
        for key, scores in found.items():
            combined = None if detector is None or usual is None else _area(usual, detector(scores))
            rows += self._rows(key, scores, clean, verdict, combined)
        first = library.sets[0]
        cpl = {"clean": clean.cpl[first].tolist()}
        for (name, radius), scores in found.items():
            cpl[name if radius is None else f"{name} eps {radius:g}"] = scores.cpl[first].tolist()
        return {
            "rows": rows,
            "clean": [{"set": name, "cpl_mean": float(clean.cpl[name].mean())} for name in library.sets],
            "verdict": verdict,
            "cpl": cpl,
            "combined_fitted_on": [{"attack": name, "eps": eps} for name, eps in kinds],
            "sets": library.sets,
            **library.origin(self.target, self.lam),
            "images": len(clean),
            "active": library.recipe.active,
            "seed": plan.seed,
            "device": self.device,
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def clean(self, part: str) -> Scores:
        """Scores of images as they are."""
        if part == "measured":
            return _head(self.held_out, self.plan.images)
        return self._unit([part], lambda: self.parts[part])

    @cached_property
    def held_out(self) -> Scores:
        """Scores of all images that nothing is chosen on; the first of them are attacked."""
        return self._unit(["measured"], lambda: self.measured)

    def attacked(self, part: str, name: str, eps: float) -> Scores:
        """Scores of the same images, attacked: away from what the network answers to them."""

        def images() -> Images:
            answer = self.clean(part).answer
            image, _ = self.parts[part].batch(slice(None))
            image, answer = image.to(self.device), answer.to(self.device)
            network = working_network(self.target.network(self.lam), torch.device(self.device))
            attack = self.plan.attack(name, eps)
            result = run_attack(network, image, answer, attack, self.plan.seed, None, name, BATCH)
            return Images(result.image.cpu(), self.parts[part].labels)

        return self._unit([part, name, eps], images)

    def adaptive(self, budget: Adaptive) -> Scores:
        """Scores of images that the adaptive attack found.

        It runs on the CPU whatever the device: libraries live there, and gradients go through both.
        """

        def images() -> Images:
            libraries, active = self.library.at(self.lam), self.library.recipe.active
            own = self.parts["calibration"]
            first = own.batch(slice(0, 1))[0]
            watched = watch(self.target, [each.layer for each in libraries], first, self.lam)
            size = block_size(watched, first)
            seen = [(block_inputs(b, libraries, active), b.answer) for b in blocks(watched, own, size)]
            inputs = [torch.cat(parts) for parts in zip(*(inputs for inputs, _ in seen), strict=True)]
            answer = torch.cat([answer for _, answer in seen])
            means = class_means(inputs, answer, len(self.library.info.classes))
            image, label = self.parts["measured"].batch(slice(None))
            return Images(evade(watched, libraries, active, image, budget, means), label)

        return self._unit([budget.name, budget.eps], images)

    def foreign(self, name: str) -> Scores:
        """Scores of another data set's images."""

        def images() -> Images:
            image = self.others[name]
            return Images(image, torch.zeros(len(image), dtype=torch.int64))

        return self._unit(["foreign", name, state_digest({"image": self.others[name]})], images)

    def _unit(self, what: list[Any], images: Any) -> Scores:
        """Scores of images, which are made unless a file has them."""
        file = self.units / f"{record_key(*self.common, *what)}.npz"
        known = _load(file)
        if known is None:
            known = self.scorer(images())
            _save(file, known)
        return known

    def _verdict(self) -> Row | None:
        """What the calibrated threshold does to clean images that it was not chosen on."""
        if not self.library.calibration:
            return None
        own = self.library.calibration[self.library.which(self.lam)]
        cpl = self.held_out.cpl[self.library.sets[0]]
        alarms = float((cpl < own.threshold).double().mean())
        return {
            "threshold": own.threshold,
            "false_alarm_rate": own.false_alarm_rate,
            "false_alarms": alarms,
            "false_alarms_se": math.sqrt(alarms * (1 - alarms) / len(cpl)),
            "false_alarm_images": len(cpl),
        }

    def _rows(
        self, key: tuple[str, float | None], scores: Scores, clean: Scores, verdict: Row | None, combined: float | None
    ) -> list[Row]:
        """A row for each set; what does not depend on the set is measured once."""
        name, eps = key
        softmax, knn = _area(clean.max_softmax, scores.max_softmax), _area(clean.knn, scores.knn)
        fooled = None if eps is None else float((scores.answer != clean.answer).double().mean())
        rows = []
        for number, each in enumerate(self.library.sets):
            below = None if verdict is None else float((scores.cpl[each] < verdict["threshold"]).double().mean())
            rows.append(
                {
                    "attack": name,
                    "eps": eps,
                    "set": each,
                    "auroc_cpl": _area(clean.cpl[each], scores.cpl[each]),
                    "auroc_max_softmax": softmax,
                    "auroc_knn": knn,
                    "auroc_combined": None if number else combined,
                    "fooled": fooled,
                    "detected": None if number else below,
                    "cpl_mean": float(scores.cpl[each].mean()),
                    "n": len(scores),
                }
            )
        return rows


def _area(clean: Tensor, other: Tensor) -> float | None:
    """How often a clean image scores higher than another one; a tie counts half."""
    positive = np.r_[np.zeros(len(clean), bool), np.ones(len(other), bool)]
    return auroc(-torch.cat([clean, other]).numpy(), positive)


def _head(scores: Scores, count: int) -> Scores:
    """Scores of the first images."""
    cpl = {name: each[:count] for name, each in scores.cpl.items()}
    return Scores(cpl, *(getattr(scores, name)[:count] for name in SINGLE))


def _save(file: Path, scores: Scores) -> None:
    """Write scores as .npz, whole or not at all; the file's name says of what."""
    arrays = {name: getattr(scores, name).numpy() for name in SINGLE}
    sets = {f"cpl.{name}": value.numpy() for name, value in scores.cpl.items()}
    with atomic_path(file) as aside, aside.open("wb") as stream:
        np.savez(stream, **arrays, **sets)  # type: ignore[arg-type]  # takes arrays by any name


def _load(file: Path) -> Scores | None:
    """What a file holds; None where it is absent or damaged."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
        cpl = {name.removeprefix("cpl."): value for name, value in arrays.items() if name.startswith("cpl.")}
        return Scores(cpl, *(arrays[name] for name in SINGLE))
    except Exception:  # absent, cut short, or whatever zip and numpy say of a damaged file
        return None
