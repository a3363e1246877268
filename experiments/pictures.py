"""Slices with their outlines: overlays, contact sheets, galleries.

Pictures are drawn with matplotlib figures of their own (no pyplot, no window, no global state), written under their
name only when complete, and titled by the caller with the title of the data, so that synthetic slices are never taken
for patients. Prediction is orange and truth is blue, a pair that colour-blind readers tell apart.
"""

import contextlib
import dataclasses
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREDICTION = (255, 96, 0)
TRUTH = (64, 190, 255)
BOTH = (255, 245, 60)
FLAIR = 1
TILE, GAP, DPI = 256, 12, 100


@dataclasses.dataclass(frozen=True)
class Case:
    """A slice with its prediction, for a contact sheet or a gallery.

    Attributes:
      name: what the caption says.
      image: uint8 `[H, W, C]`.
      prediction: bool `[H, W]`.
      truth: bool `[H, W]`, None where unknown.
      dice: its score, None where unknown.
      group: for example `"best"`; a gallery names it beside the row.
      note: the second line of the caption; empty: Dice and the share of predicted pixels.
    """

    name: str
    image: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray | None = None
    dice: float | None = None
    group: str = ""
    note: str = ""


def background(image: np.ndarray) -> np.ndarray:
    """Returns the grey picture to draw on, uint8 `[H, W, 3]`.

    Of several channels it is the second: FLAIR, the sequence on which glioma is delineated and which readers know as a
    grey picture, where the three sequences shown as one colour picture are unfamiliar.

    Raises:
      ValueError: `image` is not uint8 `[H, W, C]`.
    """
    if image.ndim != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an image uint8 [H, W, C], got {image.dtype} {list(image.shape)}")
    channel = image[:, :, min(FLAIR, image.shape[2] - 1)]
    return np.repeat(channel[:, :, None], 3, axis=2)


def outline(mask: np.ndarray, width: int = 1) -> np.ndarray:
    """Returns the line around a region, bool `[H, W]`: pixels just outside of it, and its own at the picture's edge.

    The line is `width` pixels wide and lies outside so that a lesion of a single pixel stays visible within it.
    """
    from scipy.ndimage import binary_dilation

    ring = binary_dilation(mask, iterations=width) & ~mask
    edge = np.zeros_like(mask)
    edge[:width], edge[-width:], edge[:, :width], edge[:, -width:] = True, True, True, True
    return ring | (mask & edge)


