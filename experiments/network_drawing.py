"""A drawing of the U-Net."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch

from experiments.config import ModelConfig
from experiments.console import number
from experiments.plots import new_figure, save_figure, shorten

CONVOLUTION, UP, POOLING, SKIP = "#2F6DB5", "#2E8B6F", "#D9822B", "#8A8A8A"


def draw_network(model: ModelConfig, path: str | Path, *, title: str, parameters: int) -> None:
    """Draws the network as a U: one row per level, encoder on the left, decoder on the right."""
    depth = model.num_layers
    step, row = 1.08, 0.98
    left, right = -1.55, 2 * depth * step + 2.4
    top, bottom = 1.25, -depth * row - (0.75 if depth > 5 else 1.85)  # a deep U leaves room for the legend next to it
    figure = new_figure((right - left, top - bottom))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_axis_off()
    title = shorten(title, int(8 * (right - left)))
    axes.text(left + 0.15, top - 0.25, title, fontsize=13, va="center", parse_math=False)
    text = f"{depth + 1} resolutions, {number(parameters)} parameters"
    axes.text(left + 0.15, top - 0.52, text, fontsize=10, va="center", color="#555555")

    def place(level: int, side: str) -> tuple[float, float, float, float]:
        """Centre, half width and half height of a pair of convolutions: wider with filters, lower with resolution."""
        share = level / max(depth, 1)
        x = level * step if side == "encoder" else (2 * depth - level) * step + 0.75
        x += 0.375 if level == depth else 0
        return x, -level * row, 0.26 + 0.17 * share, 0.38 - 0.18 * share

    for level in range(depth + 1):
        for side in ("encoder", "decoder") if level < depth else ("encoder",):
            size = f"{model.image_height >> level}x{model.image_width >> level}"
            _draw_pair(axes, place(level, side), size, model.base_filters << level, share=level / max(depth, 1))
    for level in range(depth):
        x, y, half, height = place(level, "encoder")
        below_x, below_y, below_half, _ = place(level + 1, "encoder")
        _arrow(axes, (x, y - height), (below_x - below_half, below_y), POOLING, bend="angle,angleA=-90,angleB=180")
        end_x, end_y, end_half, end_height = place(level, "decoder")
        from_x, from_y, from_half, _ = place(level + 1, "encoder" if level + 1 == depth else "decoder")
        _arrow(axes, (from_x + from_half, from_y), (end_x, end_y - end_height), UP, bend="angle,angleA=0,angleB=90")
        _arrow(axes, (x + half, y), (end_x - end_half, end_y), SKIP, style=(0, (4, 3)))
    x, y, half, height = place(0, "encoder")
    _arrow(axes, (x - 0.95, y), (x - half, y), "#333333")
    axes.text(x - 0.95, y + 0.1, "slice", fontsize=9, ha="left")
    axes.text(x - 0.95, y - 0.22, f"{model.image_channels} ch.", fontsize=9, ha="left", color="#555555")
    x, y, half, height = place(0, "decoder")
    _arrow(axes, (x + half, y), (x + 0.95, y), "#333333")
    axes.text(x + half + 0.06, y + 0.1, "1x1", fontsize=9, ha="left")
    axes.text(x + 1.0, y, f"logits\n{model.num_classes} ch.", fontsize=9, va="center")
    _draw_legend(axes, left + 0.15, bottom + 1.1)
    save_figure(figure, path)


def _draw_pair(axes: Axes, place: tuple[float, float, float, float], size: str, filters: int, *, share: float) -> None:
    x, y, half, height = place
    red, green, blue = (1 - (1 - value) * (0.55 + 0.45 * share) for value in to_rgb(CONVOLUTION))
    for side in (-1, 1):
        corner = (x + (-half if side < 0 else 0.015), y - height)
        shape = "round,pad=0,rounding_size=0.04"
        box = FancyBboxPatch(
            corner, half - 0.015, 2 * height, boxstyle=shape, facecolor=(red, green, blue), edgecolor="white"
        )
        axes.add_patch(box).set(linewidth=0.8, zorder=3)
        axes.text(x + side * half / 2, y, str(filters), fontsize=9, ha="center", va="center", color="white", zorder=4)
    axes.text(x, y + height + 0.07, size, fontsize=8.5, ha="center", va="bottom", color="#333333")


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, *, style: Any = "-", bend: str = ""
) -> None:
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.7, "linestyle": style, "shrinkA": 2, "shrinkB": 2}
    if bend:
        arrow["connectionstyle"] = f"{bend},rad=6"
    axes.annotate("", xy=end, xytext=start, arrowprops=arrow, zorder=2)


def _draw_legend(axes: Axes, x: float, y: float) -> None:
    shape = "round,pad=0,rounding_size=0.03"
    axes.add_patch(FancyBboxPatch((x, y - 0.09), 0.3, 0.18, boxstyle=shape, color=CONVOLUTION))
    axes.text(x + 0.4, y, "two convolutions 3x3, ReLU, dropout between; filters", fontsize=9, va="center")
    for colour, style, text in (
        (POOLING, "-", "max-pooling 2x2"),
        (UP, "-", "up-convolution 2x2"),
        (SKIP, (0, (4, 3)), "skip, concatenated to the up-convolution"),
    ):
        y -= 0.28
        _arrow(axes, (x - 0.03, y), (x + 0.36, y), colour, style=style)
        axes.text(x + 0.4, y, text, fontsize=9, va="center")
