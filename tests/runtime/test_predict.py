"""`predict`: class names and probabilities, in order, in batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from deploytool.errors import ArtefactError, InputError
from deploytool.runtime import Session, specialize
from deploytool.runtime.predict import predict, softmax

Array = np.ndarray[Any, Any]


def pixels(n: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """130 digits-sized grey pictures: two batches of 64 and one of 2."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{index:03}.png" for index in range(130)]
    for path, picture in zip(paths, pixels(130), strict=True):
        Image.fromarray(picture).save(path)
    return paths


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 6)),
        elements=st.floats(-(2.0**14), 2.0**14, width=32),
    )
)
def test_softmax_gives_probabilities_in_the_order_of_the_logits(logits: Array) -> None:
    probabilities = softmax(logits)
    assert probabilities.dtype == np.float64 and probabilities.shape == logits.shape
    assert (probabilities >= 0).all() and (probabilities <= 1).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    for row, values in zip(probabilities, logits, strict=True):
        assert (np.diff(row[np.argsort(values)]) >= 0).all()


def test_softmax_of_small_numbers_by_hand() -> None:
    np.testing.assert_allclose(softmax(np.array([[0, np.log(3)]], np.float32)), [[0.25, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(softmax(np.array([[5, 5, 5, 5]], np.float32)), [[0.25] * 4])
    np.testing.assert_allclose(softmax(np.array([[3e38, -3e38]], np.float32)), [[1, 0]])


def test_many_pictures_are_answered_in_order_as_by_session(trained_file: Path, pictures: list[Path]) -> None:
    predictions = predict(trained_file, pictures, lam=0.3, top=10, threads=1)
    logits = Session(trained_file, threads=1)((pixels(130)[:, None] / np.float32(255)).astype(np.float32), 0.3)
    exponentials = np.exp(logits.astype(np.float64))
    want = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert [p["image"] for p in predictions] == [str(path) for path in pictures]
    for prediction, row in zip(predictions, want, strict=True):
        got = {entry["class"]: entry["probability"] for entry in prediction["top"]}
        assert list(got) == [str(i) for i in sorted(range(10), key=lambda i: -got[str(i)])]
        np.testing.assert_allclose([got[str(i)] for i in range(10)], row, atol=1e-5)
        assert sum(got.values()) == pytest.approx(1)
        assert prediction["lambda"] == 0.3


@pytest.mark.parametrize("top", [1, 3, 10, 99])
def test_top_lists_the_most_probable_classes(top: int, trained_file: Path, pictures: list[Path]) -> None:
    for prediction in predict(trained_file, pictures[:2], lam=0.0, top=top, threads=1):
        assert set(prediction) == {"image", "class", "probability", "top", "lambda"}
        ranked = prediction["top"]
        assert len(ranked) == min(top, 10) and set(ranked[0]) == {"class", "probability"}
        assert (prediction["class"], prediction["probability"]) == (ranked[0]["class"], ranked[0]["probability"])
        probabilities = [entry["probability"] for entry in ranked]
        assert probabilities == sorted(probabilities, reverse=True) and 0 <= min(probabilities) <= 1


@pytest.mark.parametrize("top", [0, -1])
def test_less_than_one_class_is_refused(top: int, trained_file: Path, pictures: list[Path]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        predict(trained_file, pictures[:1], lam=0.0, top=top)


def test_no_pictures_give_no_predictions(trained_file: Path) -> None:
    assert predict(trained_file, [], lam=0.3) == []


def test_a_plain_file_has_no_lambda_and_a_specialised_one_its_own(
    plain_file: Path, trained_file: Path, pictures: list[Path], tmp_path: Path
) -> None:
    assert predict(plain_file, pictures[:1])[0]["lambda"] is None
    specialize(trained_file, 0.25, tmp_path / "plain.onnx")
    assert predict(tmp_path / "plain.onnx", pictures[:1])[0]["lambda"] == 0.25


def test_the_threshold_is_passed_on(trained_file: Path, pictures: list[Path]) -> None:
    for threshold in (0.0, 0.5):
        session = Session(trained_file, lambda_threshold=threshold)
        logits = session((pixels(1)[:, None] / np.float32(255)).astype(np.float32), 0.3)
        prediction = predict(trained_file, pictures[:1], lam=0.3, lambda_threshold=threshold)[0]
        assert prediction["class"] == str(int(logits.argmax()))
        assert prediction["probability"] == pytest.approx(float(1 / np.exp(logits - logits.max()).sum()), abs=1e-5)


def test_a_colour_model_reads_a_grey_picture(resnet34_file: Path, pictures: list[Path]) -> None:
    prediction = predict(resnet34_file, pictures[:1], lam=0.0, top=10, threads=1)[0]
    assert sum(entry["probability"] for entry in prediction["top"]) == pytest.approx(1)


@pytest.mark.parametrize("lam", [None, 1.5, float("nan")])
def test_a_lambda_that_is_missing_or_out_of_range_is_refused(
    lam: float | None, trained_file: Path, pictures: list[Path]
) -> None:
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        predict(trained_file, pictures[:1], lam=lam)


def test_lambda_is_checked_before_pictures_are_read(plain_file: Path) -> None:
    with pytest.raises(InputError, match="leave it out"):
        predict(plain_file, ["absent.png"], lam=0.5)


def test_a_broken_picture_is_named(trained_file: Path, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("text")
    with pytest.raises(InputError, match=r"broken\.png"):
        predict(trained_file, [*pictures[:2], tmp_path / "broken.png"], lam=0.3)


def test_a_model_that_is_none_is_refused(pictures: list[Path]) -> None:
    with pytest.raises(ArtefactError):
        predict(pictures[0], pictures[:1], lam=0.3)
