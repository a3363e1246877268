"""Contenders in processes of their own, of which one works at a time.

Frameworks in one process would share thread pools and allocators and fight for them. A process that is not at work is
blocked reading its standard input; what its idle threads use all the same is measured.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any

ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share the memory of a GPU
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "KERAS_BACKEND": "tensorflow",
}


def with_simulated_devices(count: int) -> str:
    """The user's `XLA_FLAGS` and so many devices of a CPU; of no effect on other platforms."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}".strip()


class WorkerError(RuntimeError):
    """A process of the benchmark failed; the message names it and what it said."""

    exit_code = 1


class Worker:
    """A process that serves the functions of `target`.

    Args:
      name: how messages call it.
      target: `package.module:function`; the function returns functions by name.
      arguments: of that function, anything JSON can hold.
      environment: variables over those of this process.
      patience: seconds that an answer may take; None: any.

    Attributes:
      seconds: duration of the last call.
      idle_cpu_seconds: processor time the process has used between calls, when it should have been idle.
      patience: as given.

    Raises:
      WorkerError: it cannot be built.
    """

    def __init__(
        self,
        name: str,
        target: str,
        arguments: Mapping[str, Any],
        *,
        environment: Mapping[str, str] | None = None,
        patience: float | None = None,
    ) -> None:
        self.name, self.seconds, self.idle_cpu_seconds = name, 0.0, 0.0
        self.patience = patience
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.bench.worker", target],
            env={**os.environ, **ENVIRONMENT, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self.call("build", **arguments)
        except BaseException:
            self.close()
            raise

    def call(self, function: str, **arguments: Any) -> Any:
        """Calls one of the functions and returns its result.

        Raises:
          WorkerError: it raised, the process died, or it had to be ended because the answer took too long.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        line, start = "", time.monotonic()
        limit = threading.Timer(self.patience or threading.TIMEOUT_MAX, process.kill)
        limit.daemon = True
        limit.start()
        try:
            process.stdin.write(json.dumps({"call": function, "arguments": arguments}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            pass  # the process has died, and the empty answer says so
        finally:
            limit.cancel()
        if not line and self.patience and time.monotonic() - start >= self.patience:
            raise WorkerError(f"{self.name} gave no answer to {function} in {self.patience:g} s, and was ended")
        if not line:
            raise WorkerError(f"{self.name} died with code {process.wait()} in {function}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name} failed in {function}: {answer['error']}")
        self.seconds = answer["seconds"]
        self.idle_cpu_seconds += answer["idle_cpu_seconds"]
        return answer["result"]

    def close(self) -> None:
        """Ends the process."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()
            process.wait(timeout=20)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        process.stdout.close()
        self._log.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return " / ".join(lines[-3:]) or "it said nothing"
