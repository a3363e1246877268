"""Losses that compare each pixel's probability with its label."""

import math

import jax
from jax import Array

from jaxunet.losses.entry import Loss
from jaxunet.losses.reduction import Empty, Inputs, Reduce, prepare


def bce_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
) -> Array:
    """Binary cross-entropy, the mean of `-g log p - (1 - g) log(1 - p)` over pixels.

    Computed from logits, so it is exact where the documented system clips probabilities at 1e-7 (a logit beyond 16.1).
    Arguments and errors: see `jaxunet.losses`.

    Returns:
      The loss, at least 0.

    Source: Ronneberger et al. 2015, arXiv 1505.04597.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return x.mean(entropy(x))


def entropy(x: Inputs) -> Array:
    """Cross-entropy of each pixel, `[B, H, W, K]`."""
    # -log p and -log(1 - p); softplus(z) - g z is shorter and loses the digits of what is right and certain.
    return x.masks * jax.nn.softplus(-x.logits) + (1 - x.masks) * jax.nn.softplus(x.logits)


ENTRIES = {
    "bce": Loss(
        bce_loss,
        "distribution",
        "mean(-g log p - (1 - g) log(1 - p))",
        "Ronneberger et al. 2015, arXiv 1505.04597",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        monotone=True,
    ),
}
