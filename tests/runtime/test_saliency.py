"""The output `saliency` at the edge: its metadata, its bounds, its pictures."""

import colorsys
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from deploytool.errors import ArtefactError, InputError
from deploytool.explain.explainer import Explainer
from deploytool.export.artefact import export
from deploytool.runtime.artefact import read_artefact
from deploytool.runtime.overlay import SIDE, colours, overlay, overlay_paths
from deploytool.runtime.partial import specialized_model
from deploytool.runtime.predict import BATCH, predict
from deploytool.runtime.saliency import EXPLAINER, ExplainerNote, read_explainer
from deploytool.runtime.session import Session
from deploytool.training.run import Run

Array = np.ndarray[Any, Any]

NOTE = ExplainerNote("maps", "5f0c", "target", "9a" * 32)
BOTH = ("logits", "saliency")


@pytest.fixture(scope="module")
def explained(trained_run: Run, float_explainer: Explainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The FLOAT run exported with its explainer."""
    file = tmp_path_factory.mktemp("explained") / "model.onnx"
    export(trained_run, file, explainer=float_explainer)
    return file


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two pictures of one name in two folders, and a third one."""
    files = [tmp_path / name for name in ("a/digit.png", "b/digit.png", "b/other.jpg")]
    for seed, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(file)
    return files


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    (folder / "x.onnx").write_bytes(model.SerializeToString())
    return folder / "x.onnx"


def image(count: int = 2) -> Array:
    return np.random.default_rng(0).random((count, 1, 8, 8), np.float32)


def test_the_note_reads_back() -> None:
    assert read_explainer(NOTE.to_properties()) == NOTE
    assert read_explainer({}) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x" * 5000, "5000 characters"),
        ("[]", "must have the keys"),
        ('{"name": "maps"}', "must have the keys"),
        (json.dumps({**NOTE.__dict__, "recipe": 3}), "no text"),
        ("{", "Expecting"),
    ],
)
def test_a_damaged_note_is_refused_in_one_line(text: str, said: str, explained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        read_explainer({EXPLAINER: text})
    model = onnx.load(str(explained))
    next(p for p in model.metadata_props if p.key == EXPLAINER).value = text
    with pytest.raises(ArtefactError, match="damaged metadata") as caught:
        read_artefact(saved(model, tmp_path))
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400


def test_maps_without_a_note_and_a_note_without_maps_are_refused(
    explained: Path, plain_file: Path, tmp_path: Path
) -> None:
    bare, noted = onnx.load(str(explained)), onnx.load(str(plain_file))
    bare.metadata_props.remove(next(p for p in bare.metadata_props if p.key == EXPLAINER))
    noted.metadata_props.add(key=EXPLAINER, value=NOTE.to_properties()[EXPLAINER])
    for model in (bare, noted):
        with pytest.raises(ArtefactError, match=r"metadata does not fit the graph \(saliency maps\)"):
            read_artefact(saved(model, tmp_path))


@pytest.mark.parametrize("dims", [["N", 8, 8], ["N", 2, 8, 8], ["N", 1, 8, 9], ["N", 1, "H", "W"], [], None])
def test_a_map_of_another_shape_is_refused(dims: Any, explained: Path, tmp_path: Path) -> None:
    model = onnx.load(str(explained))
    model.graph.output[1].CopyFrom(onnx.helper.make_tensor_value_info("saliency", onnx.TensorProto.FLOAT, dims))
    with pytest.raises(ArtefactError, match=r"metadata does not fit the graph \(saliency maps\)"):
        read_artefact(saved(model, tmp_path))


@pytest.mark.parametrize(("op", "said"), [("Identity", r"no values in \[0, 1\]"), ("Sqrt", "NaN or infinite")])
def test_maps_out_of_bounds_are_refused(op: str, said: str, explained: Path, tmp_path: Path) -> None:
    model = onnx.load(str(explained))
    next(node for node in model.graph.node if "saliency" in node.output).op_type = op
    session = Session(saved(model, tmp_path), threads=1, outputs=BOTH, background=False)
    with pytest.raises(ArtefactError, match=f"its saliency are {said}"):
        session.run(image(), 0.3)
    assert Session(tmp_path / "x.onnx", threads=1, background=False).run(image(), 0.3)["logits"].shape == (2, 10)


def test_images_of_many_lambdas_get_each_its_map(explained: Path) -> None:
    session = Session(explained, threads=1, outputs=BOTH, background=False)
    together = session.run(image(3), [0.0, 1.0, 0.5])["saliency"]
    assert together.shape == (3, 1, 8, 8)
    for index, lam in enumerate((0.0, 1.0, 0.5)):
        alone = session.run(image(3)[index : index + 1], lam)["saliency"]
        np.testing.assert_allclose(together[index : index + 1], alone, atol=1e-6)


def test_logits_alone_of_a_specialised_file_say_nothing_of_maps(explained: Path, tmp_path: Path) -> None:
    source = read_artefact(explained)
    assert read_artefact(saved(specialized_model(source, 0.5), tmp_path)).metadata.explainer is not None
    assert read_artefact(saved(specialized_model(source, 0.5, outputs="logits"), tmp_path)).metadata.explainer is None


def test_predict_writes_an_overlay_for_each_picture(explained: Path, pictures: list[Path], tmp_path: Path) -> None:
    predictions = predict(explained, pictures, lam=0.3, threads=1, saliency=tmp_path / "maps")
    names = [Path(prediction["saliency"]).name for prediction in predictions]
    assert names == ["digit-saliency.png", "digit-saliency-2.png", "other-saliency.png"]
    assert sorted(file.name for file in (tmp_path / "maps").iterdir()) == sorted(names)
    session = Session(explained, threads=1, outputs=BOTH, background=False)
    for prediction, source in zip(predictions[:2], pictures, strict=False):
        pixels = np.asarray(Image.open(source), np.float32)[None] / 255
        maps = session.run(pixels[None], 0.3)["saliency"]
        with Image.open(prediction["saliency"]) as picture:
            assert picture.format == "PNG" and picture.size == (SIDE, SIDE)
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(overlay(pixels, maps[0, 0])))
    again = predict(explained, pictures, lam=0.3, threads=1)
    assert [{k: v for k, v in each.items() if k != "saliency"} for each in predictions] == again


