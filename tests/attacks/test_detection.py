"""What is detected: rates worked by hand, and an ordinary attack on a network with reasoning labels."""

import pytest
import torch

from deploytool.attacks.acceptance import AcceptanceRule
from deploytool.attacks.consistent import Consistent
from deploytool.attacks.detection import Detection, Judged, detection, judge, measure_detection
from deploytool.attacks.pgd import Pgd
from deploytool.attacks.run import run_attack
from deploytool.attacks.square import Square
from deploytool.errors import InputError


def bits(text: str) -> torch.Tensor:
    return torch.tensor([bit == "1" for bit in text])


def test_rates_by_hand() -> None:
    #                       right               accepted
    before = Judged(bits("1111110000"), bits("1111101100"))
    after = Judged(bits("1100000000"), bits("1011001101"))
    found = Detection(before, after)
    assert (before.accuracy, before.coverage, before.accuracy_accepted) == (0.6, 0.7, 5 / 7)
    assert found.detection_rate == 3 / 6  # of images 0 to 5: 1, 4, 5 are rejected
    assert found.detection_rate_changed == 2 / 4  # of 2, 3, 4, 5: 4, 5
    assert found.undetected_rate == 0.5  # 2, 3, 6, 7, 9
    assert found.robust_accuracy_accepted == 0.3  # 0, 1, 4
    assert found.rejected_rate == 2 / 5  # of 0 to 4: 1, 4
    assert found.to_dict() == {
        "coverage": 0.7, "accuracy_accepted": 5 / 7, "detection_rate": 0.5, "detection_rate_changed": 0.5,
        "undetected_rate": 0.5, "robust_accuracy_accepted": 0.3, "rejected_rate": 0.4,
    }  # fmt: skip


def test_rates_of_nothing_are_none() -> None:
    nothing = Judged(bits("00"), bits("00"))
    found = Detection(nothing, nothing)
    assert nothing.accuracy_accepted is found.detection_rate is found.detection_rate_changed is None
    assert found.rejected_rate is None and found.undetected_rate == 0
    assert found.robust_accuracy_accepted == 0  # rejecting everything is no robustness


@pytest.mark.parametrize("attack", [Pgd(0.12, 0.03, 10), Pgd(0.12, 0.03, 10, iterate="last"), Square(0.12, queries=40)])
def test_ordinary_attacks_meet_the_class_logits(two_heads, naive_verdict, attack) -> None:
    network, vectors, image, label = two_heads
    result, found = measure_detection(network, image, label, attack, AcceptanceRule(vectors, 0.9), batch=50)
    alone = run_attack(lambda image: network(image)[:, :10], image, label, attack, batch=50)
    assert torch.equal(result.image, alone.image) and torch.equal(result.fooled, alone.fooled)
    assert "acceptance" not in result.record  # its goal is the class
    for judged, points in ((found.before, image), (found.after, result.image)):
        verdicts = naive_verdict(network(points), vectors, 0.9)
        assert judged.accepted.tolist() == [ok for _, ok in verdicts]
        assert judged.right.tolist() == [named == own for (named, _), own in zip(verdicts, label.tolist(), strict=True)]


def test_the_adaptive_attack_is_detected_least_and_first_iterates_most(two_heads) -> None:
    network, vectors, image, label = two_heads
    rule = AcceptanceRule(vectors, 0.9)
    first, last, adaptive = (
        measure_detection(network, image, label, attack, rule)[1]
        for attack in (Pgd(0.12, 0.03, 20), Pgd(0.12, 0.03, 20, iterate="last"), Consistent(0.12, steps=20))
    )
    assert first.undetected_rate < last.undetected_rate < adaptive.undetected_rate
    assert first.detection_rate_changed > last.detection_rate_changed > adaptive.detection_rate_changed


def test_results_of_batches_are_merged(two_heads) -> None:
    network, vectors, image, label = two_heads
    rule = AcceptanceRule(vectors, 0.9)
    result, found = measure_detection(network, image, label, Consistent(0.05, steps=2, targets=1), rule, batch=30)
    assert len(result.accepted) == len(found.before) == len(image)
    assert result.record["images"] == len(image)
    # a batch of another size rounds otherwise in float32, so that only the answers are the same
    answer = network(result.image)
    assert torch.equal(result.accepted, rule.accepted(answer))


def test_networks_that_draw_noise_are_judged_by_their_mean(two_heads) -> None:
    network, vectors, image, label = two_heads
    rule, generator = AcceptanceRule(vectors, 0.9), torch.Generator().manual_seed(0)
    noisy = lambda image: network(image) + 6 * torch.randn(len(image), 22, generator=generator)  # noqa: E731
    exact = judge(network, [(image, label)], rule).accuracy
    one, many = (judge(noisy, [(image, label)], rule, passes).accuracy for passes in (1, 100))
    assert abs(many - exact) < abs(one - exact)


def test_what_does_not_fit_is_refused(two_heads) -> None:
    network, vectors, image, label = two_heads
    rule = AcceptanceRule(vectors, 0.9)
    with pytest.raises(InputError, match="2 images before the attack, 1 after"):
        Detection(Judged(bits("11"), bits("11")), Judged(bits("1"), bits("1")))
    result = run_attack(lambda image: network(image)[:, :10], image, label, Pgd(0.1, 0.1, 1))
    with pytest.raises(InputError, match="does not say what was accepted"):
        detection(judge(network, [(image, label)], rule), result)
    with pytest.raises(InputError, match="label holds 19"):
        judge(network, [(image, label + 10)], rule)
    with pytest.raises(InputError, match=r"training mode.*call \.eval\(\)"):
        measure_detection(network.train(), image, label, Pgd(0.1, 0.1, 1), rule)
    network.eval()
