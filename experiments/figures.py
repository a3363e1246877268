"""The figures of an evaluation, each named for what it averages over."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from experiments.measure import Options
    from jaxunet.losses.reduction import Empty
    from jaxunet.metrics import Histogram, LesionCounts, PixelSums
    from jaxunet.surface import SurfaceScores

DOCUMENTED = ("accuracy", "dice_coef", "jaccard_coef", "sensitivity", "specificity", "precision")
"""Scores of the documented system, means over batches."""


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


def select(sums: "PixelSums", rows: Any) -> "PixelSums":
    """The rows of some slices."""
    return type(sums)(*(values[rows] for values in sums))


def counted_scores() -> dict[str, Any]:
    """Scores from counts of pixels by name: all but the documented soft ones, whose value depends on the batch."""
    from jaxunet.metrics import SCORES

    return {name: score for name, score in SCORES.items() if not name.endswith("_coef")}


def batch_means(sums: "PixelSums", batch_size: int, names: Sequence[str] = DOCUMENTED) -> dict[str, float]:
    """Mean over batches of each batch's score, as the documented system averages; undefined ones are left out."""
    from jaxunet.metrics import SCORES, add

    starts = range(0, len(sums.tp), batch_size)
    batches = [add(select(sums, slice(start, start + batch_size))) for start in starts]
    return {name: mean_defined([float(SCORES[name](b)) for b in batches]) for name in names}


def mean_defined(values: Sequence[float]) -> float:
    """Mean of the values that are no NaN, NaN without any."""
    defined = [v for v in values if not np.isnan(v)]
    return float(np.mean(defined)) if defined else float("nan")


def summarise(
    evaluation: Evaluation, entries: Sequence[Any], *, whole_volumes: bool, empty: "Empty" = "perfect"
) -> dict[str, Any]:
    """Every figure that counts of pixels give.

    Args:
      evaluation: of the slices.
      entries: one a slice, with `patient` and `site`.
      whole_volumes: whether each patient's slices are all there; without that no volume figure is given.
      empty: what groups without a true pixel are worth, as in `jaxunet.metrics`.

    Returns:
      `"loss"`, `"batches"` (documented scores), `"pixels"` (all together), `"slices"`, `"tumour_slices"`, `"patients"`
      and `"sites"` (statistics over groups), `"by_site"`, `"false_positive_slices"`, and `"nothing"`: what a model
      that predicts nothing scores.
    """
    from jaxunet.metrics import PixelSums

    sums = evaluation.sums
    patients, sites = ([getattr(entry, name) for entry in entries] for name in ("patient", "site"))
    groups = ({"patient": patients} if whole_volumes else {}) | ({"site": sites} if any(sites) else {})
    levels = statistics(sums, groups, empty)
    result: dict[str, Any] = {
        "images": len(entries),
        "tumour_images": int((sums.tp + sums.fn > 0).sum()),
        "empty": empty,
        "loss": {"value": evaluation.loss, "batch_size": evaluation.batch_size},
        "batches": {"batch_size": evaluation.batch_size, **batch_means(sums, evaluation.batch_size)},
        "pixels": {name: figures["micro"] for name, figures in levels["overall"].items()},
        "slices": levels["slice"],
        "tumour_slices": levels["tumour_slice"],
        "false_positive_slices": false_alarms(sums, patients),
    }
    if whole_volumes:
        result["patients"] = {"count": len(set(patients)), **levels["patient"]}
    if any(sites):
        result["sites"] = levels["site"]
        rows = {site: np.array([s == site for s in sites]) for site in sorted(set(sites))}
        result["by_site"] = {
            site: by_site(select(sums, mine), np.array(patients)[mine], whole_volumes, empty)
            for site, mine in rows.items()
        }
    zero = np.zeros_like(sums.tp)
    nothing = PixelSums(zero, zero, sums.fn + sums.tp, sums.tn + sums.fp, zero, zero, sums.actual)
    silent = statistics(nothing, {}, empty)
    result["nothing"] = {
        "accuracy": silent["overall"]["accuracy"]["micro"],
        "slice_dice": silent["slice"]["dice"]["macro"],
    }
    return result


def statistics(
    sums: "PixelSums", groups: Mapping[str, Sequence[Any] | np.ndarray], empty: "Empty"
) -> dict[str, dict[str, dict[str, float]]]:
    """`jaxunet.metrics.score_table` as `{level: {score: {"micro": ..., "macro": ..., ...}}}`."""
    from jaxunet.metrics import score_table

    levels: dict[str, dict[str, dict[str, float]]] = {}
    for row in score_table(sums, groups, scores=counted_scores(), empty=empty):
        values = row._asdict()
        levels.setdefault(values.pop("level"), {})[values.pop("score")] = values
    return levels


