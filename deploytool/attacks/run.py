"""Running any attack: checks before, batches in between, one kind of result after."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from deploytool.attacks.acceptance import AcceptanceRule, AcceptedGoal
from deploytool.attacks.checks import check_classes, check_counts, check_images
from deploytool.attacks.draws import Draws
from deploytool.attacks.geometry import distance, slack
from deploytool.attacks.goal import Goal
from deploytool.attacks.names import Norm
from deploytool.attacks.standing import Found
from deploytool.attacks.victim import Network, Victim
from deploytool.errors import InputError

BATCH = 256
SEED_STRIDE = 1_000_003


@runtime_checkable
class Attack(Protocol):
    """A budget that can be run; see `deploytool.attacks.registry` for those that have names."""

    @property
    def norm(self) -> Norm:
        """The norm of perturbations."""
        ...

    @property
    def eps(self) -> float | None:
        """The radius at which robust accuracy is counted; None: any."""
        ...

    @property
    def targeted(self) -> bool:
        """Whether images are to reach a target class."""
        ...

    @property
    def minimal(self) -> bool:
        """Whether the attack looks for the smallest perturbation, whatever eps."""
        ...

    def search(self, victim: Victim, image: Tensor, goal: Goal, draws: Draws) -> Found:
        """Attack images (N, C, H, W) that do not fool the network as they are."""
        ...


@dataclass(frozen=True)
class AttackResult:
    """What an attack did to some images.

    An image counts as robust unless an adversarial one was found within eps. An image that the network gets wrong as
    it is needs no perturbation: it is fooled at distance 0. For attacks that look for the smallest perturbation
    (DeepFool, Carlini-Wagner, FAB), robust accuracy at eps is the share of images whose smallest perturbation found
    is above eps, or for which none was found; so it can be read off at any eps. For an attack on reasoning labels and
    class together, an image is fooled where the answer is wrong and accepted: one that is rejected counts as robust,
    whether it was rejected because of the attack or is rejected as it is.

    Attributes:
        image: (N, C, H, W) float32 in [0, 1]; where nothing was found, the attack's last attempt or the image itself.
        fooled: (N,) bool, the network fails on `image` (or names the target): checked in a pass of its own.
        correct: (N,) bool, the network names the label of `image` in that pass; of an untargeted attack, not `fooled`.
        distance: (N,) float32, the norm of each perturbation.
        norm: of `distance`.
        eps: the radius of the budget; None: any distance counts.
        minimal: whether the attack looked for the smallest perturbation.
        forwards: images passed forward, gradients' forward passes among them.
        backwards: images for which a gradient of one number was computed.
        found_by: of attacks that try others in turn: each one's name, and how many images it fooled.
        record: attack, budget, seed, batch size and device, as plain values for a JSON document.
        target: (N,) int64, of a targeted attack.
        accepted: (N,) bool, of a network with reasoning labels: the answer to `image` is accepted, in that pass.
    """

    image: Tensor
    fooled: Tensor
    correct: Tensor
    distance: Tensor
    norm: Norm
    eps: float | None
    minimal: bool
    forwards: int
    backwards: int
    found_by: dict[str, int] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    target: Tensor | None = None
    accepted: Tensor | None = None

    def __len__(self) -> int:
        return len(self.fooled)

    @property
    def smallest(self) -> Tensor:
        """The norm of the smallest perturbation found, (N,); infinite where none was."""
        return self.distance.where(self.fooled, torch.inf)

    def robust(self, eps: float | None = None) -> Tensor:
        """Which images withstood the attack within eps (the budget's where None), (N,) bool.

        Raises:
            InputError: another eps than the budget's is asked of an attack that stays within its own.
        """
        if eps is not None and eps != self.eps and not self.minimal:
            raise InputError(f"eps (={eps:g}): this attack was run at {self.eps:g} alone; run it again at {eps:g}")
        radius = self.eps if eps is None else eps
        return ~self.fooled if radius is None else self.smallest > radius + slack(radius)

    def robust_accuracy(self, eps: float | None = None) -> float:
        """Share of images that withstood the attack within eps (the budget's where None), in [0, 1]."""
        return int(self.robust(eps).sum()) / len(self)


def run_attack(
    network: Network,
    image: Tensor,
    label: Tensor,
    attack: Attack,
    seed: int = 0,
    target: Tensor | None = None,
    name: str | None = None,
    batch: int = BATCH,
    on_batch: Callable[[int], object] = lambda images: None,
    rule: AcceptanceRule | None = None,
) -> AttackResult:
    """Attack images in batches.

    Images that the network gets wrong are not attacked. Random numbers depend on the seed, the batch's first index
    and an image's place in the batch alone: not on the network, nor on what becomes of other images.

    Args:
        network: image (N, C, H, W) float32 in [0, 1] -> logits (N, K), in evaluation mode, normalisation inside.
        image: (N, C, H, W) float32 in [0, 1].
        label: (N,) int64, the true classes.
        attack: the budget.
        seed: from 0 up.
        target: (N,) int64, the classes to reach, for a targeted attack; none of them an image's own label.
        name: of the attack, for the record; its class where None.
        batch: images attacked together; memory grows with it, not with N.
        on_batch: called after each batch with the number of images done, for a progress bar.
        rule: what makes an answer accepted, of a network with reasoning labels, which answers (N, K + R). `Consistent`
            looks for wrong answers that are accepted; every other attack is run on the class logits, and the result
            says which of the answers to its images are accepted.

    Returns:
        The result for all images, on their device.

    Raises:
        InputError: images, labels or targets are not as above, targets are missing or not wanted, the attack needs a
            rule, the network does not fit the rule, answers NaN, or has no gradient where the attack needs one.
    """
    check_images(image, label)
    check_counts({"batch": batch})
    parts = (
        (image[rows], label[rows], None if target is None else target[rows]) for rows in batches(len(image), batch)
    )
    results = []
    for result in attack_batches(network, parts, attack, seed, name, rule):
        results.append(result)
        on_batch(len(result))
    return merge(results)


def attack_batches(
    network: Network,
    parts: Iterable[tuple[Tensor, Tensor, Tensor | None]],
    attack: Attack,
    seed: int = 0,
    name: str | None = None,
    rule: AcceptanceRule | None = None,
) -> Iterator[AttackResult]:
    """Attack batch after batch, in memory that does not grow with their number; `run_attack` holds all of them.

    Args:
        network, attack, seed, name, rule: as in `run_attack`.
        parts: (image, label, target or None) of each batch.

    Yields:
        The result of each batch.

    Raises:
        InputError: as `run_attack`.
    """
    check_counts({"seed": seed}, 0, 2**31 - 1)
    reasoned = needs_rule(attack)
    if reasoned and rule is None:
        raise InputError(
            f"{name or type(attack).__name__} attacks reasoning labels together with the class, and this network has "
            "none; attack the class alone, as with apgd-t"
        )
    first = 0
    for image, label, target in parts:
        check_images(image, label)
        _check_targets(attack, image, label, target)
        whole, image = Victim(network), image.detach()
        victim, goal = whole, Goal(label) if target is None else Goal(target, True)
        if rule is not None:
            rule = rule.to(image.device)
            check_classes(label, rule.classes)
            if reasoned:
                goal = AcceptedGoal(label, rule=rule)
            else:
                victim = Victim(rule.class_network(network))
        draws = Draws.seeded(batch_seed(seed, first), len(image), image.device)
        found = _attack_batch(victim, image, goal, attack, draws)
        record = {
            "attack": name or type(attack).__name__,
            "norm": attack.norm,
            "eps": attack.eps,
            "budget": budget_of(attack),
            "targeted": goal.targeted,
            "seed": seed,
            "batch": len(image),
            "images": len(image),
            "device": image.device.type,
            "torch": torch.__version__,
        }
        answer = whole.logits(found.image, passes(attack))
        logits = answer if rule is None else rule.class_logits(answer)
        check_classes(label, logits.shape[1])
        yield AttackResult(
            found.image,
            goal.reached(answer if reasoned else logits),
            logits.argmax(1) == label,
            distance(found.image - image, attack.norm),
            attack.norm,
            attack.eps,
            attack.minimal,
            victim.forwards + (whole.forwards if whole is not victim else 0),
            victim.backwards,
            found.by,
            {**record, "acceptance": rule.to_dict()} if rule is not None and reasoned else record,
            target,
            None if rule is None else rule.accepted(answer),
        )
        first += len(image)


def merge(results: Sequence[AttackResult]) -> AttackResult:
    """One result of those of the batches, at least one."""
    first = results[0]
    found_by: Counter[str] = Counter()
    for result in results:
        found_by.update(result.found_by)
    return replace(
        first,
        image=torch.cat([result.image for result in results]),
        fooled=torch.cat([result.fooled for result in results]),
        correct=torch.cat([result.correct for result in results]),
        distance=torch.cat([result.distance for result in results]),
        forwards=sum(result.forwards for result in results),
        backwards=sum(result.backwards for result in results),
        found_by=dict(found_by),
        record={**first.record, "images": sum(map(len, results))},
        target=None if first.target is None else torch.cat([r.target for r in results if r.target is not None]),
        accepted=None if first.accepted is None else torch.cat([r.accepted for r in results if r.accepted is not None]),
    )


def batches(count: int, batch: int) -> Iterator[slice]:
    """The rows of each batch."""
    return (slice(start, start + batch) for start in range(0, count, batch))


def batch_seed(seed: int, start: int) -> int:
    """The seed of the batch that begins at image `start`."""
    return seed * SEED_STRIDE + start


def passes(attack: Attack) -> int:
    """How many answers are averaged to say what a network answers: an attack's own number, for one that draws noise.

    Who needs an attack, and who fell, is decided by the mean that the attack works on. One draw would leave out images
    that it happened to get wrong, and count images as robust that it happened to get right.
    """
    return int(getattr(attack, "passes", getattr(attack, "eot_iter", 1)))


def needs_rule(attack: Attack) -> bool:
    """Whether an attack is on reasoning labels and class together, so that it takes an acceptance rule."""
    return bool(getattr(attack, "reasoned", False))


def budget_of(attack: Attack) -> dict[str, Any]:
    """An attack's fields as plain values, class attributes left out."""
    return asdict(attack)  # type: ignore[call-overload, no-any-return]


def _attack_batch(victim: Victim, image: Tensor, goal: Goal, attack: Attack, draws: Draws) -> Found:
    """Attack the images of one batch that the network gets right."""
    logits = victim.logits(image, passes(attack))
    check_classes(goal.label, logits.shape[1], "target" if goal.targeted else "label")
    standing = ~goal.reached(logits)
    if not standing.any():
        return Found(image)
    found = attack.search(victim, image[standing], goal[standing], draws[standing])
    adversarial = image.clone()
    adversarial[standing] = found.image
    return replace(found, image=adversarial)


def _check_targets(attack: Attack, image: Tensor, label: Tensor, target: Tensor | None) -> None:
    kind = type(attack).__name__
    if attack.targeted and target is None:
        raise InputError(f"{kind}: a targeted attack needs a target class for each image; give target (N,) int64")
    if not attack.targeted and target is not None:
        raise InputError(f"{kind} is not targeted, but targets are given; leave them out, or set targeted=True")
    if target is not None:
        check_images(image, target, "target")
        if bool((target == label).any()):
            raise InputError(f"target is the label of image {int((target == label).nonzero()[0])}; name another class")
