"""The process of one contender: `python -m experiments.bench.worker MODULE:FUNCTION`.

The function gets the arguments of the first line of standard input and returns functions by name. Each further line
calls one of them, `{"call": "run", "arguments": {"steps": 3}}`, and is answered by one line of JSON: the result, the
seconds it took, and the seconds of processor time that the process used since its last answer, when it should have
been idle. The end of standard input is the end of the process.
"""

import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO


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
        except Exception as error:  # whatever a framework raises: the parent says which contender failed
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        idle_since = time.process_time()


def process_peak_bytes() -> int:
    """The most memory that the process has had, its code and libraries included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """The memory that the process has now; where the system does not tell, the most it has had."""
    table = Path("/proc/self/statm")
    if not table.exists():
        return process_peak_bytes()
    return int(table.read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    """Builds what the command line names and serves it."""
    # Frameworks print what they like on standard output: the answers get a descriptor of their own.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        module, _, name = sys.argv[1].partition(":")
        built: dict[str, Callable[..., Any]] = {
            "prepare": lambda: None,
            "process_peak_bytes": process_peak_bytes,
            "resident_bytes": resident_bytes,
        }

        def build(**arguments: Any) -> None:
            built.update(getattr(importlib.import_module(module), name)(**arguments))

        built["build"] = build
        serve(built, sys.stdin, answers)


if __name__ == "__main__":
    main()
