"""Freed memory stays with the process, in huge pages: measured by the page faults of taking it again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


HUGE = """
import numpy as np
from pathlib import Path
from experiments.allocator import keep_freed_memory

def huge():
    (line,) = (line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if "AnonHuge" in line)
    return int(line.split()[1])

kept, before, array = keep_freed_memory(), huge(), np.ones(2**24)  # 128 MiB
print(kept, huge() - before)
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


def huge_kilobytes(program: str) -> int:
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not switch.exists() or "[never]" in switch.read_text():
        pytest.skip("this system has no transparent huge pages")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    kept, kilobytes = run.stdout.split()
    if kept == "False":
        pytest.skip("this C library cannot be told")
    return int(kilobytes)


def test_large_blocks_lie_in_huge_pages():
    assert huge_kilobytes(HUGE) > 2**17 / 2


def test_where_addresses_are_limited_memory_is_taken_nevertheless():
    assert huge_kilobytes(f"import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n{HUGE}") >= 0
