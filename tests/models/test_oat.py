"""OAT: FiLM by hand, folding against running it, encodings, per-image lambdas, and the paper's parameter count."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deploytool.data.catalogue import CATALOGUE
from deploytool.models.oat import Film, OatModel, encoding_rows, filmed_norms
from deploytool.models.registry import build_backbone
from deploytool.models.setting import Setting

DIGITS = CATALOGUE["digits"]


def model(encoding: str = "none", narrow: bool = False) -> OatModel:
    torch.manual_seed(0)
    widths = {0.5: build_backbone("resnet8", DIGITS, 0.5)} if narrow else None
    oat = OatModel(build_backbone("resnet8", DIGITS), encoding=encoding, encoding_size=16, narrow=widths)
    with torch.no_grad():
        for norm in oat.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.5, 1.5)
                norm.weight.uniform_(0.5, 1.5)
    return oat.eval()


def test_film_by_hand() -> None:
    torch.manual_seed(0)
    film = Film(3, 1)
    gamma, beta = film(torch.tensor([[0.7]]))
    hidden = film.hidden.weight.detach().numpy() @ np.array([0.7], np.float32) + film.hidden.bias.detach().numpy()
    hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
    out = film.out.weight.detach().numpy() @ hidden + film.out.bias.detach().numpy()
    out = np.where(out > 0, out, 0.01 * out)
    np.testing.assert_allclose(gamma[0].detach().numpy(), out[:3], rtol=1e-5)
    np.testing.assert_allclose(beta[0].detach().numpy(), out[3:], rtol=1e-5)


def test_the_papers_parameter_count() -> None:
    """Paper 5, Fig. 8(b): 31.4 M for OAT with ResNet-34 and a scalar lambda; 21.28 M without FiLM."""
    oat = OatModel(build_backbone("resnet34", CATALOGUE["cifar10"]))
    backbone = sum(p.numel() for p in oat.backbone.parameters())
    films = sum(p.numel() for p in oat.films.parameters())
    assert backbone / 1e6 == pytest.approx(21.28, abs=0.005)
    assert (backbone + films) / 1e6 == pytest.approx(31.40, abs=0.005)
    weights = sum(p.numel() for p in oat.films.parameters() if p.dim() > 1)
    assert weights == sum(2 * n.num_features + 4 * n.num_features**2 for _, n in filmed_norms(oat.backbone))


@pytest.mark.parametrize("lam", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("encoding", ["none", "onehot", "dct", "random"])
def test_folding_film_equals_running_it(encoding: str, lam: float) -> None:
    oat = model(encoding)
    image = torch.rand(4, 1, 8, 8)
    mixed = oat.forward_mixed(image, torch.full((4,), lam), 4 if lam == 0 else 0)
    folded = oat(image, Setting(lam, noise="none"))
    torch.testing.assert_close(folded, mixed, rtol=1e-4, atol=1e-5)
    with oat.network(Setting(lam, noise="none")) as network:
        torch.testing.assert_close(network(image), mixed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoding", ["none", "onehot", "dct", "random"])
def test_a_whole_number_is_a_lambda_too(encoding: str) -> None:
    oat, image = model(encoding), torch.rand(2, 1, 8, 8)
    for whole in (0, 1):
        torch.testing.assert_close(oat(image, Setting(whole)), oat(image, Setting(float(whole))), rtol=0, atol=0)


def test_each_image_has_its_own_lambda() -> None:
    oat = model()
    image = torch.rand(5, 1, 8, 8)
    lam = torch.tensor([0.0, 0.0, 0.2, 0.7, 1.0])
    together = oat.forward_mixed(image, lam, 2)
    for index in range(5):
        alone = oat(image[index : index + 1], Setting(float(lam[index]), noise="none"))
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-5)


def test_a_narrow_width_folds_as_it_runs() -> None:
    oat = model(narrow=True)
    image = torch.rand(3, 1, 8, 8)
    for lam in (0.0, 0.7):
        mixed = oat.forward_mixed(image, torch.full((3,), lam), 3 if lam == 0 else 0, 0.5)
        folded = oat(image, Setting(lam, noise="none", width=0.5))
        torch.testing.assert_close(folded, mixed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(folded, oat(image, Setting(0.7, noise="none")))


def test_training_updates_each_set_with_its_own_images() -> None:
    oat = model().train()
    clean, adversarial = oat.norm_set()["bn1"], oat.adversarial_set()["bn1"]
    before = clean.running_mean.clone(), adversarial.running_mean.clone()
    image = torch.rand(6, 1, 8, 8)
    oat.forward_mixed(image, torch.tensor([0, 0, 0.2, 0.7, 1, 1]), 2)
    stem = F.conv2d(oat.backbone.normalize(image), oat.backbone.conv1.weight, padding=1).detach()
    for norm, old, rows in ((clean, before[0], slice(0, 2)), (adversarial, before[1], slice(2, 6))):
        expected = 0.9 * old + 0.1 * stem[rows].mean(dim=(0, 2, 3))
        torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert "forward" not in oat.backbone.bn1.__dict__


def test_films_learn() -> None:
    oat = model().train()
    lam = torch.tensor([0.0, 0.2, 0.7, 1.0])
    F.cross_entropy(oat.forward_mixed(torch.rand(4, 1, 8, 8), lam, 1), torch.arange(4)).backward()
    for name, parameter in oat.films.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name


def test_encodings() -> None:
    assert encoding_rows("none", 4, 16, 0) is None
    assert torch.equal(encoding_rows("onehot", 4, 16, 0), torch.eye(16)[:4])
    from scipy.fft import dct

    expected = dct(np.eye(16), axis=0, type=2)[:4]
    np.testing.assert_allclose(encoding_rows("dct", 4, 16, 0).numpy(), expected, atol=1e-5)
    random = encoding_rows("random", 4, 16, 0)
    torch.testing.assert_close(random @ random.T, torch.eye(4), atol=1e-5, rtol=1e-5)
    assert not torch.equal(random, encoding_rows("random", 4, 16, 1))


def test_codes_between_two_lambdas_are_mixed() -> None:
    oat = model("onehot")  # 0, 0.2, 0.7, 1
    code = oat.code(torch.tensor([0.0, 0.2, 0.45, 1.0]))
    expected = torch.zeros(4, 16)
    expected[0, 0] = expected[1, 1] = expected[3, 3] = 1
    expected[2, 1] = expected[2, 2] = 0.5
    torch.testing.assert_close(code, expected)


def test_shortcuts_have_no_film() -> None:
    names = [name for name, _ in filmed_norms(build_backbone("resnet34", CATALOGUE["cifar10"]))]
    assert len(names) == 33 and not any("shortcut" in name for name in names)
