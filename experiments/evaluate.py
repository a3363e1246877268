"""`python -m experiments.evaluate --run_dir RUN`: evaluates the best checkpoint on the test part of the split."""

import sys
from collections.abc import Sequence

from data_pipeline.console import run_program
from experiments.cli import parse


def main(argv: Sequence[str]) -> int:
    """Evaluates the run that `--run_dir` names, writes its files and prints a table."""
    config = parse(argv, program="evaluate")
    from experiments.evaluation import evaluate  # takes seconds; --help need not wait for it

    evaluate(config)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
