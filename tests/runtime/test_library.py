"""The output `cpl` at the edge: its metadata, its bounds, which library answers, and the verdict."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

from deploytool.cli import cli
from deploytool.errors import ArtefactError, InputError
from deploytool.export.artefact import export
from deploytool.library.folder import Library, save_library
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.bench import bench
from deploytool.runtime.library import LIBRARY, Calibration, Doubt, LibraryNote, boundaries, choose, read_library
from deploytool.runtime.partial import specialized_model
from deploytool.runtime.predict import predict
from deploytool.runtime.session import Session
from deploytool.training.run import Run

Array = np.ndarray[Any, Any]

NOTE = LibraryNote(
    "digits", "5f0c", ("layer1", "logits"), 8, (0.0, 1.0), 0.0, (Calibration(0.5, 0.05, 180), Calibration(0.75, 0.1, 9))
)
PLAIN = replace(NOTE, lambdas=(), switch_at=None, calibration=NOTE.calibration[:1])
BOTH = ("logits", "cpl")


@pytest.fixture(scope="module")
def agreeing(trained_run: Run, float_library: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The FLOAT run exported with its libraries; thresholds are 0.5 at lambda 0 and 0.6 at 1."""
    file = tmp_path_factory.mktemp("agreeing") / "model.onnx"
    export(trained_run, file, conditioning="switch", library=float_library)
    return file


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    (folder / "x.onnx").write_bytes(model.SerializeToString())
    return folder / "x.onnx"


