"""Backbones: known sizes, shapes of CIFAR ResNets and WRNs, and a pretrained ResNet-20 that must fit as it is."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from deploytool.data.catalogue import CATALOGUE, DatasetInfo
from deploytool.data.datasets import load_dataset
from deploytool.errors import RecipeError
from deploytool.models.layers import Normalize, PadShortcut
from deploytool.models.registry import BACKBONES, build_backbone
from deploytool.models.wrn import WideResNet
from deploytool.recipe import DataSection

SHARED = Path(__file__).parents[3] / "shared" / "data"
CIFAR10 = CATALOGUE["cifar10"]
# pixels of each channel that a linear layer reads, where no global average comes before it
FLATTENED = {("single-layer-cnn", "linear.weight"): 28 * 28, ("lenet", "fc1.0.weight"): 8 * 8}


def convolution_and_linear_weights(arch: str) -> int:
    return sum(p.numel() for p in build_backbone(arch, CIFAR10).parameters() if p.dim() > 1)


@pytest.mark.parametrize(
    ("arch", "weights"),
    [
        # 3->16, then six 16->16, 16->32 and five 32->32, 32->64 and five 64->64 of 3x3 each, and 64 x 10
        ("resnet20", 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64) + 640),
        ("resnet34", 21_265_088),  # paper 5: 21.28 MB at 8 bits with batch norms left out
    ],
)
def test_weights_as_in_the_papers(arch: str, weights: int) -> None:
    assert convolution_and_linear_weights(arch) == weights


@pytest.mark.parametrize(
    ("arch", "total"),
    [
        ("resnet34", 21_282_122),  # as github kuangliu/pytorch-cifar counts its CIFAR networks
        ("resnet50", 23_520_842),
        ("mobilenet", 2_223_872 + 1280 * 10 + 10),  # torchvision's mobilenet_v2 without classifier, and 10 classes
        ("vgg16", 14_723_136 - 4_224 + 512 * 512 + 512 + 512 * 10 + 10),  # torchvision's vgg16_bn.features, no biases
    ],
)
def test_parameters_as_published(arch: str, total: int) -> None:
    assert sum(p.numel() for p in build_backbone(arch, CIFAR10).parameters()) == total


@pytest.mark.parametrize(
    ("arch", "reference", "same_from"),
    [("resnet50", "resnet50", 1), ("vgg16", "vgg16_bn", 0), ("mobilenet", "mobilenet_v2", 0)],
)
def test_convolutions_as_in_torchvision(arch: str, reference: str, same_from: int) -> None:
    """Same kernels, channels and groups in the same order; ResNet-50's stem alone is 3x3 here and 7x7 there."""

    def convolutions(network: nn.Module) -> list[tuple]:
        found = [m for m in network.modules() if isinstance(m, nn.Conv2d)][same_from:]
        return [(m.in_channels, m.out_channels, m.kernel_size, m.groups) for m in found]

    with torch.device("meta"):
        assert convolutions(build_backbone(arch, CIFAR10)) == convolutions(torchvision.models.get_model(reference))


@pytest.mark.parametrize(("arch", "last"), [("resnet34", 4), ("resnet50", 4), ("vgg16", 1), ("mobilenet", 4)])
def test_how_far_a_cifar_image_shrinks(arch: str, last: int) -> None:
    network, sizes = build_backbone(arch, CIFAR10).eval(), []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            module.register_forward_hook(lambda _, __, output: sizes.append(output.shape[-1]))
    with torch.no_grad():
        network(torch.rand(1, 3, 32, 32))
    assert sizes[0] == 32 and sizes[-1] == last


