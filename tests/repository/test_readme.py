"""The README is short, and what it promises exists."""

import os
import re
import subprocess
import sys

import pytest

from experiments.config import PRESETS
from jaxunet.losses import LOSSES
from tests.helpers.pages import README, ROOT, blocks
from tests.helpers.programs import compiler_flags


def test_it_is_short():
    assert len(README.splitlines()) <= 170
    assert len(README.split()) <= 1500


@pytest.mark.slow
def test_the_library_example_runs_as_it_stands():
    env = {**os.environ, "XLA_FLAGS": compiler_flags()}  # one device, as a reader has
    example = "\n".join(blocks(README, "python"))
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr


def test_every_preset_has_one_row_of_results():
    table = README[README.index("## Results") : README.index("## As a library")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == ["demo", "dice", "bce"]
    assert {"demo", "dice", "bce"} == set(PRESETS)


def test_it_counts_the_losses():
    assert len(LOSSES) > 50 and "more than 50 losses" in README


def test_what_to_open_exists():
    table = README[README.index("| I want to change") : README.index("[Architecture]")]
    paths = re.findall(r"`([\w/]+(?:\.py|/))`", table)
    assert len(paths) >= 8
    for path in paths:
        assert (ROOT / path).exists(), path
