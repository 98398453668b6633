"""Training a surrogate: what learns and what stays, both readings of eq. 9, resuming, refusals."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deploytool.attacks.victim import Victim
from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import DataError, InputError, RunError
from deploytool.explain.explainer import build_explainer, load_explainer, surrogate_setting
from deploytool.explain.recipe import FILE, ExplainerRecipe
from deploytool.explain.target import module_target, open_target
from deploytool.models.conditional import ConditionalModel, DualNormModel
from deploytool.models.registry import build_backbone
from deploytool.models.setting import Setting
from deploytool.recipe import make_recipe
from deploytool.training import surrogate as training
from deploytool.training.loop import train
from deploytool.training.run import load_checkpoint
from deploytool.training.surrogate import step_losses, train_explainer

DIGITS = CATALOGUE["digits"]


def recipe(epochs: tuple[int, int] = (1, 1), order: str = "staged", **sections: Any) -> ExplainerRecipe:
    phases = {part: {"first": count, "then": 0} for part, count in zip(("student", "explanation"), epochs, strict=True)}
    base = {"name": "x", "student": {"arch": "resnet8"}, "schedule": {"order": order, **phases}}
    return ExplainerRecipe.make(base | sections)


def target_module(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build_backbone("digits-resnet", DIGITS).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(6, 1, 8, 8, generator=generator), torch.randint(10, (6,), generator=generator)


def kl(p_logits: torch.Tensor, q_logits: torch.Tensor) -> float:
    p, q = p_logits.detach().softmax(1), q_logits.detach().softmax(1)
    return float((p * (p / q).log()).sum(1).mean())


@pytest.mark.parametrize("fidelity", ["target", "student"])
def test_the_explanation_loss_by_hand(fidelity: str) -> None:
    """Both readings of eq. 9, on a student that stands still."""
    made = recipe(explanation={"fidelity": fidelity, "l1": 0.02})
    model = build_explainer(made, DIGITS, False).train()
    network, (image, label) = target_module(), batch()
    before = copy.deepcopy(model.state_dict())
    losses = step_losses(model, made, "explanation", Setting(), Victim(network), image, label, torch.Generator())
    losses["explanation"].backward()
    surrogate = model.backbone
    assert all(p.grad is None for p in surrogate.student.parameters())
    assert all(p.grad is not None for p in surrogate.explanation.parameters())
    still = {k: v for k, v in before.items() if "student" in k}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in still.items())
    surrogate.load_state_dict({k.removeprefix("backbone."): v for k, v in before.items() if k.startswith("backbone.")})
    with torch.no_grad():
        features = surrogate.student.eval()(image)[1]
        saliency = surrogate.explanation.train()(features, [8, 8]).sigmoid()
        looked = network(saliency * image) if fidelity == "target" else surrogate.student(saliency * image)[0]
        expected = kl(network(image), looked) + 0.02 * float(saliency.sum()) / 6
    assert list(losses) == ["explanation"] and losses["explanation"].item() == pytest.approx(expected, rel=1e-4)


def test_the_student_learns_alone() -> None:
    made = recipe(distillation={"alpha": 0.3, "temperature": 2.0})
    model = build_explainer(made, DIGITS, False).train()
    network, (image, label) = target_module(), batch()
    logits = copy.deepcopy(model.backbone.student)(image)[0].detach()
    losses = step_losses(model, made, "student", Setting(), Victim(network), image, label, torch.Generator())
    losses["distillation"].backward()
    soft = 4 * kl(network(image) / 2, logits / 2)
    expected = 0.3 * soft + 0.7 * F.cross_entropy(logits, label).item()
    assert list(losses) == ["distillation"] and losses["distillation"].item() == pytest.approx(expected, rel=1e-4)
    assert all(p.grad is None for p in model.backbone.explanation.parameters())


@pytest.mark.parametrize("fidelity", ["target", "student"])
def test_end_to_end_is_the_sum_of_both(fidelity: str) -> None:
    """Eq. 11: the explanation's gradient reaches the student too, whose statistics are of whole images alone."""
    made = recipe(order="end-to-end", explanation={"fidelity": fidelity})
    model = build_explainer(made, DIGITS, False).train()
    alone = copy.deepcopy(model)
    network, (image, label) = target_module(), batch()
    losses = step_losses(model, made, "both", Setting(), Victim(network), image, label, torch.Generator())
    only = step_losses(alone, made, "student", Setting(), Victim(network), image, label, torch.Generator())
    assert losses["distillation"].item() == pytest.approx(only["distillation"].item(), rel=1e-5)
    losses["explanation"].backward()
    parameters = dict(model.backbone.student.named_parameters())
    assert all(parameter.grad is not None for name, parameter in parameters.items() if "attention" in name)
    for name, buffer in alone.backbone.student.named_buffers():
        torch.testing.assert_close(model.backbone.student.get_buffer(name), buffer)


