"""Losses for the adaptive attack on reasoning labels: how many images each leaves wrong and accepted.

    python benchmarks/adaptive_losses.py [--images 200] [--steps 20] [--seed 0] [--only NAME]

Four small convolutional networks with two heads are trained on 8x8 digits, plainly and by PGD, with 30 and 182 random
reasoning labels of which each class has about three tenths. Each is attacked at t_rsn 0.9 and 1, at a radius at which
some images fall and some stand. All losses are climbed in the way of `Consistent`: one round of Auto-PGD, signed steps,
from the same random starts towards each of nine classes, the nearest first. Below them stand whole attacks on the same
networks, on the class alone and on class and reasons. An image counts where a wrong class is accepted for it.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

from deploytool.attacks.acceptance import AcceptanceRule
from deploytool.attacks.apgd import Apgd, ApgdTargeted, climb
from deploytool.attacks.consistent import Consistent, acceptance_loss, answer_scale
from deploytool.attacks.draws import Draws
from deploytool.attacks.goal import Goal
from deploytool.attacks.losses import margin, other_classes
from deploytool.attacks.names import Norm
from deploytool.attacks.pgd import Pgd, pgd
from deploytool.attacks.run import Attack, run_attack
from deploytool.attacks.standing import Found, in_turn
from deploytool.attacks.victim import Victim
from deploytool.data.datasets import Images, load_dataset
from deploytool.progress import progress_bar
from deploytool.recipe import DataSection
from deploytool.timing import processor

Loss = Callable[[Tensor, Tensor, AcceptanceRule, Tensor], Tensor]
CLASSES, EPOCHS, TRAINING_EPS = 10, 25, 0.15
CASES = {  # (trained by PGD, R): (t_rsn, eps)
    (False, 30): ((0.9, 0.1), (1.0, 0.12)),
    (False, 182): ((0.9, 0.12), (1.0, 0.15)),
    (True, 30): ((0.9, 0.2), (1.0, 0.25)),
    (True, 182): ((0.9, 0.2), (1.0, 0.3)),
}


def violations(answer: Tensor, target: Tensor, rule: AcceptanceRule, scale: Tensor) -> Tensor:
    """v_0..v_required of `acceptance_loss`: above 0 where a condition does not hold."""
    kept = rule.agreement_margins(answer, target).topk(rule.required, dim=1).values
    named = -margin(rule.class_logits(answer), target)
    return torch.cat([(named / scale[:, 0])[:, None], -kept / scale[:, 1:]], 1)


def squared(answer: Tensor, target: Tensor, rule: AcceptanceRule, scale: Tensor, kappa: float) -> Tensor:
    return acceptance_loss(answer, target, rule, scale, kappa)


def unscaled(answer: Tensor, target: Tensor, rule: AcceptanceRule, scale: Tensor) -> Tensor:
    return acceptance_loss(answer, target, rule, torch.ones_like(scale), 0.0)


def hinges(answer: Tensor, target: Tensor, rule: AcceptanceRule, scale: Tensor, kappa: float) -> Tensor:
    return -(violations(answer, target, rule, scale) + kappa).clamp(min=0).sum(1)


def log_sum_exp(answer: Tensor, target: Tensor, rule: AcceptanceRule, scale: Tensor, heat: float) -> Tensor:
    return -heat * torch.logsumexp(violations(answer, target, rule, scale) / heat, 1)


def worst(answer: Tensor, target: Tensor, rule: AcceptanceRule, scale: Tensor) -> Tensor:
    return -violations(answer, target, rule, torch.ones_like(scale)).amax(1)


def cross_entropies(answer: Tensor, target: Tensor, rule: AcceptanceRule, scale: Tensor, mean: bool) -> Tensor:
    """Minus eq. 3 of paper 1, alpha 0.5 times 2, its reasons averaged or summed."""
    wanted = rule.vectors[target].float()
    reasons = F.binary_cross_entropy_with_logits(answer[:, rule.classes :], wanted, reduction="none")
    classes = F.cross_entropy(rule.class_logits(answer), target, reduction="none")
    return -(classes + (reasons.mean(1) if mean else reasons.sum(1)))


def class_alone(answer: Tensor, target: Tensor, rule: AcceptanceRule, scale: Tensor) -> Tensor:
    return margin(rule.class_logits(answer), target)


USED = "squared hinges, scaled, kappa 0.03 (used)"
LOSSES: dict[str, Loss] = {
    USED: partial(squared, kappa=0.03),
    **{f"squared hinges, scaled, kappa {kappa}": partial(squared, kappa=kappa) for kappa in (0.01, 0.05, 0.1)},
    **{f"log-sum-exp of violations, scaled, T {heat}": partial(log_sum_exp, heat=heat) for heat in (0.03, 0.1, 0.3)},
    "hinges, scaled, kappa 0.1": partial(hinges, kappa=0.1),
    "squared hinges, not scaled, kappa 0": unscaled,
    "eq. 3, reasons summed": partial(cross_entropies, mean=False),
    "eq. 3, reasons averaged": partial(cross_entropies, mean=True),
    "worst violation alone": worst,
    "class margin alone": class_alone,
}


@dataclass(frozen=True)
class Candidate:
    """One round of `Consistent`, with signed steps, on any loss."""

    eps: float
    steps: int
    loss: Loss
    norm: Norm = "linf"
    targeted: ClassVar[bool] = False
    minimal: ClassVar[bool] = False
    reasoned: ClassVar[bool] = True

    def search(self, victim: Victim, image: Tensor, goal: Goal, draws: Draws) -> Found:
        rule: AcceptanceRule = goal.rule  # type: ignore[attr-defined]
        answer = victim.logits(image)
        scale = answer_scale(answer, rule)
        classes = [torch.full_like(goal.label, label) for label in range(rule.classes)]
        near = torch.stack([acceptance_loss(answer, label, rule, scale, Consistent.kappa) for label in classes], 1)
        targets = other_classes(near, goal.label, rule.classes - 1)
        run = Apgd(self.eps, self.norm, steps=self.steps)

        def towards(number: int, image: Tensor, goal: Goal, draws: Draws, rows: Tensor) -> tuple[Tensor, Tensor]:
            target, own = targets[rows, number], scale[rows]

            def loss(logits: Tensor, rows: Tensor) -> Tensor:
                return self.loss(logits, target[rows], rule, own[rows])

            return climb(victim, image, goal, loss, run, draws)

        return Found(in_turn(image, goal, draws, [partial(towards, number) for number in range(targets.shape[1])]))


def attacks(steps: int) -> dict[str, Callable[[float], Attack]]:
    """What is compared, by name, at a radius."""
    losses = {name: partial(Candidate, steps=steps, loss=loss) for name, loss in LOSSES.items()}
    return losses | {
        f"PGD-{steps} on the class, first wrong iterates": lambda eps: Pgd(eps, eps / 4, steps),
        f"PGD-{steps} on the class, last iterates": lambda eps: Pgd(eps, eps / 4, steps, iterate="last"),
        f"APGD-T, {steps} steps, on the class": lambda eps: ApgdTargeted(eps, steps=steps),
        f"consistent-{steps}: two rounds, the second of soft steps": lambda eps: Consistent(eps, steps=steps),
        "consistent-100": lambda eps: Consistent(eps),
    }


class TwoHeads(nn.Module):
    """Answers (N, K + R)."""

    def __init__(self, reasons: int) -> None:
        super().__init__()
        layers = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 64), nn.ReLU())
        self.classes, self.reasons = nn.Linear(64, CLASSES), nn.Linear(64, reasons)

    def forward(self, image: Tensor) -> Tensor:
        features = self.body(image)
        return torch.cat([self.classes(features), self.reasons(features)], 1)


def trained(images: Images, vectors: Tensor, robust: bool, seed: int) -> TwoHeads:
    """A network trained on eq. 3, alpha 0.5, on images as they are or after PGD on eq. 3."""
    torch.manual_seed(seed)
    network, generator = TwoHeads(vectors.shape[1]), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    attack = Pgd(TRAINING_EPS, TRAINING_EPS / 3, 5)

    def loss(answer: Tensor, label: Tensor) -> Tensor:
        reasons = F.binary_cross_entropy_with_logits(answer[:, CLASSES:], vectors[label].float())
        return (F.cross_entropy(answer[:, :CLASSES], label) + reasons) / 2

    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(images), generator=generator), 64):
            image, label = images.batch(rows)
            if robust:
                image = pgd(network, image, label, attack, generator, loss)
            optimizer.zero_grad()
            loss(network(image), label).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network.eval().requires_grad_(False)


def cases(train: Images, seed: int) -> Iterator[tuple[TwoHeads, AcceptanceRule, float]]:
    """Each network under each rule, and the radius."""
    for (robust, reasons), at in CASES.items():
        vectors = torch.rand(CLASSES, reasons, generator=torch.Generator().manual_seed(seed + 1)) < 0.3
        network = trained(train, vectors, robust, seed)
        for threshold, eps in at:
            yield network, AcceptanceRule(vectors, threshold), eps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="lines whose name holds this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_dataset(DataSection(name="digits"))
    image, label = data.test.head(arguments.images).batch(slice(None))
    chosen = {name: make for name, make in attacks(arguments.steps).items() if arguments.only in name}
    counts = {name: [0, 0] for name in chosen}
    total = 0
    with progress_bar("attacking", 2 * len(CASES) * len(chosen)) as bar:
        for network, rule, eps in cases(data.train, arguments.seed):
            total += len(image)
            for name, make in chosen.items():
                result = run_attack(network, image, label, make(eps), arguments.seed, rule=rule)
                assert result.accepted is not None
                counts[name][0] += int((~result.correct & result.accepted).sum())
                counts[name][1] += result.backwards
                bar.advance(name)
    rows = [[name, count, f"{count / total:.3f}", f"{passes / 1e3:.0f}k"] for name, (count, passes) in counts.items()]
    print(f"8x8 digits, {len(image)} images, seed {arguments.seed}, torch {torch.__version__}, {processor()},")
    print(f"{os.cpu_count()} CPUs, 1 thread\n")
    heads = ["loss, or attack", f"wrong and accepted of {total}", "share", "gradients"]
    print(tabulate(rows, heads, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
