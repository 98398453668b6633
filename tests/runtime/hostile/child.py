"""Damaged and hostile model files, one after another in a process of their own.

    python child.py FOLDER CASE ...       FOLDER holds the models to damage; a CASE is a seed, or a name in FOUND

onnxruntime is native code: what it does not survive ends the process, and what it does not bear in mind takes all
memory or never ends. Before each case its name is printed, so that whoever watches knows which one it was; after it,
its outcome and, one a line, whatever else came out than an answer or a DeploytoolError in one line.
"""

import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from found import FOUND
from mutations import damaged_model

from deploytool.errors import DeploytoolError
from deploytool.runtime import session as session_module
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.network import open_session, run_session
from deploytool.runtime.partial import specialized_model
from deploytool.runtime.session import Session

ADDRESS_SPACE_BYTES = 4 << 30
GROWTH_MB = 1500
SLOW_S = 20.0
LONGEST_MESSAGE = 600


def examine(file: Path, shared: bool) -> tuple[str, list[str]]:
    """Read, specialise, open and run a file in every way.

    Args:
        file: the file.
        shared: run small networks in a shared session, too, as large ones are (`deploytool.runtime.layout`).

    Returns:
        What became of it: `refused` when read, `failed` later, `answered`; and what should not have come out.
    """
    faults: list[str] = []

    def attempt(stage: str, action: Callable[[], Any]) -> Any:
        began = time.monotonic()
        try:
            return action()
        except DeploytoolError as error:
            text = str(error)
            if len(text.splitlines()) != 1 or len(text) > LONGEST_MESSAGE:
                faults.append(f"{stage}: the message {text[:200]!r}")
        except Exception as error:
            faults.append(f"{stage}: {type(error).__name__} {str(error)[:200]!r}")
        finally:
            if time.monotonic() - began > SLOW_S:
                faults.append(f"{stage}: took {time.monotonic() - began:.0f} s")
        return None

    artefact = attempt("reading", lambda: read_artefact(file))
    if artefact is None:
        return "refused", faults
    image = np.full((1, *artefact.metadata.shape), 0.5, np.float32)
    lam = 0.5 if artefact.metadata.conditional else None
    failed = False
    if not artefact.metadata.fixed:
        model = attempt("specialising", lambda: specialized_model(artefact, lam).SerializeToString())
        plain = None if model is None else attempt("opening", lambda: open_session(model, 1, "x.onnx"))
        if plain is not None:
            attempt("running", lambda: run_session(plain, None, {"image": image}, "x.onnx"))
        failed |= plain is None
    session_module.SHARED_FROM_BYTES = 0 if shared else 1 << 22
    outputs = [value.name for value in artefact.graph.outputs]
    session = attempt("session", lambda: Session(artefact, threads=1, background=False, outputs=outputs))
    for stage in ("__call__", "generic"):
        if session is None or attempt(stage, lambda stage=stage: getattr(session, stage)(image, lam)) is None:
            failed = True
    return "failed" if failed else "answered", faults


def main() -> None:
    """See the module."""
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sources = {file.stem: file.read_bytes() for file in sorted(folder.glob("*.onnx"))}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "x.onnx"
        for number, case in enumerate(cases):
            print("case", case, flush=True)
            seeded = case.isdecimal()
            data = damaged_model(int(case), list(sources.values())) if seeded else FOUND[case](sources)
            file.write_bytes(data)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                outcome, faults = examine(file, shared=number % 2 == 0)
            faults += [f"{each.category.__name__} {each.message}" for each in said]
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
            if grown > GROWTH_MB:
                faults.append(f"memory grew by {grown} MB")
            for fault in faults:
                print("fault", " ".join(fault.split()), flush=True)
            print("outcome", outcome, flush=True)


if __name__ == "__main__":
    main()