def test_the_target_stays_as_it_is(tmp_path: Path) -> None:
    """Also one that is handed over in training mode, with gradients and all."""
    module = target_module().train()
    before = copy.deepcopy(module.state_dict())
    train_explainer(module_target(module), recipe(data={"batch_size": 400}), tmp_path / "x")
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())
    assert module.training and all(p.requires_grad and p.grad is None for p in module.parameters())


def test_a_student_learns_its_target_and_maps_keep_the_answer(plain_run, tmp_path: Path) -> None:
    """Not to be had by chance: 10 classes, and half of the pixels left out."""
    made = recipe((6, 6), explanation={"l1": 0.02})
    result = train_explainer(open_target(plain_run.path), made, tmp_path / "x")
    (row,) = result["rows"]
    assert result["fidelity"] == "target" and row["lambda"] is None and row["n"] == 500
    assert row["agreement"] > 0.9 and row["explained_agreement"] > 0.7 and 0.05 < row["mean_intensity"] < 0.9
    assert [entry["part"] for entry in json.loads((tmp_path / "x" / "metrics.json").read_text())] == (
        ["student"] * 6 + ["explanation"] * 6
    )


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resuming_walks_the_same_steps(stop: int, trained_run, tmp_path: Path) -> None:
    """Killed after any epoch, also between the phases; lambdas are drawn alike."""
    made, target = recipe((2, 2), data={"batch_size": 400}), open_target(trained_run.path)
    train_explainer(target, made, tmp_path / "whole")
    calls = iter(range(1, 9))

    def interrupted(*arguments: Any) -> None:
        if next(calls) == stop:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "log_scalars", interrupted)
        train_explainer(target, made, tmp_path / "stopped")
    assert load_checkpoint(tmp_path / "stopped").epochs == stop
    train_explainer(target, made, tmp_path / "stopped", resume=True)
    one, other = (load_checkpoint(tmp_path / name) for name in ("whole", "stopped"))
    assert one.history == other.history
    assert all(torch.equal(one.model[name], tensor) for name, tensor in other.model.items())


def test_two_conditions_learn_apart(float_explainer) -> None:
    """Batch norms of lambda 0 and of lambda 1 have seen other batches; the map changes with lambda."""
    model = float_explainer.model
    assert isinstance(model, DualNormModel)
    clean, attacked = model.norm_set(), model.adversarial_set()
    assert all(not torch.equal(clean[name].running_mean, attacked[name].running_mean) for name in clean)
    image = torch.rand(4, 1, 8, 8)
    maps = [float_explainer.explain(image, Setting(lam, conditioning="interpolate", noise="none"))[1] for lam in (0, 1)]
    assert (maps[0] - maps[1]).abs().max() > 1e-3


