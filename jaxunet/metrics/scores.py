"""Scores of a segmentation as ratios of `PixelSums`: sums are added first, ratios are taken last.

Each `*_score` takes rows or scalars and returns as many values. NumPy sums are computed exactly: counts in int64,
products of counts in integers of any size (MCC multiplies four of them), rounded to float64 at the end. JAX sums are
computed in float32. The short names at the end (`dice`, `sensitivity`, ...) score one batch of logits, inside jit.

One rule for 0/0: a rate over zero pixels is undefined, NaN, never 0 or 1 (sensitivity and volume error
without a true pixel, precision without a predicted one). The scores that compare mask and prediction as wholes (Dice,
Jaccard, F, MCC, kappa) are always defined, so no group leaves their mean because of its prediction: an empty prediction
of an empty mask is correct and scores 1, any other prediction of it 0. That is `empty="perfect"`, the default. Under
`empty="skip"` a group without a true pixel does not count: all its scores are NaN. A group without a single pixel
(padding) never counts. docs/metrics.md has the table of all scores.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxunet.losses.reduction import Empty
from jaxunet.metrics.counts import PixelSums, pixel_sums

__all__ = [
    "SCORES",
    "accuracy",
    "accuracy_score",
    "balanced_accuracy_score",
    "dice",
    "dice_coef",
    "dice_score",
    "f2_score",
    "f_beta_score",
    "jaccard",
    "jaccard_coef",
    "jaccard_score",
    "kappa_score",
    "mcc_score",
    "npv_score",
    "precision",
    "precision_score",
    "sensitivity",
    "sensitivity_score",
    "soft_dice_score",
    "soft_jaccard_score",
    "specificity",
    "specificity_score",
    "volume_difference",
    "volume_error",
]


def accuracy_score(sums: PixelSums, *, empty: Empty = "perfect") -> Any:
    """Share of correct pixels, `(TP + TN) / all`, in [0, 1]."""
    tp, fp, fn, tn = _counts(sums)
    return _ratio(tp + tn, tp + fp + fn + tn, sums, empty)


def balanced_accuracy_score(sums: PixelSums, *, empty: Empty = "perfect") -> Any:
    """Mean of sensitivity and specificity, in [0, 1]; NaN where one of them is.

    Source: Brodersen et al. 2010, The balanced accuracy and its posterior distribution, ICPR.
    """
    return (sensitivity_score(sums, empty=empty) + specificity_score(sums, empty=empty)) / 2


def dice_score(sums: PixelSums, *, empty: Empty = "perfect") -> Any:
    """Thresholded Dice, `2 TP / (2 TP + FP + FN)`, in [0, 1]; the same as F1.

    Source: Dice 1945, Ecology 26(3).
    """
    tp, fp, fn, _ = _counts(sums)
    return _ratio(2 * tp, 2 * tp + fp + fn, sums, empty, zero=1)


def jaccard_score(sums: PixelSums, *, empty: Empty = "perfect") -> Any:
    """Thresholded Jaccard index, `TP / (TP + FP + FN)`, in [0, 1].

    Source: Jaccard 1912, New Phytologist 11(2).
    """
    tp, fp, fn, _ = _counts(sums)
    return _ratio(tp, tp + fp + fn, sums, empty, zero=1)


def f_beta_score(sums: PixelSums, *, beta: float, empty: Empty = "perfect") -> Any:
    """Weighted harmonic mean of precision and sensitivity, in [0, 1].

    `(1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP)`: sensitivity has `beta` times the weight of precision.

    Source: van Rijsbergen 1979, Information Retrieval, chapter 7.

    Raises:
      ValueError: `beta` is not above 0.
    """
    if not beta > 0:
        raise ValueError(f"beta={beta}; expected a number above 0")
    tp, fp, fn, _ = _counts(sums)
    hits = (1 + beta**2) * tp
    return _ratio(hits, hits + beta**2 * fn + fp, sums, empty, zero=1)


def f2_score(sums: PixelSums, *, empty: Empty = "perfect") -> Any:
    """`f_beta_score` with beta 2: a false negative has four times the weight of a false positive."""
    return f_beta_score(sums, beta=2, empty=empty)


def sensitivity_score(sums: PixelSums, *, empty: Empty = "perfect") -> Any:
    """Share of tumour pixels that are found, `TP / (TP + FN)`, in [0, 1]; NaN where there are none."""
    tp, _, fn, _ = _counts(sums)
    return _ratio(tp, tp + fn, sums, empty)


def specificity_score(sums: PixelSums, *, empty: Empty = "perfect") -> Any:
    """Share of healthy pixels that are not predicted, `TN / (TN + FP)`, in [0, 1]; NaN where there are none."""
    _, fp, _, tn = _counts(sums)
    return _ratio(tn, tn + fp, sums, empty)


def precision_score(sums: PixelSums, *, empty: Empty = "perfect") -> Any:
    """Share of predicted pixels that are tumour, `TP / (TP + FP)`, in [0, 1]; NaN where none is predicted."""
    tp, fp, _, _ = _counts(sums)
    return _ratio(tp, tp + fp, sums, empty)


def npv_score(sums: PixelSums, *, empty: Empty = "perfect") -> Any:
    """Negative predictive value, `TN / (TN + FN)`, in [0, 1]; NaN where every pixel is predicted.

    Source: Altman and Bland 1994, BMJ 309.
    """
    _, _, fn, tn = _counts(sums)
    return _ratio(tn, tn + fn, sums, empty)


def mcc_score(sums: PixelSums, *, empty: Empty = "perfect") -> Any:
    """Matthews' correlation coefficient of prediction and mask, in [-1, 1].

    `(TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN))`. If the root is 0 and some pixel is wrong it is 0,
    the limit for empty cells that tend to 0, because a missed tumour must not drop out of a mean. If the root is 0 and
    every pixel is correct (mask and prediction both empty, or both full) it is 1.

    Source: Matthews 1975, BBA 405(2); limits: Chicco and Jurman 2020, BMC Genomics 21:6.
    """
    tp, fp, fn, tn = _factors(sums)
    root = _float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    nothing_wrong = (fp + fn == 0) * 1
    return _ratio(_float(tp * tn - fp * fn), root, sums, empty, zero=nothing_wrong)


def kappa_score(sums: PixelSums, *, empty: Empty = "perfect") -> Any:
    """Cohen's kappa, agreement beyond that of chance, in [-1, 1].

    `2 (TP TN - FP FN) / ((TP + FP) (FP + TN) + (TP + FN) (FN + TN))`. If mask and prediction are both empty or both
    full, chance alone agrees everywhere; the score is then 1, because nothing is wrong.

    Source: Cohen 1960, Educational and Psychological Measurement 20(1).
    """
    tp, fp, fn, tn = _factors(sums)
    beyond, possible = 2 * (tp * tn - fp * fn), (tp + fp) * (fp + tn) + (tp + fn) * (fn + tn)
    return _ratio(_float(beyond), _float(possible), sums, empty, zero=1)


def volume_difference(sums: PixelSums, *, empty: Empty = "perfect") -> Any:
    """Signed relative difference of volumes, `(FP - FN) / (TP + FN)`, from -1 (all missed) upwards, 0 is best.

    NaN if the mask is empty.

    Source: Heimann et al. 2009, IEEE Transactions on Medical Imaging 28(8), there in percent.
    """
    tp, fp, fn, _ = _counts(sums)
    return _ratio(fp - fn, tp + fn, sums, empty)


def volume_error(sums: PixelSums, *, empty: Empty = "perfect") -> Any:
    """Absolute value of `volume_difference`, at least 0, 0 is best."""
    return abs(volume_difference(sums, empty=empty))


def soft_dice_score(sums: PixelSums, smooth: float = 1.0, *, empty: Empty = "perfect") -> Any:
    """The reference's `dice_coef`, `(2 sum(pg) + smooth) / (sum(p) + sum(g) + smooth)`, soft.

    Its value depends on the group: means over batches of 1, 4 and 32 of the same predictions differ, so always state
    the batch size.
    """
    return _ratio(2 * sums.overlap + smooth, sums.predicted + sums.actual + smooth, sums, empty, zero=1)


def soft_jaccard_score(sums: PixelSums, *, empty: Empty = "perfect") -> Any:
    """The reference's soft Jaccard, `sum(pg) / sum(p + g - pg)`, in [0, 1]; 1 if mask and all probabilities are 0."""
    return _ratio(sums.overlap, sums.predicted + sums.actual - sums.overlap, sums, empty, zero=1)


