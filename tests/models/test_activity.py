"""Active hidden neurons: counted exactly, named by layer, against hooks that know nothing of the recorder."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import InputError
from deploytool.models.activity import activity_ratio, trained_passes
from deploytool.models.conditional import ConditionalModel, FloatModel
from deploytool.models.oat import OatModel
from deploytool.models.registry import BACKBONES, build_backbone
from deploytool.models.setting import Setting

DIGITS, CIFAR10 = CATALOGUE["digits"], CATALOGUE["cifar10"]


class Mixed(nn.Module):
    """The same nonlinearity as a module used twice, a function, a method, and one within a block."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.block = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.act(x) - 0.5)
        x = F.relu(x - 0.1).relu()
        return self.block(torch.relu(x)).mean((2, 3))


def test_a_ratio_by_hand() -> None:
    """Two images of four neurons each: one and three answer."""
    network = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Flatten()).eval()
    images = torch.tensor([[[[-1.0, 0.0], [0.0, 2.0]]], [[[1.0, 2.0], [3.0, -1.0]]]])
    found = activity_ratio(network, images)
    assert (found.images, found.active, found.neurons) == (2, {"1": 4}, {"1": 4})
    assert found.ratio == 0.5 and found.ratios == {"1": 0.5}


def test_the_whole_ratio_is_weighted_by_neurons() -> None:
    network = nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.ReLU()).eval()
    found = activity_ratio(network, torch.tensor([[[[1.0, -1.0], [-1.0, -1.0]]]]))
    assert found.ratios == {"0": 0.25, "2": 1.0} and found.ratio == 2 / 5


def test_every_way_to_call_a_nonlinearity_has_its_name() -> None:
    found = activity_ratio(Mixed().eval(), torch.rand(3, 1, 4, 4))
    assert list(found.neurons) == ["act", "act_2", "relu", "relu_2", "relu_3", "block.1"]
    assert list(activity_ratio(lambda x: F.relu6(torch.relu(x)), torch.rand(1, 1, 2, 2)).neurons) == ["relu", "relu6"]


@pytest.mark.parametrize("arch", sorted(BACKBONES))
def test_it_counts_what_a_naive_oracle_counts(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, images = build_backbone(arch, DIGITS, 0.25).eval(), torch.rand(5, 1, 8, 8)
    found = activity_ratio(network, images, batch=2)
    assert not network._forward_hooks and not network._forward_pre_hooks

    seen: list[Tensor] = []
    original = torch.relu
    for module in network.modules():
        if isinstance(module, nn.ReLU6):  # nn.ReLU calls torch.relu
            module.register_forward_hook(lambda _, __, output: seen.append(output))
    monkeypatch.setattr(torch, "relu", lambda x: seen.append(original(x)) or seen[-1])
    with torch.no_grad():
        for image in images:  # one by one, so that every image's own batch-norm statistics would show
            network(image[None])
    layers = len(seen) // 5
    assert len(found.neurons) == layers
    assert list(found.neurons.values()) == [output.numel() for output in seen[:layers]]
    for index, count in enumerate(found.active.values()):
        # batches of other sizes round otherwise: a neuron at the very edge may open
        assert abs(count - sum(int((output != 0).sum()) for output in seen[index::layers])) <= 2


def test_the_39200_neurons_of_paper_2() -> None:
    found = activity_ratio(build_backbone("single-layer-cnn", CIFAR10).eval(), torch.rand(2, 3, 32, 32))
    assert found.neurons == {"relu": 39_200} and 0 < found.ratio < 1


@pytest.mark.parametrize("kind", [ConditionalModel, FloatModel, OatModel])
@pytest.mark.parametrize("width", [0.5, 1.0])
def test_a_runs_model_is_counted_as_its_plain_network(kind: type, width: float) -> None:
    """FiLM's own rectifiers are no hidden neurons of the backbone."""
    torch.manual_seed(0)
    with torch.device("meta"):
        narrow = {0.5: build_backbone("resnet8", DIGITS, 0.5)}
    model = kind(build_backbone("resnet8", DIGITS), narrow=narrow).train()
    setting = Setting(0.0, noise="none", width=width)
    images = torch.rand(4, 1, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = activity_ratio(model, images, setting)
    assert model.training and all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    plain = activity_ratio(model.plain_network(setting), images)
    assert found == plain
    with model.network(setting) as network:  # folded batch norms: the same neurons up to rounding
        folded = activity_ratio(network, images)
    assert list(folded.neurons.values()) == list(plain.neurons.values())
    assert folded.ratio == pytest.approx(plain.ratio, abs=1e-3)


def test_lambda_changes_what_is_active() -> None:
    torch.manual_seed(0)
    model = FloatModel(build_backbone("resnet8", DIGITS), alpha_init=1.0)
    images = torch.rand(4, 1, 8, 8)
    assert activity_ratio(model, images, Setting(1.0)) != activity_ratio(model, images)


def test_training_passes_alone_are_recorded_with_their_gradients() -> None:
    network = Mixed().train()
    image = torch.rand(3, 1, 4, 4, requires_grad=True)
    with trained_passes(network) as passes:
        network(image)
        network.eval()(image)
        network.train()(image[:1])
    network(image)
    assert [each.images for each in passes] == [3, 1] and [len(each.sums) for each in passes] == [6, 6]
    passes[0].sums[0].backward()
    torch.testing.assert_close(image.grad, torch.ones_like(image))


def test_an_exception_leaves_nothing_behind() -> None:
    network = Mixed().train()
    with pytest.raises(RuntimeError), trained_passes(network):
        network(torch.rand(1, 3, 4, 4))
    with pytest.raises(RuntimeError):
        activity_ratio(network.eval(), torch.rand(1, 3, 4, 4))
    assert "forward" not in network.__dict__ and not torch.overrides._len_torch_function_stack()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(InputError, match=r"images have shape \(0, 1, 8, 8\)"):
        activity_ratio(Mixed().eval(), torch.rand(0, 1, 8, 8))
    with pytest.raises(InputError, match=r"call .eval\(\)"):
        activity_ratio(Mixed(), torch.rand(1, 1, 8, 8))
    with pytest.raises(InputError, match="nothing to count"):
        activity_ratio(nn.Conv2d(1, 1, 1).eval(), torch.rand(1, 1, 8, 8))
