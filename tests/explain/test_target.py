"""Targets: runs, exported and foreign files, torchvision models and modules; what cannot be one is said in a line."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploytool.data.catalogue import CATALOGUE, DatasetInfo
from deploytool.digests import file_digest
from deploytool.errors import ArtefactError, DataError, InputError, RecipeError, RunError
from deploytool.explain.target import module_target, open_target, working_network
from deploytool.export.backbone import backbone_to_onnx
from deploytool.library.build import fill_in
from deploytool.library.recipe import LibraryRecipe
from deploytool.models.registry import build_backbone
from deploytool.models.setting import Setting
from deploytool.runtime.session import Session

DIGITS = CATALOGUE["digits"]
IMAGE = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_run_answers_as_its_model_at_every_lambda(trained_run) -> None:
    target = open_target(trained_run.path)
    assert target.has_gradients and target.takes_lambda and target.classes == DIGITS.classes
    for lam in (0.0, 0.3, 1.0):
        setting = Setting(lam, target.setting.lambda_threshold, target.setting.conditioning, "frozen")
        with trained_run.model.network(setting) as network:
            torch.testing.assert_close(target.network(lam)(IMAGE), network(IMAGE), rtol=1e-4, atol=1e-4)
    assert target.digest == file_digest(trained_run.path / "checkpoint.safetensors")


def test_an_exported_file_answers_without_gradients(trained_interpolate_file: Path) -> None:
    target = open_target(trained_interpolate_file)
    assert not target.has_gradients and target.takes_lambda and target.shape == DIGITS.shape
    assert target.setting.conditioning == "interpolate"
    expected = Session(trained_interpolate_file, background=False)(IMAGE.numpy(), 0.7)
    torch.testing.assert_close(target.network(0.7)(IMAGE), torch.from_numpy(expected))


def test_any_onnx_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build_backbone("digits-resnet", DIGITS).eval()
    file = tmp_path / "foreign.onnx"
    onnx.save(backbone_to_onnx(module, DIGITS.shape), file)
    target = open_target(file)
    assert target.classes is None and not target.takes_lambda
    target.check_data(DIGITS, IMAGE)
    torch.testing.assert_close(target.network()(IMAGE), module(IMAGE), rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match=r"takes no lambda; leave --lambda out"):
        target.network(0.5)


def test_torchvision_brings_weights_and_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published weights' place in torch.hub's cache is taken by random ones: nothing is downloaded here."""
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    plain = models.squeezenet1_1().eval()
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(plain.state_dict(), cache / models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2])
    target = open_target("torchvision:squeezenet1_1")
    assert target.has_gradients and target.classes is None
    image = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        expected = plain((image - mean) / std)
        torch.testing.assert_close(target.network()(image), expected)
        torch.testing.assert_close(working_network(target.network(), torch.device("cpu"))(image), expected)
    with pytest.raises(DataError, match="has 1000 classes, cifar10 has 10; name the data set"):
        target.check_data(CATALOGUE["cifar10"], image)
    synsets = DatasetInfo("x", (3, 64, 64), tuple(f"n{number:08}" for number in range(1000)), (0.5,) * 3, (0.2,) * 3)
    target.check_data(synsets, image)
    with pytest.raises(DataError, match="takes colour images, x has 1 channels"):
        target.check_data(DatasetInfo("x", (1, 64, 64), synsets.classes, (0.5,), (0.2,)), image[:, :1])


def test_torchvision_without_weights_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*arguments: object, **options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    with pytest.raises(InputError, match=r"torchvision:resnet18: no weights \(.*no route to host.*\); put them into"):
        open_target("torchvision:resnet18")
    with pytest.raises(InputError, match="torchvision has no such classifier; did you mean resnet"):
        open_target("torchvision:resnet19")


def test_a_module_is_copied() -> None:
    module = build_backbone("digits-resnet", DIGITS).train()
    target = module_target(module)
    expected = target.network()(IMAGE)
    nn.init.zeros_(module.linear.weight)
    assert module.training and torch.equal(target.network()(IMAGE), expected)
    assert target.digest != module_target(module).digest


def test_the_digest_of_a_module_is_also_of_its_structure() -> None:
    """The same weights between other activations answer otherwise."""

    class Named(nn.Module):
        def extra_repr(self) -> str:
            return f"activation={object()}"

    torch.manual_seed(0)
    linear = nn.Linear(64, 10)
    digests = {
        name: module_target(nn.Sequential(nn.Flatten(), linear, module)).digest
        for name, module in {"relu": nn.ReLU(), "tanh": nn.Tanh(), "again": nn.ReLU(), "named": Named()}.items()
    }
    assert len(set(digests.values())) == 3 and digests["relu"] == digests["again"]
    assert digests["named"] == module_target(nn.Sequential(nn.Flatten(), linear, Named())).digest


