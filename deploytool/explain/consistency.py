"""Consistency of classes and reasons: what it accepts, how right that is, and what it detects.

Everything is counted from four numbers per image (`Answers`): its label, the class named, how many of the R reasoning
labels agree with that class, and the largest softmax probability, the rival that needs no second head (Hendrycks and
Gimpel 2017). So every threshold t_rsn can be read off one pass.

Reference: V. Nanda, J. Ali, K. P. Gummadi, M. B. Zafar, Unifying model explainability and robustness via reasoning
labels ("paper 1"), sections 3.3 and 4.2, figures 1 and 2; D. Hendrycks, K. Gimpel, A baseline for detecting
misclassified and out-of-distribution examples in neural networks, 2017.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deploytool.atomic import atomic_path
from deploytool.attacks.detection import Judged
from deploytool.attacks.victim import Network
from deploytool.runtime.reasoning import agreements, required_agreements

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MAX_POINTS = 200  # of a curve over softmax probabilities


@dataclass(frozen=True)
class Answers:
    """What a network with two heads says of N images.

    Attributes:
        label: (N,) the true classes.
        predicted: (N,) the classes named.
        agreements: (N,) how many reasoning labels agree with the named class, 0 to `reasons`.
        confidence: (N,) the largest softmax probability of the class logits, in [0, 1].
        reasons: R.
    """

    label: Integers
    predicted: Integers
    agreements: Integers
    confidence: Floats
    reasons: int

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: Bools) -> "Answers":
        """The answers to some of the images."""
        return Answers(
            self.label[rows], self.predicted[rows], self.agreements[rows], self.confidence[rows], self.reasons
        )

    @property
    def right(self) -> Bools:
        """Which images get their class, (N,)."""
        return np.asarray(self.predicted == self.label)

    @property
    def accuracy(self) -> float:
        """Share of images that get their class, accepted or not."""
        return float(self.right.mean())

    def accepted(self, threshold: float) -> Bools:
        """Which answers are consistent at t_rsn (section 3.3), (N,)."""
        return np.asarray(self.agreements >= required_agreements(self.reasons, threshold))

    def judged(self, accepted: Bools) -> Judged:
        """Right and accepted, as attacks count them."""
        return Judged(torch.from_numpy(self.right), torch.from_numpy(accepted))

    def coverage(self, threshold: float) -> float:
        """Share of images that are accepted."""
        return float(self.accepted(threshold).mean())

    def accuracy_consistent(self, threshold: float) -> float | None:
        """Share of right classes among accepted images; None where none is accepted."""
        return self.judged(self.accepted(threshold)).accuracy_accepted

    def confidence_at(self, coverage: float) -> float:
        """The largest softmax probability above which this share of the images lies, ties aside; infinite for none.

        What accepts as many images without a second head: rules are compared at the same coverage.
        """
        count = round(coverage * len(self))
        return float(np.partition(self.confidence, len(self) - count)[len(self) - count]) if count else float("inf")

    def error_auroc(self) -> tuple[float | None, float | None]:
        """How well agreement, and the largest softmax probability, tell right answers from wrong ones."""
        return auroc(self.agreements, self.right), auroc(self.confidence, self.right)


def answers(network: Network, parts: Iterable[tuple[Tensor, Tensor]], vectors: Tensor) -> Answers:
    """Ask a network, batch by batch.

    Args:
        network: image (N, C, H, W) float32 in [0, 1] -> (N, K + R): logits, then reasoning logits.
        parts: (image, label (N,) int64) of each batch, at least one.
        vectors: (K, R) bool, the labels of each class.
    """
    known, classes = vectors.cpu().numpy().astype(bool), len(vectors)
    columns: list[tuple[npt.NDArray[Any], ...]] = []
    with torch.no_grad():
        for image, truth in parts:
            answer = network(image).double().cpu()
            named = answer[:, :classes].argmax(1).numpy()
            given = (answer[:, classes:] > 0).numpy()  # the sigmoid is above 0.5
            largest = answer[:, :classes].softmax(1).amax(1).numpy()
            columns.append((truth.cpu().numpy(), named, agreements(named, given, known), largest))
    label, predicted, agreeing, confidence = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Answers(label, predicted, agreeing, confidence, known.shape[1])


def save_answers(file: Path, found: Answers, key: str) -> None:
    """Write answers as .npz, whole or not at all; `key` says what they are the answers of."""
    with atomic_path(file) as aside, aside.open("wb") as stream:
        np.savez(stream, key=np.array(key), **asdict(found))


def load_answers(file: Path, key: str) -> Answers | None:
    """The answers in a file; None where it is absent, damaged, or of another key."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            if str(archive["key"]) != key:
                return None
            label, predicted, agreeing, confidence = columns = [
                np.asarray(archive[name]) for name in ("label", "predicted", "agreements", "confidence")
            ]
            found = Answers(label, predicted, agreeing, confidence, int(archive["reasons"]))
    except Exception:  # a damaged archive makes zipfile, zlib and numpy raise almost anything
        return None
    return found if len({column.shape for column in columns}) == 1 and columns[0].ndim == 1 else None


