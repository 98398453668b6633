"""Reading model.onnx: what a file says of itself, and one clear error for everything else."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deploytool import __version__
from deploytool.errors import ArtefactError, DeploytoolError
from deploytool.runtime import artefact as artefact_module
from deploytool.runtime.artefact import read_artefact, read_onnx
from deploytool.runtime.session import Session

DIGITS = tuple("0123456789")


def edited(file: Path, out: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(str(file))
    edit(model)
    out.write_bytes(model.SerializeToString())
    return out


def with_property(file: Path, out: Path, key: str, value: str | None) -> Path:
    """The file with one metadata property replaced, or removed where `value` is None."""

    def edit(model: onnx.ModelProto) -> None:
        properties = {p.key: p.value for p in model.metadata_props}
        properties.pop(f"deploytool.{key}", None)
        if value is not None:
            properties[f"deploytool.{key}"] = value
        helper.set_model_props(model, properties)

    return edited(file, out, edit)


def renamed_value(old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        for value in [*model.graph.input, *model.graph.output]:
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]

    return edit


def make_external(tensor: TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location


def test_metadata_of_a_conditional_file(trained_file: Path) -> None:
    artefact = read_artefact(trained_file)
    metadata = artefact.metadata
    assert artefact.path == trained_file
    assert (metadata.name, metadata.method, metadata.classes) == ("digits-float", "float", DIGITS)
    assert (metadata.shape, metadata.mode, metadata.conditional, metadata.lam) == ((1, 8, 8), "L", True, None)
    assert (metadata.lambda_threshold, metadata.conditioning) == (0.0, "switch")
    stored = {p.key: p.value for p in onnx.load(str(trained_file)).metadata_props}
    assert stored["deploytool.version"] == __version__ and metadata.recipe == stored["deploytool.recipe"] != ""


def test_metadata_of_a_plain_file(plain_file: Path) -> None:
    metadata = read_artefact(str(plain_file)).metadata
    assert (metadata.method, metadata.conditional, metadata.lam) == ("standard", False, None)
    assert (metadata.lambda_threshold, metadata.conditioning, metadata.noise) == (None, None, None)


def test_metadata_of_a_colour_file(resnet34_file: Path) -> None:
    metadata = read_artefact(resnet34_file).metadata
    assert (metadata.shape, metadata.mode, len(metadata.classes)) == ((3, 32, 32), "RGB", 10)


def test_absent_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"absent\.onnx cannot be read: No such file"):
        read_artefact(tmp_path / "absent.onnx")
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_artefact(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"model", b"\x89PNG\r\n\x1a\n", json.dumps({"a": 1}).encode(), np.random.default_rng(0).bytes(4096)],
    ids=["empty", "zero", "word", "png", "json", "random"],
)
def test_a_file_that_is_no_onnx(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    file.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"x\.onnx is no ONNX model, or it is damaged"):
        read_artefact(file)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999])
def test_a_truncated_file_is_refused(share: float, trained_file: Path, tmp_path: Path) -> None:
    data = trained_file.read_bytes()
    file = tmp_path / "cut.onnx"
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArtefactError, match=r"cut\.onnx"):
        read_artefact(file)


def test_a_file_that_lost_its_last_bytes_is_refused(trained_file: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(trained_file.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match="damaged"):
        read_artefact(tmp_path / "cut.onnx")


def test_a_file_too_large_for_protobuf_is_not_read(
    trained_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert artefact_module.MAX_FILE_BYTES == 2**31 - 1
    monkeypatch.setattr(artefact_module, "MAX_FILE_BYTES", trained_file.stat().st_size - 1)
    with pytest.raises(ArtefactError, match="at most"):
        read_artefact(trained_file)


def test_onnx_without_our_metadata_is_read_but_no_artefact(trained_file: Path, tmp_path: Path) -> None:
    file = edited(trained_file, tmp_path / "bare.onnx", lambda model: model.ClearField("metadata_props"))
    assert len(read_onnx(file).graph.node) == len(onnx.load(str(trained_file)).graph.node)
    with pytest.raises(ArtefactError, match=r"not exported by deploytool.*use deploytool export"):
        read_artefact(file)


def test_external_data_is_refused(trained_file: Path, tmp_path: Path) -> None:
    model = onnx.load(str(trained_file))
    file = tmp_path / "split.onnx"
    onnx.save(model, str(file), save_as_external_data=True, location="weights.bin", size_threshold=64)
    assert (tmp_path / "weights.bin").exists()
    with pytest.raises(ArtefactError, match="keeps weights in other files"):
        read_onnx(file)


@pytest.mark.parametrize("place", ["attribute", "subgraph", "sparse"])
def test_external_data_hidden_in_nodes_is_refused(
    place: str, trained_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise partial evaluation would read a file that the model names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(np.ones(3, np.float32).tobytes())

    def edit(model: onnx.ModelProto) -> None:
        tensor = numpy_helper.from_array(np.zeros(3, np.float32), "hidden")
        make_external(tensor, "secret.bin")
        node = helper.make_node("Constant", [], ["hidden"], value=tensor)
        if place == "subgraph":
            body = helper.make_graph([node], "body", [], [helper.make_tensor_value_info("hidden", 1, [3])])
            condition = numpy_helper.from_array(np.array(True), "condition")
            model.graph.initializer.append(condition)
            node = helper.make_node("If", ["condition"], ["chosen"], then_branch=body, else_branch=body)
        if place == "sparse":
            sparse = model.graph.sparse_initializer.add()
            sparse.values.CopyFrom(tensor)
        else:
            model.graph.node.insert(0, node)

    with pytest.raises(ArtefactError, match=r"other files \(hidden\)"):
        read_onnx(edited(trained_file, tmp_path / "x.onnx", edit))


def add_control_flow(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [helper.make_tensor_value_info("ready", TensorProto.BOOL, [])])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "ready"))
    model.graph.node.append(helper.make_node("If", ["ready"], ["chosen"], then_branch=body, else_branch=body))


def add_endless_loop(model: onnx.ModelProto) -> None:
    again = helper.make_tensor_value_info("again", TensorProto.BOOL, [])
    turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
    body = helper.make_graph([helper.make_node("Identity", ["go"], ["again"])], "body", [turn], [again])
    body.input.append(helper.make_tensor_value_info("go", TensorProto.BOOL, []))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "ready"))
    model.graph.node.insert(0, helper.make_node("Loop", ["", "ready"], [], body=body))


def add_scan(model: onnx.ModelProto) -> None:
    pixel = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("in", "out")]
    body = helper.make_graph([helper.make_node("Identity", ["in"], ["out"])], "body", pixel[:1], pixel[1:])
    model.graph.node.append(helper.make_node("Scan", ["logits"], ["scanned"], body=body, num_scan_inputs=1))


def add_graphs_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("bodies", [helper.make_graph([], "body", [], [])]))


def add_function(model: onnx.ModelProto) -> None:
    node, opset = helper.make_node("Relu", ["x"], ["y"]), helper.make_opsetid("", 18)
    model.functions.append(helper.make_function("own", "Rectify", ["x"], ["y"], [node], [opset]))


def add_sparse_tensor(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    places = numpy_helper.from_array(np.zeros(1, np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [10**9]))


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (add_control_flow, "If"),
        (add_endless_loop, "Loop"),
        (add_scan, "Scan"),
        (add_graphs_attribute, "[A-Z][a-z]+"),
        (add_function, "a function"),
        (add_sparse_tensor, "a sparse tensor"),
    ],
)
def test_what_deploytool_never_writes_is_refused(
    edit: Callable[[onnx.ModelProto], None], what: str, trained_file: Path, tmp_path: Path
) -> None:
    """Loops may never end, and nothing here walks subgraphs; any other ONNX file is still read by `read_onnx`."""
    file = edited(trained_file, tmp_path / "x.onnx", edit)
    assert read_onnx(file).graph.node
    with pytest.raises(ArtefactError, match=rf"x\.onnx contains ({what}), which deploytool never writes") as caught:
        read_artefact(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", "[0, 1"),
        ("classes", '{"0": 1}'),
        ("classes", "3"),
        ("classes", "[" * 100_000),
        ("preprocessing", "not json"),
        ("preprocessing", "{}"),
        ("preprocessing", "[]"),
        ("preprocessing", None),
        ("lambda_threshold", "half"),
        ("lambda_threshold", "nan"),
        ("lambda_threshold", "-0.5"),
        ("lambda", "1.5"),
        ("lambda", "inf"),
    ],
)
def test_damaged_metadata_is_refused(key: str, value: str | None, trained_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="damaged metadata") as caught:
        read_artefact(with_property(trained_file, tmp_path / "x.onnx", key, value))
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("classes", '["only"]'), ("classes", "[]"), ("preprocessing", '{"mode": "RGB"}'), ("preprocessing", '{"mode":1}')],
)
def test_metadata_that_does_not_fit_the_graph_is_refused(
    key: str, value: str, trained_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match="does not fit the graph"):
        read_artefact(with_property(trained_file, tmp_path / "x.onnx", key, value))


@pytest.mark.parametrize("key", ["deploytool.classes", "deploytool.reasoning_threshold", "deploytool.two lines"])
def test_a_property_that_stands_there_twice_is_refused(key: str, trained_file: Path, tmp_path: Path) -> None:
    def double(model: onnx.ModelProto) -> None:
        for value in ("1.0", "0.0"):
            model.metadata_props.add(key=key.replace(" ", "\n"), value=value)

    with pytest.raises(ArtefactError, match=rf"x\.onnx: damaged metadata \({key} stands there twice\)") as caught:
        read_artefact(edited(trained_file, tmp_path / "x.onnx", double))
    assert "\n" not in str(caught.value)


def test_other_tools_may_write_their_properties_twice(trained_file: Path, tmp_path: Path) -> None:
    def double(model: onnx.ModelProto) -> None:
        for value in "ab":
            model.metadata_props.add(key="author", value=value)

    assert read_artefact(edited(trained_file, tmp_path / "x.onnx", double)).metadata.classes == DIGITS


@pytest.mark.parametrize("key", ["version", "classes"])
def test_metadata_without_its_main_keys_is_none(key: str, trained_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="not exported by deploytool"):
        read_artefact(with_property(trained_file, tmp_path / "x.onnx", key, None))


@pytest.mark.parametrize("part", ["deploytool.method", "digits-float"])
def test_metadata_that_is_no_utf8_is_refused(part: str, trained_file: Path, tmp_path: Path) -> None:
    data = trained_file.read_bytes()
    assert data.count(part.encode()) == 1
    file = tmp_path / "x.onnx"
    file.write_bytes(data.replace(part.encode(), b"\xff" + part.encode()[1:]))
    with pytest.raises(ArtefactError, match="UTF-8"):
        read_artefact(file)


@pytest.mark.parametrize(("old", "new"), [("image", "pixels"), ("logits", "scores")])
def test_other_input_or_output_names_are_refused(old: str, new: str, trained_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no input `image` and output `logits`"):
        read_artefact(edited(trained_file, tmp_path / "x.onnx", renamed_value(old, new)))


@pytest.mark.parametrize("shape", [[1, 64], ["N", 1, "H", "W"], ["N", 1, 8, 0], ["N", 1, 8, 2**40], ["N", 1, 8, -8]])
def test_an_image_input_of_another_kind_is_refused(shape: list[int | str], trained_file: Path, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        index = [value.name for value in model.graph.input].index("image")
        model.graph.input[index].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, shape))

    with pytest.raises(ArtefactError, match=r"must be \(N, C, H, W\) with fixed C, H, W"):
        read_artefact(edited(trained_file, tmp_path / "x.onnx", edit))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("name", ["trained_file", "plain_file"])
def test_flipped_bytes_give_an_answer_or_one_of_our_errors(
    name: str, data: st.DataObject, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(name).read_bytes()
    position = st.integers(len(source) - 1500, len(source) - 1) | st.integers(0, 7000)
    damaged = bytearray(source)
    for at, value in data.draw(st.lists(st.tuples(position, st.integers(0, 255)), min_size=1, max_size=3)):
        damaged[at] = value
    file = tmp_path / "flipped.onnx"
    file.write_bytes(damaged)
    try:
        session = Session(file, threads=1, background=False)
        lam = 0.3 if session.metadata.conditional else None
        image = np.zeros((2, *session.metadata.shape), np.float32)
        for logits in (session(image, lam), session.generic(image, lam)):
            assert logits.shape == (2, len(session.metadata.classes))
    except DeploytoolError as error:
        assert "\n" not in str(error)
    except Exception as error:
        pytest.fail(f"{type(error).__name__} escaped: {error}")
