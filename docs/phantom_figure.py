"""Draws docs/phantom.png from a run of the demo: `python docs/phantom_figure.py RUN_DIR`."""

import sys
from pathlib import Path

import numpy as np

from experiments import build
from experiments.config import read_run
from experiments.plots import background, new_figure, outline, save_figure
from experiments.predict import load


def main(run_dir: str) -> None:
    """Shows the FLAIR channel, the true mask and the predicted mask of the test slice with the largest lesion."""
    run = build.load_run(run_dir)
    data = build.dataset(read_run(run_dir), progress=False)
    if data.kind != "synthetic":
        raise SystemExit("error: this picture goes into the repository; only synthetic slices may be shown")
    index = {entry.name: i for i, entry in enumerate(data.entries)}
    rows = [index[name] for name in run.manifest["split"]["test"]]
    row = max(rows, key=lambda i: data.entries[i].positives)
    example = data[row]
    image, truth = background(example["image"]), example["mask"][:, :, 0].astype(bool)
    prediction = load(run_dir)(example["image"])[:, :, 0] > run.config.eval.threshold
    figure = new_figure((9, 3.3))
    panels = {"phantom, FLAIR channel": None, "true mask": truth, "prediction": prediction}
    for axes, (name, mask) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        picture = np.array(image)
        if mask is not None:
            picture[outline(mask)] = (230, 159, 0) if name == "true mask" else (86, 180, 233)
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(name)
        axes.set_axis_off()
    figure.suptitle(f"{data.title}; slice {data.entries[row].name}", fontsize=8, y=0.06)
    save_figure(figure, Path(__file__).with_name("phantom.png"))


if __name__ == "__main__":
    main(sys.argv[1])
