"""Tables 3 and 4, the curves and the contact sheet: what stands where."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from deploytool.explain.comparison import Sheet
from deploytool.report.saliency import contact_sheet, curves_figure, render, write_comparison


def row(method: str, **changes: Any) -> dict[str, Any]:
    return {
        "method": method, "insertion": 0.7, "insertion_se": 0.01, "insertion_difference": -0.05,
        "insertion_difference_se": 0.02, "deletion": 0.2, "deletion_se": None, "deletion_difference": 0.03,
        "deletion_difference_se": None, "mean_intensity": 0.25, "constant_maps": 0.0, "fps": 12.3456,
        "times_of_inference": 3.21, "n": 7,
    } | changes  # fmt: skip


def document(**changes: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("insertion_difference", "deletion_difference"))
    curve = {"share": [0.0, 0.5, 1.0], "insertion": [0.1, 0.8, 0.9], "deletion": [0.9, 0.3, 0.1], "n": 7}
    return {
        "rows": [row("surrogate", **nothing), row("rise", n=3, fps=12345.6)],
        "inference_fps": 40.0,
        "speedup_over_rise": 814.4,
        "time_over_grad_cam": None,
        "deployed": None,
        "student": {"target_accuracy": 0.9, "student_accuracy": 0.8, "agreement": 0.85, "explained_agreement": 0.7}
        | {"mean_intensity": 0.2, "n": 100},
        "explainer": "x", "target": "t", "data": "digits", "lambda": 0.5, "seed": 0, "masks": 40, "samples": 20,
        "patch": [4, 2], "device": "cpu", "processor": "p", "threads": 1, "torch": "2", "captum": "0",
        "notes": ["grad-cam is left out"],
        "curves": [{"method": name, **curve} for name in ("surrogate", "rise", "random", "center")],
        **changes,
    }  # fmt: skip


def sheet(channels: int = 3, count: int = 3) -> Sheet:
    names = ("surrogate", "rise", "center")
    drawn = torch.rand(len(names), count, 6, 5)
    areas = torch.linspace(0.1, 0.9, count).double()
    return Sheet(
        torch.rand(count, channels, 6, 5),
        ["$a$", "a name that is far too long", "c"][:count],
        dict(zip(names, drawn, strict=True)),
        dict.fromkeys(names, areas),
    )


def cells(text: str, method: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith(method)]


def test_tables() -> None:
    text = render(document())
    assert cells(text, "normal") == [["normal", "inference", "40", "1", "1.000", "-"]]
    assert cells(text, "surrogate") == [
        ["surrogate", "12.3", "3.21", "0.250", "0.0%"],
        ["surrogate", "0.7000", "+-", "0.0100", "0.2000", "-", "-", "7"],
    ]
    assert cells(text, "rise") == [
        ["rise", "12346", "3.21", "0.250", "0.0%"],
        ["rise", "0.7000", "+-", "0.0100", "0.2000", "-0.0500", "+-", "0.0200", "+0.0300", "3"],
    ]
    assert "at lambda 0.5" in text and "note: grad-cam is left out" in text
    assert "The surrogate: 814 times as fast as rise." in text and "grad-cam's time" not in text
    assert "target 0.9000, student 0.8000" in text
    bare = render(document(**{"lambda": None, "speedup_over_rise": None, "time_over_grad_cam": 0.7}))
    fast = render(document(deployed={"saliency_fps": 1500.0, "inference_fps": 900.0, "ratio": 0.6}))
    assert "onnxruntime: 1500 maps and 900 answers of the target per second; a map takes 0.6 times as long" in fast
    assert "onnxruntime" not in bare and "lambda" not in bare and "The surrogate: 0.7 of grad-cam's time." in bare


def test_files(tmp_path: Path) -> None:
    files = write_comparison(document(), sheet(), tmp_path / "out")
    assert json.loads(Path(files["json"]).read_text()) == document()
    assert "| surrogate" in Path(files["md"]).read_text()
    head, *lines = Path(files["csv"]).read_text().splitlines()
    assert head.startswith("method,insertion,insertion_se") and len(lines) == 2
    for key in ("curves", "contact_sheet"):
        with Image.open(files[key]) as picture:
            assert min(picture.size) > 400
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "comparison.csv", "comparison.json", "comparison.md", "contact-sheet.png", "curves.png", "curves.svg",
    ]  # fmt: skip


def test_curves_have_their_colours_whoever_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: kept.append(figure) or path.touch())
    curve = document()["curves"][0]
    for names in (("surrogate", "rise", "sliding-patch"), ("sliding-patch", "random")):
        curves_figure([curve | {"method": name, "n": 3 if name == "rise" else 7} for name in names], tmp_path / "c.png")
    first, second = ({line.get_label(): line for line in figure.axes[0].lines} for figure in (kept[0], kept[-1]))
    assert list(first) == ["surrogate", "rise (3 images)", "sliding-patch"]
    assert first["sliding-patch"].get_color() == second["sliding-patch"].get_color()
    np.testing.assert_allclose(first["surrogate"].get_xydata(), [[0, 0.1], [0.5, 0.8], [1, 0.9]])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_holds_every_map_over_its_image(
    channels: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: kept.append(figure) or path.touch())
    made = sheet(channels)
    contact_sheet(made, tmp_path / "sheet.png")
    panels = np.array(kept[0].axes[:12]).reshape(3, 4)
    assert [panel.get_title() for panel in panels[0]] == ["image", "surrogate", "rise", "center"]
    assert [panel.get_ylabel() for panel in panels[:, 0]] == ["\\$a\\$", "a name that...", "c"]
    for index in range(3):
        for panel, (method, maps) in zip(panels[index, 1:], made.maps.items(), strict=True):
            below, above = (np.asarray(drawn.get_array()) for drawn in panel.images)
            expected = made.image[index].permute(1, 2, 0) if channels == 3 else made.image[index, 0]
            np.testing.assert_array_equal(below, expected.numpy())
            np.testing.assert_array_equal(above, maps[index].numpy())
            assert panel.get_xlabel() == f"{float(made.insertion[method][index]):.3f}"


def test_one_image_and_one_method_are_enough(tmp_path: Path) -> None:
    one = sheet(count=1)
    contact_sheet(Sheet(one.image, one.classes, {"rise": one.maps["rise"]}, one.insertion), tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        assert min(picture.size) > 200
