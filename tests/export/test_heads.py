"""Files with reasoning labels: two outputs, their meaning in the metadata, whatever else the file can do."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import hwmodels
from deploytool.data.datasets import dataset_info
from deploytool.errors import ArtefactError, InputError, ParityError
from deploytool.export import artefact, quantize
from deploytool.export.artefact import export_setting, export_untrained, random_images, write_artefact
from deploytool.export.quantize import quantizer_of_untrained
from deploytool.labels.files import read_labels
from deploytool.labels.label_map import LabelMap
from deploytool.models.conditional import ConditionalModel
from deploytool.models.factory import build_model, recipe_labels
from deploytool.models.setting import Setting
from deploytool.recipe import Recipe, load_recipe
from deploytool.runtime import Session, session, specialize
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.partial import specialized_graph, specialized_model
from deploytool.runtime.quantized import measured_tensors, with_pooled_means
from deploytool.runtime.reasoning import LABELS, THRESHOLD, VECTORS
from hwmodels.scaling import scaled

Array = np.ndarray[Any, Any]

ROOT = Path(__file__).parents[2]
DIGITS = dataset_info(load_recipe(ROOT / "recipes" / "digits-float.yaml").data)
MAP = ROOT / "recipes" / "labels" / "digits.yaml"
SMALL = ["model.arch=resnet8", f"reasoning.labels={MAP}", "reasoning.threshold=0.7"]
LAMBDAS = (0.0, 0.3, 1.0)

# What files can be, and how they are written.
KINDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "plain": (["method={name: standard}"], {}),
    "switch": (["method.conditioning=switch"], {}),
    "interpolate": (["method.conditioning=interpolate"], {}),
    "oat": (["method={name: oat}"], {}),
    "slim": (["model.widths=[0.5, 1.0]"], {}),
    "sparse": (["sparsity={density: 0.2}"], {"compress": True}),
    "channels": (["sparsity={density: 0.4, kind: channel}"], {}),
    "plain int8": (["method={name: standard}"], {"int8": True}),
    "float int8": (["model.widths=[0.5, 1.0]"], {"int8": True}),
    "early": (["method={name: standard}", "reasoning.layer=layer2"], {}),
    "early channels int8": (["reasoning.layer=layer2", "sparsity={density: 0.4, kind: channel}"], {"int8": True}),
}


def digits_recipe(*changes: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / "digits-float.yaml", [*SMALL, *changes])


def trained_like(recipe: Recipe) -> ConditionalModel:
    """A model whose batch norms are fitted to images, the conditions apart, and whose second head is sure of itself."""
    model = build_model(recipe, DIGITS).train()
    generator = torch.Generator().manual_seed(0)
    norms = [norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            if not norm.weight.is_meta:
                norm.weight.uniform_(0.5, 1.5, generator=generator)
        for width, lam in itertools.product(model.widths, (0.0, 1.0)):
            model(torch.from_numpy(pictures(64)), Setting(lam, width=width))
        for norm in norms:
            norm.momentum = 0.1  # which the exported operator names
        model.backbone.get_parameter("reasoning.weight").mul_(10)
    return model.eval()


def write(kind: str, file: Path) -> ConditionalModel:
    changes, options = KINDS[kind]
    recipe, int8 = digits_recipe(*changes), "int8" in options
    model, setting = trained_like(recipe), export_setting(recipe, None, None)
    narrow = model.widths[:-1]
    quantizer = quantizer_of_untrained(model, recipe, DIGITS, setting, narrow, 16) if int8 else None
    options = {name: value for name, value in options.items() if name != "int8"}
    labels, images = recipe_labels(recipe, DIGITS), random_images(DIGITS)
    write_artefact(
        model, recipe, DIGITS, images, file, setting, narrow=narrow, quantizer=quantizer, labels=labels, **options
    )
    return model


@pytest.fixture(scope="module", params=KINDS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ConditionalModel, Path]:
    """A kind of file, the model that it holds, and the file."""
    file = tmp_path_factory.mktemp("heads") / "model.onnx"
    return request.param, write(request.param, file), file


@pytest.fixture(scope="module")
def label_map() -> LabelMap:
    return read_labels(MAP).for_classes(DIGITS.classes)


def pictures(count: int = 5) -> Array:
    return np.random.default_rng(3).random((count, *DIGITS.shape), np.float32)


def knobs_of(file: Path) -> list[dict[str, float]]:
    metadata = read_artefact(file).metadata
    lambdas = LAMBDAS if metadata.conditional else (None,)
    widths = metadata.widths if len(metadata.widths) > 1 else (None,)
    return [
        {name: value for name, value in (("lam", lam), ("width", width)) if value is not None}
        for lam in lambdas
        for width in widths
    ]


def stock(file: Path | onnx.ModelProto, image: Array, **knobs: float) -> dict[str, Array]:
    """Every output by stock onnxruntime, default options."""
    source = str(file) if isinstance(file, Path) else file.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    feed = {name.replace("lam", "lambda"): np.array(value, np.float32) for name, value in knobs.items()}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": image, **feed}), strict=True))


def test_the_file_answers_as_the_model_with_two_heads(made, label_map: LabelMap) -> None:
    kind, model, file = made
    setting = export_setting(digits_recipe(*KINDS[kind][0]), None, None)
    image, count = pictures(), len(label_map.labels)
    found = []
    for knobs in knobs_of(file):
        answers = stock(file, image, **knobs)
        assert list(answers) == ["logits", "reasoning"]
        with torch.no_grad():
            at = replace(setting, lam=knobs.get("lam", 0.0), width=knobs.get("width", 1.0))
            whole = model(torch.from_numpy(image), at, reasoning=True).numpy()
        assert answers["logits"].shape == (5, 10) and answers["reasoning"].shape == (5, count)
        want = {"logits": whole[:, :-count], "reasoning": 1 / (1 + np.exp(-whole[:, -count:].astype(np.float64)))}
        for name, values in answers.items():
            if "int8" in kind:
                assert np.abs(values - want[name]).mean() < 0.1 * np.ptp(want[name])
            else:
                np.testing.assert_allclose(values, want[name], atol=1e-3)
        found.append(answers["reasoning"])
    assert np.ptp(found[0], axis=0).max() > 0.05  # it depends on the image
    assert len(found) == 1 or np.abs(found[0] - found[-1]).max() > 0.01  # and on the knobs


def test_the_metadata_say_what_the_reasons_mean(made, label_map: LabelMap) -> None:
    _, _, file = made
    reasoning = read_artefact(file).metadata.reasoning
    assert reasoning is not None and reasoning.threshold == 0.7
    assert (reasoning.classes, reasoning.labels) == (DIGITS.classes, label_map.labels)
    assert np.array_equal(reasoning.vectors, label_map.vectors().astype(bool))


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("shared_from", [0, 1 << 40])
def test_a_session_judges(made, label_map: LabelMap, background: bool, shared_from: int, monkeypatch) -> None:
    """As the paper's formula does with what stock onnxruntime says of the same network."""
    kind, _, file = made
    monkeypatch.setattr(session, "SHARED_FROM_BYTES", shared_from)
    opened = Session(file, threads=1, outputs=("logits", "reasoning"), background=background)
    image, vectors = pictures(), label_map.vectors()
    for knobs in knobs_of(file):
        answers = opened.run(image, **knobs)
        if "int8" not in kind:
            for name, values in stock(file, image, **knobs).items():
                np.testing.assert_allclose(answers[name], values, atol=1e-3)
        verdicts = opened.judge(image, **knobs, threshold=0.5)
        if background:
            continue  # a specialised network may have answered one call and not the other
        for verdict, logits, probabilities in zip(verdicts, answers["logits"], answers["reasoning"], strict=True):
            own = vectors[logits.argmax()]
            share = np.mean((probabilities > 0.5) == own)
            assert verdict.predicted == DIGITS.classes[logits.argmax()]
            assert verdict.agreement == pytest.approx(share) and verdict.accepted == (share >= 0.5)
        shares = [verdict.agreement for verdict in verdicts]
        for threshold in (None, 0.0, shares[0], 1.0):
            accepted = [verdict.accepted for verdict in opened.judge(image, **knobs, threshold=threshold)]
            assert accepted == [share >= (0.7 if threshold is None else threshold) for share in shares]


