"""The bridge to `hwmodels` for what is measured: `cost --measure` and `calibrate`.

hwmodels measures plain files; conditional, slimmable and sparse ones are specialised here first. Explainers and
libraries are cut out of their files, since what is priced is the classifier.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from deploytool.atomic import atomic_path, write_json, write_text
from deploytool.costing import in_its_words, workload_of
from deploytool.errors import CostError
from deploytool.runtime.artefact import artefact_of, read_onnx
from deploytool.runtime.bench import bench
from deploytool.runtime.graph import assemble, select_outputs
from deploytool.runtime.library import CPL, LIBRARY
from deploytool.runtime.partial import specialized_model
from deploytool.runtime.saliency import EXPLAINER, SALIENCY
from deploytool.runtime.threads import check_threads
from deploytool.timing import processor
from hwmodels.calibrate import Calibration, as_yaml, calibrate, profile_of_calibration
from hwmodels.measured import RUNS, Measured, measure
from hwmodels.measured_report import MeasuredReport, render
from hwmodels.profile import Profile, load_profile
from hwmodels.report import price
from hwmodels.synthetic import save_synthetic
from hwmodels.table import as_csv
from hwmodels.workload import Workload

File = str | os.PathLike[str]

BENCH_SECONDS = 2.0


@dataclass(frozen=True)
class PlainNetwork:
    """A network without knobs.

    Attributes:
        data: its ONNX file's bytes.
        workload: what it computes; `file` is the one that the user named.
        runnable: a file that `bench` runs: the user's, or a copy with the image's size fixed.
        settings: `lambda`, `width` and `precision` that it was specialised to; None where it has no such thing.
    """

    data: bytes
    workload: Workload
    runnable: Path
    settings: dict[str, Any]


def plain_network(
    file: File, folder: Path, lam: float | None = None, width: float | None = None, shape: Sequence[str] = ()
) -> PlainNetwork:
    """Read a file, specialised where it has knobs.

    Args:
        file: any ONNX file that takes images alone, or one of deploytool.
        folder: for a copy of it.
        lam: lambda of a conditional file; 0 where None.
        width: of a slimmable file; its widest where None.
        shape: of the image, where the file leaves it open.

    Raises:
        ArtefactError: the file is not usable. InputError: lambda or width is out of range, or the file takes none.
        CostError: whatever hwmodels objects to, in its words.
    """
    path, copy = Path(file), folder / "network.onnx"
    model = read_onnx(path)
    settings: dict[str, Any] = dict.fromkeys(("lambda", "width", "precision"))
    runnable = path
    if any(entry.key == "deploytool.version" for entry in model.metadata_props):
        artefact = artefact_of(path, model)
        metadata = artefact.metadata
        used = (0.0 if lam is None else lam) if metadata.conditional else lam
        outputs = [value.name for value in artefact.graph.outputs if value.name not in (SALIENCY, CPL)]
        if not metadata.fixed or metadata.stored_sparse:
            model = specialized_model(artefact, used, width=width, outputs=outputs)
            metadata = artefact_of(path, model).metadata
        elif lam is not None or width is not None:
            raise CostError(f"{path} is a plain model; leave out --lambda and --width")
        elif len(outputs) < len(artefact.graph.outputs):
            dropped = EXPLAINER, LIBRARY
            properties = {key: value for key, value in artefact.properties.items() if key not in dropped}
            model = assemble(select_outputs(artefact.graph, outputs), properties)
        if len(outputs) < len(artefact.graph.outputs):
            runnable = copy
        settings = {"lambda": metadata.lam, "width": metadata.widths[-1], "precision": metadata.precision}
    elif lam is not None or width is not None:
        raise CostError(f"{path} was not written by deploytool; leave out --lambda and --width")
    copy.write_bytes(model.SerializeToString())
    try:
        workload = replace(workload_of(copy, shape), file=str(path))
    except CostError as error:
        raise CostError(str(error).replace(str(copy), str(path))) from None
    if shape:
        _fix_images(model, workload)
        copy.write_bytes(model.SerializeToString())
        runnable = copy
    return PlainNetwork(model.SerializeToString(), workload, runnable, settings)


def measure_file(
    file: File,
    profile: Profile | None = None,
    *,
    threads: int | None = None,
    lam: float | None = None,
    width: float | None = None,
    shape: Sequence[str] = (),
    seconds: float = BENCH_SECONDS,
    runs: int = RUNS,
) -> MeasuredReport:
    """Price a network, and measure it here: every layer by onnxruntime's profiler, and the whole as `bench` does.

    Args:
        file: any ONNX file that takes one image, or one of deploytool.
        profile: what to predict by, asic-65nm where None.
        threads: of one inference; by default what affinity and cgroup quota allow.
        lam, width, shape: as `plain_network`.
        seconds: for `bench`.
        runs: of the profile.

    Raises:
        ArtefactError, InputError, CostError: as `plain_network` and `bench`.
    """
    threads = check_threads(threads)
    with tempfile.TemporaryDirectory(prefix="deploytool-") as folder:
        network = plain_network(file, Path(folder), lam, width, shape)
        with in_its_words():
            report = price(network.workload, None, profile)
            (measured,) = measure([network.data], [network.workload], threads, runs)
        used = network.settings["lambda"]
        figures = bench(network.runnable, threads=threads, batch=measured.batch, lam=used, width=width, seconds=seconds)
        figures["size_mb"] = round(Path(file).stat().st_size / 1e6, 6)
    kept = {key: figures[key] for key in ("p50_ms", "p90_ms", "p99_ms", "peak_rss_mb", "size_mb")}
    return MeasuredReport(report, measured, kept, network.settings)


def write_measured(report: MeasuredReport, folder: Path) -> dict[str, str]:
    """Write measured.json, .csv and .md into a folder, made if need be; return the paths by suffix."""
    write_json(folder / "measured.json", report.to_dict())
    write_text(folder / "measured.csv", as_csv(report.rows()))
    write_text(folder / "measured.md", render(report, "github") + "\n")
    return {kind: str(folder / f"measured.{kind}") for kind in ("json", "csv", "md")}


def calibrate_machine(
    files: Sequence[File],
    output: Path,
    *,
    threads: int | None = None,
    lam: float | None = None,
    shape: Sequence[str] = (),
    runs: int = RUNS,
    announce: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure networks, fit this machine's profile to their layers and write it as YAML.

    Args:
        files: as of `plain_network`; synthetic networks where there is none.
        output: the YAML file to write.
        threads: of one inference; by default what affinity and cgroup quota allow.
        lam: of conditional files; 0 where None.
        shape: of the image, for files that leave it open.
        runs: inferences of each network, in turns.
        announce: told one line of what is measured.

    Returns:
        What `Calibration.to_dict` says, with `file`, `machine`, `versions`, `profile` and `verdict`.

    Raises:
        CostError: the output is no YAML file, a file is named twice, or whatever hwmodels objects to, in its words.
        ArtefactError, InputError: as `plain_network`.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise CostError(f"-o (={output}) must end in .yaml, by which cost --profile knows a file from a name")
    seen = [Path(file).resolve() for file in files]
    for file, place in zip(files, seen, strict=True):
        if seen.count(place) > 1:
            raise CostError(f"{file} is named twice; a network that is left out must not be among the others")
    threads = check_threads(threads)
    machine, versions = " ".join(processor().split()), f"onnxruntime {onnxruntime.__version__}"
    measured = _measure_all(files, threads, lam, shape, runs, announce)
    with in_its_words():
        found = calibrate(measured)
        profile = profile_of_calibration(found, output.stem, machine, versions)
    _write_profile(profile, found, output, f"{machine} with {versions}")
    return {
        "file": str(output),
        "machine": machine,
        "versions": versions,
        "profile": profile.to_dict(),
        "verdict": found.verdict(),
        **found.to_dict(),
    }


def _measure_all(
    files: Sequence[File],
    threads: int,
    lam: float | None,
    shape: Sequence[str],
    runs: int,
    announce: Callable[[str], None],
) -> list[Measured]:
    with tempfile.TemporaryDirectory(prefix="deploytool-") as folder:
        if files:
            if lam is not None and not any(_takes_lambda(file) for file in files):
                raise CostError(f"--lambda (={lam:g}) was given, but none of these files takes one; leave it out")
            networks = [_knobs_where_taken(file, Path(folder), lam, shape) for file in files]
        else:
            networks = [plain_network(file, Path(folder)) for file in save_synthetic(Path(folder))]
            networks = [replace(n, workload=replace(n.workload, file=Path(n.workload.file).stem)) for n in networks]
        turns = "s in turns" if len(networks) > 1 else ""
        announce(f"measuring {len(networks)} network{turns}, {runs} inferences each, {_threads(threads)}")
        with in_its_words():
            return measure([each.data for each in networks], [each.workload for each in networks], threads, runs)


def _knobs_where_taken(file: File, folder: Path, lam: float | None, shape: Sequence[str]) -> PlainNetwork:
    """Several files share `--lambda` and `--shape`; a file that has none of its own goes without."""
    model = read_onnx(file)
    images = [value for value in model.graph.input if len(value.type.tensor_type.shape.dim) == 4]
    is_open = any(not dim.dim_value for value in images for dim in value.type.tensor_type.shape.dim[1:])
    return plain_network(file, folder, lam if _takes_lambda(file) else None, shape=shape if is_open else ())


def _takes_lambda(file: File) -> bool:
    return any(value.name == "lambda" for value in read_onnx(file).graph.input)


def _write_profile(profile: Profile, found: Calibration, output: Path, measured_on: str) -> None:
    """Write a profile that is known to load."""
    description = f"Fitted to layers measured on {measured_on}, {_threads(found.threads)}; {found.verdict()}"
    with atomic_path(output) as aside:
        aside.write_text(as_yaml(profile, description), encoding="utf-8")
        with in_its_words():
            load_profile(aside.resolve())


def _fix_images(model: onnx.ModelProto, workload: Workload) -> None:
    """Write the sizes that the user gave into a model's inputs; the batch that it leaves open stays open."""
    for value in model.graph.input:
        sizes = workload.images.get(value.name, ())
        dims = value.type.tensor_type.shape.dim
        with suppress(ValueError):
            for dim, size in list(zip(dims, sizes, strict=True))[1:]:
                dim.dim_value = size


