"""`python -m experiments.infer`: the reference's name of `experiments.predict`."""

import sys
from collections.abc import Sequence

from data_pipeline.console import run_program
from experiments import predict


def main(argv: Sequence[str]) -> int:
    """Calls `experiments.predict`."""
    return predict.main(argv, program="infer")


if __name__ == "__main__":
    sys.exit(run_program(main))
