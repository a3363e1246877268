"""The figures of docs/losses.md: each loss against the quality of a prediction, its gradient, and its cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from experiments.plots import new_figure, save_figure
from jaxunet.losses import LOSSES

SIZE, RADIUS = 96, 20
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"
COLUMNS = 3
"""Losses per row; each has two panels."""


def inside(error: float = 0.0, shift: float = 0.0) -> np.ndarray:
    """Distance of every pixel from the edge of a disc with a thin branch, positive inside: `[SIZE, SIZE]`.

    Args:
      error: pixels by which the region is too large.
      shift: pixels by which it is too far right.
    """
    rows, columns = np.mgrid[:SIZE, :SIZE]
    columns = columns - shift
    disc = RADIUS - np.hypot(rows - 52.5, columns - 39.5)
    branch = 1.6 - np.hypot(rows - 16 + 0.1 * columns, np.clip(columns, 30, 58) - columns)
    trunk = 1.6 - np.hypot(columns - 44, np.clip(rows, 12, 50) - rows)
    return np.maximum(np.maximum(disc, branch), trunk) + error


def logits(inside: np.ndarray) -> np.ndarray:
    """A certain prediction with an edge two pixels wide: logits from -8 to 8."""
    return np.clip(4 * inside, -8, 8).astype(np.float32)


def quality_curves(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Size errors with their losses, and shifts with theirs."""
    errors, shifts = np.arange(-14, 15, 1.0), np.arange(0, 15, 1.0)
    predictions = [logits(inside(error)) for error in errors] + [logits(inside(0, shift)) for shift in shifts]
    z = np.stack(predictions)[..., None]
    g = np.broadcast_to((inside() > 0)[None, :, :, None], z.shape).astype(np.float32)
    values = np.asarray(jax.jit(lambda z, g: LOSSES[name].fn(z, g, reduce="image"))(z, g))
    return errors, values[: len(errors)], shifts, values[len(errors) :]


def shifted_with_island() -> np.ndarray:
    """Logits of the region, shifted by 9 pixels, and a false island; less certain than `logits`."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    island = 6 - np.hypot(rows - 14, columns - 82)
    return np.clip(0.6 * np.maximum(inside(0, 9), island), -3, 3).astype(np.float32)


def push(name: str) -> np.ndarray:
    """Minus the gradient at that prediction, divided by its largest entry: `[SIZE, SIZE]`."""
    z = shifted_with_island()[None, :, :, None]
    g = (inside() > 0).astype(np.float32)[None, :, :, None]
    gradient = np.asarray(jax.jit(jax.grad(LOSSES[name].fn))(z, g))[0, :, :, 0]
    return -gradient / max(np.abs(gradient).max(), 1e-30)


def draw_family(family: str, path: Path) -> None:
    """Draws two panels for each loss of a family."""
    names = [name for name, entry in LOSSES.items() if entry.family == family]
    rows = -(-len(names) // COLUMNS)
    figure = new_figure((12, 0.3 + 2.05 * rows))
    grid = figure.add_gridspec(
        rows, 2 * COLUMNS, left=0.03, right=0.995, top=1 - 0.3 / (0.3 + 2.05 * rows), bottom=0.25 / (0.3 + 2.05 * rows)
    )
    grid.update(wspace=0.22, hspace=0.42)
    for number, name in enumerate(names):
        row, column = divmod(number, COLUMNS)
        curve, image = (figure.add_subplot(grid[row, 2 * column + panel]) for panel in (0, 1))
        _draw_curves(curve, name)
        _draw_push(image, name)
    save_figure(figure, path)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


def _draw_curves(axes: Any, name: str) -> None:
    errors, of_radius, shifts, of_shift = quality_curves(name)
    axes.axvline(0, color="#dddddd", linewidth=0.8)
    axes.plot(errors, of_radius, color=BLUE, linewidth=1.6)
    axes.plot(shifts, of_shift, color=ORANGE, linewidth=1.6)
    axes.set_title(name, fontsize=9, fontweight="bold", loc="left", pad=4)
    axes.tick_params(labelsize=6.5, length=2, pad=1.5)
    axes.set_xticks([-10, 0, 10])
    axes.locator_params(axis="y", nbins=4)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_push(axes: Any, name: str) -> None:
    # The square root makes small entries visible.
    signed = push(name)
    axes.imshow(np.sign(signed) * np.sqrt(np.abs(signed)), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.contour(inside(), levels=[0], colors="black", linewidths=0.9)
    axes.contour(shifted_with_island(), levels=[0], colors=GREY, linewidths=0.8, linestyles="dashed")
    axes.set_axis_off()


def draw_cost(milliseconds: Mapping[str, float], path: Path) -> None:
    """Draws the time of each loss as a bar, by family."""
    colours = dict(
        zip(
            ("distribution", "region", "structural", "boundary", "compound"),
            (BLUE, "#009E73", "#CC79A7", ORANGE, GREY),
            strict=True,
        )
    )
    figure = new_figure((8, 9))
    axes = figure.add_axes((0.27, 0.06, 0.70, 0.90))
    names = [name for family in colours for name in LOSSES if LOSSES[name].family == family]
    bars = axes.barh(names, [milliseconds[name] for name in names], color=[colours[LOSSES[n].family] for n in names])
    axes.bar_label(bars, [f" {milliseconds[name]:.3g}" for name in names], fontsize=6.5)
    axes.set_xscale("log")
    axes.set_xlabel("ms of value and gradient, 16 images of 256x256")
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.tick_params(labelsize=7)
    handles = [axes.barh(0, 0, color=colour, label=family) for family, colour in colours.items()]
    axes.legend(handles=handles, fontsize=7, loc="upper right")
    save_figure(figure, path)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


def draw_all(milliseconds: Mapping[str, float], folder: Path) -> None:
    """Draws all figures into a folder."""
    for family in dict.fromkeys(entry.family for entry in LOSSES.values()):
        draw_family(family, folder / f"losses_{family}.png")
    draw_cost(milliseconds, folder / "losses_cost.png")
