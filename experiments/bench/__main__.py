"""`python -m experiments.bench [COMMAND] [OPTIONS]`: measures speed and memory. The default command is `step`."""

import importlib
import sys
from collections.abc import Sequence

from data_pipeline.console import run_program
from experiments.bench.options import command_of, parse


def main(argv: Sequence[str]) -> int:
    """Runs the command that the first word names; returns the exit code."""
    options = parse(argv)
    # Each command imports JAX and more, which takes seconds: `--help` must not wait for it.
    return importlib.import_module(f"experiments.bench.{command_of(options)}").main(options)


if __name__ == "__main__":
    sys.exit(run_program(main))
