"""`python -m experiments.summary --config=dice`, or `--run_dir RUN`: the network layer by layer, and a drawing of it.

The drawing is written to `network.png` in the run directory or, if there is no run yet, to `<run_dir>-network.png`.
`--out=FILE` names another new file.
"""

import dataclasses
import sys
from collections.abc import Sequence

from rich.console import Console

from data_pipeline.console import run_program
from experiments.cli import parse
from experiments.config import Config, ModelConfig
from experiments.console import console, number, table
from experiments.run_directory import new_file, run_directory

COLUMNS = ("layer", "kind", "output shape", "parameters", "connected to")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A row of the layer table."""

    name: str  # also of its parameters
    kind: str
    shape: tuple[int, int, int]  # (H, W, C) of its output for one image
    parameters: int = 0
    inputs: tuple[str, ...] = ()  # names of the layers it reads
    multiply_adds: int = 0  # of convolutions, for one image


def layer_table(model: ModelConfig) -> list[Layer]:
    """Lists the `9 * num_layers + 6` layers of the U-Net (60 at the defaults) in the order of their computation.

    Computed from the sizes alone, without jax, which would take seconds. `flax.linen.tabulate` lists neither poolings
    nor concatenations nor connections, because they are not modules.
    """
    size = (model.image_height, model.image_width)
    layers = [Layer("input", "input, 0 to 255", (*size, model.image_channels))]
    layers.append(Layer("scaling", "divide by 255", layers[0].shape, inputs=("input",)))

    def add(name: str, kind: str, shape: tuple[int, int, int], *inputs: str, kernel: int = 0, reads: int = 0) -> None:
        # Each output pixel of an up-convolution with stride 2 is reached by one of the four taps only.
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


def print_summary(config: Config, to: Console | None = None) -> None:
    """Prints the layer table and the totals."""
    layers, out = layer_table(config.model), to or console()
    columns = COLUMNS if out.width >= 100 else COLUMNS[:-1]  # the drawing shows the connections, too
    rows = [
        [layer.name, layer.kind, " x ".join(map(str, layer.shape)), layer.parameters, ", ".join(layer.inputs)]
        for layer in layers
    ]
    table(f"U-Net of {config.config}", columns, [row[: len(columns)] for row in rows], to=out)
    parameters = sum(layer.parameters for layer in layers)
    work = sum(layer.multiply_adds for layer in layers)
    out.print(f"{len(layers)} layers, {number(parameters)} parameters, all trained")
    out.print(f"{4 * parameters / 1e6:.1f} MB of float32 weights, {work / 1e9:.2f} billion multiply-adds per image")


def main(argv: Sequence[str]) -> int:
    """Prints the table and draws the network of a run, or of a configuration that was never trained."""
    config = parse(argv, program="summary")
    run_dir = run_directory(config)
    print_summary(config)
    if config.out is not None:
        path = new_file(config.out, ".png")
    elif (run_dir / "config.json").exists():
        path = run_dir / "network.png"
    else:  # only training creates a run directory; it refuses one that holds other files
        path = run_dir.with_name(f"{run_dir.name}-network.png")
    from experiments.network_drawing import draw_network

    title = f"U-Net of {config.config}, slices of {config.model.image_height}x{config.model.image_width}"
    draw_network(
        config.model, path, title=title, parameters=sum(layer.parameters for layer in layer_table(config.model))
    )
    sys.stdout.write(f"drawing: {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
