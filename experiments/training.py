"""Training: the loop, its compiled steps, early stopping, and checkpoints of the run.

`train` sets a run up and `fit` is the loop. The numbers of a step are fetched while the next one runs
(`DelayedMetrics`), so that the devices never wait for the host.
"""

import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.markup import escape

from data_pipeline.console import progress as progress_bar
from data_pipeline.loader import eval_batches, steps_per_epoch, train_batches
from data_pipeline.prepared import Prepared
from data_pipeline.source import DataError
from data_pipeline.splits import Split
from experiments import build
from experiments.config import METRIC_NAMES, Config
from experiments.console import table
from experiments.evaluation import evaluate_batches
from experiments.evaluation_tables import batch_means
from experiments.limits import check_devices
from experiments.log import RESULTS, RunLog
from experiments.machine import Clock
from experiments.prefetch import Prefetcher, SliceStore
from experiments.processes import (
    PeerError,
    Preempted,
    StopRequest,
    any_process,
    assert_same_on_all,
    fail_together,
    start_processes,
)
from experiments.run_directory import check_directory, claim, identity, locked, record_start, run_directory, saved_split
from experiments.summary import print_summary
from jaxunet.checkpoint import (
    CheckpointError,
    Checkpoints,
    DamagedError,
    abstract_like,
    free_megabytes,
    megabytes,
)
from jaxunet.metrics import SCORES, add
from jaxunet.sharding import batch_sharding, make_mesh
from jaxunet.step import TrainState, abstract_state, compile_eval_step, compile_train_step, init_state, state_sharding

TRACKED = tuple(name for name in METRIC_NAMES if name != "loss")
"""Scores of every batch, averaged over the batches of an epoch as the reference does."""

EMPTY_EPOCHS = 3
"""Validation epochs without a predicted pixel after which a warning is printed."""

SLOW_SECONDS = 1800
"""Remaining time above which a hint on shortening the run is printed."""


class NonFiniteError(ArithmeticError):
    """A loss or gradient was infinite or NaN; the state before that step was kept."""

    exit_code = 3


