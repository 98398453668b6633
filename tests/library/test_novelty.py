"""Which patterns are stored: whatever the block size, storage and thresholds, as one after the other in float64."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deploytool.errors import InputError
from deploytool.library import novelty
from deploytool.library.novelty import Shelf, check_theta
from deploytool.library.patterns import encode, scale
from deploytool.library.recipe import Storage

STORAGES: list[Storage] = ["float32", "float16", "int8"]


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """In float64; 1 for equal rows, and correctly rounded where the sums are exact."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def naive(patterns: Tensor, theta: float, storage: Storage = "float32") -> list[int]:
    """Paper 4's rule: which images are stored, one after the other."""
    codes, _ = encode(scale(patterns, "x").values, storage)
    rows, stored = patterns.numpy(), codes.float().numpy()  # a length does not change a cosine
    kept: list[int] = []
    for number, row in enumerate(rows):
        if not kept or max(cosine(row, stored[other]) for other in kept) < theta:
            kept.append(number)
    return kept


def shelf_of(patterns: Tensor, thetas: list[float], block: int, storage: Storage = "float32") -> Shelf:
    shelf = Shelf("x", patterns.shape[1], thetas, storage)
    for first in range(0, len(patterns), block):
        shelf.offer(patterns[first : first + block], first)
    return shelf


def libraries(shelf: Shelf) -> list[list[int]]:
    """Indices of the images in the library of each threshold."""
    return [shelf.source[own].tolist() for own in shelf.member.T]


def drawn(kind: str, count: int, features: int, seed: int) -> Tensor:
    """Patterns none of which is 0: small integers (cosines tie), reals, or noise around few centres; some repeated."""
    chance = torch.Generator().manual_seed(seed)
    if kind == "integers":
        patterns = torch.randint(-2, 3, (count, features), generator=chance).float()
    else:
        patterns = torch.randn(count, features, generator=chance)
        if kind == "clusters":
            centre = torch.randn(3, features, generator=chance)
            patterns = centre[torch.randint(3, (count,), generator=chance)] + 0.1 * patterns
    patterns[patterns.eq(0).all(1), 0] = 1
    again = torch.rand(count, generator=chance) < 0.2
    patterns[again] = patterns[torch.randint(count, (int(again.sum()),), generator=chance)]
    return patterns


THETA = st.one_of(
    st.sampled_from([-0.5, 0.0, 0.25, 0.5, 0.6, 0.8, 1.0]),
    st.floats(-1, 1, exclude_min=True, width=64),
    st.floats(0.9, 1, width=64),
)


@settings(max_examples=150)
@given(
    kind=st.sampled_from(["integers", "reals", "clusters"]),
    count=st.integers(1, 30),
    features=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    thetas=st.lists(THETA, min_size=1, max_size=4, unique=True).map(sorted),
    block=st.integers(1, 31),
    storage=st.sampled_from(STORAGES),
    chunk=st.sampled_from([1, 3, 256]),
    sketch=st.sampled_from([1, 4, 1024]),
)
def test_as_one_after_the_other(kind, count, features, seed, thetas, block, storage, chunk, sketch) -> None:
    """Also where patterns count as long, and are looked at in a few of their values first."""
    patterns = drawn(kind, count, features, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(novelty, "CHUNK", chunk)
        patch.setattr(novelty, "SKETCH", sketch)
        patch.setattr(novelty, "LONG", 4 * sketch)
        shelf = shelf_of(patterns, thetas, block, storage)
    expected = [naive(patterns, theta, storage) for theta in thetas]
    assert libraries(shelf) == expected
    assert shelf.sizes == [len(kept) for kept in expected]
    assert shelf.source.tolist() == sorted(set().union(*expected)) and shelf.size == len(shelf.source)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    pair=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    count=st.integers(2, 20),
    block=st.integers(1, 20),
    storage=st.sampled_from(["float32", "float16"]),
)
def test_exact_ties_at_theta_are_not_new(seed: int, pair: tuple[int, int], count: int, block: int, storage) -> None:
    """Theta is the cosine of two of the patterns; a similarity that equals it is not below it. Also one ulp beside."""
    patterns = drawn("integers", count, 5, seed)
    tie = cosine(patterns[pair[0] % count].numpy(), patterns[pair[1] % count].numpy())
    thetas = sorted({theta for theta in (np.nextafter(tie, -2), tie, np.nextafter(tie, 2)) if -1 < theta <= 1})
    shelf = shelf_of(patterns, thetas, block, storage)
    assert libraries(shelf) == [naive(patterns, theta, storage) for theta in thetas]


