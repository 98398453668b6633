"""A calibrated combination of everything that libraries say of an image, for attacks and foreign images alike.

Two detectors stand side by side, each with its p-value among clean calibration images, and the smaller one p counts
(Tippett's method), as 1 - (1 - p)^2: a p-value again where the two are independent.

- a logistic regression on the traits of `deploytool.library.scores`, fitted to tell clean calibration images from the
  same images attacked. It knows the attacks that it was fitted on, and nothing of images from elsewhere;
- the distance to the nearest training features, which knows no attack and finds what is foreign.

Other than CPL it has to be fitted to attacks, and an attack that knows it is left open.

References: K. Lee et al., A simple unified framework for detecting out-of-distribution samples and adversarial attacks,
2018, section 2.3 (a logistic regression over layers, fitted on attacks); L. H. C. Tippett, The methods of statistics,
1931.
"""

from typing import Any

import torch
from torch import Tensor

from deploytool.errors import InputError
from deploytool.library.calibration import rank_value
from deploytool.library.scores import Scores

FOLDS = 5


class Detector:
    """The combination.

    P-values of the regression's clean images are those of folds that it was not fitted on, neither on an image nor on
    its attacked copies.

    Args:
        clean: scores of calibration images as they are.
        attacked: scores of the same images, attacked; of one or several attacks, one after the other.

    Raises:
        InputError: there are fewer clean images than folds, or attacked ones are not the same images.
    """

    def __init__(self, clean: Scores, attacked: Scores) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GroupKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if len(clean) < FOLDS or not len(attacked):
            raise InputError(f"{len(clean)} clean and {len(attacked)} attacked images are too few; take more images")
        if len(attacked) % len(clean):
            raise InputError(f"{len(attacked)} attacked images are not the {len(clean)} clean ones, attacked")
        values = torch.cat([clean.traits, attacked.traits]).double().numpy()
        kinds = torch.cat([torch.ones(len(clean)), torch.zeros(len(attacked))]).numpy()
        model: Any = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=5000))
        whose = torch.arange(len(clean)).repeat(1 + len(attacked) // len(clean)).numpy()
        held_out = cross_val_predict(
            model, values, kinds, groups=whose, cv=GroupKFold(FOLDS), method="decision_function"
        )
        self._model = model.fit(values, kinds)
        self._clean, self._knn = torch.from_numpy(held_out[: len(clean)]), clean.knn

    def __call__(self, scores: Scores) -> Tensor:
        """How usual images are, (N,) float64 in (0, 1], small for attacked and foreign ones."""
        decided = torch.from_numpy(self._model.decision_function(scores.traits.double().numpy()))
        p_values = [_fine_rank(self._clean, decided), _fine_rank(self._knn.double(), scores.knn.double())]
        smaller = torch.stack(p_values).amin(0)
        return smaller * (2 - smaller)  # 1 - (1 - p)^2, also where p is tiny


def _fine_rank(clean: Tensor, score: Tensor) -> Tensor:
    """`rank_value`, with ties below every clean image broken by how far below they are."""
    spread = clean.std().clamp(min=1e-12)
    below = ((clean.min() - score) / spread).clamp(min=0)
    return rank_value(clean, score).double() / (1 + below)
