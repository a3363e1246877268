"""The whole job in one command: train, evaluate, predict. `make train` runs this; it takes the options of `train`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.console import run_program
from experiments.cli import parse


def main(argv: Sequence[str]) -> int:
    """Trains (or resumes, or finds the run finished), evaluates the best checkpoint and predicts ten test slices."""
    config = parse(argv, program="workflow")
    from experiments import build, evaluation, evaluation_tables, prediction, processes, run_directory, training

    # eval.batch_size is checked now; otherwise its error would appear after hours of training.
    if code := training.run(config, ["train.batch_size", "eval.batch_size"]):
        return code
    directory = run_directory.run_directory(config)
    run = build.load_run(directory, config)
    result = evaluation.evaluate_run(run)
    if processes.is_first():
        evaluation_tables.print_evaluation(result)
        prediction.predict_mini_test(run)
        sys.stdout.write(closing_lines(result, directory))
    return 0


def closing_lines(result: Mapping[str, Any], directory: Path) -> str:
    """The last lines of the output: the score, the data, where the files are and what to try next."""
    dataset, baseline = result["dataset"], result["flair_threshold"]["pixel_dice"]
    lines = [
        "",
        f"{dataset['title']}",
        f"test Dice over all pixels {result['pixels']['dice']:.4f} (the best single FLAIR threshold: {baseline:.4f})",
        f"run directory: {directory} (curves *.png, predictions/mini_test/contact_sheet.png, evaluation.json)",
        "next:",
        f"  python -m experiments.predict --run_dir={directory} --infer.images=FOLDER",
        f"  python -m experiments.summary --run_dir={directory}",
    ]
    if dataset["kind"] == "synthetic":
        lines.append("  make train CONFIG=dice DATA=/path/to/kaggle_3m      # the real data, see README.md")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_program(main))
