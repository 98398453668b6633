"""How many threads answer fastest here: measured once for a network and a machine, then remembered.

More threads are often slower: on a machine of two virtual CPUs two threads took 1.5 to 3.6 times as long as one. What
was measured is kept in `$XDG_CACHE_HOME/deploytool/threads.json` (`~/.cache` where unset); delete it to measure again.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from deploytool.atomic import write_json
from deploytool.runtime.graph import Graph
from deploytool.runtime.threads import available_threads
from deploytool.timing import processor

MAX_ENTRIES = 256
MAX_CACHE_BYTES = 1 << 20
ROUNDS = 7
SECONDS = 1.0
GAIN = 0.95  # a further thread has to earn its energy

Inference = Callable[[], object]


def calibrated_threads(graph: Graph, candidate: Callable[[int], Inference]) -> int:
    """The fastest number of threads for a network, remembered or measured now.

    Args:
        graph: the network; its operators and shapes are what results are remembered by.
        candidate: makes one inference at a number of threads.
    """
    available = available_threads()
    if available == 1:
        return 1
    key = _key(graph, available)
    known = _read().get(key)
    if isinstance(known, int) and 1 <= known <= available:
        return known
    counts = sorted({1, *(2**power for power in range(1, available.bit_length())), available})
    fastest = _fastest(counts, [candidate(count) for count in counts])
    _remember(key, fastest)
    return fastest


def cache_file() -> Path:
    """Where measured numbers of threads are kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "deploytool" / "threads.json"


def _fastest(counts: list[int], runs: list[Inference]) -> int:
    """The count of the least median time, interleaved; of two that are within 5 % the smaller one."""
    times: list[list[float]] = []
    deadline = time.perf_counter() + SECONDS
    for round_number in range(ROUNDS + 1):
        row = []
        for run in runs:
            began = time.perf_counter()
            run()
            row.append(time.perf_counter() - began)
        if round_number:  # the first warms up
            times.append(row)
        if times and time.perf_counter() > deadline:
            break
    medians = np.median(np.array(times), axis=0)
    best = 0
    for index in range(1, len(counts)):
        if medians[index] < GAIN * medians[best]:
            best = index
    return counts[best]


def _key(graph: Graph, available: int) -> str:
    """A digest of the network's structure, the processor, the threads to be had and onnxruntime's version."""
    structure = [
        *(f"{node.op_type} {list(node.input)}" for node in graph.nodes),
        *(f"{name} {value.dtype} {value.shape}" for name, value in sorted(graph.constants.items())),
        *(value.SerializeToString(deterministic=True).hex() for value in graph.inputs),
        platform.machine(),
        processor(),
        str(available),
        onnxruntime.__version__,
    ]
    return hashlib.sha256("\n".join(structure).encode()).hexdigest()[:32]


def _read() -> dict[str, Any]:
    """What is remembered; nothing where the file is absent, damaged or too large."""
    try:
        if cache_file().stat().st_size > MAX_CACHE_BYTES:
            return {}
        known = json.loads(cache_file().read_text())
    except (OSError, RuntimeError, ValueError, RecursionError):  # RuntimeError: there is no home folder
        return {}
    return known if isinstance(known, dict) else {}


def _remember(key: str, threads: int) -> None:
    """Write it down; a machine whose cache folder cannot be written measures each time."""
    known = _read()
    known.pop(key, None)
    kept = dict(list(known.items())[-(MAX_ENTRIES - 1) :])
    try:
        write_json(cache_file(), {**kept, key: threads})
    except (OSError, RuntimeError):
        return
