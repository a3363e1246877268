"""What the benchmark's workers serve in tests, and a worker without a process."""

import importlib
import json
import os
import threading
import time

from experiments.bench.worker import WorkerError


def simple(**arguments):
    def fail():
        raise ValueError("too small\nand more")

    return {
        "echo": lambda value: [value, arguments],
        "fail": fail,
        "die": lambda: os._exit(7),
        "hang": lambda: time.sleep(100),
        "print": lambda: print("noise"),
        "environment": lambda: os.environ["GIVEN"],
    }


def restless():
    """A thread that keeps spinning while the process should wait."""
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            pass

    return {"wake": lambda: threading.Thread(target=spin, daemon=True).start(), "sleep": stop.set}


def slower_dice(size, batch):
    """A library with one loss, which takes a fifth of a second."""
    return {
        "names": lambda: {"dice": "SlowerDice"},
        "describe": dict,
        "value": lambda loss: 0.5,
        "run": lambda loss, steps: time.sleep(0.2 * steps),
        "temporary_bytes": lambda loss: None,
    }


class InProcess:
    """A worker inside the process of the test: a new one would spend seconds on imports."""

    def __init__(self, name, target, arguments, *, environment=None):
        self.name = name
        module, _, function = target.partition(":")
        self.functions = getattr(importlib.import_module(module), function)(**arguments)

    def call(self, function, **arguments):
        start = time.perf_counter()
        try:
            result = self.functions[function](**arguments)
        except ValueError as error:
            raise WorkerError(f"{self.name} failed in {function}: ValueError: {error}") from error
        self.seconds = time.perf_counter() - start
        return json.loads(json.dumps(result))  # what a process could answer

    def close(self):
        self.functions = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
