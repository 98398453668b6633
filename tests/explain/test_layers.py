"""The layer that Grad-CAM reads: found in every backbone, and in networks of others."""

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import InputError
from deploytool.explain.attribution import grad_cam, predicted_class
from deploytool.explain.layers import feature_layer, feature_sizes
from deploytool.models.registry import BACKBONES, build_backbone

EXPECTED = {
    "digits-resnet": "layer3",
    "lenet": "conv2.1",  # before the pool
    "resnet8": "layer3",
    "resnet20": "layer3",
    "resnet34": "layer4",
    "resnet50": "layer4",
    "wrn16-8": "bn",  # pre-activation: the last batch norm comes after all blocks
    "wrn40-2": "bn",
    "mobilenet": "last",
    "vgg16": "features.50",  # after 13 convolutions, norms and ReLUs, 8 dropouts and 4 max pools; before the last pool
}


@pytest.mark.parametrize("arch", EXPECTED)
def test_backbones_have_their_last_feature_map(arch: str) -> None:
    with torch.device("meta"):
        network = build_backbone(arch, CATALOGUE["cifar10"]).eval()
        assert feature_layer(network, torch.zeros(1, 3, 32, 32)) == EXPECTED[arch]


@pytest.mark.parametrize("arch", BACKBONES)
@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_every_backbone_has_a_map(arch: str, data: str) -> None:
    torch.manual_seed(0)
    info = CATALOGUE[data]
    network = build_backbone(arch, info, 0.25).eval()
    image = torch.rand(3, *info.shape)
    found = grad_cam(network, image, predicted_class(network, image))
    assert found.shape == (3, *info.shape[1:]) and found.min() >= 0 and found.isfinite().all()
    sizes = feature_sizes(network, image)
    assert max(sizes[feature_layer(network, image)]) > 1


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("vgg16", "features.29"),  # Grad-CAM's authors: the last convolution of VGG-16, conv5_3, and its ReLU
        ("vgg16_bn", "features.42"),
        ("alexnet", "features.11"),
        ("mobilenet_v2", "features"),
        ("mobilenet_v3_small", "features"),  # squeeze and excitation convolves one pixel
        ("densenet121", "features"),
        ("googlenet", "inception5b"),
        ("shufflenet_v2_x0_5", "conv5"),
        ("squeezenet1_1", "classifier.2"),  # its maps are the classes' own
        ("efficientnet_b0", "features"),
        ("convnext_tiny", "features"),
    ],
)
def test_torchvision_networks_have_theirs(name: str, layer: str) -> None:
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None, **options).eval()
        assert feature_layer(network, torch.zeros(1, 3, 224, 224)) == layer


class Reused(nn.Module):
    """One ReLU at two places: what it gave last counts."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.relu = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, 2, 1), nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        return self.relu(self.two(self.relu(self.one(image)))).mean((2, 3))


def test_a_module_that_runs_twice_counts_where_it_ran_last() -> None:
    network = Reused().eval()
    assert feature_sizes(network, torch.rand(1, 1, 8, 8)) == {"one": (8, 8), "two": (4, 4), "relu": (4, 4)}
    assert feature_layer(network, torch.rand(1, 1, 8, 8)) == "relu"
    image, target = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    maps = network.two(network.one(image).relu()).relu()
    coarse = maps[range(2), target][:, None].detach() / 16  # a class's logit is the mean of its own map
    expected = F.interpolate(coarse, (8, 8), mode="bilinear")[:, 0]
    torch.testing.assert_close(grad_cam(network, image, target), expected)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("layer9", "did you mean layer"),
        ("nonsense", "'nonsense'\\) is unknown; the default is layer3"),
        ("", "is unknown"),
        ("linear", "no result of shape"),
    ],
)
def test_another_layer_has_to_exist(name: str, words: str) -> None:
    network = build_backbone("resnet8", CATALOGUE["digits"]).eval()
    with pytest.raises(InputError, match=words):
        feature_layer(network, torch.rand(1, 1, 8, 8), name)


def test_one_pixel_is_no_map() -> None:
    with torch.device("meta"):
        network = build_backbone("vgg16", CATALOGUE["digits"]).eval()
        image = torch.zeros(1, 1, 8, 8)
        with pytest.raises(InputError, match="one pixel"):
            feature_layer(network, image, "features.50")
        assert feature_sizes(network, image)[feature_layer(network, image)] == (2, 2)


@pytest.mark.parametrize(
    "network", [nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())]
)
def test_a_network_without_feature_maps_is_told(network: nn.Module) -> None:
    with pytest.raises(InputError, match="no convolution.*use sliding-patch"):
        grad_cam(network.eval(), torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="use sliding-patch"):
        feature_layer(network.eval(), torch.rand(2, 1, 8, 8), "0")
