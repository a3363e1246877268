"""`python -m experiments.train --config=dice --data.root=kaggle_3m`: trains, or resumes a stopped run."""

import sys
from collections.abc import Sequence

from data_pipeline.console import run_program
from experiments.cli import parse


def main(argv: Sequence[str]) -> int:
    """Parses the command line and trains."""
    config = parse(argv, program="train")
    from experiments.training import run  # after parsing: it imports jax, and --help must be fast

    return run(config)


if __name__ == "__main__":
    sys.exit(run_program(main))
