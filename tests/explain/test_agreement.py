"""Accuracies and agreement of a student and its target."""

import pytest
import torch

from deploytool.attacks.victim import Victim
from deploytool.explain.agreement import surrogate_accuracy
from deploytool.explain.target import open_target
from deploytool.models.setting import Setting


def test_accuracies_by_counting(float_explainer, trained_run) -> None:
    """What `train` reports at lambda 1, from maps and answers computed apart."""
    from deploytool.data.datasets import load_dataset

    target = open_target(trained_run.path)
    images = load_dataset(trained_run.recipe.data).test.head(90)
    network, setting = target.network(1.0), Setting(1.0, conditioning=target.setting.conditioning, noise="none")
    found = surrogate_accuracy(float_explainer.model, setting, Victim(network), images)
    image, label = images.batch(slice(None))
    logits, maps = float_explainer.explain(image, setting)
    with torch.no_grad():
        truth, explained = network(image).argmax(1), network(image * maps[:, None]).argmax(1)
    assert found == {
        "target_accuracy": pytest.approx((truth == label).float().mean().item()),
        "student_accuracy": pytest.approx((logits.argmax(1) == label).float().mean().item()),
        "agreement": pytest.approx((logits.argmax(1) == truth).float().mean().item()),
        "explained_agreement": pytest.approx((explained == truth).float().mean().item()),
        "mean_intensity": pytest.approx(maps.mean().item(), rel=1e-5),
        "n": 90,
    }
