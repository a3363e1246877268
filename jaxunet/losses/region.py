"""Losses that compare the overlap of two regions."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxunet.losses.reduction import Reduce, prepare, ratio, total


def dice_loss(
    logits: Array, masks: Array, *, weight: Array | None = None, smooth: float = 1.0, reduce: Reduce = "batch"
) -> Array:
    """One minus the soft Dice coefficient, `1 - (2 sum(pg) + s) / (sum(p) + sum(g) + s)`.

    Args:
      logits: `[B, H, W, K]` unnormalised scores, any float dtype; computed in float32.
      masks: same shape, values in [0, 1].
      weight: `[B]` or `[B, H, W, 1]`; zero takes a sample or a pixel out of value and gradient.
      smooth: added above and below; keeps the loss of an empty mask finite and its gradient useful.
      reduce: "batch" treats the whole batch as one image; "image" gives one loss an image, `[B]`.

    Returns:
      The loss, in [0, 1].

    Raises:
      ValueError: shapes differ, or `reduce` is unknown.

    Source: Drozdzal et al. 2016, arXiv 1608.04117, eq. 2.
    """
    logits, masks, weight = prepare(logits, masks, weight)
    probs = jax.nn.sigmoid(logits)
    overlap = total(weight * probs * masks, reduce)
    both = total(weight * (probs + masks), reduce)
    return 1 - ratio(2 * overlap + smooth, both + smooth)


def jaccard_loss(
    logits: Array, masks: Array, *, weight: Array | None = None, smooth: float = 0.0, reduce: Reduce = "batch"
) -> Array:
    """One minus the soft Jaccard index, `1 - (sum(pg) + s) / (sum(p + g - pg) + s)`.

    Where the masks of a reduction are all empty, `s` is 1 at least: the loss is then `sum(p) / (sum(p) + 1)`, finite
    and with a gradient towards the empty prediction. Without it the gradient is zero and, once the sigmoid underflows,
    NaN.

    Args:
      logits: `[B, H, W, K]` unnormalised scores, any float dtype; computed in float32.
      masks: same shape, values in [0, 1].
      weight: `[B]` or `[B, H, W, 1]`; zero takes a sample or a pixel out of value and gradient.
      smooth: added above and below.
      reduce: "batch" treats the whole batch as one image; "image" gives one loss an image, `[B]`.

    Returns:
      The loss, in [0, 1].

    Raises:
      ValueError: shapes differ, or `reduce` is unknown.

    Source: Rahman and Wang 2016, Optimizing Intersection-Over-Union in Deep Neural Networks (ISVC).
    """
    logits, masks, weight = prepare(logits, masks, weight)
    probs = jax.nn.sigmoid(logits)
    overlap = total(weight * probs * masks, reduce)
    union = total(weight * (probs + masks - probs * masks), reduce)
    empty = total(weight * masks, reduce) == 0
    smoothing = jnp.where(empty, jnp.maximum(smooth, 1.0), smooth).astype(overlap.dtype)
    return 1 - ratio(overlap + smoothing, union + smoothing)
