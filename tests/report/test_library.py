"""Libraries in tables and figures: what stands where, and what is left white."""

import csv
import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from deploytool.report.library import (
    build_table,
    render_agreement,
    render_confusion,
    render_detection,
    write_agreement,
    write_confusion,
    write_detection,
)
from deploytool.report.library_figures import agreement_figure, confusion_figure, detection_figure

COMMON = {"library": "lib", "target": "run", "lambda": None, "active": 3}
NAMES = ["cat", "dog", "$x$"]
SETS = ("Set1", "Set2")


def foretold(layer: str = "CN1", theta: float = 0.5, size: int = 7, **changes: Any) -> dict[str, Any]:
    shares = {"top1_agreement": 0.25, "top3_agreement": 0.75, "top1_accuracy": 0.5}
    return {"layer": layer, "theta": theta, "size": size, "features": 320, **shares, **changes}


def agreement(**changes: Any) -> dict[str, Any]:
    rows = [foretold(theta=0.5), foretold(theta=0.9, size=700, top1_agreement=1.0), foretold("FC", 0.9, 12)]
    return {"layers": rows, "network_accuracy": 0.875, "n": 40, **COMMON, **changes}


def mixed(layer: str, theta: float, first: float = 0.5) -> dict[str, Any]:
    matrix = [[1.0, first, 0.0], [0.02, 1.0, 1e-9], [None, None, None]]
    return {"layer": layer, "theta": theta, "size": 9, "right": 31, "matrix": matrix}


def confusion(**changes: Any) -> dict[str, Any]:
    rows = [mixed("CN1", 0.5), mixed("CN1", 0.6), mixed("CN1", 0.7, 0.25), mixed("FC", 0.7, 0.001)]
    most = [{"layer": "CN1", "class": "cat", "confused_with": "dog", "index": 0.25}]
    return {"layers": rows, "most": most, "classes": NAMES, "n": 40, **COMMON, **changes}


def found(attack: str, eps: float | None, name: str, area: float | None = 0.75) -> dict[str, Any]:
    own = name == "Set1"
    return {
        "attack": attack, "eps": eps, "set": name, "auroc_cpl": area, "auroc_max_softmax": 0.625, "auroc_knn": 0.5625,
        "auroc_combined": 0.875 if own else None, "fooled": None if eps is None else 0.375,
        "detected": 0.125 if own else None, "cpl_mean": 0.5, "n": 8,
    }  # fmt: skip


def detection(
    attacks: tuple[str, ...] = ("pgd",), foreign: tuple[str, ...] = ("foreign:noise",), **changes: Any
) -> dict[str, Any]:
    kinds = [(attack, eps) for attack in attacks for eps in (0.01, 0.1)] + [(name, None) for name in foreign]
    rows = [found(*kind, name, 0.75 if name == "Set1" else 0.25) for kind in kinds for name in SETS]
    values = [0.1, 0.5, 0.9, 1.0]
    cpl = {"clean": values} | {name if eps is None else f"{name} eps {eps:g}": values for name, eps in kinds}
    verdict = {"threshold": 0.3, "false_alarm_rate": 0.05, "false_alarms": 0.0625}
    verdict |= {"false_alarms_se": 0.0605, "false_alarm_images": 16}
    fitted = [{"attack": attack, "eps": eps} for attack in ("pgd-40", *attacks[:1]) for eps in (0.01, 0.1)]
    clean = [{"set": name, "cpl_mean": 0.625} for name in SETS]
    made = {"device": "cpu", "processor": "p", "threads": 1, "torch": "2", "seed": 0, "images": 8}
    document = {"rows": rows, "clean": clean, "verdict": verdict, "cpl": cpl, "sets": list(SETS), **COMMON, **made}
    return document | {"combined_fitted_on": fitted if attacks else []} | changes


