"""A label map as text for people."""

from tabulate import tabulate

from deploytool.labels.build import Built


def render(built: Built) -> str:
    """Render the labels of each class with their weights, one line per relation, and how they were got."""
    rows = []
    for name, labels in built.labels.items():
        relations = dict.fromkeys(label.relation or "" for label in labels)
        for index, relation in enumerate(relations):
            chosen = [label for label in labels if (label.relation or "") == relation]
            rows.append([
                f"{name} ({len(labels)})" if index == 0 else "",
                relation,
                ", ".join(f"{label.label} {label.weight:.3g}" for label in chosen),
            ])  # fmt: skip
    heads = ["class", "relation", "labels with weights"]
    table = tabulate(rows, heads, tablefmt="simple", maxcolwidths=[None, None, 90], disable_numparse=True)
    return f"{table}\n\n{_summary(built)}"


def _summary(built: Built) -> str:
    labels, counts = built.labels, built.counts
    line = f"{len(labels)} classes, {len(labels.labels)} different labels, from {labels.source}"
    if "seconds" in counts:
        line += f": {counts['lines']:,} lines in {counts['seconds']:.1f} s, {counts['skipped']:,} skipped"
    return line
