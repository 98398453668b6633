"""Choosing where to compute."""

import torch

from deploytool.errors import InputError
from deploytool.runtime.threads import check_threads


def choose_device(name: str) -> str:
    """Return a usable torch device: `auto` is a GPU where there is one, else the CPU.

    Raises:
        InputError: the device does not exist here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # `meta` makes tensors, but computes nothing
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"--device {name} cannot be used: {str(error).splitlines()[0][:120]}; try cpu") from None
    return name


def use_threads(threads: int | None) -> None:
    """Let torch use so many CPU threads; by default what affinity and cgroup quota allow.

    torch's own default counts the machine's cores, which in a container is wrong and slow.

    Raises:
        InputError: the number is not in 1..1024.
    """
    torch.set_num_threads(check_threads(threads))
