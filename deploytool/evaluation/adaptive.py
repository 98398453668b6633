"""Runs with reasoning labels: what the acceptance rule makes of every attack, and the attack that knows the rule.

A rule that rejects looks strong against attacks that do not know it. So `--adaptive` puts three kinds of rows side by
side, in the same balls: the attacks that were asked for, on the class; PGD's last iterates, which went on for all steps
instead of stopping at the boundary; and `consistent-K`, which looks for wrong answers that are accepted.

Reference: paper 1, sections 3.3 and 4.2, which leaves the last kind open; F. Tramer et al., On adaptive attacks to
adversarial example defenses, 2020.
"""

from collections.abc import Sequence

from deploytool.attacks.acceptance import AcceptanceRule
from deploytool.attacks.detection import Judged, detection
from deploytool.attacks.names import is_reasoned
from deploytool.attacks.pgd import Pgd
from deploytool.attacks.registry import AttackBase, make_attack
from deploytool.attacks.run import AttackResult
from deploytool.models.conditional import ConditionalModel
from deploytool.recipe import Recipe

STEPS = 20  # of each run of the adaptive attack, towards each of nine classes


def acceptance_rule(model: ConditionalModel, recipe: Recipe) -> AcceptanceRule | None:
    """The rule that a run's answers are accepted by; None without reasoning labels."""
    if model.reason_vectors is None or recipe.reasoning is None:
        return None
    return AcceptanceRule(model.reason_vectors, recipe.reasoning.threshold)


def adaptive_attacks(names: Sequence[str], base: AttackBase) -> list[str]:
    """Names of attacks, with those added that a rule of acceptance has to be measured by.

    Beside PGD of several steps stands its last iterate, beside each ball an attack on class and reasons, unless one is
    there already.

    Args:
        names: of attacks.
        base: from which they take their budgets.

    Raises:
        InputError: no attack has such a name, or a budget is out of range.
    """
    plans = {name: make_attack(name, base) for name in names}
    added = []
    for name, plan in plans.items():
        if isinstance(plan, Pgd) and plan.steps > 1 and plan.iterate == "first":
            added.append(f"{name}{',' if ':' in name else ':'}iterate=last")
    covered = {(plan.norm, plan.eps) for name, plan in plans.items() if is_reasoned(name)}
    for plan in plans.values():
        ball = (plan.norm, plan.eps)
        if plan.eps is None or ball in covered:
            continue
        covered.add(ball)
        option = "" if plan.eps == base.radius(plan.norm) else f":eps={plan.eps:.17g}"
        added.append(f"consistent-{STEPS}{'-l2' if plan.norm == 'l2' else ''}{option}")
    return list(dict.fromkeys([*names, *added]))


def acceptance_columns(rule: AcceptanceRule, before: Judged, result: AttackResult) -> dict[str, float | None]:
    """The part of a row that says what the rule makes of an attack.

    `reasoning_threshold`: t_rsn; `coverage`: share of images accepted as they are; `accuracy_accepted`: share of them
    that are right, None where there is none. Of the attack: `detection_rate`, `detection_rate_changed`,
    `undetected_rate`, `robust_accuracy_accepted` and `rejected_rate`, see `attacks.detection.Detection`.
    """
    return {"reasoning_threshold": rule.threshold, **detection(before, result).to_dict()}
