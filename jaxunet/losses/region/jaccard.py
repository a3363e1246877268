"""Jaccard indices: the intersection over the union."""

import math

import jax.numpy as jnp
from jax import Array

from jaxunet.losses.entry import register
from jaxunet.losses.logistic import probabilities
from jaxunet.losses.reduction import Empty, Reduce, prepare, ratio
from jaxunet.losses.region.overlap import difference, overlap, smooth_where_empty

__all__ = ["jaccard_loss", "jaccard_metric_loss", "log_jaccard_loss"]


@register(
    "region",
    range=(0, 1),
    on_empty="sum(p) / (sum(p) + 1): 0 for the empty prediction; every pixel is pushed down",
    symmetric=True,
    monotone=True,
)
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
    """One minus the soft Jaccard index, in [0, 1].

    Without smoothing the gradient of an empty mask is zero, and NaN once the sigmoid underflows.

    Formula: `1 - (sum(pg) + smooth) / (sum(p + g - pg) + smooth)`

    Options:
      smooth: raised to at least 1 where all masks of a group are empty.

    Source: Rahman and Wang 2016, Optimizing Intersection-Over-Union in Deep Neural Networks (ISVC).
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    overlap = x.total(x.weight * x.probs * x.masks)
    union = x.total(x.weight * (x.probs + x.masks - x.probs * x.masks))
    smoothing = smooth_where_empty(x.total(x.weight * x.masks), smooth)
    return 1 - ratio(overlap + smoothing, union + smoothing)


@register(
    "region",
    range=(0, math.inf),
    on_empty="log(1 + sum(p)): 0 for the empty prediction; every pixel is pushed down",
    symmetric=True,
    monotone=True,
)
def log_jaccard_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    smooth: float | Array = 1.0,
) -> Array:
    """Negative logarithm of the Jaccard index, at least 0.

    Formula: `-log((sum(pg) + smooth) / (sum(p + g - pg) + smooth))`

    Options:
      smooth: above 0, because the logarithm is infinite without overlap.

    Source: Yu et al. 2016, UnitBox, arXiv 1608.01471, eq. 2, for pixels instead of boxes.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    found = overlap(x)
    return jnp.log1p(ratio(found.errors, found.true_positive + smooth))


@register(
    "region",
    range=(0, 1),
    on_empty="sum(p) / (sum(p) + 1): 0 for the empty prediction; every pixel is pushed down",
    symmetric=True,
    monotone=True,
    piecewise=True,
)
def jaccard_metric_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    smooth: float | Array = 0.0,
) -> Array:
    """Jaccard loss that is a metric for soft labels, in [0, 1]; for binary masks it is `jaccard_loss`.

    The intersection is `(sum(p) + sum(g) - D) / 2` instead of `sum(pg)`, so the loss of a soft mask is 0 where the
    probability equals it.

    Formula: `D / ((sum(p) + sum(g) + D) / 2 + smooth), D = sum|p - g|`

    Options:
      smooth: added to intersection and union; raised to at least 1 where all masks of a group are empty.

    Source: Wang et al. 2023, Jaccard Metric Losses, arXiv 2302.05666, eq. 5 (JML1).
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    errors = x.total(x.weight * jnp.abs(difference(x)))
    both = x.total(x.weight * (probabilities(x.logits)[0] + x.masks))
    smoothing = smooth_where_empty(x.total(x.weight * x.masks), smooth)
    return ratio(errors, (both + errors) / 2 + smoothing)