def image(count: int = 4) -> Array:
    return np.random.default_rng(0).random((count, 1, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("lambdas", "switch_at", "want"),
    [
        ([0.0, 1.0], None, [0.5]),
        ([0.0, 1.0], 0.0, [0.0]),
        ([0.0, 1.0], 0.5, [0.5]),
        ([0.0, 0.2, 1.0], 0.0, [0.0, 0.6]),
        ([0.0, 0.2, 1.0], 0.5, [0.1, 0.5]),
        ([0.2, 0.5, 1.0], 0.5, [0.35, 0.5]),
        ([0.5], 0.0, []),
    ],
)
def test_boundaries_lie_where_norms_switch_or_half_way(
    lambdas: list[float], switch_at: float | None, want: list[float]
) -> None:
    assert boundaries(lambdas, switch_at) == pytest.approx(want)
    for number, boundary in enumerate(want):  # a boundary belongs to the lower one
        assert choose(lambdas, boundary, switch_at) == number
        assert choose(lambdas, min(1.0, boundary + 1e-3), switch_at) == number + 1
    assert choose(lambdas, None, switch_at) == 0


def test_the_note_reads_back() -> None:
    for note in (NOTE, PLAIN):
        assert read_library(note.to_properties()) == note
    assert read_library({}) is None


def test_a_threshold_follows_lambda_and_where_norms_switch() -> None:
    assert [NOTE.threshold(lam) for lam in (0.0, 1e-6, 1.0)] == [0.5, 0.75, 0.75]
    assert [NOTE.threshold(lam, 0.5) for lam in (0.0, 0.5, 0.6)] == [0.5, 0.5, 0.75]
    mixed = replace(NOTE, switch_at=None)
    assert [mixed.threshold(lam, 0.0) for lam in (0.4, 0.6)] == [0.5, 0.75]
    assert PLAIN.threshold() == 0.5
    assert NOTE.doubtful(np.array([0.49, 0.5, 0.6], np.float32), 0.0).tolist() == [True, False, False]
    assert NOTE.doubtful(np.array([0.49, 0.5, 0.8], np.float32), 1.0).tolist() == [True, True, False]


def test_a_doubt_is_said_in_words() -> None:
    assert Doubt(0.4121, 0.703).words == "doubtful: layers agree at 0.412, below 0.703"
    assert Doubt(0.703, 0.703).words == "consistent: layers agree at 0.703, not below 0.703"
    assert Doubt(0.25, 0.5).to_dict() == {"cpl": 0.25, "cpl_threshold": 0.5, "doubtful": True}


def edited(**changes: Any) -> str:
    return json.dumps({**asdict(NOTE), **changes})


THRESHOLD = asdict(NOTE.calibration[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x" * 70_000, "70000 characters"),
        ("[]", "must have the keys name, recipe, layers"),
        ('{"name": "maps"}', "must have the keys"),
        ("{", "Expecting"),
        (edited(name=""), "name and recipe"),
        (edited(recipe=3), "name and recipe"),
        (edited(name="two\nlines"), "name and recipe"),
        (edited(layers="layer1"), "layers of a library must be a list"),
        (edited(layers=["layer1"]), "2 to 64 layers"),
        (edited(layers=["layer1", 2]), "2 to 64 layers"),
        (edited(layers=["layer1"] * 65), "2 to 64 layers"),
        (edited(active=0), "active"),
        (edited(active=True), "active"),
        (edited(active=2.5), "active"),
        (edited(switch_at=2), "switch_at"),
        (edited(switch_at="0"), "switch_at"),
        (edited(lambdas=[1.0, 0.0]), "must ascend"),
        (edited(lambdas=[0.0, 0.0]), "must ascend"),
        (edited(lambdas=[0.0, 1.5]), "lambdas in"),
        (edited(lambdas=[0.0, float("nan")]), "lambdas in"),
        (edited(lambdas=[0.0, None]), "lambdas in"),
        (edited(lambdas=[each / 20 for each in range(20)]), "at most 16 lambdas"),
        (edited(lambdas=[]), "2 thresholds for 0 lambdas"),
        (edited(calibration=[THRESHOLD]), "1 thresholds for 2 lambdas"),
        (edited(calibration=[THRESHOLD, 0.5]), "calibration must have the keys"),
        (edited(calibration=[THRESHOLD, {**THRESHOLD, "threshold": float("nan")}]), "threshold of a library"),
        (edited(calibration=[THRESHOLD, {**THRESHOLD, "threshold": 10**400}]), "threshold of a library"),
        (edited(calibration=[THRESHOLD, {**THRESHOLD, "false_alarm_rate": -1}]), "false alarm rate"),
        (edited(calibration=[THRESHOLD, {**THRESHOLD, "images": 0}]), "false alarm rate"),
    ],
)
def test_a_damaged_note_is_refused_in_one_line(text: str, said: str, agreeing: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        read_library({LIBRARY: text})
    model = onnx.load(str(agreeing))
    next(p for p in model.metadata_props if p.key == LIBRARY).value = text
    with pytest.raises(ArtefactError, match="damaged metadata") as caught:
        read_artefact(saved(model, tmp_path))
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400


def test_cpl_without_a_note_and_a_note_without_cpl_are_refused(
    agreeing: Path, plain_file: Path, tmp_path: Path
) -> None:
    bare, noted = onnx.load(str(agreeing)), onnx.load(str(plain_file))
    bare.metadata_props.remove(next(p for p in bare.metadata_props if p.key == LIBRARY))
    noted.metadata_props.add(key=LIBRARY, value=PLAIN.to_properties()[LIBRARY])
    for model in (bare, noted):
        with pytest.raises(ArtefactError, match=r"metadata does not fit the graph \(libraries\)"):
            read_artefact(saved(model, tmp_path))
    other = onnx.load(str(agreeing))
    next(p for p in other.metadata_props if p.key == LIBRARY).value = PLAIN.to_properties()[LIBRARY]
    with pytest.raises(ArtefactError, match=r"metadata does not fit the graph \(lambdas of libraries\)"):
        read_artefact(saved(other, tmp_path))


@pytest.mark.parametrize("dims", [["N", 1], [], None])
def test_cpl_of_another_shape_is_refused(dims: Any, agreeing: Path, tmp_path: Path) -> None:
    model = onnx.load(str(agreeing))
    model.graph.output[1].CopyFrom(onnx.helper.make_tensor_value_info("cpl", onnx.TensorProto.FLOAT, dims))
    with pytest.raises(ArtefactError, match=r"metadata does not fit the graph \(libraries\)"):
        read_artefact(saved(model, tmp_path))


@pytest.mark.parametrize(("share", "said"), [(2.0, r"no values in \[-1, 1\]"), (np.inf, "NaN or infinite")])
def test_cpl_out_of_bounds_is_refused(share: float, said: str, agreeing: Path, tmp_path: Path) -> None:
    model = onnx.load(str(agreeing))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "library/share")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(share, np.float32), tensor.name))
    session = Session(saved(model, tmp_path), threads=1, outputs=BOTH, background=False)
    with pytest.raises(ArtefactError, match=f"its cpl are {said}"):
        session.run(image(), 0.3)
    assert Session(tmp_path / "x.onnx", threads=1, background=False).run(image(), 0.3)["logits"].shape == (4, 10)


