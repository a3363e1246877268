"""Contenders side by side: they start, show that they compute the same, and take turns."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from experiments.bench.contenders import CONTENDERS, baseline
from experiments.bench.workers import Worker, WorkerError
from experiments.bench.workload import Workload, parameter_count

TOLERANCE = {"float32": 1e-4, "reduced": 2e-2}
"""Largest relative difference of the loss: float32 on a CPU, and bfloat16 or TF32."""

PROCESSORS = 4
"""Processors for each process that compiles, where many do so at once."""

WARM_UP = 2
"""Steps after the first, which compiles, that are not counted."""


class ValueMismatchError(RuntimeError):
    """A contender computes something else; the message names both and their values."""

    exit_code = 3


@dataclasses.dataclass
class Seat:
    """A contender's place in the rounds.

    Attributes:
      name: key in `CONTENDERS`.
      work: the workload, the same for all.
      environment: variables of its process.
      resident: whether the process stays between turns; otherwise every turn starts anew.
      least_seconds: duration of a turn.
      patience: seconds that an answer may take.
      seconds: a step of each round.
      facts: what was learned at the first start and after the first turn.
      failure: why it has left, if it has.
    """

    name: str
    work: Workload
    environment: Mapping[str, str]
    resident: bool
    least_seconds: float
    patience: float
    seconds: list[float] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    failure: str = ""
    idle_cpu_seconds: float = 0.0
    _worker: Worker | None = None
    _steps: int = 1
    _prepared: float = 0.0
    _warm: bool = False

    @property
    def is_warm(self) -> bool:
        """Whether the process has made its first steps."""
        return self._warm

    def guard(self, action: Callable[[], None]) -> None:
        """Does something with the process; a failure ends the contender's part and is kept for the report."""
        if self.failure:
            return
        try:
            action()
        except WorkerError as error:
            self.failure = str(error)
            self.close()

    def build(self) -> None:
        """Starts the process."""
        contender = CONTENDERS[self.name]
        self._worker = Worker(
            contender.label,
            f"experiments.bench.{contender.target}",
            contender.arguments(self.work),
            environment=self.environment,
            patience=self.patience,
        )

    def prepare(self, limit: float) -> None:
        """Starts the process and lets it compile what it can ahead of its first step, until a moment at most."""
        patience, self.patience = self.patience, max(limit - time.monotonic(), 0.001)
        self.build()
        assert self._worker is not None
        self._worker.patience = max(limit - time.monotonic(), 0.001)
        self._worker.call("prepare")
        self._prepared = self._worker.seconds
        self.patience = self._worker.patience = patience

    def start(self) -> None:
        """Warms the process up; the first time, its parameters are counted and its loss is taken."""
        if self._worker is None:
            self.build()
        worker = self._worker
        assert worker is not None
        first = not self.facts
        if first:
            self.facts = {**worker.call("describe"), "value": worker.call("value")}
            self._check_parameters()
        losses = [worker.call("run", steps=1)]
        first_seconds = self._prepared + worker.seconds
        losses += [worker.call("run", steps=1) for _ in range(WARM_UP)]
        self._steps = max(1, math.ceil(self.least_seconds / max(worker.seconds, 1e-6)))
        self._warm = True
        if first:
            self.facts |= {"first_step_seconds": first_seconds, "losses": losses}

    def turn(self) -> None:
        """Makes the steps of a round."""
        if not self._warm:
            self.start()
        worker = self._worker
        assert worker is not None
        loss = worker.call("run", steps=self._steps)
        self.seconds.append(worker.seconds / self._steps)
        if loss is not None and not math.isfinite(loss):
            raise WorkerError(f"{worker.name} reached a loss of {loss}")
        if not self.resident:
            self.leave()

    def leave(self) -> None:
        """Asks for the memory, once, and ends the process."""
        if self._worker and "memory" not in self.facts:
            self.facts["memory"] = self._worker.call("memory")
            self.facts["process_peak_bytes"] = self._worker.call("process_peak_bytes")
            if self.name.startswith(("jaxunet", "flax")):
                self.facts["bytes_accessed"] = self._worker.call("bytes_accessed")
        self.close()

    def close(self) -> None:
        """Ends the process."""
        if self._worker:
            self.idle_cpu_seconds += self._worker.idle_cpu_seconds
            self._worker.close()
            self._worker, self._warm = None, False

    def _check_parameters(self) -> None:
        expected, found = parameter_count(self.work), self.facts["parameters"]
        if CONTENDERS[self.name].same_network and found != expected:
            raise ValueMismatchError(f"{self.name} has {found} parameters, the network has {expected}")


