"""Whose network is priced: one table of the methods that the cost models tell apart."""

import difflib
import re
from dataclasses import dataclass, replace

from hwmodels.delay import Chip, Count, Delay, film_weights, float_delay, oat_delay, plain_delay
from hwmodels.errors import MethodError

DEFAULT_MODELS = 4  # as many values of lambda as paper 5 takes for its example of PGD-AT (section 4.3)
MAX_MODELS = 10_000


@dataclass(frozen=True)
class Method:
    """What a method adds to the plain network.

    Attributes:
        name: on the command line and in reports.
        label: in tables.
        aliases: other names on the command line.
        equation: of paper 5, which gives its delay.
        description: one line.
        transforms: whether each weight is conditioned, one multiplication and one addition per change of lambda.
        noise_read: whether that reads a stored noise value for each weight.
        film: whether a FiLM layer follows the layers that `Layer.film` marks.
        models: networks stored; one of them runs.
    """

    name: str
    label: str
    aliases: tuple[str, ...]
    equation: str
    description: str
    transforms: bool = False
    noise_read: bool = False
    film: bool = False
    models: int = 1

    @property
    def conditional(self) -> bool:
        """Whether lambda changing costs anything."""
        return self.transforms or self.film

    @property
    def tensors(self) -> int:
        """Values stored at each weight's place: the weight, and its noise where that is stored."""
        return 1 + self.noise_read

    def film_weights(self, film_channels: Count) -> Count:
        """Weights of the FiLM layer after a layer; 0 where the method has none.

        Args:
            film_channels: C_o of a layer that OAT puts a FiLM layer after, 0 for another.
        """
        return film_weights(film_channels) if self.film else 0

    def delay(self, weights: Count, positions: Count, film_channels: Count, chip: Chip, index_bits: Count = 0) -> Delay:
        """Delay of a layer by the method's equation; arguments as in `hwmodels.delay` and `film_weights`."""
        if self.film:
            return oat_delay(weights, positions, film_channels, chip, index_bits)
        if self.transforms:
            return float_delay(weights, positions, chip, index_bits, read_noise=self.noise_read)
        return plain_delay(weights, positions, chip, index_bits)


METHODS = (
    Method(
        "plain",
        "PGD-AT:1T",
        ("standard", "pgd-at", "pgd-at:1t"),
        "eq. 7",
        "one network for one lambda: standard training, or PGD-AT trained once",
    ),
    Method(
        "pgd-at:nt",
        "PGD-AT:nT",
        (),
        "eq. 7",
        "n networks for n lambdas: all are stored, one of them runs",
        models=DEFAULT_MODELS,
    ),
    Method("float", "FLOAT", (), "eq. 8", "as printed, no read is charged for the noise", transforms=True),
    Method(
        "float-stored-noise",
        "FLOAT, stored noise",
        (),
        "eq. 8 with a second read",
        "reads a stored noise tensor of as many values as the weights",
        transforms=True,
        noise_read=True,
    ),
    Method("oat", "OAT", (), "eq. 9", "FiLM layers after all convolutions but those of shortcuts", film=True),
    Method(
        "fixed",
        "lambda fixed",
        ("lambda-fixed",),
        "eq. 7",
        "any method with lambda fixed: noise, FiLM layers and batch norms fold into plain weights",
    ),
)


def find_method(name: str, models: int | None = None) -> Method:
    """Find a method by its name or an alias, whatever the case; `pgd-at:4t` is `pgd-at:nt` with four networks.

    Args:
        name: as in `METHODS`.
        models: networks of `pgd-at:nt`, 4 by default.

    Raises:
        MethodError: the name is unknown, or `models` is not for this method.
    """
    key = name.strip().lower()
    counted = re.fullmatch(r"pgd-at:([0-9]{1,9})t", key)
    if counted and int(counted[1]) != 1:
        if models not in (None, int(counted[1])):
            raise MethodError(f"method {name!r} and models (={models}) contradict each other; leave one out")
        key, models = "pgd-at:nt", int(counted[1])
    for method in METHODS:
        if key in (method.name, *method.aliases):
            return with_models(method, models)
    known = [known for method in METHODS for known in (method.name, *method.aliases)]
    near = difflib.get_close_matches(key, known, n=1)
    advice = f"did you mean {near[0]}? " if near else ""
    raise MethodError(f"method (={name!r}) is unknown; {advice}known: {', '.join(known)}")


def with_models(method: Method, models: int | None) -> Method:
    """Return `pgd-at:nt` with another number of networks.

    Raises:
        MethodError: the number is not in 1..10000, or the method has one network.
    """
    if method.name != "pgd-at:nt":
        if models is not None:
            raise MethodError(f"models (={models}) goes with method pgd-at:nt alone; {method.name} stores one network")
        return method
    models = DEFAULT_MODELS if models is None else models
    if not 1 <= models <= MAX_MODELS:
        raise MethodError(f"models (={models}) must be in 1..{MAX_MODELS}")
    return replace(method, label=f"PGD-AT:{models}T", models=models)