def test_a_tie_by_hand() -> None:
    """<(3, 4), (1, 0)> / 5 = 0.6 exactly; at 0.6 the second is known, just above it is new."""
    patterns = torch.tensor([[1.0, 0.0], [3.0, 4.0], [6.0, 8.0], [-7.0, 0.0]])
    shelf = shelf_of(patterns, [0.6, float(np.nextafter(0.6, 1))], 4)
    assert libraries(shelf) == [[0, 3], [0, 1, 3]]
    assert Fraction(0.6) < Fraction(3, 5)  # the nearest float64, so the decision agrees with exact arithmetic
    alone = shelf_of(torch.tensor([[2.0], [1e-30], [-5.0], [7.0]]), [1.0], 2)
    assert libraries(alone) == [[0, 2]]


@pytest.mark.parametrize("storage", STORAGES)
def test_twenty_thousand_features(storage: Storage) -> None:
    """Cosines lie within float32's doubt of theta: patterns near one centre, theta in the midst of their cosines."""
    chance = torch.Generator().manual_seed(3)
    patterns = torch.randn(1, 20_000, generator=chance) + 0.3 * torch.randn(24, 20_000, generator=chance)
    near = sorted(cosine(patterns[0].numpy(), row.numpy()) for row in patterns[1:])
    thetas = [near[3] + 1e-9, near[11] - 1e-9, near[19] + 1e-9]  # far nearer than float32 sees, none at a tie
    for block in (1, 7, 24):
        found = libraries(shelf_of(patterns, thetas, block, storage))
        assert found == [naive(patterns, theta, storage) for theta in thetas]
    assert 1 < len(found[0]) < len(found[2])


@pytest.mark.parametrize("block", [1, 100, 700, 1000])
def test_growth_and_many_chunks(block: int) -> None:
    """More patterns than a shelf has room for at first, and than a chunk compares."""
    patterns = drawn("reals", 1000, 12, 8)
    shelf = shelf_of(patterns, [0.9], block)
    assert shelf.size > 2 * novelty.ROOM and shelf.size > 2 * novelty.CHUNK
    units = patterns.double() / patterns.double().norm(dim=1, keepdim=True)
    near = units @ units.T
    assert not ((near - 0.9).abs() < 1e-12).any()  # no tie: the matrix decides alike
    kept: list[int] = []
    for row in range(1000):
        if not kept or near[row, kept].max() < 0.9:
            kept.append(row)
    assert shelf.source.tolist() == kept
    torch.testing.assert_close(shelf.codes * shelf.scales[:, None], units[kept].float())


def test_whoever_is_settled_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """No chunk is asked about patterns that an earlier one knows, once they are most of the block."""
    patterns = drawn("reals", 700, 12, 8)
    shelf = shelf_of(patterns, [0.9], 700)
    assert shelf.size > 2 * novelty.CHUNK
    calls = []
    own = novelty.similarity
    monkeypatch.setattr(novelty, "similarity", lambda *given: calls.append(len(given[0])) or own(*given))
    shelf.offer(patterns[:1].repeat(50, 1), 700)
    assert calls == [50]
    calls.clear()
    last = patterns[shelf.source[-1:]]  # known to the last chunk alone, but for chance
    shelf.offer(torch.cat([patterns[:1].repeat(3, 1), last]), 750)
    assert calls[0] == 4 and set(calls[1:]) <= {1} and shelf.source.max() < 700


