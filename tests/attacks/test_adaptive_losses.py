"""The benchmark that the loss of `Consistent` was chosen by climbs losses as `Consistent` does."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from deploytool.attacks.acceptance import AcceptanceRule
from deploytool.attacks.consistent import Consistent
from deploytool.attacks.run import run_attack

FILE = Path(__file__).parents[2] / "benchmarks" / "adaptive_losses.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("adaptive_losses", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their types
    spec.loader.exec_module(module)
    return module


def test_the_loss_in_use_gives_the_first_round_of_the_attack(benchmark: ModuleType, two_heads) -> None:
    network, vectors, image, label = two_heads
    rule = AcceptanceRule(vectors, 0.9)
    candidate = benchmark.Candidate(0.1, 5, benchmark.LOSSES[benchmark.USED])
    found = run_attack(network, image, label, candidate, rule=rule)
    expected = run_attack(network, image, label, Consistent(0.1, steps=5, restarts=1), rule=rule)
    assert torch.equal(found.image, expected.image) and found.backwards == expected.backwards > 0


def test_every_loss_is_higher_on_what_is_named_and_accepted(benchmark: ModuleType) -> None:
    """Two classes, two reasons, by hand: the answer that the target wants, and its opposite."""
    rule = AcceptanceRule(torch.tensor([[1, 0], [0, 1]]), 1)
    answer = torch.tensor([[2.0, -2.0, 1.0, -1.0], [-2.0, 2.0, -1.0, 1.0]])
    for name, loss in benchmark.LOSSES.items():
        wanted, opposite = loss(answer, torch.tensor([0, 0]), rule, torch.ones(2, 2))
        assert wanted > opposite, name
