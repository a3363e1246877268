"""`python -m experiments.summary --config=dice`, or `--run_dir RUN`: the network layer by layer, and a drawing of it.

The drawing goes to `network.png` in the run directory (of a configuration without a run: beside the place of its run),
or to the new file that `--out=FILE` names.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config import Config, ModelConfig
from experiments.export import new_file, take_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

CONVOLUTION, UP, POOLING, SKIP = "#2F6DB5", "#2E8B6F", "#D9822B", "#8A8A8A"
COLUMNS = ("layer", "kind", "output shape", "parameters", "connected to")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A row of the layer table.

    Attributes:
      name: as the parameters are called, where it has some.
      kind: what it computes.
      shape: `(H, W, C)` of its output for one image.
      parameters: numbers that are trained.
      inputs: names of the layers it reads.
      multiply_adds: of one image, for convolutions.
    """

    name: str
    kind: str
    shape: tuple[int, int, int]
    parameters: int = 0
    inputs: tuple[str, ...] = ()
    multiply_adds: int = 0


def layer_table(model: ModelConfig) -> list[Layer]:
    """Lists the layers of the U-Net in the order in which they are computed.

    Args:
      model: sizes of the network; width and height are multiples of `2**num_layers`.

    Returns:
      `9 * num_layers + 6` layers, 60 at the defaults: input, scaling, a pair of convolutions with a dropout between
      them at each level of the encoder and the decoder, poolings, up-convolutions, concatenations, and the head.
    """
    size = (model.image_height, model.image_width)
    layers = [Layer("input", "input, 0 to 255", (*size, model.image_channels))]
    layers.append(Layer("scaling", "divide by 255", layers[0].shape, inputs=("input",)))

    def add(name: str, kind: str, shape: tuple[int, int, int], *inputs: str, kernel: int = 0, reads: int = 0) -> None:
        # An up-convolution of stride 2 reaches each output pixel through one of its four taps.
        taps = kernel**2 // 4 if kernel == 2 else kernel**2
        weights = kernel**2 * reads * shape[2]
        work = shape[0] * shape[1] * taps * reads * shape[2]
        layers.append(Layer(name, kind, shape, weights + shape[2] if kernel else 0, inputs or (layers[-1].name,), work))

    def pair(path: str, level: int) -> None:
        shape = (size[0] >> level, size[1] >> level, model.base_filters << level)
        reads = layers[-1].shape[2]
        add(f"{path}{level}_conv1", "convolution 3x3, ReLU", shape, kernel=3, reads=reads)
        add(f"{path}{level}_dropout", f"dropout {model.dropout_rate * level:.3g}", shape)
        add(f"{path}{level}_conv2", "convolution 3x3, ReLU", shape, kernel=3, reads=shape[2])

    for level in range(model.num_layers):
        pair("encoder", level)
        height, width, filters = layers[-1].shape
        add(f"encoder{level}_pool", "max-pooling 2x2", (height // 2, width // 2, filters))
    pair("encoder", model.num_layers)
    for level in reversed(range(model.num_layers)):
        height, width, filters = layers[-1].shape
        shape = (2 * height, 2 * width, model.base_filters << level)
        add(f"decoder{level}_up", "up-convolution 2x2", shape, kernel=2, reads=filters)
        both = (f"decoder{level}_up", f"encoder{level}_conv2")
        add(f"decoder{level}_concat", "concatenation", (*shape[:2], 2 * shape[2]), *both)
        pair("decoder", level)
    add("head", "convolution 1x1", (*size, model.num_classes), kernel=1, reads=layers[-1].shape[2])
    return layers


def table_rows(layers: Sequence[Layer]) -> list[list[Any]]:
    """Returns the table's rows under `COLUMNS`."""
    return [
        [layer.name, layer.kind, " x ".join(map(str, layer.shape)), layer.parameters, ", ".join(layer.inputs)]
        for layer in layers
    ]


def print_summary(config: Config, console: "Console | None" = None) -> None:
    """Prints the layer table and the totals."""
    from experiments import report

    layers = layer_table(config.model)
    out = console or report.console()
    report.table(f"U-Net of {config.config}", COLUMNS, table_rows(layers), to=out)
    parameters = sum(layer.parameters for layer in layers)
    work = sum(layer.multiply_adds for layer in layers)
    out.print(f"{len(layers)} layers, {report.number(parameters)} parameters, all trained")
    out.print(f"{4 * parameters / 1e6:.1f} MB of float32 weights, {work / 1e9:.2f} billion multiply-adds an image")


def draw(model: ModelConfig, path: str | Path, *, title: str) -> None:
    """Draws the network as a U: a row a level, encoder on the left, decoder on the right.

    Args:
      model: sizes of the network.
      path: the PNG to write.
      title: above the drawing.
    """
    from experiments.pictures import new_figure, save_figure, shorten
    from experiments.report import number

    depth = model.num_layers
    step, row = 1.08, 0.98
    left, right = -1.55, 2 * depth * step + 2.4
    top, bottom = 1.25, -depth * row - (0.75 if depth > 5 else 1.85)  # a deep U leaves room for the legend beside it
    figure = new_figure((right - left, top - bottom))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_axis_off()
    layers = {layer.name: layer for layer in layer_table(model)}
    parameters = sum(layer.parameters for layer in layers.values())
    axes.text(
        left + 0.15, top - 0.25, shorten(title, int(8 * (right - left))), fontsize=13, va="center", parse_math=False
    )
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
            _draw_pair(axes, place(level, side), layers[f"{side}{level}_conv2"].shape, share=level / max(depth, 1))
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


def _draw_pair(
    axes: "Axes", place: tuple[float, float, float, float], shape: tuple[int, int, int], *, share: float
) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import FancyBboxPatch

    x, y, half, height = place
    colour = tuple(1 - (1 - value) * (0.55 + 0.45 * share) for value in to_rgb(CONVOLUTION))
    for side in (-1, 1):
        corner = (x + (-half if side < 0 else 0.015), y - height)
        box = FancyBboxPatch(
            corner,
            half - 0.015,
            2 * height,
            boxstyle="round,pad=0,rounding_size=0.04",
            facecolor=(colour[0], colour[1], colour[2]),
            edgecolor="white",
            linewidth=0.8,
            zorder=3,
        )
        axes.add_patch(box)
        axes.text(x + side * half / 2, y, str(shape[2]), fontsize=9, ha="center", va="center", color="white", zorder=4)
    axes.text(x, y + height + 0.07, f"{shape[0]}x{shape[1]}", fontsize=8.5, ha="center", va="bottom", color="#333333")


def _arrow(
    axes: "Axes", start: tuple[float, float], end: tuple[float, float], colour: str, *, style: Any = "-", bend: str = ""
) -> None:
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.7, "linestyle": style, "shrinkA": 2, "shrinkB": 2}
    if bend:
        arrow["connectionstyle"] = f"{bend},rad=6"
    axes.annotate("", xy=end, xytext=start, arrowprops=arrow, zorder=2)


def _draw_legend(axes: "Axes", x: float, y: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = "round,pad=0,rounding_size=0.03"
    axes.add_patch(FancyBboxPatch((x, y - 0.09), 0.3, 0.18, boxstyle=shape, color=CONVOLUTION))
    axes.text(x + 0.4, y, "two convolutions 3x3, ReLU, dropout between; filters", fontsize=9, va="center")
    for colour, style, text in (
        (POOLING, "-", "max-pooling 2x2"),
        (UP, "-", "up-convolution 2x2"),
        (SKIP, (0, (4, 3)), "skip, concatenated behind the up-convolution"),
    ):
        y -= 0.28
        _arrow(axes, (x - 0.03, y), (x + 0.36, y), colour, style=style)
        axes.text(x + 0.4, y, text, fontsize=9, va="center")


def main(argv: Sequence[str]) -> int:
    """Prints the table and draws the network of a run, or of a configuration that was never trained."""
    from experiments.cli import parse
    from experiments.identity import run_directory

    words, out = take_out(argv)
    if "-h" in words or "--help" in words:
        sys.stdout.write("--out FILE: where the drawing goes; default network.png in the run directory\n")
    config = parse(words, program="summary")
    run_dir = run_directory(config)
    print_summary(config)
    if out:
        path = new_file(out, ".png")
    elif (run_dir / "config.json").exists():
        path = run_dir / "network.png"
    else:  # a run directory is created by training alone, which refuses one that holds other files
        path = run_dir.with_name(f"{run_dir.name}-network.png")
    title = f"U-Net of {config.config}, slices of {config.model.image_height}x{config.model.image_width}"
    draw(config.model, path, title=title)
    sys.stdout.write(f"drawing: {path}\n")
    return 0


if __name__ == "__main__":
    from experiments.cli import run_program

    sys.exit(run_program(main))
