"""The verdict's threshold: disjoint parts, order statistics, and the false alarms that they promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploytool.data.images import Images
from deploytool.errors import InputError
from deploytool.library.calibration import lower_threshold, rank_value, split
from deploytool.library.recipe import CalibrationSection


def numbered(count: int) -> Images:
    """Images that hold their own number."""
    number = torch.arange(count)
    return Images(number.float()[:, None, None, None], number)


@given(count=st.integers(2, 60), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**31 - 1))
def test_parts_are_disjoint_and_cover(count: int, share: float, seed: int) -> None:
    section = CalibrationSection(share=share)
    wanted = round(count * share)
    if not 0 < wanted < count:
        with pytest.raises(InputError, match=r"calibration.share \(=.*\) of .* leaves none to (calibrate|measure) on"):
            split(numbered(count), section, seed)
        return
    chosen, measured = split(numbered(count), section, seed)
    assert len(chosen) == wanted
    assert sorted([*chosen.labels.tolist(), *measured.labels.tolist()]) == list(range(count))
    for part in (chosen, measured):
        assert part.labels.tolist() == sorted(part.labels.tolist())
        assert part.images[:, 0, 0, 0].tolist() == part.labels.tolist()  # images stay with their labels


def test_parts_are_drawn_by_seed() -> None:
    section = CalibrationSection()
    one, again, other = (split(numbered(40), section, seed)[0].labels.tolist() for seed in (1, 1, 2))
    assert one == again != other and one != list(range(20))


def test_thresholds_by_hand() -> None:
    score = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.7, 0.8, 0.2, 0.6, 0.4])
    assert lower_threshold(score, 0.1) == pytest.approx(0.1)  # k = 1 of 9
    assert lower_threshold(score, 0.35) == pytest.approx(0.3)  # k = 3
    assert lower_threshold(score, 0.99) == pytest.approx(0.9)
    assert lower_threshold(score, 0.09) == -1.0  # k = 0: no threshold keeps such a promise
    assert lower_threshold(torch.ones(9), 0.5) == 1.0


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (50, 0.05), (100, 0.1), (33, 0.2), (8, 0.3), (5, 0.1)])
def test_false_alarms_are_at_most_the_rate(n: int, rate: float) -> None:
    """Exchangeable scores, not independent: one shift for all of a trial. Exactly k / (n + 1) on average."""
    chance = np.random.default_rng(0)
    trials, fresh = 4000, 20
    alarms = 0
    for _ in range(trials):
        shift, spread = chance.normal(), chance.exponential()
        scores = torch.from_numpy(np.arctan(shift + spread * chance.standard_cauchy(n + fresh)) * 2 / np.pi)
        alarms += int((scores[n:] < lower_threshold(scores[:n], rate)).sum())
    found = alarms / (trials * fresh)
    promised = math.floor(rate * (n + 1)) / (n + 1)
    assert promised <= rate and found == pytest.approx(promised, abs=4.5 / math.sqrt(trials * n))
    assert found <= rate + 4.5 / math.sqrt(trials * n)


@given(
    clean=st.lists(st.integers(-3, 3), min_size=1, max_size=20),
    score=st.lists(st.integers(-4, 4), min_size=1, max_size=8),
)
def test_rank_values_by_counting(clean: list[int], score: list[int]) -> None:
    found = rank_value(torch.tensor(clean).float(), torch.tensor(score).float())
    expected = [(sum(own <= each for own in clean) + 1) / (len(clean) + 1) for each in score]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert ((found > 0) & (found <= 1)).all()


def test_rank_values_of_clean_images_are_p_values() -> None:
    """P(value <= alpha) is at most alpha."""
    chance = torch.Generator().manual_seed(0)
    values = torch.cat(
        [rank_value(drawn[:30], drawn[30:]) for drawn in (torch.randn(31, generator=chance).exp() for _ in range(4000))]
    )
    for alpha in (0.05, 0.1, 0.5):
        assert (values <= alpha).float().mean() <= alpha + 4 * (alpha * (1 - alpha) / 4000) ** 0.5
