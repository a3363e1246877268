"""`python -m experiments.train --config=dice --data.root=kaggle_3m`: trains, or goes on with a stopped run."""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.progress import TRACKED, Progress
from experiments.signals import Preempted, StopRequest

if TYPE_CHECKING:
    from rich.console import Console

    from data_pipeline.prepare import Prepared
    from data_pipeline.splits import Split
    from experiments.config import Config
    from experiments.log import RunLog
    from jaxunet.step import TrainState

EMPTY_EPOCHS = 3
"""Validation epochs without a positive pixel after which a warning is due."""


class NonFiniteError(ArithmeticError):
    """A loss or gradient was infinite or no number; the state before it was kept."""

    exit_code = 3


class Trainer:
    """Everything a training run needs, built once: steps, data, checkpoints.

    Args:
      config: the run.
      data: prepared slices.
      split: their division.
      directory: the run directory.
    """

    def __init__(self, config: "Config", data: "Prepared", split: "Split", directory: Path) -> None:
        import jax

        from experiments import build
        from jaxunet.checkpoint import Checkpoints
        from jaxunet.sharding import make_mesh
        from jaxunet.step import compile_eval_step, compile_train_step

        self.config, self.data, self.split = config, data, split
        self.mesh = make_mesh()
        self.processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        self.steps_per_epoch = len(split.train) // config.train.batch_size
        self.total = config.train.epochs * self.steps_per_epoch
        self.model, loss = build.model(config), build.loss(config)
        self.train_step = compile_train_step(self.mesh, loss=loss, seed=config.train.seed)
        self.eval_step = compile_eval_step(self.mesh, apply_fn=self.model.apply, loss=loss)
        self.last = Checkpoints(directory / "checkpoints" / "last", keep=2)
        self.best = Checkpoints(directory / "checkpoints" / "best", keep=1)

    def start(self) -> tuple["TrainState", Progress]:
        """The newest checkpoint, or a fresh state."""
        from experiments import build
        from jaxunet.checkpoint import abstract_like
        from jaxunet.sharding import replicate, replicated
        from jaxunet.step import init_state

        state = init_state(
            self.model,
            build.optimizer(self.config),
            seed=self.config.train.seed,
            image_shape=build.image_shape(self.config),
        )
        if self.last.latest is None:
            return replicate(state, self.mesh), Progress()
        tree, record = self.last.restore(abstract_like(arrays(state), replicated(self.mesh)))
        return state.replace(**tree), Progress(**record)

    def batches(self, step: int) -> Iterator[Mapping[str, Any]]:
        """Training batches from the one after `step` on."""
        from data_pipeline.loader import train_batches

        c = self.config
        return train_batches(
            self.data,
            self.split.train,
            batch_size=c.train.batch_size,
            seed=c.train.seed,
            start_step=step,
            threads=c.data.threads,
            **self.processes,
        )

    def validate(self, state: "TrainState") -> tuple[dict[str, float], bool]:
        """Validation loss and scores, and whether no pixel was predicted positive."""
        from data_pipeline.loader import eval_batches
        from experiments.evaluate import batch_means, evaluate_batches

        size, count = self.config.train.batch_size, len(self.split.val)
        batches = eval_batches(
            self.data, self.split.val, batch_size=size, threads=self.config.data.threads, **self.processes
        )
        result = evaluate_batches(self.eval_step, state.params, batches, mesh=self.mesh, count=count, batch_size=size)
        scores = {"loss": result.loss, **batch_means(result.sums, size, TRACKED)}
        return scores, not (result.sums.tp + result.sums.fp).any()

    def save(self, state: "TrainState", step: int, progress: Progress) -> None:
        """Saves the full state."""
        self.last.save(step, arrays(state), dataclasses.asdict(progress))

    def close(self) -> None:
        """Releases the checkpoints' threads."""
        self.last.close()
        self.best.close()


def arrays(state: "TrainState") -> dict[str, Any]:
    """The part of a train state that a checkpoint holds."""
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


