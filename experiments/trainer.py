"""What a training run is made of, built once: data, steps, checkpoints, and the numbers on their way to the log."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from experiments.progress import TRACKED, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from data_pipeline.prepare import Prepared
    from data_pipeline.splits import Split
    from experiments.clock import Clock
    from experiments.config import Config
    from experiments.feed import Feed, Kept
    from experiments.log import RunLog
    from experiments.program import Program
    from jaxunet.step import TrainState


class NonFiniteError(ArithmeticError):
    """A loss or gradient was infinite or no number; the state before it was kept."""

    exit_code = 3


class Trainer:
    """Everything a training run needs, built once: program, data, checkpoints.

    Args:
      config: the run.
      data: prepared slices.
      split: their division.
      directory: the run directory.
      clock: measures this process.
      program: what is compiled of the run, if it was begun before.
    """

    def __init__(
        self,
        config: "Config",
        data: "Prepared",
        split: "Split",
        directory: Path,
        clock: "Clock",
        program: "Program | None" = None,
    ) -> None:
        import jax

        from experiments.program import Program
        from jaxunet.checkpoint import Checkpoints

        self.config, self.data, self.split, self.clock = config, data, split, clock
        self.processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        self.steps_per_epoch = len(split.train) // config.train.batch_size
        self.total = config.train.epochs * self.steps_per_epoch
        self.program = program or Program(config, clock, self.steps_per_epoch)
        self.last = Checkpoints(directory / "checkpoints" / "last", keep=2)
        self.best = Checkpoints(directory / "checkpoints" / "best", keep=1)
        self.kept: Kept | None = None

    def load(self) -> None:
        """Puts the slices where `data.cache` asks, and begins to compile the step.

        Raises:
          UsageError: the slices do not fit there.
          DataError: a slice that is to be kept on the devices cannot be read.
        """
        if self.kept is not None:
            return
        from experiments.feed import Kept

        data, indices = self.config.data, [*self.split.train, *self.split.val]
        self.kept = Kept(self.data, indices, cache=data.cache, threads=data.threads, mesh=self.program.mesh)
        self.program.trace(self.kept.pixels).compile()

    def start(self, console: "Console") -> tuple["TrainState", Progress]:
        """The newest checkpoint that is whole, or a fresh state; a damaged one is set aside and said.

        Raises:
          CheckpointError: every checkpoint is damaged: to start afresh is for the user to decide.
        """
        from experiments.processes import PeerError, together
        from jaxunet.checkpoint import CheckpointError, DamagedError, abstract_like

        program = self.program
        abstract = abstract_like(arrays(program.abstract), arrays(program.places))
        while (step := self.last.latest) is not None:
            try:
                with together(f"reading checkpoint {step}"):
                    tree, record = self.last.restore(abstract, step)
                return program.abstract.replace(**tree), Progress(**record)
            except (DamagedError, PeerError) as error:
                aside = self.last.set_aside(step)
                console.print(f"[bold]warning[/bold]: {escape(str(error))}; set aside as {escape(aside.name)}")
        if self.last.damaged:
            raise CheckpointError(
                f"no whole checkpoint is left in {self.last.directory}, {len(self.last.damaged)} damaged ones are; "
                "restore one from a copy, or start again with a new --run_dir"
            )
        return program.fresh_state(), Progress()

    def feed(self, step: int) -> "Feed":
        """Training batches from the one after `step` on."""
        from data_pipeline.loader import train_batches

        train = self.config.train
        options = {"batch_size": train.batch_size, "seed": train.seed, "start_step": step}
        return self._feed(train_batches, self.split.train, options)

    def validate(self, state: "TrainState") -> tuple[dict[str, float], bool]:
        """Validation loss and scores, and whether no pixel was predicted positive."""
        from data_pipeline.loader import eval_batches
        from experiments.evaluation import evaluate_batches
        from experiments.evaluation_tables import batch_means

        size, count = self.config.train.batch_size, len(self.split.val)
        feed = self._feed(eval_batches, self.split.val, {"batch_size": size})
        step = functools.partial(self.program.eval_step, step=int(state.step))
        result = evaluate_batches(step, state.params, feed, count=count, batch_size=size)
        scores = {"loss": result.loss, **batch_means(result.sums, size, TRACKED)}
        return scores, not (result.sums.tp + result.sums.fp).any()

    def _feed(self, batches: Callable[..., Any], indices: Sequence[int], options: Mapping[str, Any]) -> "Feed":
        from experiments.feed import Feed

        assert self.kept is not None, "load() comes first"
        made = batches(self.kept.source, indices, threads=self.config.data.threads, **options, **self.processes)
        return self.clock.watch(Feed(made, self.kept.put))

    def save(self, state: "TrainState", step: int, progress: Progress) -> None:
        """Saves the full state."""
        self.last.save(step, arrays(state), dataclasses.asdict(progress))

    def close(self) -> None:
        """Releases the threads of compiler and checkpoints; does not wait for a compiler that is at work."""
        self.program.close()
        self.last.close()
        self.best.close()


def arrays(state: "TrainState") -> dict[str, Any]:
    """The part of a train state that a checkpoint holds."""
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


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
