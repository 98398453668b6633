"""The file converted to onnxruntime's own format, which mobile and minimal builds read."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest


@pytest.mark.parametrize("level", ["all", "disable"])
def test_the_converted_file_answers_as_the_torch_model(exported, ort_folders: dict[str, Path], level: str) -> None:
    file = ort_folders[level] / f"{exported.file.stem}.ort"
    assert file.read_bytes()[4:8] == b"ORTM"  # the format's file identifier: no ONNX file under another name
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for case in exported.cases:
        (logits,) = session.run(["logits"], case.feed)
        np.testing.assert_allclose(logits, case.expected, rtol=0, atol=1e-3, err_msg=str(case), strict=True)


def test_without_optimisation_the_converted_file_stays_small(exported, ort_folders: dict[str, Path]) -> None:
    """Folding constants writes the noise out for every layer; a device short of space does without."""
    unfolded = (ort_folders["disable"] / f"{exported.file.stem}.ort").stat().st_size
    assert unfolded < exported.file.stat().st_size + 100_000  # names and types of the graph's values