def calibration_table(result: dict[str, Any]) -> str:
    """Render what `calibrate_machine` found."""
    from tabulate import tabulate

    fit, more, check = result["fit"], result["fit_with_overhead"], result["cross_validation"]
    lines = []
    for plain, overhead in zip(check["networks"], check["networks_with_overhead"], strict=True):
        rank = "" if plain["rank_correlation"] is None else f"{plain['rank_correlation']:.3f}"
        figures = [f"{plain['measured_ns'] / 1e6:.3f}", f"{plain['predicted_ns'] / 1e6:.3f}"]
        errors = [
            f"{plain['median_error']:.1%}",
            f"{plain['total_error']:+.1%}",
            rank,
            f"{overhead['median_error']:.1%}",
        ]
        lines.append([plain["file"], plain["layers"], *figures, *errors])
    heads = ["left out", "layers", "measured ms", "predicted ms", "median error", "of the sum", "rank corr."]
    table = tabulate(
        lines, [*heads, "error with a time per layer"], disable_numparse=True, colalign=["left", *["right"] * 7]
    )
    rates = [
        f"{_rate(fit['read_gb_per_s'], 'GB/s of weights')}, {_rate(fit['gflops'], 'GFLOP/s')}",
        f"with a time per layer, which eq. 7 has not: {_rate(more['read_gb_per_s'], 'GB/s')}, "
        f"{_rate(more['gflops'], 'GFLOP/s')}, {more['overhead_ns'] / 1e3:.1f} us",
    ]
    head = f"{result['machine']}, {result['versions']}, {_threads(result['threads'])}"
    end = f"written to {result['file']}; use it with: deploytool cost FILE --profile {result['file']}"
    return "\n".join([head, *rates, "", table, "", result["verdict"], end])


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _rate(value: float | None, unit: str) -> str:
    return f"no limit seen ({unit})" if value is None else f"{value:.3g} {unit}"