def test_logits_alone_compute_nothing_of_the_head(made) -> None:
    _, _, file = made
    opened = Session(file, threads=1, background=False)
    tensors = set(opened._artefact.graph.constants)
    assert not {name for name in tensors if name.startswith("reasoning")}
    assert "Sigmoid" not in {node.op_type for node in opened._artefact.graph.nodes}
    knobs = knobs_of(file)[-1]
    both = Session(file, threads=1, outputs=("logits", "reasoning"), background=False)
    np.testing.assert_allclose(opened(pictures(), **knobs), both(pictures(), **knobs), atol=1e-5)
    with pytest.raises(InputError, match="computes logits; name logits and reasoning among its outputs"):
        opened.judge(pictures(), **knobs)


PLAIN = ("plain", "plain int8", "early")


@pytest.mark.parametrize("made", PLAIN, indirect=True)
def test_a_plain_file_is_not_specialised(made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="plain model already"):
        specialize(made[2], None, tmp_path / "x.onnx")


@pytest.mark.parametrize("made", [kind for kind in KINDS if kind not in PLAIN], indirect=True)
def test_specialising_keeps_both_outputs(made, tmp_path: Path) -> None:
    kind, _, file = made
    for knobs in knobs_of(file):
        result = specialize(file, knobs.get("lam"), tmp_path / "x.onnx", width=knobs.get("width"))
        assert "int8" in kind or result["max_abs_error"] <= 1e-3
        opened = Session(tmp_path / "x.onnx", threads=1, outputs=("logits", "reasoning"))
        want = Session(file, threads=1, outputs=("logits", "reasoning"), background=False)
        for threshold in (None, 0.9):
            assert opened.judge(pictures(), threshold=threshold) == want.judge(pictures(), threshold=threshold, **knobs)
        answers = stock(tmp_path / "x.onnx", pictures())
        for name, values in want.run(pictures(), **knobs).items():
            np.testing.assert_allclose(answers[name], values, atol=1e-3)


