"""How well a student imitates its target, and what is left of an explained image.

Reference: H. Lee, S. Kim, Explaining neural networks using attentive knowledge distillation, 2021 ("paper 3"), eq. 12
and table 2.
"""

from typing import Any

import torch

from deploytool.attacks.victim import Victim
from deploytool.data.images import Images
from deploytool.evaluation import image_batches
from deploytool.models.conditional import ConditionalModel
from deploytool.models.setting import Setting


@torch.no_grad()
def surrogate_accuracy(model: ConditionalModel, setting: Setting, target: Victim, images: Images) -> dict[str, Any]:
    """How well the student imitates its target, and what is left of an explained image.

    Args:
        model: the surrogate, in evaluation mode.
        setting: lambda, for its batch norms.
        target: at the same lambda.
        images: labelled.

    Returns:
        Shares of the images in [0, 1]: `target_accuracy` and `student_accuracy` (paper 3, eq. 12 and table 2),
        `agreement` of student and target in their top class, `explained_agreement` of the target's answers for x and
        for H * x; `mean_intensity` of the maps; `n`.
    """
    device = next(model.parameters()).device
    counts, intensity = torch.zeros(4, dtype=torch.int64, device=device), 0.0
    with model.network(setting) as network:
        for image, label in image_batches(images, device):
            truth = target.logits(image).argmax(1)
            logits, saliency = network(image)
            student, explained = logits.argmax(1), target.logits(saliency * image).argmax(1)
            hits = (truth == label, student == label, student == truth, explained == truth)
            counts += torch.stack([hit.sum() for hit in hits])
            intensity += float(saliency.double().mean((1, 2, 3)).sum())
    names = ("target_accuracy", "student_accuracy", "agreement", "explained_agreement")
    shares = {name: count / len(images) for name, count in zip(names, counts.tolist(), strict=True)}
    return {**shares, "mean_intensity": intensity / len(images), "n": len(images)}
