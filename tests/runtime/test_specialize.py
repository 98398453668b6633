"""`specialize`: the plain file of one lambda, or nothing at all."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from deploytool.errors import ArtefactError, InputError
from deploytool.runtime import specialize
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.specialize import too_far_off


@pytest.fixture
def source(trained_file: Path, tmp_path: Path) -> Path:
    """A copy alone in its folder, so that everything left behind shows."""
    (tmp_path / "digits.onnx").write_bytes(trained_file.read_bytes())
    return tmp_path / "digits.onnx"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("threshold", [None, 0.0, 0.5])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_the_file_answers_as_stock_onnxruntime_does_with_the_source(
    lam: float, threshold: float | None, source: Path
) -> None:
    out = source.with_name("plain.onnx")
    result = specialize(source, lam, out, threshold)
    assert set(result) == {"file", "size_mb", "precision", "max_abs_error"} and result["precision"] == "float32"
    assert result["file"] == str(out) and result["size_mb"] == pytest.approx(out.stat().st_size / 1e6, abs=1e-6)
    assert 0 <= result["max_abs_error"] <= 1e-4
    onnx.checker.check_model(str(out), full_check=True)

    model = onnx.load(str(source))
    for tensor in model.graph.initializer:
        if tensor.name == "lambda_threshold":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(threshold or 0, np.float32), tensor.name))
    generic = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    special = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(3).random((6, 1, 8, 8), np.float32)
    want = generic.run(["logits"], {"image": images, "lambda": np.array(lam, np.float32)})[0]
    np.testing.assert_allclose(special.run(["logits"], {"image": images})[0], want, rtol=0, atol=1e-4)


def test_the_file_knows_its_lambda(source: Path) -> None:
    metadata = read_artefact(specialize(source, 0.3, lambda_threshold=0.5)["file"]).metadata
    assert (metadata.lam, metadata.lambda_threshold, metadata.conditional) == (0.3, 0.5, False)
    assert metadata.classes == tuple("0123456789") and metadata.method == "float"


@pytest.mark.parametrize(("lam", "name"), [(0.3, "0.3"), (0, "0"), (1.0, "1"), (0.125, "0.125")])
def test_the_default_name_is_beside_the_source(lam: float, name: str, source: Path) -> None:
    assert specialize(source, lam)["file"] == str(source.with_name(f"digits-lambda-{name}.onnx"))
    assert names(source.parent) == [f"digits-lambda-{name}.onnx", "digits.onnx"]


def test_made_twice_the_file_is_the_same(source: Path) -> None:
    once, again = (Path(specialize(source, 0.3, source.with_name(name))["file"]) for name in ("a.onnx", "b.onnx"))
    assert once.read_bytes() == again.read_bytes()


def test_a_folder_is_made_and_an_older_file_replaced(source: Path) -> None:
    out = source.parent / "deep" / "down" / "plain.onnx"
    specialize(source, 0.1, out)
    first = out.read_bytes()
    specialize(source, 0.9, out)
    assert out.read_bytes() != first and read_artefact(out).metadata.lam == 0.9
    assert names(out.parent) == ["plain.onnx"]


@pytest.mark.parametrize("kind", ["same", "relative", "link", "hard link"])
def test_the_source_is_never_overwritten(kind: str, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source.read_bytes()
    monkeypatch.chdir(source.parent)
    out = {"same": source, "relative": Path("digits.onnx")}.get(kind, source.with_name("link.onnx"))
    if kind == "link":
        out.symlink_to(source)
    if kind == "hard link":
        os.link(source, out)
    with pytest.raises(InputError, match="is the file to specialise"):
        specialize(source, 0.3, out)
    assert source.read_bytes() == before


def test_a_plain_file_is_refused(plain_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="plain model already"):
        specialize(plain_file, 0.3, tmp_path / "x.onnx")
    assert names(tmp_path) == []


def test_a_specialised_file_is_refused(source: Path) -> None:
    plain = specialize(source, 0.3)["file"]
    with pytest.raises(InputError, match="plain model already"):
        specialize(plain, 0.3, source.with_name("again.onnx"))
    assert "again.onnx" not in names(source.parent)


@pytest.mark.parametrize("lam", [-0.5, 2, float("nan")])
def test_a_lambda_out_of_range_leaves_nothing(lam: float, source: Path) -> None:
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        specialize(source, lam)
    assert names(source.parent) == ["digits.onnx"]


@pytest.mark.parametrize("threshold", [0.25, float("nan")])
def test_a_threshold_out_of_range_leaves_nothing(threshold: float, source: Path) -> None:
    with pytest.raises(InputError, match="threshold"):
        specialize(source, 0.3, lambda_threshold=threshold)
    assert names(source.parent) == ["digits.onnx"]


def test_a_file_that_is_no_model_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(ArtefactError):
        specialize(tmp_path / "x.onnx", 0.3)
    assert names(tmp_path) == ["x.onnx"]


def test_a_graph_that_fails_after_specialising_leaves_nothing(source: Path) -> None:
    model = onnx.load(str(source))
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "NoSuchOperator"
    source.write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match="damaged graph .operator .*NoSuchOperator"):
        specialize(source, 0.3)
    assert names(source.parent) == ["digits.onnx"]


def test_a_full_disk_leaves_the_older_file(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = source.with_name("plain.onnx")
    out.write_bytes(b"older")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        specialize(source, 0.3, out)
    assert names(source.parent) == ["digits.onnx", "plain.onnx"] and out.read_bytes() == b"older"


def test_what_is_too_far_off_by_hand() -> None:
    """Float32: 1e-3. INT8: a quarter of the range, of probabilities as log-odds, which is 1 at least."""
    logits = np.array([[0, 8.0]], np.float32)
    sure, half = np.array([[1e-9, 1 - 1e-7]]), np.array([[0.5, 0.5]])

    def judged(logit_error: float, want: np.ndarray, got: np.ndarray, *, int8: bool) -> str | None:
        answers = {"logits": logits + np.float32(logit_error), "reasoning": got}
        off = too_far_off(answers, {"logits": logits, "reasoning": want}, int8=int8)
        return off and off.output

    assert judged(9e-4, sure, sure, int8=False) is None
    assert judged(2e-3, sure, sure, int8=False) == "logits"
    assert judged(0, half, half + 2e-3, int8=False) == "reasoning"
    assert judged(1.9, sure, sure, int8=True) is None and judged(2.1, sure, sure, int8=True) == "logits"
    assert judged(0, half, np.array([[0.55, 0.5]]), int8=True) is None  # log(0.55 / 0.45) = 0.20
    assert judged(0, half, np.array([[0.57, 0.5]]), int8=True) == "reasoning"  # 0.28
    assert judged(0, sure, np.array([[1e-5, 1 - 1e-5]]), int8=True) is None  # as sure as before
    assert judged(0, sure, sure[:, ::-1], int8=True) == "reasoning"
    assert judged(0, half, half * np.nan, int8=True) == "reasoning"
    assert judged(np.nan, half, half, int8=False) == "logits"
