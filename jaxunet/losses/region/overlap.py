"""Soft counts of pixels, the terms of every overlap."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxunet.losses.logistic import probabilities
from jaxunet.losses.reduction import Inputs


class Overlap(NamedTuple):
    """Weighted soft counts of pixels in each group.

    Attributes:
      true_positive: sum of `pg`.
      false_positive: sum of `p (1 - g)`.
      false_negative: sum of `(1 - p) g`.
    """

    true_positive: Array
    false_positive: Array
    false_negative: Array

    @property
    def errors(self) -> Array:
        """False positives and false negatives."""
        return self.false_positive + self.false_negative


def overlap(x: Inputs) -> Overlap:
    """Counts true positives and both kinds of errors.

    Losses are written as a share of the errors, `errors / (2 tp + errors)` rather than `1 - 2 tp / (...)`, which keeps
    the digits of a nearly perfect prediction.
    """
    probs, opposite = probabilities(x.logits)
    return Overlap(
        x.total(x.weight * probs * x.masks),
        x.total(x.weight * probs * (1 - x.masks)),
        x.total(x.weight * opposite * x.masks),
    )


def true_negative(x: Inputs) -> Array:
    """Sum of `(1 - p) (1 - g)` in each group, weighted."""
    return x.total(x.weight * probabilities(x.logits)[1] * (1 - x.masks))


def difference(x: Inputs) -> Array:
    """`p - g` of each pixel, `[B, H, W, K]`."""
    probs, opposite = probabilities(x.logits)
    return probs * (1 - x.masks) - opposite * x.masks


def smooth_where_empty(true_pixels: Array, smooth: float | Array) -> Array:
    """`smooth`, raised to at least 1 in groups whose masks are all empty."""
    return jnp.where(true_pixels == 0, jnp.maximum(smooth, 1.0), smooth).astype(true_pixels.dtype)