def tally(before: Answers, after: Answers) -> dict[str, Any]:
    """Numbers of images by agreement, from which `read_tally` answers for any threshold; small enough for each epoch.

    Args:
        before: to the images as they are.
        after: to those that were right before, attacked, in the same order.

    Returns:
        `n`, `reasons` (R), and histograms {agreements: images} of the images that are `right` and `wrong` as they are,
        of the right ones `attacked`, and of those of them whose class the attack changed, `fooled`.
    """
    right = before.right
    groups = {
        "right": before.agreements[right],
        "wrong": before.agreements[~right],
        "attacked": after.agreements,
        "fooled": after.agreements[~after.right],
    }
    histograms = {name: {str(k): n for k, n in sorted(Counter(v.tolist()).items())} for name, v in groups.items()}
    return {"n": len(before), "reasons": before.reasons, **histograms}


def read_tally(counts: Mapping[str, Any], threshold: float) -> dict[str, float | None]:
    """What a tally says at t_rsn.

    Returns:
        `accuracy` of all images and `accuracy_consistent` of accepted ones, `coverage`; `coverage_right` of images that
        are right as they are and `coverage_attacked` of the same after the attack (paper 1, Fig. 2: solid and dotted
        line); `detection_rate`, 1 - `coverage_attacked`, and `detection_rate_changed`, that of changed classes alone.
        All in [0, 1], None where there are no such images.
    """
    required = required_agreements(counts["reasons"], threshold)
    total = {name: sum(counts[name].values()) for name in ("right", "wrong", "attacked", "fooled")}
    passed = {name: sum(n for k, n in counts[name].items() if int(k) >= required) for name in total}
    attacked = share(passed["attacked"], total["attacked"])
    fooled = share(passed["fooled"], total["fooled"])
    return {
        "accuracy": share(total["right"], counts["n"]),
        "coverage": share(passed["right"] + passed["wrong"], counts["n"]),
        "accuracy_consistent": share(passed["right"], passed["right"] + passed["wrong"]),
        "coverage_right": share(passed["right"], total["right"]),
        "coverage_attacked": attacked,
        "detection_rate": None if attacked is None else 1 - attacked,
        "detection_rate_changed": None if fooled is None else 1 - fooled,
    }


def share(part: float, whole: float) -> float | None:
    """`part / whole`; None where there is nothing to share."""
    return part / whole if whole else None


def auroc(score: npt.NDArray[Any], positive: Bools) -> float | None:
    """Area under the receiver operating characteristic: how often a positive scores higher; a tie counts half.

    Args:
        score: (N,), higher for positives.
        positive: (N,).

    Returns:
        In [0, 1], 0.5 for a guess; None where all images are of one kind.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, score)) if 0 < positive.sum() < len(positive) else None


def curve(score: npt.NDArray[Any], right: Bools, most: int = MAX_POINTS) -> list[dict[str, float]]:
    """Coverage and accuracy when only scores of at least a threshold are accepted, over all thresholds.

    Args:
        score: (N,), agreements or probabilities.
        right: (N,), whose answers are right.
        most: points; with more different scores, those that are evenly spread over coverage.

    Returns:
        `{threshold, coverage, accuracy}` by rising coverage; the last accepts all.
    """
    order = np.argsort(-score, kind="stable")
    ordered, hits = score[order], np.cumsum(right[order])
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # of each group of equal scores
    if len(last) > most:
        last = last[np.unique(np.linspace(0, len(last) - 1, most).round().astype(int))]
    return [
        {
            "threshold": float(ordered[index]),
            "coverage": (index + 1) / len(ordered),
            "accuracy": float(hits[index] / (index + 1)),
        }
        for index in last.tolist()
    ]


def area_under(points: list[dict[str, float]]) -> float:
    """Mean error over coverage (AURC, the area under the risk-coverage curve), by trapezoids; smaller is better.

    Below the smallest coverage of a point, its error is taken.
    """
    coverage = np.array([0.0, *(point["coverage"] for point in points)])
    risk = 1 - np.array([points[0]["accuracy"], *(point["accuracy"] for point in points)])
    return float(np.sum(np.diff(coverage) * (risk[1:] + risk[:-1]) / 2))
