"""Files that explain: the surrogate beside its target in one graph, or in a file of its own."""

import itertools
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import hwmodels
from deploytool.data.datasets import dataset_info
from deploytool.errors import ParityError, RunError
from deploytool.explain.explainer import Explainer, build_explainer
from deploytool.explain.recipe import ExplainerRecipe
from deploytool.export import artefact, saliency
from deploytool.export.artefact import export, export_setting, random_images, write_artefact
from deploytool.export.explainer import export_explainer
from deploytool.export.quantize import quantizer_of_untrained
from deploytool.export.saliency import PREFIX, Companion, FullWidthWarning, surrogate_graph, surrogate_of
from deploytool.measuring import plain_network
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import build_model, recipe_labels
from deploytool.models.setting import Setting
from deploytool.recipe import load_recipe
from deploytool.runtime import Session, specialize
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.graph import take_apart
from deploytool.runtime.network import FedNetwork
from deploytool.runtime.validation import check_graph
from deploytool.training.run import Checkpoint, Run

Array = np.ndarray[Any, Any]

ROOT = Path(__file__).parents[2]
DIGITS = dataset_info(load_recipe(ROOT / "recipes" / "digits-float.yaml").data)
LABELS = f"reasoning.labels={ROOT / 'recipes' / 'labels' / 'digits.yaml'}"
BOTH = ("logits", "saliency")

# What files can be, how they are written, and whether the surrogate has two sets of batch norms.
KINDS: dict[str, tuple[list[str], dict[str, Any], bool]] = {
    "switch": (["method.conditioning=switch"], {}, True),
    "interpolate": (["method.conditioning=interpolate", LABELS], {}, True),
    "shared norms": (["method.conditioning=switch", "sparsity={density: 0.2}"], {"compress": True}, False),
    "oat": (["method={name: oat}", "sparsity={density: 0.4, kind: channel}"], {}, True),
    "plain int8": (["method={name: standard}"], {"int8": True}, False),
    "slim int8": (["model.widths=[0.5, 1.0]", "method.conditioning=switch"], {"int8": True}, True),
}


def pictures(count: int = 5, shape: tuple[int, int, int] = DIGITS.shape) -> Array:
    return np.random.default_rng(3).random((count, *shape), np.float32)


def fitted(model: ConditionalModel, shape: tuple[int, int, int] = DIGITS.shape) -> ConditionalModel:
    """Batch norms fitted to images, the conditions apart, with scales of their own."""
    generator = torch.Generator().manual_seed(0)
    norms = [norm for norm in model.train().modules() if isinstance(norm, nn.BatchNorm2d) and not norm.weight.is_meta]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
    with torch.no_grad():
        for width, lam in itertools.product(model.widths, (0.0, 1.0)):
            model(torch.from_numpy(pictures(64, shape) * (1 - 0.5 * lam)), Setting(lam, width=width))
    for norm in norms:
        norm.momentum = 0.1  # which the exported operator names
    return model.eval()


def explainer_of(dual: bool, shape: tuple[int, int, int] = DIGITS.shape, stride: int = 1) -> Explainer:
    """An explainer as if it had been trained."""
    info = replace(DIGITS, shape=shape)
    document = {"name": "maps", "target": "somewhere/run", "student": {"arch": "resnet8"}}
    recipe = ExplainerRecipe.make({**document, "explanation": {"stride": stride}})
    model = fitted(build_explainer(recipe, info, dual), shape)
    nn.init.normal_(model.backbone.get_parameter("explanation.draw.weight"), 0, 0.3)
    return Explainer(Path("e"), recipe, model, Checkpoint(0, {}, {}, [], info, 1, "", {"somewhere/run": "ab" * 32}))


