"""Scores of lesions instead of pixels: which are found, and which predicted ones are false. Computed on the host.

A lesion is a connected component of a mask, in a slice or in a volume. The definitions of "connected" and of "found"
change the numbers, so state both with every result. Counts are added first (`LesionCounts`), ratios are taken last.

Source: Maier-Hein, Reinke et al. 2024, Metrics Reloaded, Nature Methods 21, arXiv 2206.01653 (object detection).
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from jaxunet.metrics.counts import PixelSums, group

__all__ = [
    "FalsePositiveSlices",
    "LesionCounts",
    "false_positive_slices",
    "lesion_counts",
    "lesion_precision_score",
    "lesion_sensitivity_score",
]

Connectivity = Literal[4, 8, 6, 18, 26]

# By dimensions of the mask: connectivity to SciPy's rank, the most axes along which neighbours may differ.
_RANK: dict[int, dict[int, int]] = {2: {4: 1, 8: 2}, 3: {6: 1, 18: 2, 26: 3}}


class LesionCounts(NamedTuple):
    """Connected components of a mask and of its prediction, to be added over slices or patients.

    Attributes:
      actual: lesions in the mask.
      found: those that the prediction finds.
      predicted: lesions in the prediction.
      right: those that are in the mask.
    """

    actual: Any
    found: Any
    predicted: Any
    right: Any


def lesion_counts(
    prediction: np.ndarray, mask: np.ndarray, *, connectivity: Connectivity | None = None, iou: float | None = None
) -> LesionCounts:
    """Counts lesions and which of them correspond.

    Args:
      prediction: `[H, W]` of a slice or `[D, H, W]` of a volume; positive where not zero.
      mask: the same shape, positive where not zero.
      connectivity: neighbours of a pixel that belong to the same lesion. In a slice 4 (sides) or 8 (and corners), in a
        volume 6 (faces), 18 (and edges) or 26 (and corners). None: 8 or 26.
      iou: None: lesions correspond if they share a pixel; one may correspond to many. A number in (0, 1]: if their
        intersection over union is at least this number, one to one, with as many pairs as possible (above 0.5 there is
        only one way to pair).

    Returns:
      `LesionCounts` of integers.

    Raises:
      ValueError: shapes differ or are not those of a slice or volume; unknown connectivity; `iou` out of range.
    """
    prediction, mask = np.asarray(prediction) != 0, np.asarray(mask) != 0
    if prediction.shape != mask.shape or mask.ndim not in _RANK:
        shapes = f"prediction {prediction.shape} and mask {mask.shape}"
        raise ValueError(f"{shapes}: expected the same shape, [H, W] or [D, H, W]")
    ranks = _RANK[mask.ndim]
    if connectivity not in (None, *ranks):
        raise ValueError(f"connectivity={connectivity!r} in {mask.ndim} dimensions; expected one of {list(ranks)}")
    if iou is not None and not 0 < iou <= 1:
        raise ValueError(f"iou={iou}; expected a number above 0 and at most 1, or None for any overlap")
    rank = max(ranks.values()) if connectivity is None else ranks[connectivity]
    neighbours = ndimage.generate_binary_structure(mask.ndim, rank)
    predicted_labels, predicted = ndimage.label(prediction, neighbours)
    actual_labels, actual = ndimage.label(mask, neighbours)
    both = prediction & mask
    pairs, shared = np.unique(np.stack([predicted_labels[both], actual_labels[both]]), axis=1, return_counts=True)
    if iou is None:
        found, right = len(np.unique(pairs[1])), len(np.unique(pairs[0]))
        return LesionCounts(actual, found, predicted, right)
    union = np.bincount(predicted_labels.ravel())[pairs[0]] + np.bincount(actual_labels.ravel())[pairs[1]] - shared
    matched = _most_pairs(pairs[:, shared / union >= iou], predicted, actual)
    return LesionCounts(actual, matched, predicted, matched)


def lesion_sensitivity_score(counts: LesionCounts) -> Any:
    """Share of the lesions that are found, in [0, 1]; NaN where there are none."""
    return _share(counts.found, counts.actual)


def lesion_precision_score(counts: LesionCounts) -> Any:
    """Share of the predicted lesions that are in the mask, in [0, 1]; NaN where none is predicted."""
    return _share(counts.right, counts.predicted)


class FalsePositiveSlices(NamedTuple):
    """False alarms in slices without tumour, by patient.

    Attributes:
      patients: `[P]`, sorted.
      empty: slices without tumour of each patient, `[P]` int64.
      false: those with at least one predicted pixel, `[P]` int64.
    """

    patients: np.ndarray
    empty: np.ndarray
    false: np.ndarray


def false_positive_slices(sums: PixelSums, patients: Sequence[Any] | np.ndarray) -> FalsePositiveSlices:
    """Counts the slices without tumour of each patient, and how many of them have at least one predicted pixel.

    Args:
      sums: rows `[N]`, one per slice; rows without a pixel (padding) are not counted.
      patients: `[N]`, the patient of each.
    """
    tp, fp, fn, tn = (np.asarray(count) for count in sums[:4])
    empty = (tp + fn == 0) & (fp + tn > 0)
    zero = np.zeros_like(tp)
    names, counted = group(PixelSums(empty, empty & (fp > 0), zero, zero, zero, zero, zero), patients)
    return FalsePositiveSlices(names, counted.tp, counted.fp)


def _share(part: Any, whole: Any) -> Any:
    part, whole = np.asarray(part, np.int64), np.asarray(whole, np.int64)
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _most_pairs(pairs: np.ndarray, predicted: int, actual: int) -> int:
    """Size of the largest one-to-one matching among pairs of labels `[2, N]`, which count from 1."""
    if not pairs.size:
        return 0
    graph = csr_array((np.ones(pairs.shape[1], bool), tuple(pairs - 1)), shape=(predicted, actual))
    return int((maximum_bipartite_matching(graph) >= 0).sum())
