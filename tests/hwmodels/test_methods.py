"""The table of methods: names, aliases, and what each adds to a plain layer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodels.delay import Chip, float_delay, oat_delay, plain_delay
from hwmodels.errors import MethodError
from hwmodels.methods import DEFAULT_MODELS, METHODS, find_method, with_models

CHIP = Chip(b_io=64, b_w=8, n_bank=4, n_mult=175, tau_read_ns=9, tau_mult_ns=4)
NAMES = [name for method in METHODS for name in (method.name, *method.aliases)]


def test_the_methods_of_the_issue_are_there_and_no_name_is_taken_twice() -> None:
    assert {"plain", "standard", "pgd-at", "pgd-at:1t", "pgd-at:nt", "float", "float-stored-noise", "oat"} <= set(NAMES)
    assert "fixed" in NAMES and len(NAMES) == len(set(NAMES))
    assert len({method.label for method in METHODS}) == len(METHODS) == 6


@pytest.mark.parametrize("name", NAMES)
def test_every_name_finds_its_method_in_any_case(name: str) -> None:
    assert find_method(name) is find_method(name.upper()) or find_method(name) == find_method(f" {name.upper()} ")
    assert name in (find_method(name).name, *find_method(name).aliases)


def test_number_of_networks() -> None:
    assert (find_method("pgd-at:nt").models, find_method("pgd-at:nt").label) == (DEFAULT_MODELS, "PGD-AT:4T")
    assert find_method("PGD-AT:nT", models=7) == find_method("pgd-at:7t") == find_method("pgd-at:7t", models=7)
    assert find_method("pgd-at:7t").models == 7 and find_method("pgd-at:7t").label == "PGD-AT:7T"
    assert find_method("pgd-at:1t").name == "plain" and find_method("float").models == 1
    assert with_models(find_method("oat"), None) == find_method("oat")


@pytest.mark.parametrize(
    ("name", "models", "words"),
    [
        ("flot", None, "did you mean float"),
        ("pgd", None, "did you mean pgd-at"),
        ("free-lunch", None, "known: plain"),
        ("", None, "known: plain"),
        ("pgd-at:0t", None, "1..10000"),
        ("pgd-at:nt", 0, "1..10000"),
        ("pgd-at:99999t", None, "1..10000"),
        ("pgd-at:3t", 4, "contradict"),
        ("float", 4, "pgd-at:nt alone"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(name: str, models: int | None, words: str) -> None:
    with pytest.raises(MethodError, match=words) as caught:
        find_method(name, models)
    assert "\n" not in str(caught.value)


@given(weights=st.integers(1, 10**7), positions=st.integers(1, 10**4), channels=st.integers(0, 2048))
def test_each_method_has_its_equation(weights: int, positions: int, channels: int) -> None:
    plain = plain_delay(weights, positions, CHIP)
    expected = {
        "plain": plain,
        "pgd-at:nt": plain,
        "float": float_delay(weights, positions, CHIP),
        "float-stored-noise": float_delay(weights, positions, CHIP, read_noise=True),
        "oat": oat_delay(weights, positions, channels, CHIP),
        "fixed": plain,
    }
    assert {m.name: m.delay(weights, positions, channels, CHIP) for m in METHODS} == expected


def test_what_is_conditional_costs_something_when_lambda_changes() -> None:
    for method in METHODS:
        assert method.conditional == (method.delay(1000, 4, 16, CHIP).transform_ns > 0)
        assert method.conditional == (method.name in ("float", "float-stored-noise", "oat"))
        assert method.tensors == (2 if method.name == "float-stored-noise" else 1)
        assert method.film_weights(64) == (16512 if method.name == "oat" else 0)  # 2 * 64 + 4 * 64^2