def write(kind: str, file: Path) -> tuple[Companion, Setting, dict[str, Any]]:
    changes, options, dual = KINDS[kind]
    recipe = load_recipe(ROOT / "recipes" / "digits-float.yaml", ["model.arch=resnet8", *changes])
    model, setting = fitted(build_model(recipe, DIGITS)), export_setting(recipe, None, None)
    narrow = model.widths[:-1]
    surrogate = Companion(explainer_of(dual), follows=kind != "oat")
    quantizer = quantizer_of_untrained(model, recipe, DIGITS, setting, narrow, 16) if "int8" in options else None
    rest = {name: value for name, value in options.items() if name != "int8"}
    rest |= {"narrow": narrow, "quantizer": quantizer, "labels": recipe_labels(recipe, DIGITS)}
    result = write_artefact(model, recipe, DIGITS, random_images(DIGITS), file, setting, surrogate=surrogate, **rest)
    return surrogate, setting, result


@pytest.fixture(scope="module", params=KINDS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Companion, Setting, dict[str, Any]]:
    file = tmp_path_factory.mktemp("explained") / "model.onnx"
    return request.param, file, *write(request.param, file)


def stock(file: Path, image: Array, knobs: Mapping[str, float | None], threshold: float | None = None) -> Array:
    """The maps by stock onnxruntime, default options."""
    model = onnx.load(str(file))
    if threshold is not None:
        artefact_threshold = next(t for t in model.graph.initializer if t.name == "lambda_threshold")
        artefact_threshold.CopyFrom(onnx.numpy_helper.from_array(np.array(threshold, np.float32), "lambda_threshold"))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {name: np.array(value, np.float32) for name, value in knobs.items() if value is not None}
    (maps,) = session.run(["saliency"], {"image": image, **feed})
    return maps  # type: ignore[no-any-return]


def knobs_of(file: Path) -> list[dict[str, float]]:
    metadata = read_artefact(file).metadata
    lambdas = (0.0, 0.3, 0.7, 1.0) if metadata.conditional else (None,)
    widths = metadata.widths if len(metadata.widths) > 1 else (None,)
    return [
        {name: value for name, value in (("lambda", lam), ("width", width)) if value is not None}
        for lam, width in itertools.product(lambdas, widths)
    ]


def torch_maps(explainer: Explainer, image: Array, setting: Setting) -> Array:
    """By the module itself, batch norms and all."""
    with torch.no_grad():
        return explainer.model(torch.from_numpy(image), setting)[1].numpy()  # type: ignore[no-any-return]


def test_the_file_draws_what_the_surrogate_draws(made) -> None:
    kind, file, surrogate, setting, _ = made
    own = any(t.name == "lambda_threshold" for t in onnx.load(str(file)).graph.initializer)
    for knobs, count in itertools.product(knobs_of(file), (1, 5)):
        for threshold in (0.0, 0.5) if own else (None,):
            maps = stock(file, pictures(count), knobs, threshold)
            assert maps.shape == (count, 1, 8, 8) and maps.dtype == np.float32 and 0 <= maps.min() <= maps.max() <= 1
            at = Setting(knobs.get("lambda", 0.0), threshold or 0.0, setting.conditioning, "none")
            if kind == "oat":  # its batch norms are FiLM's, and know no threshold
                at = replace(at, conditioning="interpolate")
            np.testing.assert_allclose(maps, torch_maps(surrogate.explainer, pictures(count), at), atol=1e-4)
    assert np.ptp(maps) > 0.1


def test_maps_follow_lambda_and_no_width(made) -> None:
    kind, file, _, _, _ = made
    if kind in ("plain int8", "shared norms"):
        pytest.skip("nothing to follow")
    width = {"width": 1.0} if "slim" in kind else {}
    maps = {lam: stock(file, pictures(), {"lambda": lam, **width}) for lam in (0.0, 0.3, 1.0)}
    assert np.abs(maps[0.0] - maps[1.0]).max() > 0.05
    assert np.array_equal(maps[0.3], maps[1.0]) == (kind in ("switch", "slim int8"))
    if "slim" in kind:
        np.testing.assert_array_equal(stock(file, pictures(), {"lambda": 0.3, "width": 0.5}), maps[0.3])


def test_parity_reports_every_output(made) -> None:
    kind, _, _, _, result = made
    outputs = result["parity"]["outputs"]
    assert set(outputs) == {*BOTH, *(["reasoning"] if kind == "interpolate" else [])}
    assert result["parity"]["max_abs_error"] == max(outputs.values()) <= 1e-4
    json.dumps(result)