def shared_processors() -> dict[str, str]:
    """Variables that keep a process to its share of processors where many compile: else PyTorch starts one each."""
    return {"TORCHINDUCTOR_COMPILE_THREADS": str(min(PROCESSORS, os.cpu_count() or 1))}


def start_together(seats: Sequence[Seat], patience: float) -> None:
    """Starts many processes and compiles in them at the same time; then one at a time makes its first steps.

    XLA and cuDNN try out algorithms in those first steps, alone. What PyTorch's compiler tries out on the device while
    it compiles, it tries beside others that compile.

    Args:
      seats: the contenders; those that take part without compiling anything ahead begin.
      patience: seconds after which those that have not compiled are left out.
    """
    limit = time.monotonic() + patience
    at_once = max(2, (os.cpu_count() or 1) // PROCESSORS)
    order = sorted(seats, key=lambda seat: CONTENDERS[seat.name].compiled)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda seat: seat.guard(partial(seat.prepare, limit)), order))
    for seat in order:
        seat.guard(seat.start)


def part(seats: Sequence[Seat]) -> None:
    """Asks all for their last facts and ends their processes, together: nothing is timed any more."""
    with ThreadPoolExecutor(len(seats) or 1) as pool:
        list(pool.map(lambda seat: seat.guard(seat.leave), seats))


def rotated(those: Sequence[Any], number: int) -> list[Any]:
    """The order of a round, which begins with another one each round."""
    first = number % max(len(those), 1)
    return [*those[first:], *those[:first]]


def compete(seats: Sequence[Seat], rounds: int, advance: Callable[[], None], *, stay: bool = False) -> None:
    """Lets the seats take turns, beginning with another one each round; one process works at a time.

    Args:
      seats: the contenders; those that fail keep the reason in `failure`.
      rounds: turns of each.
      advance: called after every turn.
      stay: leave the processes there, for `part`.

    Raises:
      ValueMismatchError: parameters or losses differ, so that times cannot be compared.
    """
    try:
        for seat in seats:
            if not seat.is_warm:
                seat.guard(seat.start if seat.resident else seat.turn)
            advance()
        check_values(seats)
        for number in range(0 if seats and seats[0].resident else 1, rounds):
            for seat in rotated(seats, number):
                seat.guard(seat.turn)
                advance()
        if not stay:
            part(seats)
    finally:
        for seat in seats if not stay else ():
            seat.close()


def take_turns(workers: Mapping[Any, Worker], rounds: int, least_seconds: float) -> dict[Any, list[float]]:
    """Lets processes that are warm take turns, beginning with another one each round.

    Args:
      workers: each serves `run(steps)`.
      rounds: turns of each.
      least_seconds: duration of a turn.

    Returns:
      Seconds a step of every round, by the key of the process.
    """
    steps, keys = {}, list(workers)
    for key, worker in workers.items():
        for _ in range(WARM_UP):
            worker.call("run", steps=1)
        steps[key] = max(1, math.ceil(least_seconds / max(worker.seconds, 1e-6)))
    seconds: dict[Any, list[float]] = {key: [] for key in keys}
    for number in range(rounds):
        for key in rotated(keys, number):
            workers[key].call("run", steps=steps[key])
            seconds[key].append(workers[key].seconds / steps[key])
    return seconds


def check_values(seats: Sequence[Seat]) -> None:
    """Compares the loss on the common weights, and without dropout those of the first steps.

    Raises:
      ValueMismatchError: a contender of the same network found another value.
    """
    present = [seat for seat in seats if not seat.failure and CONTENDERS[seat.name].same_network]
    if not present:
        return
    named = {seat.name: seat for seat in present}
    reference = named[baseline(present[0].name, list(named)) or present[0].name]
    for seat in present:
        dtypes = {CONTENDERS[one.name].dtype for one in (seat, reference)}
        exact = dtypes == {"float32"} and seat.facts["platform"] == "cpu"
        tolerance = TOLERANCE["float32" if exact else "reduced"]
        pairs = [(seat.facts["value"], reference.facts["value"])]
        if seat.work.dropout_rate == 0 and seat.work.task == "train":
            pairs += list(zip(seat.facts["losses"], reference.facts["losses"], strict=True))
        for found, expected in pairs:
            if not math.isclose(found, expected, rel_tol=tolerance, abs_tol=1e-6):
                raise ValueMismatchError(
                    f"{seat.name} finds {found:.6g} where {reference.name} finds {expected:.6g} "
                    f"({seat.work.task}, {seat.work.loss}): they do not compute the same"
                )
