"""`python -m experiments.evaluate --run_dir RUN`: the best checkpoint on a split.

Every figure is named for what it is, because "Dice" alone says little: a mean over slices where 65 % are empty, a
figure over the pixels of a volume, and the documented mean over batches of 32 differ by tenths on one and the same
prediction.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import (
    Evaluation,
    lesion_figures,
    patient_table,
    probability_figures,
    select,
    summarise,
    surface_figures,
)

if TYPE_CHECKING:
    from pathlib import Path

    from data_pipeline.prepared import Prepared
    from experiments.build import Run
    from experiments.feed import Feed
    from jaxunet.metrics import PixelSums

MAIN = ("dice", "jaccard", "sensitivity", "specificity", "precision", "accuracy", "mcc", "volume_error")
"""Scores that are printed; the files hold all."""


DOCUMENTED_BATCH = 32
"""Slices a batch of the published test scores."""


def first_rows(sums: "PixelSums", rows: int) -> "PixelSums":
    """What an evaluation step measured of a batch, if that is sums alone, without the padding at its end."""
    return select(sums, slice(rows))


def evaluate_batches(
    eval_step: Callable[..., Any],
    params: Any,
    feed: "Feed",
    *,
    count: int,
    batch_size: int,
    take: Callable[[Any, int], "PixelSums"] = first_rows,
    advance: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Runs `eval_step` over padded batches; every slice counts once.

    Args:
      eval_step: of `jaxunet.step.compile_eval_step`.
      params: the network's parameters.
      feed: of this process's rows, of `data_pipeline.loader.eval_batches`.
      count: number of slices, without padding.
      batch_size: rows of a global batch.
      take: gets what `eval_step` measured of each batch and how many of its rows are no padding; returns their sums.
      advance: called after each batch.

    Returns:
      The evaluation, the same on every process.
    """
    import jax

    from jaxunet.metrics import PixelSums

    losses: list[float] = []
    parts: list[PixelSums] = []
    rows: list[int] = []

    def collect(result: Any) -> None:
        loss, measured = jax.device_get(result)
        parts.append(take(measured, rows[len(losses)]))
        losses.append(float(loss))
        advance()

    running = None
    for start, (_, inputs) in zip(range(0, count, batch_size), feed, strict=True):
        rows.append(min(batch_size, count - start))
        result = eval_step(params, inputs, rows=rows[-1])
        feed.ahead(result[0])
        if running is not None:  # fetched while the next one is computed
            collect(running)
        running = result
    collect(running)
    sums = PixelSums(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    return Evaluation(float(np.average(losses, weights=rows)), sums, batch_size)


def evaluate_run(run: "Run", *, progress: bool = True) -> dict[str, Any]:
    """Evaluates a run's best checkpoint.

    Writes `evaluation.json`, `evaluation_patients.csv`, `evaluation_reliability.png` and `evaluation_gallery.png` into
    the run directory, or into `train.eval_dir`. The files of `eval.split=val` and `train` carry the split in their
    names. Masks are kept in memory for the patients under way only.

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
    from experiments.feed import Feed, Kept
    from experiments.limits import check_devices
    from experiments.measure import Observations, Options, measure
    from experiments.processes import agree, together
    from experiments.rundir import claim, saved_split, write_atomically
    from jaxunet.step import compile_eval_step

    config, first = run.config, jax.process_index() == 0
    part, size = config.eval.split, config.eval.batch_size
    name = "evaluation" if part == "test" else f"evaluation_{part}"
    files = [f"{name}{ending}" for ending in (".json", "_patients.csv", "_reliability.png", "_gallery.png")]
    directory = Path(config.train.eval_dir or run.directory)
    with together("looking at the configuration and the data"):
        check_devices(config, run.mesh.size, ["eval.batch_size"])
        loss = build.loss(config)
        data = build.dataset(config, progress=progress and first)
        split = saved_split(run.directory, data)
        if first:
            claim(directory, run.directory, files)
    agree({"eval": dataclasses.asdict(config.eval), "checkpoint": run.best, "data": data.fingerprint})
    rows = list(getattr(split, part))
    entries = [data.entries[i] for i in rows]
    measured = functools.partial(measure, threshold=config.eval.threshold)
    step = compile_eval_step(run.mesh, apply_fn=run.model.apply, loss=loss, measure=measured)
    step = functools.partial(step, step=run.best["step"])
    whole_volumes = split.whole_volumes and part == "test"
    chosen = config.eval
    options = Options(chosen.lesion_iou, chosen.tolerance, chosen.spacing, chosen.empty)
    seen = Observations(entries, volumes=whole_volumes, options=options)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    kept = Kept(data, rows, cache="none", threads=config.data.threads, mesh=run.mesh)  # each slice is read once
    batches = eval_batches(kept.source, rows, batch_size=size, threads=config.data.threads, **processes)
    console = None if progress and first else Console(quiet=True)
    with report.progress(f"evaluating {part}", -(-len(rows) // size), to=console) as advance:
        evaluation = evaluate_batches(
            step,
            run.params,
            Feed(batches, kept.put),
            count=len(rows),
            batch_size=size,
            take=seen.take,
            advance=advance,
        )
    assert seen.histogram is not None  # a part without slices is refused where it is made
    threshold, baseline = threshold_baseline(data, list(split.train), rows)
    result = {
        "dataset": run.manifest["dataset"],
        "split": {"by": split.by, "part": part},
        "checkpoint": run.best,
        "threshold": config.eval.threshold,
        "loss_name": config.train.loss,
        **summarise(evaluation, entries, whole_volumes=whole_volumes, empty=config.eval.empty),
        "lesions": lesion_figures(seen.lesions, seen.volumes, iou=options.iou),
        "surfaces": surface_figures(seen.surfaces, seen.volumes, options),
        "probabilities": probability_figures(seen.histogram),
        "flair_threshold": {"threshold": threshold, "pixel_dice": baseline},
    }
    if first:
        write_atomically(directory / files[0], json.dumps(_finite(result), indent=1, allow_nan=False) + "\n")
        table = patient_table(evaluation, entries, volumes=seen.volumes, empty=config.eval.empty)
        write_atomically(directory / files[1], table)
        report.reliability(result["probabilities"], directory / files[2], title=f"{data.title}: {part} part")
        if result["tumour_images"]:
            draw_gallery(run, data, rows, evaluation.sums, directory / files[3])
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
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def print_table(result: Mapping[str, Any]) -> None:
    """Prints the main scores, each column named for what it averages over, the sites, and a line for all else."""
    from experiments import report

    as_published = result["threshold"] == 0.5 and result["batches"]["batch_size"] == DOCUMENTED_BATCH
    documented = " (documented)" if as_published else ""
    columns = {f"batches of {result['batches']['batch_size']}{documented}": result["batches"]}
    columns["all pixels"] = result["pixels"]
    columns[f"mean of {result['images']} slices"] = _each(result["slices"], "macro")
    columns[f"mean of {result['tumour_images']} tumour slices"] = _each(result["tumour_slices"], "macro")
    if "patients" in result:
        volumes = {k: v for k, v in result["patients"].items() if k != "count"}
        columns[f"mean of {result['patients']['count']} patient volumes"] = _each(volumes, "macro")
        columns["median of volumes"] = _each(volumes, "median")
    rows = [[name, *(_cell(scores.get(name)) for scores in columns.values())] for name in ("dice_coef", *MAIN)]
    dataset, split = result["dataset"], result["split"]
    report.table(f"{dataset['title']}: {split['part']} part of the {split['by']} split", ["score", *columns], rows)
    if len(result.get("by_site", {})) > 1:
        _print_sites(result["by_site"])
    sys.stdout.write("\n".join(_lines(result)) + "\n")


def _print_sites(sites: Mapping[str, Mapping[str, Any]]) -> None:
    from experiments import report

    volumes = all("patient_means" in site for site in sites.values())
    columns = ["site", "patients", "slices", "Dice of all pixels", "sensitivity", "precision"]
    columns += ["mean Dice of patient volumes"] if volumes else []
    rows = [
        [name, site["patients"], site["slices"]]
        + [_cell(site["pixels"][score]) for score in ("dice", "sensitivity", "precision")]
        + ([_cell(site["patient_means"]["dice"])] if volumes else [])
        + [f"{site['false_positive_slices']['per_patient']:.2f}"]
        for name, site in sites.items()
    ]
    report.table("by site", [*columns, "false-positive slices a patient"], rows)


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"loss ({result['loss_name']}, batches of {result['loss']['batch_size']}): {result['loss']['value']:.4f}"
    if result["empty"] == "skip":
        yield "slices and patients without tumour are in no mean (eval.empty=skip)"
    alarms, lesions = result["false_positive_slices"], result["lesions"]
    if alarms["empty"]:
        yield (
            f"false-positive slices: {alarms['false']} of {alarms['empty']} without tumour, "
            f"{alarms['per_patient']:.2f} a patient"
        )
    kind = "volumes" if "volumes" in lesions else "slices"
    found = lesions[kind]
    yield (
        f"lesions of {kind} ({found['connectivity']} neighbours, {lesions['criterion']}): "
        f"{found['found']} of {found['actual']} found, {found['right']} of {found['predicted']} predicted ones right"
    )
    surfaces = result["surfaces"]
    kind = "volumes" if "volumes" in surfaces else "tumour_slices"
    outlines, unit = surfaces[kind], "pixels" if surfaces["spacing"] is None else "units of the spacing"
    mean, median = outlines["mean"], outlines["median"]
    yield (
        f"outlines of {kind.replace('_', ' ')} ({unit}): HD95 mean {_cell(mean['hd95'])}, median "
        f"{_cell(median['hd95'])}, ASSD {_cell(mean['assd'])}, surface Dice within {surfaces['tolerance']:g} "
        f"{_cell(mean['surface_dice'])}, boundary IoU {_cell(mean['boundary_iou'])}; {outlines['missed']} missed"
    )
    p = result["probabilities"]
    yield (
        f"probabilities of all pixels: AUROC {_cell(p['auroc'])}, average precision {_cell(p['average_precision'])}, "
        f"Brier {_cell(p['brier'])}, calibration error {_cell(p['expected_calibration_error'])}"
    )
    nothing, baseline = result["nothing"], result["flair_threshold"]
    yield f"predicting nothing: accuracy {nothing['accuracy']:.4f}, mean slice Dice {nothing['slice_dice']:.4f}"
    yield f"best single FLAIR threshold (> {baseline['threshold']}): pixel Dice {baseline['pixel_dice']:.4f}"
    yield from (f"undefined, so left out of the mean: {text}" for text in undefined(result))
    if "patients" not in result:
        yield "no volume figure: this part holds single slices, no whole patients"


def undefined(result: Mapping[str, Any]) -> Iterator[str]:
    """Says of each score in how many slices or patients it is undefined: its mean is over the others."""
    for name in MAIN:
        figures = {level: result[level][name] for level in ("slices", "tumour_slices", "patients") if level in result}
        where = [
            f"{found['undefined']} of {found['groups']} {level.replace('_', ' ')}"
            for level, found in figures.items()
            if found["undefined"]
        ]
        if where:
            yield f"{name} in {', '.join(where)}"


def _each(scores: Mapping[str, Mapping[str, Any]], statistic: str) -> dict[str, Any]:
    return {name: figures[statistic] for name, figures in scores.items()}


def _cell(value: Any) -> str:
    return "" if value is None else "undefined" if np.isnan(value) else f"{value:.4f}"


def main(argv: Sequence[str]) -> int:
    """Evaluates the run that `--run_dir` names."""
    from experiments.cli import parse
    from experiments.identity import run_directory

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
