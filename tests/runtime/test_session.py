"""Session: stock onnxruntime's answers, clear refusals, few specialised networks, many threads."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from deploytool.errors import ArtefactError, InputError
from deploytool.runtime import Session, specialize
from deploytool.runtime import session as session_module
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.session import open_session

Array = np.ndarray[Any, Any]


def pictures(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((n, 1, 8, 8), np.float32)


def stock(file: Path, images: Array, lam: float | None = None, threshold: float | None = None) -> Array:
    """Logits by onnxruntime as it comes, on the graph as it is stored."""
    model = onnx.load(str(file))
    for tensor in model.graph.initializer:
        if tensor.name == "lambda_threshold" and threshold is not None:
            tensor.CopyFrom(numpy_helper.from_array(np.array(threshold, np.float32), tensor.name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"image": images} if lam is None else {"image": images, "lambda": np.array(lam, np.float32)}
    return session.run(["logits"], feed)[0]


@pytest.fixture(scope="module")
def session(trained_file: Path) -> Session:
    return Session(trained_file, threads=1)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The lambdas that networks were specialised for, in order."""
    lambdas: list[float] = []
    real: Callable[..., onnx.ModelProto] = session_module.specialized_model

    def counting(artefact: Any, lam: float, *knobs: float | None) -> onnx.ModelProto:
        lambdas.append(lam)
        return real(artefact, lam, *knobs)

    monkeypatch.setattr(session_module, "specialized_model", counting)
    return lambdas


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_answers_are_those_of_stock_onnxruntime(lam: float, n: int, session: Session, trained_file: Path) -> None:
    images = pictures(n)
    want = stock(trained_file, images, lam)
    for got in (session(images, lam), session.generic(images, lam)):
        assert got.shape == (n, 10) and got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_a_plain_file_answers_without_lambda(plain_file: Path) -> None:
    session, images = Session(plain_file), pictures(3)
    want = stock(plain_file, images)
    np.testing.assert_allclose(session(images), want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(session.generic(images, None), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("lam", [0.2, 0.5, 0.7])
def test_the_threshold_can_be_replaced(lam: float, threshold: float, trained_file: Path) -> None:
    session, images = Session(trained_file, threads=1, lambda_threshold=threshold), pictures(4)
    want = stock(trained_file, images, lam, threshold)
    np.testing.assert_allclose(session(images, lam), want, rtol=0, atol=1e-4)
    np.testing.assert_allclose(session.generic(images, lam), want, rtol=0, atol=1e-4)


def test_the_two_thresholds_answer_differently(trained_file: Path) -> None:
    """At lambda 0.3: adversarial statistics and noise 0.3, or clean statistics and noise 0.6."""
    answers = [Session(trained_file, lambda_threshold=t)(pictures(4), 0.3) for t in (0.0, 0.5)]
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


@pytest.mark.parametrize("threshold", [0.3, 1.0, float("nan")])
def test_another_threshold_is_refused(threshold: float, trained_file: Path) -> None:
    with pytest.raises(InputError, match="threshold"):
        Session(trained_file, lambda_threshold=threshold)


def test_a_threshold_is_refused_where_there_is_none(trained_interpolate_file: Path, plain_file: Path) -> None:
    for file in (trained_interpolate_file, plain_file):
        with pytest.raises(InputError, match="no lambda threshold"):
            Session(file, lambda_threshold=0.5)


def test_images_of_one_batch_do_not_see_each_other(session: Session) -> None:
    images = pictures(7)
    singles = np.concatenate([session(images[i : i + 1], 0.3) for i in range(7)])
    np.testing.assert_allclose(session(images, 0.3), singles, rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(order=st.permutations(range(5)), lam=st.sampled_from([0.0, 0.3, 1.0]))
def test_order_of_images_is_order_of_answers(order: list[int], lam: float, session: Session) -> None:
    images = pictures(5)
    np.testing.assert_allclose(session(images[order], lam), session(images, lam)[order], rtol=0, atol=1e-5)


def test_memory_layout_does_not_matter(session: Session) -> None:
    images = pictures(4)
    want = session(images, 0.3)
    wide = np.zeros((4, 1, 8, 16), np.float32)
    wide[..., ::2] = images
    for same in (np.asfortranarray(images), wide[..., ::2], images[::-1].copy()[::-1]):
        np.testing.assert_array_equal(session(same, 0.3), want)


def test_the_image_is_not_changed_and_may_be_read_only(session: Session) -> None:
    images = pictures(2)
    images.flags.writeable = False
    before = images.copy()
    session(images, 0.3)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(
    "shape", [(8, 8), (1, 8, 8), (0, 1, 8, 8), (1, 3, 8, 8), (1, 1, 8, 9), (1, 1, 9, 8), (1, 1, 1, 8, 8), ()]
)
def test_a_wrong_shape_is_refused(shape: tuple[int, ...], session: Session) -> None:
    with pytest.raises(InputError, match=r"expected \(N, 1, 8, 8\) float32") as caught:
        session(np.zeros(shape, np.float32), 0.3)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float64", "float16", "bool", "complex64", ">f4", "object", "U1"])
def test_a_wrong_dtype_is_refused(dtype: str, session: Session) -> None:
    with pytest.raises(InputError, match=r"dtype .*expected \(N, 1, 8, 8\) float32"):
        session(np.zeros((1, 1, 8, 8), dtype), 0.3)


def test_bytes_are_advised_to_be_divided(session: Session) -> None:
    with pytest.raises(InputError, match="divide by 255"):
        session(np.zeros((1, 1, 8, 8), np.uint8), 0.3)


def test_what_is_no_array_is_refused(session: Session) -> None:
    for image in ([[0.0]], None, "image", b"", 0.5):
        with pytest.raises(InputError, match=f"image is a {type(image).__name__}"):
            session(image, 0.3)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.001, 1.001, 255.0, np.nan, np.inf, -np.inf])
def test_one_value_out_of_range_is_refused(value: float, session: Session) -> None:
    images = pictures(3)
    images[1, 0, 3, 5] = value
    for call in (session, session.generic):
        with pytest.raises(InputError, match=r"expected .* in \[0, 1\]"):
            call(images, 0.3)


def test_the_ends_of_the_range_are_accepted(session: Session) -> None:
    for value in (0.0, -0.0, 1.0):
        assert np.isfinite(session(np.full((1, 1, 8, 8), value, np.float32), 0.3)).all()


@pytest.mark.parametrize("lam", [-0.01, 1.01, float("nan"), float("inf"), "much", [0.1, 0.2]])
def test_a_lambda_out_of_range_is_refused(lam: Any, session: Session) -> None:
    for call in (session, session.generic):
        with pytest.raises(InputError, match=r"lambda \(=.*\[0, 1\]"):
            call(pictures(1), lam)


def test_a_missing_lambda_is_asked_for(session: Session) -> None:
    for call in (session, lambda image: session.generic(image, None)):
        with pytest.raises(InputError, match=r"needs a lambda in \[0, 1\]"):
            call(pictures(1))


@pytest.mark.parametrize("lam", [0.0, 0.5, float("nan")])
def test_a_lambda_given_to_a_plain_file_is_refused(lam: float, plain_file: Path) -> None:
    with pytest.raises(InputError, match="is plain; leave it out"):
        Session(plain_file)(pictures(1), lam)


def test_a_specialised_file_takes_its_own_lambda_or_none(trained_file: Path, tmp_path: Path) -> None:
    specialize(trained_file, 0.3, tmp_path / "plain.onnx")
    session = Session(tmp_path / "plain.onnx")
    np.testing.assert_array_equal(session(pictures(2), 0.3), session(pictures(2)))
    with pytest.raises(InputError, match=r"specialised for 0\.3; leave it out"):
        session(pictures(2), 0.4)


def test_one_lambda_is_specialised_once(built: list[float], trained_file: Path) -> None:
    session = Session(trained_file, threads=1)
    assert built == []
    for lam in (0.3, 0.3, np.float64(0.3), 0.3):
        session(pictures(1), lam)
    assert built == [0.3]


def test_the_generic_graph_specialises_nothing(built: list[float], trained_file: Path) -> None:
    Session(trained_file, threads=1).generic(pictures(1), 0.3)
    assert built == []


def test_the_least_recently_used_network_goes_first(built: list[float], trained_file: Path) -> None:
    session = Session(trained_file, threads=1, keep=2)
    for lam in (0.1, 0.2, 0.1, 0.3):  # 0.3 displaces 0.2, which has waited longer than 0.1
        session(pictures(1), lam)
    assert built == [0.1, 0.2, 0.3]
    session(pictures(1), 0.1)
    assert built == [0.1, 0.2, 0.3]
    session(pictures(1), 0.2)
    assert built == [0.1, 0.2, 0.3, 0.2]


def test_keep_one_and_the_default_of_four(built: list[float], trained_file: Path) -> None:
    one, four = Session(trained_file, threads=1, keep=1), Session(trained_file, threads=1)
    for lam in (0.1, 0.2, 0.1):
        one(pictures(1), lam)
    assert built == [0.1, 0.2, 0.1]
    built.clear()
    for lam in (0.1, 0.2, 0.3, 0.4) * 2:
        four(pictures(1), lam)
    assert built == [0.1, 0.2, 0.3, 0.4]
    four(pictures(1), 0.5)
    four(pictures(1), 0.1)
    assert built == [0.1, 0.2, 0.3, 0.4, 0.5, 0.1]


@pytest.mark.parametrize("arguments", [{"keep": 0}, {"keep": -1}, {"threads": 0}, {"threads": -1}, {"threads": 1025}])
def test_keep_and_threads_have_bounds(arguments: dict[str, int], trained_file: Path) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        Session(trained_file, **arguments)  # type: ignore[arg-type]


def test_eight_threads_get_the_answers_of_one(built: list[float], trained_file: Path) -> None:
    lambdas = [0.0, 0.25, 0.5, 0.75, 1.0]
    images = pictures(2)
    alone = Session(trained_file, threads=1, keep=5)
    want = {lam: alone(images, lam) for lam in lambdas}
    built.clear()
    shared = Session(trained_file, threads=1, keep=2)  # fewer than lambdas: networks come and go under way

    def work(seed: int) -> list[tuple[float, Array]]:
        order = np.random.default_rng(seed).choice(lambdas, 12)
        return [(float(lam), (shared.generic if i % 4 == 3 else shared)(images, lam)) for i, lam in enumerate(order)]

    with ThreadPoolExecutor(8) as pool:
        answers = [pair for pairs in pool.map(work, range(8)) for pair in pairs]
    assert len(answers) == 96
    for lam, got in answers:
        np.testing.assert_allclose(got, want[lam], rtol=0, atol=1e-4)


def test_eight_threads_specialise_one_lambda_once(built: list[float], trained_file: Path) -> None:
    session, images = Session(trained_file, threads=1), pictures(1)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: session(images, 0.3), range(16)))
    assert built == [0.3]
    for got in answers:
        np.testing.assert_array_equal(got, answers[0])


