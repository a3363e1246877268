"""Pictures as PNG files: overlays, contact sheets and galleries of slices; training curves; calibration.

Every title contains the title of the data, so that synthetic slices are never taken for patients. Prediction is orange
and truth is blue, a pair that colour-blind readers tell apart.
"""

import dataclasses
import functools
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation

from experiments.console import number
from experiments.run_directory import atomic

PREDICTION, TRUTH, BOTH = (255, 96, 0), (64, 190, 255), (255, 245, 60)
TRAINING_LINE, VALIDATION_LINE = "#0072B2", "#D55E00"  # Okabe and Ito's palette, for colour-blind readers
FLAIR = 1
TILE, GAP = 256, 12
DPI = 100


@dataclasses.dataclass(frozen=True)
class Case:
    """A slice with its prediction, for a contact sheet or a gallery."""

    name: str
    image: np.ndarray  # uint8 [H, W, C]
    prediction: np.ndarray  # bool [H, W]
    truth: np.ndarray | None = None  # bool [H, W]
    dice: float | None = None
    group: str = ""  # for example "best"; a gallery writes it to the left of the row
    note: str = ""  # second line of the caption; default: Dice and the share of predicted pixels


def background(image: np.ndarray) -> np.ndarray:
    """Returns the grey picture to draw on, uint8 `[H, W, 3]`.

    With several channels it is the second one, FLAIR: glioma is delineated on it, and readers know it in grey.

    Raises:
      ValueError: `image` is not uint8 `[H, W, C]`.
    """
    if image.ndim != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an image uint8 [H, W, C], got {image.dtype} {list(image.shape)}")
    channel = image[:, :, min(FLAIR, image.shape[2] - 1)]
    return np.repeat(channel[:, :, None], 3, axis=2)


def outline(mask: np.ndarray, width: int = 1) -> np.ndarray:
    """Returns the outline of a region, bool `[H, W]`, `width` pixels wide.

    It lies just outside, so that a lesion of one pixel stays visible; at the edge of the picture it lies inside.
    """
    ring = binary_dilation(mask, iterations=width) & ~mask
    edge = np.zeros_like(mask)
    edge[:width], edge[-width:], edge[:, :width], edge[:, -width:] = True, True, True, True
    return ring | (mask & edge)


def overlay(
    image: np.ndarray, prediction: np.ndarray, truth: np.ndarray | None = None, *, width: int | None = None
) -> np.ndarray:
    """Draws the outlines of prediction (orange) and truth (blue) over the slice; yellow where both lines coincide.

    Args:
      image: uint8 `[H, W, C]`; becomes uint8 `[H, W, 3]` by `background`.
      prediction: bool `[H, W]`.
      truth: bool `[H, W]`, or None.
      width: of the lines in pixels; default 1, or 2 if the longer side has at least 512 pixels.

    Raises:
      ValueError: the sizes differ.
    """
    picture = background(image)
    width = width or (1 if max(picture.shape[:2]) < 512 else 2)
    masks = [np.asarray(mask, bool) for mask in (prediction, truth) if mask is not None]
    for mask in masks:
        if mask.shape != picture.shape[:2]:
            raise ValueError(f"mask of shape {mask.shape} for an image of {picture.shape[:2]} pixels")
    lines = [outline(mask, width) for mask in masks]
    picture[lines[0]] = PREDICTION
    if truth is not None:
        picture[lines[1]] = TRUTH
        picture[lines[0] & lines[1]] = BOTH
    return picture


def thumbnail(case: Case, side: int = TILE) -> Case:
    """Scales a case so that its longer side has `side` pixels; a lesion of one pixel survives. Fills in `note`."""
    height, width = case.image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))

    def resize(mask: np.ndarray) -> np.ndarray:
        values = Image.fromarray(np.asarray(mask, bool).astype(np.float32)).resize(size, Image.Resampling.BOX)
        return np.asarray(values) > 0

    return dataclasses.replace(
        case,
        image=np.asarray(Image.fromarray(background(case.image)).resize(size, Image.Resampling.BICUBIC)),
        prediction=resize(case.prediction),
        truth=None if case.truth is None else resize(case.truth),
        note=case.note or _default_note(case),  # at full size, because a thumbnail has different shares
    )


def _default_note(case: Case) -> str:
    share = 100 * float(np.mean(case.prediction))
    found = f"{share:.2f} % predicted" if share >= 0.01 else "<0.01 % predicted" if share else "none predicted"
    if case.truth is not None and not np.any(case.truth):
        return f"no tumour, {found}"
    return found if case.dice is None else f"Dice {case.dice:.3f}, {found}"


