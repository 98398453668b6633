"""Files that say whether a network's layers agree: eqs. 1, 3 and 5 in a graph, against numpy in float64."""

import itertools
import json
import runpy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

import hwmodels
from deploytool.data.datasets import dataset_info, load_dataset
from deploytool.errors import InputError, ParityError, RunError
from deploytool.explain.explainer import Explainer
from deploytool.export import artefact
from deploytool.export import library as export_library
from deploytool.export.artefact import export, export_setting, random_images, write_artefact
from deploytool.export.library import PREFIX, libraries_of, make_libraries
from deploytool.export.quantize import quantizer_of_untrained
from deploytool.library.folder import Library
from deploytool.library.networks import LayerLibrary
from deploytool.library.taps import watch_module
from deploytool.measuring import plain_network
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import build_model
from deploytool.models.setting import Setting
from deploytool.recipe import load_recipe
from deploytool.runtime import Session, specialize
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.library import choose
from deploytool.runtime.network import FedNetwork
from deploytool.training.run import Checkpoint, Run

Array = np.ndarray[Any, Any]

ROOT = Path(__file__).parents[2]
BOTH = ("logits", "cpl")
MADE = runpy.run_path(str(Path(__file__).with_name("made_libraries.py")))
library_of: Callable[..., Library] = MADE["library_of"]
make_library: Callable[..., Library] = MADE["make_library"]

# What libraries can be: the run, options of the library, those of the export.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "switch": ("trained_run", {"thetas": [0.97, 0.9]}, {"conditioning": "switch"}),
    "interpolate": (
        "trained_run",
        {"lambdas": (0.0, 0.3, 1.0), "storage": "float16", "sample": 100},
        {"conditioning": "interpolate"},
    ),
    "shared": (
        "trained_run",
        {"shared": True, "storage": "int8", "modulation": "batch-norm"},
        {"conditioning": "switch", "compress": True},
    ),
    "modulated": (
        "trained_run",
        {"layers": ("conv1", "bn1", "layer3+logits"), "sample": 40, "modulation": "batch-norm", "storage": "int8"},
        {"conditioning": "switch"},
    ),
    "plain": ("plain_run", {"layers": ("normalize:input", "layer3", "linear", "logits"), "active": 8}, {}),
    "reasoned": ("reasoned_run", {"layers": ("layer1", "linear", "linear:input")}, {}),
    "plain int8": ("plain_run", {"layers": ("conv1", "layer2", "logits")}, {"quantize": "int8"}),
    "switch int8": ("trained_run", {"storage": "float16"}, {"conditioning": "switch", "quantize": "int8"}),
}


def pictures(count: int = 5) -> Array:
    data = load_dataset(load_recipe(ROOT / "recipes" / "digits-float.yaml").data)
    return data.test.batch(slice(0, count))[0].numpy()  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """Kind, file, run, libraries, what export said."""
    run, options, exporting = KINDS[request.param]
    trained: Run = request.getfixturevalue(run)
    library = library_of(trained, **options)
    file = tmp_path_factory.mktemp("agreeing") / "model.onnx"
    return request.param, file, trained, library, export(trained, file, library=library, **exporting)


def stock(file: Path, image: Array, lam: float | None, threshold: float | None = None) -> Array:
    """CPL by stock onnxruntime, default options."""
    model = onnx.load(str(file))
    for tensor in model.graph.initializer:
        if tensor.name == "lambda_threshold" and threshold is not None:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(threshold, np.float32), tensor.name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"image": image} | ({} if lam is None else {"lambda": np.array(lam, np.float32)})
    return session.run(["cpl"], feed)[0]  # type: ignore[no-any-return]