@pytest.mark.parametrize("made", [kind for kind in KINDS if "int8" in kind], indirect=True)
def test_int8_keeps_probabilities_in_float32(made) -> None:
    _, _, file = made
    source = read_artefact(file)
    knobs = knobs_of(file)[-1]
    graph = source.graph
    if not source.metadata.fixed:
        graph = specialized_graph(source, knobs.get("lam"), None, knobs.get("width", 1.0))
    producer = {name: node for node in graph.nodes for name in node.output}
    sigmoid = producer["reasoning"]
    assert sigmoid.op_type == "Sigmoid" and producer[sigmoid.input[0]].op_type == "Gemm"
    gemms = [node for node in graph.nodes if node.op_type == "Gemm"]
    assert len(gemms) == 2 and all(producer[gemm.input[1]].op_type == "DequantizeLinear" for gemm in gemms)


@pytest.mark.parametrize("made", [kind for kind in KINDS if kind != "plain int8"], indirect=True)
def test_ranges_of_both_outputs_hold_those_of_logits(made) -> None:
    _, _, file = made
    source = read_artefact(file)
    knobs = knobs_of(file)[-1]
    tensors = [
        measured_tensors(
            with_pooled_means(
                specialized_graph(source, knobs.get("lam"), None, knobs.get("width", 1.0), outputs, "float32")
            )
        )
        for outputs in (("logits",), None)
    ]
    assert set(tensors[0]) <= set(tensors[1])


