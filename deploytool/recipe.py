"""The recipe: everything that decides what a run computes, as one validated YAML file.

Unknown keys are refused with the nearest valid name; `--set a.b=c` overrides one value; `deploytool schema`
writes the JSON Schema that an editor completes and checks with.
"""

import os
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from deploytool.attacks.names import ATTACK_PATTERN, is_reasoned, parse_name, split_name
from deploytool.documents import Document, Section
from deploytool.errors import InputError
from deploytool.models.setting import Conditioning, NoiseMode


def parse_fraction(value: Any) -> Any:
    """Read "8/255" as 8 / 255; leave anything else to the field's own check."""
    if isinstance(value, str) and value.count("/") == 1:
        numerator, denominator = value.split("/")
        try:
            return float(numerator) / float(denominator)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{value!r} is no fraction; write it as 8/255 or 0.031") from None
    return value


def parse_names(value: Any) -> Any:
    """Accept `a,b` and a single item where a list is meant, as `--set` and YAML scalars give them."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return [value] if isinstance(value, int | float) else value


Fraction = Annotated[float, BeforeValidator(parse_fraction, json_schema_input_type=float | str)]
Unit = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(ge=1e-6, le=1e6)]


def check_lambda_threshold(value: float) -> float:
    """Let the two thresholds of paper 5 through."""
    if value not in (0.0, 0.5):
        raise ValueError("must be 0 or 0.5")
    return value


def check_attack_name(name: str) -> str:
    """Let the names of evaluation attacks through; their options are checked where the attack is made."""
    try:
        parse_name(split_name(name)[0])
    except InputError as error:
        raise ValueError(str(error).partition(") is ")[2]) from None
    return name


def check_widths(widths: list[float]) -> list[float]:
    """Let width multipliers through that hold 1 and no other one twice; sorted."""
    if 1.0 not in widths:
        raise ValueError("must hold 1.0, the full network, as in [0.5, 1.0]")
    if len(set(widths)) < len(widths):
        raise ValueError("must not hold a width twice")
    return sorted(widths)


def check_lambda_set(lambdas: list[float]) -> list[float]:
    """Let a set of at least two different lambdas through that holds 0; sorted."""
    if 0.0 not in lambdas or len(set(lambdas)) < max(2, len(lambdas)):
        raise ValueError("must hold 0, another lambda, and none twice")
    return sorted(lambdas)


Width = Annotated[float, Field(gt=0, le=1)]
LambdaThreshold = Annotated[float, AfterValidator(check_lambda_threshold), Field(json_schema_extra={"enum": [0, 0.5]})]
FileName = Annotated[str, Field(min_length=1, max_length=4096)]
AttackName = Annotated[
    str, AfterValidator(check_attack_name), Field(json_schema_extra={"pattern": ATTACK_PATTERN[:-1] + "(:.*)?$"})
]


class DataSection(Section):
    """Which images, and how they are served."""

    name: str = Field(
        "digits",
        description="digits, mnist, cifar10, cifar100, svhn, stl10, tiny-imagenet, imagefolder:PATH, or npz:PATH",
    )
    root: str | None = Field(None, description="folder that holds (or receives) a downloaded data set")
    image_size: int | None = Field(
        None, ge=4, le=1024, description="imagefolder: pixels per side, all images resized; null: as they are"
    )
    batch_size: int = Field(128, ge=2, le=65536, description="images per training step, both halves together")
    crop_padding: int = Field(0, ge=0, le=64, description="pixels of zero padding for random crops; 0: no crops")
    flip: bool = Field(False, description="random horizontal flips")
    adversarial: Annotated[list[FileName], BeforeValidator(parse_names)] = Field(
        [], description=".npz files of adversarial training images that training appends (paper 2, section 4.2)"
    )

    @field_validator("image_size")
    @classmethod
    def _folders_alone_are_resized(cls, image_size: int | None, info: ValidationInfo) -> int | None:
        if image_size is not None and not str(info.data.get("name", "")).startswith("imagefolder:"):
            raise ValueError("only imagefolder:PATH is resized; leave it out")
        return image_size


class ModelSection(Section):
    """The plain backbone."""

    arch: str = Field("digits-resnet", description="a name that `deploytool models` lists")
    widths: Annotated[list[Width], BeforeValidator(parse_names), AfterValidator(check_widths)] = Field(
        [1.0], min_length=1, description="width multipliers that one slimmable network serves; 1 among them"
    )
    multiplier: float = Field(
        1.0, gt=0, le=1, description="of all channel counts, as in MobileNet 0.25; widths are shares of what is left"
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="probability of every dropout layer; null: the backbone's own, of full width"
    )
    weights: FileName | None = Field(
        None, description="run folder, .safetensors or .npz with the backbone's weights at the start; null: random"
    )
    mean: Annotated[list[float], BeforeValidator(parse_names)] | None = Field(
        None, min_length=1, description="per channel, of images in [0, 1]; null: the data set's"
    )
    std: Annotated[list[Spread], BeforeValidator(parse_names)] | None = Field(
        None, min_length=1, description="per channel, of images in [0, 1]; null: the data set's"
    )


class StandardMethod(Section):
    """Empirical risk minimisation (paper 5, eq. 1): no attack, no condition."""

    name: Literal["standard"]


class PgdAtMethod(Section):
    """PGD adversarial training at one fixed lambda (paper 5, eq. 3)."""

    model_config = ConfigDict(populate_by_name=True)

    name: Literal["pgd-at"]
    lam: Unit = Field(1.0, alias="lambda", description="weight of the adversarial loss in [0, 1]")


class FloatMethod(Section):
    """FLOAT: weights and batch norms conditioned on lambda (paper 5, eqs. 4 and 6, Algorithm 1)."""

    name: Literal["float"]
    noise: NoiseMode = Field("frozen", description="a new draw per forward, one draw from noise_seed, or none")
    noise_seed: int = Field(0, ge=0, lt=2**63, description="seed of the noise table that is frozen and exported")
    conditioning: Conditioning = Field("switch", description="how lambda acts on the two batch norms")
    lambda_threshold: LambdaThreshold = Field(0.0, description="switch: lambda above it selects BN_A")
    alpha_init: float = Field(0.25, gt=0, le=10, description="noise scaling factor of every layer at the start")


class OatMethod(Section):
    """OAT: FiLM layers conditioned on lambda, dual batch norm, lambda sampled per image (Wang et al. 2020)."""

    name: Literal["oat"]
    lambdas: Annotated[list[Unit], BeforeValidator(parse_names), AfterValidator(check_lambda_set)] = Field(
        [0.0, 0.2, 0.7, 1.0], description="the set that training samples from"
    )
    encoding: Literal["none", "onehot", "dct", "random"] = Field("none", description="how lambda enters FiLM")
    encoding_size: int = Field(128, ge=2, le=4096, description="length of a code; not used with none")

    @model_validator(mode="after")
    def _codes_suffice(self) -> "OatMethod":
        if self.encoding != "none" and self.encoding_size < len(self.lambdas):
            raise ValueError(
                f"method.encoding_size (={self.encoding_size}) must be at least the number of lambdas "
                f"(={len(self.lambdas)})"
            )
        return self


Method = Annotated[StandardMethod | PgdAtMethod | FloatMethod | OatMethod, Field(discriminator="name")]


class SparsitySection(Section):
    """Sparse learning by moving masks (paper 5, FLOATS; Algorithm 1 and eq. 5)."""

    kind: Literal["irregular", "channel"] = Field("irregular", description="FLOATS-i or FLOATS-c")
    density: float = Field(gt=0, le=1, description="share of the convolution and linear weights kept; 1.0 trains dense")
    prune_rate: float = Field(0.2, ge=0, lt=1, description="share of each layer's active units that moves per epoch")


class RegularizationSection(Section):
    """Sparse regularisation: penalties on kernels and on hidden activations (paper 2, sections 2 and 4)."""

    kernel: Literal["l1", "l2", "elastic-net"] | None = Field(
        None, description="penalty on the weights of convolutions and linear layers"
    )
    factor: float = Field(0.01, ge=0, le=1e6, description="of the kernel penalty")
    alpha: Unit = Field(0.5, description="elastic-net alone: share of the L1 norm, the rest is the squared L2 norm")
    activation: float = Field(
        0.0, ge=0, le=1e6, description="lambda of eq. 5: factor of the L1 norm of an image's hidden activations"
    )


class ReasoningSection(Section):
    """A second head that predicts reasoning labels, and when an answer is accepted (paper 1)."""

    labels: FileName = Field(description="label map, as `deploytool labels` writes it: class -> reasoning labels")
    per_class: int | None = Field(None, ge=1, le=100_000, description="at most so many labels per class; null: all")
    alpha: float = Field(
        0.5, gt=0, lt=1, description="weight of the class loss in eq. 3; 1 - alpha is that of the reasoning loss"
    )
    layer: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="module that the head reads, as layer3; null: the classifier's input",
    )
    attack: Literal["class", "reasoning", "both"] = Field(
        "class", description="the loss that adversarial training attacks: of the class, of the reasons, or eq. 3"
    )
    threshold: Unit = Field(0.9, description="t_rsn: share of labels that must agree for an answer to be accepted")
    every: int = Field(5, ge=0, le=100_000, description="epochs between measurements of consistency; 0: none")


class AttackSection(Section):
    """The L-infinity PGD attack of the training loop; evaluation keeps its eps and step size."""

    eps: Fraction = Field(8 / 255, gt=0, le=1, description="radius of the L-inf ball, images in [0, 1]")
    step_size: Fraction = Field(2 / 255, gt=0, le=1, description="length of one step, same unit as eps")
    steps: int = Field(7, ge=1, le=1000, description="number of steps")
    random_start: bool = Field(True, description="start at a uniform point of the ball")


class OptimizerSection(Section):
    """SGD with Nesterov momentum; the learning rate falls to 0 on a cosine."""

    epochs: int = Field(30, ge=0, le=100000, description="0 trains nothing: a run of model.weights as they are")
    lr: float = Field(0.1, gt=0, le=100, description="learning rate at the start")
    momentum: float = Field(0.9, gt=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, le=1, description="on convolution and linear weights alone")


class EvaluateSection(Section):
    """The grid that `evaluate` fills."""

    attacks: Annotated[list[AttackName], BeforeValidator(parse_names)] = Field(
        ["fgsm", "pgd-7", "pgd-20"], min_length=1
    )
    eps_l2: Fraction = Field(0.5, gt=0, le=1000, description="radius of attacks in L2: deepfool, cw, pgd-20-l2 ...")
    lambdas: Annotated[list[Unit], BeforeValidator(parse_names)] = Field([0.0, 0.2, 0.7, 1.0], min_length=1)
    lambda_thresholds: Annotated[list[LambdaThreshold], BeforeValidator(parse_names)] = Field([0.0, 0.5], min_length=1)
    conditionings: Annotated[list[Conditioning], BeforeValidator(parse_names)] | None = Field(
        None, description="float alone; by default the method's own"
    )
    widths: Annotated[list[Width], BeforeValidator(parse_names)] | None = Field(
        None, description="widths to evaluate; by default all that the model has"
    )
    images: int | None = Field(None, ge=1, description="at most so many test images; null: all")


class CompareSection(Section):
    """Other values of single settings to train beside the recipe, for the pipeline's comparison."""

    key: str = Field(description="dotted key, as in --set: method.noise")
    values: list[Any] = Field(min_length=1)


