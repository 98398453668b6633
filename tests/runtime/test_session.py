"""Session: stock onnxruntime's answers, clear refusals, few specialised networks, many threads."""

import io
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from deploytool.errors import ArtefactError, InputError
from deploytool.export.artefact import write_artefact
from deploytool.models.factory import recipe_setting
from deploytool.runtime import Session, specialize
from deploytool.runtime import session as session_module
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.graph import assemble
from deploytool.runtime.network import open_session
from deploytool.runtime.session import Counters, SpecializationWarning
from deploytool.training.run import Run

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


@pytest.fixture(scope="module", params=["own sessions", "one shared session"])
def session(request: pytest.FixtureRequest, trained_file: Path) -> Iterator[Session]:
    """Specialised before each answer; networks as small as these share a session only if they are told to."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "one shared session":
            patch.setattr(session_module, "SHARED_FROM_BYTES", 0)
        yield Session(trained_file, threads=1, background=False)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small networks share a session too."""
    monkeypatch.setattr(session_module, "SHARED_FROM_BYTES", 0)


def settled(session: Session) -> Counters:
    """Wait until nothing is specialised in the background any more."""
    deadline = time.monotonic() + 60
    while session.counters().waiting:
        assert time.monotonic() < deadline, "specialising does not end"
        time.sleep(0.005)
    return session.counters()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The lambdas that networks were specialised for, in order."""
    lambdas: list[float] = []
    real = session_module.specialized_graph

    def counting(artefact: Any, lam: float, *rest: Any) -> Any:
        lambdas.append(round(lam, 6))
        return real(artefact, lam, *rest)

    monkeypatch.setattr(session_module, "specialized_graph", counting)
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


@pytest.mark.parametrize("lam", [-0.01, 1.01, float("nan"), float("inf"), "much"])
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
    for lam in (0.3, np.float32(0.3), [0.3, 0.3], np.full(2, 0.3, np.float32)):
        np.testing.assert_array_equal(session(pictures(2), lam), session(pictures(2)))
    with pytest.raises(InputError, match=r"specialised for 0\.3; leave it out"):
        session(pictures(2), 0.4)


def test_one_lambda_is_specialised_once(built: list[float], trained_file: Path) -> None:
    session = Session(trained_file, threads=1, background=False)
    assert built == []
    for lam in (0.3, 0.3, np.float64(0.3), 0.3 + 1e-10):  # the last is the same float32
        session(pictures(1), lam)
    assert built == [0.3]


def test_the_generic_graph_specialises_nothing(built: list[float], trained_file: Path) -> None:
    session = Session(trained_file, threads=1)
    session.generic(pictures(1), 0.3)
    assert built == [] and session.counters().waiting == 0


def megabytes(session: Session) -> float:
    """What one network of a file holds."""
    session(pictures(1), 0.9)
    return session.counters().cached_mb


def test_the_least_recently_used_network_goes_first(built: list[float], trained_file: Path) -> None:
    one = megabytes(Session(trained_file, threads=1, background=False))
    session = Session(trained_file, threads=1, cache_mb=2.5 * one, background=False)
    built.clear()
    for lam in (0.1, 0.2, 0.1, 0.3):  # 0.3 displaces 0.2, which has waited longer than 0.1
        session(pictures(1), lam)
    assert built == [0.1, 0.2, 0.3]
    session(pictures(1), 0.1)
    assert built == [0.1, 0.2, 0.3]
    session(pictures(1), 0.2)
    assert built == [0.1, 0.2, 0.3, 0.2]
    counters = session.counters()
    assert (counters.built, counters.evicted, counters.cached) == (4, 2, 2)
    assert counters.cached_mb <= 2.5 * one


def test_a_network_larger_than_the_cache_is_kept_alone(built: list[float], trained_file: Path) -> None:
    session = Session(trained_file, threads=1, cache_mb=1e-6, background=False)
    for lam in (0.1, 0.1, 0.2, 0.1):
        session(pictures(1), lam)
    assert built == [0.1, 0.2, 0.1] and session.counters().cached == 1


@pytest.mark.parametrize(
    "arguments",
    [
        *({"cache_mb": value} for value in (0, -1, float("inf"), float("nan"), "5")),
        *({"threads": value} for value in (0, 1025, 1.5, "2")),
    ],
)
def test_cache_and_threads_have_bounds(arguments: dict[str, Any], trained_file: Path) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        Session(trained_file, **arguments)


def test_a_new_setting_is_answered_at_once_and_specialised_behind(trained_file: Path) -> None:
    session, images = Session(trained_file, threads=1), pictures(3)
    first = session(images, 0.3)
    np.testing.assert_array_equal(first, session.generic(images, 0.3))
    assert (session.counters().generic, session.counters().specialized) == (2, 0)
    assert settled(session).built == 1
    then = session(images, 0.3)
    assert session.counters().specialized == 1
    alone = Session(trained_file, threads=1, background=False)
    np.testing.assert_array_equal(then, alone(images, 0.3))
    np.testing.assert_allclose(then, first, rtol=0, atol=1e-4)


def test_the_swap_waits_for_nobody(monkeypatch: pytest.MonkeyPatch, trained_file: Path) -> None:
    """While a network is being made, calls for it and for others are answered."""
    release, real = threading.Event(), session_module.specialized_graph

    def slow(*arguments: Any) -> Any:
        assert release.wait(60)
        return real(*arguments)

    session, images = Session(trained_file, threads=1), pictures(1)
    session.warm([0.9])
    monkeypatch.setattr(session_module, "specialized_graph", slow)
    for lam in (0.3, 0.3, 0.4, 0.9):
        assert np.isfinite(session(images, lam)).all()
    counters = session.counters()
    assert (counters.generic, counters.specialized, counters.built) == (3, 1, 1)
    release.set()
    assert settled(session).built == 3


def test_of_many_settings_passed_by_the_latest_are_made(
    monkeypatch: pytest.MonkeyPatch, built: list[float], trained_file: Path
) -> None:
    """As when a person moves a slider: one network is under way, eight wait, the rest were passed by."""
    release, real = threading.Event(), session_module.specialized_graph

    def slow(*arguments: Any) -> Any:
        assert release.wait(60)
        return real(*arguments)

    session = Session(trained_file, threads=1)
    monkeypatch.setattr(session_module, "specialized_graph", slow)
    for step in range(31):
        session(pictures(1), step / 50)
        while step == 0 and session.counters().waiting > 1:
            time.sleep(0.001)
    release.set()
    settled(session)
    assert sorted(built[1:], reverse=True) == built[1:]  # the newest first
    assert set(built) >= {step / 50 for step in range(23, 31)} and len(built) <= 10


def test_warm_makes_every_pair_now(built: list[float], trained_file: Path) -> None:
    session = Session(trained_file, threads=1)
    session.warm([0.1, 0.2, 0.1])
    session.warm(0.2)
    assert built == [0.1, 0.2]
    session(pictures(1), 0.2)
    assert (session.counters().generic, session.counters().specialized) == (0, 1)


def test_warm_says_when_the_cache_is_too_small(trained_file: Path) -> None:
    session = Session(trained_file, threads=1, cache_mb=1e-6)
    with pytest.raises(InputError, match=r"cache_mb \(=1e-06\) holds 1 of these 3 settings"):
        session.warm([0, 0.5, 1])


def test_a_failure_behind_is_said_once_and_the_generic_graph_goes_on(
    monkeypatch: pytest.MonkeyPatch, trained_file: Path
) -> None:
    def full(*arguments: Any) -> Any:
        raise MemoryError

    session, images = Session(trained_file, threads=1), pictures(2)
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        patch.setattr(session_module, "specialized_graph", full)
        for lam in (0.3, 0.3, 0.4, 0.4, 0.3):
            np.testing.assert_allclose(session(images, lam), stock(trained_file, images, lam), rtol=0, atol=1e-4)
            settled(session)
    assert [warning.category for warning in said] == [SpecializationWarning]
    assert "lambda 0.3" in str(said[0].message) and "MemoryError" in str(said[0].message)
    assert __file__ == said[0].filename  # it points at the caller's line
    counters = session.counters()
    assert (counters.failed, counters.built, counters.generic) == (1, 0, 5)  # not tried again at every call
    session.warm([0.3])  # memory is there again
    session(images, 0.3)
    assert session.counters().specialized == 1


def test_after_a_while_a_failed_setting_is_tried_again(monkeypatch: pytest.MonkeyPatch, trained_file: Path) -> None:
    session = Session(trained_file, threads=1)
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(session_module, "specialized_graph", lambda *arguments: 1 / 0)
        session(pictures(1), 0.3)
        assert settled(session).failed == 1
    monkeypatch.setattr(session_module, "RETRY_S", 0.0)
    with pytest.warns(SpecializationWarning):
        session(pictures(1), 0.3)
    assert settled(session).built == 1


def test_a_failure_is_said_even_if_no_setting_comes_twice(monkeypatch: pytest.MonkeyPatch, trained_file: Path) -> None:
    session = Session(trained_file, threads=1)
    monkeypatch.setattr(session_module, "specialized_graph", lambda *arguments: 1 / 0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(6):
            session(pictures(1), step / 10)
            settled(session)
    assert len(said) == 1 and "lambda 0.0, width 1 failed" in str(said[0].message)
    assert session.counters().failed == 1


def test_where_no_thread_can_be_started_the_generic_graph_answers(
    monkeypatch: pytest.MonkeyPatch, trained_file: Path
) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    session = Session(trained_file, threads=1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        with pytest.warns(SpecializationWarning, match="can't start new thread"):
            assert session(pictures(1), 0.3).shape == (1, 10)
        assert session.counters().waiting == 0
    monkeypatch.setattr(session_module, "RETRY_S", 0.0)
    session(pictures(1), 0.3)
    assert settled(session).built == 1


def test_a_folder_for_temporary_files_is_no_need(
    shared: None, monkeypatch: pytest.MonkeyPatch, trained_file: Path, tmp_path: Path
) -> None:
    want = Session(trained_file, threads=1, background=False)(pictures(2), 0.3)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    got = Session(trained_file, threads=1, background=False)(pictures(2), 0.3)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_a_failure_in_front_is_raised(monkeypatch: pytest.MonkeyPatch, trained_file: Path) -> None:
    session = Session(trained_file, threads=1, background=False)
    with monkeypatch.context() as patch:
        patch.setattr(session_module, "specialized_graph", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session(pictures(1), 0.3)
        with pytest.raises(ZeroDivisionError):
            session.warm([0.3])
    assert session(pictures(1), 0.3).shape == (1, 10)


def test_one_lambda_for_each_image(session: Session) -> None:
    images, lams = pictures(7), np.array([0.1, 0.9, 0.1, 0.5, 0.9, 0.1, 0.0])
    want = np.concatenate([session(images[i : i + 1], float(lam)) for i, lam in enumerate(lams)])
    for each in (lams, lams.astype(np.float32), lams.tolist()):
        np.testing.assert_allclose(session(images, each), want, rtol=0, atol=1e-5)
    assert np.abs(want - session(images, 0.5)).max() > 1e-2  # lambda matters here


def test_images_of_one_lambda_are_answered_together(trained_file: Path) -> None:
    session = Session(trained_file, threads=1, background=False)
    session(pictures(6), [0.1, 0.2, 0.1, 0.2, 0.2, 0.1])
    assert session.counters().specialized == 2


@pytest.mark.parametrize(
    "lam", [[0.1], [0.1, 0.2], [[0.1, 0.2, 0.3]], [0.1, 0.2, 0.3, 0.4], [], [[0.1], [0.2, 0.3]], np.zeros((3, 1))]
)
def test_as_many_lambdas_as_images(lam: Any, session: Session) -> None:
    with pytest.raises(InputError, match=r"lambda has shape .*\(3,\) for these images"):
        session(pictures(3), lam)


@pytest.mark.parametrize("bad", [1.5, float("nan"), "x", None, [0.1]])
def test_every_lambda_of_a_batch_is_checked(bad: Any, session: Session) -> None:
    with pytest.raises(InputError, match="lambda"):
        session(pictures(3), [0.1, bad, 0.2])


def test_settings_whose_networks_are_equal_share_their_memory(shared: None, trained_run: Run, tmp_path: Path) -> None:
    """Without noise, a switch knows two networks: all lambdas above the threshold are one."""
    setting = replace(recipe_setting(trained_run.recipe), conditioning="switch", noise="none")
    data, images = trained_run.checkpoint.data, torch.rand(7, 1, 8, 8)
    file = tmp_path / "x.onnx"
    write_artefact(trained_run.model, trained_run.recipe, data, images, file, setting)
    session = Session(file, threads=1, background=False)
    session.warm([0.2])
    one = session.counters().cached_mb
    session.warm([0.4, 0.7, 1.0])
    assert session.counters().cached == 4 and session.counters().cached_mb == one
    session.warm([0.0])
    assert one < session.counters().cached_mb <= 2 * one


def test_shared_and_own_sessions_agree_to_rounding(
    monkeypatch: pytest.MonkeyPatch, trained_file: Path, wide_file: Path
) -> None:
    for file, widths in ((trained_file, (None,)), (wide_file, (0.5, 1.0))):
        own = Session(file, threads=1, background=False)
        with monkeypatch.context() as patch:
            patch.setattr(session_module, "SHARED_FROM_BYTES", 0)
            shared = Session(file, threads=1, background=False)
            for width in widths:
                for lam in (0.0, 0.3, 1.0):
                    got = shared(pictures(5), lam, width)
                    np.testing.assert_allclose(got, own(pictures(5), lam, width), rtol=0, atol=1e-5)
            assert shared._layouts and all(shared._layouts.values())


def test_every_width_answers_and_may_differ_by_image(wide_file: Path) -> None:
    session, images = Session(wide_file, threads=1, background=False), pictures(4)
    narrow, wide = session(images, 0.5, 0.5), session(images, 0.5)
    assert np.abs(narrow - wide).max() > 1e-3
    mixed = session(images, 0.5, [0.5, 1.0, 1.0, 0.5])
    np.testing.assert_allclose(mixed, np.stack([narrow[0], wide[1], wide[2], narrow[3]]), rtol=0, atol=1e-5)
    session.warm([0.1], [0.5, 1.0])
    assert session.counters().cached == 4
    for same in ("0.5", np.array(0.5), np.float32(0.5)):
        np.testing.assert_array_equal(session(images, 0.5, same), narrow)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"width \(=0\.7\) is not in .*0\.5, 1"):
        session(images, 0.5, 0.7)


def test_eight_threads_get_the_answers_of_one(trained_file: Path) -> None:
    lambdas = [0.0, 0.25, 0.5, 0.75, 1.0]
    images = pictures(2)
    alone = Session(trained_file, threads=1, background=False)
    want = {lam: alone(images, lam) for lam in lambdas}
    room = 2.5 * alone.counters().cached_mb / len(lambdas)  # for fewer than lambdas: networks come and go under way

    def work(session: Session, seed: int) -> list[tuple[float, Array]]:
        order = np.random.default_rng(seed).choice(lambdas, 12)
        return [(float(lam), (session.generic if i % 4 == 3 else session)(images, lam)) for i, lam in enumerate(order)]

    for background in (True, False):
        session = Session(trained_file, threads=1, cache_mb=room, background=background)
        with ThreadPoolExecutor(8) as pool:
            answers = [pair for pairs in pool.map(work, [session] * 8, range(8)) for pair in pairs]
        assert len(answers) == 96
        for lam, got in answers:
            np.testing.assert_allclose(got, want[lam], rtol=0, atol=1e-4)
        counters = settled(session)
        assert counters.generic + counters.specialized == 96 and counters.failed == 0


def test_threads_of_one_shared_session_keep_their_images_apart(shared: None, trained_file: Path) -> None:
    session = Session(trained_file, threads=1, background=False)
    batches = [pictures(1 + seed % 3, seed) for seed in range(64)]
    want = [session(batch, 0.3) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda batch: session(batch, 0.3), batches))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_an_answer_is_the_callers_own(session: Session) -> None:
    first = session(pictures(2), 0.3)
    before = first.copy()
    session(pictures(2, seed=1), 0.3)
    np.testing.assert_array_equal(first, before)


def test_eight_threads_specialise_one_lambda_once(built: list[float], trained_file: Path) -> None:
    session, images = Session(trained_file, threads=1, background=False), pictures(1)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: session(images, 0.3), range(16)))
    assert built == [0.3]
    for got in answers:
        np.testing.assert_array_equal(got, answers[0])


def test_a_program_that_ends_does_not_wait_for_settings_passed_by(trained_file: Path) -> None:
    code = (
        "import sys, numpy as np; from deploytool import Session; s = Session(sys.argv[1], threads=1);"
        "[s(np.zeros((1, 1, 8, 8), np.float32), i / 100) for i in range(100)]; print(s.counters().generic > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(trained_file)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "True", "")


def test_only_asked_outputs_are_computed(trained_file: Path, tmp_path: Path) -> None:
    """A second head that divides by zero: its infinity would be refused if it were computed."""
    model = onnx.load(str(trained_file))
    graph = model.graph
    graph.node.append(onnx.helper.make_node("GlobalAveragePool", ["image"], ["brightness"]))
    graph.node.append(onnx.helper.make_node("Div", ["brightness", "nothing"], ["second"]))
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))
    graph.output.append(onnx.helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, ["N", 1, 1, 1]))
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    for background in (True, False):
        session = Session(tmp_path / "x.onnx", threads=1, background=background)
        assert set(session.run(pictures(2), 0.3)) == {"logits"}
        both = Session(tmp_path / "x.onnx", threads=1, outputs=["logits", "second"], background=background)
        with pytest.raises(ArtefactError, match="second are NaN or infinite"):
            both.run(pictures(2), 0.3)
    with pytest.raises(InputError, match=r"name logits among its outputs"):
        Session(tmp_path / "x.onnx", threads=1, outputs="second")(pictures(1), 0.3)
    with pytest.raises(InputError, match=r"name logits among its outputs"):
        Session(tmp_path / "x.onnx", threads=1, outputs=["second"]).generic(pictures(1), 0.3)
    with pytest.raises(InputError, match=r"output 'cpl' is not in .*logits, second"):
        Session(tmp_path / "x.onnx", outputs=["cpl"])


def test_an_artefact_already_read_is_taken(trained_file: Path) -> None:
    artefact = read_artefact(trained_file)
    session = Session(artefact)
    assert session.metadata is artefact.metadata
    before = assemble(artefact.graph, artefact.properties).SerializeToString(deterministic=True)
    Session(artefact, lambda_threshold=0.5).generic(pictures(1), 0.3)
    session(pictures(1), 0.3)
    assert assemble(artefact.graph, artefact.properties).SerializeToString(deterministic=True) == before


def test_a_graph_that_onnxruntime_refuses_is_one_quiet_line(tmp_path: Path, plain_file: Path) -> None:
    model = onnx.load(str(plain_file))
    model.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match=r"x\.onnx: damaged graph \(operator .*NoSuchOperator") as caught:
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
