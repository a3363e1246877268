"""Several processes of one run, and signals: joining, failing together, stopping together.

A process that raises alone leaves the others waiting in their next exchange for ever. Work that may fail in one process
only, such as reading its disk, runs in `fail_together`. `assert_same_on_all` compares values that all must share.
"""

import contextlib
import hashlib
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.config import Config, ConfigError
from experiments.machine import keep_freed_memory, use_compilation_cache


def start_processes(config: Config) -> None:
    """Sets up the allocator and the compilation cache and joins the other processes, before any device is used.

    On Slurm, Kubernetes and TPU pods JAX finds the coordinator itself; elsewhere `JAX_COORDINATOR_ADDRESS`
    (host:port), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` name it.
    """
    keep_freed_memory()
    use_compilation_cache(config)
    if not config.distributed:
        return
    address, count, rank = (os.environ.get(f"JAX_{n}") for n in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"))
    jax.distributed.initialize(address, int(count) if count else None, int(rank) if rank else None)
    # CPUs connect at the first exchange and wait at most 30 seconds: do it before one process reads for longer.
    _gather(np.zeros(1))


def is_first() -> bool:
    """Returns whether this is the process that prints and writes for all."""
    return jax.process_index() == 0


class PeerError(RuntimeError):
    """Another process of the run failed; its own message has the reason."""

    exit_code = 1


@contextlib.contextmanager
def fail_together(work: str) -> Iterator[None]:
    """Runs a block in every process and waits for all; if it fails in one, every process raises.

    Args:
      work: the work, for the message in the processes where it succeeded.

    Raises:
      PeerError: it failed elsewhere. Where it failed, its own exception is raised.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = np.flatnonzero(_gather(np.array([failure is not None])))
    if failure is not None:
        raise failure
    if failed.size:
        raise PeerError(f"process {failed[0]} failed while {work}: see its message")


def assert_same_on_all(values: Mapping[str, Any]) -> None:
    """Checks that every process has the same values.

    Args:
      values: by their names in messages; JSON must be able to hold them.

    Raises:
      ConfigError: in every process, with the names whose values differ.
    """
    digests = [hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest() for value in values.values()]
    mine = np.stack([np.frombuffer(digest, np.uint8) for digest in digests])
    same = (_gather(mine) == mine).all(axis=(0, 2))
    if not _gather(np.array([same.all()])).all():
        differing = ", ".join(name for name, equal in zip(values, same, strict=True) if not equal)
        raise ConfigError(
            f"the processes of this run differ in: {differing or 'values that another process names'}; "
            "start all with the same command line, code and files"
        )


def any_process(flags: Sequence[bool], step: int) -> list[bool]:
    """Returns, for each flag, whether it is set in any process, so that all stop or save after the same step.

    With one process, returns the flags unchanged. Several processes exchange flags every tenth step, at no noticeable
    cost.
    """
    if jax.process_count() == 1:
        return list(flags)
    if step % 10:
        return [False] * len(flags)
    return list(np.any(_gather(np.array(flags)), axis=0))


def _gather(value: np.ndarray) -> np.ndarray:
    """Returns the value of each process, stacked."""
    if jax.process_count() == 1:
        return value[None]
    return np.asarray(multihost_utils.process_allgather(value))


class Preempted(Exception):  # noqa: N818 - not an error: the run was saved and can be resumed
    """A signal stopped the run; everything up to the last finished step is saved."""

    exit_code = 75


class StopRequest:
    """Turns SIGINT and SIGTERM into a request to stop after the step; a second SIGINT interrupts immediately."""

    def __init__(self) -> None:
        self.name = ""

    def _request(self, number: int, _: Any) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Listens while the block runs."""
        before = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
