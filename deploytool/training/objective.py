"""What is minimised for each image: the class loss, with reasoning labels beside it.

    L = alpha * L_clf(F_clf(x), y) + (1 - alpha) * L_rsn(F_rsn(x), y)                                (paper 1, eq. 3)

`L_clf` is cross-entropy over the K classes, `L_rsn` binary cross-entropy, the mean over the R labels of the vector r of
class y: a sum, which the paper's words allow too, would let alpha's meaning depend on R.

Reference: V. Nanda, J. Ali, K. P. Gummadi, M. B. Zafar, Unifying model explainability and robustness via reasoning
labels ("paper 1"), section 3.2.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from deploytool.models.conditional import ConditionalModel
from deploytool.recipe import Recipe

Attacked = Literal["class", "reasoning", "both"]


@dataclass(frozen=True)
class Objective:
    """The loss of a network's whole answer (N, K + R); of (N, K) without reasoning labels.

    Attributes:
        vectors: (K, R) float32 of zeros and ones, which labels go with each class; None without them.
        alpha: in (0, 1), of eq. 3.
        attack: the loss that attacks within training climb.
    """

    vectors: Tensor | None = None
    alpha: float = 1.0
    attack: Attacked = "class"

    def loss(self, answer: Tensor, label: Tensor) -> Tensor:
        """The mean over the images of `losses`, a scalar."""
        if self.vectors is None:
            return F.cross_entropy(answer, label)
        return self.losses(answer, label).mean()

    def losses(self, answer: Tensor, label: Tensor) -> Tensor:
        """Eq. 3 of each image (N,); cross-entropy without reasoning labels. `label` is (N,) int64."""
        if self.vectors is None:
            return F.cross_entropy(answer, label, reduction="none")
        return self.alpha * self.class_losses(answer, label) + (1 - self.alpha) * self.reasoning_losses(answer, label)

    def class_losses(self, answer: Tensor, label: Tensor) -> Tensor:
        """L_clf of each image, (N,)."""
        classes = answer.shape[1] if self.vectors is None else len(self.vectors)
        return F.cross_entropy(answer[:, :classes], label, reduction="none")

    def reasoning_losses(self, answer: Tensor, label: Tensor) -> Tensor:
        """L_rsn of each image, (N,): from logits, which is its sigmoid and logarithm without their overflow."""
        assert self.vectors is not None
        reasoning = answer[:, len(self.vectors) :]
        return F.binary_cross_entropy_with_logits(reasoning, self.vectors[label], reduction="none").mean(1)

    def attacked(self, answer: Tensor, label: Tensor) -> Tensor:
        """The loss that training's attack climbs, a scalar: of the class, of the reasons, or eq. 3."""
        if self.vectors is None or self.attack == "both":
            return self.loss(answer, label)
        losses = self.class_losses if self.attack == "class" else self.reasoning_losses
        return losses(answer, label).mean()


def make_objective(model: ConditionalModel, recipe: Recipe) -> Objective:
    """The objective of a recipe, for its model."""
    if recipe.reasoning is None or model.reason_vectors is None:
        return Objective()
    return Objective(model.reason_vectors.float(), recipe.reasoning.alpha, recipe.reasoning.attack)
