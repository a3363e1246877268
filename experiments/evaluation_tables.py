"""The scores of an evaluation, each named for what it averages over: as JSON, as one row per patient, and printed."""

import csv
import dataclasses
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.console import number, table
from jaxunet import metrics
from jaxunet.losses.reduction import Empty
from jaxunet.metrics import SCORES, Histogram, LesionCounts, PixelSums
from jaxunet.surface import SurfaceScores, summarise_surfaces

REFERENCE_SCORES = ("accuracy", "dice_coef", "jaccard_coef", "sensitivity", "specificity", "precision")
"""Scores of the reference, means over batches."""
REFERENCE_BATCH = 32
"""Batch size of the reference's published test scores."""
COUNTED_SCORES = {name: score for name, score in SCORES.items() if not name.endswith("_coef")}
"""Scores from counts of pixels; the others are the reference's soft ones, whose value depends on the batch."""
PRINTED_SCORES = ("dice", "jaccard", "sensitivity", "specificity", "precision", "accuracy", "mcc", "volume_error")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Loss and sums of a set of slices, in order."""

    loss: float  # mean over batches, weighted by their size
    sums: PixelSums  # of NumPy arrays [N]
    batch_size: int  # the loss and the reference's scores depend on it


def select_slices(sums: PixelSums, rows: Any) -> PixelSums:
    """Indexes every array of the sums."""
    return PixelSums(*(values[rows] for values in sums))


def batch_means(sums: PixelSums, batch_size: int, names: Sequence[str] = REFERENCE_SCORES) -> dict[str, float]:
    """Mean over batches of each batch's score, as the reference averages; undefined ones are left out."""
    starts = range(0, len(sums.tp), batch_size)
    batches = [metrics.add(select_slices(sums, slice(start, start + batch_size))) for start in starts]
    return {name: _mean_defined([float(SCORES[name](b)) for b in batches]) for name in names}


def _mean_defined(values: Sequence[float]) -> float:
    defined = [v for v in values if not np.isnan(v)]
    return float(np.mean(defined)) if defined else float("nan")


def summarise_evaluation(
    evaluation: Evaluation, entries: Sequence[Any], *, whole_volumes: bool, empty: Empty = "perfect"
) -> dict[str, Any]:
    """Every score that follows from counts of pixels.

    Args:
      evaluation: of the slices.
      entries: one per slice, with `patient` and `site`.
      whole_volumes: all slices of each patient are present; otherwise there are no scores of volumes.
      empty: value of groups without a true pixel, as in `jaxunet.metrics`.

    Returns:
      `"loss"`, `"batches"` (the reference's scores), `"pixels"` (all together), `"slices"`, `"tumour_slices"`,
      `"patients"` and `"sites"` (statistics over groups), `"by_site"`, `"false_positive_slices"`, and `"nothing"`:
      the scores of a model that predicts nothing.
    """
    sums = evaluation.sums
    patients, sites = (np.array([getattr(entry, name) for entry in entries]) for name in ("patient", "site"))
    groups = ({"patient": patients} if whole_volumes else {}) | ({"site": sites} if any(sites) else {})
    levels = _statistics(sums, groups, empty)
    result: dict[str, Any] = {
        "images": len(entries),
        "tumour_images": int((sums.tp + sums.fn > 0).sum()),
        "empty": empty,
        "loss": {"value": evaluation.loss, "batch_size": evaluation.batch_size},
        "batches": {"batch_size": evaluation.batch_size, **batch_means(sums, evaluation.batch_size)},
        "pixels": _column(levels["overall"], "micro"),
        "slices": levels["slice"],
        "tumour_slices": levels["tumour_slice"],
        "false_positive_slices": _false_positives(sums, patients),
    }
    if whole_volumes:
        result["patients"] = {"count": len(set(patients)), **levels["patient"]}
    if any(sites):
        result["sites"] = levels["site"]
        rows = {site: sites == site for site in sorted(set(sites.tolist()))}
        result["by_site"] = {
            site: _site_figures(select_slices(sums, mine), patients[mine], whole_volumes, empty)
            for site, mine in rows.items()
        }
    zero = np.zeros_like(sums.tp)
    nothing = PixelSums(zero, zero, sums.fn + sums.tp, sums.tn + sums.fp, zero, zero, sums.actual)
    levels = _statistics(nothing, {}, empty)
    result["nothing"] = {
        "accuracy": levels["overall"]["accuracy"]["micro"],
        "slice_dice": levels["slice"]["dice"]["macro"],
    }
    return result


def _statistics(sums: PixelSums, groups: Mapping[str, np.ndarray], empty: Empty) -> dict[str, dict[str, Any]]:
    """`jaxunet.metrics.score_table` as `{level: {score: {"micro": ..., "macro": ..., ...}}}`."""
    levels: dict[str, dict[str, Any]] = {}
    for row in metrics.score_table(sums, groups, scores=COUNTED_SCORES, empty=empty):
        values = row._asdict()
        levels.setdefault(values.pop("level"), {})[values.pop("score")] = values
    return levels


