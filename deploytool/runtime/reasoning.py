"""Verdicts from reasoning labels: are the reasons that a model gives those of the class that it names?

With K classes, R reasoning labels and r^y in {0, 1}^R the labels of class y, a prediction is accepted where

    sum_i [r_hat_i = r^y_hat_i] / R >= t_rsn,        r_hat_i = 1 if F_rsn(x)_i > 0.5 else 0,    y_hat = argmax F_clf(x)

and rejected otherwise. Both sides of the share are whole numbers, so what is compared is their number:
`agreements` with `required_agreements`, the smallest number whose share is t_rsn at least. A share is never rounded.
In training r_hat_i = 1 where the logit is above 0; in a file, where the float32 sigmoid of a logit in (0, 1.19e-7] is
0.5 exactly, such a reason is not given.

Reference: V. Nanda, J. Ali, K. P. Gummadi, M. B. Zafar, Unifying model explainability and robustness via reasoning
labels ("paper 1"), sections 3.2 and 3.3, table 1. t_rsn is its user-specified threshold; here `threshold`, in [0, 1]:
0 accepts every prediction, 1 those without a violated reason.

In a file, three metadata properties say what its output `reasoning` (N, R) means:

    deploytool.reasoning_labels        ["animal", "paws", "spots", "tires", "seats", "engine"]     the R labels
    deploytool.reasoning_vectors       ["111000", "000111"]       a row for each class, in the order of its logits
    deploytool.reasoning_threshold     0.95
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploytool.errors import InputError
from deploytool.labels.label_map import MAX_TEXT, enumerated, is_text

Array = npt.NDArray[Any]

LABELS, VECTORS, THRESHOLD = (f"deploytool.reasoning_{name}" for name in ("labels", "vectors", "threshold"))
MAX_LABELS = 100_000
MAX_VECTOR_VALUES = 1 << 26  # K * R
MAX_LABEL_CHARACTERS = 1 << 24  # of the property, before it is read
MAX_THRESHOLD_CHARACTERS = 40  # a float64 takes 24 at most
NAMED = 10  # labels that words name; then how many more there are


@dataclass(frozen=True)
class Verdict:
    """What the reasons of one image say of its class.

    Labels are ordered by confidence: those said, the most probable first; those lacking, the least probable first.

    Attributes:
        predicted: the class that the model names.
        agreements: how many of the R reasoning labels agree with the class's vector.
        count: R.
        threshold: t_rsn in force.
        accepted: whether the share of agreements is the threshold at least.
        reasons: the labels that the model gives, those of the class and others.
        says: violated reasons: given, but not of the class.
        lacks: violated reasons: of the class, but not given.
    """

    predicted: str
    agreements: int
    count: int
    threshold: float
    accepted: bool
    reasons: tuple[str, ...]
    says: tuple[str, ...]
    lacks: tuple[str, ...]

    @property
    def agreement(self) -> float:
        """Share of the reasoning labels that agree with the class's, in [0, 1]."""
        return self.agreements / self.count

    @property
    def words(self) -> str:
        """The verdict in words: "classified panda, rejected: says tires, seats; lacks animal, paws"."""
        violated = [f"{verb} {enumerated(labels, NAMED)}" for verb, labels in self.violated.items() if labels]
        if not self.accepted:
            return f"classified {self.predicted}, rejected: {'; '.join(violated)}"
        said = set(self.says)
        right = [label for label in self.reasons if label not in said]
        parts = [enumerated(right, NAMED) if right else "no reason of its class", *violated]
        # Rounded down: 537 of 538 are not 1.00.
        share = f" at {self.agreements * 100 // self.count / 100:.2f}" if violated else ""
        return f"classified {self.predicted}, accepted{share}: {'; '.join(parts)}"

    @property
    def violated(self) -> dict[str, tuple[str, ...]]:
        """`says` and `lacks` by name."""
        return {"says": self.says, "lacks": self.lacks}

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON: `reasons`, `violated`, `agreement`, `threshold`, `accepted`, `verdict`."""
        return {
            "reasons": list(self.reasons),
            "violated": {verb: list(labels) for verb, labels in self.violated.items()},
            "agreement": self.agreement,
            "threshold": self.threshold,
            "accepted": self.accepted,
            "verdict": self.words,
        }


@dataclass(frozen=True, eq=False)
class Reasoning:
    """What the reasons of a file mean.

    Attributes:
        classes: the K class names in the order of the logits.
        labels: the R reasoning labels in the order of the output `reasoning`.
        vectors: (K, R) bool, which labels each class has.
        threshold: t_rsn in [0, 1], as built in.
    """

    classes: tuple[str, ...]
    labels: tuple[str, ...]
    vectors: Array
    threshold: float

    def judge(self, logits: Array, reasoning: Array, threshold: float | None = None) -> list[Verdict]:
        """Give the verdict on each image.

        Args:
            logits: (N, K).
            reasoning: (N, R) probabilities.
            threshold: t_rsn in [0, 1]; the file's own where None.

        Raises:
            InputError: the threshold is not in [0, 1], or the shapes do not fit.
        """
        threshold = check_reasoning_threshold(self.threshold if threshold is None else threshold)
        count, (classes, labels) = len(logits), self.vectors.shape
        if logits.shape != (count, classes) or reasoning.shape != (count, labels):
            raise InputError(
                f"logits {logits.shape} and reasoning {reasoning.shape} must be (N, {classes}) and (N, {labels})"
            )
        predicted = logits.argmax(1)
        given = given_reasons(reasoning)
        found = agreements(predicted, given, self.vectors)
        needed = required_agreements(labels, threshold)
        verdicts = []
        for own, agreeing, row, probabilities in zip(predicted, found, given, reasoning, strict=True):
            vector = self.vectors[own]
            verdicts.append(
                Verdict(
                    predicted=self.classes[own],
                    agreements=int(agreeing),
                    count=labels,
                    threshold=threshold,
                    accepted=bool(agreeing >= needed),
                    reasons=self._named(row, -probabilities),
                    says=self._named(row & ~vector, -probabilities),
                    lacks=self._named(vector & ~row, probabilities),
                )
            )
        return verdicts

    def accepts(self, logits: Array, reasoning: Array) -> npt.NDArray[np.bool_]:
        """Which answers are accepted at the file's own threshold, (N,) bool; arguments as in `judge`."""
        found = agreements(logits.argmax(1), given_reasons(reasoning), self.vectors)
        return found >= required_agreements(len(self.labels), self.threshold)

    def to_properties(self) -> dict[str, str]:
        """The metadata properties."""
        rows = [(row + np.uint8(ord("0"))).tobytes().decode() for row in self.vectors.astype(np.uint8)]
        values = {LABELS: list(self.labels), VECTORS: rows, THRESHOLD: self.threshold}
        return {key: json.dumps(value, ensure_ascii=False, allow_nan=False) for key, value in values.items()}

    def _named(self, chosen: Array, order: Array) -> tuple[str, ...]:
        """The labels of a mask (R,), by ascending `order` (R,)."""
        indices = np.flatnonzero(chosen)
        return tuple(self.labels[index] for index in indices[np.argsort(order[indices], kind="stable")])


