"""`python -m experiments.export --run_dir RUN [--out FILE.npz]`: the weights of the best checkpoint in one file.

The file holds one float32 array per parameter, `encoder0_conv1/kernel` and so on, and nothing else: NumPy reads it.
`experiments.weights.load_network("weights.npz")` returns the network and its parameters.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.console import run_program
from experiments.cli import parse
from experiments.config import ConfigError
from experiments.run_directory import run_directory


def new_file(path: str | Path, ending: str) -> Path:
    """Returns the path; raises ConfigError if it exists already or does not end in `ending`."""
    path = Path(path)
    if path.suffix.lower() != ending:
        raise ConfigError(f"--out={path}: the file is written as {ending[1:]}, name it {path.stem}{ending}")
    if path.exists():
        raise ConfigError(f"--out={path} exists already: name another file")
    return path


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
