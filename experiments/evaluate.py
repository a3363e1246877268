"""`python -m experiments.evaluate --run_dir RUN`: the best checkpoint on a split.

Every figure is named for what it is, because "Dice" alone says little: a mean over slices where 65 % are empty, a
figure over the pixels of a volume, and the documented mean over batches of 32 differ by tenths on one and the same
prediction.
"""

import csv
import dataclasses
import functools
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from jax.sharding import Mesh

    from data_pipeline.prepare import Prepared
    from experiments.build import Run
    from jaxunet.metrics import PixelSums

DOCUMENTED = ("accuracy", "dice_coef", "jaccard_coef", "sensitivity", "specificity", "precision")
"""Scores of the documented system, means over batches."""

DOCUMENTED_BATCH = 32
"""Slices a batch of the published test scores."""

THRESHOLDED = ("dice", "jaccard", "sensitivity", "specificity", "precision", "accuracy")
"""Scores from pixel counts."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Loss and sums of a set of slices, in order.

    Attributes:
      loss: mean over batches, weighted by their size.
      sums: `PixelSums` of NumPy arrays `[N]`.
      batch_size: slices a batch, on which the loss and the documented scores depend.
    """

    loss: float
    sums: "PixelSums"
    batch_size: int


def evaluate_batches(
    eval_step: Callable[..., Any],
    params: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    mesh: "Mesh",
    count: int,
    batch_size: int,
    advance: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Runs `eval_step` over padded batches; every slice counts once.

    Args:
      eval_step: of `jaxunet.step.compile_eval_step`.
      params: the network's parameters.
      batches: this process's rows, of `data_pipeline.loader.eval_batches`.
      mesh: the devices.
      count: number of slices, without padding.
      batch_size: rows of a global batch.
      advance: called after each batch.

    Returns:
      The evaluation, the same on every process.
    """
    import jax

    from jaxunet.metrics import PixelSums
    from jaxunet.sharding import global_batch

    losses, parts, rows = [], [], []
    for start, batch in zip(range(0, count, batch_size), batches, strict=True):
        rows.append(min(batch_size, count - start))
        loss, sums = jax.device_get(eval_step(params, global_batch(_arrays(batch), mesh), rows=rows[-1]))
        losses.append(float(loss))
        parts.append(PixelSums(*(values[: rows[-1]] for values in sums)))
        advance()
    sums = PixelSums(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    return Evaluation(float(np.average(losses, weights=rows)), sums, batch_size)


def _arrays(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: batch[name] for name in ("image", "mask", "weight")}


def select(sums: "PixelSums", rows: Any) -> "PixelSums":
    """The rows of some slices."""
    return type(sums)(*(values[rows] for values in sums))


def batch_means(sums: "PixelSums", batch_size: int, names: Sequence[str] = DOCUMENTED) -> dict[str, float]:
    """Mean over batches of each batch's score, as the documented system averages; undefined ones are left out."""
    from jaxunet.metrics import SCORES, add

    starts = range(0, len(sums.tp), batch_size)
    batches = [add(select(sums, slice(start, start + batch_size))) for start in starts]
    return {name: mean_defined([float(SCORES[name](b)) for b in batches])[0] for name in names}


def mean_defined(values: Sequence[float]) -> tuple[float, int]:
    """Mean of the values that are no NaN, and how many they are."""
    defined = [v for v in values if not np.isnan(v)]
    return (float(np.mean(defined)) if defined else float("nan")), len(defined)


def pooled_scores(sums: "PixelSums") -> dict[str, float]:
    """Scores of all pixels taken together."""
    from jaxunet.metrics import SCORES, add

    total = add(sums)
    return {name: float(SCORES[name](total)) for name in THRESHOLDED}


def group_scores(groups: Sequence["PixelSums"]) -> dict[str, dict[str, float | int]]:
    """Mean, median and standard deviation over groups (slices or patients), and how many define the score."""
    from jaxunet.metrics import SCORES

    result: dict[str, dict[str, float | int]] = {}
    for name in THRESHOLDED:
        values = np.array([float(SCORES[name](g)) for g in groups])
        values = values[~np.isnan(values)]
        statistics = (np.mean(values), np.median(values), np.std(values)) if len(values) else (np.nan,) * 3
        result[name] = dict(zip(("mean", "median", "std"), map(float, statistics), strict=True))
        result[name]["defined"] = len(values)
    return result


def summarise(evaluation: Evaluation, entries: Sequence[Any], *, whole_volumes: bool) -> dict[str, Any]:
    """Every figure of an evaluation.

    Args:
      evaluation: of the slices.
      entries: one a slice, with `patient`.
      whole_volumes: whether each patient's slices are all there; without that no volume figure is given.

    Returns:
      `"loss"`, `"batches"` (documented scores), `"pixels"`, `"slices"`, `"tumour_slices"` and `"patients"`, and
      `"nothing"`: what a model that predicts nothing scores.
    """
    from jaxunet.metrics import PixelSums, add

    sums = evaluation.sums
    rows = [select(sums, i) for i in range(len(entries))]
    tumour = sums.tp + sums.fn > 0
    result: dict[str, Any] = {
        "images": len(entries),
        "tumour_images": int(tumour.sum()),
        "loss": {"value": evaluation.loss, "batch_size": evaluation.batch_size},
        "batches": {"batch_size": evaluation.batch_size, **batch_means(sums, evaluation.batch_size)},
        "pixels": pooled_scores(sums),
        "slices": group_scores(rows),
        "tumour_slices": group_scores([row for row, has in zip(rows, tumour, strict=True) if has]),
    }
    if whole_volumes:
        patients = sorted({e.patient for e in entries})
        volumes = [add(select(sums, np.array([e.patient == p for e in entries]))) for p in patients]
        result["patients"] = {"count": len(patients), **group_scores(volumes)}
    zero = np.zeros_like(sums.tp)
    nothing = PixelSums(zero, zero, sums.fn + sums.tp, sums.tn + sums.fp, zero, zero, sums.actual)
    result["nothing"] = {
        "accuracy": pooled_scores(nothing)["accuracy"],
        "slice_dice": group_scores([select(nothing, i) for i in range(len(entries))])["dice"]["mean"],
    }
    return result


def patient_table(evaluation: Evaluation, entries: Sequence[Any]) -> str:
    """CSV text, a row a patient: counts and scores over the patient's evaluated slices."""
    from jaxunet.metrics import SCORES, add

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["patient", "site", "slices", "tumour_slices", "tp", "fp", "fn", "tn", *THRESHOLDED])
    for patient in sorted({e.patient for e in entries}):
        mine = np.array([e.patient == patient for e in entries])
        part = select(evaluation.sums, mine)
        total = add(part)
        site = next(e.site for e in entries if e.patient == patient)
        counts = [int(c) for c in (total.tp, total.fp, total.fn, total.tn)]
        scores = [float(SCORES[name](total)) for name in THRESHOLDED]
        writer.writerow([patient, site, int(mine.sum()), int((part.tp + part.fn > 0).sum()), *counts, *scores])
    return text.getvalue()


