"""Hidden layers by name: their activity, together with the network's answer.

| name | torch module | ONNX file |
| --- | --- | --- |
| NAME | what the submodule gives | what the node gives, or the tensor of that name |
| NAME:input | what it is given | what the node is given |
| logits | the network's answer | the output `logits`, or else the first |
| A+B | A's activity and then B's, flattened | the same |

Activities are float tensors (N, ...); a layer that runs more than once is read where it ran last.
"""

import copy
import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, shape_inference
from torch import Tensor, nn

from deploytool.attacks.session_network import filled_groups
from deploytool.errors import InputError
from deploytool.explain.layers import feature_sizes
from deploytool.explain.target import Target
from deploytool.library.recipe import LOGITS
from deploytool.runtime.artefact import read_metadata, read_onnx
from deploytool.runtime.network import open_session, run_session
from deploytool.runtime.threads import available_threads

INPUT = ":input"
JOINED = "+"

Array = np.ndarray[Any, Any]
Watched = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]  # image -> logits, activity (N, ...) by layer


def watch(
    target: Target, layers: Sequence[str], image: Tensor, lam: float | None = None, device: str = "cpu"
) -> Watched:
    """A target's network that gives the activity of some layers beside its logits.

    Args:
        target: the network; torch modules' activities have gradients to the image where it asks for them.
        layers: names, see the module.
        image: (N, C, H, W), to try them on.
        lam: lambda, 0 where None and the target takes one.
        device: torch device that a module answers on; images are taken there.

    Returns:
        image (N, C, H, W) float32 in [0, 1] -> logits (N, K), and activities (N, ...) by name.

    Raises:
        InputError: a layer is unknown (the near ones are named), or gives no activity (N, ...) of numbers.
    """
    network = target.network(lam)
    if isinstance(network, nn.Module):
        network = network if device == "cpu" else copy.deepcopy(network).to(device)
        watched = watch_module(network, layers)
    else:
        watched = watch_file(target.name, layers, lam if not target.takes_lambda else lam or 0.0)
    _, found = watched(image[:2])
    for name, activity in found.items():
        if len(activity) != len(image[:2]) or activity.ndim < 2:
            shape = tuple(activity.shape)
            raise InputError(f"layer {name} gives {shape} for {len(image[:2])} images, not (N, ...); name another")
    return watched


def default_layers(target: Target, image: Tensor) -> list[str]:
    """The last layer of each size of feature map, in the order of execution, and the logits."""
    network = target.network()
    sizes = feature_sizes(network, image) if isinstance(network, nn.Module) else _file_sizes(read_onnx(target.name))
    last = {size: name for name, size in sizes.items() if size != (1, 1)}
    names = sorted(last.values(), key=list(sizes).index)
    return [*names, LOGITS]


def feature_name(target: Target, image: Tensor) -> str:
    """The name of what the last linear layer before the logits is given: the features that the network decides on.

    Args:
        target: the network.
        image: (N, C, H, W); a torch module is run on the first.

    Raises:
        InputError: there is no linear layer.
    """
    network = target.network()
    if isinstance(network, nn.Module):
        name = _last_linear(network, image[:1])
        last = None if name is None else name + INPUT
    else:
        last = _last_product(read_onnx(target.name).graph)
    if last is None:
        raise InputError(f"target {target.name} has no linear layer, whose input would be its features")
    return last


def parts_of(layers: Iterable[str]) -> list[str]:
    """The single layers that names speak of, each once."""
    return list(dict.fromkeys(part for name in layers for part in name.split(JOINED)))


def joined(name: str, found: dict[str, Tensor]) -> Tensor:
    """The activity of a name, of those of its parts."""
    parts = name.split(JOINED)
    if len(parts) == 1:
        return found[name]
    return torch.cat([found[part].flatten(1) for part in parts], dim=1)