def fit(trainer: Trainer, state: "TrainState", progress: Progress, log: "RunLog", console: "Console") -> Progress:
    """Trains to the last epoch, to early stopping or to a signal.

    Returns:
      The progress at the end.

    Raises:
      NonFiniteError: a loss or gradient is not finite; nothing was saved since.
      Preempted: a signal came; everything is saved.
    """
    from experiments.log import Meter
    from jaxunet.sharding import global_batch

    train, first = trainer.config.train, int(state.step) + 1
    batches = trainer.batches(first - 1)
    pending = Pending(trainer, progress, log)
    saved = time.monotonic()
    meter = Meter(console, total=trainer.total, done=first - 1, images=train.batch_size)
    with StopRequest().listening() as stop, meter:
        for step in range(first, trainer.total + 1):
            batch = next(batches)
            inputs = {name: batch[name] for name in ("image", "mask", "weight")}
            state, metrics = trainer.train_step(state, global_batch(inputs, trainer.mesh))
            meter.update(step, pending.exchange(step, batch, metrics))
            stopping = stop.agreed(step)
            if step % trainer.steps_per_epoch == 0:
                pending.flush()
                end_epoch(trainer, state, step, progress, log, console)
            elif stopping or time.monotonic() - saved > 60 * train.save_minutes:
                pending.flush()
            else:
                continue
            log.sync()
            trainer.save(state, step, progress)
            saved = time.monotonic()
            if progress.stopped or step == trainer.total:
                break
            if stopping:
                raise Preempted(f"stopped by {stop.name or 'a signal'} after step {step}; the same command goes on")
    return progress


class Pending:
    """Fetches the numbers of a step while the next one runs, so that the device never waits for the host."""

    def __init__(self, trainer: Trainer, progress: Progress, log: "RunLog") -> None:
        self.trainer, self.progress, self.log = trainer, progress, log
        self._waiting: tuple[int, Mapping[str, Any], Mapping[str, Any]] | None = None
        self._text = "starting"

    def exchange(self, step: int, batch: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
        """Records the step before, keeps this one waiting; returns a text for the progress bar."""
        self.flush()
        self._waiting = step, batch, metrics
        return self._text

    def flush(self) -> None:
        """Records the step that waits; raises NonFiniteError if it failed."""
        if self._waiting is None:
            return
        import jax

        from jaxunet.metrics import SCORES, add

        step, batch, metrics = self._waiting
        self._waiting = None
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


def end_epoch(
    trainer: Trainer, state: "TrainState", step: int, progress: Progress, log: "RunLog", console: "Console"
) -> None:
    """Validates, keeps the best weights, writes the tables and says how it went."""
    validation, empty = trainer.validate(state)
    better = progress.close_epoch(step, validation, empty=empty, patience=trainer.config.train.patience)
    if better:
        trainer.best.save(step, state.params, {"epoch": progress.epoch, "step": step, "val_loss": validation["loss"]})
    if trainer.processes["process_index"] == 0:
        log.epoch(progress.history)
    row = progress.history[-1]
    columns = dict.fromkeys(["loss", "val_loss", *trainer.config.train.metrics])
    text = "  ".join(f"{c} {row[c]:.4f}" if row.get(c) is not None else f"{c} undefined" for c in columns)
    console.print(f"epoch {progress.epoch}: {text}{'  (best)' if better else ''}", highlight=False)
    if progress.empty_epochs == EMPTY_EPOCHS:
        console.print(
            f"[bold]warning[/bold]: no positive pixel in {EMPTY_EPOCHS} validation epochs in a row: the network has "
            "collapsed to the empty mask. Try another --train.seed, a lower --train.learning_rate (3e-4), or a region "
            "loss (--train.loss=bce_dice).",
            highlight=False,
        )


def hours_on_cpu(trainer: Trainer) -> float:
    """Estimates the hours of all epochs from the network's operations and the speed of one convolution here."""
    import jax
    import jax.numpy as jnp

    from experiments import build

    height, width, _ = build.image_shape(trainer.config)
    params = jax.eval_shape(lambda: trainer.model.init(jax.random.key(0), jnp.zeros((1, height, width, 3))))["params"]
    operations = 0.0
    for name, layer in params.items():
        level = int("".join(filter(str.isdigit, name.split("_")[0])) or 0) + name.endswith("_up")
        operations += 2 * math.prod(layer["kernel"].shape) * height * width / 4**level
    kernel, images = jnp.ones((3, 3, 64, 64)), jnp.ones((4, 64, 64, 64))
    layout = ("NHWC", "HWIO", "NHWC")
    probe = jax.jit(
        jax.grad(
            lambda k, x: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=layout).sum(),
            argnums=(0, 1),
        )
    )
    jax.block_until_ready(probe(kernel, images))
    start = time.perf_counter()
    for _ in range(3):
        jax.block_until_ready(probe(kernel, images))
    speed = 3 * 2 * 2 * kernel.size * images[..., 0].size / (time.perf_counter() - start)
    # the gradients by weights and by inputs each cost as much as the forward pass
    return 3 * operations * trainer.config.train.batch_size * trainer.total / speed / 3600


