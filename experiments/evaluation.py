"""Evaluates a network on a part of the split.

Pixels are counted on the device; lesions and outlines are compared on the host. Each score is named for what it
averages over, because "Dice" alone means little: a mean over slices of which 65 % are empty, the Dice of a volume and
the reference's mean over batches of 32 differ by tenths on the same prediction.
"""

import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from data_pipeline.check import threshold_baseline
from data_pipeline.console import progress as progress_bar
from data_pipeline.loader import eval_batches
from data_pipeline.prepared import Prepared
from experiments import build, plots
from experiments.build import Run
from experiments.config import Config, EvalConfig
from experiments.evaluation_tables import (
    Evaluation,
    lesion_figures,
    patient_table,
    print_evaluation,
    probability_figures,
    select_slices,
    summarise_evaluation,
    surface_figures,
)
from experiments.limits import check_devices
from experiments.predictor import predictor_of_run
from experiments.prefetch import Prefetcher, SliceStore
from experiments.processes import assert_same_on_all, fail_together, start_processes
from experiments.run_directory import claim, run_directory, saved_split, write_atomically
from jaxunet.metrics import (
    Histogram,
    LesionCounts,
    PixelSums,
    above,
    add_histograms,
    dice_score,
    lesion_counts,
    pixel_sums,
    probability_histogram,
)
from jaxunet.step import compile_eval_step
from jaxunet.surface import SurfaceScores, surface_scores


class BatchMeasures(NamedTuple):
    """Of one batch: sums per image, a histogram of all pixels, predicted and true masks `[B, H, W, K]`."""

    sums: PixelSums
    histogram: Histogram
    prediction: Any
    mask: Any


def measure_batch(logits: jax.Array, masks: jax.Array, *, weight: jax.Array, threshold: float = 0.5) -> BatchMeasures:
    """Measures a batch on the device; arguments as in `jaxunet.metrics.pixel_sums`."""
    return BatchMeasures(
        sums=pixel_sums(logits, masks, weight=weight, threshold=threshold),
        histogram=probability_histogram(logits, masks, weight=weight),
        prediction=above(logits, threshold),
        mask=masks,
    )


class Observations:
    """Collects the measures of all batches: of all pixels, of each slice and of each complete patient.

    Masks (of the first class) are kept until their patient is complete, so that memory stays bounded.

    Args:
      entries: one per slice, in the order of the batches, with `patient` and `slice`.
      volumes: also compare the volumes of patients; then all slices of each patient must be added.
      options: how lesions and outlines are compared.
    """

    def __init__(self, entries: Sequence[Any], *, volumes: bool, options: EvalConfig) -> None:
        self.histogram: Histogram | None = None
        self.lesions: list[LesionCounts] = []
        self.surfaces: list[SurfaceScores] = []
        self.volumes: dict[str, dict[str, Any]] = {}
        self._entries, self._options = entries, options
        self._missing = Counter(entry.patient for entry in entries) if volumes else Counter()
        self._waiting: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {}

    def add_batch(self, measured: BatchMeasures, rows: int) -> PixelSums:
        """Adds the first `rows` rows of a batch of NumPy arrays, the others are padding; returns their sums."""
        self.histogram = add_histograms([h for h in (self.histogram, measured.histogram) if h is not None])
        for prediction, mask in zip(measured.prediction[:rows, :, :, 0], measured.mask[:rows, :, :, 0], strict=True):
            entry = self._entries[len(self.lesions)]
            self.lesions.append(lesion_counts(prediction, mask, iou=self._options.lesion_iou))
            self.surfaces.append(_surface_scores(prediction, mask, self._options))
            if self._missing[entry.patient]:
                self._wait(entry.patient, entry.slice, prediction, mask)
        return select_slices(measured.sums, slice(rows))

    def _wait(self, patient: str, position: int, prediction: np.ndarray, mask: np.ndarray) -> None:
        self._waiting.setdefault(patient, []).append((position, prediction, mask))
        self._missing[patient] -= 1
        if not self._missing[patient]:
            positions, predictions, masks = zip(*self._waiting.pop(patient), strict=True)
            volumes = stack_slices(positions, predictions), stack_slices(positions, masks)
            self.volumes[patient] = measure_volume(*volumes, self._options)


