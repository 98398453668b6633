"""Adversarial examples on disk: what was saved is read and verified; anything else is one clear line."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploytool.attacks.acceptance import AcceptanceRule
from deploytool.attacks.consistent import Consistent
from deploytool.attacks.deepfool import DeepFool
from deploytool.attacks.pgd import Pgd
from deploytool.attacks.run import run_attack
from deploytool.attacks.store import load_adversarial, save_adversarial, verify
from deploytool.digests import file_digest, state_digest
from deploytool.errors import DataError, InputError

ATTACK = Pgd(0.1, 0.025, 7)


@pytest.fixture(scope="module")
def saved(plain_network, digits, tmp_path_factory) -> Path:
    image, label = digits[0][:60], digits[1][:60]
    path = tmp_path_factory.mktemp("adversarial") / "pgd.npz"
    result = run_attack(plain_network, image, label, ATTACK, seed=5, name="pgd-7")
    save_adversarial(path, result, image, label, state_digest(plain_network.state_dict()))
    return path


def test_what_was_saved_is_read(saved, plain_network, digits) -> None:
    found = load_adversarial(saved)
    result = run_attack(plain_network, digits[0][:60], digits[1][:60], ATTACK, seed=5)
    assert torch.equal(found.image, digits[0][:60]) and torch.equal(found.label, digits[1][:60])
    assert torch.equal(found.adversarial, result.image) and torch.equal(found.fooled, result.fooled)
    assert torch.equal(found.distance, result.distance) and found.target is None
    assert found.record["attack"] == "pgd-7" and found.record["seed"] == 5
    assert found.record["budget"]["steps"] == 7 and found.eps == 0.1 and found.norm == "linf"
    assert found.record["robust_accuracy"] == result.robust_accuracy()


def test_verification_holds_for_the_network_attacked(saved, plain_network) -> None:
    found = verify(saved, plain_network, state_digest(plain_network.state_dict()))
    assert found.holds and found.same_model is True and found.images == 60
    assert 0 < found.robust_accuracy == found.recorded_robust_accuracy < 1


def test_another_network_is_told_apart(saved, robust_network) -> None:
    found = verify(saved, robust_network, state_digest(robust_network.state_dict()))
    assert not found.holds and found.same_model is False
    assert found.no_longer_fooled > 0 and found.robust_accuracy > found.recorded_robust_accuracy
    assert verify(saved, robust_network).same_model is None


def test_smallest_perturbations_and_targets_are_verified_too(plain_network, digits, tmp_path) -> None:
    image, label = digits[0][:40], digits[1][:40]
    result = run_attack(plain_network, image, label, DeepFool(0.4))
    save_adversarial(tmp_path / "deepfool.npz", result, image, label, "digest")
    found = verify(tmp_path / "deepfool.npz", plain_network)
    assert found.holds and found.robust_accuracy == result.robust_accuracy() and found.outside_ball == 0
    target = (label + 1) % 10
    result = run_attack(plain_network, image, label, replace(ATTACK, targeted=True), target=target)
    save_adversarial(tmp_path / "targeted.npz", result, image, label, "digest")
    assert verify(tmp_path / "targeted.npz", plain_network).holds
    assert torch.equal(load_adversarial(tmp_path / "targeted.npz").target, target)


def test_examples_that_are_accepted_are_verified_by_the_rule(two_heads, tmp_path) -> None:
    network, vectors, image, label = two_heads
    strict, lenient = (AcceptanceRule(vectors, threshold) for threshold in (0.9, 0.5))
    path = tmp_path / "consistent.npz"
    result = run_attack(network, image, label, Consistent(0.12, steps=5, targets=3), rule=strict)
    save_adversarial(path, result, image, label, "digest")
    found = verify(path, network, rule=strict)
    assert found.holds and 0 < found.robust_accuracy == result.robust_accuracy() < 1
    assert load_adversarial(path).acceptance == strict.to_dict()
    assert verify(path, network, rule=lenient).newly_fooled > 0  # what 0.9 rejects, 0.5 lets through
    with pytest.raises(InputError, match="give the rule of acceptance"):
        verify(path, network)


def test_only_the_images_attacked_are_saved(plain_network, digits, tmp_path) -> None:
    image, label = digits[0][:4], digits[1][:4]
    result = run_attack(plain_network, image, label, ATTACK)
    with pytest.raises(InputError, match="they differ"):
        save_adversarial(tmp_path / "x.npz", result, image[:3], label[:3], "digest")
    assert list(tmp_path.iterdir()) == []


def changed(saved: Path, path: Path, **arrays: Any) -> Path:
    """The file with some arrays replaced, or left out where None."""
    with np.load(saved) as archive:
        whole = {**archive, **arrays}
    np.savez(path, **{name: array for name, array in whole.items() if array is not None})
    return path


def record_with(saved: Path, **values: Any) -> np.ndarray:
    record = load_adversarial(saved).record | values
    return np.frombuffer(json.dumps(record).encode(), np.uint8)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda a: {"adversarial": a["adversarial"] + np.float32(0.05)}, "outside_ball"),
        (lambda a: {"adversarial": a["adversarial"] - np.float32(1)}, "outside_unit"),
        (lambda a: {"distance": a["distance"] + np.float32(0.01)}, "wrong_distance"),
        (lambda a: {"adversarial": a["image"]}, "no_longer_fooled"),
        (lambda a: {"fooled": np.zeros_like(a["fooled"])}, "newly_fooled"),
    ],
)
def test_false_claims_are_counted(
    saved, plain_network, tmp_path, change: Callable[[Any], dict[str, Any]], field
) -> None:
    with np.load(saved) as archive:
        path = changed(saved, tmp_path / "x.npz", **change(archive))
    found = verify(path, plain_network)
    assert getattr(found, field) > 0 and not found.holds


def test_a_false_robust_accuracy_is_noticed(saved, plain_network, tmp_path) -> None:
    path = changed(saved, tmp_path / "x.npz", record=record_with(saved, robust_accuracy=0.99))
    found = verify(path, plain_network)
    assert not found.holds and found.recorded_robust_accuracy == 0.99


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"label": None}, "label missing"),
        ({"extra": np.zeros(3)}, "extra missing or unknown"),
        ({"label": np.zeros(59, np.int64)}, r"is .* expected"),
        ({"label": np.full(60, -1)}, "label holds -1"),
        ({"fooled": np.zeros(60, np.int64)}, "fooled is int64"),
        (dict.fromkeys(["image", "adversarial"], np.zeros((60, 64), np.float32)), r"expected \(N, C, H, W\)"),
        ({"adversarial": np.full((60, 1, 8, 8), np.nan, np.float32)}, "adversarial holds NaN"),
        ({"image": np.zeros((60, 1, 8, 8))}, "image is float64"),
        ({"image": np.array({"a": 1}, object)}, "no adversarial examples"),
        ({"record": np.frombuffer(b"{", np.uint8)}, "no adversarial examples"),
        ({"record": np.frombuffer(b"[" * 100_000, np.uint8)}, "no adversarial examples"),
        ({"record": np.frombuffer(b"[1]", np.uint8)}, "another format"),
        ({"record": np.frombuffer(b"\xff\xfe", np.uint8)}, "no adversarial examples"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_in_one_line(saved, tmp_path, arrays, message: str) -> None:
    path = changed(saved, tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load_adversarial(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "values",
    [
        {"format": 2}, {"norm": "l1"}, {"eps": -1}, {"eps": "x"}, {"eps": 1e999}, {"robust_accuracy": 2},
        {"robust_accuracy": None}, {"robust_accuracy": True}, {"minimal": 1}, {"targeted": True}, {"model": None},
        {"acceptance": 0.9}, {"acceptance": {}}, {"acceptance": {"threshold": 1.5}}, {"acceptance": {"threshold": "1"}},
    ],
)  # fmt: skip
def test_records_that_say_nonsense_are_refused(saved, tmp_path, values) -> None:
    path = changed(saved, tmp_path / "x.npz", record=record_with(saved, **values))
    with pytest.raises(DataError, match=f"{next(iter(values))}|another format"):
        load_adversarial(path)


def test_no_file_and_no_archive(tmp_path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_adversarial(tmp_path / "absent.npz")
    for name, content in {"empty": b"", "text": b"hello", "zip": b"PK\x03\x04rest"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="no adversarial examples"):
            load_adversarial(tmp_path / name)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="no adversarial examples"):
        load_adversarial(tmp_path / "one.npy")


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(saved, tmp_path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 33,)})
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in source.namelist():
            bomb.writestr(name, header.getvalue() if name == "image.npy" else source.read(name))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as bomb:  # claim nine gigabytes for the image in the central directory
        offset = data.rindex(b"image.npy") - 46 + 24
    data[offset : offset + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    second = data.rindex(b"adversarial.npy") - 46 + 24
    data[second : second + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    third = data.rindex(b"label.npy") - 46 + 24
    data[third : third + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"unpacks to \d+ bytes; at most"):
        load_adversarial(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.booleans())
def test_any_damage_is_a_data_error_or_none(saved, tmp_path, where: int, value: int, cut: bool) -> None:
    data = bytearray(saved.read_bytes())
    where %= len(data)
    if cut:
        del data[where:]
    else:
        data[where] = value
    path = tmp_path / "hurt.npz"
    path.write_bytes(data)
    try:
        load_adversarial(path)
    except DataError as error:
        assert "\n" not in str(error)


def test_digests(plain_network, saved, tmp_path) -> None:
    state = plain_network.state_dict()
    first = state_digest(state)
    assert first == state_digest(dict(reversed(state.items()))) and len(first) == 64
    name = next(iter(state))
    assert state_digest({**state, name: state[name] + 1e-6}) != first
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
