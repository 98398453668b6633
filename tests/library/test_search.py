"""The nearest stored patterns, against a product of matrices and a sort in numpy."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deploytool.errors import InputError
from deploytool.library import search
from deploytool.library.search import by_faiss, by_torch, most_active

WAYS = {"torch": by_torch, "faiss": by_faiss}


def naive(patterns: Tensor, library: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """In float64; of equal products the lower index first."""
    products = patterns.double().numpy() @ library.double().numpy().T
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, order, 1), order


@pytest.fixture(params=sorted(WAYS))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One of the two ways for everything, and parts of a few rows."""
    force(monkeypatch, request.param)
    return request.param


def force(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(search, "MANY_VALUES", 0 if way == "faiss" else 1 << 60)
    monkeypatch.setattr(search, "FEW", 0)
    monkeypatch.setattr(search, "PRODUCTS", 50)


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(1, 33))


@settings(deadline=None, max_examples=80)
@given(sizes=SIZES, k=st.integers(1, 60), seed=st.integers(0, 2**32 - 1), way=st.sampled_from(sorted(WAYS)))
def test_any_shape_as_numpy_finds_it(sizes: tuple[int, int, int], k: int, seed: int, way: str) -> None:
    """Small integers: products are exact in float32, and many of them are equal."""
    (n, m, f), chance = sizes, torch.Generator().manual_seed(seed)
    patterns, library = (torch.randint(-2, 3, (rows, f), generator=chance).float() for rows in (n, m))
    k = min(k, m)
    with pytest.MonkeyPatch.context() as patch:
        force(patch, way)
        products, indices = most_active(patterns, library, k)
    assert products.shape == indices.shape == (n, k)
    assert products.dtype == torch.float32 and indices.dtype == torch.int64
    expected, order = naive(patterns, library, k)
    np.testing.assert_array_equal(products, expected)
    np.testing.assert_array_equal(indices, order)


@pytest.mark.parametrize("sizes", [(1, 2000, 300), (70, 1500, 64), (300, 900, 500)])
def test_cosines_of_unit_rows(way: str, sizes: tuple[int, int, int]) -> None:
    n, m, f = sizes
    chance = torch.Generator().manual_seed(0)
    patterns, library = (
        torch.nn.functional.normalize(torch.randn(rows, f, generator=chance)).contiguous() for rows in (n, m)
    )
    products, indices = most_active(patterns, library, 7)
    expected, _ = naive(patterns, library, 7)
    np.testing.assert_allclose(products, expected, atol=1e-6)
    own = (patterns[:, None].double() * library[indices].double()).sum(2)
    np.testing.assert_allclose(products, own, atol=1e-6)  # each index is that of its product
    assert all(len(set(row)) == 7 for row in indices.tolist())
    assert bool((products[:, 1:] <= products[:, :-1]).all())


def test_a_stored_pattern_is_nearest_to_itself(way: str) -> None:
    library = torch.nn.functional.normalize(torch.randn(400, 50, generator=torch.Generator().manual_seed(1)))
    products, indices = most_active(library, library, 1)
    assert indices[:, 0].tolist() == list(range(400))
    torch.testing.assert_close(products[:, 0], torch.ones(400))


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_the_lowest_of_equal_ones_come_first_however_many_there_are(way: str, k: int) -> None:
    library = torch.ones(500, 3)
    library[7], library[499] = 2, 0
    products, indices = most_active(torch.ones(30, 3), library, k)
    assert indices.tolist() == [[7, 0, 1, 2, 3, 4, 5, 6, 8][:k]] * 30
    assert products.tolist() == [[6.0, *[3.0] * (k - 1)]] * 30


def test_all_stored_patterns_can_be_asked_for(way: str) -> None:
    products, indices = most_active(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]]), 3)
    assert indices.tolist() == [[2, 0, 1]] and products.tolist() == [[1, 0, -1]]


