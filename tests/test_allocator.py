"""Freed memory stays with the process: measured by the page faults of taking it again."""

import os
import subprocess
import sys

from experiments.allocator import ENVIRONMENT

PROGRAM = """
import resource
import numpy as np
from experiments.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24)  # 128 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
mapped_anew = faults()
kept = keep_freed_memory()
faults()
print(kept, mapped_anew, faults())
"""


def test_memory_that_was_freed_is_not_mapped_anew():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    kept, before, after = run.stdout.split()
    if kept == "True":
        assert int(after) < int(before) / 10
    else:
        assert not sys.platform.startswith("linux")


def test_variables_say_the_same_to_any_program():
    environment = {**os.environ, **ENVIRONMENT}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    kept, kept_from_the_start, after = run.stdout.split()
    if kept == "True":
        assert int(kept_from_the_start) < 2**27 / 4096 / 10  # of the pages of 128 MiB
        assert int(after) < 2**27 / 4096 / 10
