"""`python -m experiments.export --run_dir RUN [--out FILE.npz]`: the weights of the best checkpoint in one file.

The file holds one float32 array per parameter, `encoder0_conv1/kernel` and so on, and nothing else: NumPy reads it.
`experiments.weights.load_network("weights.npz")` returns the network and its parameters.
"""

import sys
from collections.abc import Sequence

from data_pipeline.console import run_program
from experiments.cli import parse
from experiments.run_directory import new_file, run_directory


def main(argv: Sequence[str]) -> int:
    """Writes the weights of the run of `--run_dir` to `--out`."""
    config = parse(argv, program="export")
    directory = run_directory(config)
    path = new_file(directory / "weights.npz" if config.out is None else config.out, ".npz")
    from experiments.weights import export_weights

    export_weights(directory, path)
    sys.stdout.write(f"weights: {path}, {path.stat().st_size / 1e6:.1f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