def test_rows_that_are_not_contiguous_and_ones_with_gradients(way: str) -> None:
    chance = torch.Generator().manual_seed(2)
    patterns, library = torch.randn(8, 40, generator=chance).T, torch.randn(90, 16, generator=chance)[:, ::2]
    products, indices = most_active(patterns.clone().requires_grad_(), library, 4)
    expected, order = naive(patterns, library, 4)
    np.testing.assert_allclose(products, expected, atol=1e-5)
    np.testing.assert_array_equal(indices, order)
    assert not products.requires_grad
    np.testing.assert_array_equal(most_active(patterns, library, 4)[1], order)


def test_no_pattern_has_no_neighbour(way: str) -> None:
    products, indices = most_active(torch.zeros(0, 4), torch.ones(6, 4), 2)
    assert products.shape == indices.shape == (0, 2)


@pytest.mark.parametrize(
    ("n", "f", "expected"),
    [(1, 10, "faiss"), (3, 10, "faiss"), (4, 10, "torch"), (255, 512, "torch"), (256, 512, "faiss"), (0, 10, "torch")],
)
def test_which_way_is_taken(n: int, f: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name, function in WAYS.items():
        monkeypatch.setattr(
            search, f"by_{name}", lambda *given, name=name, function=function: taken.append(name) or function(*given)
        )
    most_active(torch.zeros(n, f), torch.eye(12, f), 2)
    assert taken == [expected]


@pytest.mark.parametrize("k", [0, -1, 7, 1000, True, 1.0])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(InputError) as caught:
        most_active(torch.ones(2, 4), torch.ones(6, 4), k)
    message = str(caught.value)
    assert f"k (={k})" in message and "(=6)" in message and "smaller k" in message and "higher theta" in message
    assert "\n" not in message


def test_an_empty_library_is_refused() -> None:
    with pytest.raises(InputError, match=r"number of stored patterns \(=0\)"):
        most_active(torch.ones(2, 4), torch.ones(0, 4), 1)


@pytest.mark.parametrize(
    ("patterns", "library", "words"),
    [
        (torch.ones(4), torch.ones(6, 4), r"patterns \(\(4,\), torch.float32\) must be"),
        (torch.ones(2, 4), torch.ones(6, 4, 1), "library .* must be"),
        (torch.ones(2, 4).double(), torch.ones(6, 4), "patterns .*torch.float64"),
        (torch.ones(2, 4), torch.ones(6, 4).half(), "library .*torch.float16"),
        (torch.ones(2, 4), torch.ones(6, 5), "have 4 features and stored ones 5"),
        (torch.ones(2, 0), torch.ones(6, 0), "have 0 features"),
    ],
)
def test_what_does_not_fit_is_refused(patterns: Tensor, library: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        most_active(patterns, library, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_pattern_that_is_not_finite_is_refused(way: str, value: float) -> None:
    patterns = torch.rand(30, 4) + 0.1
    patterns[21, 2] = value
    with pytest.raises(InputError, match="is NaN or infinite"):
        most_active(patterns, torch.rand(60, 4) + 0.1, 3)


def test_both_ways_stand_in_one_process_with_as_many_threads_as_torch_has() -> None:
    """In either order of import; products of both, in turns."""
    script = """
import {first}, {second}
import faiss, torch
from deploytool.library.search import by_faiss, by_torch
patterns, library = torch.randn(64, 256), torch.randn(3000, 256)
for threads in (1, 2, 1):
    torch.set_num_threads(threads)
    for _ in range(3):
        one, other = by_torch(patterns, library, 5), by_faiss(patterns, library, 5)
        torch.testing.assert_close(one[0], other[0])
    assert faiss.omp_get_max_threads() == torch.get_num_threads() == threads
"""
    for first, second in (("faiss", "torch"), ("torch", "faiss")):
        done = subprocess.run(
            [sys.executable, "-c", script.format(first=first, second=second)], capture_output=True, text=True
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
