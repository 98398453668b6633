"""Attacks beside adversarial-robustness-toolbox's (ART): seconds per image, memory, and the same robust accuracy.

    python benchmarks/attacks.py [--weights FILE --data FILE] [--agreement] [--images 256] [--rounds 3]

Without `--weights` and `--data`, speed alone is measured, on an untrained ResNet-20 and random images that it names
itself. With them (a pretrained CIFAR ResNet-20 as npz, names as in torch, and an npz with x_test and y_test), on real
ones. Both sides attack the same network with equal budgets; ours through `ConditionalModel.network`, as evaluation
does: batch norms folded, fooled images leave. ART gets its best case: weights that need no gradient, one batch. The
rounds are interleaved; a ratio is the median over rounds of ART's time / ours in that round.

How much early stop saves depends on the network, so three cases are timed: nearly all images fall at once, many
stand, and nobody may leave, which is what a network costs that nothing fools.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

from deploytool.attacks.autoattack import AutoAttack
from deploytool.attacks.carlini import CarliniWagner
from deploytool.attacks.deepfool import DeepFool
from deploytool.attacks.pgd import Pgd
from deploytool.attacks.randomised import redrawn_network
from deploytool.attacks.run import Attack, attack_batches, run_attack
from deploytool.attacks.square import Square
from deploytool.attacks.victim import Network
from deploytool.data.catalogue import CATALOGUE
from deploytool.data.datasets import load_dataset
from deploytool.models.conditional import ConditionalModel, FloatModel
from deploytool.models.registry import build_backbone
from deploytool.models.setting import Setting
from deploytool.recipe import DataSection
from deploytool.timing import interleaved, processor

PIXEL = 1 / 255
WARM_UP = 1
MEMORY_BATCHES = 8
PRETRAINED = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SLOW_IMAGES = 64  # for ART's Carlini-Wagner
DRAWS = 20


class Subject(NamedTuple):
    """What is attacked: the network as ART gets it, as evaluation runs it, and its images."""

    plain: nn.Module
    network: Network
    image: Tensor
    label: Tensor

    def head(self, count: int) -> "Subject":
        return self._replace(image=self.image[:count], label=self.label[:count])


class Pair(NamedTuple):
    """An attack of ours, and the one of ART with an equal budget."""

    what: str
    ours: Attack
    theirs: Callable[[Subject], Any]
    radii: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="npz of a pretrained CIFAR-10 ResNet-20")
    parser.add_argument("--data", type=Path, help="npz with x_test (N, 3, 32, 32) uint8 and y_test")
    parser.add_argument("--agreement", action="store_true", help="compare robust accuracies instead of times")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds this text")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="--agreement: so many, from --seed on; their mean counts")
    arguments = parser.parse_args()
    if (arguments.weights is None) != (arguments.data is None):
        parser.error("--weights and --data belong together: a trained network and images that it knows")
    if arguments.agreement and arguments.weights is None:
        parser.error("--agreement needs --weights and --data: an untrained network has no accuracy to compare")
    if importlib.util.find_spec("art") is None:
        parser.error("ART is missing; install it with: pip install adversarial-robustness-toolbox")
    torch.set_num_threads(arguments.threads)
    np.random.seed(arguments.seed)  # ART draws from numpy's global generator
    plain = load_network(arguments.weights)
    with ConditionalModel(plain).network(Setting()) as network:
        subject = Subject(plain, network, *load_images(arguments, plain))
        print(f"{arguments.weights or 'untrained ResNet-20'}, {len(subject.label)} images, seed {arguments.seed},")
        print(f"torch {torch.__version__}, ART {importlib.metadata.version('adversarial-robustness-toolbox')},")
        print(f"Python {platform.python_version()}, {processor()}, {arguments.threads} of {os.cpu_count()} CPUs\n")
        if arguments.agreement:
            agreement(subject, range(arguments.seed, arguments.seed + arguments.seeds), arguments.only)
            if not arguments.only:
                randomised(subject, arguments.seed)
        else:
            speed(subject, arguments)
            if not arguments.only:
                memory(subject, arguments.seed)


def load_network(weights: Path | None) -> nn.Module:
    torch.manual_seed(0)
    network = build_backbone("resnet20", dataclasses.replace(CATALOGUE["cifar10"], **PRETRAINED))
    if weights is not None:
        with np.load(weights, allow_pickle=False) as stored:
            tensors = {name: torch.from_numpy(stored[name]) for name in stored.files}
        wrong = network.load_state_dict(tensors, strict=False)
        if wrong.unexpected_keys or any(not name.endswith("num_batches_tracked") for name in wrong.missing_keys):
            raise SystemExit(f"{weights} does not fit: {wrong}")
    return network.eval().requires_grad_(False)


def load_images(arguments: argparse.Namespace, network: nn.Module) -> tuple[Tensor, Tensor]:
    if arguments.data is not None:
        return load_dataset(DataSection(name=f"npz:{arguments.data}")).test.batch(slice(0, arguments.images))
    image = torch.rand(arguments.images, 3, 32, 32, generator=torch.Generator().manual_seed(arguments.seed))
    return image, network(image).argmax(1)


def speed(subject: Subject, arguments: argparse.Namespace) -> None:
    """Print seconds per image and success rates of PGD-20 and others, ours and ART's in turn."""
    few = subject.head(SLOW_IMAGES)
    cases = [
        (subject, pgd("PGD-20, 8/255: nearly all fall", 8 * PIXEL, "linf")),
        (subject, pgd("PGD-20, 0.5/255: many stand", 0.5 * PIXEL, "linf")),
        (subject, pgd("PGD-20, 8/255, nobody may leave", 8 * PIXEL, "linf", early_stop=False)),
        (few, minimal_pairs()[0]),
        (few, square(2 * PIXEL, 100)),
    ]
    rows = []
    for at, pair in (case for case in cases if arguments.only in case[1].what):
        ours = partial(run_attack, at.network, at.image, at.label, pair.ours, arguments.seed)
        theirs = partial(pair.theirs(at).generate, at.image.numpy(), at.label.numpy())
        times = interleaved([ours, theirs], rounds=arguments.rounds, warm_up=WARM_UP)
        each = np.median(times, axis=0) / len(at.label) * 1e3
        ratio = np.median(times[:, 1] / times[:, 0])
        fooled = [100 - 100 * rate for rate in (ours().robust_accuracy(pair.radii[0]), *accuracies(at, pair)[:1])]
        rows.append([pair.what, len(at.label), *each, ratio, *fooled])
        print(f"{pair.what}: {ratio:.2f}", flush=True)
    head = ["attack", "images", "ours, ms/image", "ART, ms/image", "ART / ours", "ours, % fooled", "ART, % fooled"]
    print(f"\n{tabulate(rows, head, tablefmt='github', floatfmt=('', '', '.2f', '.2f', '.2f', '.1f', '.1f'))}")


