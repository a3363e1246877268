"""`python -m experiments.train --config=dice --data.root=kaggle_3m`: trains, or goes on with a stopped run."""

import contextlib
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from experiments.progress import Progress
from experiments.signals import Preempted, StopRequest, anywhere
from experiments.trainer import Pending, Trainer, arrays

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.clock import Clock
    from experiments.config import Config
    from experiments.log import RunLog
    from jaxunet.step import TrainState

EMPTY_EPOCHS = 3
"""Validation epochs without a positive pixel after which a warning is due."""

HINT = "--config=demo trains in minutes, --train.epochs=N shortens"
"""What to do about hours on a CPU."""


def fit(trainer: Trainer, state: "TrainState", progress: Progress, log: "RunLog", console: "Console") -> Progress:
    """Trains to the last epoch, to early stopping or to a signal.

    Returns:
      The progress at the end.

    Raises:
      NonFiniteError: a loss or gradient is not finite; nothing was saved since.
      DataError: a slice cannot be read; the steps before it are saved.
      Preempted: a signal came; everything is saved.
    """
    from data_pipeline.source import DataError
    from experiments.log import Meter

    train, first = trainer.config.train, int(state.step) + 1
    feed, pending = trainer.feed(first - 1), Pending(trainer, progress, log)
    saved = time.monotonic()
    hint = HINT if trainer.program.mesh.devices.flat[0].platform == "cpu" else ""
    meter = Meter(console, total=trainer.total, done=first - 1, images=train.batch_size, hint=hint)
    with StopRequest().listening() as stop, meter:
        for step in range(first, trainer.total + 1):
            try:
                batch, inputs = next(feed)
            except DataError:
                keep(trainer, state, step - 1, progress, pending, log)
                raise
            state, metrics = trainer.program.train_step(state, inputs)
            feed.ahead(metrics["loss"])
            if step == first:
                say_start(trainer.clock.first(metrics["loss"]), step, log, console)
            meter.update(step, pending.exchange(step, batch, metrics))
            stopping, due = anywhere([bool(stop.name), time.monotonic() - saved > 60 * train.save_minutes], step)
            if step % trainer.steps_per_epoch == 0:
                pending.flush()
                end_epoch(trainer, state, step, progress, log, console)
            elif stopping or due:
                pending.flush()
            else:
                continue
            log.sync()
            trainer.save(state, step, progress)
            saved = time.monotonic()
            if progress.stopped or step == trainer.total:
                break
            if stopping:
                raise Preempted(f"stopped by {stop.name or 'another process'} and saved after step {step}")
    return progress


def say_start(seconds: Mapping[str, float], step: int, log: "RunLog", console: "Console") -> None:
    """Says where the time to the first step went."""
    log.time({"kind": "start", "step": step, **seconds})
    console.print(
        f"first step done after {seconds['first_step']:.1f} s, "
        f"{seconds['import']:.1f} s of them imports, {seconds['compile']:.1f} s compiling"
    )


def keep(trainer: Trainer, state: "TrainState", step: int, progress: Progress, pending: Pending, log: "RunLog") -> None:
    """Saves the steps that went well before one that cannot be made, unless another process would have to join in."""
    import jax

    if jax.process_count() == 1 and step > (trainer.last.latest or 0):
        pending.flush()
        log.sync()
        trainer.save(state, step, progress)


def end_epoch(
    trainer: Trainer, state: "TrainState", step: int, progress: Progress, log: "RunLog", console: "Console"
) -> None:
    """Validates, keeps the best weights, writes the tables and says how it went."""
    validation, empty = trainer.validate(state)
    better = progress.close_epoch(step, validation, empty=empty, patience=trainer.config.train.patience)
    if better:
        trainer.best.save(step, state.params, {"epoch": progress.epoch, "step": step, "val_loss": validation["loss"]})
    log.epoch(progress.history)
    lap = trainer.clock.lap()
    log.time({"kind": "time", "step": step, "epoch": progress.epoch, **lap})
    row = progress.history[-1]
    columns = dict.fromkeys(["loss", "val_loss", *trainer.config.train.metrics])
    text = "  ".join(f"{c} {row[c]:.4f}" if row.get(c) is not None else f"{c} undefined" for c in columns)
    seconds = f"{lap['seconds']:.1f} s, {lap['waited']:.1%} waiting for data"
    console.print(f"epoch {progress.epoch}: {text}{'  (best)' if better else ''}  {seconds}")
    if not math.isfinite(validation["loss"]):
        console.print(
            f"[bold]warning[/bold]: the validation loss is {validation['loss']}, which early stopping cannot judge: "
            "look at the validation slices and at the loss"
        )
    if progress.empty_epochs == EMPTY_EPOCHS:
        console.print(
            f"[bold]warning[/bold]: no positive pixel in {EMPTY_EPOCHS} validation epochs in a row: the network has "
            "collapsed to the empty mask. Try another --train.seed, a lower --train.learning_rate (3e-4), or a region "
            "loss (--train.loss=bce_dice).",
        )


