"""The recipe of a surrogate explainer: what is distilled, from which images, on which schedule."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from deploytool.documents import Document, Section
from deploytool.recipe import DataSection, FileName, Unit, parse_names

Part = Literal["student", "explanation", "both"]  # what a phase learns

FILE = "explainer.yaml"  # in the folder of an explainer


def check_lambdas(lambdas: list[float]) -> list[float]:
    """Let different lambdas through; sorted."""
    if len(set(lambdas)) < len(lambdas):
        raise ValueError("must not hold a lambda twice")
    return sorted(lambdas)


class StudentSection(Section):
    """The attentive encoder."""

    arch: str = Field("resnet20", description="a ResNet that `deploytool models` lists; resnet50-imagenet: the paper's")
    multiplier: float = Field(1.0, gt=0, le=1, description="of all its channel counts")
    attention: Literal["blocks", "stages"] = Field(
        "blocks", description="CBAM in each block of the last three stages (the paper), or in the last block of each"
    )
    start: Literal["random", "target"] = Field(
        "random", description="weights at the start: random, as in the paper, or those of a target of the same arch"
    )


class DistillationSection(Section):
    """Learning the student from the target (paper 3, eqs. 4 to 7)."""

    alpha: Unit = Field(0.5, description="weight of the soft loss in eq. 4; 1 - alpha is that of the hard loss")
    temperature: float = Field(1.0, gt=0, le=1000, description="t of eq. 6")


class ExplanationSection(Section):
    """Learning the map (paper 3, eqs. 8 and 9)."""

    hidden: int = Field(16, ge=1, le=1024, description="channels inside the explanation network")
    stride: int = Field(
        1, ge=1, le=1024, description="pixels from one value of the map to the next; the paper's ResNet-50 draws at 8"
    )
    mask: Literal["map", "ranked"] = Field(
        "map",
        description="what explains: the map itself (the paper), or for every second image a random share of its "
        "pixels, the most important ones",
    )
    background: Literal["black", "blur"] = Field(
        "black", description="what stands where nothing explains: 0 (the paper), or the blurred image"
    )
    fidelity: Literal["target", "student", "auto"] = Field(
        "auto",
        description="who looks at the explained image: the target (the paper's text), or the student (eq. 9 as "
        "printed); auto: the target where it has gradients, which measured better",
    )
    l1: float = Field(
        1e-5, ge=0, le=1, description="lambda of eq. 8, of the sum over all pixels; the paper's images have 224 x 224"
    )


class PhaseSection(Section):
    """A learning rate that holds for some epochs, then falls several times."""

    lr: float = Field(0.1, gt=0, le=100, description="learning rate at the start")
    first: int = Field(ge=0, le=100_000, description="epochs before the first fall")
    then: int = Field(ge=0, le=100_000, description="epochs after each fall")
    falls: int = Field(3, ge=0, le=100, description="how often it falls")
    factor: float = Field(0.1, gt=0, le=1, description="what it falls to, a share")

    @property
    def epochs(self) -> int:
        """Epochs in all."""
        return self.first + self.then * self.falls

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        passed = 0 if epoch < self.first else 1 + (epoch - self.first) // max(1, self.then)
        return self.lr * self.factor ** min(passed, self.falls)


class ScheduleSection(Section):
    """Nesterov's SGD with step decay (paper 3, section 4.1, whose epochs are the defaults)."""

    order: Literal["staged", "end-to-end"] = Field(
        "staged", description="student, then explanation network (eqs. 2 and 3), or both by eq. 11 on student's phase"
    )
    student: PhaseSection = PhaseSection(first=100, then=30)
    explanation: PhaseSection = PhaseSection(first=10, then=2)
    momentum: float = Field(0.9, gt=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, le=1, description="on weights of convolutions and linear layers alone")

    @model_validator(mode="after")
    def _something_is_learned(self) -> "ScheduleSection":
        if not sum(phase.epochs for _, phase in self.phases):
            raise ValueError("schedule has no epochs: nothing would be learned; set schedule.student.first")
        return self

    @property
    def phases(self) -> list[tuple[Part, PhaseSection]]:
        """What is learned, one after the other."""
        if self.order == "end-to-end":
            return [("both", self.student)]
        return [("student", self.student), ("explanation", self.explanation)]


class ConditionSection(Section):
    """Surrogates of targets that take lambda; others have nothing to do with it."""

    lambdas: Annotated[list[Unit], BeforeValidator(parse_names), AfterValidator(check_lambdas)] = Field(
        [0.0, 1.0],
        min_length=1,
        description="the target's, one drawn for each training step; dual norms need 0 and 1, their statistics"
        " do not learn between",
    )
    norms: Literal["dual", "shared"] = Field(
        "dual", description="batch norms of the surrogate: two sets, chosen by lambda as the target's are, or one set"
    )


class ExplainerRecipe(Document):
    """Everything that decides what a surrogate explainer becomes, beside its target."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="also the explainer's default folder")
    seed: int = Field(0, ge=0, lt=2**31, description="decides initial weights, order and lambdas")
    target: FileName | None = Field(None, description="run, ONNX file or torchvision:NAME; `explain train` fills it in")
    data: DataSection = DataSection()
    student: StudentSection = StudentSection()
    distillation: DistillationSection = DistillationSection()
    explanation: ExplanationSection = ExplanationSection()
    schedule: ScheduleSection = ScheduleSection()
    condition: ConditionSection = ConditionSection()
