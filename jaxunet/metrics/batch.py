"""Scores of one batch from logits and masks, jittable: for a training loop that wants a number and no sums."""

import jax.numpy as jnp
from jax import Array

from jaxunet.metrics.counts import PixelSums, pixel_sums
from jaxunet.metrics.scores import SCORES


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
