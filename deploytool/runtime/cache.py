"""Specialised networks kept by how lately they were used, within a number of bytes."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from deploytool.runtime.network import Network

K = TypeVar("K", bound=Hashable)


class NetworkCache(Generic[K]):
    """Networks by setting; not safe for use by several threads at once, which is its owner's part.

    Memory that networks share is counted once. The network used last is kept even if it alone is over the limit.

    Args:
        limit_bytes: of memory to hold.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.evicted = 0
        self._networks: OrderedDict[K, Network] = OrderedDict()

    def __len__(self) -> int:
        return len(self._networks)

    def __contains__(self, key: K) -> bool:
        return key in self._networks

    def get(self, key: K) -> Network | None:
        """The network of a setting, which counts as using it; None where there is none."""
        if key not in self._networks:
            return None
        self._networks.move_to_end(key)
        return self._networks[key]

    def put(self, key: K, network: Network) -> None:
        """Keep a network, and let go of those that were not used for longest while there is too much."""
        self._networks[key] = network
        self._networks.move_to_end(key)
        while len(self._networks) > 1 and self.nbytes > self.limit_bytes:
            self._networks.popitem(last=False)
            self.evicted += 1

    def networks(self) -> list[Network]:
        """All networks, the one used longest ago first."""
        return list(self._networks.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all networks."""
        pieces: dict[int, int] = {}
        for network in self._networks.values():
            pieces.update(network.footprint())
        return sum(pieces.values())
