"""Backbones: known sizes, shapes of CIFAR ResNets and WRNs, and a pretrained ResNet-20 that must fit as it is."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from deploytool.data.catalogue import CATALOGUE, DatasetInfo
from deploytool.data.datasets import load_dataset
from deploytool.errors import RecipeError
from deploytool.models.layers import Normalize, PadShortcut
from deploytool.models.registry import BACKBONES, build_backbone
from deploytool.models.wrn import WideResNet
from deploytool.recipe import DataSection

SHARED = Path(__file__).parents[3] / "shared" / "data"
CIFAR10 = CATALOGUE["cifar10"]


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


@pytest.mark.parametrize(("arch", "millions"), [("wrn16-8", 10.96), ("wrn40-2", 2.24)])
def test_wide_resnets_have_the_published_size(arch: str, millions: float) -> None:
    total = sum(p.numel() for p in build_backbone(arch, CIFAR10).parameters()) / 1e6
    assert total == pytest.approx(millions, abs=0.02)  # Zagoruyko and Komodakis 2016, table 4 (11.0 M and 2.2 M)


@pytest.mark.parametrize("arch", sorted(BACKBONES))
@pytest.mark.parametrize("size", [8, 28, 32])
def test_any_small_image_gives_one_logit_per_class(arch: str, size: int) -> None:
    data = DatasetInfo("x", (2, size, size), tuple("abc"), (0.5, 0.5), (0.2, 0.2))
    with torch.no_grad():
        logits = build_backbone(arch, data).eval()(torch.rand(2, 2, size, size))
    assert logits.shape == (2, 3) and bool(torch.isfinite(logits).all())


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
