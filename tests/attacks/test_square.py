"""Square: the schedule of the reference, shapes worked by hand, and a search that needs no gradient."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deploytool.attacks.draws import Draws
from deploytool.attacks.geometry import distance, slack
from deploytool.attacks.run import run_attack
from deploytool.attacks.square import Square, move_bump, paint, share_of_pixels, stripes, tiles, two_bumps


def test_the_schedule_of_the_paper() -> None:
    # p is halved at 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 queries
    halvings = {0: 0, 10: 0, 11: 1, 50: 1, 51: 2, 200: 2, 500: 3, 1000: 4, 2000: 5, 4000: 6, 6000: 7, 8000: 8, 8001: 9}
    for query, times in halvings.items():
        assert share_of_pixels(query, 0.8, 10_000) == pytest.approx(0.8 / 2**times)
    assert share_of_pixels(501, 0.8, 1000) == share_of_pixels(5010, 0.8, 10_000)


def test_the_start_in_linf_is_stripes() -> None:
    image = torch.full((3, 2, 4, 5), 0.5)
    found = stripes(image, 0.1, Draws.seeded(0, 3)) - image
    torch.testing.assert_close(found.abs(), torch.full_like(found, 0.1))
    assert torch.equal(found, found[:, :, :1].expand_as(found))


def test_a_step_in_linf_is_one_square_in_reach_of_every_pixel() -> None:
    image = torch.full((2, 1, 6, 6), 0.5)
    seen = torch.zeros(6, 6)
    draws = Draws.seeded(0, 2)
    for _ in range(400):
        changed = (paint(image, image, 0.1, 4 / 36, draws) != image).any(1)  # 4 pixels of 36: a square of 2 by 2
        assert changed.sum((1, 2)).tolist() == [4, 4] and torch.equal(changed[0], changed[1])
        seen += changed[0]
    assert float(seen.min()) > 0


def test_bumps_by_hand() -> None:
    # size 3: one row above with its centre in column 1, negative bump of two rows below; each half of norm 1 before
    upper = torch.tensor([[0.25, 1.25, 0.25]])
    lower = torch.tensor([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25]])
    expected = torch.cat([upper / upper.norm(), -lower / lower.norm()]) / 2**0.5
    draws = Draws.seeded(0, 1)
    found = [two_bumps(3, draws) for _ in range(20)]
    assert all(torch.allclose(each, expected) or torch.allclose(each, expected.T) for each in found)
    assert not all(torch.allclose(each, found[0]) for each in found)
    torch.testing.assert_close(two_bumps(1, draws), -torch.ones(1, 1))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (2, 3, 3), (1, 2, 2), (3, 32, 32)])
def test_l2_steps_stay_at_the_radius(shape: tuple[int, int, int]) -> None:
    image = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    draws = Draws.seeded(1, 4)
    point = tiles(image, 0.1, draws)
    for share in (0.8, 0.2, 0.05, 0.001):
        torch.testing.assert_close(distance(point - image, "l2"), torch.full((4,), 0.1), atol=1e-5, rtol=0)
        point = move_bump(image, point, 0.1, share, draws)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.12), ("l2", 0.6)])
def test_it_fools_without_gradients(plain_network, digits, norm: str, eps: float) -> None:
    image, label = digits
    blind = lambda x: plain_network(x).detach()  # noqa: E731
    found = run_attack(blind, image, label, Square(eps, norm, queries=150))
    assert found.backwards == 0
    assert found.robust_accuracy() < float((plain_network(image).argmax(1) == label).float().mean()) - 0.1
    assert float(found.distance.max()) <= eps + slack(eps)
    more = run_attack(blind, image, label, Square(eps, norm, queries=150, restarts=2))
    assert not bool((found.fooled & ~more.fooled).any())


def test_fooled_images_are_not_asked_about_again(plain_network, digits) -> None:
    asked: list[int] = []

    def network(image: Tensor) -> Tensor:
        asked.append(len(image))
        return plain_network(image)

    run_attack(network, *digits, Square(0.2, queries=60))
    assert asked[1:-1] == sorted(asked[1:-1], reverse=True) and asked[-2] < asked[1]


def test_every_step_lowers_the_margin(plain_network, digits) -> None:
    image, label = digits[0][:50], digits[1][:50]
    attack = Square(0.03, queries=20)
    margins = []
    for queries in (1, 20, 80):
        found = run_attack(plain_network, image, label, replace(attack, queries=queries, rescale=False))
        logits = plain_network(found.image)
        margins.append(logits.gather(1, label[:, None]).squeeze(1) - logits.topk(2).values[:, 1])
    robust = ~found.fooled
    assert robust.any() and bool((margins[1] <= margins[0] + 1e-5)[robust].all())
    assert float((margins[2] - margins[1])[robust].mean()) < 0


def test_targets_are_reached(plain_network, digits) -> None:
    image, label = digits[0][:40], digits[1][:40]
    target = plain_network(image).topk(2).indices[:, 1]
    fits = target != label
    found = run_attack(
        plain_network, image[fits], label[fits], Square(0.3, queries=200, targeted=True), target=target[fits]
    )
    assert float(found.fooled.float().mean()) > 0.3
    assert torch.equal(plain_network(found.image[found.fooled]).argmax(1), target[fits][found.fooled])
