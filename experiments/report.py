"""What a run says of itself: tables on the terminal, progress, and curves.

Pictures of slices are in `experiments/pictures.py`.
"""

import contextlib
import math
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from experiments.pictures import fold, new_figure, save_figure

TRAINING_LINE, VALIDATION_LINE = "#0072B2", "#D55E00"
"""Of the palette of Okabe and Ito, which colour-blind readers tell apart."""

_NUMBER = re.compile(r"(|-|undefined|[-+]?(\d[\d ,]*(\.\d+)?|inf)(e[-+]?\d+)?( ?%| s)?)")

_UNWRAPPED = 24
"""Cells of tables up to this width stay on one line."""


def console() -> Console:
    """Returns a console for standard output; 160 columns wide where that is no terminal and COLUMNS is not set."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(width=width, highlight=False)


def number(value: Any) -> str:
    """Returns how tables write a value: floats with 4 decimals, 31 110 001, a dash for None and `undefined` for NaN."""
    if value is None:
        return "-"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, float | np.floating):
        return "undefined" if math.isnan(value) else f"{value:.4f}"
    return str(value)


def _line(widths: Sequence[int]) -> int:
    """Width of a table: a blank at both ends and three characters between columns."""
    return sum(widths) + 3 * len(widths) - 1


def _layout(
    headings: Sequence[str], bodies: Sequence[Sequence[str]], available: int
) -> tuple[Sequence[str], list[int]]:
    """Headings, in several lines where one table would be too wide without, and the least widths of the columns."""
    columns = list(zip(headings, bodies, strict=True))
    widths = [max(map(cell_len, (heading, *body))) for heading, body in columns]
    if _line(widths) <= available:
        return headings, widths
    widths = [
        max(1, *(min(cell_len(cell), _UNWRAPPED) for cell in body), *map(cell_len, heading.split()))
        for heading, body in columns
    ]
    return [textwrap.fill(heading, width) for heading, width in zip(headings, widths, strict=True)], widths


def _parts(widths: Sequence[int], available: int) -> list[list[int]]:
    """The columns of each table, which is not wider than what is available if two of them fit; the first is in all."""
    parts = [[0]]
    for index in range(1, len(widths)):
        if len(parts[-1]) > 1 and _line([widths[column] for column in (*parts[-1], index)]) > available:
            parts.append([0])
        parts[-1].append(index)
    return parts


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, to: Console | None = None) -> None:
    """Prints a table; columns that hold numbers only, also written as text, are aligned to the right.

    Where the console is too narrow, headings take several lines; where that is not enough, the columns are spread over
    several tables, each with the first column. Only cells of more than 24 characters are ever wrapped.

    Args:
      title: one line above the table.
      columns: their headings.
      rows: a value for each column, of any type (see `number`).
      to: the console; default standard output.

    Raises:
      ValueError: a row has another length than `columns`.
    """
    out = to or console()
    cells = [[number(value) for value in row] for row in rows]
    for row in cells:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} values in a table of {len(columns)} columns: {row}")
    bodies = [[row[index] for row in cells] for index in range(len(columns))]
    headings, widths = _layout(columns, bodies, out.width)
    for order, part in enumerate(_parts(widths, out.width)):
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        if order == 0:
            grid.title, grid.title_justify = Text(title, style="bold"), "left"  # Text: brackets are no markup
        fits = _line([widths[index] for index in part]) <= out.width
        for index in part:
            numeric = bool(cells) and all(map(_NUMBER.fullmatch, bodies[index]))
            grid.add_column(
                Text(headings[index]),
                justify="right" if numeric else "left",
                no_wrap=fits and all(cell_len(cell) <= _UNWRAPPED for cell in bodies[index]),
                overflow="fold",
            )
        for row in cells:
            grid.add_row(*(Text(row[index]) for index in part))
        out.print(grid)


@contextlib.contextmanager
def progress(description: str, total: int, *, to: Console | None = None) -> Iterator[Callable[[], None]]:
    """Shows the progress of a loop: a bar on a terminal, elsewhere a line a minute at most.

    Yields:
      A function to call once an item is done.
    """
    out = to or console()
    if out.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=out) as bar:
            task = bar.add_task(description, total=total)
            yield lambda: bar.advance(task)
        return
    done, said = 0, time.monotonic()

    def advance() -> None:
        nonlocal done, said
        done += 1
        if time.monotonic() - said >= 60:
            said = time.monotonic()
            out.print(f"{description}: {done} of {total}", soft_wrap=True)

    yield advance


def curves(history: Sequence[Mapping[str, Any]], path: str | Path, *, title: str, columns: Sequence[str]) -> None:
    """Draws columns of a history against the epoch, a panel a quantity, and marks the epoch of the lowest `val_loss`.

    Args:
      history: a mapping an epoch with `"epoch"`, `"loss"`, `"val_loss"` and others; a missing, None or NaN value is a
        gap in its line.
      path: the PNG to write.
      title: above the panels; carries the title of the data.
      columns: what to draw; `x` and `val_x` share a panel.
    """
    from matplotlib.ticker import MaxNLocator

    epochs = [int(entry["epoch"]) for entry in history]
    panels: dict[str, list[str]] = {}
    for column in dict.fromkeys(columns):
        panels.setdefault(column.removeprefix("val_"), []).append(column)
    across = min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    figure = new_figure((7.2 if across == 1 else 5.2 * across, 0.55 + 3.9 * down))
    figure.set_layout_engine("constrained")
    figure.suptitle("\n".join(fold(title, 85 * across)), x=0.015, ha="left", fontsize=11, parse_math=False)
    best = best_epoch(history)
    for index, (quantity, names) in enumerate(panels.items()):
        axes = figure.add_subplot(down, across, index + 1)
        for name in names:
            validation = name.startswith("val_")
            axes.plot(
                epochs,
                _column(history, name),
                color=VALIDATION_LINE if validation else TRAINING_LINE,
                linestyle="-" if validation else (0, (5, 1.5)),
                marker="o" if len(epochs) <= 30 else None,
                markersize=3.5,
                linewidth=1.8,
                label="validation" if validation else "training",
            )
        if best is not None:
            axes.axvline(best, color="#555555", linewidth=1.2, linestyle=":", label="lowest validation loss", zorder=0)
            value = dict(zip(epochs, _column(history, f"val_{quantity}"), strict=True))[best]
            if f"val_{quantity}" in names and math.isfinite(value):
                axes.plot([best], [value], marker="D", color=VALIDATION_LINE, markersize=7, markeredgecolor="white")
                text = f"best epoch {best}: val_{quantity} {value:.4f}"
                axes.set_title(text, fontsize=9, loc="left", color="#444444", parse_math=False)
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity, parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(epochs) == 1:
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axes.grid(color="#E6E6E6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    save_figure(figure, path)


def reliability(figures: Mapping[str, Any], path: str | Path, *, title: str) -> None:
    """Draws how often pixels are tumour against how often they were predicted to be, and how many pixels each bin has.

    Args:
      figures: `"brier"`, `"expected_calibration_error"`, and `"reliability"` with the lists `"edges"` (one longer than
        the others), `"pixels"`, `"predicted"` and `"observed"`; a bin without pixels is left out.
      path: the PNG to write.
      title: above; carries the title of the data.
    """
    curve = figures["reliability"]
    held = [k for k, pixels in enumerate(curve["pixels"]) if pixels]
    edges, pixels = curve["edges"], curve["pixels"]
    figure = new_figure((5.6, 6.4))
    figure.set_layout_engine("constrained")
    figure.suptitle("\n".join(fold(title, 62)), x=0.015, ha="left", fontsize=11, parse_math=False)
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    above.plot([0, 1], [0, 1], color="#555555", linewidth=1.2, linestyle=":", label="as often as predicted")
    points = [[curve[name][k] for k in held] for name in ("predicted", "observed")]
    above.plot(*points, color=VALIDATION_LINE, marker="o", markersize=5, linewidth=1.8, label="observed")
    error, brier = (number(figures[name]) for name in ("expected_calibration_error", "brier"))
    text = f"all pixels: calibration error {error}, Brier score {brier}"
    above.set_title(text, fontsize=9, loc="left", color="#444444", parse_math=False)
    above.set_ylabel("share of pixels that are tumour")
    above.set_ylim(-0.02, 1.02)
    above.legend(frameon=False, fontsize=9)
    widths = [high - low for low, high in pairwise(edges)]
    below.bar(edges[:-1], pixels, widths, align="edge", color=TRAINING_LINE, edgecolor="white", log=True)
    below.set_ylim(bottom=0.5)  # so that a bin of one pixel shows
    below.set_ylabel("pixels")
    below.set_xlabel("predicted probability")
    below.set_xlim(-0.02, 1.02)
    for axes in (above, below):
        axes.grid(color="#E6E6E6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Returns the first epoch of the lowest finite `val_loss`, None where there is none."""
    losses = _column(history, "val_loss")
    finite = [(loss, index) for index, loss in enumerate(losses) if math.isfinite(loss)]
    return int(history[min(finite)[1]]["epoch"]) if finite else None


def _column(history: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [math.nan if entry.get(name) is None else float(entry[name]) for entry in history]
