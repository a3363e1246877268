"""Losses that compare the overlap of two regions."""

import jax.numpy as jnp
from jax import Array

from jaxunet.losses.entry import Loss
from jaxunet.losses.reduction import Empty, Reduce, prepare, ratio


def dice_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    smooth: float = 1.0,
) -> Array:
    """One minus the soft Dice coefficient, `1 - (2 sum(pg) + s) / (sum(p) + sum(g) + s)`.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      smooth: added above and below; keeps the loss of an empty mask finite and its gradient useful.

    Returns:
      The loss, in [0, 1].

    Source: Drozdzal et al. 2016, arXiv 1608.04117, eq. 2.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    overlap = x.total(x.weight * x.probs * x.masks)
    both = x.total(x.weight * (x.probs + x.masks))
    return 1 - ratio(2 * overlap + smooth, both + smooth)


def jaccard_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    smooth: float = 0.0,
) -> Array:
    """One minus the soft Jaccard index, `1 - (sum(pg) + s) / (sum(p + g - pg) + s)`.

    Where the masks of a group are all empty, `s` is 1 at least: the loss is then `sum(p) / (sum(p) + 1)`, finite and
    with a gradient towards the empty prediction. Without it the gradient is zero and, once the sigmoid underflows, NaN.
    Other arguments and errors: see `jaxunet.losses`.

    Options:
      smooth: added above and below.

    Returns:
      The loss, in [0, 1].

    Source: Rahman and Wang 2016, Optimizing Intersection-Over-Union in Deep Neural Networks (ISVC).
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    overlap = x.total(x.weight * x.probs * x.masks)
    union = x.total(x.weight * (x.probs + x.masks - x.probs * x.masks))
    smoothing = smooth_where_empty(x.total(x.weight * x.masks), smooth)
    return 1 - ratio(overlap + smoothing, union + smoothing)


def smooth_where_empty(true_pixels: Array, smooth: float | Array) -> Array:
    """`smooth`, at least 1 in groups whose masks are empty."""
    return jnp.where(true_pixels == 0, jnp.maximum(smooth, 1.0), smooth).astype(true_pixels.dtype)


ENTRIES = {
    "dice": Loss(
        dice_loss,
        "region",
        "1 - (2 sum(pg) + 1) / (sum(p) + sum(g) + 1)",
        "Drozdzal et al. 2016, arXiv 1608.04117",
        range=(0, 1),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        symmetric=True,
        monotone=True,
    ),
    "jaccard": Loss(
        jaccard_loss,
        "region",
        "1 - sum(pg) / sum(p + g - pg)",
        "Rahman and Wang 2016 (ISVC)",
        range=(0, 1),
        on_empty="sum(p) / (sum(p) + 1): 0 for the empty prediction; every pixel is pushed down",
        symmetric=True,
        monotone=True,
    ),
}
