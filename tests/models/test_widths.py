"""Slimmable widths: leading blocks, batch norms of their own, and a plain small network at the end."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import InputError
from deploytool.models.conditional import ConditionalModel, FloatModel
from deploytool.models.registry import BACKBONES, build_backbone
from deploytool.models.setting import Setting

DIGITS = CATALOGUE["digits"]


def slimmable(kind=FloatModel, arch: str = "resnet8", widths=(0.25, 0.5), data=DIGITS) -> ConditionalModel:
    torch.manual_seed(0)
    full = build_backbone(arch, data)
    with torch.device("meta"):
        narrow = {width: build_backbone(arch, data, width) for width in widths}
    model = kind(full, narrow=narrow)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d) and not norm.weight.is_meta:
                norm.running_mean.normal_(0, 0.1, generator=generator)
                norm.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@pytest.mark.parametrize("width", [0.25, 0.5])
@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_width_is_a_plain_small_network(width: float, lam: float) -> None:
    """The state, loaded into a network built at that width, answers alike."""
    model, image = slimmable(), torch.rand(3, 1, 8, 8)
    small = build_backbone("resnet8", DIGITS, width).eval()
    state = model.full_state(Setting(lam, width=width))
    small.load_state_dict({name: state[name] for name in small.state_dict()})
    expected = small(image)
    torch.testing.assert_close(model(image, Setting(lam, width=width)), expected, rtol=1e-4, atol=1e-5)
    with model.network(Setting(lam, width=width)) as network:
        torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-4)


def test_weights_are_leading_blocks_of_the_conditioned_ones() -> None:
    model = slimmable()
    full, half = model.state(Setting(0.7)), model.state(Setting(0.7, width=0.5))
    weight = full["layer2.0.conv1.weight"]
    assert torch.equal(half["layer2.0.conv1.weight"], weight[: weight.shape[0] // 2, : weight.shape[1] // 2])
    assert half["conv1.weight"].shape == (8, 1, 3, 3) and half["linear.weight"].shape == (10, 32)
    assert torch.equal(half["linear.bias"], model.backbone.linear.bias)


def test_every_width_and_condition_has_its_own_statistics() -> None:
    model = slimmable().train()
    settings = [Setting(lam, width=width) for width in (0.25, 0.5, 1.0) for lam in (0.0, 1.0)]
    norms = [(model.adversarial_set if setting.lam else model.norm_set)(setting.width)["bn1"] for setting in settings]
    assert len({id(norm) for norm in norms}) == 6
    for index, setting in enumerate(settings):
        before = [int(norm.num_batches_tracked) for norm in norms]
        model(torch.rand(4, 1, 8, 8), setting)
        after = [int(norm.num_batches_tracked) for norm in norms]
        assert [b + (i == index) for i, b in enumerate(before)] == after


def test_all_widths_learn_from_one_backward() -> None:
    model = slimmable().train()
    loss = sum(model(torch.rand(4, 1, 8, 8), Setting(1.0, width=width)).square().mean() for width in model.widths)
    loss.backward()
    gradient = model.backbone.layer1[0].conv1.weight.grad
    assert bool((gradient[-1] != 0).any()) and bool((gradient[0] != 0).any())
    for width in (0.25, 0.5):
        assert model.adversarial_set(width)["bn1"].weight.grad is not None


def test_a_width_that_was_not_trained_is_refused() -> None:
    with pytest.raises(InputError, match=r"width \(=0.75\) was not trained; this model has 0.25, 0.5, 1"):
        slimmable()(torch.rand(1, 1, 8, 8), Setting(width=0.75))
    with pytest.raises(InputError, match="in \\(0, 1\\]"):
        Setting(width=0)


def test_no_tensor_stays_on_meta() -> None:
    model = slimmable()
    assert all(not tensor.is_meta for tensor in model.state_dict().values())
    again = slimmable()
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("arch", sorted(set(BACKBONES) - {"digits-resnet"}))
def test_every_backbone_can_be_slimmed(arch: str) -> None:
    data = CATALOGUE["cifar10"]
    model = slimmable(ConditionalModel, arch, (0.5,), data)
    image = torch.rand(2, *data.shape)
    with torch.no_grad():
        logits = model(image, Setting(width=0.5))
        small = build_backbone(arch, data, 0.5).eval()
        expected = functional_call(small, model.full_state(Setting(width=0.5)), (image,))
    torch.testing.assert_close(logits, expected)
    assert logits.shape == (2, 10)