def oracle(layers: Sequence[LayerLibrary], found: dict[str, Tensor], active: int) -> Array:
    """Eqs. 1, 3 and 5 as they are printed, in float64; a pattern or prediction of 0 agrees with nothing."""
    inputs = []
    for layer in layers:
        pattern = found[layer.layer].flatten(1).double().numpy()
        reading = layer.reading
        if reading.index is not None:
            pattern = pattern[:, reading.index.numpy()]
        if reading.mean is not None and reading.std is not None:
            pattern = (pattern - reading.mean.double().numpy()) / reading.std.double().numpy()
        stored = layer.codes.double().numpy() * layer.scales.double().numpy()[:, None]
        lengths = np.linalg.norm(pattern, axis=1)[:, None] * np.linalg.norm(stored, axis=1)
        similarity = np.divide(pattern @ stored.T, lengths, out=np.zeros(lengths.shape), where=lengths > 0)
        rows = []
        for h in similarity:
            nearest = np.argsort(-h, kind="stable")[:active]
            rows.append(sum(h[a] * layer.connections[a].double().numpy() for a in nearest))
        inputs.append(np.array(rows))
    pairs = []
    for one, other in itertools.combinations(inputs, 2):
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        pairs.append(np.divide((one * other).sum(1), lengths, out=np.zeros(len(one)), where=lengths > 0))
    return np.mean(pairs, axis=0)  # type: ignore[no-any-return]


def expected(run: Run, library: Library, setting: Setting, image: Array) -> Array:
    """CPL of the model itself; which libraries answer is said here in words of paper 5: BN_A above the threshold."""
    place = 0
    if len(library.conditions) > 1:
        lambdas = [lam for lam in library.lambdas if lam is not None]
        place = choose(lambdas, setting.lam, setting.lambda_threshold if setting.conditioning == "switch" else None)
    layers = library.at(library.lambdas[place])
    with torch.no_grad():
        network = run.model.plain_network(setting)
        _, found = watch_module(network, [layer.layer for layer in layers])(torch.from_numpy(image))
    return oracle(layers, found, library.recipe.active)


def lambdas_of(file: Path) -> tuple[float | None, ...]:
    return (0.0, 0.1, 0.5, 0.6, 1.0) if read_artefact(file).metadata.conditional else (None,)


def test_the_file_says_what_the_equations_say(made) -> None:
    kind, file, run, library, _ = made
    if "int8" in kind:
        pytest.skip("its activity is rounded")
    base = export_setting(run.recipe, KINDS[kind][2].get("conditioning"), None)
    own = any(tensor.name == "lambda_threshold" for tensor in onnx.load(str(file)).graph.initializer)
    spread = []
    for lam, threshold, count in itertools.product(lambdas_of(file), (0.0, 0.5) if own else (None,), (1, 5)):
        setting = replace(base, lam=lam or 0.0, lambda_threshold=threshold or 0.0)
        cpl = stock(file, pictures(count), lam, threshold)
        assert cpl.shape == (count,) and cpl.dtype == np.float32
        np.testing.assert_allclose(cpl, expected(run, library, setting, pictures(count)), atol=1e-4)
        spread.append(np.ptp(cpl))
    assert max(spread) > 1e-3


def test_libraries_follow_lambda_and_its_threshold(made) -> None:
    """Of a lambda between the thresholds 0 and 0.5: the other batch norms, and the other libraries."""
    kind, file, run, library, _ = made
    if kind != "switch":
        pytest.skip("one library, or no threshold")
    image = torch.from_numpy(pictures())
    base = export_setting(run.recipe, "switch", None)
    for threshold, place in ((0.0, 1), (0.5, 0)):
        layers = library.at(library.lambdas[place])
        with torch.no_grad():
            network = run.model.plain_network(replace(base, lam=0.3, lambda_threshold=threshold))
            _, found = watch_module(network, [layer.layer for layer in layers])(image)
        np.testing.assert_allclose(stock(file, pictures(), 0.3, threshold), oracle(layers, found, 3), atol=1e-4)


def test_parity_covers_cpl(made) -> None:
    kind, _, _, _, result = made
    outputs = result["parity"]["outputs"]
    assert set(outputs) == {*BOTH, *(["reasoning"] if kind == "reasoned" else [])}
    assert result["parity"]["max_abs_error"] == max(outputs.values()) <= 1e-4
    json.dumps(result)