def test_logits_alone_of_a_specialised_file_say_nothing_of_reasons(tmp_path: Path) -> None:
    write("interpolate", tmp_path / "m.onnx")
    source = read_artefact(tmp_path / "m.onnx")
    model = specialized_model(source, 0.5, outputs="logits")
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    assert read_artefact(tmp_path / "x.onnx").metadata.reasoning is None
    with pytest.raises(InputError, match="has no reasoning labels"):
        Session(tmp_path / "x.onnx").judge(pictures())


def test_hwmodels_prices_the_head_as_one_more_linear_layer(made, label_map: LabelMap) -> None:
    kind, model, file = made
    priced = hwmodels.cost(file).workload
    layers = {layer.name: layer for layer in priced.layers}
    head, features = layers["reasoning"], model.backbone.get_parameter("reasoning.weight").shape[1]
    assert (head.kind, head.out_channels, head.positions) == ("linear", len(label_map.labels), 1)
    assert head.in_channels_per_group == features or "channels" in kind  # that kind loses some
    bare = build_model(digits_recipe(*KINDS[kind][0]).model_copy(update={"reasoning": None}), DIGITS).backbone
    assert set(layers) == {*(name for name, module in bare.named_modules() if _has_weight(module)), "reasoning"}
    assert not priced.not_counted
    halved = {layer.name: layer for layer in scaled(priced, 0.5).layers}
    assert halved["reasoning"].out_channels == head.out_channels  # labels are outputs, as classes are
    assert halved["reasoning"].in_channels_per_group == -(-head.in_channels_per_group // 2)


def _has_weight(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


def test_channels_go_though_two_heads_end_in_one_answer(tmp_path: Path) -> None:
    """As many as without the second head where that reads what the classifier reads: masks of both readers count."""
    write("channels", tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    held = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    full = {name: tuple(p.shape) for name, p in trained_like(digits_recipe()).backbone.named_parameters()}
    smaller = [name for name in held if name in full and held[name] != full[name] and len(held[name]) == 4]
    assert smaller, "no convolution lost a channel"
    assert held["reasoning.weight"][0] == full["reasoning.weight"][0] and held["linear.weight"][0] == 10
    assert held["reasoning.weight"][1] == held["linear.weight"][1]


def test_a_head_that_answers_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = artefact.build_graph

    def broken(*arguments: Any) -> onnx.ModelProto:
        model = original(*arguments)
        (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "reasoning.bias")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
        return model

    monkeypatch.setattr(artefact, "build_graph", broken)
    with pytest.raises(ParityError, match=r"its answers differ from the model's by 2\.\d\de-02"):  # at most 0.1 / 4
        export_untrained(digits_recipe(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_an_int8_head_that_answers_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = quantize.rounded_weight

    def reversed_head(weight: Array, *rest: Any) -> Array:
        steps = original(weight, *rest)
        return steps[::-1] if weight.ndim == 2 and len(weight) == len(read_labels(MAP).labels) else steps

    monkeypatch.setattr(quantize, "rounded_weight", reversed_head)
    with pytest.raises(ParityError, match="int8 moves reasoning by"):
        write("float int8", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def plain_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plain-heads") / "model.onnx"
    write("plain", file)
    return file


def damaged(file: Path, folder: Path, key: str, value: str | None) -> Path:
    """A copy of a file with one property replaced, or taken away."""
    model = onnx.load(str(file))
    properties = {p.key: p.value for p in model.metadata_props}
    properties = {k: v for k, v in properties.items() if k != key} | ({} if value is None else {key: value})
    onnx.helper.set_model_props(model, properties)
    (folder / "x.onnx").write_bytes(model.SerializeToString())
    return folder / "x.onnx"


@pytest.mark.parametrize("key", [LABELS, VECTORS, THRESHOLD])
@pytest.mark.parametrize("value", [None, "", "[]", "NaN", '["a"]', "[" * 100_000, '{"a": 1}', "\ud7ff", "1e400"])
def test_hostile_metadata_are_refused_in_one_line(plain_heads: Path, tmp_path: Path, key: str, value) -> None:
    with pytest.raises(ArtefactError, match=r"x\.onnx: (damaged metadata|metadata does not fit)") as caught:
        read_artefact(damaged(plain_heads, tmp_path, key, value))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_an_output_without_metadata_and_metadata_without_an_output_are_refused(
    plain_heads: Path, plain_file: Path, tmp_path: Path
) -> None:
    model, bare = onnx.load(str(plain_heads)), onnx.load(str(plain_file))
    reasons = {p.key: p.value for p in model.metadata_props if ".reasoning_" in p.key}
    assert len(reasons) == 3
    for proto, change in ((model, {}), (bare, reasons)):
        own = {p.key: p.value for p in proto.metadata_props if ".reasoning_" not in p.key}
        onnx.helper.set_model_props(proto, own | change)
        (tmp_path / "x.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(ArtefactError, match=r"metadata does not fit the graph \(reasoning labels\)"):
            read_artefact(tmp_path / "x.onnx")


def test_an_output_of_another_size_or_without_shape_is_refused(plain_heads: Path, tmp_path: Path) -> None:
    for dims in (["N", 3], ["N"], ["N", "R"], ["N", 3, 3], None):
        model = onnx.load(str(plain_heads))
        output = next(value for value in model.graph.output if value.name == "reasoning")
        output.CopyFrom(onnx.helper.make_tensor_value_info("reasoning", onnx.TensorProto.FLOAT, dims))
        (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ArtefactError, match=r"metadata does not fit the graph \(reasoning labels\)"):
            read_artefact(tmp_path / "x.onnx")


def test_answers_that_are_no_probabilities_are_refused(plain_heads: Path, tmp_path: Path) -> None:
    model = onnx.load(str(plain_heads))
    (sigmoid,) = (node for node in model.graph.node if node.op_type == "Sigmoid")
    sigmoid.op_type = "Identity"
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match="reasoning are no probabilities"):
        Session(tmp_path / "x.onnx", threads=1, outputs=("logits", "reasoning")).judge(pictures())


@pytest.mark.parametrize("logit", [-1e4, -20.0, 18.0, 1e4])
def test_reasons_that_are_certain_are_probabilities(plain_heads: Path, tmp_path: Path, logit: float) -> None:
    """onnxruntime's sigmoid rounds to 1.0000001."""
    model = onnx.load(str(plain_heads))
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "reasoning.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(tuple(bias.dims), logit, np.float32), bias.name))
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    opened = Session(tmp_path / "x.onnx", threads=1, outputs=("logits", "reasoning"))
    reasoning = opened.run(pictures(64))["reasoning"]
    assert reasoning.min() >= 0 and reasoning.max() <= 1 and reasoning.dtype == np.float32
    assert all(bool(verdict.says) == (logit > 0) for verdict in opened.judge(pictures()))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "0.5"])
def test_a_threshold_out_of_range_is_refused(plain_heads: Path, threshold: Any) -> None:
    opened = Session(plain_heads, threads=1, outputs=("logits", "reasoning"))
    with pytest.raises(InputError, match=r"t_rsn .* in \[0, 1\]"):
        opened.judge(pictures(), threshold=threshold)


def test_a_file_without_reasons_does_not_judge(plain_file: Path) -> None:
    with pytest.raises(InputError, match="has no reasoning labels"):
        Session(plain_file, threads=1).judge(pictures())


def test_threads_judge_at_once(tmp_path: Path) -> None:
    write("interpolate", tmp_path / "m.onnx")
    opened = Session(tmp_path / "m.onnx", threads=1, outputs=("logits", "reasoning"), background=False)
    image, wanted = pictures(), {}
    for lam in LAMBDAS:
        wanted[lam] = opened.judge(image, lam)
    with ThreadPoolExecutor(4) as pool:
        jobs = [(lam, pool.submit(opened.judge, image, lam)) for lam in LAMBDAS * 8]
        assert all(job.result() == wanted[lam] for lam, job in jobs)
