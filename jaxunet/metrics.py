"""Scores of a segmentation, computed from sums: sums travel between devices and batches, ratios are taken last.

`pixel_sums` runs on the device, inside jit, and gives one row of sums an image. Rows add up over any grouping (a batch,
a patient, a whole test set); the scores are ratios of the added rows and accept NumPy (int64 and float64, exact at any
size) and JAX arrays alike.

Undefined scores are NaN, never 0 or 1: sensitivity without a true pixel, precision without a predicted one. Dice and
Jaccard of an empty mask and an empty prediction are 1, because the prediction is right.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxunet.losses.reduction import prepare


class PixelSums(NamedTuple):
    """Sums over the pixels of each image (or of any group of images, once added up).

    Attributes:
      tp: true positives, integer.
      fp: false positives, integer.
      fn: false negatives, integer.
      tn: true negatives, integer.
      overlap: sum of p * g, with p the probability and g the mask.
      predicted: sum of p.
      actual: sum of g.
    """

    tp: Any
    fp: Any
    fn: Any
    tn: Any
    overlap: Any
    predicted: Any
    actual: Any


def pixel_sums(
    logits: Array, masks: Array, *, weight: Array | None = None, threshold: float | Array = 0.5
) -> PixelSums:
    """Counts pixels and sums probabilities, image by image.

    Args:
      logits: `[B, H, W, K]` unnormalised scores.
      masks: same shape, values in {0, 1}.
      weight: `[B]` or `[B, H, W, 1]`; zero takes a sample or a pixel out, anything above counts it once.
      threshold: a pixel is positive where its probability is above this; one of exactly 0.5 is negative at 0.5.

    Returns:
      `PixelSums` of `[B]` arrays, int32 counts and float32 sums.

    Raises:
      ValueError: shapes differ.
    """
    x = prepare(logits, masks, weight, "image")
    threshold = jnp.asarray(threshold, x.logits.dtype)
    predicted = x.logits > jnp.log(threshold / (1 - threshold))  # in this form exactly 0 at 0.5
    actual = x.masks > 0.5
    counted = jnp.broadcast_to(x.weight > 0, x.logits.shape)
    probs = x.probs

    def count(pixels: Array) -> Array:
        return jnp.sum(pixels & counted, (1, 2, 3), dtype=jnp.int32)

    def soft(values: Array) -> Array:
        return x.total(jnp.where(counted, values, 0))

    return PixelSums(
        tp=count(predicted & actual),
        fp=count(predicted & ~actual),
        fn=count(~predicted & actual),
        tn=count(~predicted & ~actual),
        overlap=soft(probs * x.masks),
        predicted=soft(probs),
        actual=soft(x.masks),
    )


def add(sums: PixelSums) -> PixelSums:
    """Adds rows `[N]` up to scalars, on the host in int64 and float64."""
    return PixelSums(*(np.sum(np.asarray(s), dtype=np.int64 if i < 4 else np.float64) for i, s in enumerate(sums)))


def accuracy_score(sums: PixelSums) -> Any:
    """Share of pixels that are right, `(TP + TN) / all`."""
    return _ratio(sums.tp + sums.tn, sums.tp + sums.fp + sums.fn + sums.tn)


def dice_score(sums: PixelSums) -> Any:
    """Thresholded Dice, `2 TP / (2 TP + FP + FN)`; 1 where both mask and prediction are empty."""
    return _ratio(2 * sums.tp, 2 * sums.tp + sums.fp + sums.fn, empty=1.0)


def jaccard_score(sums: PixelSums) -> Any:
    """Thresholded Jaccard index, `TP / (TP + FP + FN)`; 1 where both mask and prediction are empty."""
    return _ratio(sums.tp, sums.tp + sums.fp + sums.fn, empty=1.0)


def sensitivity_score(sums: PixelSums) -> Any:
    """Share of tumour pixels that are found, `TP / (TP + FN)`; NaN where there are none."""
    return _ratio(sums.tp, sums.tp + sums.fn)


def specificity_score(sums: PixelSums) -> Any:
    """Share of healthy pixels that are left alone, `TN / (TN + FP)`; NaN where there are none."""
    return _ratio(sums.tn, sums.tn + sums.fp)


def precision_score(sums: PixelSums) -> Any:
    """Share of predicted pixels that are tumour, `TP / (TP + FP)`; NaN where none is predicted."""
    return _ratio(sums.tp, sums.tp + sums.fp)


def soft_dice_score(sums: PixelSums, smooth: float = 1.0) -> Any:
    """The documented `dice_coef`, `(2 sum(pg) + 1) / (sum(p) + sum(g) + 1)`: soft, and its value depends on the group.

    Means over batches of 1, 4 and 32 of one and the same prediction differ: always name the batch.
    """
    return (2 * sums.overlap + smooth) / (sums.predicted + sums.actual + smooth)


def soft_jaccard_score(sums: PixelSums) -> Any:
    """The documented soft Jaccard, `sum(pg) / sum(p + g - pg)`; 1 where both are exactly empty."""
    return _ratio(sums.overlap, sums.predicted + sums.actual - sums.overlap, empty=1.0)


SCORES = {
    "accuracy": accuracy_score,
    "dice": dice_score,
    "jaccard": jaccard_score,
    "sensitivity": sensitivity_score,
    "specificity": specificity_score,
    "precision": precision_score,
    "dice_coef": soft_dice_score,
    "jaccard_coef": soft_jaccard_score,
}
"""Every score by name: thresholded ones, and the two documented soft ones that end in `_coef`."""


def _batch_score(name: str, logits: Array, masks: Array, weight: Array | None) -> Array:
    sums = pixel_sums(logits, masks, weight=weight)
    return SCORES[name](PixelSums(*(jnp.sum(rows) for rows in sums)))


def accuracy(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """Share of right pixels over the whole batch, scalar; arguments as in `pixel_sums`."""
    return _batch_score("accuracy", logits, masks, weight)


def dice_coef(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """The documented soft Dice coefficient over the whole batch, scalar; arguments as in `pixel_sums`."""
    return _batch_score("dice_coef", logits, masks, weight)


def dice(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """Dice of the masks thresholded at 0.5, over the whole batch, scalar; arguments as in `pixel_sums`."""
    return _batch_score("dice", logits, masks, weight)


def jaccard_coef(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """The documented soft Jaccard index over the whole batch, scalar; arguments as in `pixel_sums`."""
    return _batch_score("jaccard_coef", logits, masks, weight)


def jaccard(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """Jaccard index of the masks thresholded at 0.5, over the whole batch, scalar; arguments as in `pixel_sums`."""
    return _batch_score("jaccard", logits, masks, weight)


def sensitivity(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """Share of found tumour pixels over the whole batch, scalar, NaN without tumour; arguments as in `pixel_sums`."""
    return _batch_score("sensitivity", logits, masks, weight)


def specificity(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """Share of healthy pixels left alone over the whole batch, scalar; arguments as in `pixel_sums`."""
    return _batch_score("specificity", logits, masks, weight)


def precision(logits: Array, masks: Array, *, weight: Array | None = None) -> Array:
    """Share of predicted pixels that are tumour over the whole batch, scalar; arguments as in `pixel_sums`."""
    return _batch_score("precision", logits, masks, weight)


def _ratio(numerator: Any, denominator: Any, empty: float = float("nan")) -> Any:
    xp = jnp if isinstance(denominator, Array) else np
    defined = denominator != 0
    return xp.where(defined, numerator / xp.where(defined, denominator, 1), empty)