@dataclasses.dataclass
class RunProgress:
    """What a resumed run needs besides the train state; stored as JSON in every checkpoint.

    Attributes:
      epoch: finished epochs.
      best_loss: lowest validation loss, None before the first epoch.
      best_epoch: the epoch with that loss.
      stale_epochs: epochs since then.
      empty_epochs: latest epochs in a row whose validation predicted no positive pixel.
      stopped: why training ended before its last epoch, empty if it did not.
      history: one row per epoch.
      totals: of the current epoch, `{score: [sum, number of batches that define it]}`.
    """

    epoch: int = 0
    best_loss: float | None = None
    best_epoch: int = 0
    stale_epochs: int = 0
    empty_epochs: int = 0
    stopped: str = ""
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    totals: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def add(self, scores: Mapping[str, float]) -> None:
        """Adds a batch to the current epoch; an undefined score is left out."""
        for name, value in scores.items():
            if not math.isnan(value):
                total, count = self.totals.get(name, (0.0, 0))
                self.totals[name] = [total + value, count + 1]

    def means(self) -> dict[str, float | None]:
        """Returns the means of the current epoch; None where no batch defines the score."""
        return {n: self.totals[n][0] / self.totals[n][1] if n in self.totals else None for n in ("loss", *TRACKED)}

    def close_epoch(self, step: int, validation: Mapping[str, Any], *, empty: bool, patience: int) -> bool:
        """Ends the epoch with its validation scores; returns whether its validation loss is the lowest so far."""
        self.epoch += 1
        row = {"epoch": self.epoch, "step": step, **self.means()}
        row |= {f"val_{name}": value for name, value in validation.items()}
        self.history.append({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
        self.totals = {}
        self.empty_epochs = self.empty_epochs + 1 if empty else 0
        # NaN counts as best only until a finite loss appears.
        lowest = math.inf if self.best_loss is None or math.isnan(self.best_loss) else self.best_loss
        better = self.best_loss is None or validation["loss"] < lowest
        if better:
            self.best_loss, self.best_epoch, self.stale_epochs = validation["loss"], self.epoch, 0
        else:
            self.stale_epochs += 1
        if self.stale_epochs >= patience:
            self.stopped = f"no lower validation loss for {patience} epochs"
        return better


class CompiledSteps:
    """The network of a run, its optimizer and its compiled steps.

    Args:
      config: the run.
      clock: counts the time of tracing and compiling.
      per_epoch: training steps per epoch, which a warm-up depends on.

    Attributes:
      mesh: all devices.
      abstract: shapes and dtypes of the train state.
      places: its shardings.
      train_step: `(state, inputs) -> (state, metrics)`, after `compile`; the state that is passed is used up.
      eval_step: the evaluation step, after `compile`.
    """

    train_step: Callable[..., tuple[TrainState, dict[str, Any]]]
    eval_step: Callable[..., Any]

    def __init__(self, config: Config, clock: Clock, per_epoch: int) -> None:
        self.config, self.clock, self.per_epoch = config, clock, per_epoch
        self.mesh = make_mesh()
        self.model, self.optimizer = build.model(config), build.optimizer(config, per_epoch)
        with clock.compiling():
            self.abstract = abstract_state(self.model, self.optimizer, image_shape=build.image_shape(config))
        self.places = state_sharding(self.abstract, self.mesh, split_optimizer=config.train.shard_optimizer)

    def fresh_state(self) -> TrainState:
        """Returns the state of step 0, on the devices; all processes call this at the same point."""
        shape = build.image_shape(self.config)
        with self.clock.compiling():
            state = init_state(self.model, self.optimizer, seed=self.config.train.seed, image_shape=shape)
        placed: TrainState = jax.device_put(state, self.places)  # also compares the values of all processes
        return placed

    def compile(self, store: SliceStore) -> None:
        """Compiles the training step for batches from `store`, and prepares the evaluation step."""
        train = self.config.train
        height, width, channels = build.image_shape(self.config)
        shapes = store.input_shapes(train.batch_size, (height, width, channels), (height, width, 1))
        loss, batches = build.loss(self.config), batch_sharding(shapes, self.mesh)
        step = compile_train_step(
            self.mesh,
            loss=loss,
            seed=train.seed,
            accumulate=train.accumulate,
            augment=build.augmentation(self.config),
            state_sharding=self.places,
            batch_sharding=batches,
        )
        with self.clock.compiling():
            self.train_step = step.lower(abstract_like(self.abstract, self.places), shapes).compile()
        self.eval_step = compile_eval_step(self.mesh, apply_fn=self.model.apply, loss=loss, batch_sharding=batches)


class Trainer:
    """The data, compiled steps and checkpoints of a training run.

    Args:
      config: the run.
      data: prepared slices.
      split: their division.
      steps: the network and its steps, not yet compiled.
      directory: the run directory.
    """

    def __init__(self, config: Config, data: Prepared, split: Split, steps: CompiledSteps, directory: Path) -> None:
        self.config, self.data, self.split, self.steps, self.clock = config, data, split, steps, steps.clock
        self.steps_per_epoch = steps.per_epoch
        self.total = config.train.epochs * self.steps_per_epoch
        self.last = Checkpoints(directory / "checkpoints" / "last", keep=2)
        self.best = Checkpoints(directory / "checkpoints" / "best", keep=1)

    def restore(self, console: Console) -> tuple[TrainState, RunProgress]:
        """Returns the newest undamaged checkpoint, or a fresh state; sets damaged checkpoints aside with a warning.

        Raises:
          CheckpointError: every checkpoint is damaged. Whether to start again is for the user to decide.
        """
        abstract = abstract_like(arrays(self.steps.abstract), arrays(self.steps.places))
        while (step := self.last.latest) is not None:
            try:
                with fail_together(f"reading checkpoint {step}"):
                    tree, record = self.last.restore(abstract, step)
                return self.steps.abstract.replace(**tree), RunProgress(**record)
            except (DamagedError, PeerError) as error:
                aside = self.last.set_aside(step)
                console.print(f"[bold]warning[/bold]: {escape(str(error))}; set aside as {escape(aside.name)}")
        if self.last.damaged:
            raise CheckpointError(
                f"no undamaged checkpoint is left in {self.last.directory}, {len(self.last.damaged)} damaged ones are; "
                "restore one from a copy, or start again with a new --run_dir"
            )
        return self.steps.fresh_state(), RunProgress()

    def load(self) -> None:
        """Puts the slices where `data.cache` says and compiles the steps.

        Raises:
          UsageError: the slices do not fit there.
          DataError: a slice that must be kept on the devices cannot be read.
        """
        data, indices = self.config.data, [*self.split.train, *self.split.val]
        with fail_together("loading the slices"):
            self.store = SliceStore(self.data, indices, cache=data.cache, threads=data.threads, mesh=self.steps.mesh)
        self.steps.compile(self.store)

    def batches(self, step: int) -> Prefetcher:
        """Returns the training batches after `step`."""
        train = self.config.train
        make = functools.partial(train_batches, batch_size=train.batch_size, seed=train.seed, start_step=step)
        return self._prefetch(make, self.split.train)

    def validate(self, state: TrainState) -> tuple[dict[str, float], bool]:
        """Returns validation loss and scores, and whether no pixel was predicted positive."""
        size = self.config.train.batch_size
        result = evaluate_batches(
            functools.partial(self.steps.eval_step, step=int(state.step)),
            state.params,
            self._prefetch(functools.partial(eval_batches, batch_size=size), self.split.val),
            count=len(self.split.val),
            batch_size=size,
        )
        scores = {"loss": result.loss, **batch_means(result.sums, size, TRACKED)}
        return scores, not (result.sums.tp + result.sums.fp).any()

    def _prefetch(self, make: Callable[..., Any], indices: Sequence[int]) -> Prefetcher:
        processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        batches = make(self.store.source, indices, threads=self.config.data.threads, **processes)
        return Prefetcher(batches, self.store.put, self.clock.wait)

    def save(self, state: TrainState, step: int, progress: RunProgress) -> None:
        """Saves the full state."""
        self.last.save(step, arrays(state), dataclasses.asdict(progress))

    def close(self) -> None:
        """Releases the threads of the checkpoints."""
        self.last.close()
        self.best.close()


def arrays(state: TrainState) -> dict[str, Any]:
    """Returns the part of a train state that a checkpoint holds."""
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


class DelayedMetrics:
    """Fetches the numbers of a step while the next one runs, so that the devices never wait for the host."""

    def __init__(self, trainer: Trainer, progress: RunProgress, log: RunLog) -> None:
        self.trainer, self.progress, self.log = trainer, progress, log
        self._pending: tuple[int, Mapping[str, Any], Mapping[str, Any]] | None = None
        self._text = "starting"

    def exchange(self, step: int, batch: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
        """Records the step before and keeps this one for later; returns a text for the progress bar."""
        self.flush()
        self._pending = step, batch, metrics
        return self._text

    def flush(self) -> None:
        """Records the pending step; raises NonFiniteError if it failed."""
        if self._pending is None:
            return
        step, batch, metrics = self._pending
        self._pending = None
        metrics = jax.device_get(dict(metrics))
        if not metrics["finite"]:
            raise NonFiniteError(self._explain(step, batch, float(metrics["loss"])))
        total = add(metrics["sums"])
        scores = {"loss": float(metrics["loss"])} | {name: float(SCORES[name](total)) for name in TRACKED}
        self.progress.add(scores)
        column = self.trainer.config.train.metrics[0]
        means = self.progress.means()
        self._text = f"epoch {self.progress.epoch + 1}  loss {means['loss']:.4f}"
        if means.get(column) is not None and column != "loss":
            self._text += f"  {column} {means[column]:.4f}"
        row = {"step": step, "epoch": self.progress.epoch + 1, "grad_norm": float(metrics["grad_norm"]), **scores}
        self.log.step({k: v for k, v in row.items() if not math.isnan(v)})

    def _explain(self, step: int, batch: Mapping[str, Any], loss: float) -> str:
        patients = self.trainer.data.patients
        pairs = zip(batch["patient"], batch["slice"], strict=True)
        slices = ", ".join(f"{patients[p] if len(patients) else '?'} slice {s}" for p, s in pairs)
        good = self.trainer.last.latest
        kept = f"the last good checkpoint is step {good}" if good is not None else "there is no checkpoint yet"
        what = f"loss {loss}" if not math.isfinite(loss) else "gradient"
        return (
            f"non-finite {what} at step {step}, on {slices}; {kept}. "
            "Look at these slices, lower --train.learning_rate, or compute in float32"
        )


def fit(trainer: Trainer, state: TrainState, progress: RunProgress, log: RunLog, console: Console) -> RunProgress:
    """Trains to the last epoch, to early stopping or to a signal.

    Returns:
      The progress at the end.

    Raises:
      NonFiniteError: a loss or gradient is not finite; nothing was saved since.
      DataError: a slice cannot be read; the steps before it are saved.
      Preempted: a signal was received; everything is saved.
    """
    first, save_seconds = int(state.step) + 1, 60 * trainer.config.train.save_minutes
    batches, delayed = trainer.batches(first - 1), DelayedMetrics(trainer, progress, log)
    saved, pace = time.monotonic(), Pace(trainer, console)
    bar = progress_bar("training", trainer.total, done=first - 1, to=console)
    with StopRequest().listening() as stop, bar as advance:
        for step in range(first, trainer.total + 1):
            try:
                batch, inputs = next(batches)
            except DataError:
                save_before_failure(trainer, state, step - 1, progress, delayed, log)
                raise
            state, metrics = trainer.steps.train_step(state, inputs)
            batches.prefetch(metrics["loss"])
            if step == first:
                report_start(trainer.clock.first(metrics["loss"]), step, log, console)
            advance(f"{delayed.exchange(step, batch, metrics)}  {pace.update(step)}")
            stopping, due = any_process([bool(stop.name), time.monotonic() - saved > save_seconds], step)
            if step % trainer.steps_per_epoch == 0:
                delayed.flush()
                end_epoch(trainer, state, step, progress, log, console)
            elif stopping or due:
                delayed.flush()
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


class Pace:
    """Measures the steps after the first one, which includes the start-up of the devices."""

    def __init__(self, trainer: Trainer, console: Console) -> None:
        self.trainer, self.console = trainer, console
        self._first: tuple[int, float] | None = None

    def update(self, step: int) -> str:
        """Counts a step; returns the speed so far. On a slow CPU run, prints once how long the run will take."""
        now = time.monotonic()
        if self._first is None:
            self._first = step, now
            return ""
        done, seconds = step - self._first[0], now - self._first[1]
        if not seconds:
            return ""
        each = seconds / done
        on_cpu = self.trainer.steps.mesh.devices.flat[0].platform == "cpu"
        if on_cpu and done == 3 and each * (self.trainer.total - step) > SLOW_SECONDS:
            hours = each * self.trainer.total / 3600
            self.console.print(
                f"[bold]all epochs take about {hours:.1f} hours at {each:.2g} s per step[/bold]; "
                "--config=demo trains in minutes, --train.epochs=N shortens the run"
            )
        return f"{each:.3g} s per step, {self.trainer.config.train.batch_size / each:.3g} images/s"


def report_start(seconds: Mapping[str, float], step: int, log: RunLog, console: Console) -> None:
    """Reports how long the first step took, and why."""
    log.time({"kind": "start", "step": step, **seconds})
    console.print(
        f"first step done after {seconds['first_step']:.1f} s, "
        f"of which {seconds['import']:.1f} s imports and {seconds['compile']:.1f} s compiling"
    )


def save_before_failure(
    trainer: Trainer, state: TrainState, step: int, progress: RunProgress, delayed: DelayedMetrics, log: RunLog
) -> None:
    """Saves the steps that succeeded; impossible with several processes, because all would have to take part."""
    if jax.process_count() == 1 and step > (trainer.last.latest or 0):
        delayed.flush()
        log.sync()
        trainer.save(state, step, progress)


def end_epoch(
    trainer: Trainer, state: TrainState, step: int, progress: RunProgress, log: RunLog, console: Console
) -> None:
    """Validates, keeps the best weights, writes the tables and prints a line."""
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
            f"[bold]warning[/bold]: the validation loss is {validation['loss']}, which early stopping cannot compare: "
            "check the validation slices and the loss"
        )
    if progress.empty_epochs == EMPTY_EPOCHS:
        console.print(
            f"[bold]warning[/bold]: no positive pixel in {EMPTY_EPOCHS} validation epochs in a row: the network has "
            "collapsed to the empty mask. Try another --train.seed, a lower --train.learning_rate (3e-4), or a region "
            "loss (--train.loss=bce_dice).",
        )


def run(config: Config, batch_sizes: Sequence[str] = ("train.batch_size",)) -> int:
    """Joins the processes of the run, trains, and returns the exit code of the program.

    Args:
      config: checked by `experiments.limits.validate`.
      batch_sizes: keys of the batch sizes that must divide among the devices.
    """
    clock = Clock()
    start_processes(config)
    console = Console(quiet=jax.process_index() > 0, soft_wrap=True, highlight=False)
    if config.model.show_summary and jax.process_index() == 0:
        print_summary(config)
    try:
        train(config, console, clock, batch_sizes)
    except Preempted as stop:
        console.print(f"{stop}; the same command resumes the run")
        return stop.exit_code
    return 0


def train(
    config: Config, console: Console, clock: Clock, batch_sizes: Sequence[str] = ("train.batch_size",)
) -> RunProgress:
    """Trains a configuration in its run directory, or continues where it stopped.

    Args:
      config: checked by `experiments.limits.validate`.
      console: where to print.
      clock: measures this process.
      batch_sizes: keys of the batch sizes that must divide among the devices.

    Returns:
      The progress at the end.

    Raises:
      ConfigError, DataError, CheckpointError, NonFiniteError, Preempted: see there.
    """
    directory, first = run_directory(config), jax.process_index() == 0
    results = Path(config.train.eval_dir or directory)
    with fail_together("checking the configuration and the data"):  # before anything is written
        check_devices(config, jax.device_count(), batch_sizes)
        build.loss(config)
        build.augmentation(config)
        begun = check_directory(directory, config)
        data = build.dataset(config, progress=first)
        split = saved_split(directory, data) if begun else build.data_split(config, data)
        per_epoch = steps_per_epoch(len(split.train), config.train.batch_size)
    subsets = [split.train, split.val, split.test]
    given = {"configuration": identity(config), "train.epochs": config.train.epochs, "run_dir": str(directory)}
    assert_same_on_all({**given, "data": data.fingerprint, "split": subsets, "run begun": begun})
    with contextlib.ExitStack() as stack:
        with fail_together("opening the run directory"):
            if first:
                stack.enter_context(locked(directory))
                record_start(directory, config, data, split)
                claim(results, directory, RESULTS)
        steps = CompiledSteps(config, clock, per_epoch)
        trainer = stack.enter_context(contextlib.closing(Trainer(config, data, split, steps, directory)))
        state, progress = trainer.restore(console)
        step = int(state.step)
        assert_same_on_all({"checkpoint": step})
        unfinished = not progress.stopped and step < trainer.total
        with fail_together("checking the free space"):
            if unfinished:
                check_space(trainer, state, directory)
        announce(trainer, state, directory, console)
        if step:
            console.print(f"continuing after step {step}, epoch {progress.epoch}")
        title = f"{config.config}: {data.title}"
        log = RunLog(
            directory, eval_dir=results, columns=config.train.metrics, title=title, step=step, silent=not first
        )
        with contextlib.closing(log):
            if unfinished:
                trainer.load()
                progress = fit(trainer, state, progress, log, console)
    if first:
        result_table(progress, directory, config, clock.total())
    return progress


def announce(trainer: Trainer, state: TrainState, directory: Path, console: Console) -> None:
    """Prints what is about to run, and on which devices."""
    config, data, split = trainer.config, trainer.data, trainer.split
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices = trainer.steps.mesh.devices.flat
    lines = {
        "run": str(directory),
        "devices": f"{trainer.steps.mesh.size} x {devices[0].device_kind} ({devices[0].platform})",
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


def check_space(trainer: Trainer, state: TrainState, directory: Path) -> None:
    """Refuses to train where the checkpoints will not fit.

    A new run needs three full states (two kept, one being written) and two times the best weights; a resumed run has
    the kept ones already.

    Raises:
      CheckpointError: too little free space.
    """
    full, weights = megabytes(arrays(state)), megabytes(state.params)
    needed = 3 * full + 2 * weights if trainer.last.latest is None else full + weights
    if free_megabytes(directory) < needed:
        raise CheckpointError(
            f"{directory}: the checkpoints need {needed:.1f} MB, {free_megabytes(directory):.1f} MB are free; "
            "make room or name a --run_dir on another disk"
        )


def result_table(progress: RunProgress, directory: Path, config: Config, seconds: Mapping[str, float]) -> None:
    """Prints the epochs, the training time of this process and the commands to run next."""
    columns = list(dict.fromkeys(["loss", "val_loss", *config.train.metrics]))
    best = progress.best_epoch
    shown = [row for row in progress.history if row["epoch"] == best or row["epoch"] > progress.epoch - 5]
    cells = [
        [f"{row['epoch']}{' (best)' if row['epoch'] == best else ''}"]
        + ["undefined" if row.get(c) is None else f"{row[c]:.4f}" for c in columns]
        for row in shown
    ]
    title = f"{directory}: {progress.epoch} epochs, {progress.stopped or 'all done'}"
    table(title, ["epoch", *columns], cells)
    if seconds["seconds"]:
        sys.stdout.write(f"\nwaited for data {seconds['waited']:.1%} of {seconds['seconds']:.1f} s\n")
    sys.stdout.write(
        f"\nnext:\n  python -m experiments.evaluate --run_dir={directory}\n"
        f"  python -m experiments.predict --run_dir={directory} --infer.images=FOLDER\n"
    )
