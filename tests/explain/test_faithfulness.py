"""Insertion and deletion against the algorithms as printed, one image and one step at a time, and by hand."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from deploytool.data.datasets import load_dataset
from deploytool.errors import InputError
from deploytool.explain.attribution import images_at_once, predicted_class
from deploytool.explain.faithfulness import blurred, deletion, insertion, mean_intensity
from deploytool.models.setting import Setting


@pytest.fixture(scope="module")
def network(plain_run) -> nn.Module:
    return plain_run.model.plain_network(Setting(noise="none"))


@pytest.fixture(scope="module")
def image(plain_run) -> Tensor:
    return load_dataset(plain_run.recipe.data).test.batch(slice(0, 9))[0]


def naive(
    network: Any, image: Tensor, heat: Tensor, n: int, inserted: bool, kernel: int = 5, sigma: float = 2.0
) -> Any:
    """Algorithms A1 and A2 for one image, a step at a time; importance by Python's own stable sort."""
    current = gaussian_blur(image, [kernel, kernel], [sigma, sigma]) if inserted else image.clone()
    goal = image if inserted else torch.zeros_like(image)
    target = int(network(image[None]).argmax())
    width = heat.shape[1]
    order = sorted(range(heat.numel()), key=lambda index: -float(heat.flatten()[index]))
    curve, x = [float(network(current[None]).softmax(1)[0, target])], [0.0]
    for start in range(0, len(order), n):
        for index in order[start : start + n]:
            current[:, index // width, index % width] = goal[:, index // width, index % width]
        curve.append(float(network(current[None]).softmax(1)[0, target]))
        x.append(min(start + n, len(order)) / len(order))
    assert torch.equal(current, goal)
    return curve, sum((b - a) * (p + q) / 2 for a, b, p, q in zip(x, x[1:], curve, curve[1:], strict=False))


@pytest.mark.parametrize("n", [1, 8, 7, 64, 100])
def test_both_are_the_algorithms(network, image, n: int) -> None:
    maps = torch.rand(len(image), 8, 8, generator=torch.Generator().manual_seed(1))
    maps[2] = maps[2].round(decimals=1)  # ties
    maps[3] = 0.5
    with torch.no_grad():
        for found, inserted in (
            (insertion(network, image, maps, pixels=n, kernel=5, sigma=2.0), True),
            (deletion(network, image, maps, pixels=n), False),
        ):
            assert found.probability.shape == (len(image), -(-64 // n) + 1) == (len(image), len(found.share))
            for index in range(len(image)):
                curve, area = naive(network, image[index], maps[index], n, inserted)
                torch.testing.assert_close(found.probability[index], torch.tensor(curve), rtol=1e-4, atol=1e-5)
                assert float(found.auc[index]) == pytest.approx(area, abs=1e-5)


def test_a_linear_network_by_hand() -> None:
    """Two pixels, logits (x_1 + 3 x_2, 0): the important one first keeps the class least."""

    def network(image: Tensor) -> Tensor:
        value = image[:, 0, 0, 0] + 3 * image[:, 0, 0, 1]
        return torch.stack([value, torch.zeros_like(value)], 1)

    image = torch.ones(2, 1, 1, 2)
    maps = torch.tensor([[[0.1, 0.9]], [[0.9, 0.1]]])
    found = deletion(network, image, maps, pixels=1)
    sigmoid = torch.sigmoid(torch.tensor([4.0, 1.0, 3.0, 0.0]))
    torch.testing.assert_close(found.probability, torch.stack([sigmoid[[0, 1, 3]], sigmoid[[0, 2, 3]]]))
    assert found.share.tolist() == [0, 0.5, 1] and found.auc[0] < found.auc[1]


@given(arrays("float32", (2, 8, 8), elements=st.floats(-5, 5, width=16)))
def test_only_the_order_counts(network, image, values) -> None:
    maps = torch.from_numpy(values)
    one, other = (deletion(network, image[:2], each, pixels=16) for each in (maps, maps * 4))  # exact: no new ties
    torch.testing.assert_close(one.probability, other.probability)


def test_a_batch_is_its_images(network, image) -> None:
    maps = torch.rand(len(image), 8, 8)
    whole = insertion(network, image, maps, kernel=5)
    assert len(image) * len(whole.share) > images_at_once(image)  # so images share passes, and passes images
    for index in range(len(image)):
        alone = insertion(network, image[index : index + 1], maps[index : index + 1], kernel=5)
        torch.testing.assert_close(alone.probability[0], whole.probability[index], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [7, 64])
def test_no_image_is_answered_twice(network, image, n: int) -> None:
    """9 images of S steps: S + 1 images each, of which deletion's last is the same for all."""
    seen: list[int] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(len(x))
        return network(x)

    steps, maps = -(-64 // n), torch.rand(len(image), 8, 8)
    insertion(watched, image, maps, pixels=n, kernel=5)
    assert sum(seen) == 9 * (steps + 1) and max(seen) <= images_at_once(image)
    seen.clear()
    deletion(watched, image, maps, pixels=n)
    assert sum(seen) == 9 * steps + 1


def test_the_class_watched_may_be_another(network, image) -> None:
    other = (predicted_class(network, image) + 1) % 10
    found = deletion(network, image, torch.rand(len(image), 8, 8), other)
    with torch.no_grad():
        expected = network(image).softmax(1).gather(1, other[:, None])[:, 0]
    torch.testing.assert_close(found.probability[:, 0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("size", "kernel"), [((5, 5), 9), ((3, 3), 5), ((1, 7), 1), ((6, 6), 11), ((32, 40), 11)])
def test_the_kernel_of_a_small_image_is_what_it_allows(size: tuple[int, int], kernel: int) -> None:
    small = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = gaussian_blur(small, [kernel, kernel], [5.0, 5.0])
    torch.testing.assert_close(blurred(small), expected)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(small[0].numel(), 3)).eval()
    found = insertion(linear, small, torch.rand(2, *size), torch.tensor([0, 1]))
    with torch.no_grad():
        start = linear(expected).softmax(1)[[0, 1], [0, 1]]
    torch.testing.assert_close(found.probability[:, 0], start)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 3), (2, 1, 0, 8), (0, 1, 8, 8)])
def test_only_images_are_blurred(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"image has shape .*; expected \(N, C, H, W\)"):
        blurred(torch.zeros(shape))


def test_mean_intensity() -> None:
    assert mean_intensity(torch.tensor([[[0.0, 1.0]], [[0.5, 0.5]]])) == 0.5
    with pytest.raises(InputError, match=r"values from -1 to 1; scale them"):
        mean_intensity(torch.tensor([[[-1.0, 1.0]]]))
    with pytest.raises(InputError, match="scale them"):
        mean_intensity(torch.tensor([[[float("nan"), 1.0]]]))


@pytest.mark.parametrize("change, words", [
    ({"maps": torch.rand(9, 8, 7)}, r"maps have shape \(9, 8, 7\); expected \(9, 8, 8\)"),
    ({"maps": torch.full((9, 8, 8), torch.nan)}, "a finite value"), ({"pixels": 0}, r"pixels \(=0\)"),
    ({"kernel": 4}, r"kernel \(=4\) must be odd and at most 15"), ({"kernel": 17}, "at most 15"),
    ({"sigma": 0.0}, "sigma"), ({"target": torch.full((9,), 10)}, "target"),
    ({"target": torch.zeros(3).long()}, "target"),
])  # fmt: skip
def test_bad_input_is_named(network, image, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        insertion(network, image, **({"maps": torch.rand(9, 8, 8), "kernel": 5} | change))


def test_a_network_that_cannot_be_explained_is_refused(network, image) -> None:
    with pytest.raises(InputError, match="NaN"):
        deletion(lambda x: torch.full((len(x), 3), torch.nan), image, torch.rand(9, 8, 8))
    with pytest.raises(InputError, match="training mode"):
        deletion(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).train(), image, torch.rand(9, 8, 8))