def _column(scores: Mapping[str, Mapping[str, Any]], statistic: str) -> dict[str, Any]:
    return {name: figures[statistic] for name, figures in scores.items()}


def _site_figures(sums: PixelSums, patients: np.ndarray, whole_volumes: bool, empty: Empty) -> dict[str, Any]:
    levels = _statistics(sums, {"patient": patients} if whole_volumes else {}, empty)
    result: dict[str, Any] = {
        "patients": len(set(patients.tolist())),
        "slices": len(sums.tp),
        "tumour_slices": int((sums.tp + sums.fn > 0).sum()),
        "pixels": _column(levels["overall"], "micro"),
        "false_positive_slices": _false_positives(sums, patients),
    }
    if whole_volumes:
        result["patient_means"] = _column(levels["patient"], "macro")
    return result


def _false_positives(sums: PixelSums, patients: np.ndarray) -> dict[str, float]:
    """Slices without tumour, those of them in which anything is predicted, and the latter per patient."""
    found = metrics.false_positive_slices(sums, patients)
    false = int(found.false.sum())
    return {"empty": int(found.empty.sum()), "false": false, "per_patient": false / len(found.patients)}


def lesion_figures(
    slices: Sequence[LesionCounts], volumes: Mapping[str, Mapping[str, Any]], *, iou: float | None
) -> dict[str, Any]:
    """Lesion-wise sensitivity and precision, over slices and over volumes, with the rules that decide them.

    Volumes are `evaluation.measure_volume` of each patient, if there are any; `iou` as in
    `jaxunet.metrics.lesion_counts`.
    """
    criterion = "any overlap" if iou is None else f"intersection over union of at least {iou:g}, one to one"
    result = {"criterion": criterion, "slices": {"connectivity": 8, **_lesion_scores(slices)}}
    if volumes:
        rows = [LesionCounts(*(one[f"lesions_{name}"] for name in LesionCounts._fields)) for one in volumes.values()]
        result["volumes"] = {"connectivity": 26, **_lesion_scores(rows)}
    return result


def _lesion_scores(rows: Sequence[LesionCounts]) -> dict[str, Any]:
    columns = LesionCounts(*map(np.array, zip(*rows, strict=True)))
    total = LesionCounts(*(int(column.sum()) for column in columns))
    result: dict[str, Any] = total._asdict()
    for name in ("sensitivity", "precision"):
        score = getattr(metrics, f"lesion_{name}_score")
        values = score(columns).tolist()
        undefined = int(np.isnan(values).sum())
        result[name] = {"micro": float(score(total)), "macro": _mean_defined(values), "undefined": undefined}
    return result


