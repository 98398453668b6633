"""Parameters and operations against hand-worked numbers, the papers', and torch's own counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deploytool.data.catalogue import CATALOGUE
from deploytool.models.conditional import FloatModel
from deploytool.models.listing import count_macs, extra_params, list_models
from deploytool.models.oat import OatModel
from deploytool.models.registry import BACKBONES, build_backbone

CIFAR10 = CATALOGUE["cifar10"]


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], dict]:
    return {(row["arch"], row["method"]): row for row in list_models(CIFAR10)}


def test_every_backbone_with_every_method_once(rows) -> None:
    every = {(arch, method) for arch in BACKBONES for method in ("standard", "pgd-at", "float", "oat")}
    without = {("single-layer-cnn", "oat"), ("lenet", "oat")}  # they have no batch norm for OAT to condition
    assert set(rows) == every - without
    for row in rows.values():
        assert set(row) == {"arch", "method", "dataset", "params", "extra_params", "macs"}


def test_resnet34_as_in_paper_5(rows) -> None:
    """21.28 MB at 8 bits, 31.40 M with OAT's FiLM layers; 1.16 G operations are widely published."""
    row = rows["resnet34", "pgd-at"]
    assert row["params"] == 21_265_088 + 10 + 2 * 8512 and row["extra_params"] == 0  # 8512 channels are normalised
    assert row["params"] / 1e6 == pytest.approx(21.28, abs=0.005)
    assert row["macs"] == pytest.approx(1.16e9, rel=5e-3)
    assert rows["resnet34", "float"]["params"] == row["params"]
    assert rows["resnet34", "float"]["extra_params"] == 2 * 8512 + 37
    assert rows["resnet34", "oat"]["params"] / 1e6 == pytest.approx(31.40, abs=0.005)
    assert rows["resnet34", "oat"]["extra_params"] == 2 * 8512


def test_resnet20_by_hand(rows) -> None:
    """Nine 3x3 layers' weights act 32 * 32, 16 * 16 and 8 * 8 times; 20 alphas, 2 * 688 numbers of batch norms."""
    row = rows["resnet20", "float"]
    first, second, third = 3 * 16 + 6 * 16 * 16, 16 * 32 + 5 * 32 * 32, 32 * 64 + 5 * 64 * 64
    assert row["params"] == 9 * (first + second + third) + 640 + 10 + 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert row["macs"] == 9 * (1024 * first + 256 * second + 64 * third) + 640
    assert row["extra_params"] == 20 + 2 * (7 * 16 + 6 * 32 + 6 * 64)


@pytest.mark.parametrize(("arch", "millions"), [("vgg16", 313.5), ("mobilenet", 87.98), ("resnet50", 1297.8)])
def test_operations_as_torch_counts_them(arch: str, millions: float, rows) -> None:
    """The millions are those of github chenyaofo/pytorch-cifar-models and kuangliu/pytorch-cifar."""
    with torch.device("meta"):
        network = build_backbone(arch, CIFAR10).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(torch.empty(1, 3, 32, 32))
    assert rows[arch, "standard"]["macs"] == counter.get_total_flops() // 2 == pytest.approx(millions * 1e6, rel=5e-3)


@pytest.mark.parametrize("arch", ["resnet20", "wrn40-2", "mobilenet", "vgg16"])
@pytest.mark.parametrize(("method", "model"), [("float", FloatModel), ("oat", OatModel)])
def test_extra_parameters_are_those_of_the_model(arch: str, method: str, model: type, rows) -> None:
    backbone = build_backbone(arch, CIFAR10)
    row = rows[arch, method]
    assert sum(p.numel() for p in model(backbone).parameters()) == row["params"] + row["extra_params"]
    assert extra_params(backbone, "standard") == 0


def test_groups_and_strides_by_hand() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.Flatten(), nn.Linear(54, 5))
    assert count_macs(network, (4, 6, 6)) == 6 * 3 * 3 * (3 * 3 * 2) + 54 * 5


def test_the_data_set_decides_classes_and_size() -> None:
    tiny = {(row["arch"], row["method"]): row for row in list_models(CATALOGUE["tiny-imagenet"])}
    row = tiny["resnet34", "standard"]
    assert row["params"] == 21_265_088 - 5120 + 512 * 200 + 200 + 2 * 8512
    assert row["macs"] == pytest.approx(4 * 1.16e9, rel=5e-3)
