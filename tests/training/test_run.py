"""Checkpoints: what is saved comes back, and whatever is damaged or strange is refused by name."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from deploytool.errors import CheckpointError, DeploytoolError, RunError
from deploytool.export.artefact import export
from deploytool.recipe import make_recipe
from deploytool.training.loop import train
from deploytool.training.run import load_checkpoint, load_run, save_checkpoint


@pytest.fixture
def run(trained_run, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(trained_run.path, tmp_path / "run")
    return tmp_path / "run"


def rewrite(run: Path, change, **metadata: str) -> None:
    from safetensors import safe_open

    file = run / "checkpoint.safetensors"
    with safe_open(file, framework="pt") as opened:
        kept = {**opened.metadata(), **metadata}
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, kept)


def test_everything_comes_back(trained_run, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, trained_run.checkpoint)
    loaded = load_checkpoint(tmp_path)
    assert (loaded.epochs, loaded.history) == (2, trained_run.checkpoint.history)
    for saved, back in (
        (trained_run.model.state_dict(), loaded.model),
        (trained_run.checkpoint.momentum, loaded.momentum),
    ):
        assert saved.keys() == back.keys()
        assert all(torch.equal(tensor, back[name]) for name, tensor in saved.items())
    assert loaded.momentum  # a resumed run needs it


def test_loaded_models_are_in_evaluation_mode(trained_run) -> None:
    assert not trained_run.model.training and not trained_run.model.backbone.training


def test_wrong_tensors_are_all_named(run: Path) -> None:
    def change(tensors: dict) -> None:
        del tensors["model.alpha"]
        tensors["model.surprise"] = torch.zeros(1)
        tensors["model.backbone.conv1.weight"] = torch.zeros(1, 1, 3, 3)
        tensors["model.backbone.linear.bias"][0] = torch.nan
        tensors["model.backbone.bn1.running_var"][0] = -1
        tensors["model.backbone.bn1.bias"] = tensors["model.backbone.bn1.bias"].half()

    rewrite(run, change)
    with pytest.raises(CheckpointError) as caught:
        load_run(run)
    for words in (
        "alpha is missing",
        "surprise is unexpected",
        "backbone.conv1.weight is (1, 1, 3, 3), expected (16, 1, 3, 3)",
        "backbone.linear.bias holds NaN",
        "backbone.bn1.running_var is negative",
        "backbone.bn1.bias is torch.float16, expected torch.float32",
    ):
        assert words in str(caught.value)


def test_other_formats_are_refused(run: Path) -> None:
    rewrite(run, lambda tensors: None, format="something-else")
    with pytest.raises(CheckpointError, match="no checkpoint of deploytool"):
        load_run(run)
    torch.save({"weights": torch.zeros(1)}, run / "checkpoint.safetensors")  # a pickle is never opened
    with pytest.raises(CheckpointError, match="damaged"):
        load_run(run)


def test_a_checkpoint_of_another_recipe_is_refused(run: Path) -> None:
    rewrite(run, lambda tensors: None, recipe="0123456789abcdef")
    with pytest.raises(CheckpointError, match="another recipe"):
        load_run(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("momentum.alpha"), "alpha is missing"),
        (lambda tensors: tensors.update({"momentum.alpha": torch.zeros(3)}), r"alpha is \(3,\)"),
    ],
)
def test_momentum_that_does_not_fit_stops_a_resumed_training(run: Path, trained_run, change, words: str) -> None:
    """Going on without it would quietly give other weights."""
    rewrite(run, change)
    with pytest.raises(CheckpointError, match=words):
        train(trained_run.recipe, run, resume=True)


def test_a_run_is_complete_without_its_data_set(tmp_path: Path) -> None:
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 3
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    recipe = make_recipe(
        {
            "name": "mine",
            "data": {"name": f"npz:{tmp_path / 'set.npz'}", "batch_size": 20},
            "model": {"arch": "resnet8"},
            "method": {"name": "standard"},
            "optimizer": {"epochs": 1},
        }
    )
    train(recipe, tmp_path / "run")
    before = load_run(tmp_path / "run")
    (tmp_path / "set.npz").unlink()
    loaded = load_run(tmp_path / "run")
    assert loaded.checkpoint.data == before.checkpoint.data and loaded.checkpoint.data.classes == ("0", "1", "2")
    assert export(loaded, tmp_path / "m.onnx")["parity"]["max_abs_error"] <= 1e-3


@pytest.mark.parametrize("history", ["{", "", "null", "[1, 2]", '[{"epoch": 1}]', "[" * 100_000])
def test_damaged_history_is_refused(run: Path, history: str) -> None:
    rewrite(run, lambda tensors: None, history=history)
    with pytest.raises(CheckpointError, match="damaged"):
        load_run(run)


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_ends_in_one_clear_error_or_finite_weights(trained_run, tmp_path: Path, data) -> None:
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    shutil.copy(trained_run.path / "recipe.yaml", run / "recipe.yaml")
    content = bytearray((trained_run.path / "checkpoint.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, 12_000))] = data.draw(st.integers(0, 255))
    (run / "checkpoint.safetensors").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        model = load_run(run).model
    except DeploytoolError as error:
        assert "\n" not in str(error)
    else:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())


def test_what_is_no_run_is_refused(tmp_path: Path, float_recipe) -> None:
    with pytest.raises(RunError, match="deploytool train"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "recipe.yaml").write_text(float_recipe.to_yaml())
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        load_run(tmp_path)


def test_a_full_disk_is_told_in_one_line(run: Path, trained_run, monkeypatch) -> None:
    from safetensors import SafetensorError

    def fails(tensors, path, metadata) -> None:
        raise SafetensorError("I/O error: File too large (os error 27)")

    monkeypatch.setattr("deploytool.training.run.save_file", fails)
    with pytest.raises(RunError, match=r"cannot be written \(I/O error"):
        save_checkpoint(run, trained_run.checkpoint)


def test_a_failed_save_keeps_the_old_checkpoint(run: Path, trained_run, monkeypatch) -> None:
    before = (run / "checkpoint.safetensors").read_bytes()

    def fails(tensors, path, metadata) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deploytool.training.run.save_file", fails)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(run, dataclasses.replace(trained_run.checkpoint, epochs=3))
    assert (run / "checkpoint.safetensors").read_bytes() == before
    assert not list(run.glob(".*.tmp"))


def test_the_label_map_travels_with_the_weights(reasoned_run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the recipe's file is not
    shutil.copytree(reasoned_run.path, tmp_path / "run")
    again = load_run(tmp_path / "run")
    assert again.labels.to_dict() == reasoned_run.labels.to_dict()
    assert again.model.reasons == len(again.labels.labels) == 32
    image = torch.rand(3, 1, 8, 8)
    assert torch.equal(again.model(image, reasoning=True), reasoned_run.model(image, reasoning=True))


def fewer_classes(text: str) -> str:
    return json.dumps({"classes": {"0": json.loads(text)["classes"]["0"]}})


@pytest.mark.parametrize("change", [lambda text: "", lambda text: text[:90], fewer_classes, lambda text: "[1]"])
def test_a_damaged_label_map_is_refused(change, reasoned_run, tmp_path: Path) -> None:
    shutil.copytree(reasoned_run.path, tmp_path / "run")
    text = json.dumps({"classes": reasoned_run.labels.to_dict()})
    rewrite(tmp_path / "run", lambda tensors: None, labels=change(text))
    with pytest.raises(CheckpointError, match="damaged"):
        load_run(tmp_path / "run")


def test_vectors_that_are_not_the_maps_are_refused(reasoned_run, tmp_path: Path) -> None:
    shutil.copytree(reasoned_run.path, tmp_path / "run")
    rewrite(tmp_path / "run", lambda tensors: tensors["model.reason_vectors"].logical_not_())
    with pytest.raises(CheckpointError, match="vectors and label map differ"):
        load_run(tmp_path / "run")


def test_a_label_map_without_a_head_is_refused(run: Path, reasoned_run) -> None:
    rewrite(run, lambda tensors: None, labels=json.dumps({"classes": reasoned_run.labels.to_dict()}))
    with pytest.raises(CheckpointError, match="label map does not fit"):
        load_run(run)