def surface_figures(
    slices: Sequence[SurfaceScores],
    volumes: Mapping[str, Mapping[str, Any]],
    *,
    tolerance: float = 1.0,
    spacing: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Distances of outlines, surface Dice and boundary IoU, over slices, over those with tumour, and over volumes.

    Volumes are as in `lesion_figures`. Tolerance and spacing (of slices, rows and columns) are recorded only.
    """
    groups = {"slices": slices, "tumour_slices": [one for one in slices if one.outcome in ("both", "missed")]}
    if volumes:
        groups["volumes"] = [SurfaceScores(*(one[name] for name in SurfaceScores._fields)) for one in volumes.values()]
    rules = {"tolerance": tolerance, "spacing": spacing and list(spacing)}
    return rules | {name: summarise_surfaces(scores)._asdict() for name, scores in groups.items()}


def probability_figures(histogram: Histogram) -> dict[str, Any]:
    """AUROC, average precision, Brier score, calibration error and the reliability curve of all pixels."""
    found = metrics.from_histogram(histogram)
    curve = metrics.reliability(found)
    return {
        "bins_of_the_logit": len(histogram.positive),
        "auroc": metrics.auroc_score(found),
        "auroc_bounds": list(metrics.auroc_bounds(found)),
        "average_precision": metrics.average_precision_score(found),
        "average_precision_bounds": list(metrics.average_precision_bounds(found)),
        "brier": metrics.brier_score(found),
        "expected_calibration_error": metrics.expected_calibration_error(curve),
        "reliability": {name: values.tolist() for name, values in curve._asdict().items()},
    }


def patient_table(
    evaluation: Evaluation,
    entries: Sequence[Any],
    *,
    volumes: Mapping[str, Mapping[str, Any]] | None = None,
    empty: Empty = "perfect",
) -> str:
    """Returns CSV text with one row per patient: counts and scores over the patient's evaluated slices.

    Args as in `summarise_evaluation`; `volumes` are further columns, by patient and name.
    """
    volumes = volumes or {}
    patients = [entry.patient for entry in entries]
    sites = {entry.patient: entry.site for entry in entries}
    names, totals = metrics.group(evaluation.sums, patients)
    found = metrics.false_positive_slices(evaluation.sums, patients)
    slices = np.unique(patients, return_counts=True)[1]
    scores = {name: score(totals, empty=empty) for name, score in COUNTED_SCORES.items()}
    further = list(next(iter(volumes.values()), {}))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    counts = ("slices", "tumour_slices", "false_positive_slices", "tp", "fp", "fn", "tn")
    writer.writerow(["patient", "site", *counts, *scores, *further])
    for k, patient in enumerate(names.tolist()):
        row = [slices[k], slices[k] - found.empty[k], found.false[k], *(column[k] for column in totals[:4])]
        values = [float(column[k]) for column in scores.values()]
        writer.writerow([patient, sites[patient], *row, *values, *(volumes[patient][name] for name in further)])
    return text.getvalue()


def print_evaluation(result: Mapping[str, Any]) -> None:
    """Prints the result of `evaluation.evaluate_run`: tables of the main scores and the sites, and lines."""
    batch_size, dataset, split = result["batches"]["batch_size"], result["dataset"], result["split"]
    comparable = result["threshold"] == 0.5 and batch_size == REFERENCE_BATCH
    columns = {
        f"batches of {batch_size}{' (reference)' if comparable else ''}": result["batches"],
        "all pixels": result["pixels"],
        f"mean of {result['images']} slices": _column(result["slices"], "macro"),
        f"mean of {result['tumour_images']} tumour slices": _column(result["tumour_slices"], "macro"),
    }
    if "patients" in result:
        volumes = {k: v for k, v in result["patients"].items() if k != "count"}
        columns[f"mean of {result['patients']['count']} patient volumes"] = _column(volumes, "macro")
        columns["median of volumes"] = _column(volumes, "median")
    rows = [[name, *(scores.get(name, "") for scores in columns.values())] for name in ("dice_coef", *PRINTED_SCORES)]
    title = f"{dataset['title']}: {split['part']} part of the {split['by']} split"
    table(title, ["score", *columns], rows)
    if len(result.get("by_site", {})) > 1:
        _print_sites(result["by_site"])
    sys.stdout.write("\n".join(_lines(result)) + "\n")


def _print_sites(sites: Mapping[str, Mapping[str, Any]]) -> None:
    volumes = all("patient_means" in site for site in sites.values())
    columns = ["site", "patients", "slices", "Dice of all pixels", "sensitivity", "precision"]
    columns += ["mean Dice of patient volumes"] if volumes else []
    rows = [
        [name, site["patients"], site["slices"]]
        + [site["pixels"][score] for score in ("dice", "sensitivity", "precision")]
        + ([site["patient_means"]["dice"]] if volumes else [])
        + [f"{site['false_positive_slices']['per_patient']:.2f}"]
        for name, site in sites.items()
    ]
    table("by site", [*columns, "false-positive slices per patient"], rows)


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"loss ({result['loss_name']}, batches of {result['loss']['batch_size']}): {result['loss']['value']:.4f}"
    if result["empty"] == "skip":
        yield "slices and patients without tumour are left out of every mean (eval.empty=skip)"
    false, lesions, surfaces = result["false_positive_slices"], result["lesions"], result["surfaces"]
    if false["empty"]:
        yield (
            f"false-positive slices: {false['false']} of {false['empty']} without tumour, "
            f"{false['per_patient']:.2f} per patient"
        )
    kind = "volumes" if "volumes" in lesions else "slices"
    found = lesions[kind]
    yield (
        f"lesions of {kind} ({found['connectivity']} neighbours, {lesions['criterion']}): {found['found']} of "
        f"{found['actual']} found, {found['right']} of {found['predicted']} predicted ones right"
    )
    kind = "volumes" if "volumes" in surfaces else "tumour_slices"
    outlines, unit = surfaces[kind], "pixels" if surfaces["spacing"] is None else "units of the spacing"
    mean = {name: number(value) for name, value in outlines["mean"].items()}
    yield (
        f"outlines of {kind.replace('_', ' ')} ({unit}): HD95 mean {mean['hd95']}, median "
        f"{number(outlines['median']['hd95'])}, ASSD {mean['assd']}, surface Dice within {surfaces['tolerance']:g} "
        f"{mean['surface_dice']}, boundary IoU {mean['boundary_iou']}; {outlines['missed']} missed"
    )
    names = {
        "AUROC": "auroc",
        "average precision": "average_precision",
        "Brier": "brier",
        "calibration error": "expected_calibration_error",
    }
    values = (f"{name} {number(result['probabilities'][key])}" for name, key in names.items())
    yield f"probabilities of all pixels: {', '.join(values)}"
    nothing, baseline = result["nothing"], result["flair_threshold"]
    yield f"predicting nothing: accuracy {nothing['accuracy']:.4f}, mean slice Dice {nothing['slice_dice']:.4f}"
    yield f"best single FLAIR threshold (> {baseline['threshold']}): pixel Dice {baseline['pixel_dice']:.4f}"
    for name in PRINTED_SCORES:
        levels = {level: result[level][name] for level in ("slices", "tumour_slices", "patients") if level in result}
        undefined = [
            f"{figures['undefined']} of {figures['groups']} {level.replace('_', ' ')}"
            for level, figures in levels.items()
            if figures["undefined"]
        ]
        if undefined:
            yield f"undefined, so left out of the mean: {name} in {', '.join(undefined)}"
    if "patients" not in result:
        yield "no scores of volumes: this part contains single slices, not whole patients"
