"""Tables and numbers on the terminal."""

import math
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_NUMBER = re.compile(r"(|-|undefined|[-+]?(\d[\d ,]*(\.\d+)?|inf)(e[-+]?\d+)?( ?%| s)?)")
_ONE_LINE = 24  # cells up to this width are never wrapped


def console() -> Console:
    """Returns a console for standard output; 160 columns wide if that is not a terminal and COLUMNS is not set."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(width=width, highlight=False)


def number(value: Any) -> str:
    """Formats a value for a table: floats with 4 decimals, 31 110 001, a dash for None and `undefined` for NaN."""
    if value is None:
        return "-"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, float | np.floating):
        return "undefined" if math.isnan(value) else f"{value:.4f}"
    return str(value)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, to: Console | None = None) -> None:
    """Prints a table; columns of numbers are aligned to the right, also where the numbers are text.

    If the console is too narrow, headings are wrapped; if that is not enough, each row becomes a list of its headings
    and values. Cells of up to 24 characters stay on one line.

    Args:
      title: one line above the table.
      columns: their headings.
      rows: one value per column, formatted by `number`.
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
    natural = [max(map(cell_len, (heading, *body))) for heading, body in zip(columns, bodies, strict=True)]
    least = [  # with headings wrapped between words, and long cells wrapped
        max(1, *(min(cell_len(cell), _ONE_LINE) for cell in body), *map(cell_len, heading.split()))
        for heading, body in zip(columns, bodies, strict=True)
    ]
    margins = 3 * len(columns) - 1
    as_list = sum(least) + margins > out.width
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=not as_list)
    if as_list:
        grid.add_column(overflow="fold")
        grid.add_column(overflow="fold", no_wrap=all(cell_len(cell) <= _ONE_LINE for row in cells for cell in row))
        for row in cells:
            for heading, cell in zip(columns, row, strict=True):
                grid.add_row(Text(heading), Text(cell))  # Text: brackets are not markup
            grid.add_section()
    else:
        for heading, body, width in zip(columns, bodies, least, strict=True):
            grid.add_column(
                # Rich would take the width from any column, also from numbers, so the headings are wrapped here.
                Text(heading if sum(natural) + margins <= out.width else textwrap.fill(heading, width)),
                justify="right" if cells and all(map(_NUMBER.fullmatch, body)) else "left",
                no_wrap=all(cell_len(cell) <= _ONE_LINE for cell in body),
                overflow="fold",
            )
        for row in cells:
            grid.add_row(*map(Text, row))
    out.print(Text(title, style="bold"))
    out.print(grid)