@pytest.mark.parametrize("arch", sorted(BACKBONES))
@pytest.mark.parametrize("width", [0.01, 0.25, 0.37, 0.5, 0.75])
def test_a_narrow_backbone_has_the_leading_blocks_of_the_full_one(arch: str, width: float) -> None:
    with torch.device("meta"):
        full, narrow = (build_backbone(arch, CIFAR10, w).state_dict() for w in (1.0, width))
    assert list(narrow) == list(full)
    for name, tensor in narrow.items():
        assert tensor.ndim == full[name].ndim
        for axis, (small, large) in enumerate(zip(tensor.shape, full[name].shape, strict=True)):
            pixels = FLATTENED.get((arch, name), 1) if axis == 1 else 1
            assert small in (large, max(1, round(large // pixels * width)) * pixels)
    assert sum(t.numel() for t in narrow.values()) < sum(t.numel() for t in full.values())


def test_half_the_width_by_hand() -> None:
    """CIFAR ResNet-20 with 8, 16 and 32 channels: every hidden weight a quarter, stem and linear weights half."""
    weights = 9 * (3 * 8 + 6 * 8 * 8 + 8 * 16 + 5 * 16 * 16 + 16 * 32 + 5 * 32 * 32) + 320
    assert sum(p.numel() for p in build_backbone("resnet20", CIFAR10, 0.5).parameters() if p.dim() > 1) == weights


@pytest.mark.parametrize("width", [0.0, -1.0, 1.01, float("nan")])
def test_a_width_out_of_range_is_refused(width: float) -> None:
    with pytest.raises(RecipeError, match=r"width \(=.*\) must be in \(0, 1\]"):
        build_backbone("resnet20", CIFAR10, width)


@pytest.mark.parametrize("arch", sorted(BACKBONES))
@pytest.mark.parametrize("width", [1.0, 0.02])
def test_a_traced_backbone_answers_the_same(arch: str, width: float) -> None:
    network = build_backbone(arch, CIFAR10, width).eval()
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.fx.symbolic_trace(network)(image), network(image))
    assert not any(getattr(module, "inplace", False) for module in network.modules())


@pytest.mark.parametrize(("arch", "millions"), [("wrn16-8", 10.96), ("wrn40-2", 2.24)])
def test_wide_resnets_have_the_published_size(arch: str, millions: float) -> None:
    total = sum(p.numel() for p in build_backbone(arch, CIFAR10).parameters()) / 1e6
    assert total == pytest.approx(millions, abs=0.02)  # Zagoruyko and Komodakis 2016, table 4 (11.0 M and 2.2 M)


@pytest.mark.parametrize("arch", sorted(BACKBONES))
@pytest.mark.parametrize("size", [8, 28, 32, 96])
def test_any_small_image_gives_one_logit_per_class(arch: str, size: int) -> None:
    data = DatasetInfo("x", (2, size, size), tuple("abc"), (0.5, 0.5), (0.2, 0.2))
    with torch.no_grad():
        logits = build_backbone(arch, data).eval()(torch.rand(2, 2, size, size))
    assert logits.shape == (2, 3) and bool(torch.isfinite(logits).all())


def test_the_single_layer_cnn_has_the_papers_hidden_neurons() -> None:
    """39,200 (paper 2, section 4.1), counted in a forward pass; 75 weights and a bias per filter, 39,200 per class."""
    network, sizes = build_backbone("single-layer-cnn", CIFAR10).eval(), []
    network.conv.register_forward_hook(lambda _, __, output: sizes.append(output[0].numel()))
    with torch.no_grad():
        network(torch.rand(2, 3, 32, 32))
    assert sizes == [39_200]
    assert sum(p.numel() for p in network.parameters()) == 50 * 76 + 10 * 39_201


def test_lenets_layers_are_pytorchs_example_with_padding() -> None:
    """On MNIST's 28x28: 20 and 50 filters of 5x5 and 500 neurons, with weights and a bias each; pools alone shrink."""
    data = DatasetInfo("mnist", (1, 28, 28), tuple("0123456789"), (0.1307,), (0.3081,))
    network, found = build_backbone("lenet", data).eval(), {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
    with torch.no_grad():
        logits = network(torch.rand(2, 1, 28, 28))
    shapes = {name: tuple(output.shape[1:]) for name, output in found.items() if name != "normalize"}
    assert shapes == {"conv1": (20, 14, 14), "conv2": (50, 7, 7), "fc1": (500,), "linear": (10,)}
    assert all(float(found[name].min()) == 0 for name in ("conv1", "conv2", "fc1")) and found["linear"] is logits
    weights = 20 * (25 + 1) + 50 * (20 * 25 + 1) + 500 * (50 * 7 * 7 + 1) + 10 * (500 + 1)
    assert sum(p.numel() for p in network.parameters()) == weights


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 7), (1, 5, 9)])
def test_lenet_takes_images_from_4x4_up(shape: tuple[int, int, int]) -> None:
    data = DatasetInfo("x", shape, tuple("abc"), (0.5,) * shape[0], (0.2,) * shape[0])
    with torch.no_grad():
        assert build_backbone("lenet", data)(torch.rand(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize(("arch", "side"), [("single-layer-cnn", 5), ("lenet", 4)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flat", [False, True])
def test_an_image_that_is_too_small_is_refused(arch: str, side: int, channels: int, flat: bool) -> None:
    height, columns = (side - 1, 8) if flat else (8, side - 1)
    data = DatasetInfo("x", (channels, height, columns), tuple("abc"), (0.5,) * channels, (0.2,) * channels)
    said = rf"\(={arch}\) needs images of at least {side}x{side} pixels; these have {height}x{columns}"
    with pytest.raises(RecipeError, match=said):
        build_backbone(arch, data)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match="did you mean resnet20"):
        build_backbone("resnet-20", CIFAR10)


def test_wrn_depth_must_be_6n_plus_4() -> None:
    with pytest.raises(ValueError, match="6n"):
        WideResNet(17, 2, 3, 10, (0.5,) * 3, (0.5,) * 3)


def test_normalize_by_hand() -> None:
    image = torch.tensor([[[[0.5]], [[1.0]]]])
    expected = torch.tensor([[[[0.5]], [[2.0]]]])
    torch.testing.assert_close(Normalize((0.25, 0.5), (0.5, 0.25))(image), expected)


@pytest.mark.parametrize("size", [(4, 4), (5, 7)])
def test_the_padding_shortcut_subsamples_and_adds_zero_channels(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    y = PadShortcut(4, 2)(x)
    assert torch.equal(y[:, 2:5], x[:, :, ::2, ::2])
    assert y.shape[1] == 7 and not y[:, :2].any() and not y[:, 5:].any()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder with the pretrained ResNet-20 is absent")
def test_a_pretrained_resnet20_fits_and_classifies_cifar10() -> None:
    """Weights that other people trained, in our backbone, on real images: 91.6 % is known for these 1,017."""
    data = dataclasses.replace(CIFAR10, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    network = build_backbone("resnet20", data).eval()
    with np.load(SHARED / "cifar10-resnet20-pretrained.npz", allow_pickle=False) as weights:
        expected = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
        tensors = {name: torch.from_numpy(weights[name]) for name in weights.files}
        assert {name for name in tensors if not name.endswith("num_batches_tracked")} == expected
        network.load_state_dict(tensors, strict=False)
    images = load_dataset(DataSection(name=f"npz:{SHARED / 'cifar10-lossless-6k.npz'}")).test
    with torch.no_grad():
        answers = torch.cat([network(images.batch(slice(i, i + 256))[0]).argmax(1) for i in range(0, len(images), 256)])
    assert float((answers == images.labels).float().mean()) >= 0.91