def cells(text: str, start: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith(start)]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Where figures go instead of being rendered."""
    figures: list[Figure] = []

    def keep(figure: Figure, path: Path, **options: Any) -> None:
        figures.append(figure)
        Path(path).write_bytes(b"x")

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_what_was_built() -> None:
    row = {"layer": "CN1", "lambda": None, "theta": 0.65, "size": 12, "features": 320, "seconds": 1.26}
    rows = [row | {"rounding_max": 2.5e-7, "rounding_mean": 0.0}, row | {"lambda": 1.0, "rounding_max": 0.0}]
    verdicts = [{"lambda": None, "threshold": 0.9, "false_alarm_rate": 0.05, "images": 250}]
    document = {"layers": rows, "calibration": verdicts, "library": "lib", "images": 99, "seconds": 3.0, "size_mb": 0.5}
    text = build_table(document)
    assert cells(text, "CN1") == [
        ["CN1", "-", "0.65", "12", "320", "2.5e-07", "1.3"],
        ["CN1", "1", "0.65", "12", "320", "0.0e+00", "1.3"],
    ]
    assert "verdict: doubtful below CPL 0.9000 (false alarm rate 0.05, 250 clean images)" in text
    assert "99 training images in 3.0 s; 0.500 MB in lib" in text
    assert "verdict at lambda 0.5: " in build_table(document | {"calibration": [verdicts[0] | {"lambda": 0.5}]})
    assert "no verdict" in build_table(document | {"calibration": []})


def test_tables_of_agreement_and_confusion() -> None:
    text = render_agreement(agreement(**{"lambda": 0.5}))
    assert cells(text, "CN1")[1] == ["CN1", "0.9", "700", "320", "1.000", "0.750", "0.500"]
    assert "of run at lambda 0.5\n40 test images, 3 active nodes; the network itself is right on 0.875" in text
    text = render_confusion(confusion())
    assert cells(text, "CN1") == [
        ["CN1", "0.5", "9", "31", "0.5", "cat", "as", "dog"],
        ["CN1", "0.6", "9", "31", "0.5", "cat", "as", "dog"],
        ["CN1", "0.7", "9", "31", "0.25", "cat", "as", "dog"],
        ["CN1", "cat", "dog", "0.25"],
    ]
    none = mixed("FC", 0.5) | {"matrix": [[None] * 3] * 3}
    text = render_confusion(confusion(layers=[none], most=[]))
    assert cells(text, "FC") == [["FC", "0.5", "9", "31", "-", "-"]] and "highest theta" not in text


def test_tables_of_detection() -> None:
    text = render_detection(detection())
    assert cells(text, "pgd") == [
        ["pgd", "0.01", "0.750", "0.625", "0.562", "0.875", "0.375", "0.125", "0.500", "8"],
        ["pgd", "0.1", "0.750", "0.625", "0.562", "0.875", "0.375", "0.125", "0.500", "8"],
        ["pgd", "0.01", "0.750", "0.250"],
        ["pgd", "0.1", "0.750", "0.250"],
    ]
    assert cells(text, "foreign:noise")[0][:3] == ["foreign:noise", "-", "0.750"]
    assert "below CPL 0.3000; 0.062 +- 0.060 of 16 clean images are, 0.05 were asked for" in text
    assert "images 0.625" in text
    flat = " ".join(text.split())
    assert "combined: fitted on other images, attacked by pgd-40 and pgd at each eps; its AUROC is for attacks" in flat
    assert "combined: " not in render_detection(detection(attacks=()))
    one = detection(sets=["Set1"], verdict=None)
    one["rows"] = [row for row in one["rows"] if row["set"] == "Set1"]
    text = render_detection(one)
    assert "by set" not in text and "verdict: " not in text


def test_tables_say_which_library_answered() -> None:
    own: dict[str, Any] = {"lambda": 0.4, "library_lambda": 0.0}
    assert "of run at lambda 0.4 (answered by the libraries at lambda 0)\n" in render_detection(detection(**own))
    assert "of run at lambda 0.4\n" in render_detection(detection(**own | {"library_lambda": 0.4}))
    assert "of run at lambda 0.4\n" in render_detection(detection(**own | {"library_lambda": None}))


def test_tables_fit_a_terminal() -> None:
    texts = [render_agreement(agreement()), render_confusion(confusion()), render_detection(detection())]
    assert max(len(line) for text in texts for line in text.splitlines()) <= 120


def test_files(tmp_path: Path) -> None:
    files = {
        "predict": write_agreement(agreement(), tmp_path),
        "confusion": write_confusion(confusion(), tmp_path),
        "detection": write_detection(detection(), tmp_path),
    }
    kinds = ("json", "md", "csv", "png", "svg")
    assert files == {name: {kind: str(tmp_path / f"{name}.{kind}") for kind in kinds} for name in files}
    assert len(list(tmp_path.iterdir())) == 15
    for name, document in {"predict": agreement(), "confusion": confusion(), "detection": detection()}.items():
        assert json.loads((tmp_path / f"{name}.json").read_text()) == document
        assert "|---" in (tmp_path / f"{name}.md").read_text().replace(":", "-")
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 400
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")
    rows = list(csv.DictReader((tmp_path / "confusion.csv").read_text().splitlines()))
    assert len(rows) == 4 * 6 and (rows[0]["class"], rows[0]["confused_with"]) == ("cat", "dog")
    assert float(rows[0]["index"]) == 0.5 and rows[4]["index"] == ""


def test_the_figure_of_agreement_holds_the_rows(kept: list[Figure], tmp_path: Path) -> None:
    agreement_figure(agreement()["layers"], tmp_path / "a.png")
    sizes, best, three = kept[0].axes
    assert sizes.get_yscale() == "log" and [line.get_label() for line in best.lines] == ["CN1", "FC"]
    np.testing.assert_allclose(sizes.lines[0].get_xydata(), [[0.5, 7], [0.9, 700]])
    np.testing.assert_allclose(best.lines[0].get_xydata(), [[0.5, 0.25], [0.9, 1.0]])
    np.testing.assert_allclose(three.lines[1].get_xydata(), [[0.9, 0.75]])
    assert all("theta" in panel.get_xlabel() and panel.get_ylabel() for panel in kept[0].axes)
    agreement_figure([foretold(size=7), foretold("FC", size=8)], tmp_path / "a.png")
    assert kept[-1].axes[0].get_yscale() == "linear" and kept[-1].axes[0].get_ylim()[0] == 0


def test_lines_of_many_layers_are_told_apart(kept: list[Figure], tmp_path: Path) -> None:
    agreement_figure([foretold(f"layer{number}") for number in range(20)], tmp_path / "a.png")
    styles = {(line.get_color(), line.get_marker()) for line in kept[0].axes[0].lines}
    assert len(styles) == 20


def test_matrices_of_the_lowest_and_the_highest_threshold(kept: list[Figure], tmp_path: Path) -> None:
    confusion_figure(confusion()["layers"], NAMES, tmp_path / "c.png")
    panels = [panel for panel in kept[0].axes if panel.get_visible() and panel.images]
    titles = [panel.get_title() for panel in panels]
    assert titles == ["CN1, theta 0.5", "FC, theta 0.7", "CN1, theta 0.7"]
    drawn = np.ma.filled(panels[0].images[0].get_array().astype(float), math.nan)
    np.testing.assert_allclose(drawn, [[math.nan, 0.5, 1e-4], [0.02, math.nan, 1e-4], [math.nan] * 3])
    assert {image.get_clim() for panel in panels for image in panel.images} == {(1e-4, 1.0)}
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["cat", "dog", "\\$x\\$"]
    assert panels[0].get_ylabel() == "d1, correct class" and panels[0].get_xlabel() == "d2, confused with"


def test_matrices_of_thresholds_that_were_asked_for(kept: list[Figure], tmp_path: Path) -> None:
    confusion_figure(confusion()["layers"], NAMES, tmp_path / "c.png", (0.6, 0.7))
    titles = {panel.get_title() for panel in kept[0].axes if panel.get_visible() and panel.images}
    assert titles == {"CN1, theta 0.6", "CN1, theta 0.7", "FC, theta 0.7"}
    confusion_figure(confusion()["layers"], NAMES, tmp_path / "c.png", (0.5,))
    assert [panel.get_title() for panel in kept[-1].axes if panel.images] == ["CN1, theta 0.5"]


def test_matrices_without_any_right_answer_or_of_many_classes(tmp_path: Path) -> None:
    none = mixed("FC", 0.5) | {"matrix": [[None] * 3] * 3}
    confusion_figure([none], NAMES, tmp_path / "none.png")
    many = mixed("FC", 0.5) | {"matrix": np.full((200, 200), 0.01).tolist()}
    confusion_figure([many], [f"class {number}" for number in range(200)], tmp_path / "many.png")
    assert len(list(tmp_path.iterdir())) == 4


def test_the_figure_of_detection_holds_the_rows(kept: list[Figure], tmp_path: Path) -> None:
    detection_figure(detection(("pgd", "adaptive-20")), tmp_path / "d.png")
    first, pgd, adaptive, foreign = kept[0].axes
    assert [panel.get_title()[:3] for panel in kept[0].axes] == ["(A)", "(B)", "(C)", "(D)"]
    labels = {text.get_text() for text in first.get_legend().get_texts()}
    assert labels == {"clean", "pgd eps 0.1", "adaptive-20 eps 0.1", "foreign:noise", "verdict's threshold, 0.300"}
    assert [line.get_xdata()[0] for line in first.lines] == [0.3]
    lines = {line.get_label(): line for line in pgd.lines}
    np.testing.assert_allclose(lines["CPL, Set1"].get_xydata(), [[0.01, 0.75], [0.1, 0.75]])
    np.testing.assert_allclose(lines["CPL, Set2"].get_ydata(), [0.25, 0.25])
    assert "combination, fitted to these attacks" in lines
    np.testing.assert_allclose(lines["nearest training features (kNN)"].get_ydata(), [0.5625, 0.5625])
    assert adaptive.get_title() == "(C) adaptive-20" and "units of [0, 1]" in adaptive.get_xlabel()
    assert [label.get_text() for label in foreign.get_xticklabels()] == ["noise"]
    places = [line.get_xdata()[0] for line in foreign.lines if line.get_linestyle() == "None"]
    assert len(places) == len(set(places)) == 5  # side by side
    assert len({panel.get_ylim() for panel in kept[0].axes[1:]}) == 1


@pytest.mark.parametrize(
    ("attacks", "foreign"), [(("pgd",), ()), ((), ("foreign:noise", "foreign:svhn")), (("a", "b", "c", "d"), ())]
)
def test_figures_of_attacks_or_foreign_images_alone(
    attacks: tuple[str, ...], foreign: tuple[str, ...], tmp_path: Path
) -> None:
    document = detection(attacks, foreign, verdict=None)
    for row in document["rows"]:
        row["auroc_combined"] = None
    detection_figure(document, tmp_path / "d.png")
    with Image.open(tmp_path / "d.png") as picture:
        assert min(picture.size) > 400