class PipelineSection(Section):
    """What `pipeline` does beyond the recipe's own run."""

    compare: CompareSection | None = None


def _paper_regularizations() -> dict[str, RegularizationSection]:
    return {
        "base": RegularizationSection(),
        "L1": RegularizationSection(kernel="l1"),
        "L2": RegularizationSection(kernel="l2"),
        "elastic net": RegularizationSection(kernel="elastic-net"),
    }


class RobustnessSection(Section):
    """What `robustness` trains, attacks and explains (paper 2, Tables 1 and 2, Fig. 1)."""

    archs: Annotated[list[str], BeforeValidator(parse_names)] | None = Field(
        None, min_length=1, description="backbones; null: model.arch alone"
    )
    regularizations: dict[Annotated[str, Field(min_length=1, max_length=40)], RegularizationSection] = Field(
        default_factory=_paper_regularizations, min_length=1, description="by name; factor 0.01 is the paper's"
    )
    attacks: Annotated[list[AttackName], BeforeValidator(parse_names)] = Field(
        ["deepfool", "fgsm", "pgd-20:target=random"], min_length=1, description="the paper's PGD is targeted"
    )
    train_images: int = Field(5000, ge=0, description="training images attacked, by each attack, for retraining")
    retrain_epochs: int = Field(10, ge=1, le=100000, description="epochs on the training set with them")
    stability_images: int = Field(1000, ge=0, description="test images whose attribution maps are compared; 0: none")
    activations: Annotated[list[Annotated[float, Field(ge=0, le=1e6)]], BeforeValidator(parse_names)] = Field(
        [0.0, 1e-7, 1e-6, 1e-5, 1e-4], description="eq. 5's lambdas for the single-layer CNN of Fig. 1; may be empty"
    )
    activation_lr: float = Field(
        0.005, gt=0, le=100, description="its learning rate: without batch norm, it diverges at that of other backbones"
    )


