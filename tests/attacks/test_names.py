"""Names of attacks: read, refused with advice, and known without torch."""

import subprocess
import sys

import pytest

from deploytool.attacks.names import ATTACK_PATTERN, AttackName, black_box_names, parse_name
from deploytool.errors import InputError

ALL = [
    "fgsm", "pgd-1", "pgd-20", "pgd-9999-l2", "deepfool", "cw", "square", "square-l2", "apgd-ce", "apgd-dlr-l2",
    "apgd-t", "fab-t", "fab-t-l2", "autoattack", "autoattack-l2", "autoattack-rand", "autoattack-rand-l2", "fgsm-l2",
    "consistent-20", "consistent-9999-l2",
]  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_names_are_read(name: str) -> None:
    parsed = parse_name(name)
    assert parsed.norm == ("l2" if name.endswith("-l2") or name in ("cw", "deepfool") else "linf")
    assert name.startswith(parsed.kind)


def test_what_a_name_says() -> None:
    assert parse_name("pgd-20-l2") == AttackName("pgd", "l2", 20)
    assert parse_name("square").black_box and not parse_name("autoattack").black_box
    assert [name for name in ALL if parse_name(name).minimal] == ["deepfool", "cw", "fab-t", "fab-t-l2"]
    assert parse_name("consistent-20-l2") == AttackName("consistent", "l2", 20)
    assert [name for name in ALL if parse_name(name).reasoned] == ["consistent-20", "consistent-9999-l2"]
    assert all(parse_name(name).black_box for name in black_box_names())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("pgd20", "pgd-20"), ("autoatack", "autoattack"), ("deep-fool", "deepfool"), ("apgd", "apgd-t"),
        ("PGD-7", "pgd-7"), ("fgsm ", "fgsm"), ("sqare", "square"), ("fab", "fab-t"), ("auto-attack", "autoattack"),
        ("consistent", "consistent-20"), ("consistant-20", "consistent-20"),
    ],
)  # fmt: skip
def test_the_nearest_name_is_advised(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=rf"did you mean {nearest}\?; known: fgsm, pgd-K"):
        parse_name(name)


@pytest.mark.parametrize(
    "name", ["", "pgd", "pgd-0", "pgd--1", "pgd-10000", "cw-l2", "deepfool-l2", "pgd-7-linf", "consistent-0", "x" * 999]
)
def test_unknown_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError, match="is unknown") as caught:
        parse_name(name)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_a_pattern_newline_is_no_part_of_a_name() -> None:
    with pytest.raises(InputError):
        parse_name("fgsm\n")
    assert ATTACK_PATTERN.startswith("^") and ATTACK_PATTERN.endswith("$")


def test_names_need_no_torch() -> None:
    code = "import sys; import deploytool.attacks.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