def by_site(sums: "PixelSums", patients: np.ndarray, whole_volumes: bool, empty: "Empty") -> dict[str, Any]:
    """The figures of one institution."""
    levels = statistics(sums, {"patient": patients} if whole_volumes else {}, empty)
    result: dict[str, Any] = {
        "patients": len(set(patients.tolist())),
        "slices": len(sums.tp),
        "tumour_slices": int((sums.tp + sums.fn > 0).sum()),
        "pixels": {name: figures["micro"] for name, figures in levels["overall"].items()},
        "false_positive_slices": false_alarms(sums, patients),
    }
    if whole_volumes:
        result["patient_means"] = {name: figures["macro"] for name, figures in levels["patient"].items()}
    return result


def false_alarms(sums: "PixelSums", patients: Sequence[Any] | np.ndarray) -> dict[str, float]:
    """Slices without tumour, those of them where anything is predicted, and how many of these a patient has."""
    from jaxunet.metrics import false_positive_slices

    found = false_positive_slices(sums, patients)
    false = int(found.false.sum())
    return {"empty": int(found.empty.sum()), "false": false, "per_patient": false / len(found.patients)}


def lesion_figures(
    slices: Sequence["LesionCounts"], volumes: Mapping[str, Mapping[str, Any]], *, iou: float | None
) -> dict[str, Any]:
    """Lesion-wise sensitivity and precision, over slices and over volumes, with the rules that decide them.

    Args:
      slices: counts of each slice.
      volumes: of each patient, `lesions_actual` and the other counts; none where there are no volumes.
      iou: the criterion, as in `jaxunet.metrics.lesion_counts`.
    """
    from jaxunet.metrics import LesionCounts

    rows = [LesionCounts(*(one[f"lesions_{name}"] for name in LesionCounts._fields)) for one in volumes.values()]
    criterion = "any overlap" if iou is None else f"intersection over union of at least {iou:g}, one to one"
    result = {"criterion": criterion, "slices": {"connectivity": 8, **_lesion_scores(slices)}}
    if rows:
        result["volumes"] = {"connectivity": 26, **_lesion_scores(rows)}
    return result


def surface_figures(
    slices: Sequence["SurfaceScores"], volumes: Mapping[str, Mapping[str, Any]], options: "Options"
) -> dict[str, Any]:
    """Distances of outlines, surface Dice and boundary IoU, over slices, over those with tumour, and over volumes.

    Args:
      slices: scores of each slice.
      volumes: of each patient, what `SurfaceScores` names; none where there are no volumes.
      options: how they were compared.
    """
    from jaxunet.surface import SurfaceScores
    from jaxunet.surface import summarise_surfaces as summary

    rows = [SurfaceScores(*(one[name] for name in SurfaceScores._fields)) for one in volumes.values()]
    tumour = [one for one in slices if one.outcome in ("both", "missed")]
    groups = {"slices": slices, "tumour_slices": tumour} | ({"volumes": rows} if rows else {})
    told = {"tolerance": options.tolerance, "spacing": options.spacing and list(options.spacing)}
    return told | {name: summary(scores)._asdict() for name, scores in groups.items()}


def _lesion_scores(rows: Sequence["LesionCounts"]) -> dict[str, Any]:
    from jaxunet.metrics import LesionCounts, lesion_precision_score, lesion_sensitivity_score

    columns = LesionCounts(*map(np.array, zip(*rows, strict=True)))
    total = LesionCounts(*(int(column.sum()) for column in columns))
    scores = {}
    for name, score in {"sensitivity": lesion_sensitivity_score, "precision": lesion_precision_score}.items():
        values = score(columns)
        undefined = int(np.isnan(values).sum())
        scores[name] = {"micro": float(score(total)), "macro": mean_defined(values.tolist()), "undefined": undefined}
    return {**total._asdict(), **scores}


def probability_figures(histogram: "Histogram") -> dict[str, Any]:
    """AUROC, average precision, Brier score, calibration error and the reliability curve of all pixels."""
    from jaxunet import metrics

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
    empty: "Empty" = "perfect",
) -> str:
    """CSV text, a row a patient: counts and scores over the patient's evaluated slices.

    Args:
      evaluation: of the slices.
      entries: one a slice, with `patient` and `site`.
      volumes: further columns of each patient by name.
      empty: as in `summarise`.
    """
    from jaxunet.metrics import false_positive_slices, group

    volumes = volumes or {}
    patients = [entry.patient for entry in entries]
    sites = dict(zip(patients, (entry.site for entry in entries), strict=True))
    names, totals = group(evaluation.sums, patients)
    alarms = false_positive_slices(evaluation.sums, patients)
    slices = np.unique(patients, return_counts=True)[1]
    scores = {name: score(totals, empty=empty) for name, score in counted_scores().items()}
    further = list(next(iter(volumes.values()), {}))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    counts = ("slices", "tumour_slices", "false_positive_slices", "tp", "fp", "fn", "tn")
    writer.writerow(["patient", "site", *counts, *scores, *further])
    for k, patient in enumerate(names.tolist()):
        row = [slices[k], slices[k] - alarms.empty[k], alarms.false[k], *(column[k] for column in totals[:4])]
        values = [float(column[k]) for column in scores.values()]
        writer.writerow([patient, sites[patient], *row, *values, *(volumes[patient][name] for name in further)])
    return text.getvalue()
