"""Freed memory is kept, compiled programs are reused by the next start, and the clock counts each second once."""

import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.config import Config, ConfigError, override
from experiments.machine import ALLOCATOR_ENVIRONMENT, Clock, remove_damaged, use_compilation_cache

ROOT = Path(__file__).parents[2]

# --- memory

FAULTS = """
import resource
import numpy as np
from experiments.machine import keep_freed_memory

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
from experiments.machine import keep_freed_memory

def huge():
    (line,) = (line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if "AnonHuge" in line)
    return int(line.split()[1])

kept, before, array = keep_freed_memory(), huge(), np.ones(2**24)  # 128 MiB
print(kept, huge() - before)
"""


# Libraries are imported before the limit, which their own threads and files would exceed.
LIMITED = HUGE.replace(
    "def huge",
    "import resource\nused = int(Path('/proc/self/statm').read_text().split()[0]) * 4096\n"
    "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\ndef huge",
)


def test_memory_that_was_freed_is_not_mapped_again():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=60)
    kept, before, after = run.stdout.split()
    if kept == "True":
        assert int(after) < int(before) / 10
    else:
        assert not sys.platform.startswith("linux")


def test_variables_say_the_same_to_any_program():
    environment = {**os.environ, **ALLOCATOR_ENVIRONMENT}
    run = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=60, env=environment
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
    assert huge_kilobytes(LIMITED) >= 0


# --- compiled programs

PROGRAM = """
import sys
from experiments.machine import use_compilation_cache
from experiments.config import Config, override
use_compilation_cache(override(Config(), {"data.cache_dir": sys.argv[1], "compile_cache": sys.argv[2] or None}))
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
print(int(jax.jit(lambda x: jnp.sort(jnp.cumsum(x * 3)))(jnp.arange(7))[-1]), len(hits))
"""


def start(cache_dir, option="", **environment):
    env = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(cache_dir), option]
    return subprocess.Popen(command, env=env | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    result, hits = output.split()
    assert result == "63"
    return int(hits)


def entries(folder):
    return sorted(folder.glob("*-cache"))


@pytest.mark.slow
def test_two_processes_at_once_keep_what_the_next_one_reads_and_a_damaged_entry_is_replaced(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    for process in both:
        finish(process)
    kept = entries(tmp_path / "xla")
    assert any(path.name.startswith("jit__lambda") for path in kept)
    assert (tmp_path / "xla").stat().st_mode & 0o077 == 0  # what lies there is run
    assert finish(start(tmp_path)) >= 1
    for path in kept:
        path.write_bytes(path.read_bytes()[:-20])
    assert finish(start(tmp_path)) == 0  # compiled again, and nothing said
    assert finish(start(tmp_path)) >= 1


def test_the_cache_can_be_moved_and_switched_off(tmp_path):
    moved = [start(tmp_path / "data", str(tmp_path / "moved")), start(tmp_path / "data", "off")]
    moved.append(start(tmp_path / "data", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "environment")))
    moved.append(start(tmp_path / "data", "off", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "unused")))
    for process in moved:
        finish(process)
    assert entries(tmp_path / "moved") and entries(tmp_path / "environment")
    assert not entries(tmp_path / "unused") and not (tmp_path / "data").exists()


def test_a_place_that_cannot_be_written_to_is_an_error_where_it_was_asked_for(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"compiled programs cannot be kept in .*/file: .*--compile_cache=off"):
        use_compilation_cache(override(Config(), {"compile_cache": str(tmp_path / "file")}))
    use_compilation_cache(override(Config(), {"data.cache_dir": str(tmp_path / "file")}))
    assert capsys.readouterr().err.startswith("note: compiled programs cannot be kept in ")


def test_entries_that_are_cut_short_are_removed_and_each_is_looked_at_once(tmp_path):
    whole = zlib.compress(bytes(1000))
    for name, content in {"whole": whole, "cut": whole[:-1], "empty": b"", "foreign": b"abc"}.items():
        (tmp_path / f"{name}-cache").write_bytes(content)
    (tmp_path / "zstandard-cache").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(10))
    (tmp_path / "notes.txt").write_text("not ours")
    remove_damaged(tmp_path)
    found = {path.name for path in tmp_path.iterdir()} - {"zstandard-cache"}  # where a decoder is installed it goes
    assert found == {"checked", "whole-cache", "notes.txt"}
    (tmp_path / "whole-cache").write_bytes(b"abc")
    os.utime(tmp_path / "whole-cache", (1, 1))
    remove_damaged(tmp_path)
    assert (tmp_path / "whole-cache").exists()


# --- time


def test_the_clock_gives_the_share_of_each_lap_that_was_spent_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("experiments.machine.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("experiments.machine.STARTED", 90.0)
    clock = Clock()
    assert clock.total() == {"seconds": 0.0, "waited": 0.0}  # a run that was finished already
    now[0] = 120.0
    clock.wait(3.0)  # for the first batch, which belongs to the start
    assert clock.first(np.float32(0) + jax.numpy.zeros(())) == {"import": 10.0, "compile": 0.0, "first_step": 30.0}
    clock.wait(1.0)
    clock.wait(0.5)
    now[0] = 130.0
    assert clock.lap() == {"seconds": 10.0, "waited": 0.15}
    clock.wait(1.0)
    now[0] = 134.0
    assert clock.lap() == {"seconds": 4.0, "waited": 0.25}
    assert clock.total() == {"seconds": 14.0, "waited": 2.5 / 14}


def test_the_time_of_compiling_counts_even_where_it_fails(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock()
    with clock.compiling():
        now[0] = 15.0
    now[0] = 20.0
    with pytest.raises(ValueError, match="no program"), clock.compiling():
        now[0] = 21.0
        raise ValueError("no program")
    assert clock.compiled == 6.0
