"""The second head: on any layer of every backbone, names kept, answers side by side."""

import copy
import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import LabelError, RecipeError
from deploytool.labels.label_map import EqualVectorsWarning
from deploytool.models.factory import build_model, recipe_labels
from deploytool.models.reasoning import with_reasoning
from deploytool.models.registry import BACKBONES, build_backbone
from deploytool.models.setting import Setting
from deploytool.recipe import make_recipe

CIFAR = CATALOGUE["cifar10"]
METHODS = ["standard", "pgd-at", "float", "oat"]


@pytest.fixture
def labels(tmp_path) -> str:
    file = tmp_path / "labels.yaml"
    rows = [f'"{c}": [all, even{c % 2}, only{c}]' for c in range(10)]
    file.write_text("\n".join(rows))
    return str(file)


def recipe(labels: str, method: str = "standard", model: dict[str, Any] | None = None, **section: Any) -> Any:
    reasoning = {"labels": labels, **section}
    model = {"arch": "resnet8"} | (model or {})
    return make_recipe({"name": "x", "method": {"name": method}, "model": model, "reasoning": reasoning})


def fitted(network: nn.Module) -> nn.Module:
    """Batch-norm statistics that matter."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


@pytest.mark.parametrize("arch", sorted(set(BACKBONES) - {"resnet50", "wrn16-8"}))
def test_every_backbone_shares_what_its_classifier_reads(arch: str) -> None:
    plain = fitted(build_backbone(arch, CIFAR, 0.25))
    image = torch.rand(3, 3, 32, 32)
    expected = plain(image)
    read: list[torch.Tensor] = []
    last = [module for module in plain.modules() if isinstance(module, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, given: read.append(given[0].detach()))
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    plain(image)
    network = with_reasoning(copy.deepcopy(plain), 7, CIFAR.shape)
    answer = network(image)
    torch.testing.assert_close(answer[:, :10], expected)
    torch.testing.assert_close(answer[:, 10:], F.linear(read[0], network.reasoning.weight, network.reasoning.bias))
    after = network.state_dict()
    assert set(after) - set(before) == {"reasoning.weight", "reasoning.bias"}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("layer", ["layer2", "layer2.0.bn1", "layer1.0", "conv1", "linear"])
def test_a_head_sits_on_any_layer(layer: str) -> None:
    plain = fitted(build_backbone("resnet8", CIFAR))
    found: list[torch.Tensor] = []
    image = torch.rand(2, 3, 32, 32)
    hook = plain.get_submodule(layer).register_forward_hook(lambda _, __, answer: found.append(answer.detach()))
    expected = plain(image)
    hook.remove()
    network = with_reasoning(plain, 5, CIFAR.shape, layer)
    pooled = found[0].mean((2, 3)) if found[0].ndim == 4 else found[0]
    answer = network(image)
    torch.testing.assert_close(answer[:, :10], expected)
    torch.testing.assert_close(answer[:, 10:], F.linear(pooled, network.reasoning.weight, network.reasoning.bias))


def test_a_layer_that_is_not_there_is_refused_with_the_nearest() -> None:
    plain = build_backbone("resnet8", CIFAR)
    with pytest.raises(RecipeError, match=r"reasoning.layer \(='layer2.bn1'\).*did you mean layer2.0.bn1\?"):
        with_reasoning(plain, 5, CIFAR.shape, "layer2.bn1")


def test_a_layer_that_is_called_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 3, 3, 1, 1), nn.Linear(3, 2)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.linear(self.conv(self.conv(image)).mean((2, 3)))

    with pytest.raises(RecipeError, match="is called 2 times"):
        with_reasoning(Twice(), 5, CIFAR.shape, "conv")
    assert with_reasoning(Twice(), 5, CIFAR.shape)(torch.rand(1, 3, 32, 32)).shape == (1, 7)


def test_a_layer_of_another_kind_of_answer_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten(2), nn.Flatten(), nn.Linear(2700, 2))
    with pytest.raises(RecipeError, match=r"answers \(1, 3, 900\); a head needs"):
        with_reasoning(network, 5, CIFAR.shape, "1")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("widths", [[1.0], [0.5, 1.0]])
def test_every_method_and_width_answers_classes_and_asked_reasons(method: str, widths: list[float], labels) -> None:
    model = build_model(recipe(labels, method, {"widths": widths}), CATALOGUE["digits"]).eval()
    assert model.reasons == 13 and model.reason_vectors.sum(1).tolist() == [3] * 10
    image = torch.rand(4, 1, 8, 8)
    for width in widths:
        for lam in (0.0, 0.6) if model.is_conditional else (0.0,):
            setting = Setting(lam, noise="frozen" if method == "float" else "none", width=width)
            whole = model(image, setting, reasoning=True)
            assert whole.shape == (4, 23)
            torch.testing.assert_close(model(image, setting), whole[:, :10])
            with model.network(setting, reasoning=True) as network:
                torch.testing.assert_close(network(image), whole, rtol=1e-4, atol=1e-4)
            with model.network(setting) as network:
                torch.testing.assert_close(network(image), whole[:, :10], rtol=1e-4, atol=1e-4)
            plain = model.plain_network(setting, reasoning=True)
            torch.testing.assert_close(plain(image), whole, rtol=1e-4, atol=1e-4)
            classes = model.plain_network(setting)
            torch.testing.assert_close(classes(image), whole[:, :10], rtol=1e-4, atol=1e-4)
            assert not any(name.startswith("reasoning") for name, _ in classes.named_parameters())


def test_the_backbone_starts_as_without_labels(labels) -> None:
    own = build_model(recipe(labels), CATALOGUE["digits"]).backbone.state_dict()
    plain = build_model(make_recipe({"name": "x", "method": {"name": "standard"}, "model": {"arch": "resnet8"}}),
                        CATALOGUE["digits"]).backbone.state_dict()  # fmt: skip
    assert all(torch.equal(own[name], tensor) for name, tensor in plain.items())


def test_masks_and_noise_reach_the_head(labels) -> None:
    document = recipe(labels, "float").model_dump(mode="json", by_alias=True) | {"sparsity": {"density": 0.5}}
    model = build_model(make_recipe(document), CATALOGUE["digits"])
    assert "reasoning.weight" in model.masks and len(model.alpha) == len(model.conditioned)
    weights = model.weights(Setting(1.0))
    assert not torch.equal(weights["reasoning.weight"], model.backbone.reasoning.weight)
    assert not weights["reasoning.weight"][~model.masks["reasoning.weight"]].any()


def test_per_class_cuts_the_map_and_says_which_classes_become_equal(labels) -> None:
    with pytest.warns(EqualVectorsWarning, match="have the same labels"):
        read = recipe_labels(recipe(labels, per_class=2), CATALOGUE["digits"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        model = build_model(recipe(labels, per_class=2), CATALOGUE["digits"], read)
    assert model.reasons == 3


def test_labels_of_other_classes_are_refused(tmp_path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("panda: [animal]\nbus: [tires]\n")
    with pytest.raises(LabelError, match=re.escape("is for other classes")):
        build_model(recipe(str(file)), CATALOGUE["digits"])
    with pytest.raises(LabelError, match="cannot be read"):
        build_model(recipe(str(tmp_path / "absent.yaml")), CATALOGUE["digits"])


def test_dropout_is_the_recipes() -> None:
    model = {"arch": "vgg16", "multiplier": 0.1, "dropout": 0.2}
    backbone = build_model(make_recipe({"name": "x", "method": {"name": "standard"}, "model": model}), CIFAR).backbone
    assert {module.p for module in backbone.modules() if isinstance(module, nn.Dropout)} == {0.2}
    with pytest.raises(RecipeError, match=r"model.dropout \(=0.2\): resnet8 has no dropout"):
        build_model(
            make_recipe({"name": "x", "method": {"name": "standard"}, "model": model | {"arch": "resnet8"}}), CIFAR
        )
