"""Scores of a segmentation's outline: its distance from the true one, and the correct share of it. On the host.

A case is one mask and its prediction: a slice `[H, W]` or a patient's volume `[D, H, W]`, bool or {0, 1}.
`surface_distances` measures once, and every score of distances reads the result. Everything is float64.

The surface of a mask is its outermost pixels: true ones with a false pixel, or the image's edge, among the 4 (in a
volume 6) neighbours that share a side. Distances are between pixel centres, as in MONAI, medpy and Metrics Reloaded.
DeepMind's `surface-distance` puts the surface between the pixels and weights its pieces by area; its numbers differ,
less so for larger masks. A full mask is no exception: its surface is the image's edge.

Empty masks have no surface. `empty` is the project's one rule: under "perfect", the default, an empty prediction of an
empty mask is correct; under "skip" an empty mask does not count.

| score                                      | both empty | mask empty: false alarm | prediction empty: missed |
|--------------------------------------------|------------|-------------------------|--------------------------|
| `hausdorff_distance`, HD95                 | 0, or NaN  | the diagonal, or NaN    | the diagonal             |
| `average_surface_distance`                 | 0, or NaN  | the diagonal, or NaN    | the diagonal             |
| `surface_dice_score`, `boundary_iou_score` | 1, or NaN  | 0, or NaN               | 0                        |

A missed lesion always counts: ignoring it (NaN), as other libraries do, would favour a model that misses difficult
lesions. Its distance is infinite, and one such case would make a mean infinite. The image's diagonal, in units of the
spacing, is longer than any distance in the image, so a miss scores worse than the worst possible hit and means stay
finite. (BraTS uses 374 mm in the same way.) `missed` sets another number; `math.inf` suits medians and ranks.

Source: Maier-Hein, Reinke et al. 2024, Metrics Reloaded, Nature Methods 21, arXiv 2206.01653.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from jaxunet.distance import Spacing, axis_spacing
from jaxunet.losses.reduction import Empty

Norm = Literal["euclidean", "chessboard"]
Outcome = Literal["both", "missed", "false", "empty"]

_ROUNDING = 1e-9  # relative tolerance, for comparisons such as 0.1 + 0.2 <= 0.3


class SurfaceDistances(NamedTuple):
    """Distances between the surfaces of a prediction and of a mask.

    Attributes:
      to_mask: `[P]` from each of the prediction's surface pixels to the mask's nearest; infinite if the mask is empty.
      to_prediction: `[M]` from each of the mask's surface pixels to the prediction's nearest, likewise.
      diagonal: from corner to corner of the image, including the pixels' edges; longer than any distance in it.
    """

    to_mask: np.ndarray
    to_prediction: np.ndarray
    diagonal: float

    @property
    def outcome(self) -> Outcome:
        """Which of the two have a surface, as in `SurfaceScores`."""
        return _outcome(len(self.to_mask) > 0, len(self.to_prediction) > 0)


class SurfaceScores(NamedTuple):
    """All scores of one case.

    Attributes:
      hausdorff: the largest distance.
      hd95: the larger of both directions' 95th percentiles.
      assd: average symmetric surface distance.
      surface_dice: share of both surfaces within the tolerance (NSD).
      boundary_iou: overlap of the bands along the inside of both outlines.
      outcome: "both" have a lesion, the prediction "missed" it, it is a "false" alarm, or both are "empty".
    """

    hausdorff: float
    hd95: float
    assd: float
    surface_dice: float
    boundary_iou: float
    outcome: Outcome


class SurfaceSummary(NamedTuple):
    """Scores of many cases.

    Attributes:
      mean: of each score over the scored cases; NaN without any.
      median: likewise.
      scored: number of cases with scores: all, or with `empty="skip"` those with a lesion.
      missed: number of cases, scored or not, with a lesion and an empty prediction.
      false: number of cases, scored or not, with a prediction and an empty mask.
      empty: number of cases, scored or not, with neither.
    """

    mean: dict[str, float]
    median: dict[str, float]
    scored: int
    missed: int
    false: int
    empty: int


def surface(mask: np.ndarray) -> np.ndarray:
    """Marks the surface pixels of a mask `[H, W]` or `[D, H, W]`: bool of the same shape."""
    mask = _binary("mask", mask)
    return mask & ~ndimage.binary_erosion(mask)


def surface_distances(prediction: np.ndarray, mask: np.ndarray, *, spacing: Spacing = None) -> SurfaceDistances:
    """Distance from every surface pixel of one segmentation to the nearest of the other.

    Args:
      prediction: `[H, W]` or `[D, H, W]`, bool or {0, 1}.
      mask: the same shape, bool or {0, 1}.
      spacing: distance between neighbouring pixels, one number or one per axis, in any unit. None: 1, pixels.

    Returns:
      `SurfaceDistances`, in units of the spacing.

    Raises:
      ValueError: shapes differ or are not those of a slice or volume; values other than 0 and 1 (threshold
        probabilities first); a spacing that is not positive, or not one per axis.
    """
    prediction, mask = _case(prediction, mask)
    steps = np.array(axis_spacing(spacing, mask.shape))
    predicted, actual = (np.argwhere(surface(image)) * steps for image in (prediction, mask))

    def nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
        if len(points) == 0 or len(others) == 0:
            return np.full(len(points), np.inf)
        return KDTree(others).query(points)[0]

    diagonal = math.hypot(*(steps * mask.shape))
    return SurfaceDistances(nearest(predicted, actual), nearest(actual, predicted), diagonal)


def hausdorff_distance(
    distances: SurfaceDistances, *, percentile: float = 100.0, empty: Empty = "perfect", missed: float | None = None
) -> float:
    """Hausdorff distance, or with `percentile=95` HD95, which a few stray pixels do not change.

    The percentile is taken in each direction, with NumPy's linear interpolation, and the larger of the two is the
    distance, as in Metrics Reloaded, MONAI and DeepMind. (medpy takes one percentile of both directions together, which
    the longer surface dominates.)

    Args:
      distances: of a case.
      percentile: in [0, 100]; 100 is the maximum.
      empty: "perfect": 0 if prediction and mask are empty; "skip": NaN if the mask is.
      missed: the distance if only one of them is empty. None: the image's diagonal.

    Raises:
      ValueError: percentile out of range, an unknown `empty`, or a `missed` that is negative or NaN.

    Source: Huttenlocher et al. 1993, IEEE TPAMI 15 (9).
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile={percentile}; expected a number in [0, 100]")
    undefined = _without_surface(distances.outcome, 0.0, _worst(distances, missed), empty)
    if undefined is not None:
        return undefined
    return max(float(np.percentile(d, percentile)) for d in (distances.to_mask, distances.to_prediction))


