"""Label building: lines of a ConceptNet dump read per second on one core, and memory.

    python benchmarks/label_building.py [--lines 3000000] [--folder /tmp]

The dump is generated: lines of the official format with the relations, languages, lengths and licences mixed about as
in ConceptNet 5.7 (a tenth in English on both sides and of the nine relations; web addresses, forms, synonyms and other
languages for the rest). Each file is read by a process of its own, with the clock running from opening it to the
finished map, and the peak memory of that process printed. 34 million lines are what the official dump has.
"""

import argparse
import gzip
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tabulate import tabulate

from deploytool.data.class_names import CIFAR10_CLASSES
from deploytool.labels.relations import RELATIONS
from deploytool.timing import processor

OFFICIAL = 34_074_917
LANGUAGES = ("fr", "de", "ja", "it", "es", "zh", "ru", "pt", "la", "fi")
READ = """
import json, resource, sys
from pathlib import Path
import numpy
from deploytool.data.class_names import CIFAR10_CLASSES
from deploytool.labels.conceptnet import labels_from_dump
from deploytool.labels.subjects import Subjects
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = rss()
labels, counts = labels_from_dump(Path(sys.argv[1]), Subjects(CIFAR10_CLASSES, {"automobile": ["car"]}), 60)
print(json.dumps({"lines": counts.lines, "skipped": counts.skipped, "seconds": counts.seconds,
                  "labels": len(labels.labels), "start_mb": before, "peak_mb": rss()}))
"""


def statements(count: int) -> Iterator[str]:
    """Lines of a dump, sorted by nothing; about 1 in 500 has a class at one end."""
    draw = random.Random(0)
    words = [f"{a}{b}{c}" for a in ("wo", "ki", "lan", "ter", "mo") for b in range(100) for c in ("ra", "sel_wa", "nd")]
    classes = [name.replace(" ", "_") for name in (*CIFAR10_CLASSES, "car")]
    other = ("ExternalURL", "FormOf", "Synonym", "DerivedFrom", "HasContext", "EtymologicallyRelatedTo")
    suffixes = ("", "", "/n", "/v", "/n/wn/artifact", "/a/wikt/en_1")
    datasets = (("/d/wiktionary/en", "cc:by-sa/4.0", "/s/resource/wiktionary/en"),
                ("/d/conceptnet/4/en", "cc:by/4.0", "/s/activity/omcs/omcs1_possibly_free_text"),
                ("/d/wordnet/3.1", "cc:by/4.0", "/s/resource/wordnet/rdf/3.1"))  # fmt: skip
    for _ in range(count):
        english = draw.random() < 0.1
        relation = draw.choice(RELATIONS if english or draw.random() < 0.2 else other)
        ends = [
            f"/c/{'en' if english or draw.random() < 0.3 else draw.choice(LANGUAGES)}/"
            f"{draw.choice(classes if draw.random() < 0.005 else words)}{draw.choice(suffixes)}"
            for _ in range(2)
        ]
        if relation == "ExternalURL":
            ends[1] = f"http://dbpedia.org/resource/{ends[1].rsplit('/', 1)[-1]}"
        dataset, licence, source = draw.choice(datasets)
        about = {
            "dataset": dataset, "license": licence,
            "sources": [{"contributor": source, "process": "/s/process/wikiparsec/2"}],
            "weight": draw.choice((0.5, 1.0, 1.0, 2.0, 3.464)),
        }  # fmt: skip
        if dataset.startswith("/d/conceptnet"):
            about["surfaceText"] = f"[[{ends[0][6:]}]] is related to [[{ends[1][6:]}]]"
        uri = f"/a/[/r/{relation}/,{ends[0]}/,{ends[1]}/]"
        yield "\t".join((uri, f"/r/{relation}", *ends, json.dumps(about, sort_keys=True))) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=3_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rounds", type=int, default=3, help="the best of them counts; other work slows the others")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        plain, packed = Path(name) / "assertions.csv", Path(name) / "assertions.csv.gz"
        with plain.open("w", encoding="utf-8") as lines, gzip.open(packed, "wt", 6, encoding="utf-8") as zipped:
            for line in statements(arguments.lines):
                lines.write(line)
                zipped.write(line)
        rows = []
        for file in (plain, packed):
            command = [sys.executable, "-c", READ, str(file)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            runs = [
                json.loads(subprocess.check_output(command, env=environment, text=True))
                for _ in range(arguments.rounds)
            ]
            best = min(runs, key=lambda run: run["seconds"])
            rate = best["lines"] / best["seconds"]
            rows.append([
                file.suffix, f"{file.stat().st_size / 1e6:.0f}", f"{best['lines']:,}", f"{best['seconds']:.1f}",
                f"{rate:,.0f}", f"{OFFICIAL / rate:.0f}", f"{best['start_mb']:.0f}", f"{best['peak_mb']:.0f}",
                best["labels"],
            ])  # fmt: skip
        heads = ["file", "MB", "lines", "s", "lines/s", "s for 34 M", "MB at start", "peak MB", "labels"]
        print(f"{processor()}, Python {platform.python_version()}, best of {arguments.rounds}")
        print(tabulate(rows, heads, tablefmt="simple", disable_numparse=True))


if __name__ == "__main__":
    main()