def test_an_artefact_already_read_is_taken(trained_file: Path) -> None:
    artefact = read_artefact(trained_file)
    session = Session(artefact)
    assert session.metadata is artefact.metadata
    before = artefact.model.SerializeToString()
    Session(artefact, lambda_threshold=0.5).generic(pictures(1), 0.3)
    session(pictures(1), 0.3)
    assert artefact.model.SerializeToString() == before


def test_a_graph_that_onnxruntime_refuses_is_one_quiet_line(tmp_path: Path, plain_file: Path) -> None:
    model = onnx.load(str(plain_file))
    model.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match=r"x\.onnx is refused by onnxruntime") as caught:
        Session(tmp_path / "x.onnx")
    assert "\n" not in str(caught.value)


def test_names_that_are_no_utf8_print_nothing(capfd: pytest.CaptureFixture[str], plain_file: Path) -> None:
    """Onnxruntime would announce a second try on standard output, where the command line prints JSON."""
    field = b"\x22\x04"  # NodeProto.op_type, four bytes long
    data = plain_file.read_bytes()
    assert field + b"Relu" in data
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(ArtefactError):
        open_session(data.replace(field + b"Relu", field + b"\xff\xffxx"), 1, "x.onnx")
    assert printed.getvalue() == "" and capfd.readouterr() == ("", "")


def test_a_graph_that_fails_on_its_input_is_an_artefact_error(tmp_path: Path, plain_file: Path) -> None:
    model = onnx.load(str(plain_file))
    model.graph.input.append(onnx.helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, [1]))
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match=r"x\.onnx fails in onnxruntime.*second"):
        Session(tmp_path / "x.onnx")(pictures(1))


def test_fewer_class_names_than_logits_are_an_artefact_error(tmp_path: Path, plain_file: Path) -> None:
    model = onnx.load(str(plain_file))
    properties = {p.key: p.value for p in model.metadata_props} | {"deploytool.classes": '["a", "b"]'}
    onnx.helper.set_model_props(model, properties)
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match="export it again"):
        Session(tmp_path / "x.onnx")(pictures(1))