def average_surface_distance(
    distances: SurfaceDistances, *, empty: Empty = "perfect", missed: float | None = None
) -> float:
    """Average symmetric surface distance (ASSD): the mean over the pixels of both surfaces together.

    As in MONAI (`symmetric=True`) and Metrics Reloaded. (medpy's `assd` is the mean of two means, elsewhere called
    MASD.) Arguments and errors as in `hausdorff_distance`.

    Source: Heimann et al. 2009, IEEE TMI 28 (8).
    """
    undefined = _without_surface(distances.outcome, 0.0, _worst(distances, missed), empty)
    if undefined is not None:
        return undefined
    return float(np.mean(np.concatenate([distances.to_mask, distances.to_prediction])))


def surface_dice_score(distances: SurfaceDistances, *, tolerance: float, empty: Empty = "perfect") -> float:
    """Normalised surface Dice (NSD): the share of both surfaces that lies within a tolerance of the other.

    Args:
      distances: of a case.
      tolerance: the accepted deviation, not negative, in units of the spacing; a distance of exactly this much is
        accepted, up to a rounding of 1e-9 of it.
      empty: "perfect": 1 if prediction and mask are empty; "skip": NaN if the mask is.

    Returns:
      In [0, 1]; 0 if only one of them is empty.

    Raises:
      ValueError: a tolerance that is negative or not finite; an unknown `empty`.

    Source: Nikolov et al. 2018, arXiv 1809.04430, with pixels as elements of the surface, as in Seidlitz et al. 2021,
      arXiv 2111.05408.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance}; expected a finite number that is not negative")
    undefined = _without_surface(distances.outcome, 1.0, 0.0, empty)
    if undefined is not None:
        return undefined
    both = np.concatenate([distances.to_mask, distances.to_prediction])
    return float(np.mean(both <= tolerance * (1 + _ROUNDING)))


def boundary_iou_score(
    prediction: np.ndarray,
    mask: np.ndarray,
    *,
    width: float | None = None,
    spacing: Spacing = None,
    norm: Norm = "euclidean",
    empty: Empty = "perfect",
) -> float:
    """Boundary IoU: the Jaccard index of the bands along the inside of both outlines.

    The band of a mask is its pixels at most `width` from a pixel outside it; beyond the image's edge is outside. Unlike
    the IoU, it also penalises wrong outlines of large objects.

    Args:
      prediction: `[H, W]` or `[D, H, W]`, bool or {0, 1}.
      mask: the same shape, bool or {0, 1}.
      width: of the bands, in units of the spacing, at least the smallest spacing. None: 2 % of the image's diagonal as
        in the paper, rounded to whole pixels (of the smallest spacing) and at least one.
      spacing: as in `surface_distances`.
      norm: "euclidean" as elsewhere in this file. "chessboard" counts steps to any of 8 (26) neighbours, without a
        spacing, as the authors' program does, which erodes by squares.
      empty: "perfect": 1 if prediction and mask are empty; "skip": NaN if the mask is.

    Returns:
      In [0, 1]; 0 if only one of them is empty.

    Raises:
      ValueError: as `surface_distances`; a width below the smallest spacing; "chessboard" with a spacing; an unknown
        option.

    Source: Cheng et al. 2021, arXiv 2103.16562.
    """
    prediction, mask = _case(prediction, mask)
    steps = axis_spacing(spacing, mask.shape)
    if norm not in ("euclidean", "chessboard") or (norm == "chessboard" and set(steps) != {1.0}):
        raise ValueError(f'norm={norm!r}, spacing={spacing!r}; expected "euclidean", or "chessboard" without a spacing')
    if width is None:
        pixels = 0.02 * math.hypot(*np.multiply(steps, mask.shape)) / min(steps)
        width = max(1, round(pixels)) * min(steps)
    if not width >= min(steps):
        raise ValueError(
            f"width={width}; expected at least the smallest spacing, {min(steps)}, otherwise bands are empty"
        )
    undefined = _without_surface(_outcome(bool(prediction.any()), bool(mask.any())), 1.0, 0.0, empty)
    if undefined is not None:
        return undefined
    predicted, actual = (_band(image, width * (1 + _ROUNDING), steps, norm) for image in (prediction, mask))
    return float(np.sum(predicted & actual) / np.sum(predicted | actual))


def surface_scores(
    prediction: np.ndarray,
    mask: np.ndarray,
    *,
    tolerance: float,
    width: float | None = None,
    spacing: Spacing = None,
    empty: Empty = "perfect",
    missed: float | None = None,
) -> SurfaceScores:
    """All scores of a case at once, and whether there was a lesion to compare.

    Arguments and errors as in `surface_distances`, `surface_dice_score` (`tolerance`), `boundary_iou_score` (`width`)
    and `hausdorff_distance` (`empty`, `missed`).
    """
    distances = surface_distances(prediction, mask, spacing=spacing)
    return SurfaceScores(
        hausdorff=hausdorff_distance(distances, empty=empty, missed=missed),
        hd95=hausdorff_distance(distances, percentile=95, empty=empty, missed=missed),
        assd=average_surface_distance(distances, empty=empty, missed=missed),
        surface_dice=surface_dice_score(distances, tolerance=tolerance, empty=empty),
        boundary_iou=boundary_iou_score(prediction, mask, width=width, spacing=spacing, empty=empty),
        outcome=distances.outcome,
    )


def summarise_surfaces(cases: Sequence[SurfaceScores]) -> SurfaceSummary:
    """Means and medians over many cases, and the numbers of cases without anything to compare."""
    values = np.array([case[:-1] for case in cases], np.float64).reshape(len(cases), len(SurfaceScores._fields) - 1)
    scored = values[~np.isnan(values).any(1)]
    outcomes = [case.outcome for case in cases]

    def each(statistic: np.ndarray) -> dict[str, float]:
        return dict(zip(SurfaceScores._fields, statistic.tolist(), strict=False))

    undefined = np.full(values.shape[1], np.nan)
    return SurfaceSummary(
        mean=each(scored.mean(0) if len(scored) else undefined),
        median=each(np.median(scored, 0) if len(scored) else undefined),
        scored=len(scored),
        missed=outcomes.count("missed"),
        false=outcomes.count("false"),
        empty=outcomes.count("empty"),
    )


def _outcome(predicted: bool, actual: bool) -> Outcome:
    if predicted and actual:
        return "both"
    return "missed" if actual else "false" if predicted else "empty"


def _without_surface(outcome: Outcome, perfect: float, wrong: float, empty: Empty) -> float | None:
    """Score of a case in which the prediction, the mask or both are empty; None if both have a surface."""
    if empty not in ("perfect", "skip"):
        raise ValueError(f'empty={empty!r}; expected "perfect" or "skip"')
    if outcome == "both":
        return None
    if empty == "skip" and outcome != "missed":
        return math.nan
    return perfect if outcome == "empty" else wrong


def _worst(distances: SurfaceDistances, missed: float | None) -> float:
    if missed is None:
        return distances.diagonal
    if not missed >= 0:
        raise ValueError(f"missed={missed}; expected a distance, or None for the diagonal of the image")
    return float(missed)


def _band(mask: np.ndarray, width: float, steps: tuple[float, ...], norm: Norm) -> np.ndarray:
    """Pixels of the mask at most `width` from its outside."""
    band = np.zeros_like(mask)
    for box in ndimage.find_objects(mask.astype(np.int8)):  # one, or none if the mask is empty
        # The frame of false pixels around the box is at least as near as anything outside it.
        padded = np.pad(mask[box], 1)
        if norm == "euclidean":
            depth = ndimage.distance_transform_edt(padded, sampling=steps)
        else:
            depth = ndimage.distance_transform_cdt(padded, metric="chessboard")
        band[box] = (padded & (depth <= width))[(slice(1, -1),) * mask.ndim]
    return band


def _case(prediction: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction, mask = _binary("prediction", prediction), _binary("mask", mask)
    if prediction.shape != mask.shape:
        raise ValueError(f"prediction {prediction.shape} and mask {mask.shape} must have the same shape")
    return prediction, mask


def _binary(name: str, image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"{name} {image.shape}: expected a slice [H, W] or a volume [D, H, W]")
    if not ((image == 0) | (image == 1)).all():
        raise ValueError(f"{name} holds values other than 0 and 1; threshold it first")
    return image.astype(bool)
