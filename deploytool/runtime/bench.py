"""`bench`: latency, throughput and memory of an ONNX file on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from deploytool.errors import ArtefactError, InputError
from deploytool.runtime.artefact import MAX_IMAGE_VALUES, artefact_of, read_onnx
from deploytool.runtime.network import open_session, run_session
from deploytool.runtime.partial import check_outputs, check_precision, file_precisions
from deploytool.runtime.session import Session
from deploytool.runtime.threads import check_threads
from deploytool.timing import interleaved

PROBE_TIMEOUT_S = 300
MAX_BATCH_VALUES = 1 << 30

Inference = Callable[[], object]
Knobs = dict[str, Any]


def bench(
    file: str | os.PathLike[str],
    vs: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    batch: int = 1,
    lam: float | None = None,
    generic: bool = False,
    seconds: float = 3.0,
    width: float | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """Measure an ONNX file, alone or interleaved with another one.

    Conditional files of deploytool run specialised, as `Session` runs them, or (with `generic`) as stored. Any other
    ONNX file with one float32 image input of fixed C, H and W runs as it is. All outputs of a file are computed:
    reasoning labels and CPL are part of the time, as with `predict`, and so is a saliency map, as with `predict
    --saliency`.

    Args:
        file: the file to measure.
        vs: a file to compare with; both are timed alternately in one process, the order alternating too.
        threads: threads of one inference; by default what affinity and cgroup quota allow.
        batch: images per inference.
        lam: lambda of a conditional file; 0 where None. Ignored by plain files.
        generic: run conditional files as stored, lambda being an input.
        seconds: time to spend on measuring; at least 30 runs are made.
        width: one of the widths of a slimmable file; its widest where None.
        precision: `float32` or `int8`; the fastest that the file can be specialised to where None. Width and precision
            are ignored by a file that has no choice of them, where the other one has.

    Returns:
        `p50_ms`, `p90_ms`, `p99_ms` per inference, `throughput_ips` (images per second), `peak_rss_mb` (10^6 bytes,
        of a fresh process that loads and runs the file), `size_mb`, `threads`, `batch`, `lambda`, `width`,
        `precision`, `outputs` (those computed), `runs`; with `vs` also `ratio_vs`, the median over pairs of time / time
        of the other, and the other's figures as `vs`.

    Raises:
        ArtefactError: a file is not usable. InputError: an argument is out of range.
    """
    if batch < 1:
        raise InputError(f"batch (={batch}) must be at least 1")
    if not 0 < seconds <= 3600:
        raise InputError(f"seconds (={seconds:g}) must be in (0, 3600]")
    threads = check_threads(threads)
    files = [Path(file)] if vs is None else [Path(file), Path(vs)]
    prepared = [prepare(path, threads, batch, lam, generic, width, precision) for path in files]
    for name, value in (("width", width), ("precision", precision)):
        if value is not None and all(knobs[name] != value for _, knobs in prepared):
            given = " and ".join(f"{path} has {knobs[name]}" for path, (_, knobs) in zip(files, prepared, strict=True))
            raise InputError(f"{name} (={value}) was given, but {given}; leave it out")
    times = interleaved([run for run, _ in prepared], seconds=seconds)
    results: list[dict[str, Any]] = []
    for path, (_, knobs), column in zip(files, prepared, times.T, strict=True):
        results.append(
            {
                "file": str(path),
                **latency_figures(column, batch),
                "peak_rss_mb": _peak_rss_mb(path, threads, batch, knobs, generic),
                "size_mb": round(path.stat().st_size / 1e6, 6),
                "threads": threads,
                "batch": batch,
                **knobs,
                "runs": len(times),
            }
        )
    if vs is not None:
        results[0] |= {"ratio_vs": float(np.median(times[:, 0] / times[:, 1])), "vs": results[1]}
    return results[0]


def prepare(
    path: Path,
    threads: int,
    batch: int,
    lam: float | None,
    generic: bool,
    width: float | None = None,
    precision: str | None = None,
) -> tuple[Inference, Knobs]:
    """Open a file; return a function that runs one inference on fixed random images, and what it runs at.

    The function returns all outputs of the file. What it runs at are `lambda`, `width` and `precision`, None where the
    file has no such thing, and `outputs`, their names.
    """
    model = read_onnx(path)
    if any(p.key == "deploytool.version" for p in model.metadata_props):
        artefact = artefact_of(path, model)
        can = file_precisions(artefact)[-1 if generic else 0 :]
        kind = check_precision(artefact, precision if len(can) > 1 else can[0])
        outputs = check_outputs(artefact, None)
        session = Session(artefact, threads=threads, background=False, precision=kind, outputs=outputs)
        used = (0.0 if lam is None else session.check_lambda(lam)) if session.metadata.conditional else None
        chosen = session.check_width(width if len(session.metadata.widths) > 1 else None)
        image = random_images((batch, *session.metadata.shape))
        run = session.run_generic if generic else session.run
        knobs = {"lambda": used, "width": chosen, "precision": kind, "outputs": list(outputs)}
        return lambda: run(image, used, chosen), knobs
    initialized = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialized]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise ArtefactError(f"{path} has inputs {names or 'none'}; bench feeds files of deploytool, or one image input")
    image, name = random_images(_image_shape(path, inputs[0], batch)), inputs[0].name
    plain = open_session(model.SerializeToString(), threads, str(path))
    knobs = {
        **dict.fromkeys(("lambda", "width", "precision")),
        "outputs": [value.name for value in plain.get_outputs()],
    }
    return lambda: run_session(plain, None, {name: image}, str(path)), knobs


def _image_shape(path: Path, value: onnx.ValueInfoProto, batch: int) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT or len(dims) != 4:
        raise ArtefactError(f"{path}: input {value.name} is no float32 image (N, C, H, W)")
    sizes = [dim.dim_value for dim in dims]
    if not all(size > 0 for size in sizes[1:]):
        raise ArtefactError(f"{path}: input {value.name} has free C, H or W; fix them when exporting")
    if prod(sizes[1:]) > MAX_IMAGE_VALUES:
        raise ArtefactError(f"{path}: an image has {prod(sizes[1:])} values; at most {MAX_IMAGE_VALUES}")
    if sizes[0] not in (0, batch):
        raise InputError(f"batch (={batch}) does not fit {path}: its input {value.name} has batch {sizes[0]}")
    return (batch, *sizes[1:])


def random_images(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Images (N, C, H, W) float32 in [0, 1), always the same; raise InputError where they are too many to hold."""
    if prod(shape) > MAX_BATCH_VALUES:
        each = prod(shape[1:])
        raise InputError(f"batch (={shape[0]}) of {each} values each is too much; at most {MAX_BATCH_VALUES} in all")
    return np.random.default_rng(0).random(shape, np.float32)


def latency_figures(seconds: np.ndarray[Any, Any], batch: int) -> dict[str, float]:
    """Percentiles of the seconds (rounds,) of an inference, and images per second."""
    p50, p90, p99 = (float(v) for v in np.percentile(seconds, [50, 90, 99]))
    return {
        "p50_ms": p50 * 1e3,
        "p90_ms": p90 * 1e3,
        "p99_ms": p99 * 1e3,
        "throughput_ips": batch * len(seconds) / float(seconds.sum()),
    }


def _peak_rss_mb(path: Path, threads: int, batch: int, knobs: Knobs, generic: bool) -> float:
    """Run the probe in a fresh process, where nothing else has raised the peak.

    `-P` keeps the current folder off its module path: a `json.py` that lies beside a model must not run.
    """
    request = json.dumps({"file": str(path), "threads": threads, "batch": batch, "generic": generic, **knobs})
    command = [sys.executable, "-P", "-m", "deploytool.runtime.memory_probe", request]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ArtefactError(
            f"{path}: measuring its memory took more than {PROBE_TIMEOUT_S} s; try a smaller batch"
        ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:160]
        raise ArtefactError(f"{path}: the process that measures its memory failed: {reason}")
    return float(json.loads(done.stdout)["peak_rss_mb"])
