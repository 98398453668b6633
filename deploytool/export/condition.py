"""Grafting the conditional state onto a plain ONNX graph.

    before:  Conv(x, theta) -> BatchNormalization(., gamma, beta, mean, var)

    after:   scale, mix    = f(lambda, lambda_threshold)
             stream        = Tile(Cast(noise_table))
             theta.hat     = theta + (scale * alpha * std)_l * Reshape(Slice(stream, start_l, end_l))
             gamma, ...    = Split(norms_clean + mix * (norms_adversarial - norms_clean))     (interpolate)
                             Split(Where(lambda > lambda_threshold, norms_adversarial, norms_clean))    (switch)
             Conv(x, theta.hat) -> BatchNormalization(., gamma, beta, mean, var)

Everything above the last line depends on lambda alone, so a runtime that knows lambda folds it away. The noise
costs one short table, not a second copy of the weights; alpha * std is one number per layer.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploytool.export.backbone import drop_unused_initializers
from deploytool.models.conditional import NORM_TENSORS, FloatModel, batch_norms
from deploytool.models.noise import weight_std
from deploytool.models.setting import Setting

Array = np.ndarray[Any, Any]


def add_condition(model: onnx.ModelProto, source: FloatModel, setting: Setting) -> None:
    """Turn a plain graph of `source.backbone` into one with the scalar input `lambda`, in place.

    Args:
        model: as `backbone_to_onnx` returns it.
        source: the trained model.
        setting: threshold, conditioning and noise mode to build in; its lambda does not matter. The threshold
            becomes the scalar initializer `lambda_threshold`, which the runtime can override.
    """
    graph = model.graph
    builder = _Builder()
    scale, mix = builder.knobs(setting)
    renamed: dict[str, str] = {}
    if setting.noise != "none":
        renamed = builder.noisy_weights(source, scale)
    builder.norms(source, setting, mix)

    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    graph.input.append(helper.make_tensor_value_info("lambda", TensorProto.FLOAT, []))
    backbone_nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*builder.nodes, *backbone_nodes])
    made = {name for node in builder.nodes for name in node.output}
    kept = [tensor for tensor in graph.initializer if tensor.name not in made]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *builder.initializers.values()])
    drop_unused_initializers(graph)


class _Builder:
    """Collects nodes and initializers; equal constants are stored once."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Array) -> str:
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def integers(self, values: tuple[int, ...]) -> str:
        return self.constant("i" + "x".join(map(str, values)), np.array(values, np.int64))

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

    def noisy_weights(self, source: FloatModel, scale: str) -> dict[str, str]:
        """Nodes for eq. 4; return the conditioned tensor's name per weight name."""
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
        renamed = {}
        for index, (name, theta) in enumerate(thetas.items()):
            start = source.noise_windows[name]
            window = self.node(
                "Slice",
                [stream, self.integers((start,)), self.integers((start + theta.numel(),))],
                f"window{index}",
            )
            eta = self.node("Reshape", [window, self.integers(tuple(theta.shape))], f"eta{index}")
            shift = self.node("Mul", [eta, parts[index]], f"shift{index}")
            renamed[name] = self.node("Add", [name, shift], f"{name}.hat")
        return renamed

    def norms(self, source: FloatModel, setting: Setting, mix: str) -> None:
        """Nodes that give every batch norm its four tensors, under the backbone's own names."""
        pairs = [
            (name, norm, source.adversarial_norms[name.replace(".", "/")])
            for name, norm in batch_norms(source.backbone)
        ]
        if not pairs:
            return
        clean = [getattr(norm, key) for _, norm, _ in pairs for key in NORM_TENSORS]
        adversarial = [getattr(norm, key) for _, _, norm in pairs for key in NORM_TENSORS]
        c = self.constant("norms_clean", np.concatenate([t.detach().cpu().numpy() for t in clean]))
        a = self.constant("norms_adversarial", np.concatenate([t.detach().cpu().numpy() for t in adversarial]))
        if setting.conditioning == "switch":
            mixed = self.node("Where", [mix, a, c], "norms")
        else:
            share = self.node("Mul", [mix, self.node("Sub", [a, c], "norms_difference")], "norms_share")
            mixed = self.node("Add", [c, share], "norms")
        sizes = self.constant("norm_sizes", np.array([len(t) for t in clean], np.int64))
        self.node("Split", [mixed, sizes], [f"{name}.{key}" for name, _, _ in pairs for key in NORM_TENSORS])