def memory(subject: Subject, seed: int) -> None:
    """Print this process's memory after each of several batches."""
    held = []
    parts = ((subject.image, subject.label, None) for _ in range(MEMORY_BATCHES))
    for _ in attack_batches(subject.network, parts, Pgd(8 * PIXEL, 2 * PIXEL, 20), seed):
        held.append(resident_mb())
    print(f"\nresident MB after each batch of PGD-20: {' '.join(f'{mb:.0f}' for mb in held)}")
    print(f"growth from the second batch to the last: {held[-1] - held[1]:.1f} MB")


def agreement(subject: Subject, seeds: Sequence[int], only: str = "") -> None:
    """Print robust accuracies of ours and ART's, attack by attack, means over the seeds."""
    half = PIXEL / 2
    fgsm = (
        "FGSM",
        Pgd(half, half, 1, random_start=False),
        lambda at: evasion().FastGradientMethod(classifier(at), np.inf, half, half, batch_size=len(at.label)),
    )
    deepfool, carlini = minimal_pairs()
    cases = [
        (subject, Pair(*fgsm, (half,))),
        (subject, pgd("PGD-20", half, "linf")),
        (subject, pgd("PGD-20", PIXEL, "linf")),
        (subject, pgd("PGD-20", 0.05, "l2")),
        (subject, pgd("PGD-20", 0.1, "l2")),
        (subject, deepfool),
        (subject.head(SLOW_IMAGES), carlini),
        (framed(subject), square(2 * PIXEL, 300)),
        (subject, autoattack(PIXEL, 20, 200)),
        (subject.head(SLOW_IMAGES), autoattack(PIXEL, 100, 5000)),
    ]
    rows, largest = [], 0.0
    for at, pair in (case for case in cases if only in case[1].what):
        found = []
        for seed in seeds:
            np.random.seed(seed)
            result = run_attack(at.network, at.image, at.label, pair.ours, seed)
            found.append([[result.robust_accuracy(radius) for radius in pair.radii], accuracies(at, pair)])
        means = np.mean(found, axis=0).T
        for radius, (ours, theirs) in zip(pair.radii, means, strict=True):
            size = f"{radius / PIXEL:g}/255" if pair.ours.norm == "linf" else f"{radius:g}"
            points = 100 * (ours - theirs)
            largest = max(largest, abs(points))
            rows.append([pair.what, pair.ours.norm, size, len(at.label), 100 * ours, 100 * theirs, points])
            print(f"{pair.what} {size}: {points:+.2f} points", flush=True)
    head = ["attack", "norm", "eps", "images", "robust %, ours", "robust %, ART", "ours - ART, points"]
    print(f"\n{tabulate(rows, head, tablefmt='github', floatfmt=('', '', '', '', '.2f', '.2f', '+.2f'))}")
    print(f"\nlargest difference: {largest:.2f} points; required: 1")


