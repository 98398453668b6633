"""DeepFool, Carlini-Wagner and FAB look for the smallest perturbation: closed forms on linear networks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import Tensor

from deploytool.attacks.carlini import CarliniWagner
from deploytool.attacks.deepfool import DeepFool
from deploytool.attacks.fab import Fab, to_hyperplane
from deploytool.attacks.run import run_attack

DUAL = {"linf": 1, "l2": 2}


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("overshoot", [0.02, 0.2])
def test_deepfool_finds_the_nearest_boundary_exactly(linear, grey, boundary_distance, norm, overshoot) -> None:
    image, label = grey
    result = run_attack(linear, image, label, DeepFool(overshoot=overshoot, norm=norm))
    assert bool(result.fooled.all())
    exact = boundary_distance(image, label, DUAL[norm])
    torch.testing.assert_close(result.distance, (1 + overshoot) * exact, rtol=1e-3, atol=0)
    assert result.backwards == 4 * 12  # one step for everyone, a gradient for each other class


def test_deepfool_with_few_candidates_considers_the_likeliest(linear, grey) -> None:
    image, label = grey
    logits = linear(image)
    result = run_attack(linear, image, label, DeepFool(candidates=1))
    runner_up = logits.topk(2, dim=1).indices[:, 1]
    weight = (linear.weight[label] - linear.weight[runner_up]).flatten(1).norm(dim=1)
    exact = (logits.gather(1, label[:, None]) - logits.gather(1, runner_up[:, None])).squeeze(1) / weight
    torch.testing.assert_close(result.distance, 1.02 * exact, rtol=1e-3, atol=0)


def test_carlini_wagner_reaches_the_optimum(linear, grey, boundary_distance) -> None:
    image, label = grey
    result = run_attack(linear, image, label, CarliniWagner(lr=0.02, steps=300))
    exact = boundary_distance(image, label, 2)
    assert bool(result.fooled.all())
    ratio = result.distance / exact
    assert float(ratio.min()) > 0.9999 and float(ratio.max()) < 1.03


def test_carlini_wagner_finds_perturbations_far_below_its_first_steps() -> None:
    # Adam's first step moves all 768 values by lr / 2: a perturbation of 1.4 where 0.06 is enough
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3, 16, 16, generator=generator)
    image = 0.5 + 0.1 * torch.randn(4, 3, 16, 16, generator=generator)
    across, label = (weight[1] - weight[0]).flatten(), torch.zeros(4, dtype=torch.int64)
    gap = 0.06 * across.norm()

    def network(x: Tensor) -> Tensor:
        lead = (x - image[: len(x)]).flatten(1) @ across - gap
        return torch.stack([torch.zeros_like(lead), lead], dim=1)

    result = run_attack(network, image.clamp(0, 1), label, CarliniWagner())
    assert float(result.distance.min()) > 0.0599 and float(result.distance.max()) < 0.066


def test_carlini_wagner_s_confidence_moves_the_optimum(linear, grey) -> None:
    linear.weight, linear.bias = linear.weight[:2], linear.bias[:2]
    image, label = grey[0], linear(grey[0]).argmax(1)
    logits, kappa = linear(image), 0.5
    result = run_attack(linear, image, label, CarliniWagner(kappa=kappa, lr=0.02, steps=300))
    gap = (logits[:, 0] - logits[:, 1]).abs()
    exact = (gap + kappa) / (linear.weight[0] - linear.weight[1]).norm()
    assert float((result.distance / exact).max()) < 1.03 and float((result.distance / exact).min()) > 0.9999
    beaten = linear(result.image).gather(1, 1 - label[:, None]) - linear(result.image).gather(1, label[:, None])
    assert float(beaten.min()) >= kappa - 1e-4


def test_carlini_wagner_reaches_targets(linear, grey) -> None:
    image, label = grey
    target = (label + 2) % 5
    result = run_attack(linear, image, label, CarliniWagner(targeted=True), target=target)
    assert torch.equal(linear(result.image).argmax(1), target)
    free = run_attack(linear, image, label, CarliniWagner())
    assert bool((result.distance >= free.distance * 0.98).all())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_fab_finds_the_nearest_boundary(linear, grey, boundary_distance, norm: str) -> None:
    image, label = grey
    result = run_attack(linear, image, label, Fab(0.1, norm, steps=40))
    exact = boundary_distance(image, label, DUAL[norm])
    assert bool(result.fooled.all())
    assert float((result.distance / exact).min()) > 0.9999 and float((result.distance / exact).max()) < 1.01


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_fab_stops_early_at_the_same_robust_accuracy(plain_network, digits, norm: str) -> None:
    image, label = digits[0][:60], digits[1][:60]
    attack = {"eps": 0.1 if norm == "linf" else 0.4, "norm": norm, "steps": 10, "targets": 4}
    whole = run_attack(plain_network, image, label, Fab(**attack))
    stopped = run_attack(plain_network, image, label, Fab(**attack, early_stop=True))
    assert stopped.robust_accuracy() == whole.robust_accuracy()
    assert stopped.backwards < whole.backwards
    # its random starts can only help
    restarted = run_attack(plain_network, image, label, Fab(**attack, restarts=2))
    assert bool((restarted.smallest <= whole.smallest + 1e-6).all())


def test_robust_accuracy_is_read_off_at_any_eps(plain_network, digits) -> None:
    image, label = digits
    result = run_attack(plain_network, image, label, DeepFool(0.4))
    wrong = plain_network(image).argmax(1) != label
    assert bool(result.fooled.all())  # nothing is bounded here
    assert torch.equal(result.distance == 0, wrong)
    accuracies = [result.robust_accuracy(eps) for eps in (0.0, 0.2, 0.4, 0.8, 10.0)]
    assert accuracies[0] == pytest.approx(1 - float(wrong.float().mean())) and accuracies[-1] == 0
    assert accuracies == sorted(accuracies, reverse=True)
    assert result.robust_accuracy() == accuracies[2]
    assert accuracies[2] == pytest.approx(float((result.distance > 0.4).float().mean()))


@given(seed=st.integers(0, 2**31), norm=st.sampled_from(["l2", "linf"]), share=st.floats(-1.2, 1.2))
def test_projections_onto_hyperplanes_in_the_box(seed: int, norm: str, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    point = torch.rand(1, 6, generator=generator).round(decimals=1)
    w = torch.randn(1, 6, generator=generator) * (torch.rand(1, 6, generator=generator) > 0.2)
    best = ((w > 0).float() - point).mul(w).sum(1)  # the most that <w, d> can be in the box
    least = ((w < 0).float() - point).mul(w).sum(1)
    gap = share * (best if share > 0 else -least)
    b = (w * point).sum(1) + gap
    d = to_hyperplane(point, w, b, norm)
    assert float((point + d).min()) >= -1e-6 and float((point + d).max()) <= 1 + 1e-6
    reached = gap.clamp(least, best)  # beyond the box: as far as it goes
    torch.testing.assert_close((w * d).sum(1), reached, atol=2e-5, rtol=1e-4)
    # an independent solver finds nothing smaller
    size = float(d.norm(p=2 if norm == "l2" else float("inf")))
    x, weight, wanted = point[0].double().numpy(), w[0].double().numpy(), float(reached)
    bounds = list(zip(-x, 1 - x, strict=True))
    if norm == "linf":
        # minimise t over (d, t) with -t <= d_i <= t
        rows = [[s * float(i == j) for j in range(6)] + [-1.0] for i in range(6) for s in (1, -1)]
        found = linprog(
            [0] * 6 + [1], A_ub=rows, b_ub=[0] * 12, A_eq=[[*weight, 0]], b_eq=[wanted], bounds=[*bounds, (0, 1)]
        )
        best_size = found.fun if found.success else size
    else:
        constraint = {"type": "eq", "fun": lambda d: weight @ d - wanted}
        found = minimize(lambda d: d @ d, d[0].double().numpy(), bounds=bounds, constraints=constraint, method="SLSQP")
        best_size = found.fun**0.5 if found.success else size
    assert size <= best_size + 1e-4
