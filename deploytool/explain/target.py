"""What a surrogate explains: any classifier that answers logits, left as it is.

| name | target | gradients |
| --- | --- | --- |
| folder | a run of deploytool, at any lambda and width | yes |
| FILE.onnx | an exported model, or any ONNX classifier with one image input | no, its outputs alone |
| torchvision:NAME | a model of torchvision with its published weights and normalisation | yes |
| (from Python) | a torch module | yes |
"""

import copy
import difflib
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deploytool.attacks.session_network import file_networks
from deploytool.attacks.victim import Network, Victim
from deploytool.data.catalogue import DatasetInfo
from deploytool.digests import file_digest, state_digest
from deploytool.errors import DataError, InputError, RunError
from deploytool.evaluation import deployed
from deploytool.models.factory import recipe_setting
from deploytool.models.folding import folded_network
from deploytool.models.layers import Normalize
from deploytool.models.setting import Conditioning, Setting, check_lambda
from deploytool.runtime.artefact import read_metadata, read_onnx
from deploytool.training.run import checkpoint_path, load_run

TORCHVISION = "torchvision:"


@dataclass(frozen=True)
class Target:
    """A classifier to explain.

    Attributes:
        name: folder, file or name that it was opened by; `module` for a torch module.
        digest: SHA-256 of what its answers come from.
        opener: (lambda, width) -> network at that setting, image (N, C, H, W) float32 in [0, 1] -> logits (N, K); a
            torch module in evaluation mode where it has gradients.
        has_gradients: whether answers can be differentiated with respect to the image.
        takes_lambda: whether its networks differ by lambda.
        widths: that it has, ascending.
        setting: how lambda acts on a run's batch norms, lambda itself aside; `interpolate` where nothing says so.
        classes: their names; None where unknown.
        shape: (C, H, W) of an image; None where any size will do.
    """

    name: str
    digest: str
    opener: Callable[[float | None, float | None], Network]
    has_gradients: bool
    takes_lambda: bool = False
    widths: tuple[float, ...] = (1.0,)
    setting: Setting = Setting(conditioning="interpolate", noise="none")  # noqa: RUF009 - frozen
    classes: tuple[str, ...] | None = None
    shape: tuple[int, int, int] | None = None

    def network(self, lam: float | None = None, width: float | None = None) -> Network:
        """The network of a setting; lambda is 0 where None and the target takes one.

        Raises:
            InputError: lambda or width is not what the target takes.
        """
        if not self.takes_lambda:
            if lam is not None:
                raise InputError(f"target {self.name} takes no lambda; leave --lambda out")
        else:
            lam = check_lambda(0.0 if lam is None else lam)
        if width is not None and width not in self.widths:
            raise InputError(f"width (={width:g}): target {self.name} has {', '.join(f'{w:g}' for w in self.widths)}")
        return self.opener(lam, width)

    def check_data(self, info: DatasetInfo, image: Tensor) -> None:
        """Raise unless the target can be explained on a data set.

        Args:
            info: the data set's description.
            image: (N, C, H, W), some of its images, which the target is asked about.

        Raises:
            DataError: shapes or classes differ.
            InputError: the target answers NaN, or no logits.
        """
        if self.shape is not None and self.shape != info.shape:
            raise DataError(
                f"target {self.name} takes images of {self.shape}, {info.name} has {info.shape}; name the data set "
                "that it was trained on, for imagefolder with data.image_size"
            )
        if self.classes is not None and self.classes != info.classes:
            if len(self.classes) != len(info.classes):
                difference = f"{len(self.classes)} classes, {info.name} has {len(info.classes)}"
            else:
                pairs = zip(self.classes, info.classes, strict=True)
                index, (own, other) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
                difference = f"class {index} {own[:40]!r}, {info.name} has {other[:40]!r}"
            raise DataError(f"target {self.name} has {difference}; name the data set that it was trained on")
        victim = Victim(self.network())
        try:
            classes = victim.logits(image).shape[1]
        except RuntimeError as error:  # torch's, where an image does not fit a foreign module
            reason = " ".join(str(error).split())[:120]
            raise DataError(f"target {self.name} cannot take images of {info.shape} ({reason})") from None
        if classes != len(info.classes):
            raise DataError(
                f"target {self.name} has {classes} classes, {info.name} has {len(info.classes)}; name the data set "
                "that it was trained on"
            )


