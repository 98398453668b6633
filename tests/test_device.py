"""Devices: `auto` takes a GPU where there is one; what cannot compute is refused."""

import pytest
import torch

from deploytool.device import choose_device
from deploytool.errors import InputError


@pytest.mark.parametrize(("available", "chosen"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_a_gpu_where_there_is_one(available: bool, chosen: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device("auto") == chosen


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu") == "cpu"


def test_what_is_chosen_computes() -> None:
    assert (torch.ones(2, device=choose_device("auto")) + 1).sum().item() == 4


@pytest.mark.parametrize("name", ["tpu", "", "cpu:x", "cpu:-1", "cuda:4096", "meta", "hpu", "privateuseone", "a b"])
def test_a_device_that_cannot_compute_here_is_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        choose_device(name)
    message = str(caught.value)
    assert message.startswith(f"--device {name} cannot be used: ") and message.endswith("; try cpu")
    assert "\n" not in message and len(message) < 200


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="--device cuda cannot be used"):
        choose_device("cuda")
