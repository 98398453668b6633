"""Grafting the conditional state onto a plain ONNX graph.

    before:  Conv(x, theta) -> BatchNormalization(., gamma, beta, mean, var)

    after:   scale, mix    = f(lambda, lambda_threshold)
             stream        = Tile(Cast(noise_table))
             theta.hat     = theta + (scale * alpha * std)_l * Reshape(Slice(stream, start_l, end_l))      (FLOAT)
                             where theta is not 0, in a sparse layer; Gather of the kept channels, in a shrunk one
             gamma, ...    = Split(norms_clean + mix * (norms_adversarial - norms_clean))     (interpolate)
                             Split(Where(lambda > lambda_threshold, norms_adversarial, norms_clean))    (switch)
             gamma, beta   = gamma * g_l, beta * g_l + b_l    with g_l, b_l = FiLM_l(code(lambda))         (OAT)
             Conv(x, theta.hat) -> BatchNormalization(., gamma, beta, mean, var)

Everything above the last line depends on lambda alone, so a runtime that knows lambda folds it away. The noise
costs one short table, not a second copy of the weights; alpha * std is one number per layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from deploytool.export.backbone import drop_unused_initializers
from deploytool.export.shrink import Shrunk
from deploytool.export.widths import Shapes, width_differences
from deploytool.models.conditional import NORM_TENSORS, ConditionalModel, DualNormModel, FloatModel, Norms
from deploytool.models.noise import weight_std
from deploytool.models.oat import Film, OatModel
from deploytool.models.setting import Setting

Array = np.ndarray[Any, Any]


def add_condition(
    model: onnx.ModelProto,
    source: ConditionalModel,
    setting: Setting,
    shrunk: Shrunk,
    narrow: Mapping[float, onnx.ModelProto] | None = None,
) -> None:
    """Turn a plain graph of a model's backbone into one with the inputs `lambda` and `width`, as it has them, in place.

    Args:
        model: as `backbone_to_onnx` returns it, of the shrunk network of the setting's width at lambda 0.
        source: the trained model; without a condition, `lambda` is no input.
        setting: width, threshold, conditioning and noise mode to build in; its lambda does not matter. The
            threshold becomes the scalar initializer `lambda_threshold`, which the runtime can override.
        shrunk: which channels the graph has; all where nothing was removed.
        narrow: the same for further widths that the file is to hold; `width` is an input where there are any.

    Raises:
        InputError: the architecture's graphs differ in more than their tensors' sizes.
    """
    graph = model.graph
    widths = [*sorted(narrow), setting.width] if narrow else [setting.width]
    own = set(dict(source.backbone.named_parameters())) | set(dict(source.backbone.named_buffers()))
    graphs = [*(narrow[width].graph for width in sorted(narrow)), graph] if narrow else [graph]
    shapes, constants = width_differences(graphs, own)
    builder = _Builder(shrunk, widths)
    renamed: dict[str, str] = {}
    if isinstance(source, DualNormModel):
        scale, mix = builder.knobs(setting)
        if isinstance(source, FloatModel) and setting.noise != "none":
            renamed = builder.noisy_weights(source, scale, {name: each[-1] for name, each in shapes.items()})
        builder.norms(source, setting, mix)
        if isinstance(source, OatModel):
            renamed |= builder.films(source)
        graph.input.append(helper.make_tensor_value_info("lambda", TensorProto.FLOAT, []))
    elif narrow:
        builder.norms(source, setting, None)
    made = {name for node in builder.nodes for name in node.output}
    for name, each in shapes.items():
        if name not in made:  # batch norms come in the right size
            renamed[name] = builder.leading(renamed.get(name, name), each)
    for name, values in constants.items():
        renamed[name] = builder.choice(f"{name}.widths", values)
    if narrow:
        graph.input.append(helper.make_tensor_value_info("width", TensorProto.FLOAT, []))

    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    backbone_nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*builder.nodes, *backbone_nodes])
    kept = [tensor for tensor in graph.initializer if tensor.name not in made]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *builder.initializers.values()])
    drop_unused_initializers(graph)


def clean_setting(setting: Setting) -> Setting:
    """The setting's clean boundary condition, which the graph's stored tensors are those of."""
    return replace(setting, lam=0.0, noise="none", conditioning="switch")


class _Builder:
    """Collects nodes and initializers; equal constants are stored once."""

    def __init__(self, shrunk: Shrunk, widths: Sequence[float]) -> None:
        self.shrunk = shrunk
        self.widths = widths
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.stored_indices: dict[bytes, str] = {}
        self.tables: dict[bytes, str] = {}
        if len(widths) > 1:
            known = self.constant("widths", np.array(widths, np.float32))
            distance = self.node("Abs", [self.node("Sub", [known, "width"], "width_difference")], "width_distance")
            self.node("ArgMin", [distance], "width_index", axis=0, keepdims=0)

    def choice(self, name: str, values: Array) -> str:
        """The row of the width in use from values (widths, ...)."""
        if len(self.widths) == 1:
            return self.constant(name, values[0])
        return self.node("Gather", [self.constant(name, values), "width_index"], f"{name}.chosen", axis=0)

    def sizes(self, shapes: Shapes) -> str:
        """A shape per width as one int64 vector of the width in use; equal tables are stored and read once."""
        table = np.array(shapes, np.int64)
        if table.tobytes() not in self.tables:
            self.tables[table.tobytes()] = self.choice(f"sizes{len(self.tables)}", table)
        return self.tables[table.tobytes()]

    def leading(self, tensor: str, shapes: Shapes) -> str:
        """The leading block of a tensor at the width in use, of these shapes at each."""
        if len(set(shapes)) == 1:
            return tensor
        zeros = self.integers((0,) * len(shapes[0]))
        return self.node("Slice", [tensor, zeros, self.sizes(shapes)], f"{tensor}.leading")

    def constant(self, name: str, value: Array) -> str:
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def integers(self, values: tuple[int, ...]) -> str:
        return self.constant("i" + "x".join(map(str, values)), np.array(values, np.int64))

    def indices(self, channels: Tensor) -> str:
        """Kept channels, stored once for all layers that keep the same."""
        values = channels.numpy().astype(np.int32)
        name = self.stored_indices.setdefault(values.tobytes(), f"channels{len(self.stored_indices)}")
        return self.constant(name, values)

    def node(self, op: str, inputs: list[str], outputs: list[str] | str, **attributes: Any) -> str:
        outputs = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(op, inputs, outputs, **attributes))
        return outputs[0]

    def knobs(self, setting: Setting) -> tuple[str, str]:
        """Nodes for `Setting.noise_scale` and `Setting.norm_mix`; for `switch` the mix is a boolean."""
        if setting.conditioning == "interpolate":
            return "lambda", "lambda"
        threshold = self.constant("lambda_threshold", np.array(setting.lambda_threshold, np.float32))
        one, tiny = (
            self.constant("one", np.array(1, np.float32)),
            self.constant("tiny", np.array(1e-30, np.float32)),
        )
        above = self.node("Greater", ["lambda", threshold], "above_threshold")
        # tiny: at threshold 0 the lower branch is taken for lambda 0 alone, and 0 / tiny is 0.
        low = self.node("Div", ["lambda", self.node("Max", [threshold, tiny], "low_width")], "low_scale")
        over = self.node("Sub", ["lambda", threshold], "over_threshold")
        high = self.node("Div", [over, self.node("Sub", [one, threshold], "high_width")], "high_scale")
        return self.node("Where", [above, high, low], "noise_scale"), above

    def noisy_weights(self, source: FloatModel, scale: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
        """Nodes for eq. 4; return the conditioned tensor's name per weight name. `shapes` are those in the graph."""
        thetas = {name: source.backbone.get_parameter(name) for name in source.noise_windows}
        strengths = np.array(
            [
                float(alpha.detach() * weight_std(theta))
                for alpha, theta in zip(source.alpha, thetas.values(), strict=True)
            ],
            np.float32,
        )
        table = source.noise_table.cpu().numpy()
        longest = max(start + thetas[name].numel() for name, start in source.noise_windows.items())
        self.constant("noise_table", table.astype(np.float16))
        self.node("Cast", ["noise_table"], "noise", to=TensorProto.FLOAT)
        stream = self.node("Tile", ["noise", self.integers((-(-longest // len(table)),))], "noise_stream")
        scaled = self.node("Mul", [scale, self.constant("alpha_std", strengths)], "noise_strength")
        parts = [f"strength{index}" for index in range(len(thetas))]
        self.node("Split", [scaled], parts, num_outputs=len(parts))
        renamed: dict[str, str] = {}
        masks = source.masks
        for index, (name, theta) in enumerate(thetas.items()):
            start = source.noise_windows[name]
            window = self.node(
                "Slice",
                [stream, self.integers((start,)), self.integers((start + theta.numel(),))],
                f"window{index}",
            )
            eta = self.node("Reshape", [window, self.integers(tuple(theta.shape))], f"eta{index}")
            eta = self.block(eta, name.removesuffix(".weight"), tuple(theta.shape), shapes[name], index)
            shift = self.node("Mul", [eta, parts[index]], f"shift{index}")
            noisy = self.node("Add", [name, shift], f"{name}.hat" if name not in masks else f"{name}.noisy")
            if name in masks:
                active = self.node("Cast", [name], f"active{index}", to=TensorProto.BOOL)
                noisy = self.node("Where", [active, noisy, name], f"{name}.hat")
            renamed[name] = noisy
        return renamed

    def block(self, eta: str, layer: str, full: tuple[int, ...], shape: tuple[int, ...], index: int) -> str:
        """Nodes that cut a layer's noise to the graph's shape: kept channels, the leading block of a width."""
        kept = {0: self.shrunk.kept_out.get(layer), 1: self.shrunk.kept_in.get(layer)}
        leading = tuple(full[axis] if kept.get(axis) is not None else size for axis, size in enumerate(shape))
        if leading != full:
            zeros = self.integers((0,) * len(full))
            eta = self.node("Slice", [eta, zeros, self.integers(leading)], f"leading{index}")
        for axis, channels in kept.items():
            if channels is not None:
                eta = self.node("Gather", [eta, self.indices(channels)], f"kept{axis}_{index}", axis=axis)
        return eta

    def films(self, source: OatModel) -> dict[str, str]:
        """Nodes for FiLM, folded into scale and shift of the batch norms; return the new name per tensor name."""
        code = self.node("Reshape", ["lambda", self.integers((1, 1))], "code")
        if source.encoding != "none":
            code = self.node("MatMul", [self.shares(source.lambdas), self.tensor("codes", source.codes)], "encoded")
        sets = [source.norm_set(width) for width in self.widths]
        renamed: dict[str, str] = {}
        for key, film in source.films.items():
            name = key.replace("/", ".")
            assert isinstance(film, Film)
            channels = [norms[name].num_features for norms in sets]
            widest = max(channels)
            kept = self.kept(name, torch.arange(widest))
            rows = torch.stack([kept, film.channels + kept])  # gammas, betas of the leading, kept channels
            tensors = {
                "hidden.weight": film.hidden.weight[: 2 * widest],
                "hidden.bias": film.hidden.bias[: 2 * widest],
                "out.weight": film.out.weight[rows, : 2 * widest],
                "out.bias": film.out.bias[rows],
            }
            inputs = tensors["hidden.weight"].shape[1]
            outs = [len(kept)] if len(channels) == 1 else channels
            shapes: dict[str, Shapes] = {
                "hidden.weight": [(2 * c, inputs) for c in channels],
                "hidden.bias": [(2 * c,) for c in channels],
                "out.weight": [(2, out, 2 * c) for out, c in zip(outs, channels, strict=True)],
                "out.bias": [(2, out) for out in outs],
            }
            stem = f"{name}.film"
            parts = {part: self.leading(self.tensor(f"{stem}.{part}", t), shapes[part]) for part, t in tensors.items()}
            flat = self.sizes([(2 * out, 2 * c) for out, c in zip(outs, channels, strict=True)])
            parts["out.weight"] = self.node("Reshape", [parts["out.weight"], flat], f"{stem}.out.rows")
            parts["out.bias"] = self.node("Reshape", [parts["out.bias"], self.integers((-1,))], f"{stem}.out.shifts")
            value = code
            for layer in ("hidden", "out"):
                layer_inputs = [value, parts[f"{layer}.weight"], parts[f"{layer}.bias"]]
                value = self.node("Gemm", layer_inputs, f"{stem}.{layer}.sum", transB=1)
                value = self.node("LeakyRelu", [value], f"{stem}.{layer}", alpha=0.01)
            vector = self.node("Reshape", [value, self.integers((-1,))], stem)
            self.node("Split", [vector], [f"{name}.gamma", f"{name}.beta"], num_outputs=2)
            weight = self.node("Mul", [f"{name}.weight", f"{name}.gamma"], f"{name}.weight.film")
            scaled = self.node("Mul", [f"{name}.bias", f"{name}.gamma"], f"{name}.bias.scaled")
            bias = self.node("Add", [scaled, f"{name}.beta"], f"{name}.bias.film")
            renamed |= {f"{name}.weight": weight, f"{name}.bias": bias}
        return renamed

    def shares(self, grid: Sequence[float]) -> str:
        """Nodes for the share of each lambda of a grid in lambda, (1, K): 1 at itself, linear, 0 at its neighbours."""
        steps = np.diff(np.array(grid, np.float64))
        rise = self.constant("grid_rise", np.concatenate([[1.0], 1 / steps]).astype(np.float32)[None])
        fall = self.constant("grid_fall", np.concatenate([1 / steps, [1.0]]).astype(np.float32)[None])
        points = self.constant("grid", np.array(grid, np.float32)[None])
        one = self.constant("one", np.array(1, np.float32))
        zero = self.constant("zero", np.array(0, np.float32))
        distance = self.node("Sub", ["lambda", points], "grid_distance")
        below = self.node("Add", [self.node("Mul", [distance, rise], "grid_below"), one], "grid_up")
        above = self.node("Sub", [one, self.node("Mul", [distance, fall], "grid_above")], "grid_down")
        lower = self.node("Min", [below, above], "grid_hat")
        return self.node("Max", [lower, zero], "grid_share")

    def tensor(self, name: str, value: Tensor) -> str:
        return self.constant(name, value.detach().cpu().numpy())

    def kept(self, norm: str, tensor: Tensor) -> Tensor:
        """The values (C,) of a batch norm's tensor for the channels that the graph has."""
        channels = self.shrunk.kept_norm.get(norm)
        return tensor if channels is None else tensor.detach().cpu()[channels]

    def norms(self, source: ConditionalModel, setting: Setting, mix: str | None) -> None:
        """Nodes that give every batch norm its four tensors, under the backbone's own names; no `mix`: BN_C's."""
        sets = [source.norm_set(width) for width in self.widths]
        names = list(sets[0])
        if not names:
            return
        c = self.norm_vector("norms_clean", sets)
        if mix is None:
            mixed = c
        else:
            assert isinstance(source, DualNormModel)
            a = self.norm_vector("norms_adversarial", [source.adversarial_set(width) for width in self.widths])
            if setting.conditioning == "switch":
                mixed = self.node("Where", [mix, a, c], "norms")
            else:
                share = self.node("Mul", [mix, self.node("Sub", [a, c], "norms_difference")], "norms_share")
                mixed = self.node("Add", [c, share], "norms")
        sizes = self.sizes([tuple(len(t) for t in self.norm_tensors(each)) for each in sets])
        self.node("Split", [mixed, sizes], [f"{name}.{key}" for name in names for key in NORM_TENSORS])

    def norm_tensors(self, norms: Norms) -> list[Tensor]:
        return [self.kept(name, getattr(norm, key)) for name, norm in norms.items() for key in NORM_TENSORS]

    def norm_vector(self, name: str, sets: Sequence[Norms]) -> str:
        """All tensors of the batch norms of the width in use, end to end."""
        vectors = [np.concatenate([t.detach().cpu().numpy() for t in self.norm_tensors(norms)]) for norms in sets]
        stored = self.constant(name, np.concatenate(vectors))
        if len(vectors) == 1:
            return stored
        ends = np.cumsum([len(vector) for vector in vectors])
        starts = ends - [len(vector) for vector in vectors]
        limits = [self.sizes([(int(limit),) for limit in each]) for each in (starts, ends)]
        return self.node("Slice", [stored, *limits], f"{name}.chosen")