def test_a_file_without_maps_says_so(trained_file: Path, pictures: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no output `saliency`; export it with --explainer, or leave --saliency"):
        predict(trained_file, pictures, lam=0.3, saliency=tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_no_overlay_takes_the_place_of_another_or_of_a_picture(tmp_path: Path) -> None:
    images = [tmp_path / name for name in ("a/x.png", "b/x.png", "B/X.jpg", "x-saliency.png", "x-saliency-2.png")]
    paths = overlay_paths(tmp_path, images)
    lowered = [str(path).casefold() for path in (*paths, *images[3:])]
    assert len(set(lowered)) == len(paths) + 2


@pytest.mark.parametrize(("size", "want"), [((8, 8), (256, 256)), ((32, 32), (256, 256)), ((30, 20), (180, 270))])
def test_small_images_are_enlarged_by_whole_numbers(size: tuple[int, int], want: tuple[int, int]) -> None:
    """PIL's size is (width, height)."""
    assert overlay(np.zeros((3, *size), np.float32), np.zeros(size, np.float32)).size == want
    assert overlay(np.zeros((3, 300, 257), np.float32), np.zeros((300, 257), np.float32)).size == (257, 300)


def test_the_colours_are_those_of_cividis() -> None:
    """matplotlib's table of the same map is the reference."""
    colormaps = pytest.importorskip("matplotlib").colormaps
    values = np.linspace(0, 1, 256)
    assert np.abs(colours(values) - 255 * colormaps["cividis"](values)[:, :3]).max() <= 18
    np.testing.assert_allclose(colours(np.array([0.0, 1.0])), [[0, 34, 78], [254, 232, 56]])
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in colours(values)]
    assert (np.diff(lightness) > 0).all()


def test_what_is_seen_shows_more_than_what_is_not() -> None:
    """The left half is evidence; the picture beneath shows through on both sides."""
    pixels, saliency = np.zeros((3, 16, 16), np.float32), np.zeros((16, 16), np.float32)
    saliency[:, :8] = 1
    pixels[:, 4:12, 4:12] = 1
    picture = np.asarray(overlay(pixels, saliency), np.float32) / 255
    left, right = picture[128, 10], picture[128, -10]
    assert 0.1 < colorsys.rgb_to_hsv(*left)[0] < 0.2  # yellow
    assert 0.55 < colorsys.rgb_to_hsv(*right)[0] < 0.7  # blue
    assert picture[128, 80].sum() > left.sum() + 0.3 and picture[128, -80].sum() > right.sum() + 0.3


def test_a_bad_last_picture_leaves_no_overlay(explained: Path, pictures: list[Path], tmp_path: Path) -> None:
    """All of a first batch are good, so that their maps are known when the picture is found to be bad."""
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    with pytest.raises(InputError, match=r"bad\.png"):
        predict(explained, [*[pictures[0]] * BATCH, bad], lam=0.3, threads=1, saliency=tmp_path / "maps")
    assert list((tmp_path / "maps").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_before_any_picture_is_read(explained: Path, tmp_path: Path) -> None:
    (tmp_path / "maps").write_text("a file")
    for folder in (tmp_path / "maps", tmp_path / "maps" / "below"):
        with pytest.raises(InputError, match="cannot write to folder .*maps.*; choose another folder with --saliency"):
            predict(explained, ["absent.png"], lam=0.3, threads=1, saliency=folder)
    assert [file.name for file in tmp_path.iterdir()] == ["maps"]