def evaluate_run(run: "Run", *, progress: bool = True) -> dict[str, Any]:
    """Evaluates a run's best checkpoint.

    Writes `evaluation.json`, `evaluation_patients.csv` and `evaluation_gallery.png` into the run directory, or into
    `train.eval_dir`. The files of `eval.split=val` and `train` carry the split in their names.

    Args:
      run: of `build.load_run`; its configuration says which split, batch size and threshold.
      progress: show a progress bar.

    Returns:
      What `evaluation.json` holds.

    Raises:
      DataError: the data set is not the one the run was trained on.
    """
    from pathlib import Path

    import jax
    from rich.console import Console

    from data_pipeline.check import threshold_baseline
    from data_pipeline.loader import eval_batches
    from experiments import build, report
    from experiments.limits import check_devices
    from experiments.processes import together
    from experiments.rundir import claim, saved_split, write_atomically
    from jaxunet.step import compile_eval_step

    config, first = run.config, jax.process_index() == 0
    part, size = config.eval.split, config.eval.batch_size
    name = "evaluation" if part == "test" else f"evaluation_{part}"
    files = [f"{name}{ending}" for ending in (".json", "_patients.csv", "_gallery.png")]
    directory = Path(config.train.eval_dir or run.directory)
    with together("looking at the configuration and the data"):
        check_devices(config, run.mesh.size, ["eval.batch_size"])
        loss = build.loss(config)
        data = build.dataset(config, progress=progress and first)
        split = saved_split(run.directory, data)
        if first:
            claim(directory, run.directory, files)
    rows = list(getattr(split, part))
    entries = [data.entries[i] for i in rows]
    step = compile_eval_step(run.mesh, apply_fn=run.model.apply, loss=loss, threshold=config.eval.threshold)
    step = functools.partial(step, step=run.best["step"])
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    batches = eval_batches(data, rows, batch_size=size, threads=config.data.threads, **processes)
    console = None if progress and first else Console(quiet=True)
    with report.progress(f"evaluating {part}", -(-len(rows) // size), to=console) as advance:
        evaluation = evaluate_batches(
            step, run.params, batches, mesh=run.mesh, count=len(rows), batch_size=size, advance=advance
        )
    threshold, baseline = threshold_baseline(data, list(split.train), rows)
    result = {
        "dataset": run.manifest["dataset"],
        "split": {"by": split.by, "part": part},
        "checkpoint": run.best,
        "threshold": config.eval.threshold,
        "loss_name": config.train.loss,
        **summarise(evaluation, entries, whole_volumes=split.whole_volumes and part == "test"),
        "flair_threshold": {"threshold": threshold, "pixel_dice": baseline},
    }
    if first:
        write_atomically(directory / files[0], json.dumps(_finite(result), indent=1) + "\n")
        write_atomically(directory / files[1], patient_table(evaluation, entries))
        if result["tumour_images"]:
            draw_gallery(run, data, rows, evaluation.sums, directory / files[2])
    return result


def draw_gallery(run: "Run", data: "Prepared", rows: Sequence[int], sums: "PixelSums", path: "Path") -> None:
    """Draws the best, the median and the worst tumour slices by their Dice, with the true outline.

    Args:
      run: whose network predicts.
      data: the prepared slices.
      rows: indices of the evaluated slices in `data`.
      sums: of these slices.
      path: the PNG to write.
    """
    from experiments.pictures import Case, best_median_worst, gallery
    from experiments.predict import predictor
    from jaxunet.metrics import dice_score

    tumour = np.flatnonzero(sums.tp + sums.fn)
    scores = [float(dice_score(select(sums, i))) for i in tumour]
    chosen = best_median_worst(scores)
    examples = [data[rows[tumour[k]]] for _, k in chosen]
    probabilities = predictor(run)(np.stack([example["image"] for example in examples]))
    cases = [
        Case(
            data.entries[rows[tumour[k]]].name,
            example["image"],
            probability[:, :, 0] > run.config.eval.threshold,
            example["mask"][:, :, 0].astype(bool),
            dice=scores[k],
            group=group,
        )
        for (group, k), example, probability in zip(chosen, examples, probabilities, strict=True)
    ]
    gallery(cases, path, f"{data.title}: tumour slices of the {run.config.eval.split} part")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: an undefined score is null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def print_table(result: Mapping[str, Any]) -> None:
    """Prints the scores, each column named for what it averages over."""
    from experiments import report

    as_published = result["threshold"] == 0.5 and result["batches"]["batch_size"] == DOCUMENTED_BATCH
    documented = " (documented)" if as_published else ""
    columns = {f"batches of {result['batches']['batch_size']}{documented}": result["batches"]}
    columns["all pixels"] = result["pixels"]
    columns[f"mean of {result['images']} slices"] = {k: v["mean"] for k, v in result["slices"].items()}
    tumour = {k: v["mean"] for k, v in result["tumour_slices"].items()}
    columns[f"mean of {result['tumour_images']} tumour slices"] = tumour
    if "patients" in result:
        volumes = {k: v for k, v in result["patients"].items() if k != "count"}
        columns[f"mean of {result['patients']['count']} patient volumes"] = {k: v["mean"] for k, v in volumes.items()}
        columns["median of volumes"] = {k: v["median"] for k, v in volumes.items()}
    names = [*DOCUMENTED[1:3], *THRESHOLDED]
    rows = [[name, *(_cell(scores.get(name)) for scores in columns.values())] for name in names]
    dataset, split = result["dataset"], result["split"]
    report.table(f"{dataset['title']}: {split['part']} part of the {split['by']} split", ["score", *columns], rows)
    nothing, baseline = result["nothing"], result["flair_threshold"]
    lines = [
        f"loss ({result['loss_name']}, batches of {result['loss']['batch_size']}): {result['loss']['value']:.4f}",
        f"predicting nothing: accuracy {nothing['accuracy']:.4f}, mean slice Dice {nothing['slice_dice']:.4f}",
        f"best single FLAIR threshold (> {baseline['threshold']}): pixel Dice {baseline['pixel_dice']:.4f}",
    ]
    lines += [f"undefined, so left out of the mean: {text}" for text in undefined(result)]
    if "patients" not in result:
        lines.append("no volume figure: this part holds single slices, no whole patients")
    sys.stdout.write("\n".join(lines) + "\n")


def undefined(result: Mapping[str, Any]) -> list[str]:
    """Says of each score in how many slices or patients it is undefined: its mean is over the others."""
    groups = {"slices": result["images"], "tumour_slices": result["tumour_images"]}
    groups |= {"patients": result["patients"]["count"]} if "patients" in result else {}
    missing = {
        name: [
            f"{count - result[group][name]['defined']} of {count} {group.replace('_', ' ')}"
            for group, count in groups.items()
            if result[group][name]["defined"] < count
        ]
        for name in THRESHOLDED
    }
    return [f"{name} in {', '.join(where)}" for name, where in missing.items() if where]


def _cell(value: Any) -> str:
    return "" if value is None else "undefined" if np.isnan(value) else f"{value:.4f}"


def main(argv: Sequence[str]) -> int:
    """Evaluates the run that `--run_dir` names."""
    from experiments.cli import parse
    from experiments.config import run_directory

    config = parse(argv, program="evaluate")
    import jax

    from experiments import build
    from experiments.processes import start_processes

    start_processes(config)
    result = evaluate_run(build.load_run(run_directory(config), config))
    if jax.process_index() == 0:
        print_table(result)
    return 0


if __name__ == "__main__":
    from experiments.cli import run_program

    sys.exit(run_program(main))
