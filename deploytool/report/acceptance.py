"""What a rule of acceptance makes of attacks, as a text table."""

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

Row = dict[str, Any]

SETTINGS = {
    "conditioning": "conditioning",
    "lambda_threshold": "threshold",
    "noise": "noise",
    "lambda": "lambda",
    "width": "width",
}
RATES = {
    "accuracy_accepted": "acc. accepted",
    "coverage": "coverage",
    "robust_accuracy": "robust",
    "undetected_rate": "undetected",
    "detection_rate": "detected",
    "detection_rate_changed": "of changed",
    "robust_accuracy_accepted": "robust, accepted",
}
MEANING = """\
t_rsn {threshold:g}. robust: withstood the attack's goal, any wrong class; for consistent-K a wrong class that is
accepted, so that a rejected image counts as robust. undetected: wrong and accepted, of all images. detected: rejected,
of the images right before the attack; of changed: of those whose class it changed. robust, accepted: right and accepted
before the attack, and not wrong and accepted after."""


def acceptance_table(rows: Sequence[Row], tablefmt: str = "simple") -> str:
    """Render evaluation rows that say what was accepted, one line each, and what the columns mean.

    What differs between rows of their settings stands beside the attack; a dash where a row has none.

    Args:
        rows: of `evaluate_model` with a rule of acceptance.
        tablefmt: of tabulate.
    """
    shown = {key: head for key, head in SETTINGS.items() if len({row[key] for row in rows}) > 1}
    table = [[row["attack"], *(_knob(row[key]) for key in shown), *(_cell(row[key]) for key in RATES)] for row in rows]
    text = tabulate(table, ["attack", *shown.values(), *RATES.values()], tablefmt=tablefmt, disable_numparse=True)
    return f"{text}\n\n{MEANING.format(threshold=rows[0]['reasoning_threshold'])}"


def _knob(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:g}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
