"""What the workers of `test_bench.py` serve."""

import os
import threading
import time


def simple(**arguments):
    def fail():
        raise ValueError("too small\nand more")

    return {
        "echo": lambda value: [value, arguments],
        "fail": fail,
        "die": lambda: os._exit(7),
        "hang": lambda: time.sleep(100),
        "print": lambda: print("noise"),
        "environment": lambda: os.environ["TOLD"],
    }


def restless():
    """A thread that goes on spinning when the process should wait."""
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            pass

    return {"wake": lambda: threading.Thread(target=spin, daemon=True).start(), "sleep": stop.set}