def randomised(subject: Subject, seed: int) -> None:
    """Print how AutoAttack's versions fare against weights with noise that is drawn anew with every answer."""
    at, eps = subject.head(SLOW_IMAGES), PIXEL
    setting = Setting(1.0, noise="redrawn")
    model = FloatModel(at.plain, alpha_init=0.1).eval().requires_grad_(False)
    rows = []
    for what, version, passes in (("standard", "standard", 1), ("rand", "rand", 1), ("rand", "rand", DRAWS)):
        network = redrawn_network(model, setting, torch.Generator().manual_seed(seed))
        attack = AutoAttack(eps, version=version, steps=10, targets=3, queries=100, eot_iter=passes)
        result = run_attack(network, at.image, at.label, attack, seed)
        with torch.no_grad():
            answers = torch.stack([network(result.image) for _ in range(DRAWS)])
        each = (answers.argmax(2) == at.label).float().mean()
        mean = (answers.mean(0).argmax(1) == at.label).float().mean()
        rows.append([what, passes, *(100 * float(rate) for rate in (result.robust_accuracy(), each, mean))])
    head = ["AutoAttack", "passes", "robust %, result", f"one draw, mean of {DRAWS}", f"mean logits of {DRAWS}"]
    print(f"\nweights with noise drawn anew with every answer, eps {eps / PIXEL:g}/255, {len(at.label)} images:\n")
    print(tabulate(rows, head, tablefmt="github", floatfmt=".1f"))


def pgd(what: str, eps: float, norm: str, early_stop: bool = True) -> Pair:
    def theirs(at: Subject) -> Any:
        order = np.inf if norm == "linf" else 2
        return evasion().ProjectedGradientDescentPyTorch(
            classifier(at), order, eps, eps / 4, max_iter=20, num_random_init=1, batch_size=len(at.label), verbose=False
        )

    return Pair(what, Pgd(eps, eps / 4, 20, norm=norm, early_stop=early_stop), theirs, (eps,))


