"""What a surrogate explains: any classifier that answers logits, left as it is.

| name | target | gradients |
| --- | --- | --- |
| folder | a run of deploytool, at any lambda, in its full width where nothing else is said | yes |
| FILE.onnx | an exported model, or any ONNX classifier with one image input | no, its outputs alone |
| torchvision:NAME | a model of torchvision with its published weights and normalisation | yes |
| (from Python) | a torch module | yes |

The classes of torchvision's models are in the order of ImageNet's synsets: an image folder has to sort alike, as one
with synset names does. Names are not compared, their number is.
"""

import copy
import difflib
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from hashlib import sha256
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
        name: absolute path, or the name that it was opened by; `module` for a torch module.
        digest: SHA-256 of what its answers come from: a file, or a module's tensors and structure as it prints itself.
        opener: lambda -> network, image (N, C, H, W) float32 in [0, 1] -> logits (N, K); a torch module in evaluation
            mode where it has gradients.
        has_gradients: whether answers can be differentiated with respect to the image.
        takes_lambda: whether its networks differ by lambda.
        setting: how lambda acts on a run's batch norms, lambda itself aside; `interpolate` where nothing says so.
        classes: their names; None where unknown.
        shape: (C, H, W) of an image; None where any size will do.
        switch_at: the lambda above which its batch norms are others; None where they are mixed, or it takes no lambda.
    """

    name: str
    digest: str
    opener: Callable[[float | None], Network]
    has_gradients: bool
    takes_lambda: bool = False
    setting: Setting = Setting(conditioning="interpolate", noise="none")  # noqa: RUF009 - frozen
    classes: tuple[str, ...] | None = None
    shape: tuple[int, int, int] | None = None
    switch_at: float | None = None

    def network(self, lam: float | None = None) -> Network:
        """The network at a lambda, 0 where None and the target takes one; do not change it.

        Raises:
            InputError: lambda is not what the target takes.
        """
        if not self.takes_lambda:
            if lam is not None:
                raise InputError(f"target {self.name} takes no lambda; leave --lambda out")
        else:
            lam = check_lambda(0.0 if lam is None else lam)
        return self.opener(lam)

    def check_data(self, info: DatasetInfo, image: Tensor, logits: bool = True) -> None:
        """Raise unless the target classifies a data set.

        Args:
            info: the data set's description.
            image: (N, C, H, W), some of its images, which the target is asked about.
            logits: whether its answers have to be logits, as for a surrogate; else probabilities will do.

        Raises:
            DataError: shapes or classes differ.
            InputError: the target answers NaN, or probabilities where logits are needed.
        """
        if self.name.startswith(TORCHVISION) and info.shape[0] != 3:
            raise DataError(f"target {self.name} takes colour images, {info.name} has {info.shape[0]} channels")
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
            answer = victim.logits(image)
        except InputError as error:
            raise InputError(f"target {self.name}: {error}") from None
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:  # a foreign module's own
            reason = " ".join(str(error).split())[:120]
            raise DataError(f"target {self.name} cannot take images of {info.shape} ({reason})") from None
        if answer.shape[1] != len(info.classes):
            raise DataError(
                f"target {self.name} has {answer.shape[1]} classes, {info.name} has {len(info.classes)}; name the data "
                "set that it was trained on"
            )
        if logits and (answer >= 0).all() and torch.allclose(answer.sum(1), torch.ones_like(answer[:, 0])):
            raise InputError(
                f"target {self.name} answers probabilities; a surrogate learns from logits: take the last softmax off"
            )


def open_target(name: str | os.PathLike[str] | nn.Module, width: float = 1.0) -> Target:
    """Open a target: see the table above.

    Args:
        name: of the target, or a torch module.
        width: of a slimmable run.

    Raises:
        RunError, CheckpointError: a folder is no trained run. ArtefactError: a file is no ONNX classifier.
        InputError: torchvision has no such model, or its weights cannot be had; the target has no such width.
    """
    if isinstance(name, nn.Module):
        return module_target(name)
    text = str(name)
    path = Path(text)
    if width != 1 and not path.is_dir():
        raise InputError(f"width (={width:g}): target {text[:80]} is no slimmable run; leave it at 1")
    if text.startswith(TORCHVISION):
        return _torchvision_target(text)
    if path.is_dir():
        return _run_target(path, width)
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
    structure = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(frozen))  # addresses of functions, which every process has anew
    digest = sha256(f"{state_digest(frozen.state_dict())}\n{structure}".encode()).hexdigest()
    return Target(name, digest, lambda lam: frozen, True, classes=classes)


def _run_target(path: Path, width: float) -> Target:
    run = load_run(path)
    run.model.skeleton(width)  # refuses a width that was not trained
    setting = deployed(recipe_setting(run.recipe, width=width))

    def network(lam: float | None) -> nn.Module:
        return run.model.plain_network(replace(setting, lam=lam or 0.0))

    own: Conditioning = setting.conditioning if run.recipe.method.name == "float" else "interpolate"
    return Target(
        str(path.absolute()),
        file_digest(checkpoint_path(path)),
        network,
        True,
        run.model.is_conditional,
        Setting(0.0, setting.lambda_threshold, own, "none"),
        run.checkpoint.data.classes,
        run.checkpoint.data.shape,
        setting.lambda_threshold if run.model.is_conditional and setting.conditioning == "switch" else None,
    )


def _file_target(path: Path) -> Target:
    networks, name = file_networks(path), str(path.absolute())
    digest = file_digest(path)
    model = read_onnx(path)

    def opener(lam: float | None) -> Network:
        return networks(lam, None)

    if not any(prop.key.startswith("deploytool.") for prop in model.metadata_props):
        stored = {tensor.name for tensor in model.graph.initializer}
        (image,) = (value for value in model.graph.input if value.name not in stored)
        channels, height, width = (dim.dim_value for dim in image.type.tensor_type.shape.dim[1:])
        shape = (channels, height, width) if min(channels, height, width) > 0 else None
        return Target(name, digest, opener, False, shape=shape)
    own = read_metadata(path, model)
    conditioning: Conditioning = "switch" if own.conditioning == "switch" else "interpolate"
    return Target(
        name,
        digest,
        opener,
        False,
        own.conditional,
        Setting(0.0, own.lambda_threshold or 0.0, conditioning, "none"),
        own.classes,
        own.shape,
        own.lambda_threshold if own.conditional and own.conditioning == "switch" else None,
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
    options = {"transform_input": True} if name in ("googlenet", "inception_v3") else {}  # what their weights expect
    module = models.get_model(name, **options)
    module.load_state_dict(state)
    transform = weights.transforms()
    network = nn.Sequential(Normalize(transform.mean, transform.std), module)
    target = module_target(network, text)
    return replace(target, digest=state_digest(network.state_dict()))  # its name says the structure


def working_network(network: Network, device: torch.device) -> Network:
    """A target's network for many images on a device: modules move there, their batch norms folded; files stay."""
    if not isinstance(network, nn.Module):
        return network
    return folded_network(network if device.type == "cpu" else copy.deepcopy(network).to(device))