def overlay(
    image: np.ndarray, prediction: np.ndarray, truth: np.ndarray | None = None, *, width: int | None = None
) -> np.ndarray:
    """Draws the outlines of prediction (orange) and truth (blue) over the slice; yellow where the two lines coincide.

    Args:
      image: uint8 `[H, W, C]`; drawn as `background` says.
      prediction: bool `[H, W]`.
      truth: bool `[H, W]`, or None.
      width: of the lines in pixels. None: 1, and 2 where the longer side has 512 pixels or more.

    Returns:
      uint8 `[H, W, 3]`.

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
        note=case.note or _verdict(case),
    )


def _verdict(case: Case) -> str:
    share = 100 * float(np.mean(case.prediction))
    found = f"{share:.2f} % predicted" if share >= 0.01 else "<0.01 % predicted" if share else "none predicted"
    if case.truth is not None and not np.any(case.truth):
        return f"no tumour, {found}"
    return found if case.dice is None else f"Dice {case.dice:.3f}, {found}"


def contact_sheet(tiles: Sequence[Case], path: str | Path, *, title: str, columns: int = 6) -> None:
    """Draws cases side by side with their outlines, names and Dice, and a legend.

    Args:
      tiles: at least one; about 24 fill a page.
      path: the PNG to write.
      title: carries the title of the data.
      columns: cases a row.
    """
    if not tiles:
        raise ValueError("a contact sheet needs at least one tile")
    columns = max(3, min(columns, len(tiles)))
    cell = TILE + 44
    page = Page(title, GAP + columns * (TILE + GAP), math.ceil(len(tiles) / columns) * cell)
    page.legend(truth=any(tile.truth is not None for tile in tiles))
    for index, tile in enumerate(map(thumbnail, tiles)):
        x, y = GAP + (index % columns) * (TILE + GAP), page.head + (index // columns) * cell
        page.picture(x, y, overlay(tile.image, tile.prediction, tile.truth, width=2))
        page.text(x, y + TILE + 11, shorten(tile.name, 36), size=8)
        page.text(x, y + TILE + 25, tile.note, size=8, colour="#555555")
    page.save(path)


def gallery(items: Sequence[Case], path: str | Path, title: str) -> None:
    """Draws a row a case: the slice, the true mask, the predicted mask and both outlines.

    Args:
      items: cases in the order of the rows; `group` is written where it changes (see `best_median_worst`).
      path: the PNG to write.
      title: carries the title of the data.
    """
    if not items:
        raise ValueError("a gallery needs at least one case")
    cell, left = TILE + 30, 92 if any(item.group for item in items) else GAP
    page = Page(title, left + 4 * (TILE + GAP), 26 + len(items) * cell)
    page.legend(truth=any(item.truth is not None for item in items))
    headings = ("FLAIR" if items[0].image.shape[2] > 1 else "slice", "truth", "prediction", "outlines")
    for column, heading in enumerate(headings):
        page.text(left + column * (TILE + GAP), page.head + 10, heading, size=10)
    for row, item in enumerate(map(thumbnail, items)):
        y = page.head + 26 + row * cell
        unknown = np.zeros(item.prediction.shape, bool)
        pictures = (
            item.image,
            _filled(unknown if item.truth is None else item.truth, TRUTH),
            _filled(item.prediction, PREDICTION),
            overlay(item.image, item.prediction, item.truth, width=2),
        )
        for column, picture in enumerate(pictures):
            page.picture(left + column * (TILE + GAP), y, picture)
        if item.group and (row == 0 or item.group != items[row - 1].group):
            page.text(GAP, y + 10, item.group, size=12)
        page.text(left, y + TILE + 11, f"{shorten(item.name, 80)}:  {item.note}", size=8, colour="#333333")
    page.save(path)


def _filled(mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    picture = np.full((*mask.shape, 3), 24, np.uint8)
    picture[mask] = colour
    return picture


def best_median_worst(scores: Sequence[float], count: int = 3) -> list[tuple[str, int]]:
    """Chooses cases for a gallery.

    Args:
      scores: one a case, greater is better; NaN is left out.
      count: cases a group.

    Returns:
      `("best" | "median" | "worst", index)`, no index twice; the best first, then downwards.
    """
    ranked = sorted((i for i, score in enumerate(scores) if math.isfinite(score)), key=lambda i: (-scores[i], i))
    best, rest = ranked[:count], ranked[count:]
    worst, rest = rest[max(0, len(rest) - count) :], rest[: max(0, len(rest) - count)]
    start = max(0, (len(rest) - count) // 2)
    groups = {"best": best, "median": rest[start : start + count], "worst": worst}
    return [(group, index) for group, indices in groups.items() for index in indices]


class Page:
    """A white picture on which things are placed in pixels from the upper left corner.

    Args:
      title: above all, on one line or two.
      width: of the page.
      height: below the title and the legend.

    Attributes:
      head: where the space below title and legend begins.
    """

    def __init__(self, title: str, width: int, height: int) -> None:
        lines = fold(title, (width - 2 * GAP) // 10)
        self.head = 56 + 21 * len(lines)
        self.width, self.height = width, self.head + height
        self.figure = new_figure((width / DPI, self.height / DPI))
        for index, line in enumerate(lines):
            self.text(GAP, 24 + 21 * index, line, size=12)

    def text(self, x: float, y: float, text: str, *, size: float, colour: str = "black") -> None:
        """Writes a line whose middle is at `y`; nothing in it is markup."""
        place = (x / self.width, 1 - y / self.height)
        self.figure.text(*place, text, fontsize=size, color=colour, va="center", parse_math=False)

    def picture(self, x: float, y: float, pixels: np.ndarray) -> None:
        """Places a picture of at most `TILE` pixels a side, pixel for pixel."""
        height, width = pixels.shape[:2]
        place = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(place)
        axes.imshow(pixels, interpolation="nearest", aspect="auto")
        axes.set_axis_off()

    def legend(self, *, truth: bool) -> None:
        """Explains the colours of `overlay`."""
        x, y = GAP, self.head - 22
        entries = [("prediction", PREDICTION)] + ([("truth", TRUTH), ("both", BOTH)] if truth else [])
        for name, colour in entries:
            swatch = np.zeros((12, 30, 3), np.uint8)
            swatch[1:-1, 1:-1] = colour
            self.picture(x, y - 6, swatch)
            self.text(x + 37, y, name, size=9)
            x += 115

    def save(self, path: str | Path) -> None:
        """Writes the page as PNG."""
        save_figure(self.figure, path)


def new_figure(size: tuple[float, float]) -> "Figure":
    """Returns an empty figure of (width, height) inches that draws into memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def shorten(text: str, length: int) -> str:
    """Returns at most `length` characters, with the middle left out, and a question mark for what cannot be printed."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-(length // 2) :]}"


def fold(text: str, length: int) -> list[str]:
    """Returns one line or two of at most `length` characters; the middle of a longer text is left out."""
    return textwrap.wrap(shorten(text, length if len(text) <= length else 17 * length // 10), length)[:2] or [""]


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Writes a figure as PNG; the file appears under its name only when it is complete."""
    with _complete(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a file name in a script that the font lacks
        figure.savefig(partial, format="png", metadata={"Software": None})


def save_png(pixels: np.ndarray, path: str | Path) -> None:
    """Writes uint8 `[H, W]` or `[H, W, 3]` as PNG; the file appears under its name only when it is complete."""
    with _complete(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG", compress_level=4)


@contextlib.contextmanager
def _complete(path: str | Path) -> Iterator[Path]:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
