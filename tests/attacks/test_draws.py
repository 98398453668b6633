"""Random numbers that do not depend on who else is left."""

import torch

from deploytool.attacks.draws import Draws


def test_an_image_s_numbers_do_not_depend_on_who_left() -> None:
    whole, part = Draws.seeded(7, 5), Draws.seeded(7, 5)
    left = torch.tensor([True, False, True, True, False])
    some = part[left]
    last = some[torch.tensor([2])]
    assert torch.equal(whole.uniform(2, 3)[left], some.uniform(2, 3))
    assert torch.equal(whole.normal()[3:4], last.normal())
    assert torch.equal(whole.signs(4)[left], some.signs(4))
    assert whole.integer(1000) == last.integer(1000)


def test_signs_are_either_and_integers_below_the_bound() -> None:
    draws = Draws.seeded(0, 2000)
    signs = draws.signs(2)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.1
    assert {draws.integer(3) for _ in range(60)} == {0, 1, 2}


def test_rewound_draws_begin_again_for_the_same_images() -> None:
    draws = Draws.seeded(3, 6)
    first = draws.uniform(2)
    rows = torch.tensor([1, 4])
    assert torch.equal(draws[rows].rewound().uniform(2), first[rows])
    assert not torch.equal(draws.uniform(2), first)


def test_draws_of_a_generator_are_its_own() -> None:
    draws = Draws(2, torch.Generator().manual_seed(9))
    assert torch.equal(draws.uniform(3), torch.rand(2, 3, generator=torch.Generator().manual_seed(9)))
