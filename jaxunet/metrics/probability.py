"""Scores of probabilities at all thresholds, and the calibration of probabilities.

All are computed from `Probabilities`, the distinct values with the pixels of each, so ties are treated exactly. There
are two ways to count. `distinct` is exact and needs every pixel in memory. `probability_histogram` runs on the device,
inside jit, and streams: integer counts in bins of equal width of the LOGIT, added over batches, devices and hosts
without error, 1 MiB for any number of pixels. Equal bins of the probability would put nearly all background, at 1e-3 to
1e-9, into the first bin and rank none of it.

A bin is represented by its middle, and its pixels count as ties. With the default of 65 536 bins of width 2^-10 up to a
logit of 32, this moves a probability by at most 1.3e-4, most near one half; logits beyond +-32 (1e-14 from 0 or 1) fall
into the last bins. `auroc_bounds` and `average_precision_bounds` bound its effect on a ranking. Logits in the middle of
their bins give the same values as `distinct`.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import digamma

from jaxunet.losses.reduction import prepare

__all__ = [
    "Histogram",
    "Probabilities",
    "Reliability",
    "add_histograms",
    "auroc_bounds",
    "auroc_score",
    "average_precision_bounds",
    "average_precision_score",
    "brier_score",
    "distinct",
    "expected_calibration_error",
    "from_histogram",
    "probability_histogram",
    "reliability",
]

BINS = 2**16
"""Default number of bins of a histogram."""

REACH = 32.0
"""Logits beyond -REACH and REACH fall into the outermost bins."""


class Histogram(NamedTuple):
    """Pixels by the bin of their logit, ascending.

    Attributes:
      positive: of tumour pixels, integer `[bins]`.
      negative: of healthy pixels, integer `[bins]`.
    """

    positive: Any
    negative: Any


class Probabilities(NamedTuple):
    """Pixels by their probability.

    Attributes:
      value: distinct probabilities, ascending, float64 `[N]` in [0, 1].
      positive: tumour pixels of each, int64 `[N]`.
      negative: healthy pixels of each, int64 `[N]`.
    """

    value: np.ndarray
    positive: np.ndarray
    negative: np.ndarray


class Reliability(NamedTuple):
    """The reliability curve: observed against predicted frequency of tumour, in bins of equal width.

    Attributes:
      edges: of the bins, `[bins + 1]`; a bin holds its upper edge, the first one also 0.
      pixels: of each bin, int64 `[bins]`.
      predicted: mean probability of the bin, NaN where it is empty.
      observed: share of tumour pixels in the bin, NaN where it is empty.
    """

    edges: np.ndarray
    pixels: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray


def probability_histogram(logits: Array, masks: Array, *, weight: Array | None = None, bins: int = BINS) -> Histogram:
    """Counts the pixels of a batch by their logit, on the device.

    Bin `i` holds logits above `(i - bins / 2) * w` up to and including `(i + 1 - bins / 2) * w`, with
    `w = 2 * REACH / bins`, so the pixels from bin `bins / 2` on are those above a probability of one half. NaN counts
    in the first bin. Over a sharded batch the counts are those of the global batch.

    Args:
      logits: `[B, H, W, K]` unnormalised scores.
      masks: same shape, values in {0, 1}.
      weight: `[B]` or `[B, H, W, 1]`; zero removes a sample or a pixel, any other value counts it once.
      bins: an even number, static.

    Returns:
      `Histogram` of int32 `[bins]`; a batch must have fewer than 2^31 pixels.

    Raises:
      ValueError: shapes differ, or `bins` is not even and positive.
    """
    half = _half(bins)
    x = prepare(logits, masks, weight)
    step = jnp.clip(jnp.ceil(x.logits * (half / REACH)), 1 - half, half)
    index = jnp.where(jnp.isnan(x.logits), 0, step.astype(jnp.int32) + half - 1)
    index = jnp.where(x.weight > 0, index + bins * (x.masks > 0.5), 2 * bins)  # out of bounds, so it is dropped
    counts = jnp.zeros(2 * bins, jnp.int32).at[index.ravel()].add(1, mode="drop")
    return Histogram(positive=counts[bins:], negative=counts[:bins])


def add_histograms(histograms: Iterable[Histogram]) -> Histogram:
    """Adds histograms of batches, on the host in int64, one at a time.

    Raises:
      ValueError: there is none, or their numbers of bins differ.
    """
    total = None
    for histogram in histograms:
        counts = np.stack([np.asarray(histogram.positive, np.int64), np.asarray(histogram.negative, np.int64)])
        if total is not None and counts.shape != total.shape:
            raise ValueError(f"histograms of {total.shape[1]} and of {counts.shape[1]} bins cannot be added")
        total = counts if total is None else total + counts
    if total is None:
        raise ValueError("no histogram to add up")
    return Histogram(*total)


def from_histogram(histogram: Histogram) -> Probabilities:
    """Converts each bin that holds a pixel to the probability of its middle."""
    positive, negative = (np.asarray(counts, np.int64) for counts in histogram)
    half = _half(len(positive))
    middle = (np.arange(2 * half) - half + 0.5) * (REACH / half)
    held = positive + negative > 0
    return Probabilities(1 / (1 + np.exp(-middle[held])), positive[held], negative[held])


def distinct(probabilities: np.ndarray, masks: np.ndarray) -> Probabilities:
    """Counts the pixels of each distinct probability: exact, in memory.

    Args:
      probabilities: of any shape, in [0, 1]; 10^8 of them take seconds and a few GB.
      masks: same shape, positive where above one half.

    Raises:
      ValueError: shapes differ, or a probability is not in [0, 1].
    """
    probabilities, masks = np.asarray(probabilities), np.asarray(masks)
    if probabilities.shape != masks.shape:
        raise ValueError(f"probabilities {probabilities.shape} and masks {masks.shape} must have the same shape")
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1):  # also refuses NaN
        raise ValueError(
            f"probabilities from {probabilities.min()} to {probabilities.max()}; expected 0 to 1 (are these logits?)"
        )
    value, index = np.unique(probabilities.ravel(), return_inverse=True)
    positive = np.bincount(index[masks.ravel() > 0.5], minlength=len(value))
    return Probabilities(value.astype(np.float64), positive, np.bincount(index, minlength=len(value)) - positive)


def auroc_score(probabilities: Probabilities) -> float:
    """Area under the receiver operating characteristic, in [0, 1]; NaN without both kinds of pixels.

    The share of (tumour, healthy) pairs of pixels in which tumour has the higher probability, a tie counting one half.
    It is computed in integers and rounded once.

    Source: Hanley and McNeil 1982, Radiology 143(1).
    """
    twice, pairs = _wins(probabilities)
    return twice / (2 * pairs) if pairs else float("nan")


def auroc_bounds(probabilities: Probabilities) -> tuple[float, float]:
    """Lowest and highest `auroc_score` possible if pixels of one value are in fact not ties."""
    twice, pairs = _wins(probabilities)
    if not pairs:
        return float("nan"), float("nan")
    ties = _dot(probabilities.positive, probabilities.negative, pairs)
    return (twice - ties) / (2 * pairs), (twice + ties) / (2 * pairs)


def average_precision_score(probabilities: Probabilities) -> float:
    """Mean of the precision over the tumour pixels, each at its own threshold, in [0, 1]; NaN without tumour.

    `sum_n (R_n - R_(n-1)) P_n` over the distinct probabilities as thresholds, without interpolation. Unlike
    AUROC it does not rise with easy healthy pixels: chance scores the share of tumour, here about 0.01.

    Source: Davis and Goadrich 2006, The relationship between precision-recall and ROC curves, ICML.
    """
    hits, tp, fp = _thresholds(probabilities)
    return float(np.sum(hits * (tp / (tp + fp))) / tp[-1]) if len(hits) else float("nan")


def average_precision_bounds(probabilities: Probabilities) -> tuple[float, float]:
    """Lowest and highest `average_precision_score` possible if ties are in fact not ties, as in `auroc_bounds`."""
    hits, tp, fp = _thresholds(probabilities)
    if not len(hits):
        return float("nan"), float("nan")
    # the worst case: all healthy pixels of a value come first, then its tumour pixels one by one
    worst = hits - fp * (digamma(tp + fp + 1) - digamma(tp + fp - hits + 1))
    # the best case: its tumour pixels come first, together
    before = fp - probabilities.negative[::-1][probabilities.positive[::-1] > 0]
    best = hits * (tp / (tp + before))
    return float(np.sum(worst) / tp[-1]), float(np.sum(best) / tp[-1])


def brier_score(probabilities: Probabilities) -> float:
    """Mean squared difference of probability and mask, in [0, 1], 0 is best; NaN without pixels.

    Source: Brier 1950, Monthly Weather Review 78(1).
    """
    value, positive, negative = probabilities
    pixels = int(positive.sum()) + int(negative.sum())
    return float(np.sum(positive * (1 - value) ** 2 + negative * value**2) / pixels) if pixels else float("nan")


def reliability(probabilities: Probabilities, *, bins: int = 15) -> Reliability:
    """Predicted and observed frequency of tumour in bins of equal width.

    Args:
      probabilities: of all pixels.
      bins: their number.

    Source: DeGroot and Fienberg 1983, The Statistician 32.

    Raises:
      ValueError: fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins={bins}; expected at least 1")
    value, positive, negative = probabilities
    edges = np.linspace(0, 1, bins + 1)
    index = np.searchsorted(edges[1:-1], value, side="left")
    pixels, tumour = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    np.add.at(pixels, index, positive + negative)
    np.add.at(tumour, index, positive)
    total = np.bincount(index, weights=value * (positive + negative), minlength=bins)
    some = np.where(pixels > 0, pixels, 1)
    return Reliability(edges, pixels, np.where(pixels, total / some, np.nan), np.where(pixels, tumour / some, np.nan))