def given_reasons(reasoning: Array) -> Array:
    """r_hat of section 3.2: (N, R) bool, whether each probability (N, R) is above 0.5."""
    return reasoning > 0.5


def agreements(predicted: Array, reasons: Array, vectors: Array) -> npt.NDArray[np.int64]:
    """How many reasoning labels agree with those of the predicted class.

    Args:
        predicted: (N,) int, the class of each image.
        reasons: (N, R) bool, the labels that each image is given.
        vectors: (K, R) bool, the labels that each class has.

    Returns:
        (N,) int64 from 0 to R: the numerator of section 3.3's share.
    """
    return np.asarray(np.count_nonzero(reasons == vectors[predicted], axis=1), np.int64)


def required_agreements(count: int, threshold: float) -> int:
    """The smallest number k of agreements, of `count` labels, with k / count >= t_rsn; exact where they are equal.

    Args:
        count: R, at least 1.
        threshold: t_rsn in [0, 1].

    Raises:
        InputError: an argument is out of range.
    """
    threshold = check_reasoning_threshold(threshold)
    if count < 1:
        raise InputError(f"count (={count}) of reasoning labels must be at least 1")
    needed = math.ceil(threshold * count)  # off by one where the product is rounded
    while needed > 0 and (needed - 1) / count >= threshold:
        needed -= 1
    while needed / count < threshold:
        needed += 1
    return needed