def test_the_file_is_sound_and_says_whose_libraries_these_are(made) -> None:
    kind, file, _, library, _ = made
    model = onnx.load(str(file))
    onnx.checker.check_model(model, full_check=True)
    assert [opset.version for opset in model.opset_import] == [18]
    note = read_artefact(file).metadata.library
    assert note is not None and note.recipe == library.recipe.digest() and note.active == library.recipe.active
    assert note.layers == tuple(section.name for section in library.recipe.layers)
    assert [each.threshold for each in note.calibration] == [each.threshold for each in library.calibration]
    kinds = {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16}
    codes = [tensor for tensor in model.graph.initializer if tensor.name.endswith(".codes")]
    assert kind == "shared" or bool(codes) == (library.recipe.storage != "float32")  # `shared` may be stored sparse
    assert all(tensor.data_type in kinds for tensor in codes)
    names = [node.name for node in model.graph.node if node.name]
    assert len(names) == len(set(names))


def test_a_session_without_cpl_holds_nothing_of_the_libraries(made) -> None:
    """What the pruned graph of a session holds, nodes and tensors."""
    _, file, _, _, _ = made
    for outputs, held in ((("logits",), False), (BOTH, True)):
        graph = Session(file, threads=1, outputs=outputs)._artefact.graph
        names = {*graph.constants, *(name for node in graph.nodes for name in node.output)} - {*BOTH}
        assert any(name.startswith(PREFIX) for name in names) == held


def test_an_image_without_any_activity_has_a_finite_cpl(made) -> None:
    _, file, _, _, _ = made
    session = Session(file, threads=1, outputs=BOTH, background=False)
    for value in (0.0, 1.0):
        image = np.full((2, 1, 8, 8), value, np.float32)
        cpl = session.run(image, 0.3 if session.metadata.conditional else None)["cpl"]
        assert np.isfinite(cpl).all() and (np.abs(cpl) <= 1).all()


def test_layers_that_are_silent_agree_with_nothing(plain_run: Run, tmp_path: Path) -> None:
    """The image of zeros is its own pattern of 0 for one layer; the other layers' cosines remain."""
    library = library_of(plain_run, layers=("normalize:input", "layer1", "layer3"))
    black = np.zeros((1, 1, 8, 8), np.float32)
    export(plain_run, tmp_path / "m.onnx", library=library)
    setting = export_setting(plain_run.recipe, None, None)
    want = expected(plain_run, library, setting, black)
    np.testing.assert_allclose(stock(tmp_path / "m.onnx", black, None), want, atol=1e-4)
    with torch.no_grad():
        names = [layer.layer for layer in library.at(None)[1:]]
        _, found = watch_module(plain_run.model.plain_network(setting), names)(torch.from_numpy(black))
    np.testing.assert_allclose(3 * want, oracle(library.at(None)[1:], found, 3), atol=1e-6)


def test_a_specialised_file_keeps_cpl_and_one_library(made, tmp_path: Path) -> None:
    kind, file, _, _, _ = made
    if read_artefact(file).metadata.fixed:
        pytest.skip("a plain file is not specialised")
    for lam in (0.0, 0.4, 1.0):
        result = specialize(file, lam, tmp_path / "x.onnx")
        assert "int8" in kind or result["max_abs_error"] <= 1e-4
        cpl = Session(tmp_path / "x.onnx", threads=1, outputs=BOTH).run(pictures())["cpl"]
        np.testing.assert_allclose(cpl, stock(file, pictures(), lam), atol=0.3 if "int8" in kind else 1e-4)
        model = onnx.load(str(tmp_path / "x.onnx"))
        left = [node for node in model.graph.node if any(name.startswith(PREFIX) for name in node.output)]
        assert left and not {node.op_type for node in left} & {"Cast", "Greater", "Where", "ArgMin"}
        assert not {node.op_type for node in left} & {"QuantizeLinear", "DequantizeLinear"}
        assert not [tensor.name for tensor in model.graph.initializer if tensor.name.endswith((".all", ".rows"))]