def stack_slices(positions: Sequence[int], slices: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks slices `[H, W]` in the order of their positions to a volume `[D, H, W]`.

    A gap of any width becomes one empty slice: lesions on its two sides are not connected, and distances across it are
    too short.
    """
    planes: list[np.ndarray] = []
    before = None
    for k in sorted(range(len(positions)), key=lambda k: positions[k]):
        if before is not None and positions[k] > before + 1:
            planes.append(np.zeros_like(slices[k]))
        planes.append(slices[k])
        before = positions[k]
    return np.stack(planes)


def measure_volume(prediction: np.ndarray, mask: np.ndarray, options: EvalConfig) -> dict[str, Any]:
    """Returns what pixel counts of slices do not contain: lesions (26 neighbours) and outlines of a volume `[D, H, W]`.

    The keys are columns of `evaluation_patients.csv`.
    """
    lesions = lesion_counts(prediction, mask, iou=options.lesion_iou)
    counts = {f"lesions_{name}": int(count) for name, count in lesions._asdict().items()}
    return counts | _surface_scores(prediction, mask, options)._asdict()


def _surface_scores(prediction: np.ndarray, mask: np.ndarray, options: EvalConfig) -> SurfaceScores:
    spacing = None if options.spacing is None else options.spacing[-mask.ndim :]
    return surface_scores(prediction, mask, tolerance=options.tolerance, spacing=spacing, empty=options.empty)


def evaluate_batches(
    eval_step: Callable[..., Any],
    params: Any,
    feed: Prefetcher,
    *,
    count: int,
    batch_size: int,
    take: Callable[[Any, int], PixelSums] = lambda sums, rows: select_slices(sums, slice(rows)),
    advance: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Runs `eval_step` over padded batches; every slice counts once. The result is the same on every process.

    Args:
      eval_step: from `jaxunet.step.compile_eval_step`.
      params: the network's parameters.
      feed: this process's rows, from `data_pipeline.loader.eval_batches`.
      count: number of slices, without padding.
      batch_size: rows of a global batch.
      take: `take(measures, rows)` returns the `PixelSums` of the first `rows` rows; the others are padding.
      advance: called after each batch.
    """

    def results() -> Iterator[tuple[int, Any]]:
        for start, (_, inputs) in zip(range(0, count, batch_size), feed, strict=True):
            rows = min(batch_size, count - start)
            result = eval_step(params, inputs, rows=rows)
            feed.prefetch(result[0])
            yield rows, result

    losses, sums, weights = [], [], []
    # In pairs, so that the device computes a batch while the host takes the previous one.
    for (rows, result), _ in itertools.pairwise(itertools.chain(results(), [(0, None)])):
        loss, measured = jax.device_get(result)
        sums.append(take(measured, rows))
        losses.append(float(loss))
        weights.append(rows)
        advance()
    joined = PixelSums(*map(np.concatenate, zip(*sums, strict=True)))
    return Evaluation(float(np.average(losses, weights=weights)), joined, batch_size)


def evaluate(config: Config) -> None:
    """Evaluates the run of a configuration and prints a table; also in a run of several processes."""
    start_processes(config)
    result = evaluate_run(build.load_run(run_directory(config), config))
    if jax.process_index() == 0:
        print_evaluation(result)


def evaluate_run(run: Run, *, progress: bool = True) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run from `build.load_run` and returns the content of `evaluation.json`.

    Writes `evaluation.json`, `evaluation_patients.csv`, `evaluation_reliability.png` and `evaluation_gallery.png` into
    the run directory, or into `train.eval_dir`. With `eval.split=val` or `train`, their names contain the split.

    Raises:
      DataError: the data set is not the one the run was trained on.
    """
    config, first = run.config, jax.process_index() == 0
    options, part, size = config.eval, config.eval.split, config.eval.batch_size
    name = "evaluation" if part == "test" else f"evaluation_{part}"
    files = [f"{name}{ending}" for ending in (".json", "_patients.csv", "_reliability.png", "_gallery.png")]
    directory = Path(config.train.eval_dir or run.directory)
    with fail_together("checking the configuration and the data"):
        check_devices(config, run.mesh.size, ["eval.batch_size"])
        loss = build.loss(config)
        data = build.dataset(config, progress=progress and first)
        split = saved_split(run.directory, data)
        if first:
            claim(directory, run.directory, files)
    assert_same_on_all({"eval": dataclasses.asdict(options), "checkpoint": run.best, "data": data.fingerprint})

    rows = list(getattr(split, part))
    entries = [data.entries[i] for i in rows]
    whole_volumes = split.whole_volumes and part == "test"
    seen = Observations(entries, volumes=whole_volumes, options=options)
    measure = functools.partial(measure_batch, threshold=options.threshold)
    step = compile_eval_step(run.mesh, apply_fn=run.model.apply, loss=loss, measure=measure)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    kept = SliceStore(data, rows, cache="none", threads=config.data.threads, mesh=run.mesh)  # each slice is read once
    batches = eval_batches(kept.source, rows, batch_size=size, threads=config.data.threads, **processes)
    to = None if progress and first else Console(quiet=True)
    with progress_bar(f"evaluating {part}", -(-len(rows) // size), to=to) as advance:
        evaluation = evaluate_batches(
            functools.partial(step, step=run.best["step"]),
            run.params,
            Prefetcher(batches, kept.put),
            count=len(rows),
            batch_size=size,
            take=seen.add_batch,
            advance=advance,
        )
    assert seen.histogram is not None  # the split has no empty part
    threshold, baseline = threshold_baseline(data, list(split.train), rows)
    result = {
        "dataset": run.manifest["dataset"],
        "split": {"by": split.by, "part": part},
        "checkpoint": run.best,
        "threshold": options.threshold,
        "loss_name": config.train.loss,
        **summarise_evaluation(evaluation, entries, whole_volumes=whole_volumes, empty=options.empty),
        "lesions": lesion_figures(seen.lesions, seen.volumes, iou=options.lesion_iou),
        "surfaces": surface_figures(seen.surfaces, seen.volumes, tolerance=options.tolerance, spacing=options.spacing),
        "probabilities": probability_figures(seen.histogram),
        "flair_threshold": {"threshold": threshold, "pixel_dice": baseline},
    }
    if first:
        write_atomically(directory / files[0], json.dumps(without_nan(result), indent=1, allow_nan=False) + "\n")
        table = patient_table(evaluation, entries, volumes=seen.volumes, empty=options.empty)
        write_atomically(directory / files[1], table)
        plots.reliability(result["probabilities"], directory / files[2], title=f"{data.title}: {part} part")
        if result["tumour_images"]:
            draw_gallery(run, data, rows, evaluation.sums, directory / files[3])
    return result


def without_nan(value: Any) -> Any:
    """Replaces NaN and infinity at any depth by None: JSON has neither."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def draw_gallery(run: Run, data: Prepared, rows: Sequence[int], sums: PixelSums, path: Path) -> None:
    """Draws the tumour slices with the best, the median and the worst Dice, out of `rows` of the data with `sums`."""
    tumour = np.flatnonzero(sums.tp + sums.fn)
    scores = [float(dice_score(select_slices(sums, i))) for i in tumour]
    chosen = plots.best_median_worst(scores)
    examples = [data[rows[tumour[k]]] for _, k in chosen]
    probabilities = predictor_of_run(run)(np.stack([example["image"] for example in examples]))
    cases = [
        plots.Case(
            data.entries[rows[tumour[k]]].name,
            example["image"],
            probability[:, :, 0] > run.config.eval.threshold,
            example["mask"][:, :, 0].astype(bool),
            dice=scores[k],
            group=group,
        )
        for (group, k), example, probability in zip(chosen, examples, probabilities, strict=True)
    ]
    plots.gallery(cases, path, title=f"{data.title}: tumour slices of the {run.config.eval.split} part")