def announce(trainer: Trainer, state: "TrainState", directory: Path, console: "Console") -> None:
    """Says what is about to run, and on what."""
    import jax

    config, data, split = trainer.config, trainer.data, trainer.split
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices = trainer.mesh.devices.flat
    lines = {
        "run": str(directory),
        "devices": f"{trainer.mesh.size} x {devices[0].device_kind} ({devices[0].platform})",
        "data": data.title,
        "split": f"{split.by}: {len(split.train)} training, {len(split.val)} validation, {len(split.test)} test slices",
        "network": f"{parameters:,} parameters, images {data.shape[0]}x{data.shape[1]}x{data.shape[2]}",
        "loss": config.train.loss,
        "steps": f"{trainer.total} = {config.train.epochs} epochs of {trainer.steps_per_epoch}, "
        f"{config.train.batch_size} slices each",
    }
    for name, text in lines.items():
        console.print(f"[bold]{name:8}[/bold] {text}", highlight=False, soft_wrap=True)
    for note in split.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    if devices[0].platform == "cpu" and int(state.step) < trainer.total:
        hours = hours_on_cpu(trainer)
        if hours > 0.5:
            console.print(
                f"[bold]on this CPU all epochs take about {hours:.1f} hours[/bold]; "
                "--config=demo trains in minutes, --train.epochs=N shortens",
                highlight=False,
            )


def check_space(trainer: Trainer, state: "TrainState", directory: Path) -> None:
    """Refuses to begin a run whose checkpoints will not fit: three full states (two kept, one in the making) and best.

    Raises:
      CheckpointError: too little free space.
    """
    from jaxunet.checkpoint import CheckpointError, free_megabytes, megabytes

    needed = 3 * megabytes(arrays(state)) + 2 * megabytes(state.params)
    if trainer.last.latest is None and free_megabytes(directory) < needed:
        raise CheckpointError(
            f"{directory} has {free_megabytes(directory):.0f} MB free; the checkpoints of this run need {needed:.0f} MB; "
            "make room, or name a --run_dir on another disk"
        )


def result_table(progress: Progress, directory: Path, config: "Config") -> None:
    """Prints the epochs and the commands that come next."""
    from experiments import report

    columns = list(dict.fromkeys(["loss", "val_loss", *config.train.metrics]))
    best = progress.best_epoch
    shown = [row for row in progress.history if row["epoch"] == best or row["epoch"] > progress.epoch - 5]
    cells = [
        [f"{row['epoch']}{' (best)' if row['epoch'] == best else ''}", *(_cell(row.get(c)) for c in columns)]
        for row in shown
    ]
    report.table(f"{directory}: {progress.epoch} epochs, {progress.stopped or 'all done'}", ["epoch", *columns], cells)
    sys.stdout.write(
        f"\nnext:\n  python -m experiments.evaluate --run_dir={directory}\n"
        f"  python -m experiments.predict --run_dir={directory} --infer.images=FOLDER\n"
    )


def _cell(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def train(config: "Config", console: "Console") -> Progress:
    """Trains a configuration in its run directory, or goes on where it stopped.

    Args:
      config: checked by `experiments.limits.validate`.
      console: where to print.

    Returns:
      The progress at the end.

    Raises:
      ConfigError, DataError, CheckpointError, NonFiniteError, Preempted: see there.
    """
    import jax

    from data_pipeline.loader import steps_per_epoch
    from experiments import build
    from experiments.config import run_directory
    from experiments.limits import check_devices
    from experiments.log import RunLog
    from experiments.rundir import create_or_resume, locked

    build.start_processes(config)
    check_devices(config, jax.device_count(), ["train.batch_size"])
    build.loss(config)
    first = jax.process_index() == 0
    directory = run_directory(config)
    data = build.dataset(config)
    split = build.data_split(config, data)
    steps_per_epoch(len(split.train), config.train.batch_size)
    with locked(directory) if first else contextlib.nullcontext():
        if first:
            create_or_resume(directory, config, data, split)
        trainer = Trainer(config, data, split, directory)
        try:
            state, progress = trainer.start()
            check_space(trainer, state, directory)
            announce(trainer, state, directory, console)
            step = int(state.step)
            if step:
                console.print(f"going on after step {step}, epoch {progress.epoch}", highlight=False)
            log = RunLog(
                directory,
                eval_dir=Path(config.train.eval_dir or directory),
                columns=config.train.metrics,
                title=f"{config.config}: {data.title}",
                step=step,
            )
            with contextlib.closing(log):
                if not progress.stopped:
                    progress = fit(trainer, state, progress, log, console)
        finally:
            trainer.close()
    if first:
        result_table(progress, directory, config)
    return progress


def main(argv: Sequence[str]) -> int:
    """Reads the command line and trains."""
    from experiments.cli import parse

    config = parse(argv, program="train")
    from rich.console import Console

    if config.model.show_summary:
        from experiments import summary

        summary.print_summary(config)
    train(config, Console())
    return 0


if __name__ == "__main__":
    from experiments.cli import run_program

    sys.exit(run_program(main))
