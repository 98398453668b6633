"""Speed: medians and ratios by hand, and a session that draws the surrogate's maps."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploytool.explain import speed
from deploytool.explain.explainer import Explainer
from deploytool.explain.rivals import ComparePlan, Rivals
from deploytool.explain.speed import DEPLOYED, DEPLOYED_MAP, Speed, measure_speed, sessions
from deploytool.models.setting import Setting
from deploytool.training.run import Run


def test_medians_and_ratios_by_hand() -> None:
    measured = Speed(["inference", "rise"], np.array([[0.1, 0.4], [0.2, 1.0], [0.5, 1.5]]))
    assert measured.fps("inference") == pytest.approx(5) and measured.fps("rise") == pytest.approx(1)
    assert measured.ratio("rise", "inference") == pytest.approx(4)  # of 4, 5 and 3
    assert measured.ratio("lime", "rise") is None


class Counting(nn.Module):
    """Answers in its own time; counts the images of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        self.calls.append(len(image))
        return image.flatten(1)[:, :3]


def test_everything_is_timed_one_image_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "ROUNDS", 2)
    monkeypatch.setattr(speed, "WARM_UP", 1)
    monkeypatch.setattr(speed, "TIMED", 3)
    network, other = Counting().eval(), Counting().eval()
    rivals = Rivals(ComparePlan(masks=10), nn.Identity(), network, None)
    image = torch.rand(5, 1, 4, 4)
    found = measure_speed(rivals, ["rise", "random"], image, torch.zeros(5, dtype=torch.int64), {"other": other})
    assert found.names == ["inference", "rise", "random", "other"] and found.seconds.shape == (2, 4)
    assert sorted(network.calls) == [1] * 9 + [10] * 3 and other.calls == [1] * 9
    assert (found.seconds > 0).all()


def test_a_session_draws_the_maps(float_explainer: Explainer, trained_run: Run) -> None:
    image = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    setting = Setting(0.4, conditioning="interpolate", noise="none")
    network = trained_run.model.plain_network(setting)
    fast, deployed = sessions(float_explainer, setting, network, image)
    assert fast is not network and set(deployed) == {DEPLOYED, DEPLOYED_MAP}
    _, expected = float_explainer.explain(image, setting)
    for count in (1, 5):
        torch.testing.assert_close(deployed[DEPLOYED_MAP](image[:count])[:, 0], expected[:count], rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(deployed[DEPLOYED](image), network(image), rtol=1e-3, atol=1e-4)


def test_no_session_where_the_target_has_none(float_explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "fast_network", lambda network, shape: network)
    network = Counting().eval()
    assert sessions(float_explainer, Setting(), network, torch.rand(1, 1, 8, 8)) == (network, {})