def contact_sheet(cases: Sequence[Case], path: str | Path, *, title: str, columns: int = 6) -> None:
    """Draws cases side by side with their outlines, names and Dice; about 24 fill a page."""
    if not cases:
        raise ValueError("a contact sheet needs at least one case")
    columns = max(3, min(columns, len(cases)))
    cell = TILE + 44
    page = Page(title, GAP + columns * (TILE + GAP), math.ceil(len(cases) / columns) * cell)
    page.add_legend(truth=any(case.truth is not None for case in cases))
    for index, case in enumerate(map(thumbnail, cases)):
        x, y = GAP + (index % columns) * (TILE + GAP), page.head + (index // columns) * cell
        page.add_picture(x, y, overlay(case.image, case.prediction, case.truth, width=2))
        page.add_text(x, y + TILE + 11, shorten(case.name, 36), size=11)
        page.add_text(x, y + TILE + 25, case.note, size=11, colour="#555555")
    save_png(np.asarray(page.canvas), path)


def gallery(cases: Sequence[Case], path: str | Path, *, title: str) -> None:
    """Draws one row per case: the slice, the true mask, the predicted mask, and both outlines.

    The group of a case is written where it changes (see `best_median_worst`).
    """
    if not cases:
        raise ValueError("a gallery needs at least one case")
    cell, left = TILE + 30, 92 if any(case.group for case in cases) else GAP
    page = Page(title, left + 4 * (TILE + GAP), 26 + len(cases) * cell)
    page.add_legend(truth=any(case.truth is not None for case in cases))
    headings = ("FLAIR" if cases[0].image.shape[2] > 1 else "slice", "truth", "prediction", "outlines")
    for column, heading in enumerate(headings):
        page.add_text(left + column * (TILE + GAP), page.head + 10, heading, size=14)
    for row, case in enumerate(map(thumbnail, cases)):
        y = page.head + 26 + row * cell
        unknown = np.zeros_like(case.prediction)
        pictures = (
            case.image,
            _filled(unknown if case.truth is None else case.truth, TRUTH),
            _filled(case.prediction, PREDICTION),
            overlay(case.image, case.prediction, case.truth, width=2),
        )
        for column, picture in enumerate(pictures):
            page.add_picture(left + column * (TILE + GAP), y, picture)
        if case.group and (row == 0 or case.group != cases[row - 1].group):
            page.add_text(GAP, y + 10, case.group, size=17)
        page.add_text(left, y + TILE + 11, f"{shorten(case.name, 80)}:  {case.note}", size=11, colour="#333333")
    save_png(np.asarray(page.canvas), path)


def _filled(mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.where(mask[:, :, None], colour, 24).astype(np.uint8)


def best_median_worst(scores: Sequence[float], count: int = 3) -> list[tuple[str, int]]:
    """Chooses `count` cases per group for a gallery: `("best" | "median" | "worst", index)`, from the best downwards.

    No index comes twice. Greater scores are better; NaN is left out.
    """
    ranked = sorted((i for i, score in enumerate(scores) if math.isfinite(score)), key=lambda i: (-scores[i], i))
    best, rest = ranked[:count], ranked[count:]
    worst, rest = rest[max(0, len(rest) - count) :], rest[: max(0, len(rest) - count)]
    start = max(0, (len(rest) - count) // 2)
    groups = {"best": best, "median": rest[start : start + count], "worst": worst}
    return [(group, index) for group, indices in groups.items() for index in indices]


class Page:
    """A white page; pictures and text are placed in pixels from its upper left corner, so pictures are not resampled.

    Title and legend take the first `head` pixels; below are `height` pixels.
    """

    def __init__(self, title: str, width: int, height: int) -> None:
        lines = fold(title, (width - 2 * GAP) // 10)
        self.head = 56 + 21 * len(lines)
        self.canvas = Image.new("RGB", (width, self.head + height), "white")
        self._draw = ImageDraw.Draw(self.canvas)
        for index, line in enumerate(lines):
            self.add_text(GAP, 24 + 21 * index, line, size=17)

    def add_text(self, x: int, y: int, text: str, *, size: int, colour: str = "black") -> None:
        """Writes a line whose middle is at `y`."""
        self._draw.text((x, y), text, font=_font(size), fill=colour, anchor="lm")

    def add_picture(self, x: int, y: int, pixels: np.ndarray) -> None:
        """Places uint8 `[H, W, 3]`."""
        self.canvas.paste(Image.fromarray(pixels), (x, y))

    def add_legend(self, *, truth: bool) -> None:
        """Explains the colours of `overlay`."""
        x, y = GAP, self.head - 22
        for name, colour in [("prediction", PREDICTION)] + ([("truth", TRUTH), ("both", BOTH)] if truth else []):
            self._draw.rectangle((x, y - 6, x + 29, y + 5), fill=colour, outline="black")
            self.add_text(x + 37, y, name, size=12)
            x += 115


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's built-in font lacks most characters beyond ASCII.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def shorten(text: str, length: int) -> str:
    """Cuts the middle out of a text of more than `length` characters; unprintable characters become question marks."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-(length // 2) :]}"


def fold(text: str, length: int) -> list[str]:
    """Returns one or two lines of at most `length` characters; the middle of a longer text is left out."""
    return textwrap.wrap(shorten(text, length if len(text) <= length else 17 * length // 10), length)[:2] or [""]


_TRAINING: dict[str, Any] = {"label": "training", "color": TRAINING_LINE, "linestyle": (0, (5, 1.5))}
_VALIDATION: dict[str, Any] = {"label": "validation", "color": VALIDATION_LINE}


def curves(history: Sequence[Mapping[str, Any]], path: str | Path, *, title: str, columns: Sequence[str]) -> None:
    """Draws columns of a history against the epoch and marks the epoch of the lowest `val_loss`.

    Each row of the history is an epoch. `x` and `val_x` share a panel. A missing, None or NaN value is a gap.
    """
    epochs = [int(entry["epoch"]) for entry in history]
    panels: dict[str, list[str]] = {}
    for column in dict.fromkeys(columns):
        panels.setdefault(column.removeprefix("val_"), []).append(column)
    across = min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    figure = new_figure((7.2 if across == 1 else 5.2 * across, 0.55 + 3.9 * down), title=fold(title, 85 * across))
    best = best_epoch(history)
    for index, (quantity, names) in enumerate(panels.items()):
        axes = figure.add_subplot(down, across, index + 1)
        for name in names:
            line = _VALIDATION if name.startswith("val_") else _TRAINING
            marker = "o" if len(epochs) <= 30 else None
            axes.plot(epochs, _column(history, name), marker=marker, markersize=3.5, linewidth=1.8, **line)
        if best is not None:
            axes.axvline(best, color="#555555", linewidth=1.2, linestyle=":", label="lowest validation loss", zorder=0)
            value = _column(history, f"val_{quantity}")[epochs.index(best)]
            if f"val_{quantity}" in names and math.isfinite(value):
                axes.plot([best], [value], marker="D", color=VALIDATION_LINE, markersize=7, markeredgecolor="white")
                _add_subtitle(axes, f"best epoch {best}: val_{quantity} {value:.4f}")
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity, parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(epochs) == 1:
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        _style(axes)
        axes.legend(frameon=False, fontsize=9)
    save_figure(figure, path)


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Returns the first epoch of the lowest finite `val_loss`, None if there is none."""
    losses = _column(history, "val_loss")
    finite = [(loss, index) for index, loss in enumerate(losses) if math.isfinite(loss)]
    return int(history[min(finite)[1]]["epoch"]) if finite else None


def _column(history: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [math.nan if entry.get(name) is None else float(entry[name]) for entry in history]


def reliability(figures: Mapping[str, Any], path: str | Path, *, title: str) -> None:
    """Draws the observed share of tumour pixels against the predicted probability, and the pixels in each bin.

    `figures` come from `evaluation_tables.probability_figures`; bins without pixels are left out of the curve.
    """
    curve = figures["reliability"]
    edges, pixels = curve["edges"], curve["pixels"]
    filled = np.flatnonzero(pixels)
    figure = new_figure((5.6, 6.4), title=fold(title, 62))
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    above.plot([0, 1], [0, 1], color="#555555", linewidth=1.2, linestyle=":", label="perfect calibration")
    points = [np.array(curve[name], float)[filled] for name in ("predicted", "observed")]
    above.plot(*points, color=VALIDATION_LINE, marker="o", markersize=5, linewidth=1.8, label="observed")
    error, brier = (number(figures[name]) for name in ("expected_calibration_error", "brier"))
    _add_subtitle(above, f"all pixels: calibration error {error}, Brier score {brier}")
    above.set_ylabel("share of pixels that are tumour")
    above.set_ylim(-0.02, 1.02)
    above.legend(frameon=False, fontsize=9)
    below.bar(edges[:-1], pixels, np.diff(edges), align="edge", color=TRAINING_LINE, edgecolor="white", log=True)
    below.set_ylim(bottom=0.5)  # so that a bin of one pixel shows
    below.set_ylabel("pixels")
    below.set_xlabel("predicted probability")
    below.set_xlim(-0.02, 1.02)
    for axes in (above, below):
        _style(axes)
    save_figure(figure, path)


def _add_subtitle(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=9, loc="left", color="#444444", parse_math=False)


def _style(axes: Axes) -> None:
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def new_figure(size: tuple[float, float], *, title: Sequence[str] = ()) -> Figure:
    """Returns an empty figure of (width, height) inches, with constrained layout if it has lines of a title.

    It is not registered with pyplot, so no window opens and nothing stays in memory.
    """
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained" if title else None)
    if title:
        figure.suptitle("\n".join(title), x=0.015, ha="left", fontsize=11, parse_math=False)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG."""
    with atomic(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a file name in a script that the font lacks
        figure.savefig(partial, format="png", metadata={"Software": None})


def save_png(pixels: np.ndarray, path: str | Path) -> None:
    """Writes uint8 `[H, W]` or `[H, W, 3]` as PNG."""
    with atomic(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG", compress_level=4)
