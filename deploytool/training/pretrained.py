"""Starting from weights that somebody trained before: `model.weights`."""

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from deploytool.errors import CheckpointError
from deploytool.models.conditional import ConditionalModel, DualNormModel, Norms, batch_norms
from deploytool.models.reasoning import HEAD
from deploytool.training.run import MODEL, tensor_problems

MAX_BYTES = 8 << 30  # of all tensors together, unpacked
OWN = f"{MODEL}backbone."
WRAPPERS = ("module.", "model.", "backbone.")  # of DataParallel, and of networks kept within another module
FORMS = "give a run folder, a .safetensors or a .npz of tensors by name"


def weights_file(path: str) -> Path:
    """The file that `model.weights` means: itself, or a run folder's checkpoint."""
    return Path(path) / "checkpoint.safetensors" if Path(path).is_dir() else Path(path)


def load_pretrained(model: ConditionalModel, path: str) -> None:
    """Load a file's tensors into a model's backbone, strictly: they must be exactly the backbone's.

    Tensors are found by name, the backbone's own (`conv1.weight`, `layer1.0.bn1.running_mean`). Of a run of ours the
    backbone is taken and all else left (momentum, alphas, FiLM, BN_A, other widths, masks). A wrapper's prefix that
    all names share is dropped. `num_batches_tracked`, which no answer depends on, may be absent, and so may a head for
    reasoning labels, which then stays as it is.

    The other sets of batch norms (BN_A, and those of each narrower width) start as the leading blocks of the
    backbone's, and a sparse model's masks prune what was loaded.

    Args:
        model: freshly built; changed in place.
        path: a run folder, a .safetensors file, or a .npz without pickles.

    Raises:
        CheckpointError: the file is absent or damaged, or some tensor is missing, unexpected, misshapen, of another
            type or not finite; all of them are named.
    """
    file = weights_file(path)
    tensors = _unwrapped(_read(file))
    own = model.backbone.state_dict()
    optional = {name: own[name] for name in own if name.endswith("num_batches_tracked")}
    if not any(name.startswith(f"{HEAD}.") for name in tensors):
        optional |= {name: own[name] for name in own if name.startswith(f"{HEAD}.") and model.reasons}
    problems = tensor_problems(own, optional | tensors)
    if problems:
        raise CheckpointError(f"model.weights (={file}) does not fit the backbone: {'; '.join(problems)}")
    model.backbone.load_state_dict(optional | tensors)
    _spread_norms(model)
    model.apply_masks()


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise CheckpointError(f"model.weights (={file}) is absent; {FORMS}")
    if file.suffix not in (".npz", ".safetensors"):
        raise CheckpointError(f"model.weights (={file}) is no file of weights; {FORMS}")
    try:
        return _read_npz(file) if file.suffix == ".npz" else _read_safetensors(file)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile archive makes zipfile, zlib, numpy and safetensors raise almost anything
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"model.weights (={file}) cannot be read ({reason}); {FORMS}") from None


def _read_npz(file: Path) -> dict[str, Tensor]:
    with np.load(file, allow_pickle=False) as archive:
        size = sum(info.file_size for info in archive.zip.infolist())
        if size > MAX_BYTES:
            raise CheckpointError(f"model.weights (={file}) unpacks to {size} bytes; at most {MAX_BYTES} are read")
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as archive:
        return {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 - no mapping


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's tensors under their own names."""
    own = {name.removeprefix(OWN): tensor for name, tensor in tensors.items() if name.startswith(OWN)}
    if own:
        return own
    for prefix in WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


@torch.no_grad()
def _spread_norms(model: ConditionalModel) -> None:
    """Start every further set of batch norms as the leading block of the backbone's."""
    loaded = dict(batch_norms(model.backbone))
    sets: list[Norms] = [model.norm_set(width) for width in model.widths if width < 1]
    if isinstance(model, DualNormModel):
        sets += [model.adversarial_set(width) for width in model.widths]
    for norms in sets:
        for name, norm in norms.items():
            for own, tensor in norm.state_dict().items():
                source = loaded[name].state_dict()[own]
                tensor.copy_(source[: len(tensor)] if tensor.ndim else source)
