"""Networks that draw noise: attacked as they answer, and told from those that do not."""

import torch

from deploytool.attacks.autoattack import AutoAttack
from deploytool.attacks.randomised import is_randomised, redrawn_network
from deploytool.attacks.run import run_attack
from deploytool.models.setting import Setting


def test_redrawn_noise_is_drawn_with_every_answer(trained_run, digits) -> None:
    image = digits[0][:4]
    setting = Setting(1.0, noise="redrawn")
    network = redrawn_network(trained_run.model, setting, torch.Generator().manual_seed(0))
    again = redrawn_network(trained_run.model, setting, torch.Generator().manual_seed(0))
    first, second = network(image), network(image)
    assert not torch.equal(first, second) and torch.equal(first, again(image))
    assert is_randomised(network, image)
    with trained_run.model.network(setting) as frozen:
        assert not is_randomised(frozen, image)


def test_it_is_the_model_without_noise_on_average(trained_run, digits) -> None:
    image = digits[0][:20]
    network = redrawn_network(trained_run.model, Setting(1.0, noise="redrawn"), torch.Generator().manual_seed(0))
    with trained_run.model.network(Setting(1.0, noise="none")) as quiet:
        exact = quiet(image)
    near, far = (torch.stack([network(image) for _ in range(n)]).mean(0) for n in (60, 1))
    assert float((near - exact).abs().mean()) < float((far - exact).abs().mean())


def test_the_rand_version_attacks_redrawn_noise(trained_run, digits) -> None:
    image, label = digits[0][:40], digits[1][:40]
    network = redrawn_network(trained_run.model, Setting(1.0, noise="redrawn"), torch.Generator().manual_seed(0))
    found = run_attack(network, image, label, AutoAttack(0.2, version="rand", steps=8, eot_iter=3))
    assert 0 < found.robust_accuracy() < 0.9 and not trained_run.model.training