SCORES: dict[str, Callable[..., Any]] = {
    "accuracy": accuracy_score,
    "balanced_accuracy": balanced_accuracy_score,
    "dice": dice_score,
    "jaccard": jaccard_score,
    "f2": f2_score,
    "sensitivity": sensitivity_score,
    "specificity": specificity_score,
    "precision": precision_score,
    "npv": npv_score,
    "mcc": mcc_score,
    "kappa": kappa_score,
    "volume_difference": volume_difference,
    "volume_error": volume_error,
    "dice_coef": soft_dice_score,
    "jaccard_coef": soft_jaccard_score,
}
"""Every score by name: those of pixel counts, and the two soft ones of the reference, which end in `_coef`."""


def accuracy(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """Share of correct pixels in the whole batch, scalar; arguments as in `pixel_sums`."""
    return _batch_score("accuracy", logits, masks, weight)


def dice_coef(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """The reference's soft Dice coefficient of the whole batch, scalar; arguments as in `pixel_sums`."""
    return _batch_score("dice_coef", logits, masks, weight)


def dice(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """Dice of the whole batch at a threshold of 0.5, scalar; arguments as in `pixel_sums`."""
    return _batch_score("dice", logits, masks, weight)


def jaccard_coef(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """The reference's soft Jaccard index of the whole batch, scalar; arguments as in `pixel_sums`."""
    return _batch_score("jaccard_coef", logits, masks, weight)


def jaccard(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """Jaccard index of the whole batch at a threshold of 0.5, scalar; arguments as in `pixel_sums`."""
    return _batch_score("jaccard", logits, masks, weight)


def sensitivity(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """Share of tumour pixels found in the whole batch, scalar, NaN without tumour; arguments as in `pixel_sums`."""
    return _batch_score("sensitivity", logits, masks, weight)


def specificity(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """Share of healthy pixels not predicted in the whole batch, scalar; arguments as in `pixel_sums`."""
    return _batch_score("specificity", logits, masks, weight)


def precision(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """Share of predicted pixels that are tumour in the whole batch, scalar; arguments as in `pixel_sums`."""
    return _batch_score("precision", logits, masks, weight)


def _batch_score(name: str, logits: Array, masks: Array, weight: Array | None) -> Array:
    sums = pixel_sums(logits, masks, weight=weight)
    return SCORES[name](PixelSums(*(jnp.sum(rows) for rows in sums)))


def _counts(sums: PixelSums) -> tuple[Any, Any, Any, Any]:
    """TP, FP, FN, TN as int64, or on the device as floats, because sums of int32 would overflow."""
    tp, fp, fn, tn = sums[:4]
    if isinstance(tp, Array):
        dtype = jnp.result_type(float)
        return tp.astype(dtype), fp.astype(dtype), fn.astype(dtype), tn.astype(dtype)
    return np.asarray(tp, np.int64), np.asarray(fp, np.int64), np.asarray(fn, np.int64), np.asarray(tn, np.int64)


def _factors(sums: PixelSums) -> tuple[Any, Any, Any, Any]:
    """Counts that can be multiplied: Python integers, or on the device shares of all pixels."""
    tp, fp, fn, tn = _counts(sums)
    if isinstance(tp, Array):
        pixels = jnp.maximum(tp + fp + fn + tn, 1)
        return tp / pixels, fp / pixels, fn / pixels, tn / pixels
    return tp.astype(object), fp.astype(object), fn.astype(object), tn.astype(object)


def _float(products: Any) -> Any:
    return products if isinstance(products, Array) else np.asarray(products).astype(np.float64)


def _ratio(numerator: Any, denominator: Any, sums: PixelSums, empty: Empty, zero: Any = math.nan) -> Any:
    """`numerator / denominator`, `zero` for 0/0, NaN for groups that do not count."""
    if empty not in ("perfect", "skip"):
        raise ValueError(f"empty={empty!r}; expected one of 'perfect', 'skip'")
    tp, fp, fn, tn = _counts(sums)
    xp = jnp if isinstance(tp, Array) else np
    counts = (tp + fn if empty == "skip" else tp + fp + fn + tn) > 0
    defined = denominator != 0
    return xp.where(counts, xp.where(defined, numerator / xp.where(defined, denominator, 1), zero), math.nan)
