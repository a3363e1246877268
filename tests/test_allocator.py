"""Freed memory stays with the process: measured by the page faults of taking it again."""

import subprocess
import sys

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
