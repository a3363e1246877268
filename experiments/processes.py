"""Several processes of one run: joining them, and failing together.

A process that raises alone leaves the others waiting in their next exchange for ever. What may fail in one process
only, such as reading its disk, runs in `together`; what all must have in common is compared by `agree`.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments.compilation import keep_programs
from experiments.config import Config, ConfigError


def start_processes(config: Config) -> None:
    """Turns the compilation cache on and joins the other processes of a distributed run, before any device is touched.

    On Slurm, Kubernetes and TPU pods JAX finds the coordinator itself; elsewhere `JAX_COORDINATOR_ADDRESS`
    (host:port), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` name it.
    """
    keep_programs(config)
    if not config.distributed:
        return
    import jax

    address, count, rank = (os.environ.get(f"JAX_{n}") for n in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"))
    jax.distributed.initialize(address, int(count) if count else None, int(rank) if rank else None)
    _gather(np.zeros(1))  # the first exchange connects CPUs, within 30 seconds: now, before one reads for longer


class PeerError(RuntimeError):
    """Another process of the run failed; its own message says why."""

    exit_code = 1


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """Runs a block in every process and waits for all; if it fails in one, every process raises.

    Args:
      what: the work, for the message in the processes where it went well.

    Raises:
      PeerError: it failed elsewhere. Where it failed, its own exception goes on.
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
        raise PeerError(f"process {failed[0]} failed while {what}: see its message")


def agree(values: Mapping[str, Any]) -> None:
    """Checks that every process has the same values.

    Args:
      values: by what messages call them, anything JSON can hold.

    Raises:
      ConfigError: in every process, the names whose values differ.
    """
    digests = [hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest() for value in values.values()]
    mine = np.stack([np.frombuffer(digest, np.uint8) for digest in digests])
    same = (_gather(mine) == mine).all(axis=(0, 2))
    if not _gather(np.array([same.all()])).all():
        differing = ", ".join(name for name, equal in zip(values, same, strict=True) if not equal)
        raise ConfigError(
            f"the processes of this run differ in: {differing or 'something another process names'}; "
            "start all with one command line, one version of the code and the same files"
        )


def _gather(value: np.ndarray) -> np.ndarray:
    """Returns the value of each process, stacked."""
    import jax

    if jax.process_count() == 1:
        return value[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value))
