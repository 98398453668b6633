"""The network as attacks see it: counted, averaged over its noise."""

import pytest
import torch
from torch import Tensor

from deploytool.attacks.apgd import Apgd
from deploytool.attacks.deepfool import DeepFool
from deploytool.attacks.fab import Fab
from deploytool.attacks.losses import margin, of_class
from deploytool.attacks.pgd import Pgd
from deploytool.attacks.run import run_attack
from deploytool.attacks.victim import Victim
from deploytool.errors import InputError


def test_passes_are_counted_per_image(linear, grey) -> None:
    image, label = grey
    victim = Victim(linear)
    victim.logits(image)
    victim.logits(image[:5], eot_iter=3)
    assert (victim.forwards, victim.backwards, victim.classes) == (12 + 15, 0, 5)
    victim.gradient(image[:2], lambda logits: of_class(logits, label[:2]), eot_iter=4)
    victim.gradients(image[:3], lambda logits: [logits[:, 0], logits[:, 1]])
    assert (victim.forwards, victim.backwards) == (27 + 8 + 3, 8 + 6)


def test_gradients_of_a_linear_network_are_its_weights(linear, grey) -> None:
    image, _ = grey
    logits, values, gradients = Victim(linear).gradients(image, lambda logits: [logits[:, 1], logits[:, 4]])
    torch.testing.assert_close(logits, linear(image))
    torch.testing.assert_close(values, logits[:, [1, 4]].T)
    torch.testing.assert_close(gradients[1], linear.weight[4].expand_as(image))
    assert not logits.requires_grad and not image.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "attack", [Apgd(0.1, steps=4), Apgd(0.5, "l2", "dlr", 4), DeepFool(), Fab(0.1, steps=3)], ids=str
)
def test_logits_of_another_precision_leave_images_float32(linear, grey, attack, dtype) -> None:
    image, label = grey
    found = run_attack(lambda x: linear(x).to(dtype), image, label, attack)
    assert found.image.dtype == found.distance.dtype == torch.float32 and bool((found.distance > 0).all())


def test_no_gradient_because_of_inference_mode_is_said(linear, grey) -> None:
    with torch.inference_mode(), pytest.raises(InputError, match=r"torch\.inference_mode\(\) is on"):
        run_attack(linear, *grey, Apgd(0.1))


def noisy(linear, strength: float):
    """Adds to the linear network's weights a new draw of noise with every answer."""
    generator = torch.Generator().manual_seed(1)

    def network(image: Tensor) -> Tensor:
        noise = strength * torch.randn(linear.weight.shape, generator=generator)
        return linear(image) + torch.einsum("nchw,kchw->nk", image - 0.5, noise)

    return network


def test_the_expectation_over_noise_recovers_the_gradient(linear, grey) -> None:
    image, _ = grey
    exact = linear.weight[2].expand_as(image)

    def error(eot_iter: int) -> float:
        _, _, gradient = Victim(noisy(linear, 3.0)).gradient(image, lambda logits: logits[:, 2], eot_iter)
        return float((gradient - exact).square().mean().sqrt())

    # the mean of T draws of standard deviation 3 is off by 3 / sqrt(T)
    assert error(1) == pytest.approx(3, rel=0.3)
    assert error(400) == pytest.approx(3 / 20, rel=0.3)


def test_expectation_makes_the_attack_on_a_noisy_network_stronger(linear, grey, boundary_distance) -> None:
    image, label = grey
    eps = float(boundary_distance(image, label, 1).median()) * 1.2  # L-infinity: the dual norm is L1

    def strength(eot_iter: int) -> float:
        attack = Pgd(eps, eps / 2, 5, random_start=False, eot_iter=eot_iter)
        logits = linear(run_attack(noisy(linear, 6.0), image, label, attack).image)
        return -float(margin(logits, label).mean())  # behind the noise

    assert strength(64) > strength(1)
