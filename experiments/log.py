"""The records of a training run: JSON lines, CSV tables, curves and TensorBoard events."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import plots
from experiments.run_directory import write_atomically

try:
    from tensorboardX import SummaryWriter
except ImportError:  # the extra `tensorboard` is not installed
    SummaryWriter = None

Row = Mapping[str, Any]

TABLES = ("train_losses", "train_metrics")
RESULTS = tuple(f"{name}.{kind}" for name in TABLES for kind in ("csv", "png"))
"""Files that training writes to `train.eval_dir` if it is set."""


class RunLog:
    """Writes the files of a run.

    Args:
      run_dir: the run directory.
      eval_dir: where CSV files and curves go.
      columns: the two columns of `train_metrics.csv` after `epoch`.
      title: of the curves; names the data set.
      step: rows of later steps, left by a process that was killed before it saved, are dropped.
      silent: write nothing. In a distributed run one process writes for all.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        eval_dir: Path,
        columns: Sequence[str],
        title: str,
        step: int,
        silent: bool = False,
    ) -> None:
        self.eval_dir, self.columns, self.title, self.silent = eval_dir, tuple(columns), title, silent
        path = Path(os.devnull) if silent else run_dir / "metrics.jsonl"
        if not silent:
            eval_dir.mkdir(parents=True, exist_ok=True)
            if path.exists():
                _drop_after(path, step)
        self._rows = path.open("a", encoding="utf-8", buffering=1)
        self._events = None
        if SummaryWriter and not silent:
            self._events = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def step(self, row: Row) -> None:
        """Appends the row of a step: `step`, `epoch`, `loss` and scores."""
        self._append(row)
        if self._events:
            for name in row.keys() - {"step", "epoch"}:
                self._events.add_scalar(f"step/{name}", row[name], row["step"])

    def epoch(self, history: Sequence[Row]) -> None:
        """Appends the newest epoch and rewrites the CSV files and the curves."""
        newest = history[-1]
        self._append({"kind": "epoch", **newest})
        if self._events:
            for name in newest.keys() - {"step", "epoch"}:
                if newest[name] is not None:
                    self._events.add_scalar(f"epoch/{name}", newest[name], newest["step"])
        self.tables(history)

    def time(self, row: Row) -> None:
        """Appends a row of times, the only rows that differ between machines and when a run is resumed."""
        self._append(row)

    def tables(self, history: Sequence[Row]) -> None:
        """Writes the CSV files and the curves."""
        if self.silent:
            return
        for name, columns in zip(TABLES, (("loss", "val_loss"), self.columns), strict=True):
            write_atomically(self.eval_dir / f"{name}.csv", _csv(history, ("epoch", *columns)))
            plots.curves(history, self.eval_dir / f"{name}.png", title=self.title, columns=columns)

    def sync(self) -> None:
        """Writes all rows to the disk; called before a checkpoint that relies on them."""
        self._rows.flush()
        if not self.silent:
            os.fsync(self._rows.fileno())

    def close(self) -> None:
        """Closes the files."""
        self._rows.close()
        if self._events:
            self._events.close()

    def _append(self, row: Row) -> None:
        self._rows.write(json.dumps(row) + "\n")


def _drop_after(path: Path, step: int) -> None:
    with path.open(encoding="utf-8", errors="replace") as file:
        kept = [line for line in file if _is_before(line, step)]
    write_atomically(path, "".join(kept))


def _is_before(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False  # the half line of a process that was killed while writing


def _csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if row.get(c) is None else row[c] for c in columns] for row in rows])
    return text.getvalue()
