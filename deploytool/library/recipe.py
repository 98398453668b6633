"""The recipe of library networks: which layers are watched, and when a pattern counts as new."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from deploytool.documents import Document, Section
from deploytool.explain.recipe import check_lambdas
from deploytool.recipe import DataSection, FileName, Unit, parse_names

Storage = Literal["float32", "float16", "int8"]

FILE = "library.yaml"  # in the folder of libraries
MAX_LAYERS, MAX_THETAS = 64, 64
LOGITS = "logits"  # names the network's answer among its layers
DEFAULT_SET = "default"

Theta = Annotated[float, Field(gt=-1, le=1, description="a cosine similarity")]
LayerName = Annotated[str, Field(min_length=1, max_length=400)]


def _as_list(value: object) -> object:
    return value if isinstance(value, list) or value is None else [value]


class LayerSection(Section):
    """One layer, and when a pattern of its activity is stored."""

    layer: LayerName = Field(
        description="a module (its result; NAME:input: what it is given), or a tensor or node of an ONNX file; "
        "logits: the network's answer; several joined by +: their activities one after the other"
    )
    title: str | None = Field(None, min_length=1, max_length=40, description="in tables and figures; the layer's name")
    theta: Annotated[list[Theta] | None, BeforeValidator(_as_list)] = Field(
        None,
        min_length=1,
        max_length=MAX_THETAS,
        description="novelty threshold: a pattern is stored where its best cosine similarity is below it; several give "
        "a library each, built in one pass",
    )
    size: int | None = Field(
        None, ge=1, le=10_000_000, description="instead of theta: stored patterns, at most; theta is searched for"
    )
    sample: int | None = Field(
        None, ge=1, le=100_000_000, description="so many random values of the activity, as in section 3.3; null: all"
    )
    modulation: Literal["none", "batch-norm"] = Field(
        "none",
        description="batch-norm: each channel less its mean, over its deviation, both of the training images; every "
        "value of joined layers is a channel of its own",
    )

    @field_validator("theta")
    @classmethod
    def _ascending(cls, theta: list[float] | None) -> list[float] | None:
        if theta is not None and len(set(theta)) < len(theta):
            raise ValueError("must not hold a threshold twice")
        return None if theta is None else sorted(theta)

    @model_validator(mode="after")
    def _one_of_them(self) -> "LayerSection":
        if self.theta is not None and self.size is not None:
            raise ValueError(f"layer {self.layer} has theta and size; give one of them")
        return self

    @property
    def name(self) -> str:
        """What tables and figures call it."""
        return self.title or self.layer


class LibraryCondition(Section):
    """Libraries of targets that take lambda; others have nothing to do with it."""

    lambdas: Annotated[list[Unit], BeforeValidator(parse_names), AfterValidator(check_lambdas)] = Field(
        [0.0, 1.0], min_length=1, max_length=16, description="the target's lambdas that activity is read at"
    )
    libraries: Literal["each", "shared"] = Field(
        "each", description="a library for each of the lambdas (the nearest answers), or one of all their patterns"
    )


class CalibrationSection(Section):
    """The threshold of the verdict."""

    share: float = Field(
        0.5, gt=0, lt=1, description="of the test images, drawn by seed: thresholds are chosen on them, never measured"
    )
    false_alarm_rate: float = Field(
        0.05, gt=0, lt=1, description="share of clean images that the verdict may call doubtful"
    )


class LibraryRecipe(Document):
    """Everything that decides what the libraries of a network become, beside that network."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = Field(0, ge=0, lt=2**31, description="draws sampled values and calibration images")
    target: FileName | None = Field(None, description="run, ONNX file or torchvision:NAME; `library build` fills it in")
    data: DataSection | None = Field(None, description="images to build from; null: those that the run was trained on")
    images: int | None = Field(None, ge=1, description="so many of the first training images; null: all")
    layers: list[LayerSection] = Field(
        [], max_length=MAX_LAYERS, description="none: the last of each size of feature map, and the logits"
    )
    size: int = Field(512, ge=1, le=10_000_000, description="of layers that name neither theta nor size")
    sets: dict[str, list[Theta]] = Field(
        {},
        max_length=64,
        description="thresholds that are used together, one for each layer; the first set is what is deployed; none: "
        "the highest of each layer",
    )
    active: int = Field(8, ge=1, le=1024, description="most active nodes that predict (eq. 3); the paper's are 3 and 8")
    storage: Storage = Field("float32", description="of the stored patterns")
    condition: LibraryCondition = LibraryCondition()
    width: float = Field(1.0, gt=0, le=1, description="of a slimmable run")
    calibration: CalibrationSection = CalibrationSection()

    @model_validator(mode="after")
    def _sizes_suffice(self) -> "LibraryRecipe":
        sizes = {f"layer {each.name}": each.size or self.size for each in self.layers if each.theta is None}
        for name, size in (sizes if self.layers else {"each layer": self.size}).items():
            if size < self.active:
                raise ValueError(
                    f"active (={self.active}) is above the size (={size}) of {name}; lower it, or raise size"
                )
        return self

    @model_validator(mode="after")
    def _sets_fit(self) -> "LibraryRecipe":
        names = [section.name for section in self.layers]
        if len(set(names)) < len(names):
            raise ValueError("two layers have one title; give each its own")
        for name, thetas in self.sets.items():
            if len(thetas) != len(self.layers):
                raise ValueError(f"set {name[:40]} has {len(thetas)} thresholds for {len(self.layers)} layers")
            for section, theta in zip(self.layers, thetas, strict=True):
                if theta not in (section.theta or ()):
                    raise ValueError(f"set {name[:40]}: theta {theta:g} is none of layer {section.name}'s; add it")
        return self
