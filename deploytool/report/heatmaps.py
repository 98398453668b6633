"""Heat maps beside their images: the figure of `deploytool stability`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploytool.report.plots import save_figure

if TYPE_CHECKING:
    from torch import Tensor

    from deploytool.explain.study import Example

COLOURS = "cividis"  # read alike with any colour vision, and in gray
OVERLAY = 0.6  # opacity of a map over its image
LABEL = 14  # characters of a class's name that fit beside an image


def heatmap_figure(examples: "Sequence[Example]", path: Path) -> None:
    """Draw images, both maps of each, their overlays and the SSD under them; write PNG and SVG.

    A row is an image, with the class that is explained. To its right, each setting has a block: the first map and its
    overlay, the second map and its overlay on what it explains, the SSD under them, as in paper 2's figures 4 and 5.

    Args:
        examples: one per setting, of one method and the same images.
        path: file to write; its suffix is replaced by .png and .svg.
    """
    from matplotlib.figure import Figure

    rows, blocks = len(examples[0].image), len(examples)
    figure = Figure(figsize=(1.9 + 5.0 * blocks, 1.5 + 1.42 * rows))
    grid = figure.add_gridspec(1, 1 + blocks, width_ratios=[1.0] + [4.3] * blocks, wspace=0.12)
    top, bottom = 1 - 0.95 / figure.get_figheight(), 0.85 / figure.get_figheight()
    grid.update(left=0.03, right=0.985, top=top, bottom=bottom)
    images: Any = grid[0].subgridspec(rows, 1, hspace=0.3).subplots(squeeze=False)
    images[0, 0].set_title("image", fontsize=9)
    for row in range(rows):
        picture(images[row, 0], examples[0].image[row])
    shade: Any = None
    for index, example in enumerate(examples):
        axes: Any = grid[1 + index].subgridspec(rows, 4, hspace=0.3, wspace=0.06).subplots(squeeze=False)
        for row in range(rows):
            shade = _block(axes[row], example, row)
        for column, side in enumerate(example.sides):
            axes[0, 2 * column].set_title(f"map,\n{side}", fontsize=8)
            axes[0, 2 * column + 1].set_title("over the\nimage", fontsize=8)
        if example.setting:
            middle = (axes[0, 0].get_position().x0 + axes[0, 3].get_position().x1) / 2
            figure.text(middle, 1 - 0.42 / figure.get_figheight(), example.setting, ha="center", fontsize=10)
    figure.suptitle(
        f"Attribution by {examples[0].method}: {examples[0].change}", fontsize=11, y=1 - 0.08 / figure.get_figheight()
    )
    strip = figure.add_axes((0.3, 0.42 / figure.get_figheight(), 0.4, 0.1 / figure.get_figheight()))
    bar = figure.colorbar(shade, cax=strip, orientation="horizontal")
    bar.set_label("attribution to the predicted class, each map scaled to [0, 1]", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    save_figure(figure, path)


def _block(panels: Any, example: "Example", row: int) -> Any:
    """Draw the maps of one image at one setting; return the heat map, for its scale."""
    seen = example.image[row], example.pair.image[row]
    for side, maps in enumerate((example.pair.first[row], example.pair.second[row])):
        plain, over = panels[2 * side], panels[2 * side + 1]
        picture(over, seen[side])
        heat(over, maps, OVERLAY)
        shade = heat(plain, maps)
    panels[0].set_ylabel("class " + short_name(example.classes[row]), fontsize=8, labelpad=2)
    between = {"transform": panels[1].transAxes, "ha": "center", "va": "top", "fontsize": 9}
    panels[1].text(1.03, -0.05, f"SSD {float(example.ssd[row]):.2f}", **between)
    return shade


def short_name(name: str) -> str:
    """A class's name as matplotlib writes it beside an image, cut where it is too long."""
    short = name if len(name) <= LABEL else name[: LABEL - 3] + "..."
    return short.replace("$", "\\$")


def picture(panel: Any, image: "Tensor") -> None:
    """Draw an image (C, H, W) in [0, 1]: in colour where it has three channels, else the mean of them in gray."""
    pixels = image.permute(1, 2, 0).numpy() if len(image) == 3 else image.mean(0).numpy()
    panel.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    bare(panel)


def heat(panel: Any, maps: "Tensor", alpha: float = 1.0) -> Any:
    """Draw a map (H, W) in [0, 1]."""
    drawn = panel.imshow(np.asarray(maps), cmap=COLOURS, vmin=0, vmax=1, alpha=alpha, interpolation="nearest")
    bare(panel)
    return drawn


def bare(panel: Any) -> None:
    """Leave out an axis's ticks."""
    panel.set_xticks([])
    panel.set_yticks([])
