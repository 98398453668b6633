"""Starting from weights: read strictly from every form, spread over all batch norms, refused in one line otherwise."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import CheckpointError, RecipeError
from deploytool.evaluation import evaluate
from deploytool.models.conditional import ConditionalModel, DualNormModel
from deploytool.models.factory import build_model
from deploytool.models.setting import Setting
from deploytool.recipe import Recipe, make_recipe
from deploytool.training.loop import train
from deploytool.training.pretrained import load_pretrained
from deploytool.training.run import load_checkpoint, load_run

SHARED = Path(__file__).parents[3] / "shared" / "data"
DIGITS = CATALOGUE["digits"]


def recipe(**changes: Any) -> Recipe:
    document = {"name": "x", "model": {"arch": "resnet8"}, "method": {"name": "standard"}, "attack": {"steps": 1}}
    return make_recipe(document | changes)


def fresh(**changes: Any) -> ConditionalModel:
    return build_model(recipe(**changes), DIGITS)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """A state dict of a backbone, unlike the one that seed 0 builds; batch norms fitted to something."""
    state = {name: tensor.clone() for name, tensor in fresh(seed=7).backbone.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    for name, tensor in state.items():
        if ("bn" in name or "shortcut.1" in name) and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=generator)
    return state


def write_npz(path: Path, tensors: dict[str, Any]) -> str:
    np.savez(path, **{name: np.asarray(tensor) for name, tensor in tensors.items()})
    return str(path)


def assert_loaded(model: ConditionalModel, weights: dict[str, Tensor]) -> None:
    state = model.backbone.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone.", "model.backbone."])
@pytest.mark.parametrize("form", ["npz", "safetensors"])
@pytest.mark.parametrize("counters", [True, False])
def test_every_form_is_read(weights, prefix: str, form: str, counters: bool, tmp_path: Path) -> None:
    kept = {prefix + name: t for name, t in weights.items() if counters or not name.endswith("num_batches_tracked")}
    file = tmp_path / f"w.{form}"
    save_file(kept, file) if form == "safetensors" else write_npz(file, kept)
    model = fresh()
    load_pretrained(model, str(file))
    assert_loaded(model, {name: weights[name.removeprefix(prefix)] for name in kept} if not prefix else weights)


def test_a_head_for_reasons_stays_where_the_weights_have_none(weights, tmp_path: Path) -> None:
    section = {"labels": str(Path(__file__).parents[2] / "recipes" / "labels" / "digits.yaml")}
    model, before = fresh(reasoning=section), fresh(reasoning=section).backbone.reasoning.weight
    load_pretrained(model, write_npz(tmp_path / "w.npz", weights))
    assert_loaded(model, weights)
    assert torch.equal(model.backbone.reasoning.weight, before)
    whole = {name: tensor + 1 for name, tensor in model.backbone.state_dict().items()}
    load_pretrained(model, write_npz(tmp_path / "v.npz", whole))
    assert_loaded(model, whole)
    assert "reasoning.bias is missing" in refusal(
        model, write_npz(tmp_path / "u.npz", {name: t for name, t in whole.items() if name != "reasoning.bias"})
    )


@pytest.mark.parametrize("path", ["", "checkpoint.safetensors"])
def test_a_run_of_ours_gives_its_backbone_alone(trained_run, path: str) -> None:
    """A FLOAT run, with its BN_A, alphas and noise, starts a plain network that answers as it did at lambda 0."""
    model = build_model(recipe(), trained_run.checkpoint.data)
    load_pretrained(model, str(trained_run.path / path))
    image = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), trained_run.model(image, Setting(0.0)))


@pytest.mark.parametrize("method", ["standard", "float", "oat"])
def test_every_set_of_batch_norms_starts_as_the_loaded_one(method: str, weights, tmp_path: Path) -> None:
    model = fresh(method={"name": method}, model={"arch": "resnet8", "widths": [0.5, 1.0]})
    load_pretrained(model, write_npz(tmp_path / "w.npz", weights))
    sets = [model.norm_set(width) for width in (0.5, 1.0)]
    if isinstance(model, DualNormModel):
        sets += [model.adversarial_set(width) for width in (0.5, 1.0)]
    for norms in sets:
        for name, norm in norms.items():
            for key in ("weight", "bias", "running_mean", "running_var"):
                assert torch.equal(getattr(norm, key), weights[f"{name}.{key}"][: norm.num_features])


def test_masks_prune_what_was_loaded(weights, tmp_path: Path) -> None:
    model = fresh(sparsity={"density": 0.2})
    load_pretrained(model, write_npz(tmp_path / "w.npz", weights))
    for name, mask in model.masks.items():
        assert torch.equal(model.backbone.get_parameter(name), weights[name] * mask)


BROKEN: dict[str, tuple[Callable[[dict], Any], list[str]]] = {
    "missing": (lambda w: (w.pop("conv1.weight"), w.pop("linear.bias")), ["conv1.weight is m", "linear.bias is m"]),
    "extra": (lambda w: w.update(head=torch.ones(1)), ["head is unexpected"]),
    "other classes": (lambda w: w.update({"linear.weight": torch.ones(3, 64)}), ["(3, 64), expected (10, 64)"]),
    "double": (lambda w: w.update({"conv1.weight": w["conv1.weight"].double()}), ["float64, expected torch.float32"]),
    "nan": (lambda w: w["conv1.weight"].fill_(torch.nan), ["conv1.weight holds NaN"]),
    "variance": (lambda w: w["bn1.running_var"].fill_(-1), ["bn1.running_var is negative"]),
    "nothing": (lambda w: w.clear(), ["conv1.weight is missing", "linear.bias is missing"]),
    "half a prefix": (lambda w: w.update({"module.conv1.weight": w.pop("conv1.weight")}), ["module.conv1.weight is u"]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_does_not_fit_is_named_and_changes_nothing(kind: str, weights, tmp_path: Path) -> None:
    change, phrases = BROKEN[kind]
    change(weights)
    model, before = fresh(), fresh().state_dict()
    message = refusal(model, write_npz(tmp_path / "w.npz", weights))
    assert all(phrase in message for phrase in phrases) and "w.npz" in message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def refusal(model: ConditionalModel, path: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(model, path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("model.weights (=")
    return str(caught.value)


def test_hostile_files_are_refused_in_one_line(tmp_path: Path) -> None:
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, **{"conv1.weight": np.array([object()], dtype=object)})
    assert "cannot be read" in refusal(fresh(), str(pickled))
    for suffix in ("npz", "safetensors"):
        garbage = tmp_path / f"garbage.{suffix}"
        for content in (b"", b"PK\x03\x04", b"\xff" * 100, b'\x08\x00\x00\x00\x00\x00\x00\x00{"a": 1}'):
            garbage.write_bytes(content)
            assert "cannot be read" in refusal(fresh(), str(garbage))
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
        header += b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }".ljust(117) + b"\n"
        archive.writestr("conv1.weight.npy", header)
    assert "cannot be read" in refusal(fresh(), str(bomb))
    (tmp_path / "w.pt").write_bytes(b"")
    assert "no file of weights" in refusal(fresh(), str(tmp_path / "w.pt"))
    assert "is absent" in refusal(fresh(), str(tmp_path / "w.npz"))
    assert "is absent" in refusal(fresh(), str(tmp_path))


def test_a_run_without_epochs_is_a_run(weights, tmp_path: Path) -> None:
    of = recipe(model={"arch": "resnet8", "weights": write_npz(tmp_path / "w.npz", weights)}, optimizer={"epochs": 0})
    result = train(of, tmp_path / "run")
    assert result["epochs"] == 0
    checkpoint = load_checkpoint(tmp_path / "run")
    assert (checkpoint.epochs, checkpoint.history) == (0, []) and list(checkpoint.files) == [of.model.weights]
    (tmp_path / "w.npz").unlink()  # the run is complete without it
    run = load_run(tmp_path / "run")
    assert_loaded(run.model, weights)
    assert evaluate(run, ["pgd-1"]).rows[0]["clean_accuracy"] == result["clean_accuracy"]
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    assert train(of, tmp_path / "run", resume=True)["clean_accuracy"] == result["clean_accuracy"]
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before


def test_bad_weights_leave_no_folder(tmp_path: Path) -> None:
    of = recipe(model={"arch": "resnet8", "weights": str(tmp_path / "no.npz")}, optimizer={"epochs": 0})
    with pytest.raises(CheckpointError, match="is absent"):
        train(of, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_starts_from_the_weights_and_resumes_without_them(weights, tmp_path: Path) -> None:
    file = write_npz(tmp_path / "w.npz", weights)
    document = {"model": {"arch": "resnet8", "weights": file}, "data": {"batch_size": 400}}
    of = recipe(**document, optimizer={"epochs": 2, "lr": 1e-9, "weight_decay": 0})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("deploytool.training.loop.log_scalars", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
        train(of, tmp_path / "run")
    Path(file).unlink()
    train(of, tmp_path / "run", resume=True)
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.epochs == 2 and list(checkpoint.files) == [file]
    for name, tensor in weights.items():
        if "running" not in name and not name.endswith("tracked"):
            torch.testing.assert_close(checkpoint.model[f"backbone.{name}"], tensor)


def test_mean_and_std_are_the_recipes() -> None:
    model = fresh(model={"arch": "resnet8", "mean": [0.25], "std": [0.5]})
    image = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model.backbone.normalize(image), (image - 0.25) / 0.5)
    half = fresh(model={"arch": "resnet8", "std": [0.5]})
    torch.testing.assert_close(half.backbone.normalize(image), (image - 0.305) / 0.5)


@pytest.mark.parametrize("key", ["mean", "std"])
def test_mean_and_std_need_one_number_per_channel(key: str) -> None:
    with pytest.raises(RecipeError, match=rf"model.{key} \(=\[0.5, 0.5, 0.5\]\) must have one .*; digits has 1"):
        fresh(model={"arch": "resnet8", key: [0.5] * 3})


def test_oat_needs_batch_norms() -> None:
    with pytest.raises(RecipeError, match=r"method.name \(=oat\) .* model.arch \(=single-layer-cnn\) has none"):
        fresh(method={"name": "oat"}, model={"arch": "single-layer-cnn"})


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder with the pretrained ResNet-20 is absent")
def test_a_published_resnet20_becomes_a_run(tmp_path: Path) -> None:
    """91.6 % is known for these 1,017 images; the first 300 are enough here."""
    with np.load(SHARED / "cifar10-lossless-6k.npz") as data:
        small = {name: data[name][:300] for name in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(tmp_path / "cifar10.npz", **small)
    normalisation = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    weights = str(SHARED / "cifar10-resnet20-pretrained.npz")
    of = recipe(
        data={"name": f"npz:{tmp_path / 'cifar10.npz'}"},
        model={"arch": "resnet20", "weights": weights, **normalisation},
        optimizer={"epochs": 0},
    )
    assert train(of, tmp_path / "run")["clean_accuracy"] >= 0.88
