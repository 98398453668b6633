"""All widths of a slimmable model in one file, chosen by an input, and each of them as a plain small network."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from deploytool.data.catalogue import CATALOGUE
from deploytool.errors import ArtefactError, InputError
from deploytool.export.artefact import build_graph, export_untrained, write_artefact
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import build_model, recipe_setting
from deploytool.recipe import Recipe, make_recipe
from deploytool.runtime.predict import predict
from deploytool.runtime.session import Session
from deploytool.runtime.specialize import specialize
from hwmodels.errors import WorkloadError
from hwmodels.workload import read_workload

DIGITS = CATALOGUE["digits"]
METHODS = {
    "switch": {"name": "float", "noise": "frozen", "conditioning": "switch"},
    "interpolate": {"name": "float", "noise": "frozen", "conditioning": "interpolate"},
    "oat": {"name": "oat"},
    "pgd-at": {"name": "pgd-at", "lambda": 0.5},
}
WIDTHS = (0.25, 0.5, 1.0)


def recipe(method: str, arch: str = "resnet8", widths=WIDTHS, **more: object) -> Recipe:
    model = {"arch": arch, "widths": list(widths)}
    return make_recipe({"name": "slim", "model": model, "method": METHODS[method], **more})


def trained_like(of: Recipe, data=DIGITS) -> ConditionalModel:
    model = build_model(of, data)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d) and not norm.weight.is_meta:
                norm.running_mean.normal_(0, 0.1, generator=generator)
                norm.running_var.uniform_(0.5, 1.5, generator=generator)
                norm.weight.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="module", params=METHODS)
def slim(request, tmp_path_factory) -> tuple[ConditionalModel, Recipe, Path]:
    """A model with three widths and its one file; parity over all widths was checked while it was written."""
    of = recipe(request.param)
    model, file = trained_like(of), tmp_path_factory.mktemp("slim") / "model.onnx"
    images = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    result = write_artefact(model, of, DIGITS, images, file, recipe_setting(of), narrow=WIDTHS[:-1])
    lambdas, thresholds = (1, 1) if request.param == "pgd-at" else (5, 1 if request.param == "interpolate" else 2)
    assert result["parity"]["cases"] == 3 * 2 * lambdas * thresholds
    return model, of, file


def test_stock_onnxruntime_answers_as_the_model_at_every_width(slim) -> None:
    model, of, file = slim
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    assert names == ({"image", "lambda", "width"} if model.is_conditional else {"image", "width"})
    image = torch.rand(3, 1, 8, 8)
    answers = []
    for width in WIDTHS:
        feed = {"image": image.numpy(), "lambda": np.array(0.7, np.float32), "width": np.array(width, np.float32)}
        answers.append(session.run(None, {name: feed[name] for name in names})[0])
        with torch.no_grad():
            expected = model(image, recipe_setting(of, 0.7, width)).numpy()
        np.testing.assert_allclose(answers[-1], expected, atol=1e-4)
    assert np.abs(answers[0] - answers[2]).max() > 0.01


def test_a_specialised_width_is_a_plain_small_network(slim, tmp_path: Path) -> None:
    model, _, file = slim
    lam = 0.7 if model.is_conditional else None
    for width in WIDTHS:
        out = tmp_path / f"{width}.onnx"
        assert specialize(file, lam, out, width=width)["max_abs_error"] <= 1e-4
        plain = onnx.load(out)
        assert [value.name for value in plain.graph.input] == ["image"]
        assert not {"Slice", "Gather", "BatchNormalization", "Where"} & {node.op_type for node in plain.graph.node}
        workload = read_workload(out)
        skeleton = dict(model.skeleton(width).named_parameters())
        assert [layer.weights for layer in workload.layers] == [
            skeleton[f"{layer.name}.weight"].numel() for layer in workload.layers
        ]
        image = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
        expected = Session(file).generic(image, lam, width)
        np.testing.assert_allclose(Session(out)(image), expected, atol=1e-4)
        np.testing.assert_allclose(Session(file)(image, lam, width), expected, atol=1e-4)
    assert (tmp_path / "0.25.onnx").stat().st_size < 0.2 * (tmp_path / "1.0.onnx").stat().st_size


def test_the_widest_is_the_default(slim) -> None:
    model, _, file = slim
    session, image = Session(file), np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    lam = 0.3 if model.is_conditional else None
    np.testing.assert_array_equal(session(image, lam), session(image, lam, 1.0))
    assert session.metadata.widths == WIDTHS and not session.metadata.fixed


def test_widths_that_the_file_does_not_hold_are_refused(slim) -> None:
    model, _, file = slim
    session, image = Session(file), np.zeros((1, 1, 8, 8), np.float32)
    lam = 0.3 if model.is_conditional else None
    for width in (0.75, 0.0, -1, float("nan"), 2):
        with pytest.raises(InputError, match="width"):
            session(image, lam, width)
    assert read_workload(file).width == 1.0
    with pytest.raises(WorkloadError, match=r"width .*0\.75"):
        read_workload(file, width=0.75)


def test_weights_are_stored_once(tmp_path: Path) -> None:
    """A further width costs a pair of batch norms and a few shapes, nothing else."""
    sizes = []
    for widths in ((1.0,), (0.5, 1.0), (0.25, 0.5, 1.0)):
        export_untrained(recipe("interpolate", widths=widths), tmp_path / "m.onnx")
        sizes.append((tmp_path / "m.onnx").stat().st_size)
    norms = 4 * 4 * 2 * (3 * 8 + 3 * 16 + 3 * 32)  # four tensors of float32, two conditions, channels at width 0.5
    assert sizes[1] - sizes[0] <= norms + 16_000  # slices, shape tables, names
    assert sizes[2] - sizes[1] <= norms / 2 + 2_000


@pytest.mark.parametrize("arch", ["resnet20", "wrn40-2", "single-layer-cnn", "lenet"])
def test_other_backbones_hold_two_widths(arch: str, tmp_path: Path) -> None:
    """ResNet-20's shortcuts pad with channels: their number depends on the width, and is chosen in the graph."""
    result = export_untrained(recipe("switch", arch, (0.5, 1.0), data={"name": "cifar10"}), tmp_path / "m.onnx")
    assert result["parity"]["max_abs_error"] <= 1e-3 and result["parity"]["cases"] == 40


