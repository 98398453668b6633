"""Heat maps against closed forms, and against oracles that hide one patch of one image at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import InputError
from deploytool.explain import attribution
from deploytool.explain.attribution import grad_cam, predicted_class, sliding_patch
from deploytool.models.registry import build_backbone


class Linear(nn.Module):
    """Logits (w . x, 0): the probability of class 0 is the logistic function of w . x."""

    def __init__(self, weight: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, image: Tensor) -> Tensor:
        score = (image * self.weight).sum((1, 2, 3)) + self.bias
        return torch.stack([score, torch.zeros_like(score)], 1)


class Averaged(nn.Module):
    """A 1x1 convolution, ReLU, the mean over pixels, a linear layer: Grad-CAM has a closed form."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.conv, self.relu, self.linear = nn.Conv2d(3, 4, 1), nn.ReLU(inplace), nn.Linear(4, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(self.relu(self.conv(image)).mean((2, 3)))


class Answer(nn.Module):
    """The same answer to every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image: Tensor) -> Tensor:
        return self.logits.expand(len(image), *self.logits.shape)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def resnet8() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("resnet8", CATALOGUE["cifar10"]).eval()


def zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


@pytest.mark.parametrize("bias", [0.0, 30.0, 60.0])
def test_hiding_a_patch_takes_its_share_of_a_linear_score(bias: float) -> None:
    """Patches of 2x2 at stride 2 tile 5x5 pixels, cut off at the border. At 60, float64 has no digit left of p."""
    image, weight = seeded(1, 2, 5, 5), seeded(2, 5, 5, seed=1) - 0.5
    found = sliding_patch(Linear(weight, bias).eval(), image, zeros(1), 2, 2)[0]
    score = float((image[0].double() * weight.double()).sum()) + bias

    def rest(z: float) -> float:
        return 1 / (1 + math.exp(z))

    for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
        for columns in (slice(0, 2), slice(2, 4), slice(4, 5)):
            share = float(((0.5 - image[0]) * weight)[:, rows, columns].sum())
            expected = rest(score + share) - rest(score)
            got = found[rows, columns].flatten().tolist()
            assert got == pytest.approx([expected] * len(got), abs=1e-4 * rest(score))


def one_at_a_time(network: nn.Module, image: Tensor, target: int, size: int, stride: int, fill: float) -> Tensor:
    """The map (H, W) of one image (C, H, W), one forward pass per patch, in float64."""
    height, width = image.shape[1:]

    def probability(x: Tensor) -> float:
        with torch.no_grad():
            return float(network(x[None]).softmax(1)[0, target])

    total, count = torch.zeros(height, width, dtype=torch.float64), torch.zeros(height, width)
    top = 0
    while True:
        left = 0
        while True:
            hidden = image.clone()
            hidden[:, top : top + size, left : left + size] = fill
            total[top : top + size, left : left + size] += probability(image) - probability(hidden)
            count[top : top + size, left : left + size] += 1
            if left + size >= width:
                break
            left += stride
        if top + size >= height:
            break
        top += stride
    return total / count


@pytest.mark.parametrize(
    ("size", "stride", "fill", "shape"),
    [(4, 2, 0.5, (8, 8)), (2, 2, 0.5, (8, 8)), (3, 2, 0.0, (8, 7)), (5, 3, 1.0, (7, 9)), (6, 6, 0.5, (6, 8))],
)
def test_the_sliding_patch_is_the_naive_one(
    resnet8: nn.Module, size: int, stride: int, fill: float, shape: tuple[int, int]
) -> None:
    image, target = seeded(3, 3, *shape), torch.tensor([0, 7, 3])
    found = sliding_patch(resnet8, image, target, size, stride, fill)
    assert found.dtype == torch.float32 and found.shape == (3, *shape)
    exact = build_backbone("resnet8", CATALOGUE["cifar10"]).double().eval()
    exact.load_state_dict(resnet8.state_dict())
    expected = [
        one_at_a_time(exact, x.double(), int(t), size, stride, fill) for x, t in zip(image, target, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(expected).float(), atol=2e-6, rtol=1e-4)


def test_rounding_makes_no_map(resnet8: nn.Module) -> None:
    gray = torch.full((5, 3, 8, 8), 0.5)
    assert sliding_patch(resnet8, gray, zeros(5)).abs().max() == 0


@pytest.mark.parametrize("inplace", [False, True])
def test_grad_cam_of_an_average_is_the_weighted_sum_of_its_maps(inplace: bool) -> None:
    torch.manual_seed(0)
    network, image, target = Averaged(inplace).eval(), seeded(6, 3, 4, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    maps = F.conv2d(image, network.conv.weight, network.conv.bias).relu()
    expected = torch.einsum("nk,nkhw->nhw", network.linear.weight[target], maps).relu() / (4 * 5)
    torch.testing.assert_close(grad_cam(network, image, target), expected)
    assert (expected > 0).any()


def test_grad_cam_is_what_hooks_give(resnet8: nn.Module) -> None:
    image, target = seeded(3, 3, 16, 12), torch.tensor([1, 9, 4])
    for name in ("layer3", "layer2.0.conv2", "layer1"):
        kept: list[Tensor] = []
        hook = resnet8.get_submodule(name).register_forward_hook(lambda *call, kept=kept: kept.append(call[2]))
        logits = resnet8(image)
        hook.remove()
        (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), kept[0])
        coarse = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).relu()
        expected = F.interpolate(coarse, (16, 12), mode="bilinear", align_corners=False)[:, 0].detach()
        torch.testing.assert_close(grad_cam(resnet8, image, target, name), expected)
    torch.testing.assert_close(grad_cam(resnet8, image, target), grad_cam(resnet8, image, target, "layer3"))


def test_nothing_is_left_behind(resnet8: nn.Module) -> None:
    image = seeded(2, 3, 8, 8)
    found = grad_cam(resnet8, image, predicted_class(resnet8, image))
    assert not found.requires_grad and not image.requires_grad
    assert all(parameter.grad is None for parameter in resnet8.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in resnet8.modules())


def test_frozen_networks_have_maps(resnet8: nn.Module) -> None:
    image = seeded(2, 3, 8, 8)
    before = grad_cam(resnet8, image, zeros(2))
    frozen = build_backbone("resnet8", CATALOGUE["cifar10"]).eval().requires_grad_(False)
    frozen.load_state_dict(resnet8.state_dict())
    torch.testing.assert_close(grad_cam(frozen, image, zeros(2)), before)


@settings(max_examples=10)
@given(batch=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_batch_size_changes_no_map(resnet8: nn.Module, batch: int, seed: int) -> None:
    image = seeded(5, 3, 8, 8, seed=seed)
    target = predicted_class(resnet8, image)
    whole = sliding_patch(resnet8, image, target), grad_cam(resnet8, image, target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attribution, "CPU_IMAGES", batch)
        assert torch.equal(predicted_class(resnet8, image), target)
        torch.testing.assert_close(sliding_patch(resnet8, image, target), whole[0], atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(grad_cam(resnet8, image, target), whole[1], atol=1e-6, rtol=1e-4)


def test_memory_is_bounded_by_images_of_a_forward_pass() -> None:
    seen: list[int] = []

    class Counting(Linear):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(len(image))
            return super().forward(image)

    sliding_patch(Counting(seeded(1, 9, 9)).eval(), seeded(150, 1, 9, 9), zeros(150), 1, 1)
    assert max(seen) <= attribution.CPU_IMAGES
    seen.clear()
    sliding_patch(Counting(seeded(1, 9, 9)).eval(), seeded(3, 1, 9, 9), zeros(3), 1, 1)
    assert len(seen) <= 2 + math.ceil(81 / (attribution.CPU_IMAGES // 3))  # positions share a pass


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 9}, "patch size \\(=9\\) must be at most 8: images are 8x8"),
        ({"size": 0}, "patch size \\(=0\\)"),
        ({"stride": 0}, "stride \\(=0\\)"),
        ({"stride": 5}, "stride \\(=5\\) must be in 1..4.*never be hidden"),
        ({"size": 2.5}, "patch size \\(=2.5\\)"),
        ({"fill": 1.5}, "fill \\(=1.5\\) must be in \\[0, 1\\]"),
        ({"target": torch.tensor([0, 10])}, "target holds 10; the network has classes 0..9"),
        ({"target": torch.tensor([0])}, "target is"),
        ({"image": torch.rand(2, 3, 8, 8) * 255}, "expected .*\\[0, 1\\]"),
        ({"image": torch.rand(3, 8, 8)}, "shape \\(3, 8, 8\\)"),
        ({"network": Answer(torch.full((10,), torch.nan)).eval()}, "NaN or infinity"),
        ({"network": Answer(torch.zeros(10, 4, 4)).eval()}, "expected logits \\(N, K\\)"),
        ({"network": Answer(torch.zeros(10))}, "training mode.*eval"),
    ],
)
def test_what_cannot_be_attributed_gets_one_line(resnet8: nn.Module, change: dict, words: str) -> None:
    arguments = {"network": resnet8, "image": seeded(2, 3, 8, 8), "target": zeros(2), **change}
    with pytest.raises(InputError, match=words) as caught:
        sliding_patch(**arguments)
    assert "\n" not in str(caught.value)
    if not {"size", "stride", "fill"} & set(change):
        with pytest.raises(InputError, match=words):
            grad_cam(**arguments)


def test_an_answer_that_breaks_under_the_patch_is_told() -> None:
    class Fragile(Linear):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image) / (image[:, 0, 0] != 0.5)[:, :1]

    with pytest.raises(InputError, match="NaN or infinity"):
        sliding_patch(Fragile(seeded(1, 4, 4)).eval(), seeded(1, 1, 4, 4), zeros(1), 2, 2)