def test_long_patterns_are_first_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks like a stored pattern, and is near it in full, is compared with no other."""
    patterns = drawn("reals", 400, 60, 8)
    monkeypatch.setattr(novelty, "SKETCH", 20)
    monkeypatch.setattr(novelty, "LONG", 60)
    shelf = shelf_of(patterns, [0.9], 100)
    assert libraries(shelf) == [naive(patterns, 0.9)]
    monkeypatch.setattr(novelty, "similarity", lambda *given: pytest.fail("all were settled"))
    shelf.offer(patterns[shelf.source[[0, 300, 17]]] * 3, 400)
    assert shelf.source.max() < 400


def test_most_gives_up() -> None:
    """A threshold whose library has grown too large takes part no more; the others go on undisturbed."""
    patterns = drawn("reals", 120, 8, 4)
    sizes = [len(naive(patterns, theta)) for theta in (0.2, 0.7, 0.95)]
    most = (sizes[1] + sizes[0]) // 2
    assert sizes[0] <= most < sizes[1] < sizes[2]
    shelf = Shelf("x", 8, [0.2, 0.7, 0.95], most=most)
    seen = []
    for first in range(0, 120, 10):
        shelf.offer(patterns[first : first + 10], first)
        seen.append(shelf.sizes)
    assert shelf.given_up.tolist() == [False, True, True] and shelf.sizes[0] == sizes[0]
    for level in (1, 2):
        column = [each[level] for each in seen]
        passed = next(number for number, size in enumerate(column) if size > most)
        assert column[passed:] == [column[passed]] * (len(seen) - passed) and column[-1] < sizes[level]
    exactly = Shelf("x", 8, [0.7], most=sizes[1])
    exactly.offer(patterns, 0)
    assert not exactly.given_up.any()  # as many are not more


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_restored_in_the_middle(storage: Storage, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(novelty, "SKETCH", 4)
    monkeypatch.setattr(novelty, "LONG", 6)
    patterns, thetas = drawn("clusters", 90, 6, 2), [0.5, 0.97, 0.999]
    whole = shelf_of(patterns, thetas, 15, storage)
    shelf = shelf_of(patterns[: stop * 15], thetas, 15, storage) if stop else Shelf("x", 6, thetas, storage)
    state = {name: tensor.clone() for name, tensor in shelf.state().items()}
    assert set(state) == set(Shelf.TENSORS)
    shelf = Shelf.restored("x", thetas, storage, state)
    for first in range(stop * 15, 90, 15):
        shelf.offer(patterns[first : first + 15], first)
    assert shelf.sizes[0] < shelf.sizes[2]
    for name, tensor in whole.state().items():
        assert torch.equal(shelf.state()[name], tensor), name
    assert shelf.thetas == whole.thetas and shelf.storage == storage


@pytest.mark.parametrize("storage", STORAGES)
def test_what_rounding_lost_is_noted(storage: Storage) -> None:
    """1 - cosine of each stored pattern to itself before; nothing in float32."""
    patterns = drawn("reals", 20, 9, 5)
    shelf = shelf_of(patterns, [1.0], 6, storage)
    decoded = shelf.codes.float() * shelf.scales[:, None]
    torch.testing.assert_close(decoded.norm(dim=1), torch.ones(shelf.size))
    rows = patterns[shelf.source].numpy()
    lost = [1 - cosine(row, code.numpy()) for row, code in zip(rows, shelf.codes.float(), strict=True)]
    np.testing.assert_allclose(shelf.rounding.numpy(), lost, rtol=1e-3, atol=1e-9)
    largest = float(shelf.rounding.max())
    assert largest == 0 if storage == "float32" else 0 < largest < {"float16": 1e-6, "int8": 1e-3}[storage]


@given(theta=st.floats(-1, 1, exclude_min=True))
@example(theta=1.0)
def test_thresholds_in_range(theta: float) -> None:
    assert check_theta(theta) == theta


@pytest.mark.parametrize("theta", [-1.0, 1.0000001, float("nan"), float("inf"), -5])
def test_thresholds_out_of_range(theta: float) -> None:
    with pytest.raises(InputError, match=r"theta \(=.*\) must be in \(-1, 1\]"):
        check_theta(theta)
    with pytest.raises(InputError, match="theta"):
        Shelf("x", 3, [0.5, theta])


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0 everywhere"), (float("nan"), "NaN or infinite"), (float("inf"), "NaN or infinite")],
)
def test_patterns_without_direction_are_refused(value: float, words: str) -> None:
    """The index is the image's; nothing of the block is stored."""
    shelf = shelf_of(torch.eye(3), [0.5], 3)
    before = {name: tensor.clone() for name, tensor in shelf.state().items()}
    block = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    block[2] = 0.0 if value == 0 else block[2]
    block[2, 1] = value
    with pytest.raises(InputError, match=f"layer x: the activity of image 105 is {words}") as caught:
        shelf.offer(block, 103)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in shelf.state().items())


def test_every_float32_similarity_is_near_far_or_unclear() -> None:
    """Theta below 0 has coarser float32 neighbours than similarities above it: none may fall between the cases."""
    patterns = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    for similarity_of_second in (1e-8, 3e-8, 2e-7):
        patterns[1, 0] = similarity_of_second
        for step in range(-40, 41):
            theta = similarity_of_second - novelty.rounding_error(2) + step * 3e-15
            shelf = shelf_of(patterns, [theta], 1)
            assert libraries(shelf) == [naive(patterns, theta)], (similarity_of_second, theta)
