"""The conditional state against a numpy oracle of eq. 4, and what training may and may not change."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from deploytool.data.catalogue import CATALOGUE
from deploytool.models.conditional import (
    ConditionalModel,
    FloatModel,
    batch_norms,
    weight_names,
)
from deploytool.models.noise import make_noise_table, noise_table_size, weight_std
from deploytool.models.registry import BACKBONES, build_backbone
from deploytool.models.setting import Setting

DIGITS = CATALOGUE["digits"]


def small_backbone() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )


def trained_like(model: FloatModel, seed: int = 0) -> FloatModel:
    """Give both sets of batch norms different statistics, and the alphas different values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                for tensor in (norm.weight, norm.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                for tensor in (norm.bias, norm.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
        model.alpha.copy_(torch.rand(model.alpha.shape, generator=generator))
    return model.eval()


@pytest.fixture
def model() -> FloatModel:
    torch.manual_seed(0)
    return trained_like(FloatModel(small_backbone()))


@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_equation_4_in_numpy(model: FloatModel, lam: float) -> None:
    state = model.state(Setting(lam))
    position = 0
    table = model.noise_table.numpy().astype(np.float64)
    for name, alpha in zip(("0.weight", "4.weight"), model.alpha.tolist(), strict=True):
        theta = model.backbone.get_parameter(name).detach().numpy().astype(np.float64)
        draws = np.array([table[(position + i) % len(table)] for i in range(theta.size)]).reshape(theta.shape)
        position += theta.size
        eta = draws * theta.std()
        np.testing.assert_allclose(state[name].detach().numpy(), theta + lam * alpha * eta, rtol=1e-5, atol=1e-6)


def test_weights_at_lambda_0_are_theta_itself(model: FloatModel) -> None:
    assert model.state(Setting(0.0)) == {}


def test_switch_takes_one_batch_norm_or_the_other(model: FloatModel) -> None:
    adversarial = model.adversarial_norms["1"]
    for lam, threshold, chosen in [(0.0, 0, False), (0.01, 0, True), (0.5, 0.5, False), (0.51, 0.5, True)]:
        state = model.state(Setting(lam, threshold))
        assert ("1.running_mean" in state) == chosen
        if chosen:
            for key in ("weight", "bias", "running_mean", "running_var"):
                assert state[f"1.{key}"] is getattr(adversarial, key)


def test_interpolate_mixes_the_four_tensors_linearly(model: FloatModel) -> None:
    clean, adversarial = model.backbone[1], model.adversarial_norms["1"]
    state = model.state(Setting(0.25, conditioning="interpolate"))
    for key in ("weight", "bias", "running_mean", "running_var"):
        c, a = getattr(clean, key).detach().numpy(), getattr(adversarial, key).detach().numpy()
        np.testing.assert_allclose(state[f"1.{key}"].detach().numpy(), 0.75 * c + 0.25 * a, rtol=1e-6)


def test_logits_equal_a_hand_written_network(model: FloatModel) -> None:
    """The whole forward at lambda 0.4, interpolated, in plain torch operators on hand-made tensors."""
    image = torch.rand(5, 1, 8, 8)
    setting = Setting(0.4, conditioning="interpolate")
    state = model.state(setting)
    x = F.conv2d(image, state["0.weight"], padding=1)
    norm = {key: state[f"1.{key}"].view(1, -1, 1, 1) for key in ("weight", "bias", "running_mean", "running_var")}
    x = (x - norm["running_mean"]) / torch.sqrt(norm["running_var"] + 1e-5) * norm["weight"] + norm["bias"]
    expected = x.relu().flatten(1) @ state["4.weight"].T + model.backbone[4].bias
    torch.testing.assert_close(model(image, setting), expected, rtol=1e-4, atol=1e-5)
    with model.network(setting) as network:
        torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-5)


def test_alpha_gets_the_gradient_of_equation_4(model: FloatModel) -> None:
    """d loss / d alpha_l = sum(d loss / d theta_hat_l * lambda * eta_l), and no gradient flows through the std."""
    image, label = torch.rand(6, 1, 8, 8), torch.arange(6)
    setting = Setting(0.6)
    F.cross_entropy(model(image, setting), label).backward()
    state = {name: tensor.detach().requires_grad_() for name, tensor in model.state(setting).items() if "0." in name}
    frozen = {name: tensor.detach() for name, tensor in model.state(setting).items()} | state
    loss = F.cross_entropy(torch.func.functional_call(model.backbone, frozen, (image,)), label)
    (gradient,) = torch.autograd.grad(loss, state["0.weight"])
    theta = model.backbone[0].weight.detach()
    eta = (state["0.weight"].detach() - theta) / (0.6 * model.alpha[0].detach())
    assert float(model.alpha.grad[0]) == pytest.approx(float((gradient * 0.6 * eta).sum()), rel=1e-3)
    torch.testing.assert_close(model.backbone[0].weight.grad, gradient, rtol=1e-4, atol=1e-7)


def test_each_condition_updates_its_own_statistics(model: FloatModel) -> None:
    """Running mean after one training forward: 0.9 * old + 0.1 * mean of the activations, for one set alone."""
    clean, adversarial = model.backbone[1], model.adversarial_norms["1"]
    image = torch.rand(16, 1, 8, 8)
    for setting, touched, spared in [
        (Setting(0.0), clean, adversarial),
        (Setting(1.0), adversarial, clean),
        (Setting(0.0, conditioning="interpolate"), clean, adversarial),
        (Setting(1.0, conditioning="interpolate"), adversarial, clean),
    ]:
        before, others = touched.running_mean.clone(), {k: v.clone() for k, v in spared.state_dict().items()}
        count = int(touched.num_batches_tracked)
        weight = model.state(setting).get("0.weight", model.backbone[0].weight)
        activations = F.conv2d(image, weight, padding=1)
        model.train()
        model(image, setting)
        model.eval()
        torch.testing.assert_close(touched.running_mean, 0.9 * before + 0.1 * activations.mean(dim=(0, 2, 3)).detach())
        assert int(touched.num_batches_tracked) == count + 1
        for key, value in spared.state_dict().items():
            assert torch.equal(value, others[key]), key


def test_redrawn_noise_is_new_each_time_and_repeats_with_a_generator(model: FloatModel) -> None:
    setting = Setting(1.0, noise="redrawn")
    first, second = (model.state(setting)["0.weight"] for _ in range(2))
    assert not torch.equal(first, second)
    a, b = (model.state(setting, torch.Generator().manual_seed(3))["0.weight"] for _ in range(2))
    assert torch.equal(a, b)


def test_redrawn_noise_has_the_spread_of_the_weights() -> None:
    torch.manual_seed(0)
    model = FloatModel(nn.Sequential(nn.Flatten(), nn.Linear(400, 400)))
    with torch.no_grad():
        model.alpha.fill_(1.0)
        model.backbone[1].weight.add_(0.3)  # the mean must not matter
    theta = model.backbone[1].weight.detach()
    noise = (model.state(Setting(1.0, noise="redrawn"))["1.weight"] - theta).detach()
    assert float(noise.std()) == pytest.approx(float(theta.std()), rel=0.02)
    assert abs(float(noise.mean())) < 0.02 * float(theta.std())


def test_frozen_noise_is_one_draw_that_a_seed_names() -> None:
    torch.manual_seed(0)
    backbone = small_backbone()
    models = [FloatModel(backbone, noise_seed=seed).state(Setting(1.0))["0.weight"] for seed in (1, 1, 2)]
    assert torch.equal(models[0], models[1]) and not torch.equal(models[0], models[2])


def test_no_noise_leaves_the_weights_alone(model: FloatModel) -> None:
    assert set(model.state(Setting(1.0, noise="none"))) == {
        f"1.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


def test_alphas_start_at_a_quarter_one_per_layer() -> None:
    model = FloatModel(build_backbone("resnet20", CATALOGUE["cifar10"]))
    assert torch.equal(model.alpha.detach(), torch.full((20,), 0.25))


def test_a_network_without_layers_to_condition_is_refused() -> None:
    with pytest.raises(ValueError, match="no convolution or linear layer"):
        FloatModel(nn.Sequential(nn.Flatten(), nn.ReLU()))


def test_the_plain_model_ignores_every_setting() -> None:
    torch.manual_seed(0)
    model = ConditionalModel(small_backbone()).eval()
    image = torch.rand(2, 1, 8, 8)
    assert not model.is_conditional
    assert torch.equal(model(image, Setting(0.0)), model(image, Setting(1.0)))
    assert torch.equal(model(image), model.backbone(image))


@given(count=st.integers(1, 60_000_000))
@settings(max_examples=60)
def test_the_tables_length_is_a_prime_within_bounds(count: int) -> None:
    size = noise_table_size(count)
    assert 241 <= size <= 65521
    assert all(size % divisor for divisor in range(2, int(size**0.5) + 1))
    assert size <= max(251, count // 256)


def test_the_table_is_standard_normal_and_exact_in_float16() -> None:
    table = make_noise_table(65521, 0)
    assert torch.equal(table, table.half().float())
    assert abs(float(table.mean())) < 1e-3 and float(table.std()) == pytest.approx(1, abs=1e-3)
    assert float((table.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.01)


@given(shape=st.tuples(*[st.integers(1, 6)] * 4), shift=st.floats(-2, 2))
@settings(max_examples=40, deadline=None)
def test_weight_std_is_numpys(shape: tuple[int, ...], shift: float) -> None:
    theta = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + shift
    assert float(weight_std(theta)) == pytest.approx(float(theta.double().numpy().std()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("arch", sorted(BACKBONES))
def test_every_backbone_takes_the_state(arch: str) -> None:
    """Names found by type cover exactly the convolutions, linear layers and batch norms of the network."""
    data = DIGITS if "digits" in arch else CATALOGUE["cifar10"]
    model = trained_like(FloatModel(build_backbone(arch, data)))
    assert len(weight_names(model.backbone)) == sum(
        isinstance(module, nn.Conv2d | nn.Linear) for module in model.backbone.modules()
    )
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules())
    assert len(batch_norms(model.backbone)) == norms
    assert (norms > 0) == (arch not in ("single-layer-cnn", "lenet"))
    image = torch.rand(2, *data.shape)
    with torch.no_grad():
        clean, robust = model(image, Setting(0.0)), model(image, Setting(1.0))
    assert clean.shape == (2, len(data.classes))
    assert not torch.allclose(clean, robust, atol=1e-3)
