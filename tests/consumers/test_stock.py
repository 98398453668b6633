"""The file's very bytes in stock onnxruntime, with nothing of deploytool in between."""

import itertools

import numpy as np
import onnxruntime
import pytest


def test_stock_onnxruntime_answers_as_the_torch_model(exported) -> None:
    session = onnxruntime.InferenceSession(exported.file.read_bytes(), providers=["CPUExecutionProvider"])
    for case in exported.cases:
        (logits,) = session.run(["logits"], case.feed)
        np.testing.assert_allclose(logits, case.expected, rtol=0, atol=1e-3, err_msg=str(case), strict=True)


def test_the_file_declares_what_a_consumer_feeds(exported) -> None:
    """A consumer in another language knows the file by names, types and ranks alone."""
    session = onnxruntime.InferenceSession(exported.file, providers=["CPUExecutionProvider"])
    declared = {value.name: (value.type, len(value.shape)) for value in session.get_inputs()}
    assert declared == {name: ("tensor(float)", value.ndim) for name, value in exported.cases[0].feed.items()}
    assert [value.name for value in session.get_outputs()] == ["logits"]


@pytest.mark.parametrize("batch", [1, 7])
def test_the_cases_tell_every_lambda_and_width_apart(exported, batch: int) -> None:
    """A consumer that ignored an input would be off by ten tolerances in some case at least."""
    answers = [case.expected for case in exported.cases if len(case.expected) == batch]
    assert len(answers) in (5, 10)
    for one, other in itertools.combinations(answers, 2):
        assert np.abs(one - other).max() > 1e-2
