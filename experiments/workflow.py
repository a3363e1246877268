"""The whole job in one command: train, evaluate, infer. `make train` runs this; it takes the options of `train`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from data_pipeline.prepared import Prepared
    from experiments.build import Run

MINI_TEST = 10


def mini_test(data: "Prepared", rows: Sequence[int], directory: Path) -> None:
    """Writes ten test slices with tumour, evenly spread, as PNG: `image/<name>.png` and `mask/<name>.png`."""
    from experiments.pictures import save_png

    tumour = [i for i in rows if data.entries[i].positives]
    chosen = [tumour[k] for k in np.linspace(0, len(tumour) - 1, min(MINI_TEST, len(tumour))).round().astype(int)]
    for folder in ("image", "mask"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for i in chosen:
        example, name = data[i], data.entries[i].name
        image = example["image"] if example["image"].shape[2] > 1 else example["image"][:, :, 0]
        save_png(image, directory / "image" / f"{name}.png")
        save_png(example["mask"][:, :, 0] * np.uint8(255), directory / "mask" / f"{name}.png")


def infer(run: "Run", data: "Prepared") -> None:
    """Predicts the ten test slices as if they came from a folder."""
    from experiments.predict import predict_run, raise_failures

    index = {entry.name: i for i, entry in enumerate(data.entries)}
    directory = run.directory / "mini_test"
    mini_test(data, [index[name] for name in run.manifest["split"]["test"]], directory)
    options = dataclasses.replace(
        run.config.infer,
        images=str(directory / "image"),
        masks=str(directory / "mask"),
        output_dir=str(run.directory / "predictions" / "mini_test"),
        merged_dir=None,
        overwrite=True,  # by these ten names only this program writes there
    )
    config = dataclasses.replace(run.config, infer=options)
    raise_failures(predict_run(dataclasses.replace(run, config=config)))


def main(argv: Sequence[str]) -> int:
    """Trains (or goes on, or finds the run finished), evaluates its best checkpoint and predicts ten test slices."""
    from experiments import train

    # eval.batch_size too, or its error comes after hours of training
    code = train.main(argv, program="workflow", batch_sizes=("train.batch_size", "eval.batch_size"))
    if code:
        return code
    import jax

    from experiments import build
    from experiments.cli import parse
    from experiments.evaluate import evaluate_run, print_table
    from experiments.identity import run_directory

    config = parse(argv, program="workflow")
    directory = run_directory(config)
    run = build.load_run(directory, config)
    result = evaluate_run(run)
    if jax.process_index() == 0:
        print_table(result)
        infer(run, build.dataset(config, progress=False))
        sys.stdout.write(closing(result, directory))
    return 0


def closing(result: dict, directory: Path) -> str:
    """The last lines: what was reached, on which data, where it lies and what to try next."""
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
    from experiments.cli import run_program

    sys.exit(run_program(main))