@pytest.mark.parametrize("lambdas", [[0.5], [0.0], [0.3, 1.0]])
def test_both_sets_of_batch_norms_have_to_learn(lambdas: list[float], trained_run, tmp_path: Path) -> None:
    target = open_target(trained_run.path)
    with pytest.raises(InputError, match=r"condition.lambdas \(=.*\) leaves one of two sets .* hold 0 and 1"):
        train_explainer(target, recipe(condition={"lambdas": lambdas}), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_shared_norms_by_choice(trained_run) -> None:
    made = recipe(condition={"norms": "shared"})
    assert type(build_explainer(made, DIGITS, True)) is ConditionalModel
    assert type(build_explainer(recipe(), DIGITS, False)) is ConditionalModel


def test_a_file_has_no_gradients(plain_file: Path, tmp_path: Path) -> None:
    """Eq. 9 as printed asks the target for outputs alone."""
    target = open_target(plain_file)
    with pytest.raises(InputError, match=r"explanation.fidelity \(=target\) needs gradients, .* take student"):
        train_explainer(target, recipe(explanation={"fidelity": "target"}), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    result = train_explainer(target, recipe(), tmp_path / "x")
    assert result["fidelity"] == "student"
    explainer = load_explainer(tmp_path / "x")
    assert explainer.target == str(plain_file) and explainer.recipe.explanation.fidelity == "student"
    explainer.check_target(target)


def test_refusals(plain_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = open_target(plain_run.path)
    with pytest.raises(DataError, match=r"takes images of \(1, 8, 8\), .* has \(3, 32, 32\)"):
        monkeypatch.setattr(training, "load_dataset", lambda section: cifar())
        train_explainer(target, recipe(), tmp_path / "x")
    monkeypatch.undo()
    broken = target_module()
    nn.init.constant_(broken.linear.weight, math.nan)
    with pytest.raises(InputError, match="the network answers NaN or infinity to 8 of 8 images"):
        train_explainer(module_target(broken), recipe(), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    train_explainer(target, recipe((1, 0)), tmp_path / "x")
    with pytest.raises(RunError, match="already holds a run; continue it with --resume"):
        train_explainer(target, recipe((1, 0)), tmp_path / "x")
    with pytest.raises(RunError, match=r"was started with another recipe \(target .* -> module\)"):
        train_explainer(module_target(target_module()), recipe((1, 0)), tmp_path / "x", resume=True)
    with pytest.raises(RunError, match=r"schedule.explanation.first 0 -> 1"):
        train_explainer(target, recipe(), tmp_path / "x", resume=True)


def test_another_target_under_the_same_name_is_refused(tmp_path: Path) -> None:
    """A run trained anew in the same folder is not what the explainer learned."""
    made = recipe()
    train_explainer(module_target(target_module(1)), made, tmp_path / "x")
    with pytest.raises(RunError, match="module is no longer the file that .* was started with"):
        train_explainer(module_target(target_module(2)), made, tmp_path / "x", resume=True)
    with pytest.raises(RunError, match="is not what .* was trained to explain"):
        load_explainer(tmp_path / "x").check_target(module_target(target_module(2)))


def test_an_exploding_loss_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "distillation_loss", lambda s, *rest: s.sum() * math.nan)
    with pytest.raises(RunError, match=r"stopped being finite in epoch 1; lower its phase's lr \(=0.1\)"):
        train_explainer(module_target(target_module()), recipe(), tmp_path / "x")
    assert not (tmp_path / "x" / "checkpoint.safetensors").exists() and (tmp_path / "x" / FILE).exists()


def cifar() -> Any:
    from deploytool.data.images import Dataset, Images

    images = Images(torch.rand(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64))
    return Dataset(CATALOGUE["cifar10"], images, images)


@pytest.mark.parametrize(("method", "moves"), [("oat", True), ("float", False)])
def test_a_surrogate_follows_lambda_as_its_target_does(method: str, moves: bool, tmp_path: Path) -> None:
    """OAT's answers change all the way; a switch at 0.5 has two, and the map changes there alone."""
    options = {"conditioning": "switch", "lambda_threshold": 0.5} if method == "float" else {}
    document = {"name": "x", "model": {"arch": "resnet8"}, "method": {"name": method, **options}}
    document |= {"data": {"batch_size": 400}, "optimizer": {"epochs": 1}, "attack": {"steps": 1}}
    train(make_recipe(document), tmp_path / "run")
    target = open_target(tmp_path / "run")
    result = train_explainer(target, recipe(data={"batch_size": 400}), tmp_path / "x")
    assert [row["lambda"] for row in result["rows"]] == [0.0, 1.0]
    explainer, image = load_explainer(tmp_path / "x"), batch()[0]
    maps = {lam: explainer.explain(image, surrogate_setting(target, lam))[1] for lam in (0.0, 0.3, 0.5, 0.7, 1.0)}
    assert not torch.equal(maps[0.5], maps[0.7])
    for one, other in ((0.0, 0.3), (0.3, 0.5), (0.7, 1.0)):
        assert torch.equal(maps[one], maps[other]) != moves


def test_a_student_may_start_from_its_target(trained_run, plain_file: Path, tmp_path: Path) -> None:
    """Before its first step it has the target's weights, and the batch norms of both conditions."""
    target = open_target(trained_run.path)
    made = recipe((1, 0), student={"arch": "resnet8", "start": "target"})
    model = build_explainer(made, trained_run.checkpoint.data, True)
    training._start_from(target, model)
    for lam, norms in ((0.0, model.norm_set()), (1.0, model.adversarial_set())):
        plain = dict(target.network(lam).named_modules())
        for name, norm in norms.items():
            if ".block." in name or name.startswith("student.resnet.bn1"):
                own = plain[name.removeprefix("student.resnet.").replace(".block.", ".")]
                assert torch.equal(norm.running_mean, own.running_mean) and torch.equal(norm.weight, own.weight)
    weight = target.network(0.0).layer3[0].conv2.weight
    assert torch.equal(model.backbone.student.resnet.layer3[0].block.conv2.weight, weight)
    for wrong, other in ((target, "resnet20"), (open_target(plain_file), "resnet8")):
        with pytest.raises(InputError, match="needs a target with weights, of the student's architecture"):
            train_explainer(wrong, recipe(student={"arch": other, "start": "target"}), tmp_path / "x")
        assert not (tmp_path / "x").exists()
