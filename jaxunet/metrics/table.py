"""Scores of a whole data set by slice, patient, site and overall, with micro and macro means."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunet.losses.reduction import Empty
from jaxunet.metrics.counts import PixelSums, add, group
from jaxunet.metrics.scores import SCORES

__all__ = ["TableRow", "score_table"]


class TableRow(NamedTuple):
    """One score at one level.

    Attributes:
      score: name of the score.
      level: what a group is: `"slice"`, `"tumour_slice"`, `"patient"`, `"site"`, `"overall"`.
      micro: the score of all pixels of the level's groups together.
      macro: mean of the groups' scores, without undefined ones.
      median: of the groups' scores, likewise.
      std: standard deviation of the groups' scores (divided by their number), likewise.
      groups: their number, undefined ones included.
      undefined: number of groups without a score.
    """

    score: str
    level: str
    micro: float
    macro: float
    median: float
    std: float
    groups: int
    undefined: int


def score_table(
    sums: PixelSums,
    groups: Mapping[str, Sequence[Any] | np.ndarray],
    *,
    scores: Mapping[str, Callable[..., Any]] = SCORES,
    empty: Empty = "perfect",
) -> list[TableRow]:
    """Scores rows of sums at every level, on the host, exactly for any number of pixels.

    The levels are `"slice"` (each row), `"tumour_slice"` (rows whose mask is not empty), those of `groups`, and
    `"overall"` (one group). A macro mean gives every group the same weight, a micro mean every pixel; over slices that
    are mostly empty they differ by tenths. Rows without a single pixel are padding and ignored.

    Args:
      sums: rows `[N]`, one per image.
      groups: for each further level, for example `"patient"` and `"site"`, the group of each row, `[N]`.
      scores: functions of `PixelSums` by name.
      empty: "skip" removes groups without a true pixel from all means and counts them as undefined.

    Returns:
      One row per level and score, levels first; a value that is not defined is NaN.

    Raises:
      ValueError: a level has another number of labels than there are rows, or the name of a built-in level; or
        `empty` is unknown.
    """
    if empty not in ("perfect", "skip"):
        raise ValueError(f"empty={empty!r}; expected one of 'perfect', 'skip'")
    sums = PixelSums(*(np.asarray(s, np.int64 if i < 4 else np.float64) for i, s in enumerate(sums)))
    for level, labels in groups.items():
        if level in ("slice", "tumour_slice", "overall"):
            raise ValueError(f"groups[{level!r}]: this level exists already, use another name")
        if np.shape(labels) != sums.tp.shape:
            raise ValueError(f"groups[{level!r}] has shape {np.shape(labels)}, the sums {sums.tp.shape}")
    kept = sums.tp + sums.fp + sums.fn + sums.tn > 0
    sums = _rows(sums, kept)
    levels = {"slice": sums, "tumour_slice": _rows(sums, sums.tp + sums.fn > 0)}
    levels |= {level: group(sums, np.asarray(labels)[kept])[1] for level, labels in groups.items()}
    levels["overall"] = group(sums, np.zeros(len(sums.tp), int))[1]
    table = []
    for level, rows in levels.items():
        counted = _rows(rows, rows.tp + rows.fn > 0) if empty == "skip" else rows
        for name, score in scores.items():
            values = np.asarray(score(counted), np.float64)
            values = values[~np.isnan(values)]
            macro, median, std = (float(f(values)) if len(values) else math.nan for f in (np.mean, np.median, np.std))
            micro, count = float(score(add(counted))), len(rows.tp)
            table.append(TableRow(name, level, micro, macro, median, std, count, count - len(values)))
    return table


def _rows(sums: PixelSums, chosen: np.ndarray) -> PixelSums:
    return PixelSums(*(values[chosen] for values in sums))
