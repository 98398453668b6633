"""The cache of networks: least recently used goes first, shared memory counts once."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deploytool.runtime.cache import NetworkCache

Array = np.ndarray[Any, Any]


class Pieces:
    """A network that holds pieces of memory, by name."""

    def __init__(self, **pieces: int) -> None:
        self.pieces = {hash(name): size for name, size in pieces.items()}

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        raise AssertionError("a cache runs nothing")

    def footprint(self) -> dict[int, int]:
        return self.pieces


def test_the_least_recently_used_makes_room() -> None:
    cache: NetworkCache[str] = NetworkCache(10)
    a, b, c = Pieces(a=4), Pieces(b=4), Pieces(c=4)
    cache.put("a", a)
    cache.put("b", b)
    assert cache.get("a") is a
    cache.put("c", c)
    assert (cache.get("b"), cache.networks(), cache.nbytes, cache.evicted) == (None, [a, c], 8, 1)


def test_what_networks_share_counts_once() -> None:
    cache: NetworkCache[int] = NetworkCache(10)
    for key in range(5):
        cache.put(key, Pieces(common=6, **{f"own{key}": 1}))
    assert (len(cache), cache.nbytes) == (4, 10)  # 6 + 4 of their own


def test_the_last_one_stays_even_if_it_is_too_large() -> None:
    cache: NetworkCache[str] = NetworkCache(10)
    cache.put("small", Pieces(s=1))
    cache.put("large", Pieces(l=100))
    assert "small" not in cache and "large" in cache
    cache.put("small", Pieces(s=1))
    assert "large" not in cache and cache.nbytes == 1


def test_putting_again_replaces() -> None:
    cache: NetworkCache[str] = NetworkCache(10)
    cache.put("a", Pieces(x=3))
    cache.put("a", Pieces(y=5))
    assert (len(cache), cache.nbytes, cache.evicted) == (1, 5, 0)


@given(calls=st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=60), limit=st.integers(1, 12))
def test_it_keeps_what_a_list_in_order_of_use_would_keep(calls: list[tuple[bool, int]], limit: int) -> None:
    """Against a naive oracle; network k has k + 1 bytes."""
    cache: NetworkCache[int] = NetworkCache(limit)
    order: list[int] = []
    for put, key in calls:
        if put:
            cache.put(key, Pieces(**{f"p{key}": key + 1}))
            order = [*(k for k in order if k != key), key]
            while len(order) > 1 and sum(k + 1 for k in order) > limit:
                order.pop(0)
        elif cache.get(key) is not None:
            order = [*(k for k in order if k != key), key]
        assert [key in cache for key in range(8)] == [key in order for key in range(8)]
    assert cache.nbytes == sum(key + 1 for key in order)
