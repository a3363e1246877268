"""`python -m experiments.predict --run_dir RUN --infer.images FOLDER`: segments image files.

For `a.tif` it writes, at the size of the image, `a_probability.png` (grey, 255 = certain tumour), `a_mask.png` (0 and
255) and `a_overlay.png` (outline of the prediction, and of the truth if masks are given), and for all images
`contact_sheet.png` and `predictions.csv`. A file that cannot be used is reported; the others are still predicted.
From Python: `load(run_dir)(images)`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.console import run_program
from experiments.cli import parse
from experiments.image_folder import requested_images

if TYPE_CHECKING:  # imports jax, which the program loads after parsing only
    from experiments.predictor import Predictor


def load(run_dir: str | Path, *, batch_size: int | None = None) -> "Predictor":
    """Loads the best checkpoint of a run as a function from images to probabilities.

    Args:
      run_dir: the run directory.
      batch_size: images predicted at once; default `infer.batch_size` of the run.

    Returns:
      A `Predictor`: `uint8` or float arrays with values 0..255, `[H, W, C]`, `[B, H, W, C]` or a list of `[H, W, C]`,
      to `float32` probabilities of the same sizes with one channel per class.

    Raises:
      ConfigError: there is no run.
      CheckpointError: it has no checkpoint, or a damaged one.
    """
    from experiments.predictor import load_predictor

    return load_predictor(run_dir, batch_size=batch_size)


def main(argv: Sequence[str], *, program: str = "predict") -> int:
    """Predicts the images of `--infer.images` with the run of `--run_dir`."""
    config = parse(argv, program=program)
    requested_images(config.infer)  # reports a wrong path before jax starts
    from experiments.prediction import predict

    predict(config)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
