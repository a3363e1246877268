"""Peers compared: they start, are checked for equal results, and take turns."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from experiments.bench.peers import PEERS, baseline
from experiments.bench.worker import Worker, WorkerError
from experiments.bench.workload import Workload, parameter_count

TOLERANCE = {"float32": 1e-4, "reduced": 2e-2}
"""Largest relative difference of the loss: float32 on a CPU, and bfloat16 or TF32."""

PROCESSORS = 4
"""Processors for each process, where many compile at once."""

WARM_UP = 2
"""Steps after the first, which compiles, that are not counted."""


class ValueMismatchError(RuntimeError):
    """A peer computes something else; the message names both peers and their values."""

    exit_code = 3


@dataclasses.dataclass
class Participant:
    """A peer in the rounds of a workload.

    Attributes:
      name: key in `PEERS`.
      work: the workload, the same for all.
      environment: variables of its process.
      resident: whether the process stays between turns; otherwise each turn starts a new one.
      least_seconds: duration of a turn.
      patience: seconds that an answer may take.
      seconds: per step, for each round.
      facts: what was learned at the first start and after the first turn.
      failure: why it left the rounds; empty if it did not.
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

    def attempt(self, action: Callable[[], None]) -> None:
        """Does something with the process; if it fails, the peer leaves the rounds, with the reason in `failure`."""
        if self.failure:
            return
        try:
            action()
        except WorkerError as error:
            self.failure = str(error)
            self.close()

    def build(self) -> None:
        """Starts the process."""
        peer = PEERS[self.name]
        self._worker = Worker(
            peer.label, peer.target, peer.arguments(self.work), environment=self.environment, patience=self.patience
        )

    def prepare(self, limit: float) -> None:
        """Starts the process and lets it compile what it can before its first step, until `limit` of the clock."""
        patience, self.patience = self.patience, max(limit - time.monotonic(), 0.001)
        self.build()
        assert self._worker is not None
        self._worker.patience = max(limit - time.monotonic(), 0.001)
        self._worker.call("prepare")
        self._prepared = self._worker.seconds
        self.patience = self._worker.patience = patience

    def start(self) -> None:
        """Warms the process up; the first time, also counts its parameters and takes its loss."""
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
        self._steps = steps_of(worker.seconds, self.least_seconds)
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
        """Asks for the memory, the first time, and ends the process."""
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
        if PEERS[self.name].same_network and found != expected:
            raise ValueMismatchError(f"{self.name} has {found} parameters, the network has {expected}")


def steps_of(seconds_per_step: float, least_seconds: float) -> int:
    """The number of steps of a turn."""
    return max(1, math.ceil(least_seconds / max(seconds_per_step, 1e-6)))


def shared_processors() -> dict[str, str]:
    """Variables that limit a process to its share where many compile: PyTorch starts a process per processor."""
    return {"TORCHINDUCTOR_COMPILE_THREADS": str(min(PROCESSORS, os.cpu_count() or 1))}


def start_together(participants: Sequence[Participant], patience: float) -> None:
    """Starts many processes, which compile at the same time; then one at a time makes its first steps.

    XLA and cuDNN try out algorithms in those first steps, with the device to themselves. What PyTorch's compiler tries
    out while it compiles shares the device with the other compilers.

    Args:
      participants: all of them; those that compile nothing in advance begin.
      patience: seconds after which those that have not compiled are left out.
    """
    limit = time.monotonic() + patience
    at_once = max(2, (os.cpu_count() or 1) // PROCESSORS)
    order = sorted(participants, key=lambda one: PEERS[one.name].compiled)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda one: one.attempt(partial(one.prepare, limit)), order))
    for one in order:
        one.attempt(one.start)


def end_together(participants: Sequence[Participant]) -> None:
    """Asks all for their last facts and ends their processes, in parallel because nothing is timed any more."""
    with ThreadPoolExecutor(len(participants) or 1) as pool:
        list(pool.map(lambda one: one.attempt(one.leave), participants))


def rotated(those: Sequence[Any], number: int) -> list[Any]:
    """The order of a round; each round begins with another one."""
    first = number % max(len(those), 1)
    return [*those[first:], *those[:first]]


def run_rounds(
    participants: Sequence[Participant], rounds: int, advance: Callable[[], None], *, stay: bool = False
) -> None:
    """Lets the participants take turns; one process works at a time.

    Args:
      participants: of one workload; those that fail keep the reason in `failure`.
      rounds: turns of each.
      advance: called after every turn.
      stay: leave the processes running, for `end_together`.

    Raises:
      ValueMismatchError: parameters or losses differ, so that times cannot be compared.
    """
    try:
        for one in participants:
            if not one.is_warm:
                one.attempt(one.start if one.resident else one.turn)
            advance()
        check_values(participants)
        # A process that does not stay has already taken its first turn: its losses were needed for the check.
        for number in range(0 if participants and participants[0].resident else 1, rounds):
            for one in rotated(participants, number):
                one.attempt(one.turn)
                advance()
        if not stay:
            end_together(participants)
    finally:
        for one in participants if not stay else ():
            one.close()


def timed(worker: Worker, steps: int, **arguments: Any) -> float:
    """Lets a worker run some steps and returns its seconds."""
    worker.call("run", steps=steps, **arguments)
    return worker.seconds


def take_turns(runs: Mapping[Any, Callable[[int], float]], rounds: int, least_seconds: float) -> dict[Any, list[float]]:
    """Lets functions that have compiled take turns.

    Args:
      runs: each makes a number of steps and returns its seconds, such as `partial(timed, worker)`.
      rounds: turns of each.
      least_seconds: duration of a turn.

    Returns:
      Seconds per step for each round, by the key of the function.
    """
    steps = {}
    for key, run in runs.items():
        steps[key] = [steps_of(run(1), least_seconds) for _ in range(WARM_UP)][-1]
    seconds: dict[Any, list[float]] = {key: [] for key in runs}
    for number in range(rounds):
        for key in rotated(list(runs), number):
            seconds[key].append(runs[key](steps[key]) / steps[key])
    return seconds


def check_values(participants: Sequence[Participant]) -> None:
    """Compares the loss on the common weights, and without dropout also those of the first steps.

    Raises:
      ValueMismatchError: a peer with the same network found another value.
    """
    present = {one.name: one for one in participants if not one.failure and PEERS[one.name].same_network}
    if not present:
        return
    first = next(iter(present))
    reference = present[baseline(first, list(present)) or first]
    for one in present.values():
        dtypes = {PEERS[name].dtype for name in (one.name, reference.name)}
        exact = dtypes == {"float32"} and one.facts["platform"] == "cpu"
        tolerance = TOLERANCE["float32" if exact else "reduced"]
        pairs = [(one.facts["value"], reference.facts["value"])]
        if one.work.dropout_rate == 0 and one.work.task == "train":
            pairs += list(zip(one.facts["losses"], reference.facts["losses"], strict=True))
        for found, expected in pairs:
            if not math.isclose(found, expected, rel_tol=tolerance, abs_tol=1e-6):
                raise ValueMismatchError(
                    f"{one.name} finds {found:.6g} where {reference.name} finds {expected:.6g} "
                    f"({one.work.task}, {one.work.loss}): they do not compute the same"
                )
