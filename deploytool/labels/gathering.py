"""The best labels of each class, gathered from many statements in bounded memory."""

from deploytool.errors import LabelError
from deploytool.labels.label_map import Label, LabelMap, enumerated
from deploytool.labels.relations import RELATIONS
from deploytool.labels.subjects import Subjects

MOST = 20_000  # labels of one class that can be asked for
LEAST_KEPT = 1000  # labels of one class in memory; twice as many before the worst of them are let go
_ORDER = {relation: index for index, relation in enumerate(RELATIONS)}


class Gathering:
    """Labels of each class, a label once, the class's own names left out.

    Of several statements that give a class the same label, the one with the largest weight counts. Weights are not
    added: each already sums up all sources of its statement, and those of "car RelatedTo wheel" and "car HasA wheel",
    or of two senses of one word, are no evidence for each other.

    The order is by weight, largest first; equal weights by relation in the order of section 3.4, then by label. It does
    not depend on the order in which statements come.

    Args:
        subjects: the classes.
        per_class: labels of each class wanted in the end, at most 20,000.

    Raises:
        LabelError: `per_class` is out of range.
    """

    def __init__(self, subjects: Subjects, per_class: int) -> None:
        if not 1 <= per_class <= MOST:
            raise LabelError(f"per-class (={per_class}) must be in [1, {MOST}]")
        self.subjects = subjects
        self.per_class = per_class
        self._kept = max(LEAST_KEPT, per_class)
        self._own = {name: subjects.own_names(name) for name in subjects.classes}
        self._best: dict[str, dict[str, Label]] = {name: {} for name in subjects.classes}

    def add(self, name: str, label: Label) -> None:
        """Take a label for a class, unless it is the class's own name or a better one for the same word is there."""
        best = self._best[name]
        before = best.get(label.label)
        if before is not None:
            if _rank(label) < _rank(before):
                best[label.label] = label
        elif label.label not in self._own[name]:
            best[label.label] = label
            if len(best) > 2 * self._kept:
                # What leaves has at least per_class better ones above it, whose weights only grow: it is in no answer,
                # unless a statement that gives it a larger weight is still to come, and that one brings it back.
                self._best[name] = {label.label: label for label in sorted(best.values(), key=_rank)[: self._kept]}

    def finish(self, source: str) -> LabelMap:
        """Return the first `per_class` labels of each class.

        Raises:
            LabelError: classes have none; names them.
        """
        empty = [name for name, best in self._best.items() if not best]
        if empty:
            raise LabelError(
                f"{source} has no labels for {enumerated(empty)}; "
                f"say what else it is called, as in --synonym {empty[0]}=NAME"
            )
        chosen = {name: sorted(best.values(), key=_rank)[: self.per_class] for name, best in self._best.items()}
        return LabelMap(chosen, source)


def _rank(label: Label) -> tuple[float, int, str, str]:
    return -label.weight, _ORDER[label.relation or RELATIONS[-1]], label.label, label.direction
