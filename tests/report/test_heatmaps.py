"""The figure of attribution maps: every panel holds its map, the numbers stand under it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from deploytool.explain.stability import MapPair
from deploytool.explain.study import Example
from deploytool.report.heatmaps import heatmap_figure


def example(setting: str, channels: int = 3, count: int = 2) -> Example:
    image = torch.rand(count, channels, 6, 5)
    maps = torch.rand(2, count, 6, 5)
    pair = MapPair(maps[0], maps[1], image, torch.zeros(count).long(), torch.zeros(count).bool())
    classes = ["$a$", "a name that is far too long for a label"][:count]
    sides = ("patch 4x4", "patch 2x2")
    return Example(
        "sliding-patch", "patch 4 to 2", sides, setting, image, pair, torch.tensor([1.234, 56.789])[:count], classes
    )


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_panels_hold_the_maps(channels: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        kept.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    shown = [example("lambda 0", channels), example("lambda 1", channels)]
    heatmap_figure(shown, tmp_path / "maps.png")
    panels = kept[0].axes
    arrays = [[np.asarray(drawn.get_array()) for drawn in panel.images] for panel in panels]
    for each in shown:
        for maps in (each.pair.first, each.pair.second):
            for one in maps.numpy():
                alone = [drawn for drawn in arrays if len(drawn) == 1 and np.array_equal(drawn[0], one)]
                over = [drawn for drawn in arrays if len(drawn) == 2 and np.array_equal(drawn[1], one)]
                assert len(alone) == len(over) == 1
    words = [text.get_text() for panel in panels for text in [*panel.texts, panel.yaxis.label]]
    words += [text.get_text() for text in kept[0].texts]
    assert {"SSD 1.23", "SSD 56.79", "lambda 0", "lambda 1", "class \\$a\\$", "class a name that..."} <= set(words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.png", "maps.svg"]


def test_one_image_at_one_setting_is_enough(tmp_path: Path) -> None:
    heatmap_figure([example("", 1, 1)], tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000