def test_a_specialised_file_can_do_without(made, tmp_path: Path) -> None:
    from deploytool.runtime.partial import specialized_model

    _, file, _, _, _ = made
    source = read_artefact(file)
    if source.metadata.fixed:
        pytest.skip("a plain file is not specialised")
    (tmp_path / "x.onnx").write_bytes(specialized_model(source, 0.3, outputs=("logits",)).SerializeToString())
    bare = read_artefact(tmp_path / "x.onnx")
    assert bare.metadata.library is None and not any(name.startswith(PREFIX) for name in bare.graph.constants)


@pytest.mark.parametrize("made", ["interpolate", "switch"], indirect=True)
@pytest.mark.parametrize("shared", [False, True])
def test_a_session_says_what_the_file_says(made, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a session of its own, and with weights fed to a shared one where that is possible."""
    monkeypatch.setattr("deploytool.runtime.session.SHARED_FROM_BYTES", 0 if shared else 1 << 30)
    _, file, _, _, _ = made
    session = Session(file, threads=1, outputs=BOTH, background=False)
    for lam in lambdas_of(file):
        np.testing.assert_allclose(session.run(pictures(), lam)["cpl"], stock(file, pictures(), lam), atol=1e-4)
    assert shared or not any(isinstance(each, FedNetwork) for each in session._cache.networks())


@pytest.mark.parametrize("made", ["plain int8", "switch int8"], indirect=True)
def test_an_int8_file_reads_the_int8_activity_in_float32(made) -> None:
    """The rounded activity is that of the float network but for its steps, and so is what is said of it."""
    _, file, run, library, _ = made
    conditional = read_artefact(file).metadata.conditional
    session = Session(file, threads=1, outputs=BOTH, background=False)
    cpl = session.run(pictures(60), 1.0 if conditional else None)["cpl"]
    setting = replace(export_setting(run.recipe, "switch" if conditional else None, None), lam=float(conditional))
    difference = np.abs(cpl - expected(run, library, setting, pictures(60)))
    assert difference.max() > 0 and np.median(difference) < 0.05


def test_explainers_stand_beside_libraries(
    trained_run: Run, float_explainer: Explainer, float_library: Library, tmp_path: Path
) -> None:
    for number, options in enumerate(({"library": float_library}, {}, {"explainer": float_explainer})):
        every = {"explainer": float_explainer, "library": float_library} if not number else options
        export(trained_run, tmp_path / f"{number}.onnx", conditioning="switch", **every)
    both = Session(tmp_path / "0.onnx", threads=1, outputs=("logits", "saliency", "cpl"), background=False)
    maps = Session(tmp_path / "2.onnx", threads=1, outputs=("logits", "saliency"), background=False)
    np.testing.assert_array_equal(both.run(pictures(), 0.3)["saliency"], maps.run(pictures(), 0.3)["saliency"])
    np.testing.assert_allclose(both.run(pictures(), 0.3)["logits"], maps.run(pictures(), 0.3)["logits"], atol=1e-5)
    priced, bare = hwmodels.cost(tmp_path / "0.onnx"), hwmodels.cost(tmp_path / "1.onnx")
    assert [each.layer for each in priced.layers] == [each.layer for each in bare.layers]
    assert priced.workload.left_out == ("cpl", "saliency")
    for name in ("saliency", "cpl"):
        assert any(f"output {name} " in note and "not counted" in note for note in priced.notes())
    network = plain_network(tmp_path / "0.onnx", tmp_path)
    graph = onnx.load_model_from_string(network.data).graph
    assert not any(tensor.name.startswith(PREFIX) for tensor in graph.initializer)


def untrained(changes: Sequence[str], folder: Path) -> Run:
    recipe = load_recipe(ROOT / "recipes" / "digits-float.yaml", ["model.arch=resnet8", *changes])
    info = dataset_info(recipe.data)
    model = build_model(recipe, info).eval()
    return Run(folder, recipe, model, Checkpoint(0, {}, {}, [], info, 1, "", {}))


@pytest.mark.parametrize("int8", [False, True])
def test_libraries_of_oat_are_chosen_where_its_batch_norms_switch(int8: bool, tmp_path: Path) -> None:
    run = untrained(["method={name: oat}"], tmp_path)
    info, model = run.checkpoint.data, run.model
    setting = export_setting(run.recipe, None, None)
    images = load_dataset(run.recipe.data).train.batch(slice(0, 60))[0]
    library = make_library(model, info, setting, images, layers=("layer1", "layer3", "logits"), thetas=[0.9999, 0.9999])
    quantizer = quantizer_of_untrained(model, run.recipe, info, setting, (), 16) if int8 else None
    options: dict[str, Any] = {"libraries": make_libraries(library, True), "quantizer": quantizer}
    file = tmp_path / "m.onnx"
    result = write_artefact(model, run.recipe, info, random_images(info), file, setting, **options)
    assert result["parity"]["outputs"]["cpl"] <= 1e-4
    note = read_artefact(file).metadata.library
    assert note is not None and note.switch_at == 0
    for lam in () if int8 else (0.0, 0.1, 0.5, 1.0):
        layers = library.at(1.0 if lam else 0.0)
        with torch.no_grad():
            network = model.plain_network(replace(setting, lam=lam))
            _, found = watch_module(network, [layer.layer for layer in layers])(torch.from_numpy(pictures()))
        np.testing.assert_allclose(stock(file, pictures(), lam), oracle(layers, found, 3), atol=1e-4)


def test_rows_that_fill_up_never_win(tmp_path: Path) -> None:
    """A layer whose similarities are all negative, in the smaller of two libraries: rows of 0 would be nearer."""
    run = untrained(["method.conditioning=switch"], tmp_path)
    info, setting = run.checkpoint.data, export_setting(run.recipe, None, None)
    images = load_dataset(run.recipe.data).train.batch(slice(0, 60))[0]
    library = make_library(
        run.model, info, setting, images, layers=("layer1", "layer3"), thetas=[0.99999, 0.99999], active=2
    )
    conditions = [list(layers) for layers in library.conditions]
    first = conditions[0][0]
    names = ("codes", "scales", "source", "member", "rounding", "connections")
    parts = {name: getattr(first, name)[:5] for name in names}
    conditions[0][0] = replace(first, **{**parts, "codes": -parts["codes"]})
    assert len(conditions[1][0].codes) > 5
    library = replace(library, conditions=tuple(map(tuple, conditions)))
    options = {"libraries": make_libraries(library, True)}
    write_artefact(run.model, run.recipe, info, random_images(info), tmp_path / "m.onnx", setting, **options)
    want = expected(run, library, replace(setting, lam=0.0), pictures())
    np.testing.assert_allclose(stock(tmp_path / "m.onnx", pictures(), 0.0), want, atol=1e-4)


def test_masks_cut_no_channels_of_a_file_with_libraries(tmp_path: Path) -> None:
    run = untrained(["sparsity={density: 0.2, kind: channel}"], tmp_path)
    info, setting = run.checkpoint.data, export_setting(run.recipe, None, None)
    images = load_dataset(run.recipe.data).train.batch(slice(0, 40))[0]
    libraries = make_libraries(make_library(run.model, info, setting, images, layers=("layer1", "layer2.0")), False)
    cut, whole = (artefact.build_graph(run.model, info, setting, libraries=each) for each in (None, libraries))
    shapes = [{t.name: tuple(t.dims) for t in graph.graph.initializer} for graph in (cut, whole)]
    weights = {name: tuple(tensor.shape) for name, tensor in run.model.backbone.named_parameters() if tensor.ndim == 4}
    assert {name: shapes[1][name] for name in weights} == weights
    assert any(shapes[0][name] != shape for name, shape in weights.items())
    with pytest.raises(InputError, match=r"--round-channels \(=8\) has no effect with libraries"):
        artefact.build_graph(run.model, info, setting, 8, libraries=libraries)


def changed(library: Library, **fields: Any) -> Library:
    return replace(library, recipe=library.recipe.model_copy(update=fields))


def test_what_does_not_fit_is_refused(
    trained_run: Run, plain_run: Run, float_library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.onnx"
    with pytest.raises(RunError, match="has libraries of another network"):
        export(plain_run, file, library=float_library)
    with pytest.raises(InputError, match=r"active \(=500\) must be in 1\.\.\d+: so many patterns has layer layer1"):
        export(trained_run, file, library=changed(float_library, active=500))
    with pytest.raises(InputError, match=r"has libraries of width 0\.5, the file of 1; add --width 0\.5"):
        export(trained_run, file, library=changed(float_library, width=0.5))
    with pytest.raises(InputError, match="has no threshold for its verdicts; build it anew"):
        export(trained_run, file, library=replace(float_library, calibration=()))
    one = replace(float_library, conditions=tuple(each[:1] for each in float_library.conditions))
    with pytest.raises(InputError, match="has libraries of one layer"):
        export(trained_run, file, library=one)
    run = untrained(["model.widths=[0.5, 1.0]"], tmp_path / "run")
    with pytest.raises(InputError, match=r"has libraries of width 1, the file of 0\.5, 1; add --width 1"):
        libraries_of(run, float_library, Setting(), (0.5,))
    assert not list(tmp_path.iterdir())


def test_one_width_of_several_has_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = untrained(["model.widths=[0.5, 1.0]", "method.conditioning=switch"], tmp_path)
    setting = export_setting(run.recipe, None, None)
    images = load_dataset(run.recipe.data).train.batch(slice(0, 40))[0]
    narrow = replace(setting, width=0.5)
    library = make_library(run.model, run.checkpoint.data, narrow, images, layers=("layer1", "layer3"), width=0.5)
    monkeypatch.setattr(Library, "open_target", lambda self, name: None)
    result = export(run, tmp_path / "m.onnx", width=0.5, library=library)
    assert result["parity"]["outputs"]["cpl"] <= 1e-4
    assert read_artefact(tmp_path / "m.onnx").metadata.widths == (0.5,)


def test_a_file_whose_cpl_is_off_is_not_written(
    trained_run: Run, float_library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(library: Library, switches: bool) -> Any:
        libraries = make_libraries(library, switches)
        return replace(libraries, layers=libraries.layers[::-1])

    def wrong(graph: onnx.ModelProto, libraries: Any) -> None:
        add_cpl(graph, damaged(libraries.library, libraries.switches))  # each lambda has the other's

    add_cpl = export_library.add_cpl
    monkeypatch.setattr(artefact, "add_cpl", wrong)
    with pytest.raises(ParityError, match=r"differ .* \(cpl at lambda"):
        export(trained_run, tmp_path / "m.onnx", conditioning="switch", library=float_library)
    assert not list(tmp_path.iterdir())


def test_parity_takes_the_files_own_choice_of_equal_nodes(plain_run: Run, tmp_path: Path) -> None:
    """Each pattern stored twice, with other connections: any of the two is right."""
    library = library_of(plain_run, layers=("layer1", "layer3"), active=3)
    (layers,) = library.conditions
    doubled = []
    for layer in layers:
        fields = ("codes", "scales", "source", "member", "rounding")
        parts = {name: getattr(layer, name).repeat_interleave(2, 0) for name in fields}
        connections = layer.connections.repeat_interleave(2, 0)
        connections[1::2] = connections[1::2].roll(1, 1)
        doubled.append(replace(layer, **parts, connections=connections))
    result = export(plain_run, tmp_path / "m.onnx", library=replace(library, conditions=(tuple(doubled),)))
    assert result["parity"]["outputs"]["cpl"] <= 1e-4


def test_a_layer_that_is_not_there_is_named(trained_run: Run, float_library: Library, tmp_path: Path) -> None:
    first, *rest = float_library.conditions[0]
    gone = replace(first, section=first.section.model_copy(update={"layer": "layer9"}))
    with pytest.raises(InputError, match=r"layer \(='layer9'\) is unknown; near are"):
        export(trained_run, tmp_path / "m.onnx", library=replace(float_library, conditions=((gone, *rest),)))


def test_models_without_conditions_have_one_library(plain_run: Run, tmp_path: Path) -> None:
    assert isinstance(plain_run.model, ConditionalModel)
    library = library_of(plain_run)
    assert library.lambdas == (None,)
    export(plain_run, tmp_path / "m.onnx", library=library)
    assert not [node for node in onnx.load(str(tmp_path / "m.onnx")).graph.node if node.op_type in ("Where", "ArgMin")]