def announce(trainer: Trainer, state: "TrainState", directory: Path, console: "Console") -> None:
    """Says what is about to run, and on what."""
    import jax

    config, data, split = trainer.config, trainer.data, trainer.split
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices = trainer.program.mesh.devices.flat
    lines = {
        "run": str(directory),
        "devices": f"{trainer.program.mesh.size} x {devices[0].device_kind} ({devices[0].platform})",
        "data": data.title,
        "split": f"{split.by}: {len(split.train)} training, {len(split.val)} validation, {len(split.test)} test slices",
        "network": f"{parameters:,} parameters, images {data.shape[0]}x{data.shape[1]}x{data.shape[2]}",
        "loss": config.train.loss,
        "steps": f"{trainer.total} = {config.train.epochs} epochs of {trainer.steps_per_epoch}, "
        f"{config.train.batch_size} slices each",
    }
    for name, text in lines.items():
        console.print(f"[bold]{name:8}[/bold] {escape(text)}")
    for note in split.notes:
        console.print(f"note: {note}", markup=False)


def check_space(trainer: Trainer, state: "TrainState", directory: Path) -> None:
    """Refuses to train where the checkpoints will not fit.

    A new run needs three full states (two kept, one in the making) and two times the best weights; one that goes on
    has the kept ones already, and one that is finished needs none.

    Args:
      trainer: with the checkpoints that are there.
      state: the train state, or its shapes and dtypes.
      directory: the run directory.

    Raises:
      CheckpointError: too little free space.
    """
    from jaxunet.checkpoint import CheckpointError, free_megabytes, megabytes

    if is_finished(trainer):
        return
    full, weights = megabytes(arrays(state)), megabytes(state.params)
    needed = 3 * full + 2 * weights if trainer.last.latest is None else full + weights
    if free_megabytes(directory) < needed:
        raise CheckpointError(
            f"{directory}: the checkpoints need {needed:.1f} MB, {free_megabytes(directory):.1f} MB are free; "
            "make room or name a --run_dir on another disk"
        )


def is_finished(trainer: Trainer) -> bool:
    """Whether the newest checkpoint is that of the last epoch, or of an early stop."""
    from jaxunet.checkpoint import DamagedError

    step = trainer.last.latest
    if step is None:
        return False
    try:
        return step >= trainer.total or bool(trainer.last.record(step)["stopped"])
    except DamagedError:  # what is to be done about it is for `Trainer.start` to say
        return False


def result_table(progress: Progress, directory: Path, config: "Config", time: Mapping[str, float]) -> None:
    """Prints the epochs, the time this process trained and the commands that come next."""
    from experiments.console import table

    columns = list(dict.fromkeys(["loss", "val_loss", *config.train.metrics]))
    best = progress.best_epoch
    shown = [row for row in progress.history if row["epoch"] == best or row["epoch"] > progress.epoch - 5]
    cells = [
        [f"{row['epoch']}{' (best)' if row['epoch'] == best else ''}", *(_cell(row.get(c)) for c in columns)]
        for row in shown
    ]
    table(f"{directory}: {progress.epoch} epochs, {progress.stopped or 'all done'}", ["epoch", *columns], cells)
    if time["seconds"]:
        sys.stdout.write(f"\nwaited for data {time['waited']:.1%} of {time['seconds']:.1f} s\n")
    sys.stdout.write(
        f"\nnext:\n  python -m experiments.evaluate --run_dir={directory}\n"
        f"  python -m experiments.predict --run_dir={directory} --infer.images=FOLDER\n"
    )


