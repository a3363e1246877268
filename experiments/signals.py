"""Stopping on a signal without losing a step."""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any


class Preempted(Exception):  # noqa: N818  it is no error: the run was saved and can go on
    """A signal stopped the run; everything up to the last finished step is saved."""

    exit_code = 75


class StopRequest:
    """Turns SIGINT and SIGTERM into a request to stop after the step; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.name = ""

    def _ask(self, number: int, _: Any) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Listens while the block runs."""
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def anywhere(flags: Sequence[bool], step: int) -> list[bool]:
    """Whether each flag is up in any process: what one decides, all must do after the same step.

    A single process has its flags back; several ask each other every tenth step, which costs them nothing noticeable.
    """
    import jax

    if jax.process_count() == 1:
        return list(flags)
    if step % 10:
        return [False] * len(flags)
    import numpy as np
    from jax.experimental import multihost_utils

    everyone = multihost_utils.process_allgather(np.array(flags))
    return [bool(flag) for flag in everyone.any(axis=0)]