def test_a_verdict_for_each_image_at_its_own_lambda(agreeing: Path) -> None:
    session = Session(agreeing, threads=1, outputs=BOTH, background=False)
    lambdas = [0.0, 0.3, 0.0, 1.0]
    doubts = session.doubt(image(), lambdas)
    assert [doubt.threshold for doubt in doubts] == [0.5, 0.6, 0.5, 0.6]
    cpl = session.run(image(), lambdas)["cpl"]
    assert [doubt.cpl for doubt in doubts] == cpl.tolist()
    assert [doubt.doubtful for doubt in doubts] == (cpl < [0.5, 0.6, 0.5, 0.6]).tolist()
    moved = Session(agreeing, threads=1, outputs=BOTH, background=False, lambda_threshold=0.5)
    assert [doubt.threshold for doubt in moved.doubt(image(2), [0.3, 0.6])] == [0.5, 0.6]


@pytest.mark.parametrize(("lam", "threshold", "want"), [(0.0, None, 0.5), (0.3, None, 0.6), (0.3, 0.5, 0.5)])
def test_a_specialised_file_knows_its_threshold(
    lam: float, threshold: float | None, want: float, agreeing: Path, tmp_path: Path
) -> None:
    plain = saved(specialized_model(read_artefact(agreeing), lam, threshold), tmp_path)
    session = Session(plain, threads=1, outputs=BOTH)
    assert {doubt.threshold for doubt in session.doubt(image())} == {want}
    whole = Session(agreeing, threads=1, outputs=BOTH, background=False, lambda_threshold=threshold)
    np.testing.assert_allclose(session.run(image())["cpl"], whole.run(image(), lam)["cpl"], atol=1e-5)


def test_a_session_says_what_it_cannot_say(agreeing: Path, trained_file: Path) -> None:
    with pytest.raises(InputError, match="computes logits; name cpl among its outputs"):
        Session(agreeing, threads=1).doubt(image(), 0.3)
    with pytest.raises(InputError, match="has no output `cpl`; export it with --library"):
        Session(trained_file, threads=1).doubt(image(), 0.3)
    with pytest.raises(InputError, match="needs a lambda"):
        Session(agreeing, threads=1, outputs=BOTH).doubt(image())


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def test_predict_says_whether_layers_agree(agreeing: Path, trained_file: Path, picture: Path) -> None:
    (found,) = predict(agreeing, [picture], lam=0.3, threads=1)
    assert found["cpl_threshold"] == 0.6 and found["doubtful"] == (found["cpl"] < 0.6)
    (bare,) = predict(trained_file, [picture], lam=0.3, threads=1)
    assert not {"cpl", "cpl_threshold", "doubtful"} & set(bare)
    result = CliRunner().invoke(cli, ["predict", str(agreeing), str(picture), "--lambda", "0", "--threads", "1"])
    (line,) = [line for line in result.output.splitlines() if "layers agree" in line]
    assert line.startswith(f"{picture}: ") and line.endswith(" 0.500")


def test_bench_computes_cpl(agreeing: Path) -> None:
    assert bench(agreeing, threads=1, seconds=0.05)["outputs"] == ["logits", "cpl"]


def test_export_takes_a_folder_of_libraries(trained_run: Run, float_library: Library, tmp_path: Path) -> None:
    library = replace(float_library, path=tmp_path / "lib")
    library.path.mkdir()
    (library.path / "library.yaml").write_text(library.recipe.to_yaml())
    save_library(library)
    arguments = ["export", str(trained_run.path), "-o", str(tmp_path / "m.onnx"), "--library", str(library.path)]
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["parity"]["outputs"]) == {*BOTH}
    refused = CliRunner().invoke(cli, [*arguments, "--untrained"])
    assert refused.exit_code == 2 and "--library is of a trained run" in refused.output