def _cell(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def train(
    config: "Config", console: "Console", clock: "Clock", batch_sizes: Sequence[str] = ("train.batch_size",)
) -> Progress:
    """Trains a configuration in its run directory, or goes on where it stopped.

    Args:
      config: checked by `experiments.limits.validate`.
      console: where to print.
      clock: measures this process.
      batch_sizes: keys of the batches that must divide among the devices.

    Returns:
      The progress at the end.

    Raises:
      ConfigError, DataError, CheckpointError, NonFiniteError, Preempted: see there.
    """
    import jax

    from data_pipeline.loader import steps_per_epoch
    from experiments import build
    from experiments.identity import identity, run_directory
    from experiments.limits import check_devices
    from experiments.log import RESULTS, RunLog
    from experiments.processes import agree, together
    from experiments.program import Program, changing_threads_often, needs_no_slices
    from experiments.rundir import check_directory, claim, locked, record_start, saved_split

    directory, first = run_directory(config), jax.process_index() == 0
    results = Path(config.train.eval_dir or directory)
    with together("looking at the configuration and the data"):  # what is wrong is said before anything is written
        check_devices(config, jax.device_count(), batch_sizes)
        build.loss(config)
        begun = check_directory(directory, config)
        source, program = build.source(config), None
        with source.reading():
            if not begun and needs_no_slices(config):
                with changing_threads_often():
                    program = Program(config, clock).initialise().trace()
            data = build.dataset(config, source, progress=first)
        split = saved_split(directory, data) if begun else build.data_split(config, data)
        steps_per_epoch(len(split.train), config.train.batch_size)
    parts = [split.train, split.val, split.test]
    told = {"configuration": identity(config), "train.epochs": config.train.epochs, "run_dir": str(directory)}
    agree({**told, "data": data.fingerprint, "split": parts, "run begun": begun})
    with contextlib.ExitStack() as stack:
        with together("opening the run directory"):
            if first:
                stack.enter_context(locked(directory))
                record_start(directory, config, data, split)
                claim(results, directory, RESULTS)
        trainer = stack.enter_context(contextlib.closing(Trainer(config, data, split, directory, clock, program)))
        with together("looking for space"):
            check_space(trainer, trainer.program.abstract, directory)
        with together("loading the slices"):
            if not is_finished(trainer):
                trainer.load()
        state, progress = trainer.start(console)
        step = int(state.step)
        agree({"checkpoint": step})
        announce(trainer, state, directory, console)
        if step:
            console.print(f"going on after step {step}, epoch {progress.epoch}")
        log = RunLog(
            directory,
            eval_dir=results,
            columns=config.train.metrics,
            title=f"{config.config}: {data.title}",
            step=step,
            silent=not first,
        )
        with contextlib.closing(log):
            if not progress.stopped and step < trainer.total:
                trainer.load()  # where a finished run turned out damaged; else it has been done
                progress = fit(trainer, state, progress, log, console)
    if first:
        result_table(progress, directory, config, clock.total())
    return progress


def main(argv: Sequence[str], *, program: str = "train", batch_sizes: Sequence[str] = ("train.batch_size",)) -> int:
    """Reads the command line and trains; a program that goes on with the run names itself and its batches."""
    from experiments.cli import parse

    config = parse(argv, program=program)
    import jax
    from rich.console import Console

    from experiments import build  # noqa: F401 - with it comes everything that a step needs
    from experiments.clock import Clock
    from experiments.processes import start_processes

    clock = Clock()
    clock.libraries_imported()
    start_processes(config)
    console = Console(quiet=jax.process_index() > 0, soft_wrap=True, highlight=False)
    if config.model.show_summary and jax.process_index() == 0:
        from experiments import summary

        summary.print_summary(config)
    try:
        train(config, console, clock, batch_sizes)
    except Preempted as stop:
        console.print(f"{stop}; the same command goes on from there")
        return stop.exit_code
    return 0


if __name__ == "__main__":
    from experiments.cli import run_program

    sys.exit(run_program(main))
