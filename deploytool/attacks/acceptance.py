"""Which answers a deployment with reasoning labels acts on: the rule, and networks with two heads under it.

A network with two heads answers (N, K + R): K class logits, then R reasoning logits, before the sigmoid. A deployment
acts on its class only if the reasons are those of that class, and rejects the image otherwise.

Reference: the paper on reasoning labels ("paper 1"), section 3.3.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploytool.attacks.goal import Goal
from deploytool.attacks.victim import Network
from deploytool.errors import InputError
from deploytool.runtime.reasoning import check_reasoning_threshold, required_agreements


@dataclass(frozen=True, eq=False)
class AcceptanceRule:
    """A class is accepted where enough of the reasons are its own.

        accepted(x)  <=>  sum_i [r_hat_i = r^y_hat_i] >= required        required = the smallest k with k / R >= t_rsn

    y_hat is the argmax of the class logits; r_hat_i is 1 where the i-th reasoning logit is above 0, else 0; r^k is the
    vector of class k.

    Attributes:
        vectors: (K, R) of 0 and 1, any dtype, K at least 2 and R at least 1: which reasoning labels each class has.
        threshold: t_rsn in [0, 1]; 0 accepts every answer, 1 none whose reasons differ in one label.

    Raises:
        InputError: vectors or threshold are not as above.

    Reference: paper 1, section 3.3.
    """

    vectors: Tensor
    threshold: float

    def __post_init__(self) -> None:
        vectors = torch.from_numpy(self.vectors) if isinstance(self.vectors, np.ndarray) else self.vectors
        expected = "(K, R) of 0 and 1, a row for each class"
        if not isinstance(vectors, Tensor):
            raise InputError(f"vectors are a {type(vectors).__name__}; expected a torch tensor {expected}")
        if vectors.ndim != 2 or vectors.shape[0] < 2 or vectors.shape[1] < 1:
            found = tuple(vectors.shape)
            raise InputError(f"vectors have shape {found}; expected {expected}, K at least 2, R at least 1")
        if not bool(((vectors == 0) | (vectors == 1)).all()):  # NaN is neither
            raise InputError(f"vectors hold other values than 0 and 1; expected {expected}")
        object.__setattr__(self, "vectors", vectors.detach().bool())
        object.__setattr__(self, "threshold", check_reasoning_threshold(self.threshold))

    @property
    def classes(self) -> int:
        """K."""
        return self.vectors.shape[0]

    @property
    def reasons(self) -> int:
        """R."""
        return self.vectors.shape[1]

    @cached_property
    def required(self) -> int:
        """How many of the R reasons have to agree, 0..R."""
        return required_agreements(self.reasons, self.threshold)

    def to(self, device: torch.device | str) -> "AcceptanceRule":
        """The same rule with its vectors on a device."""
        return (
            self
            if self.vectors.device == torch.device(device)
            else AcceptanceRule(self.vectors.to(device), self.threshold)
        )

    def to_dict(self) -> dict[str, Any]:
        """For a JSON document: `threshold`, `reasons` (R), `required`."""
        return {"threshold": self.threshold, "reasons": self.reasons, "required": self.required}

    def class_logits(self, answer: Tensor) -> Tensor:
        """The first K columns of answers (N, K + R).

        Raises:
            InputError: the answers have another width.
        """
        self.check(answer)
        return answer[:, : self.classes]

    def agreement_margins(self, answer: Tensor, label: Tensor) -> Tensor:
        """By how much each reason agrees with those of a class, (N, R), in logits: below 0 where it does not.

        Args:
            answer: (N, K + R).
            label: (N,) int64, the class of each image's vector.
        """
        self.check(answer)
        wanted = self.vectors[label]
        reasons = answer[:, self.classes :]
        return torch.where(wanted, reasons, -reasons)

    def accepted(self, answer: Tensor) -> Tensor:
        """Which answers (N, K + R) are accepted, (N,) bool, for the class that they name."""
        reasons = answer[:, self.classes :] > 0
        named = self.class_logits(answer).argmax(1)
        return (reasons == self.vectors[named]).sum(1) >= self.required

    def class_network(self, network: Network) -> Network:
        """A network with two heads (image -> (N, K + R)) as one with class logits (N, K) alone."""
        return lambda image: self.class_logits(network(image))

    def check(self, answer: Tensor) -> None:
        """Raise InputError unless answers have K + R columns."""
        if answer.ndim != 2 or answer.shape[1] != self.classes + self.reasons:
            raise InputError(
                f"the network answers {tuple(answer.shape)}; the acceptance rule has {self.classes} classes and "
                f"{self.reasons} reasoning labels: expected (N, {self.classes + self.reasons})"
            )


@dataclass(frozen=True)
class AcceptedGoal(Goal):
    """Another class than the label, and reasons for which that class is accepted.

    Attributes:
        label: (N,) int64, the class to leave.
        rule: what decides on acceptance.
    """

    rule: AcceptanceRule = field(kw_only=True)

    def reached(self, logits: Tensor) -> Tensor:
        """Whether answers (N, K + R) name another class than the label and are accepted, (N,) bool."""
        wrong: Tensor = self.rule.class_logits(logits).argmax(1) != self.label
        return wrong & self.rule.accepted(logits)
