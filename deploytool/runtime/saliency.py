"""What the output `saliency` (N, 1, H, W) of a file means: a surrogate explainer's map, values in [0, 1].

1 is evidence for what the classifier answers, 0 none. The surrogate is a network of its own beside the classifier, or
the whole of a file; one metadata property says which:

    deploytool.explainer    {"name": "cifar10-maps", "recipe": "5f0c...", "fidelity": "target", "target": "9a..."}

Reference: H. Lee, S. Kim, Explaining neural networks using attentive knowledge distillation, 2021 ("paper 3").
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import onnx

from deploytool.runtime.notes import read_note

SALIENCY, EXPLAINER = "saliency", "deploytool.explainer"
MAX_CHARACTERS = 4096  # of the property, before it is read


@dataclass(frozen=True)
class ExplainerNote:
    """Where the maps of a file come from.

    Attributes:
        name, recipe: name and digest of the explainer's recipe.
        fidelity: `target` or `student`: who looked at the explained image in training.
        target: SHA-256 of the classifier that it explains.
    """

    name: str
    recipe: str
    fidelity: str
    target: str

    def to_properties(self) -> dict[str, str]:
        """The metadata property."""
        return {EXPLAINER: json.dumps(asdict(self))}


def read_explainer(properties: Mapping[str, str]) -> ExplainerNote | None:
    """Read the metadata property; None where there is none.

    Raises:
        ValueError: it is not as the module says, in one line.
    """
    document = read_note(properties, EXPLAINER, MAX_CHARACTERS, ExplainerNote)
    if document is None:
        return None
    if not all(isinstance(value, str) for value in document.values()):
        raise ValueError("explainer holds what is no text")
    return ExplainerNote(**document)


def is_map(output: onnx.ValueInfoProto, shape: tuple[int, int, int]) -> bool:
    """Whether an output is one map for each image: (N, 1, H, W), of an image (C, H, W)."""
    dims = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
    return len(dims) == 4 and dims[1:] == [1, *shape[1:]]