def test_what_cannot_share_a_file_says_so(tmp_path: Path) -> None:
    """Depthwise convolutions carry the number of channels as an attribute, which no input can change."""
    with pytest.raises(InputError, match="export each with --width"):
        export_untrained(recipe("switch", "mobilenet", (0.5, 1.0), data={"name": "cifar10"}), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    of = recipe("switch", "mobilenet", (0.5, 1.0), data={"name": "cifar10"})
    assert export_untrained(of, tmp_path / "m.onnx", width=0.5)["parity"]["cases"] == 20


def test_sparse_and_slim_together(tmp_path: Path) -> None:
    of = recipe("switch", sparsity={"kind": "irregular", "density": 0.2})
    model = trained_like(of)
    images = torch.rand(7, 1, 8, 8)
    setting = recipe_setting(of)
    result = write_artefact(model, of, DIGITS, images, tmp_path / "m.onnx", setting, narrow=WIDTHS[:-1])
    assert result["parity"]["max_abs_error"] <= 1e-4
    assert 0.19 < result["density"] <= 0.2


def test_an_untrained_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"width \(=0.3\) was not trained"):
        export_untrained(recipe("switch"), tmp_path / "m.onnx", width=0.3)


def test_metadata_that_lies_about_widths_is_refused(tmp_path: Path) -> None:
    of = recipe("switch")
    model = build_graph(trained_like(of), DIGITS, recipe_setting(of))
    from deploytool.export.artefact import metadata

    onnx.helper.set_model_props(
        model, metadata(trained_like(of), of, DIGITS, recipe_setting(of), True, narrow=WIDTHS[:-1])
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ArtefactError, match="widths"):
        Session(tmp_path / "m.onnx")


def test_predict_takes_a_width(slim, tmp_path: Path) -> None:
    from PIL import Image

    model, _, file = slim
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(tmp_path / "x.png")
    lam = 0.5 if model.is_conditional else None
    answers = [predict(file, [tmp_path / "x.png"], lam, width=w)[0]["probability"] for w in (0.25, 1.0)]
    assert answers[0] != answers[1]
