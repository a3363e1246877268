"""Losses that compare each pixel's probability with its label."""

import jax
from jax import Array

from jaxunet.losses.reduction import Reduce, prepare, weighted_mean


def bce_loss(logits: Array, masks: Array, *, weight: Array | None = None, reduce: Reduce = "batch") -> Array:
    """Binary cross-entropy, the mean of `-g log p - (1 - g) log(1 - p)` over pixels.

    Computed from logits, so it is exact where the documented system clips probabilities at 1e-7 (a logit beyond 16.1).

    Args:
      logits: `[B, H, W, K]` unnormalised scores, any float dtype; computed in float32.
      masks: same shape, values in [0, 1].
      weight: `[B]` or `[B, H, W, 1]`; zero takes a sample or a pixel out of value and gradient.
      reduce: "batch" gives one scalar; "image" gives one loss an image, `[B]`.

    Returns:
      The loss, at least 0.

    Raises:
      ValueError: shapes differ, or `reduce` is unknown.

    Source: Ronneberger et al. 2015, arXiv 1505.04597.
    """
    logits, masks, weight = prepare(logits, masks, weight)
    # -log p and -log(1 - p); softplus(z) - g z is shorter and loses the digits of what is right and certain.
    entropy = masks * jax.nn.softplus(-logits) + (1 - masks) * jax.nn.softplus(logits)
    return weighted_mean(entropy, weight, reduce)
