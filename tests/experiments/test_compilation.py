"""Compiled programs are kept for the next start, by any number of processes, without a word."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from experiments.compilation import keep_programs, remove_damaged
from experiments.config import Config, ConfigError, override

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from experiments.compilation import keep_programs
from experiments.config import Config, override
keep_programs(override(Config(), {"data.cache_dir": sys.argv[1], "compile_cache": sys.argv[2] or None}))
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
        keep_programs(override(Config(), {"compile_cache": str(tmp_path / "file")}))
    keep_programs(override(Config(), {"data.cache_dir": str(tmp_path / "file")}))
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
