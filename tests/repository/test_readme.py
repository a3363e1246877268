"""What the README promises exists: its commands parse, its example runs, its tables name everything."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tyro

from experiments import cli
from experiments.bench.__main__ import COMMANDS as COMMANDS_OF_BENCH
from experiments.bench.options import parse
from experiments.config import PRESETS
from experiments.ini import INI_KEYS
from jaxunet.losses import LOSSES
from tests.helpers.programs import compiler_flags

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = {language: re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) for language in ("sh", "python")}
INLINE = re.findall(r"`(?:python -m )?((?:experiments|data_pipeline)\.\w+ [^`]+)`", README)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS["sh"] for line in block.splitlines() if line.strip()]


PROGRAMS = [command.partition(" -m ")[2] for command in COMMANDS if " -m " in command] + INLINE


@pytest.mark.parametrize("command", [c for c in PROGRAMS if c.startswith("experiments.")])
def test_a_command_names_a_program_and_options_that_parse(command):
    module, *flags = shlex.split(command)
    assert importlib.util.find_spec(module)
    if module == "experiments.bench":
        name = flags.pop(0) if flags and not flags[0].startswith("-") else "step"
        assert name in COMMANDS_OF_BENCH
        options = importlib.import_module(f"{module}.{name}").Options
        parse(options, flags, command=name)
        return
    words = [flag for flag in flags if not flag.startswith("--out=")]  # an option of export alone
    assert len(cli.read_flags(words)) == len(words)


@pytest.mark.parametrize("command", [c for c in PROGRAMS if c.startswith("data_pipeline.")])
def test_a_command_of_the_data_side_parses(command):
    module, *words = shlex.split(command)
    tyro.cli(importlib.import_module(module).Options, args=words)  # which exits on a word it does not know


def test_every_program_is_a_command_of_the_readme():
    named = {command.split()[0] for command in PROGRAMS}
    started = {
        f"{folder}.{path.stem}"
        for folder in ("experiments", "data_pipeline")
        for path in (ROOT / folder).glob("*.py")
        if "__main__" in path.read_text()
    }
    assert started - named <= {"experiments.infer", "data_pipeline.check"}


def test_the_extras_to_install_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = re.findall(r"-e '\.\[(\w+)\]'", README)
    assert asked and set(asked) <= set(extras)
    assert {"cuda12", "cuda13", "tpu", "dev", "tensorboard"} <= set(extras)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_a_make_command_names_a_target_and_variables_of_the_makefile(command):
    makefile = (ROOT / "Makefile").read_text()
    _, target, *variables = shlex.split(command)
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for variable in variables:
        assert re.search(rf"^{variable.split('=')[0]} \?=", makefile, re.MULTILINE)


@pytest.mark.slow
def test_the_library_examples_run_as_they_stand():
    example = "\n".join(BLOCKS["python"])
    env = {**os.environ, "XLA_FLAGS": compiler_flags()}  # one device, as a reader has
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr


def test_every_loss_preset_and_ini_key_is_in_a_table():
    for name in (*LOSSES, *PRESETS):
        assert f"`{name}`" in README, name
    for section, key in INI_KEYS:
        assert f"`[{section}]`" in README, section
        assert f"`{key}`" in README, key


def test_every_link_into_the_repository_leads_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_tested_versions_are_what_the_constraints_say():
    constraints = (ROOT / "constraints.txt").read_text()
    assert re.search(r'^jax==0\.10\.\S+ ; python_version < "3\.12"$', constraints, re.MULTILINE)
    assert re.search(r'^jax==0\.11\.\S+ ; python_version >= "3\.12"$', constraints, re.MULTILINE)


def test_the_run_files_of_the_readme_are_those_of_the_run_directory_page():
    from experiments import rundir

    for name in ("config.json", "manifest.json", "metrics.jsonl", "train_losses.csv", "train_metrics.csv"):
        assert f"`{name}`" in README
        assert name in (rundir.__doc__ or "")