class Recipe(Document):
    """A whole recipe; every field has a working default but `method`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="also the run's default folder")
    seed: int = Field(0, ge=0, lt=2**31, description="decides initial weights, order, starts and noise draws")
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    method: Method
    sparsity: SparsitySection | None = None
    regularization: RegularizationSection | None = None
    reasoning: ReasoningSection | None = None
    attack: AttackSection = AttackSection()
    optimizer: OptimizerSection = OptimizerSection()
    evaluate: EvaluateSection = EvaluateSection()
    pipeline: PipelineSection = PipelineSection()
    robustness: RobustnessSection = Field(default_factory=RobustnessSection)

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        if self.attack.step_size > 2 * self.attack.eps:
            raise ValueError(
                f"attack.step_size (={self.attack.step_size:g}) must be at most 2 * attack.eps "
                f"(={2 * self.attack.eps:g}): a longer step always leaves the ball"
            )
        reasoned = [name for name in self.evaluate.attacks if is_reasoned(name)]
        if reasoned and self.reasoning is None:
            raise ValueError(
                f"evaluate.attacks (={reasoned[0]}) is on class and reasons together; there is no section reasoning, "
                "add it, or take an attack on the class alone"
            )
        if isinstance(self.method, FloatMethod) and self.data.batch_size % 2:
            raise ValueError(
                f"data.batch_size (={self.data.batch_size}) must be even for float: half is clean, half attacked"
            )
        return self


def load_recipe(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Recipe:
    """Read and validate a recipe file; see `Document.load`. Raises RecipeError."""
    return Recipe.load(path, overrides)


def make_recipe(document: dict[str, Any], overrides: Iterable[str] = (), source: str = "recipe") -> Recipe:
    """Validate a recipe given as nested dictionaries; see `load_recipe`."""
    return Recipe.make(document, overrides, source)
