"""Processes of a benchmark: each serves the functions of one peer, and one process works at a time.

Frameworks in one process would compete for its thread pools and allocator. A process that is not at work is
blocked reading its standard input; processor time that its idle threads use anyway is measured.

`python -m experiments.bench.worker MODULE:FUNCTION` is such a process; `Worker` starts and calls it. FUNCTION receives
the arguments on the first line of standard input and returns functions by name. Each further line calls one of them,
`{"call": "run", "arguments": {"steps": 3}}`, and is answered by one line of JSON: the result, the seconds it took, and
the processor seconds used since the last answer. The end of standard input ends the process.
"""

import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TextIO

ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share the memory of a GPU
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "KERAS_BACKEND": "tensorflow",
}


def xla_flags(*flags: str) -> dict[str, str]:
    """An environment with the user's `XLA_FLAGS` and these; the last of two equal flags counts."""
    return {"XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()}


class WorkerError(RuntimeError):
    """A process of the benchmark failed; the message names it and its last output."""

    exit_code = 1


class Worker:
    """A process that serves the functions of `target`.

    Args:
      name: for messages.
      target: `package.module:function`; the function returns functions by name.
      arguments: of that function, anything JSON can hold.
      environment: variables that replace those of this process.
      patience: seconds that an answer may take; None: no limit.

    Attributes:
      seconds: duration of the last call.
      idle_cpu_seconds: processor time used between calls, when the process should have been idle.
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
          WorkerError: it raised, the process died, or the answer took too long and the process was killed.
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
            pass  # the process has died, which the empty answer shows
        finally:
            limit.cancel()
        if not line and self.patience and time.monotonic() - start >= self.patience:
            raise WorkerError(f"{self.name} gave no answer to {function} within {self.patience:g} s and was ended")
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
        return " / ".join(lines[-3:]) or "no output"


def serve(functions: dict[str, Callable[..., Any]], requests: TextIO, answers: TextIO) -> None:
    """Answers requests until there are no more."""
    idle_since = time.process_time()
    for line in requests:
        idle = time.process_time() - idle_since
        request = json.loads(line)
        start = time.perf_counter()
        try:
            result = functions[request["call"]](**request["arguments"])
            answer = {"result": result, "seconds": time.perf_counter() - start, "idle_cpu_seconds": idle}
        except Exception as error:  # whatever a framework raises: the parent reports which peer failed
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        idle_since = time.process_time()


def process_peak_bytes() -> int:
    """The most memory that the process has had, its code and libraries included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Builds what the command line names and serves it."""
    # Frameworks print whatever they like to standard output, so the answers get a descriptor of their own.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        module, _, name = sys.argv[1].partition(":")
        functions: dict[str, Callable[..., Any]] = {
            "prepare": lambda: None,
            "process_peak_bytes": process_peak_bytes,
        }

        def build(**arguments: Any) -> None:
            # The one place where a peer's library is imported: only in its own process, and only if it takes part.
            functions.update(getattr(importlib.import_module(module), name)(**arguments))

        functions["build"] = build
        serve(functions, sys.stdin, answers)


if __name__ == "__main__":
    main()
