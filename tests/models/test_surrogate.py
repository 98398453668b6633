"""The surrogate: attention as its formulas have it, features at three scales, maps of the image's size in [0, 1]."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deploytool.data.catalogue import CATALOGUE, DatasetInfo
from deploytool.errors import RecipeError
from deploytool.models.attention import CBAM
from deploytool.models.folding import FoldedBackbone, folded_network
from deploytool.models.resnet import BasicBlock, Bottleneck
from deploytool.models.surrogate import AttentiveBlock, build_surrogate

CIFAR = CATALOGUE["cifar10"]


def test_attention_by_its_formulas() -> None:
    """Woo et al., eqs. 1 to 3, written out with one MLP for both pools."""
    torch.manual_seed(0)
    cbam = CBAM(8).double()
    f = torch.randn(3, 8, 5, 6, dtype=torch.float64)
    first, second = cbam.channel.squeeze, cbam.channel.excite

    def mlp(x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(x @ first.weight[:, :, 0, 0].T + first.bias)
        return hidden @ second.weight[:, :, 0, 0].T

    factors = torch.sigmoid(mlp(f.mean((2, 3))) + mlp(f.flatten(2).max(2).values) + second.bias)
    g = f * factors[:, :, None, None]
    maps = torch.stack([g.sum(1) / 8, g.max(1).values], 1)
    places = torch.sigmoid(F.conv2d(maps, cbam.spatial.conv.weight, padding=3))
    torch.testing.assert_close(cbam(f), places * g)


@pytest.mark.parametrize("block", [BasicBlock(4, 8, 2, "B"), Bottleneck(4, 4, 8, 1, "B")])
def test_a_block_delivers_what_attention_takes_away(block: BasicBlock | Bottleneck) -> None:
    """D = f_hat - f_o of fig. 3; without its attention the block is what it was."""
    attentive = AttentiveBlock(block).eval()
    x = torch.randn(2, 4, 6, 6)
    y, d = attentive(x)
    f = block.residual(x)
    torch.testing.assert_close(y, torch.relu(f + d + block.shortcut(x)))
    torch.testing.assert_close(d, attentive.attention(f) - f)
    torch.testing.assert_close(torch.relu(f + block.shortcut(x)), block(x))
    assert (d.abs() <= f.abs() + 1e-6).all()  # factors are in (0, 1)


@pytest.mark.parametrize(
    ("arch", "shape", "modules", "scales"),
    [
        ("resnet8", (3, 32, 32), 3, [(16, 32), (32, 16), (64, 8)]),
        ("resnet20", (1, 8, 8), 9, [(16, 8), (32, 4), (64, 2)]),
        ("resnet34", (3, 20, 28), 4 + 6 + 3, [(128, 10), (256, 5), (512, 3)]),
        ("resnet50", (3, 16, 16), 4 + 6 + 3, [(512, 8), (1024, 4), (2048, 2)]),
        ("resnet50-imagenet", (3, 64, 64), 4 + 6 + 3, [(512, 8), (1024, 4), (2048, 2)]),
    ],
)
def test_scales_and_maps(arch: str, shape: tuple[int, int, int], modules: int, scales: list[tuple[int, int]]) -> None:
    channels = shape[0]
    info = DatasetInfo("x", shape, ("a", "b", "c"), (0.5,) * channels, (0.25,) * channels)
    multiplier = 0.25 if arch.startswith("resnet50") else 1.0
    surrogate = build_surrogate(arch, info, multiplier).eval()
    assert sum(isinstance(module, CBAM) for module in surrogate.modules()) == modules
    image = torch.rand(2, *shape)
    with torch.no_grad():
        logits, features = surrogate.student(image)
        again, saliency = surrogate(image)
    assert [(f.shape[1], f.shape[2]) for f in features] == [(int(c * multiplier), size) for c, size in scales]
    assert logits.shape == (2, 3) and torch.equal(logits, again)
    assert saliency.shape == (2, 1, *shape[1:]) and saliency.min() >= 0 and saliency.max() <= 1


def test_attention_in_the_last_block_of_each_stage_alone() -> None:
    """Its features are those of the whole, where the other modules let everything through."""
    torch.manual_seed(0)
    whole, sparse = (build_surrogate("resnet20", CIFAR, everywhere=e).eval() for e in (True, False))
    assert sum(isinstance(module, CBAM) for module in sparse.modules()) == 3
    names = {name.replace(".block.", "."): tensor for name, tensor in whole.state_dict().items()}
    sparse.load_state_dict({name: names[name.replace(".block.", ".")] for name in sparse.state_dict()})
    for stage in (whole.student.resnet.layer1, whole.student.resnet.layer2, whole.student.resnet.layer3):
        for block in stage[:-1]:
            block.attention = nn.Identity()
    image = torch.rand(2, 3, 32, 32)
    for one, other in zip(whole(image), sparse(image), strict=True):
        torch.testing.assert_close(one, other)


def test_batch_norms_fold() -> None:
    """What makes maps fast: the traced surrogate answers the same without most of its batch norms."""
    torch.manual_seed(0)
    surrogate = build_surrogate("resnet20", CIFAR)
    surrogate.train()(torch.rand(16, 3, 32, 32))
    surrogate.eval()
    assert len(FoldedBackbone(surrogate).pairs) == 1 + 2 * 9 + 3  # stem, blocks, upsample
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for one, other in zip(folded_network(surrogate)(image), surrogate(image), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", ["resnet20", "resnet34"])
@pytest.mark.parametrize("stride", [2, 4])
def test_coarse_maps_are_interpolated(arch: str, stride: int) -> None:
    """Drawn once for each cell of the grid, bilinear between: second differences vanish inside a cell."""
    surrogate = build_surrogate(arch, CIFAR, 0.25, stride=stride).eval()
    with torch.no_grad():
        _, features = surrogate.student(torch.rand(2, 3, 32, 32))
        evidence = surrogate.explanation(features, torch.Size((32, 32)))
    evidence = evidence / evidence.std()
    assert evidence.shape == (2, 1, 32, 32)
    inside = [x for x in range(1, 31) if (x - stride // 2) % stride not in (0, stride - 1)]
    bend = evidence[..., 2:] - 2 * evidence[..., 1:-1] + evidence[..., :-2]
    assert all(bend[..., x - 1].abs().max() < 1e-4 for x in inside)


def test_strides_that_do_not_fit() -> None:
    with pytest.raises(
        RecipeError, match=r"explanation.stride \(=3\) must be 1, 2, 4 for resnet20 and images of 32x32"
    ):
        build_surrogate("resnet20", CIFAR, stride=3)
    odd = DatasetInfo("x", (3, 30, 32), ("a", "b"), (0.5,) * 3, (0.2,) * 3)
    with pytest.raises(RecipeError, match=r"\(=4\) must be 1, 2 for resnet20 and images of 30x32"):
        build_surrogate("resnet20", odd, stride=4)


@pytest.mark.parametrize("arch", ["vgg16", "wrn40-2", "mobilenet"])
def test_other_architectures_are_refused(arch: str) -> None:
    with pytest.raises(RecipeError, match=rf"student.arch \(={arch}\) must be a ResNet: .*resnet20"):
        build_surrogate(arch, CIFAR)
