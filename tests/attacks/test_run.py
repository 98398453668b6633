"""What holds for every attack: balls, seeds, batches, bookkeeping."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deploytool.attacks.apgd import Apgd, ApgdTargeted
from deploytool.attacks.autoattack import AutoAttack
from deploytool.attacks.carlini import CarliniWagner
from deploytool.attacks.deepfool import DeepFool
from deploytool.attacks.fab import Fab
from deploytool.attacks.geometry import distance, slack
from deploytool.attacks.names import Norm
from deploytool.attacks.pgd import Pgd
from deploytool.attacks.run import Attack, run_attack
from deploytool.attacks.square import Square
from deploytool.errors import InputError

NAMES = ["pgd", "apgd-ce", "apgd-dlr", "apgd-t", "square", "fab-t", "deepfool", "cw", "autoattack", "autoattack-rand"]


def small(name: str, eps: float, norm: Norm) -> Attack:
    """An attack of a few steps."""
    made: dict[str, Attack] = {
        "pgd": Pgd(eps, eps / 2, 3, norm=norm, restarts=2),
        "apgd-ce": Apgd(eps, norm, steps=4),
        "apgd-dlr": Apgd(eps, norm, "dlr", steps=4),
        "apgd-t": ApgdTargeted(eps, norm, steps=3, targets=2),
        "square": Square(eps, norm, queries=8),
        "fab-t": Fab(eps, norm, steps=4, targets=2, restarts=2),
        "deepfool": DeepFool(eps, norm=norm, steps=4),
        "cw": CarliniWagner(eps, steps=5, search_steps=2),
        "autoattack": AutoAttack(eps, norm, steps=2, targets=2, queries=3),
        "autoattack-rand": AutoAttack(eps, norm, "rand", steps=2, eot_iter=2),
    }
    return made[name]


@settings(max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.one_of(st.just(0.0), st.floats(1e-4, 1)),
    seed=st.integers(0, 2**31 - 1),
    contrast=st.sampled_from([0.01, 0.5, 1.0]),
)
def test_images_stay_images_and_perturbations_within_their_ball(name, norm, eps, seed, contrast) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = ((torch.rand(5, 2, 4, 5, generator=generator) - 0.5) * contrast + 0.5).round(decimals=2)
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(40, 8), nn.Tanh(), nn.Linear(8, 5)).eval()
    label = torch.where(torch.arange(5) < 4, network(image).argmax(1), 0)
    attack = small(name, eps, norm)
    kept = image.clone()
    result = run_attack(network, image, label, attack, seed)
    assert torch.equal(image, kept)
    assert result.image.shape == image.shape and result.image.dtype == torch.float32 and not result.image.requires_grad
    assert float(result.image.min()) >= 0 and float(result.image.max()) <= 1
    torch.testing.assert_close(result.distance, distance(result.image - image, attack.norm))
    if not attack.minimal:
        assert float(result.distance.max()) <= eps + slack(eps)
    answers = network(result.image).argmax(1)
    assert torch.equal(result.fooled, answers != label)
    wrong = network(image).argmax(1) != label
    assert bool(result.fooled[wrong].all()) and float(result.distance[wrong].sum()) == 0
    assert result.robust_accuracy() == pytest.approx(float(result.robust().float().mean()))
    json.dumps(result.record, allow_nan=False)


@settings(max_examples=30)
@given(name=st.sampled_from(NAMES), norm=st.sampled_from(["linf", "l2"]), seed=st.integers(0, 2**31 - 1))
def test_no_label_flips_that_the_ball_cannot_flip(name: str, norm: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 12, generator=generator)
    network = lambda image: image.flatten(1) @ weight.T  # noqa: E731
    image = torch.rand(6, 1, 3, 4, generator=generator)
    label = network(image).argmax(1)
    logits = network(image)
    gap = logits.gather(1, label[:, None]) - logits
    spread = torch.linalg.vector_norm(weight[label][:, None] - weight[None], 1 if norm == "linf" else 2, dim=2)
    exact = (gap / spread).nan_to_num(nan=torch.inf).amin(1)
    eps = float(exact.min()) * 0.999
    result = run_attack(network, image, label, small(name, min(eps, 1.0), norm), seed)
    within = result.fooled & (result.distance <= eps)
    assert not bool(within.any()) and result.robust_accuracy() == 1


@pytest.mark.parametrize("name", NAMES)
def test_seeds_reproduce_bits(plain_network, digits, name: str) -> None:
    image, label = digits[0][:30], digits[1][:30]
    attack = small(name, 0.1, "linf")
    first, again = (run_attack(plain_network, image, label, attack, seed=3) for _ in range(2))
    assert torch.equal(first.image, again.image) and first.record == again.record
    assert (first.forwards, first.backwards) == (again.forwards, again.backwards)
    other = run_attack(plain_network, image, label, attack, seed=4)
    drawn = name not in ("deepfool", "cw")
    assert torch.equal(first.image, other.image) is not drawn


@pytest.mark.parametrize("name", NAMES)
def test_torch_s_own_generator_is_left_alone(linear, grey, name: str) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    run_attack(linear, *grey, small(name, 0.1, "linf"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_s_fate_does_not_depend_on_its_neighbours(linear, grey, name: str) -> None:
    # the neighbours are replaced by images that fall at once; those that stay are attacked alike
    image, label = grey
    attack = small(name, 0.05, "linf")
    whole = run_attack(linear, image, label, attack)
    wrong = label.clone()
    wrong[::2] = (label[::2] + 1) % 5
    part = run_attack(linear, image, wrong, attack)
    torch.testing.assert_close(part.image[1::2], whole.image[1::2], atol=1e-5, rtol=0)
    assert torch.equal(part.fooled[1::2], whole.fooled[1::2])


def test_batches_draw_for_themselves(linear, grey) -> None:
    image, label = grey
    done: list[int] = []
    attack = Pgd(0.05, 0.01, 2)
    whole = run_attack(linear, image, label, attack, batch=5, on_batch=done.append)
    assert done == [5, 5, 2] and len(whole) == 12 and whole.record["batch"] == 5
    first = run_attack(linear, image[:5], label[:5], attack, batch=5)
    torch.testing.assert_close(whole.image[:5], first.image)


def test_the_record_says_how_it_was_got(linear, grey) -> None:
    image, label = grey
    record = run_attack(linear, image, label, Square(8 / 255, queries=3), seed=11, name="square").record
    assert record["attack"] == "square" and record["seed"] == 11 and record["images"] == 12
    assert record["budget"] == {
        "eps": 8 / 255, "norm": "linf", "queries": 3, "p": 0.8, "rescale": True, "restarts": 1, "targeted": False
    }  # fmt: skip
    assert run_attack(linear, image, label, Square(0.1, queries=3)).record["attack"] == "Square"


def test_accuracy_at_another_eps_is_for_smallest_perturbations_alone(linear, grey) -> None:
    result = run_attack(linear, *grey, Pgd(0.05, 0.02, 3))
    assert result.robust_accuracy(0.05) == result.robust_accuracy()
    with pytest.raises(InputError, match=r"eps \(=0.1\): this attack was run at 0.05 alone"):
        result.robust_accuracy(0.1)
    unbounded = run_attack(linear, *grey, DeepFool())
    assert unbounded.eps is None and unbounded.robust_accuracy() == 0
    assert unbounded.robust_accuracy(1e-9) == 1


def test_what_an_attack_spends_is_counted(linear, grey) -> None:
    asked: list[int] = []

    def network(image: torch.Tensor) -> torch.Tensor:
        asked.append(len(image))
        return linear(image)

    result: Any = run_attack(network, *grey, Apgd(0.02, steps=5))
    assert result.forwards == sum(asked) and 0 < result.backwards < result.forwards


def test_budgets_are_attacks() -> None:
    assert all(isinstance(small(name, 0.1, "l2"), Attack) for name in NAMES)


def test_the_mean_answer_decides_on_a_network_that_draws_noise() -> None:
    # logits (1, 0) with noise of deviation 1: one draw errs at 24 % of images, the mean of 100 at none
    generator = torch.Generator().manual_seed(0)

    def network(image: Tensor) -> Tensor:
        clean = torch.stack([torch.ones(len(image)), torch.zeros(len(image))], 1) + 0 * image.sum((1, 2, 3))[:, None]
        return clean + torch.randn(clean.shape, generator=generator)

    image, label = torch.rand(200, 1, 2, 2), torch.zeros(200, dtype=torch.int64)
    single, mean = (
        run_attack(network, image, label, Pgd(0.0, 0.0, 1, eot_iter=passes)).robust_accuracy() for passes in (1, 100)
    )
    assert mean == 1 and single < 0.85
