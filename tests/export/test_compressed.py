"""Every combination of method, width and sparsity exports to one file that answers as the model does."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from deploytool.data.catalogue import CATALOGUE
from deploytool.export.artefact import build_graph, export_untrained
from deploytool.export.parity import check_parity
from deploytool.models.factory import build_model, recipe_setting
from deploytool.recipe import make_recipe
from deploytool.runtime.session import Session
from deploytool.runtime.specialize import specialize

DIGITS = CATALOGUE["digits"]
METHODS = {
    "float": {"name": "float", "noise": "frozen", "conditioning": "switch"},
    "float-interpolate": {"name": "float", "noise": "frozen", "conditioning": "interpolate"},
    "oat": {"name": "oat"},
    "oat-onehot": {"name": "oat", "encoding": "onehot", "encoding_size": 8},
    "oat-dct": {"name": "oat", "encoding": "dct", "encoding_size": 8},
    "oat-random": {"name": "oat", "encoding": "random", "encoding_size": 8},
    "pgd-at": {"name": "pgd-at", "lambda": 0.5},
}
SPARSITIES = [None, {"kind": "irregular", "density": 0.1}, {"kind": "channel", "density": 0.4}]


def recipe(method: str, sparsity: dict | None = None):
    return make_recipe(
        {
            "name": "x",
            "model": {"arch": "resnet8", "widths": [0.5, 1.0]},
            "method": METHODS[method],
            "sparsity": sparsity,
        }
    )


def trained_like(method: str, sparsity: dict | None):
    model = build_model(recipe(method, sparsity), DIGITS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d) and not norm.weight.is_meta:
                norm.running_mean.normal_(0, 0.1, generator=generator)
                norm.running_var.uniform_(0.5, 1.5, generator=generator)
                norm.weight.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@pytest.mark.parametrize("width", [0.5, 1.0])
@pytest.mark.parametrize("sparsity", SPARSITIES, ids=["dense", "irregular", "channel"])
@pytest.mark.parametrize("method", ["float", "float-interpolate", "oat", "pgd-at"])
def test_parity_of_methods_widths_and_masks(tmp_path: Path, method: str, sparsity, width: float) -> None:
    model = trained_like(method, sparsity)
    setting = recipe_setting(recipe(method), width=width)
    (tmp_path / "m.onnx").write_bytes(build_graph(model, DIGITS, setting).SerializeToString())
    images = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    parity = check_parity(tmp_path / "m.onnx", model, setting, images)
    assert parity.max_abs_error <= 1e-4, parity
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)


@pytest.mark.parametrize("method", ["oat-onehot", "oat-dct", "oat-random"])
def test_parity_of_the_encodings_between_the_lambdas_of_the_set(tmp_path: Path, method: str) -> None:
    model = trained_like(method, None)
    setting = recipe_setting(recipe(method))
    (tmp_path / "m.onnx").write_bytes(build_graph(model, DIGITS, setting).SerializeToString())
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    image = torch.rand(3, 1, 8, 8)
    for lam in (0.0, 0.1, 0.2, 0.45, 0.7, 0.99, 1.0):
        with torch.no_grad():
            expected = model(image, recipe_setting(recipe(method), lam)).numpy()
        (logits,) = session.run(None, {"image": image.numpy(), "lambda": np.array(lam, np.float32)})
        np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("method", ["float", "oat"])
def test_a_specialised_narrow_file_is_a_plain_small_network(tmp_path: Path, method: str) -> None:
    export_untrained(recipe(method), tmp_path / "half.onnx", width=0.5)
    result = specialize(tmp_path / "half.onnx", 0.7, tmp_path / "plain.onnx")
    assert result["max_abs_error"] <= 1e-4
    model = onnx.load(tmp_path / "plain.onnx")
    assert {node.op_type for node in model.graph.node} <= {
        "Sub", "Div", "Mul", "Add", "Conv", "Relu", "ReduceMean", "Gemm"
    }  # fmt: skip
    stem = next(t for t in model.graph.initializer if t.name.startswith("conv1.weight"))
    assert tuple(stem.dims) == (8, 1, 3, 3)
    full = tmp_path / "full.onnx"
    export_untrained(recipe(method), full)
    assert (tmp_path / "half.onnx").stat().st_size < 0.4 * full.stat().st_size
    image = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    expected = Session(tmp_path / "half.onnx").generic(image, 0.7)
    np.testing.assert_allclose(Session(tmp_path / "plain.onnx")(image), expected, atol=1e-4)


def test_the_noise_of_a_sparse_file_is_masked(tmp_path: Path) -> None:
    model = trained_like("float", {"kind": "irregular", "density": 0.2})
    graph = build_graph(model, DIGITS, recipe_setting(recipe("float")))
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info("layer2.0.conv1.weight.hat"))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"image": np.zeros((1, 1, 8, 8), np.float32), "lambda": np.array(1, np.float32)}
    (conditioned,) = session.run(["layer2.0.conv1.weight.hat"], feed)
    np.testing.assert_array_equal(conditioned != 0, model.masks["layer2.0.conv1.weight"].numpy())


def test_metadata_tells_width_and_density(tmp_path: Path) -> None:
    export_untrained(recipe("float", {"kind": "irregular", "density": 0.1}), tmp_path / "m.onnx", width=0.5)
    properties = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert properties["deploytool.widths"] == "[0.5]"
    assert 0.09 < float(properties["deploytool.density"]) <= 0.1