def open_target(name: str | os.PathLike[str] | nn.Module) -> Target:
    """Open a target: see the table above.

    Raises:
        RunError, CheckpointError: a folder is no trained run. ArtefactError: a file is no ONNX classifier.
        InputError: torchvision has no such model, or its weights cannot be had.
    """
    if isinstance(name, nn.Module):
        return module_target(name)
    text = str(name)
    if text.startswith(TORCHVISION):
        return _torchvision_target(text)
    path = Path(text)
    if path.is_dir():
        return _run_target(path)
    if path.exists():
        return _file_target(path)
    raise RunError(f"target {text} does not exist; name a run folder, an ONNX file, or torchvision:NAME")


def module_target(module: nn.Module, name: str = "module", classes: tuple[str, ...] | None = None) -> Target:
    """A torch module as a target; it is copied, and stays as it is.

    Args:
        module: image (N, C, H, W) float32 in [0, 1] -> logits (N, K).
        name: for messages and rows.
        classes: names of the K classes.
    """
    frozen = copy.deepcopy(module).eval().requires_grad_(False).cpu()
    return Target(name, state_digest(frozen.state_dict()), lambda lam, width: frozen, True, classes=classes)


def _run_target(path: Path) -> Target:
    run = load_run(path)
    setting = deployed(recipe_setting(run.recipe))

    def network(lam: float | None, width: float | None) -> nn.Module:
        at = Setting(lam or 0.0, setting.lambda_threshold, setting.conditioning, setting.noise, width or 1.0)
        return run.model.plain_network(at)

    own: Conditioning = setting.conditioning if run.recipe.method.name == "float" else "interpolate"
    return Target(
        str(path),
        file_digest(checkpoint_path(path)),
        network,
        True,
        run.model.is_conditional,
        run.model.widths,
        Setting(0.0, setting.lambda_threshold, own, "none"),
        run.checkpoint.data.classes,
        run.checkpoint.data.shape,
    )


def _file_target(path: Path) -> Target:
    opener = file_networks(path)
    digest = file_digest(path)
    model = read_onnx(path)
    if not any(prop.key.startswith("deploytool.") for prop in model.metadata_props):
        return Target(str(path), digest, opener, False)
    own = read_metadata(path, model)
    conditioning: Conditioning = "switch" if own.conditioning == "switch" else "interpolate"
    return Target(
        str(path),
        digest,
        opener,
        False,
        own.conditional,
        own.widths,
        Setting(0.0, own.lambda_threshold or 0.0, conditioning, "none"),
        own.classes,
        own.shape,
    )


def _torchvision_target(text: str) -> Target:
    from torchvision import models

    name = text.removeprefix(TORCHVISION)
    known = models.list_models(models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        guess = f"did you mean {' or '.join(near)}?" if near else "known are those of torchvision.models.list_models()"
        raise InputError(f"target {text[:80]}: torchvision has no such classifier; {guess}")
    weights = models.get_model_weights(name).DEFAULT
    try:
        with redirect_stdout(sys.stderr):  # torch.hub says there what it downloads
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:  # URLError, and whatever the disk says
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"target {text}: no weights ({reason}); put them into torch.hub's cache") from None
    module = models.get_model(name)
    module.load_state_dict(state)
    transform = weights.transforms()
    network = nn.Sequential(Normalize(transform.mean, transform.std), module)
    return module_target(network, text, tuple(weights.meta["categories"]))


def working_network(network: Network, device: torch.device) -> Network:
    """A target's network for many images on a device: modules move there, their batch norms folded; files stay."""
    return folded_network(network.to(device)) if isinstance(network, nn.Module) else network