def watch_module(network: nn.Module, layers: Sequence[str]) -> Watched:
    """`watch` of a torch module in evaluation mode; it is not changed, hooks are on it during a call alone."""
    modules = dict(network.named_modules())
    parts = parts_of(layers)
    place = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))
    for part in parts:
        name = part.removesuffix(INPUT)
        if part != LOGITS and (name not in modules or not name):
            raise _unknown(part, [*(name for name in modules if name), LOGITS])

    def watched(image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        seen: dict[str, Any] = {}

        def keep(part: str, value: Any) -> None:
            seen[part] = value.clone() if isinstance(value, Tensor) else value  # what follows may change it in place

        def hook(part: str) -> Any:
            if part.endswith(INPUT):
                module = modules[part.removesuffix(INPUT)]
                return module.register_forward_pre_hook(lambda _, given: keep(part, given[0] if given else None))
            return modules[part].register_forward_hook(lambda _, given, result: keep(part, result))

        hooks = [hook(part) for part in parts if part != LOGITS]
        try:
            seen[LOGITS] = logits = network(image.to(place))
        finally:
            for each in hooks:
                each.remove()
        for part in parts:
            if part not in seen:
                raise InputError(f"layer {part} is never run by its network; name another")
            if not isinstance(seen[part], Tensor) or not seen[part].is_floating_point():
                raise InputError(
                    f"layer {part} gives a {type(seen[part]).__name__}, no tensor of numbers; name another"
                )
        return logits, {name: joined(name, seen) for name in layers}

    return watched


def watch_file(path: str | Path, layers: Sequence[str], lam: float | None) -> Watched:
    """`watch` of an ONNX file: its inner tensors become outputs of a session; a file of ours runs as it is stored.

    A file with a fixed N is given images in groups of N, the last one filled up.
    """
    model = read_onnx(path)
    size = _fixed_size(model.graph)
    own = any(prop.key.startswith("deploytool.") for prop in model.metadata_props)
    knobs: dict[str, Any] = {}
    answer = _answer(model.graph)
    if own:
        metadata = read_metadata(Path(path), model)
        values = {"lambda": lam, "width": metadata.widths[-1]}
        taken = {value.name for value in model.graph.input}
        knobs = {name: np.array(value, np.float32) for name, value in values.items() if name in taken}
    parts = parts_of(layers)
    tensors = {part: answer if part == LOGITS else _tensor(model.graph, part) for part in parts}
    _expose(model, [answer, *tensors.values()])
    session = open_session(model.SerializeToString(), available_threads(), str(path))
    image_name = next(value.name for value in session.get_inputs() if value.name not in knobs)
    wanted = list(dict.fromkeys([answer, *tensors.values()]))

    def run(images: Array) -> list[Array]:
        return run_session(session, wanted, {image_name: images, **knobs}, str(path))

    def run_group(filled: Array, count: int) -> list[Array]:
        values = run(filled)
        for name, value in zip(wanted, values, strict=True):
            if value.shape[:1] != (size,):
                raise InputError(f"layer {name} gives {value.shape} for {size} images, not (N, ...); name another")
        return [value[:count] for value in values]

    def watched(image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        array = image.detach().cpu().numpy()
        if size:
            groups = [run_group(*group) for group in filled_groups(array, size)]
            values = [np.concatenate(parts) for parts in zip(*groups, strict=True)]
        else:
            values = run(array)
        by_name = {name: torch.from_numpy(np.array(value)) for name, value in zip(wanted, values, strict=True)}
        found = {part: by_name[tensor] for part, tensor in tensors.items()}
        return by_name[answer], {name: joined(name, found) for name in layers}

    return watched


def _last_linear(network: nn.Module, image: Tensor) -> str | None:
    """The linear layer that ran last of those that the answer depends on; None where there is none."""
    names: dict[nn.Module, str] = {
        module: name for name, module in network.named_modules() if isinstance(module, nn.Linear) and name
    }
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, given: Any, result: Any) -> None:
        seen.pop(names[module], None)  # one that runs more than once stands where it ran last
        seen[names[module]] = result

    hooks = [module.register_forward_hook(keep) for module in names]
    try:
        with torch.enable_grad():
            logits = network(image.detach().clone().requires_grad_(True).clone())  # which may be changed in place
    finally:
        for each in hooks:
            each.remove()
    fed = list(seen)
    found = {name: result for name, result in seen.items() if result.requires_grad}
    if found and logits.requires_grad:
        gradients = torch.autograd.grad(logits.sum(), list(found.values()), allow_unused=True)
        fed = [name for name, gradient in zip(found, gradients, strict=True) if gradient is not None] or fed
    return fed[-1] if fed else None


def _last_product(graph: onnx.GraphProto) -> str | None:
    """What the Gemm or MatMul nearest before the answer is given; None where there is none."""
    stored = {tensor.name for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output if name}
    near, reached = [_answer(graph)], set[str]()
    while near:
        reached.update(near)
        nodes = [maker[name] for name in near if name in maker]
        for node in nodes:
            given = [name for name in node.input[:2] if name not in stored]
            if node.op_type in ("Gemm", "MatMul") and given:
                return given[0]
        near = [name for name in dict.fromkeys(name for node in nodes for name in node.input) if name not in reached]
    return None


def _answer(graph: onnx.GraphProto) -> str:
    """The output that holds the network's answer."""
    names = [value.name for value in graph.output]
    return LOGITS if LOGITS in names else names[0]


def _fixed_size(graph: onnx.GraphProto) -> int:
    """The N that the image input of a file is fixed to, 0 where it is free."""
    stored = {tensor.name for tensor in graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in graph.input if value.name not in stored]
    return next((dims[0].dim_value for dims in shapes if len(dims) == 4), 0)


def _tensor(graph: onnx.GraphProto, part: str) -> str:
    """The tensor that a part's name stands for."""
    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if part.endswith(INPUT) and node.name == part.removesuffix(INPUT) != "":
            given = [name for name in node.input if name and name not in stored]
            if not given:
                raise InputError(f"layer {part}: the node is given nothing that it computes with; name another")
            return given[0]
        if part in node.output or (node.name == part != ""):
            return part if part in node.output else node.output[0]
    raise _unknown(part, [*(node.name for node in graph.node if node.name), *_made(graph), LOGITS])


def _made(graph: onnx.GraphProto) -> list[str]:
    return [name for node in graph.node for name in node.output if name]


def _expose(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make tensors the outputs of a model, and nothing else."""
    inferred = _inferred(model)
    kept = []
    for name in dict.fromkeys(names):
        value = inferred.get(name)
        kind = value.type.tensor_type.elem_type if value is not None else TensorProto.FLOAT
        if kind != TensorProto.FLOAT:
            raise InputError(f"layer {name} is no float32 tensor; name another")
        kept.append(value if value is not None else onnx.helper.make_tensor_value_info(name, kind, None))
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def _inferred(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    graph = shape_inference.infer_shapes(model).graph
    return {value.name: value for value in (*graph.value_info, *graph.output)}


def _file_sizes(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Height and width of every feature map of a file, in the order of its nodes."""
    inferred, size = _inferred(model), _fixed_size(model.graph)
    sizes = {}
    for name in _made(model.graph):
        dims = [dim.dim_value for dim in inferred[name].type.tensor_type.shape.dim] if name in inferred else []
        if len(dims) == 4 and dims[0] == size and min(dims[1:]) > 0:  # N images: no tensor that conditions make
            sizes[name] = (dims[2], dims[3])
    return sizes


def _unknown(name: str, known: Sequence[str]) -> InputError:
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.4) or list(known)[-6:]
    return InputError(f"layer (={name[:80]!r}) is unknown; near are {', '.join(near)[:300]}")
