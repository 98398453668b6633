"""How long a map takes, a surrogate's and its rivals': one image at a time, all in turns (paper 3, table 3)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deploytool.attacks.victim import Network
from deploytool.explain.explainer import Explainer
from deploytool.explain.fast import fast_network
from deploytool.explain.rivals import PATCH, SLOW, Rivals
from deploytool.export.saliency import surrogate_graph
from deploytool.models.conditional import ConditionalModel
from deploytool.models.setting import Setting
from deploytool.progress import progress_bar
from deploytool.runtime.network import open_session, run_session
from deploytool.runtime.saliency import SALIENCY
from deploytool.timing import interleaved

INFERENCE = "inference"  # the target's plain answer
DEPLOYED, DEPLOYED_MAP = "inference, onnxruntime", "surrogate, onnxruntime"
ROUNDS, WARM_UP = 5, 1
TIMED = 16  # images of a round; methods with hundreds of passes for an image take the first alone


@dataclass(frozen=True)
class Speed:
    """Seconds of an image, of every method and of the target's plain answer, in rounds.

    Attributes:
        names: of the columns.
        seconds: (rounds, names) float64.
    """

    names: list[str]
    seconds: Any

    def fps(self, name: str) -> float:
        """Images per second: the median over rounds."""
        return 1 / float(np.median(self.seconds[:, self.names.index(name)]))

    def ratio(self, name: str, other: str) -> float | None:
        """Time of one over that of the other, round by round, the median; None where one was not timed."""
        if name not in self.names or other not in self.names:
            return None
        one, two = (self.seconds[:, self.names.index(each)] for each in (name, other))
        return float(np.median(one / two))


def measure_speed(
    rivals: Rivals, methods: Sequence[str], image: Tensor, target: Tensor, deployed: Mapping[str, Network]
) -> Speed:
    """Time the target's plain answer and every method in turns on the same images, one by one.

    Args:
        rivals: networks and methods.
        methods: to time.
        image: (N, C, H, W) float32 in [0, 1], N at least 1.
        target: (N,) int64, the class to explain.
        deployed: further networks, by the names that they are to have.
    """
    names = [INFERENCE, *methods, *deployed]
    counts = [1 if name in (*SLOW, PATCH) else min(TIMED, len(image)) for name in names]
    asked = {INFERENCE: rivals.network, **deployed}

    @torch.no_grad()
    def infer(name: str, picture: Tensor, label: Tensor) -> Tensor:
        return asked[name](picture)

    def candidate(name: str, count: int) -> Callable[[], object]:
        answer = partial(infer if name in asked else rivals.maps, name)
        pairs = [(image[each : each + 1], target[each : each + 1]) for each in range(count)]
        return lambda: [answer(*pair).cpu() for pair in pairs]

    with progress_bar("timing", ROUNDS) as bar:
        candidates = [candidate(*each) for each in zip(names, counts, strict=True)]
        times = interleaved(candidates, ROUNDS, warm_up=WARM_UP, after_round=bar.advance)
    return Speed(names, times / np.array(counts))


def sessions(
    explainer: Explainer, setting: Setting, network: Network, image: Tensor
) -> tuple[Network, dict[str, Network]]:
    """The target as it answers soonest, and what is deployed: target and surrogate in onnxruntime.

    Args:
        explainer: of the target.
        setting: of the surrogate.
        network: the target's.
        image: (N, C, H, W), on the device in use.

    Returns:
        The target's network, a session of it where that can be, and `DEPLOYED` and `DEPLOYED_MAP`; neither of them
        where the target is no session, as on a GPU.
    """
    fast, (channels, height, width) = network, image.shape[1:]
    if isinstance(network, nn.Module):
        fast = fast_network(network, (channels, height, width))
    if isinstance(fast, nn.Module) or image.device.type != "cpu":
        return fast, {}
    return fast, {DEPLOYED: fast, DEPLOYED_MAP: deployed_maps(explainer, setting, torch.get_num_threads())}


def deployed_maps(explainer: Explainer, setting: Setting, threads: int) -> Network:
    """The maps of an explainer at one setting, in an onnxruntime session, without its student's logits.

    Args:
        explainer: the surrogate.
        setting: lambda, and how the target's batch norms follow it; folded away.
        threads: of one forward pass.

    Returns:
        image (N, C, H, W) float32 in [0, 1] on the CPU -> maps (N, 1, H, W) float32 in [0, 1].
    """
    plain = replace(explainer, model=ConditionalModel(explainer.model.plain_network(setting)))
    graph = surrogate_graph(plain, setting, [SALIENCY]).SerializeToString()
    session = open_session(graph, threads, "the exported surrogate")

    def maps(image: Tensor) -> Tensor:
        return torch.from_numpy(run_session(session, [SALIENCY], {"image": image.numpy()}, "the exported surrogate")[0])

    return maps
