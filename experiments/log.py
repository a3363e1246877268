"""What a run says while it trains: a row a step, a row an epoch, a progress bar, curves, TensorBoard events."""

import csv
import io
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.rundir import write_atomically

Row = Mapping[str, Any]

TABLES = ("train_losses", "train_metrics")
RESULTS = tuple(f"{name}.{kind}" for name in TABLES for kind in ("csv", "png"))
"""The files of a run that `train.eval_dir` can send elsewhere while it trains."""


class Events(Protocol):
    """The part of a TensorBoard writer that is used."""

    def add_scalar(self, tag: str, value: float, step: int) -> Any:
        """Records one number."""

    def close(self) -> Any:
        """Flushes and closes."""


class RunLog:
    """Writes the files of a run.

    Args:
      run_dir: the run directory.
      eval_dir: where CSV files and curves go.
      columns: the two columns of `train_metrics.csv` after `epoch`.
      title: of the curves; names the data set.
      step: rows of later steps, left by a process that was killed before it saved, are dropped.
      silent: write nothing: in a distributed run one process writes for all.
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
        self._events = None if silent else _open_events(run_dir / "tensorboard", step)

    def step(self, row: Row) -> None:
        """Appends the row of a step: `step`, `epoch`, `loss` and scores."""
        self._append(row)
        if self._events:
            for name in row.keys() - {"step", "epoch"}:
                self._events.add_scalar(f"step/{name}", row[name], row["step"])

    def epoch(self, history: Sequence[Row]) -> None:
        """Appends the newest epoch, and writes the CSV files and the curves of all of them."""
        newest = history[-1]
        self._append({"kind": "epoch", **newest})
        if self._events:
            for name in newest.keys() - {"step", "epoch"}:
                if newest[name] is not None:
                    self._events.add_scalar(f"epoch/{name}", newest[name], newest["step"])
        self.tables(history)

    def time(self, row: Row) -> None:
        """Appends a row of a machine's times: what a run on another machine, or a resumed one, does not repeat."""
        self._append(row)

    def tables(self, history: Sequence[Row]) -> None:
        """Writes the CSV files and the curves."""
        if self.silent:
            return
        from experiments import plots  # matplotlib takes a second to import

        for name, columns in zip(TABLES, (("loss", "val_loss"), self.columns), strict=True):
            write_atomically(self.eval_dir / f"{name}.csv", _csv(history, ("epoch", *columns)))
            plots.curves(history, self.eval_dir / f"{name}.png", title=self.title, columns=columns)

    def sync(self) -> None:
        """Brings all rows to the disk; called before a checkpoint that counts on them."""
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


def _open_events(directory: Path, step: int) -> Events | None:
    """TensorBoard events, if the extra `tensorboard` is installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=step + 1 if step else None)


class Meter:
    """The progress of a run: a bar on a terminal, a line a minute elsewhere.

    Args:
      console: where to print.
      total: steps of the whole run.
      done: steps finished before.
      images: images a step.
      hint: what to say where the run will take more than half an hour.
      seconds_a_line: pause between two lines where there is no terminal.
    """

    def __init__(
        self, console: Console, *, total: int, done: int, images: int, hint: str = "", seconds_a_line: float = 60.0
    ) -> None:
        self.console, self.total, self.images, self.hint = console, total, images, hint
        self.seconds_a_line = seconds_a_line
        self._first = self._last_line = time.monotonic()
        self._done_before = done
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("training", total=total, completed=done)

    def __enter__(self) -> "Meter":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, step: int, text: str) -> None:
        """Shows a finished step and a text such as `loss 0.1234`."""
        now = time.monotonic()
        if step == self._done_before + 1:
            self._first = now  # the first step holds the compilation, which says nothing of the ones to come
        steps = step - self._done_before - 1
        seconds = (now - self._first) / steps if steps > 0 else math.nan
        speed = f"{seconds:.3g} s a step, {self.images / seconds:.3g} images/s" if steps > 0 and seconds > 0 else ""
        self._bar.update(self._task, completed=step, description=f"{text}  {speed}")
        if steps == 3 and self.hint and seconds * (self.total - step) > 1800:
            hours = seconds * self.total / 3600
            self.console.print(
                f"[bold]all epochs take about {hours:.1f} hours at {seconds:.2g} s a step[/bold]; {self.hint}"
            )
        if not self.console.is_terminal and now - self._last_line >= self.seconds_a_line:
            self._last_line = now
            left = f", {_duration(seconds * (self.total - step))} left at most" if steps > 0 else ""
            self.console.print(f"step {step} of {self.total}: {text}  {speed}{left}")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
