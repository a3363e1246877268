"""The command line: every command has its help, and what cannot be measured is refused before anything starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.console import run_program
from experiments.bench.__main__ import main
from experiments.bench.options import COMMANDS

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--json=pyproject.toml"], "--json=pyproject.toml exists already: name another file"),
        (["--write_docs", "--docs=pyproject.toml"], "pyproject.toml has no place for the table"),
        (["trace", "--directory=tests"], "directory=tests exists already: name another one"),
    ],
)
def test_files_in_the_way_are_named_before_anything_starts(words, expected, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert run_program(main, words) == 2
    assert capsys.readouterr().err.startswith(f"error: {expected}")


def test_every_help_comes_without_jax_and_shows_the_options_of_its_command_only():
    code = (
        "import sys\nfrom experiments.bench.__main__ import main\nfrom experiments.bench.options import COMMANDS\n"
        "for words in [[], *([name] for name in COMMANDS)]:\n"
        "    try: main([*words, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "assert not {'jax', 'scipy', 'matplotlib', 'torch', 'tensorflow'} & set(sys.modules), 'slow'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.split("usage: python -m experiments.bench ")[1:]
    assert "The default command is step." in first
    for (name, options), text in zip(COMMANDS.items(), others, strict=True):
        assert name in first
        assert text.startswith(f"{name} [-h]")
        assert ("--write_docs" in text) == (name == "step")
        assert " ".join(options.__doc__.split()[:4]) in text