def test_the_file_is_sound_and_says_whose_maps_these_are(made) -> None:
    _, file, _, _, _ = made
    model = onnx.load(str(file))
    onnx.checker.check_model(model, full_check=True)
    assert [opset.version for opset in model.opset_import] == [18]
    note = json.loads(next(p.value for p in model.metadata_props if p.key == "deploytool.explainer"))
    assert note == {"name": "maps", "fidelity": "auto", "target": "ab" * 32, "recipe": note["recipe"]}
    assert read_artefact(file).metadata.explainer is not None
    surrogates = [t.name for t in model.graph.initializer if t.name.startswith(PREFIX)]
    assert surrogates and not any("resnet.linear" in name for name in surrogates)  # no map needs the student's head
    assert len({n.name for n in model.graph.node if n.name}) == len([n for n in model.graph.node if n.name])


def test_one_output_costs_nothing_of_the_other(made) -> None:
    """What the pruned graph of a session holds, nodes and tensors."""
    _, file, _, _, _ = made
    for outputs, foreign in ((("logits",), True), (("saliency",), False)):
        graph = Session(file, threads=1, outputs=outputs)._artefact.graph
        names = {*graph.constants, *(name for node in graph.nodes for name in node.output)} - {*BOTH}
        assert names - {"lambda_threshold"}
        assert not {name for name in names if name.startswith(PREFIX) == foreign} - {"lambda_threshold"}


def test_onnx_can_cut_the_maps_out_of_the_file(made) -> None:
    """For runtimes that compute every output of a file, asked or not, as onnxruntime 1.31 itself does."""
    _, file, _, _, _ = made
    model = onnx.load(str(file))
    inputs = [value.name for value in model.graph.input]
    cut = onnx.utils.Extractor(model).extract_model(inputs, ["logits"])
    names = [*(t.name for t in cut.graph.initializer), *(name for node in cut.graph.node for name in node.output)]
    assert not [name for name in names if name.startswith(PREFIX)]
    knobs = {name: np.array(value, np.float32) for name, value in knobs_of(file)[-1].items()}
    answers = []
    for each in (model, cut):
        session = onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
        answers += session.run(["logits"], {"image": pictures(), **knobs})
    np.testing.assert_array_equal(*answers)


def test_a_specialised_file_keeps_the_maps_and_folds_the_norms(made, tmp_path: Path) -> None:
    kind, file, _, _, _ = made
    if read_artefact(file).metadata.fixed:
        pytest.skip("a plain file is not specialised")
    knobs = knobs_of(file)[1]
    result = specialize(file, knobs.get("lambda"), tmp_path / "x.onnx", width=knobs.get("width"))
    assert "int8" in kind or result["max_abs_error"] <= 1e-4
    maps = Session(tmp_path / "x.onnx", threads=1, outputs=BOTH).run(pictures())["saliency"]
    np.testing.assert_allclose(maps, stock(file, pictures(), knobs), atol=1e-4)
    nodes = onnx.load(str(tmp_path / "x.onnx")).graph.node
    left = {node.op_type for node in nodes if any(name.startswith(PREFIX) for name in node.output)}
    assert left and not left & {"BatchNormalization", "Split", "Where", "Greater"}
    assert "int8" not in kind or not left & {"QuantizeLinear", "DequantizeLinear"}  # float32, as the file says


