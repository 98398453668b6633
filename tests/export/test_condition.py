"""The grafted nodes compute the state's own tensors, checked one by one inside the graph."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from deploytool.export.parity import set_threshold
from deploytool.models.setting import Setting


@pytest.mark.parametrize(("conditioning", "threshold"), [("switch", 0.0), ("switch", 0.5), ("interpolate", 0.0)])
@pytest.mark.parametrize("lam", [0.0, 0.2, 0.5, 0.50001, 1.0])
def test_conditioned_tensors_inside_the_graph(
    trained_run, trained_file: Path, trained_interpolate_file: Path, conditioning, threshold: float, lam: float
) -> None:
    model = onnx.load(trained_file if conditioning == "switch" else trained_interpolate_file)
    set_threshold(model, threshold)
    names = ["layer3.0.conv2.weight", "linear.weight"]
    norms = [f"layer2.0.bn1.{key}" for key in ("weight", "bias", "running_mean", "running_var")]
    made = {name for node in model.graph.node for name in node.output}
    outputs = [f"{name}.hat" for name in names] + norms
    assert set(outputs) <= made
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outputs)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"image": np.zeros((1, 1, 8, 8), np.float32), "lambda": np.array(lam, np.float32)}
    values = dict(zip(outputs, session.run(outputs, feed), strict=True))
    state = trained_run.model.state(Setting(lam, threshold, conditioning))
    backbone = trained_run.model.backbone.state_dict()
    for name in [*names, *norms]:
        expected = state.get(name, backbone[name]).detach().numpy()
        np.testing.assert_allclose(values.get(name, values.get(f"{name}.hat")), expected, rtol=1e-4, atol=1e-5)


def test_the_noise_is_stored_once_in_half_precision(trained_file) -> None:
    tensors = {tensor.name: tensor for tensor in onnx.load(trained_file).graph.initializer}
    table = tensors["noise_table"]
    assert table.data_type == onnx.TensorProto.FLOAT16
    weights = sum(int(np.prod(t.dims)) for name, t in tensors.items() if name.endswith(".weight"))
    assert np.prod(table.dims) <= max(251, weights // 256)
