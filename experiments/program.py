"""The network of a run and its compiled steps."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax

from experiments import build
from experiments.config import Config
from experiments.feed import input_shapes
from jaxunet.checkpoint import abstract_like
from jaxunet.sharding import batch_sharding, make_mesh
from jaxunet.step import TrainState, abstract_state, compile_eval_step, compile_train_step, init_state, state_sharding

if TYPE_CHECKING:
    from experiments.clock import Clock


class Program:
    """The network of a run and its compiled steps.

    Making it traces the network's shapes, `initialise` makes the state, `trace` traces the training step, and `compile`
    compiles that in a thread of its own: most of the time the compiler works without Python. Nothing that imports may
    run beside the others: some libraries change how Python imports while they are imported, and JAX imports as it goes.

    Args:
      config: the run.
      clock: counts the time of tracing and compiling.
      steps_per_epoch: training steps; may be left out where `needs_no_slices`.

    Attributes:
      mesh: all devices.
      model: the network.
      optimizer: its optimizer.
      abstract: the train state's shapes and dtypes.
      places: its shardings.
      eval_step: the evaluation step, once the training step is traced.

    Raises:
      ValueError: the steps of an epoch are needed and not given.
    """

    eval_step: Callable[..., Any]

    def __init__(self, config: Config, clock: "Clock", steps_per_epoch: int | None = None) -> None:
        if steps_per_epoch is None and not needs_no_slices(config):
            raise ValueError("steps_per_epoch is missing, which the configuration asks for")
        self.config, self.clock = config, clock
        self.mesh = make_mesh()
        self.model, self.optimizer = build.model(config), build.optimizer(config, steps_per_epoch or 0)
        with clock.compiling():
            self.abstract = abstract_state(self.model, self.optimizer, image_shape=build.image_shape(config))
        self.places = state_sharding(self.abstract, self.mesh, split_optimizer=config.train.shard_optimizer)
        self._traced: jax.stages.Lowered | None = None
        self._compiled: Future[jax.stages.Compiled] | None = None
        self._fresh: TrainState | None = None
        self._compiler = ThreadPoolExecutor(1)

    def initialise(self) -> "Program":
        """Begins to make the state of step 0, unless that is done: what was compiled runs on by itself."""
        if self._fresh is None:
            shape = build.image_shape(self.config)
            with self.clock.compiling():
                self._fresh = init_state(self.model, self.optimizer, seed=self.config.train.seed, image_shape=shape)
        return self

    def fresh_state(self) -> TrainState:
        """The state of step 0, on the devices; all processes call this at the same point."""
        state, self._fresh = self.initialise()._fresh, None
        placed: TrainState = jax.device_put(state, self.places)  # which compares the processes
        return placed

    def trace(self, pixels: Mapping[str, jax.Array] | None = None) -> "Program":
        """Traces the training step, unless that is done.

        Args:
          pixels: the slices on the devices, where the step gathers its batch from them.
        """
        if self._traced is not None:
            return self
        config = self.config
        height, width, _ = image = build.image_shape(config)
        shapes = input_shapes(self.mesh, config.train.batch_size, image, (height, width, 1), pixels)
        loss, batches = build.loss(config), batch_sharding(shapes, self.mesh)
        step = compile_train_step(
            self.mesh,
            loss=loss,
            seed=config.train.seed,
            accumulate=config.train.accumulate,
            state_sharding=self.places,
            batch_sharding=batches,
        )
        with self.clock.compiling():
            self._traced = step.lower(abstract_like(self.abstract, self.places), shapes)
        self.eval_step = compile_eval_step(self.mesh, apply_fn=self.model.apply, loss=loss, batch_sharding=batches)
        return self

    def compile(self) -> None:
        """Begins to compile the training step."""
        self._compiled = self._compiler.submit(self._compile)

    def _compile(self) -> jax.stages.Compiled:
        assert self._traced is not None, "trace() comes first"
        with self.clock.compiling():
            return self._traced.compile()

    def train_step(self, state: TrainState, inputs: Mapping[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        """One step on the devices; the state that is passed is used up."""
        assert self._compiled is not None, "compile() comes first"
        result: tuple[TrainState, dict[str, Any]] = self._compiled.result()(state, inputs)
        return result

    def close(self) -> None:
        """Releases the compiler's thread; does not wait for it, which the end of the program does."""
        self._compiler.shutdown(wait=False)


def needs_no_slices(config: Config) -> bool:
    """Whether the training step can be traced before the slices are known.

    A warm-up counts the steps of an epoch, and a cache on the devices is an argument of the step.
    """
    return not config.train.warmup_epochs and config.data.cache != "device"


@contextlib.contextmanager
def changing_threads_often(seconds: float = 1e-4) -> Iterator[None]:
    """Lets a thread that reads many small files get its turn beside one that computes in Python.

    It asks for its turn after every file, and by default waits 5 ms for it.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
