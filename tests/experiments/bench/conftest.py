"""Runs benchmarks of a tiny network, in a new process or in that of the test."""

import json
import subprocess
import sys

import pytest

from data_pipeline.console import run_program
from experiments import machine
from experiments.bench import losses, scaling, trace
from experiments.bench.__main__ import main
from tests.helpers.bench_worker import InProcess
from tests.helpers.programs import environment


@pytest.fixture(scope="package")
def bench(tmp_path_factory):
    """Runs a command as a user does and returns the finished process."""
    env = environment(tmp_path_factory.mktemp("cache"))

    def run(*words, cwd):
        command = [sys.executable, "-m", "experiments.bench", *words]
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Runs a command in this process and returns its output and its figures."""
    for module in (losses, scaling, trace):
        monkeypatch.setattr(module, "Worker", InProcess)
    monkeypatch.setattr(machine, "keep_freed_memory", lambda: False)  # which would hold for all tests of this process
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        assert run_program(main, [*words, f"--json={tmp_path / 'figures.json'}"]) == 0
        return capsys.readouterr().out, json.loads((tmp_path / "figures.json").read_text())

    return run
