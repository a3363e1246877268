"""What `make train` hands to the program."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments import config as cfg
from experiments.cli import parse
from experiments.config import ConfigError

ROOT = Path(__file__).parents[2]


def words(*variables, **environment):
    """The words after `experiments.workflow` in the command that make would run."""
    env = {name: value for name, value in os.environ.items() if name not in ("DATA", "CONFIG", "RUN_DIR", "ARGS")}
    done = subprocess.run(
        ["make", "-n", "train", *variables],  # -n prints the commands and runs none
        cwd=ROOT,
        env={**env, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    (command,) = [line for line in done.stdout.splitlines() if "-m experiments.workflow" in line]
    shell = subprocess.run(
        ["sh", "-c", f'printf "%s\\n" {command.partition("experiments.workflow")[2]}'],
        capture_output=True,
        text=True,
        check=True,
    )
    return shell.stdout.splitlines()


pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def test_without_variables_it_is_the_demo():
    assert words() == ["--config=demo"]
    assert parse(words(), program="workflow") == cfg.PRESETS["demo"]


def test_variables_become_options():
    found = words(
        "CONFIG=dice", "DATA=/a folder/kaggle_3m", "RUN_DIR=my run", "ARGS=--train.epochs=5 --model.dtype=bfloat16"
    )
    options = ["--config=dice", "--data.root=/a folder/kaggle_3m", "--run_dir=my run", "--train.epochs=5"]
    assert found == [*options, "--model.dtype=bfloat16"]
    parse(found, program="workflow")


@pytest.mark.parametrize("told", [{"variables": ["DATA="]}, {"environment": {"DATA": ""}}])
def test_empty_data_are_an_error_and_never_the_synthetic_set(told):
    found = words(*told.get("variables", ()), **told.get("environment", {}))
    with pytest.raises(ConfigError, match=r"data\.root='': not a path"):
        parse(found, program="workflow")
