"""The program."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.console import run_program
from experiments import evaluate

RUN = Path(__file__).parents[1] / "data" / "run_0_1"


@pytest.mark.parametrize("program", ["evaluate", "predict", "infer", "summary", "export", "workflow"])
def test_a_program_loads_neither_jax_nor_matplotlib_before_it_has_read_the_command_line(program):
    code = f"import sys; import experiments.{program}; print(*{{'jax', 'matplotlib', 'grain'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_program_evaluates_a_run_on_another_part_of_the_split(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(RUN, tmp_path / "run")
    words = [f"--run_dir={tmp_path / 'run'}", "--eval.split=val", f"--data.cache_dir={tmp_path / 'cache'}"]
    assert run_program(evaluate.main, words) == 0
    assert "val part of the patient split" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "evaluation_val.json").read_text())["split"]["part"] == "val"