def minimal_pairs() -> tuple[Pair, Pair]:
    def deepfool(at: Subject) -> Any:
        return evasion().DeepFool(classifier(at), max_iter=50, epsilon=0.02, batch_size=len(at.label), verbose=False)

    def carlini(at: Subject) -> Any:
        # the elastic net at beta 0 has Carlini and Wagner's objective; ART's CarliniL2Method stalls at pixels of 0, 1
        return evasion().ElasticNet(
            classifier(at), beta=0.0, decision_rule="L2", learning_rate=0.01, max_iter=100, binary_search_steps=9,
            initial_const=0.01, batch_size=len(at.label), verbose=False,
        )  # fmt: skip

    radii = (0.05, 0.1, 0.15)
    return Pair("DeepFool", DeepFool(), deepfool, radii), Pair("Carlini-Wagner", CarliniWagner(), carlini, radii)


def square(eps: float, queries: int) -> Pair:
    def theirs(at: Subject) -> Any:
        return evasion().SquareAttack(
            classifier(at), norm=np.inf, max_iter=queries, eps=eps, batch_size=len(at.label), verbose=False
        )

    return Pair(f"Square, {queries} queries", Square(eps, queries=queries), theirs, (eps,))


class Cropped(nn.Module):
    """A network on all but the last row and column of its images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image[:, :, :-1, :-1])  # type: ignore[no-any-return]


def framed(at: Subject) -> Subject:
    """The same with one more row and column, which ART's squares never reach: so they reach all that counts."""
    plain, image = Cropped(at.plain).eval(), nn.functional.pad(at.image, (0, 1, 0, 1))
    return Subject(plain, lambda x: at.network(x[:, :, :-1, :-1]), image, at.label)


def autoattack(eps: float, steps: int, queries: int) -> Pair:
    """ART has neither targeted DLR nor FAB: its APGD, untargeted and then towards each class in turn."""

    def theirs(at: Subject) -> Any:
        victim = classifier(at)
        apgd = evasion().AutoProjectedGradientDescent(
            victim, np.inf, eps, 2 * eps, max_iter=max(steps, 30), nb_random_init=1, batch_size=len(at.label),
            loss_type="cross_entropy", verbose=False,
        )  # fmt: skip
        return evasion().AutoAttack(
            victim, np.inf, eps, 2 * eps, attacks=[apgd], batch_size=len(at.label), targeted=True
        )

    return Pair(f"AutoAttack, {steps} steps", AutoAttack(eps, steps=steps, queries=queries), theirs, (eps,))


def evasion() -> Any:
    """ART's attacks; its AutoAttack imports `multiprocess`, which it does not need here."""
    import multiprocessing
    import sys

    sys.modules.setdefault("multiprocess", multiprocessing)
    from art.attacks import evasion

    return evasion


def classifier(at: Subject) -> Any:
    """The network for ART, with the gradient of one class per image in one backward pass: ART takes one per class."""
    from art.estimators.classification import PyTorchClassifier

    class OneBackward(PyTorchClassifier):  # type: ignore[misc]
        def class_gradient(self, x: Any, label: Any = None, **options: Any) -> Any:
            if not isinstance(label, np.ndarray):
                return super().class_gradient(x, label, **options)
            leaf = torch.from_numpy(x).requires_grad_(True)
            own = at.plain(leaf).gather(1, torch.from_numpy(label.astype(np.int64))[:, None])
            return torch.autograd.grad(own.sum(), leaf)[0].numpy()[:, None]

    shape = tuple(at.image.shape[1:])
    return OneBackward(at.plain, nn.CrossEntropyLoss(), shape, 10, clip_values=(0.0, 1.0), device_type="cpu")


def accuracies(at: Subject, pair: Pair) -> list[float]:
    """Robust accuracy at each radius of ART's attack."""
    found = torch.from_numpy(pair.theirs(at).generate(at.image.numpy(), at.label.numpy()))
    size = (found - at.image).flatten(1).norm(dim=1, p=float("inf") if pair.ours.norm == "linf" else 2)
    with torch.no_grad():
        right, stands = (at.plain(x).argmax(1) == at.label for x in (at.image, found))
    return [float((right & (stands | (size > radius * (1 + 1e-4)))).float().mean()) for radius in pair.radii]


def resident_mb() -> float:
    """Memory that this process holds now, in 10^6 bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
