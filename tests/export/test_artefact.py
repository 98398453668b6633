"""Exported files: the contract, parity with the trained model, size, and nothing left when parity fails."""

import json
import socket
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from deploytool.errors import InputError, ParityError
from deploytool.export import artefact
from deploytool.export.artefact import export, export_untrained
from deploytool.models.setting import Setting
from deploytool.recipe import load_recipe
from deploytool.training.run import load_run

RECIPES = Path(__file__).parents[2] / "recipes"
LAMBDAS = (0.0, 0.2, 0.5, 0.7, 1.0)


def run_stock(file: Path, image: np.ndarray, lam: float | None = None) -> np.ndarray:
    """Stock onnxruntime, default options: what anybody without deploytool would do."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feed = {"image": image} if lam is None else {"image": image, "lambda": np.array(lam, np.float32)}
    (logits,) = session.run(None, feed)
    return logits


def images(count: int, shape: tuple[int, ...] = (1, 8, 8)) -> np.ndarray:
    return np.random.default_rng(count).random((count, *shape), np.float32)


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("conditioning", ["switch", "interpolate"])
def test_parity_on_trained_weights(trained_run, tmp_path: Path, conditioning, threshold, batch) -> None:
    chosen = None if conditioning == "interpolate" else threshold
    result = export(trained_run, tmp_path / "m.onnx", conditioning, chosen)
    assert result["parity"]["max_abs_error"] <= 1e-3
    assert result["parity"]["cases"] == (20 if conditioning == "switch" else 10)
    image = images(batch)
    answers = []
    for lam in LAMBDAS:
        with torch.no_grad():
            expected = trained_run.model(torch.from_numpy(image), Setting(lam, threshold, conditioning)).numpy()
        answers.append(run_stock(tmp_path / "m.onnx", image, lam))
        assert np.abs(answers[-1] - expected).max() <= 1e-3
    assert np.abs(answers[0] - answers[-1]).max() > 0.1  # lambda matters


@pytest.mark.parametrize("noise", ["redrawn", "none"])
def test_parity_of_the_other_noise_modes(float_recipe, tmp_path: Path, noise: str) -> None:
    recipe = load_recipe(RECIPES / "digits-float.yaml", ["model.arch=resnet8", f"method.noise={noise}"])
    assert export_untrained(recipe, tmp_path / "m.onnx")["parity"]["max_abs_error"] <= 1e-3
    names = {tensor.name for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert ("noise_table" in names) == (noise != "none")
    properties = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert properties["deploytool.noise"] == ("none" if noise == "none" else "frozen draw")


@pytest.mark.parametrize("arch", ["digits-resnet", "resnet20", "wrn40-2", "single-layer-cnn", "lenet"])
def test_parity_and_size_of_every_kind_of_backbone(tmp_path: Path, arch: str) -> None:
    """The conditional file is at most 1.02 times the plain one."""
    base = "digits-float" if arch == "digits-resnet" else "cifar10-resnet20-float"
    recipe = RECIPES / f"{base}.yaml"
    result = export_untrained(load_recipe(recipe, [f"model.arch={arch}"]), tmp_path / "float.onnx")
    assert result["parity"]["max_abs_error"] <= 1e-3
    plain = load_recipe(recipe, [f"model.arch={arch}", "method={name: standard}"])
    export_untrained(plain, tmp_path / "plain.onnx")
    assert (tmp_path / "float.onnx").stat().st_size <= 1.02 * (tmp_path / "plain.onnx").stat().st_size


def test_the_contract_of_the_file(trained_file: Path, trained_run) -> None:
    model = onnx.load(trained_file)
    onnx.checker.check_model(model, full_check=True)
    assert max(opset.version for opset in model.opset_import if opset.domain == "") >= 18
    inputs = {value.name: value.type.tensor_type for value in model.graph.input}
    assert set(inputs) == {"image", "lambda"}
    assert [d.dim_param or d.dim_value for d in inputs["image"].shape.dim] == ["N", 1, 8, 8]
    assert inputs["lambda"].HasField("shape") and not inputs["lambda"].shape.dim
    assert all(value.elem_type == onnx.TensorProto.FLOAT for value in inputs.values())
    assert [value.name for value in model.graph.output] == ["logits"]
    properties = {p.key.removeprefix("deploytool."): p.value for p in model.metadata_props}
    assert properties["method"] == "float" and properties["recipe"] == trained_run.recipe.digest()
    assert json.loads(properties["classes"]) == list("0123456789")
    assert json.loads(properties["lambda_threshold"]) == 0.0 and json.loads(properties["noise_seed"]) == 0
    assert json.loads(properties["widths"]) == [1.0] and json.loads(properties["density"]) == 1.0
    assert json.loads(properties["preprocessing"])["size"] == [8, 8]


def test_the_file_tells_nothing_of_the_machine_it_was_made_on(trained_file: Path, trained_run) -> None:
    content = trained_file.read_bytes()
    for secret in (str(Path.home()), str(Path(__file__).parents[2]), str(trained_run.path), socket.gethostname()):
        if len(secret) > 3:
            assert secret.encode() not in content, secret
    assert b"site-packages" not in content and b"stack_trace" not in content


def test_exporting_twice_gives_the_same_bytes(trained_run, trained_file: Path, tmp_path: Path) -> None:
    export(trained_run, tmp_path / "again.onnx", conditioning="switch")
    assert (tmp_path / "again.onnx").read_bytes() == trained_file.read_bytes()


def test_a_plain_run_becomes_a_plain_file(plain_file: Path, plain_run) -> None:
    model = onnx.load(plain_file)
    assert [value.name for value in model.graph.input] == ["image"]
    image = images(3)
    with torch.no_grad():
        expected = plain_run.model(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(run_stock(plain_file, image), expected, atol=1e-4)


def test_failing_parity_leaves_nothing_and_keeps_an_older_file(trained_run, tmp_path: Path, monkeypatch) -> None:
    original = artefact.build_graph

    def broken(*arguments) -> onnx.ModelProto:
        graph = original(*arguments)
        (bias,) = [tensor for tensor in graph.graph.initializer if tensor.name == "linear.bias"]
        shifted = onnx.numpy_helper.to_array(bias) + np.float32(0.01)
        bias.CopyFrom(onnx.numpy_helper.from_array(shifted, bias.name))
        return graph

    monkeypatch.setattr(artefact, "build_graph", broken)
    with pytest.raises(ParityError, match=r"1\.00e-02.*allowed 1e-03"):
        export(trained_run, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "m.onnx").write_bytes(b"the good one")
    with pytest.raises(ParityError):
        export(trained_run, tmp_path / "m.onnx")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the good one"]


def test_weights_that_give_nan_fail_parity(trained_run, tmp_path: Path) -> None:
    run = load_run(trained_run.path)
    with torch.no_grad():
        run.model.backbone.linear.weight.fill_(torch.nan)
    with pytest.raises(ParityError):
        export(run, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_settings_that_do_not_fit_the_method_are_refused(trained_run, plain_run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="standard has no conditioning"):
        export(plain_run, tmp_path / "m.onnx", conditioning="switch")
    with pytest.raises(InputError, match="no effect with interpolate"):
        export(trained_run, tmp_path / "m.onnx", lambda_threshold=0.5)
    with pytest.raises(InputError, match="0 or 0.5"):
        export(trained_run, tmp_path / "m.onnx", "switch", 0.25)
    assert list(tmp_path.iterdir()) == []


def test_the_trained_run_is_exported_where_its_data_is_absent(trained_run, tmp_path: Path, monkeypatch) -> None:
    from deploytool.errors import DataError

    def absent(*arguments, **named) -> None:
        raise DataError("gone")

    monkeypatch.setattr(artefact, "load_dataset", absent)
    assert export(trained_run, tmp_path / "m.onnx")["parity"]["max_abs_error"] <= 1e-3


def test_two_batch_norms_on_one_input_keep_parity(tmp_path: Path) -> None:
    """A known trap of exporters: both norms read one tensor and must not be fused into each other."""
    from deploytool.data.catalogue import DatasetInfo
    from deploytool.export.parity import check_parity
    from deploytool.models.conditional import FloatModel

    class Fork(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 4, 3, bias=False)
            self.left, self.right = torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)
            self.linear = torch.nn.Linear(4, 3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = self.conv(image)
            return self.linear((self.left(x).relu() - self.right(x).relu()).mean(dim=(2, 3)))

    torch.manual_seed(0)
    model = FloatModel(Fork())
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.dim() == 1 and len(tensor) == 4:
                tensor.copy_(torch.rand(4) + 0.5)
    model.eval()
    info = DatasetInfo("fork", (1, 8, 8), tuple("abc"), (0.5,), (0.5,))
    for conditioning in ("switch", "interpolate"):
        setting = Setting(conditioning=conditioning)
        (tmp_path / "m.onnx").write_bytes(artefact.build_graph(model, info, setting).SerializeToString())
        assert check_parity(tmp_path / "m.onnx", model, setting, torch.rand(7, 1, 8, 8)).max_abs_error <= 1e-4
