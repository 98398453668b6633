"""Names to budgets."""

import pytest

from deploytool.attacks.apgd import Apgd, ApgdTargeted
from deploytool.attacks.autoattack import AutoAttack
from deploytool.attacks.carlini import CarliniWagner
from deploytool.attacks.consistent import Consistent
from deploytool.attacks.deepfool import DeepFool
from deploytool.attacks.fab import Fab
from deploytool.attacks.names import parse_name, split_name
from deploytool.attacks.pgd import Pgd
from deploytool.attacks.registry import AttackBase, make_attack
from deploytool.attacks.square import Square
from deploytool.errors import InputError

BASE = AttackBase(8 / 255, 2 / 255, eps_l2=0.5)


@pytest.mark.parametrize(
    ("name", "attack"),
    [
        ("fgsm", Pgd(8 / 255, 8 / 255, 1, random_start=False)),
        ("fgsm-l2", Pgd(0.5, 0.5, 1, random_start=False, norm="l2")),
        ("fgsm:eps=16/255", Pgd(16 / 255, 16 / 255, 1, random_start=False)),
        ("fgsm:eps=1/255", Pgd(1 / 255, 1 / 255, 1, random_start=False)),
        ("fgsm:eps=0.1,step_size=0.05", Pgd(0.1, 0.05, 1, random_start=False)),
        ("pgd-20", Pgd(8 / 255, 2 / 255, 20)),
        ("pgd-7-l2", Pgd(0.5, 0.125, 7, norm="l2")),  # the same share of the radius
        ("deepfool", DeepFool(0.5)),
        ("cw", CarliniWagner(0.5)),
        ("square", Square(8 / 255)),
        ("square-l2", Square(0.5, "l2")),
        ("apgd-ce", Apgd(8 / 255, "linf", "ce", 100)),
        ("apgd-dlr-l2", Apgd(0.5, "l2", "dlr", 100)),
        ("apgd-t", ApgdTargeted(8 / 255, "linf", 100, 9)),
        ("fab-t", Fab(8 / 255, "linf", 100, 9)),
        ("consistent-20", Consistent(8 / 255, steps=20)),
        ("consistent-7-l2:restarts=3,kappa=0.1", Consistent(0.5, "l2", 7, restarts=3, kappa=0.1)),
        ("pgd-20:iterate=last", Pgd(8 / 255, 2 / 255, 20, iterate="last")),
        ("autoattack", AutoAttack(8 / 255)),
        ("autoattack-l2", AutoAttack(0.5, "l2")),
        ("autoattack-rand", AutoAttack(8 / 255, version="rand", eot_iter=20)),
    ],
)
def test_names_take_their_budget_from_the_base(name: str, attack) -> None:
    made = make_attack(name, BASE)
    assert made == attack
    parsed = parse_name(split_name(name)[0])
    assert made.norm == parsed.norm and made.minimal == parsed.minimal


def test_the_base_s_start_and_a_radius_of_0() -> None:
    assert make_attack("pgd-3", AttackBase(0.1, 0.1, random_start=False)).random_start is False
    assert make_attack("pgd-3-l2", AttackBase(0.0, 0.1)).step_size == 0


@pytest.mark.parametrize("change", [{"eps": -0.1}, {"eps": 8}, {"eps_l2": -1}, {"step_size": 3}, {"eps": float("nan")}])
def test_a_base_is_checked(change) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        AttackBase(**{"eps": 0.1, "step_size": 0.1, **change})


def test_unknown_names_are_advised() -> None:
    with pytest.raises(InputError, match="did you mean autoattack"):
        make_attack("autoatack", BASE)