@pytest.mark.parametrize("made", ["interpolate", "switch"], indirect=True)
@pytest.mark.parametrize("shared", [False, True])
def test_a_session_draws_as_the_file_does(made, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a session of its own, and with weights fed to a shared one."""
    monkeypatch.setattr("deploytool.runtime.session.SHARED_FROM_BYTES", 0 if shared else 1 << 30)
    _, file, _, _, _ = made
    session = Session(file, threads=1, outputs=BOTH, background=False)
    for knobs in knobs_of(file):
        answers = session.run(pictures(), knobs["lambda"])
        np.testing.assert_allclose(answers["saliency"], stock(file, pictures(), knobs), atol=1e-4)
        assert answers["logits"].shape == (5, 10)
    assert all(isinstance(each, FedNetwork) == shared for each in session._cache.networks())


def test_a_run_takes_its_own_explainer_and_follows_what_export_is_told(
    trained_run: Run, float_explainer: Explainer, tmp_path: Path
) -> None:
    file = tmp_path / "m.onnx"
    options: dict[str, Any] = {"conditioning": "switch", "lambda_threshold": 0.5, "explainer": float_explainer}
    result = export(trained_run, file, **options)
    assert result["parity"]["cases"] == 20
    maps = {lam: stock(file, pictures(), {"lambda": lam}) for lam in (0.0, 0.5, 0.6, 1.0)}
    np.testing.assert_array_equal(maps[0.5], maps[0.0])
    np.testing.assert_array_equal(maps[0.6], maps[1.0])
    assert np.abs(maps[1.0] - maps[0.0]).max() > 1e-3
    export(trained_run, file, conditioning="interpolate", explainer=float_explainer)
    between = stock(file, pictures(), {"lambda": 0.5})
    want, _ = float_explainer.explain(torch.from_numpy(pictures()), Setting(0.5, 0, "interpolate", "none"))[::-1]
    np.testing.assert_allclose(between[:, 0], want.numpy(), atol=1e-4)
    assert np.abs(between - maps[0.0]).max() > 1e-3


@pytest.mark.parametrize(("width", "said"), [(None, "at widths 0.25, 0.5 they"), (0.5, "at width 0.5 they"), (1.0, "")])
def test_maps_of_narrow_widths_are_said_to_be_the_full_networks(
    width: float | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["model.arch=resnet8", "model.widths=[0.25, 0.5, 1.0]", "method={name: standard}"]
    recipe = load_recipe(ROOT / "recipes" / "digits-float.yaml", changes)
    run = Run(tmp_path, recipe, fitted(build_model(recipe, DIGITS)), Checkpoint(0, {}, {}, [], DIGITS, 1, "", {}))
    monkeypatch.setattr(artefact, "surrogate_of", lambda run, explainer: Companion(explainer, False))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export(run, tmp_path / "m.onnx", width=width, explainer=explainer_of(False))
        export(run, tmp_path / "bare.onnx", width=width)
    told = [str(each.message) for each in caught if each.category is FullWidthWarning]
    assert told == ([f"maps explain the full width; {said} are the full network's"] if said else [])


def test_an_explainer_of_something_else_is_refused(plain_run: Run, float_explainer: Explainer, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not what .* was trained to explain"):
        export(plain_run, tmp_path / "m.onnx", explainer=float_explainer)
    assert not (tmp_path / "m.onnx").exists()


def test_a_file_whose_maps_are_off_is_not_written(
    trained_run: Run, float_explainer: Explainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(explainer: Explainer, setting: Setting, outputs: Any) -> onnx.ModelProto:
        return surrogate_graph(explainer, replace(setting, conditioning="switch"), outputs)  # while parity interpolates

    monkeypatch.setattr(artefact, "surrogate_graph", wrong)
    with pytest.raises(ParityError, match=r"differ .* \(saliency at lambda 0\.[257], threshold 0, width 1, batch"):
        export(trained_run, tmp_path / "m.onnx", conditioning="interpolate", explainer=float_explainer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("size", "stride"), [((9, 14), 1), ((12, 32), 4), ((10, 70), 2), ((72, 72), 4)])
def test_any_size_of_image_has_fixed_shapes(
    size: tuple[int, int], stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales that are no whole numbers, and too large ones, among them."""
    if size == (72, 72):
        monkeypatch.setattr(saliency, "MAX_SCALE", 3)
    explainer = explainer_of(False, (1, *size), stride)
    model = surrogate_graph(explainer, Setting(noise="none"), BOTH)
    check_graph(take_apart(model))
    assert not {"Shape", "Cast"} & {node.op_type for node in model.graph.node}
    image = np.random.default_rng(1).random((3, 1, *size), np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, maps = session.run(["logits", "saliency"], {"image": image})
    with torch.no_grad():
        want = explainer.model(torch.from_numpy(image))
    np.testing.assert_allclose(logits, want[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(maps, want[1].numpy(), atol=1e-4)


def test_an_explainer_is_a_file_of_its_own(float_explainer: Explainer, tmp_path: Path) -> None:
    result = export_explainer(float_explainer, tmp_path / "e.onnx")
    assert set(result["parity"]["outputs"]) == {*BOTH} and result["parity"]["max_abs_error"] <= 1e-4
    session = Session(tmp_path / "e.onnx", threads=1, outputs=BOTH, background=False)
    metadata = session.metadata
    assert (metadata.method, metadata.name, metadata.conditional) == ("surrogate", float_explainer.recipe.name, True)
    assert metadata.explainer is not None
    assert metadata.explainer.target == float_explainer.checkpoint.files[float_explainer.target]
    for lam in (0.0, 0.4, 1.0):
        setting = Setting(lam, metadata.lambda_threshold or 0.0, metadata.conditioning, "none")  # type: ignore[arg-type]
        logits, maps = float_explainer.explain(torch.from_numpy(pictures()), setting)
        answers = session.run(pictures(), lam)
        np.testing.assert_allclose(answers["logits"], logits.numpy(), atol=1e-4)
        np.testing.assert_allclose(answers["saliency"][:, 0], maps.numpy(), atol=1e-4)


def test_an_explainer_whose_target_is_gone_says_so(
    float_explainer: Explainer, trained_run: Run, plain_run: Run, tmp_path: Path
) -> None:
    recipe = float_explainer.recipe.model_copy(update={"target": "gone"})
    files = {"gone": float_explainer.checkpoint.files[float_explainer.target]}
    lost = replace(float_explainer, recipe=recipe, checkpoint=replace(float_explainer.checkpoint, files=files))
    with pytest.raises(RunError, match="explains gone, which is not there; say where it is now with --target"):
        export_explainer(lost, tmp_path / "e.onnx")
    with pytest.raises(RunError, match="is not what"):
        export_explainer(lost, tmp_path / "e.onnx", plain_run.path)
    export_explainer(lost, tmp_path / "e.onnx", trained_run.path)
    assert surrogate_of(trained_run, lost).follows


def test_a_surrogate_of_a_plain_target_is_written_without_it(tmp_path: Path) -> None:
    result = export_explainer(explainer_of(False), tmp_path / "e.onnx")
    assert result["parity"]["max_abs_error"] <= 1e-4
    assert [value.name for value in onnx.load(str(tmp_path / "e.onnx")).graph.input] == ["image"]


def test_cost_prices_the_classifier_alone_and_says_so(made, tmp_path: Path) -> None:
    """As the file without the explainer's part would be priced."""
    _, file, _, _, _ = made
    model = onnx.load(str(file))
    cut = onnx.utils.Extractor(model).extract_model([value.name for value in model.graph.input], ["logits"])
    kept = {p.key: p.value for p in model.metadata_props if p.key != "deploytool.explainer"}
    onnx.helper.set_model_props(cut, kept)
    outputs = [value.name for value in model.graph.output if value.name != "saliency"]
    if len(outputs) == 1:
        onnx.save(cut, str(tmp_path / "cut.onnx"))
        bare = hwmodels.cost(tmp_path / "cut.onnx")
        assert [each.layer for each in bare.layers] == [each.layer for each in hwmodels.cost(file).layers]
    priced = hwmodels.cost(file)
    assert not any(each.layer.name.startswith(PREFIX) for each in priced.layers)
    assert priced.workload.flow.outputs == tuple(outputs) and priced.workload.left_out == ("saliency",)
    assert any("output saliency" in note and "not counted" in note for note in priced.notes())


@pytest.mark.parametrize("made", ["switch", "plain int8"], indirect=True)
def test_what_is_measured_is_what_is_priced(made, tmp_path: Path) -> None:
    _, file, _, _, _ = made
    network = plain_network(file, tmp_path)
    graph = onnx.load_model_from_string(network.data).graph
    assert not any(tensor.name.startswith(PREFIX) for tensor in graph.initializer)
    assert [value.name for value in onnx.load(str(network.runnable)).graph.output] == ["logits"]
    assert not any(layer.name.startswith(PREFIX) for layer in network.workload.layers)