def test_what_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="missing.onnx does not exist; name a run folder, an ONNX file, or torchvision:"):
        open_target(tmp_path / "missing.onnx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="empty is no run of deploytool"):
        open_target(tmp_path / "empty")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ArtefactError, match="is no ONNX model, or it is damaged"):
        open_target(tmp_path / "text.onnx")


def test_data_that_does_not_fit(plain_run) -> None:
    target = open_target(plain_run.path)
    target.check_data(DIGITS, IMAGE)
    with pytest.raises(DataError, match=r"takes images of \(1, 8, 8\), mnist has \(1, 28, 28\)"):
        target.check_data(CATALOGUE["mnist"], torch.rand(1, 1, 28, 28))
    renamed = DatasetInfo("x", (1, 8, 8), (*DIGITS.classes[:9], "ten"), (0.3,), (0.4,))
    with pytest.raises(DataError, match="has class 9 '9', x has 'ten'"):
        target.check_data(renamed, IMAGE)
    with pytest.raises(DataError, match="has 10 classes, x has 3"):
        target.check_data(DatasetInfo("x", (1, 8, 8), ("a", "b", "c"), (0.3,), (0.4,)), IMAGE)
    linear = module_target(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    linear.check_data(DIGITS, IMAGE)
    with pytest.raises(DataError, match=r"target module cannot take images of \(1, 28, 28\) \(.*mat1 and mat2"):
        linear.check_data(CATALOGUE["mnist"], torch.rand(1, 1, 28, 28))


def test_a_target_that_answers_nan_is_refused() -> None:
    module = build_backbone("digits-resnet", DIGITS)
    nn.init.constant_(module.linear.bias, np.nan)
    with pytest.raises(InputError, match="target module: the network answers NaN or infinity to 5 of 5 images"):
        module_target(module).check_data(DIGITS, IMAGE)


def test_what_foreign_modules_raise_is_one_line() -> None:
    class Asserting(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise AssertionError(f"Wrong image height! Expected 224 but got {image.shape[2]}!")

    with pytest.raises(DataError, match=r"cannot take images of \(1, 8, 8\) \(Wrong image height!"):
        module_target(Asserting()).check_data(DIGITS, IMAGE)


def test_probabilities_are_no_logits() -> None:
    """They would go through the softmax a second time."""
    module = nn.Sequential(build_backbone("digits-resnet", DIGITS), nn.Softmax(1))
    with pytest.raises(InputError, match="target module answers probabilities; .* take the last softmax off"):
        module_target(module).check_data(DIGITS, IMAGE)
    module_target(module).check_data(DIGITS, IMAGE, logits=False)


def test_libraries_are_built_of_probabilities_too() -> None:
    module = nn.Sequential(build_backbone("digits-resnet", DIGITS), nn.Softmax(1))
    recipe = LibraryRecipe.make({"name": "x", "data": {"name": "digits"}})
    filled, data = fill_in(recipe, module_target(module))
    assert filled.layers is not None and filled.layers[-1].layer == "logits" and data.info == DIGITS


def test_the_data_of_a_run_are_not_those_of_a_folder_called_as_the_module(
    plain_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(plain_run.path, tmp_path / "module")
    monkeypatch.chdir(tmp_path)
    recipe = LibraryRecipe.make({"name": "x"})
    with pytest.raises(RecipeError, match="data is missing, and target module is no run that says it"):
        fill_in(recipe, module_target(build_backbone("digits-resnet", DIGITS)))
    filled, _ = fill_in(recipe, open_target("module"))
    assert filled.data == plain_run.recipe.data


def test_a_target_is_not_moved() -> None:
    target = module_target(build_backbone("digits-resnet", DIGITS))
    working_network(target.network(), torch.device("meta"))
    assert {parameter.device.type for parameter in target.network().parameters()} == {"cpu"}


def test_files_say_what_images_they_take(tmp_path: Path) -> None:
    file = tmp_path / "foreign.onnx"
    onnx.save(backbone_to_onnx(build_backbone("resnet8", CATALOGUE["cifar10"]).eval(), (3, 16, 16)), file)
    with pytest.raises(DataError, match=r"takes images of \(3, 16, 16\), cifar10 has \(3, 32, 32\)"):
        open_target(file).check_data(CATALOGUE["cifar10"], torch.rand(1, 3, 32, 32))