def check_reasoning_threshold(threshold: float) -> float:
    """Return t_rsn if it is in [0, 1]; raise InputError otherwise."""
    if isinstance(threshold, bool) or not isinstance(threshold, int | float | np.integer | np.floating):
        raise InputError(f"t_rsn (={threshold!r}) must be a number in [0, 1]")
    if not 0 <= threshold <= 1:  # also true for NaN
        raise InputError(f"t_rsn (={threshold}) must be in [0, 1]; 0 accepts all, 1 only what violates no reason")
    return float(threshold)


def read_reasoning(properties: Mapping[str, str], classes: Sequence[str]) -> Reasoning | None:
    """Read the metadata properties of a file; None where it has none of them.

    Args:
        properties: metadata, of which any may be hostile.
        classes: the file's class names.

    Raises:
        ValueError: they are not as the module says, in one line.
    """
    known = [key for key in (LABELS, VECTORS, THRESHOLD) if key in properties]
    if not known:
        return None
    if len(known) < 3:
        raise ValueError(f"{known[0]} without the rest of {LABELS}, {VECTORS}, {THRESHOLD}")
    if not all(is_text(name) for name in classes):  # words name them beside the labels
        raise ValueError(f"class names must be 1 to {MAX_TEXT} printable characters each")
    labels = _read_labels(properties[LABELS])
    vectors = _read_vectors(properties[VECTORS], len(classes), len(labels))
    return Reasoning(tuple(classes), labels, vectors, _read_threshold(properties[THRESHOLD]))


def _read_labels(text: str) -> tuple[str, ...]:
    if len(text) > MAX_LABEL_CHARACTERS:
        raise ValueError(f"reasoning labels have {len(text)} characters; at most {MAX_LABEL_CHARACTERS}")
    labels = json.loads(text)
    if not isinstance(labels, list) or not 1 <= len(labels) <= MAX_LABELS:
        raise ValueError(f"reasoning labels must be a list of 1 to {MAX_LABELS}")
    if not all(isinstance(label, str) and is_text(label) for label in labels):
        raise ValueError(f"reasoning labels must be 1 to {MAX_TEXT} printable characters each")
    if len(set(labels)) < len(labels):
        raise ValueError("a reasoning label stands there twice")
    return tuple(labels)


def _read_threshold(text: str) -> float:
    if len(text) > MAX_THRESHOLD_CHARACTERS:
        raise ValueError(f"reasoning threshold has {len(text)} characters; at most {MAX_THRESHOLD_CHARACTERS}")
    threshold = json.loads(text)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise ValueError(f"reasoning threshold {text} is outside [0, 1]")
    return float(threshold)


def _read_vectors(text: str, classes: int, labels: int) -> Array:
    """(K, R) bool, not to be written to: verdicts of several threads read it."""
    size = classes * labels
    if size > MAX_VECTOR_VALUES or len(text) > 8 * classes + size:  # quotes, commas, spaces
        raise ValueError(f"reasoning vectors of {classes} classes and {labels} labels are too large")
    rows = json.loads(text)
    if not isinstance(rows, list) or len(rows) != classes:
        raise ValueError(f"reasoning vectors must be a list of {classes}")
    if not all(isinstance(row, str) and len(row) == labels and row.isascii() for row in rows):
        raise ValueError(f"reasoning vectors must be texts of {labels} characters 0 or 1")
    steps = np.frombuffer("".join(rows).encode(), np.uint8).reshape(classes, labels) - np.uint8(ord("0"))
    if steps.max() > 1:
        raise ValueError("reasoning vectors must hold 0 and 1 alone")
    vectors = steps.astype(bool)
    vectors.flags.writeable = False
    return vectors
