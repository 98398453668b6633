"""The combination: p-values in (0, 1], known attacks found by the regression, foreign images by the distance."""

import numpy as np
import pytest
import torch
from torch import Tensor

from deploytool.errors import InputError
from deploytool.library.detector import Detector
from deploytool.library.scores import Scores


def made(traits: Tensor, knn: Tensor | None = None) -> Scores:
    count = len(traits)
    knn = -torch.ones(count) if knn is None else knn
    return Scores({}, torch.ones(count), knn, traits, torch.zeros(count, dtype=torch.int64))


def normal(count: int, shift: float, seed: int, far: float = 0.3) -> Scores:
    """Images whose first trait is shifted; distances around `far`."""
    chance = torch.Generator().manual_seed(seed)
    traits = torch.randn(count, 4, generator=chance)
    traits[:, 0] += shift
    return made(traits, -far - 0.05 * torch.rand(count, generator=chance))


def test_values_are_p_values() -> None:
    """In (0, 1], also far beyond everything that was seen; fresh clean images are as unusual as they say."""
    detector = Detector(normal(400, 0, 0), normal(400, 3, 1))
    for scores in (normal(500, 0, 2), normal(50, 3, 3), normal(50, 1e6, 4), normal(50, 0, 5, far=1e6)):
        values = detector(scores)
        assert values.dtype == torch.float64 and values.shape == (len(scores),)
        assert ((values > 0) & (values <= 1)).all()
    fresh = detector(normal(4000, 0, 6))
    for alpha in (0.05, 0.2):
        assert (fresh <= alpha).double().mean() == pytest.approx(alpha, abs=0.03)


def test_known_attacks_and_foreign_images_are_found() -> None:
    detector = Detector(normal(300, 0, 0), normal(300, 3, 1))
    clean = detector(normal(300, 0, 2)).median()
    assert detector(normal(300, 3, 3)).median() < 0.05 < clean
    assert detector(normal(300, 0, 4, far=1.5)).median() < 0.01  # no attack, but far from everything
    assert detector(normal(300, -3, 5)).median() > 0.3  # the other side of the regression is no attack


def test_beyond_all_clean_images_order_is_kept() -> None:
    """Ties of a rank are broken by how far below: areas under a curve need it."""
    detector = Detector(normal(50, 0, 0), normal(50, 3, 1))
    traits = torch.zeros(4, 4)
    values = detector(made(traits, -torch.tensor([0.5, 0.7, 1.0, 2.0])))
    assert (values.diff() < 0).all() and values[0] <= 2 / 51


def test_the_smaller_one_counts() -> None:
    """Both halves by hand: ranks among the clean images of folds, and among their distances."""
    clean, attacked = normal(60, 0, 0), normal(60, 2, 1)
    detector = Detector(clean, attacked)
    inside = made(torch.full((1, 4), 0.0), clean.knn.max()[None])
    by_traits = detector(inside).item()
    knn = clean.knn.sort().values[5:6]
    both = detector(made(torch.full((1, 4), 0.0), knn)).item()
    smaller = (6 + 1) / 61
    assert both == pytest.approx(min(by_traits, 1 - (1 - smaller) ** 2), rel=1e-6)


def test_copies_of_an_image_are_in_its_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a clean image is held out of, its attacked copies are held out of too."""
    from sklearn.linear_model import LogisticRegression

    fitted: list[set[float]] = []
    fit = LogisticRegression.fit

    def noted(self: LogisticRegression, values: np.ndarray, kinds: np.ndarray) -> LogisticRegression:
        order = np.argsort(values[:, 1], kind="stable")  # three copies of an image are alike in that trait
        kept = np.unique(np.round(values[order, 1], 6), return_counts=True)
        assert set(kept[1]) == {3}
        fitted.append(set(kept[0]))
        return fit(self, values, kinds)

    monkeypatch.setattr(LogisticRegression, "fit", noted)
    clean = normal(50, 0, 0)
    copies = [made(clean.traits + torch.tensor([shift, 0, 0, 0])) for shift in (2.0, 3.0)]
    Detector(clean, made(torch.cat([copy.traits for copy in copies])))
    assert [len(each) for each in fitted] == [40] * 5 + [50]


def test_the_same_again() -> None:
    one, again = (Detector(normal(40, 0, 0), normal(80, 2, 1))(normal(30, 1, 2)) for _ in range(2))
    np.testing.assert_array_equal(one, again)


def test_too_few_images() -> None:
    with pytest.raises(InputError, match="4 clean and 9 attacked images are too few; take more images"):
        Detector(normal(4, 0, 0), normal(9, 1, 1))
    with pytest.raises(InputError, match="9 clean and 0 attacked images are too few"):
        Detector(normal(9, 0, 0), normal(0, 1, 1))
    with pytest.raises(InputError, match="9 attacked images are not the 6 clean ones, attacked"):
        Detector(normal(6, 0, 0), normal(9, 1, 1))
    Detector(normal(5, 0, 0), normal(5, 1, 1))