def expected_calibration_error(curve: Reliability) -> float:
    """Mean over pixels of the gap between predicted and observed frequency of their bin, in [0, 1]; 0 is best.

    It is the calibration of the probability of tumour, not of the confidence in the likelier class. Background pixels,
    which are most, dominate it, so look at the curve as well. NaN without pixels.

    Source: Naeini et al. 2015, AAAI; Guo et al. 2017, arXiv 1706.04599, eq. 3.
    """
    held = curve.pixels > 0
    gaps = np.abs(curve.predicted - curve.observed)[held]
    return float(np.average(gaps, weights=curve.pixels[held])) if held.any() else float("nan")


def _half(bins: int) -> int:
    if bins < 2 or bins % 2:
        raise ValueError(f"bins={bins}; expected an even number of at least 2")
    return bins // 2


def _wins(probabilities: Probabilities) -> tuple[int, int]:
    """Twice the number of pairs in which tumour ranks higher, ties counting one half, and the number of all pairs."""
    _, positive, negative = probabilities
    pairs = int(positive.sum()) * int(negative.sum())
    below = np.cumsum(negative) - negative
    return _dot(positive, 2 * below + negative, pairs), pairs


def _dot(a: np.ndarray, b: np.ndarray, pairs: int) -> int:
    """Sum of products, at most `2 * pairs`: in int64 if it cannot overflow, otherwise in Python integers."""
    if 2 * pairs < 2**63:
        return int(np.dot(a, b))
    return int(np.dot(a.astype(object), b.astype(object)))


def _thresholds(probabilities: Probabilities) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each value of tumour pixels, from high to low: their number, and TP and FP at this threshold."""
    _, positive, negative = (column[::-1] for column in probabilities)
    held = positive > 0
    return positive[held], np.cumsum(positive)[held], np.cumsum(negative)[held]
