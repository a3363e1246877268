"""`python -m experiments.infer`: the documented name of `experiments.predict`."""

import sys
from collections.abc import Sequence

from experiments import predict


def main(argv: Sequence[str]) -> int:
    """Does what `experiments.predict` does."""
    return predict.main(argv, program="infer")


if __name__ == "__main__":
    from experiments.cli import run_program

    sys.exit(run_program(main))
