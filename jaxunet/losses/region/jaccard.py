"""Jaccard indices: the intersection over the union."""

import math

import jax.numpy as jnp
from jax import Array

from jaxunet.losses.entry import Loss
from jaxunet.losses.logistic import probabilities
from jaxunet.losses.reduction import Empty, Reduce, prepare, ratio
from jaxunet.losses.region.overlap import difference, overlap, smooth_where_empty


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
    """Logarithm of the Jaccard index, `-log((sum(pg) + s) / (sum(p + g - pg) + s))`.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      smooth: added above and below, greater than 0: the logarithm of no overlap at all is infinite.

    Returns:
      The loss, at least 0.

    Source: Yu et al. 2016, UnitBox, arXiv 1608.01471, eq. 2, of pixels in place of boxes.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    found = overlap(x)
    return jnp.log1p(ratio(found.errors, found.true_positive + smooth))


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
    """Jaccard loss that is a metric for soft labels, `D / ((sum(p) + sum(g) + D) / 2 + s)`, `D = sum|p - g|`.

    The intersection is `(sum(p) + sum(g) - D) / 2` in place of `sum(pg)`: the loss of a soft mask is 0 where the
    probability equals it. For binary masks it is `jaccard_loss`. Other arguments and errors: see `jaxunet.losses`.

    Options:
      smooth: added to intersection and union; at least 1 where the masks of a group are all empty.

    Returns:
      The loss, in [0, 1].

    Source: Wang et al. 2023, Jaccard Metric Losses, arXiv 2302.05666, eq. 5 (JML1).
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    errors = x.total(x.weight * jnp.abs(difference(x)))
    both = x.total(x.weight * (probabilities(x.logits)[0] + x.masks))
    smoothing = smooth_where_empty(x.total(x.weight * x.masks), smooth)
    return ratio(errors, (both + errors) / 2 + smoothing)


ENTRIES = {
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
    "log_jaccard": Loss(
        log_jaccard_loss,
        "region",
        "-log((sum(pg) + 1) / (sum(p + g - pg) + 1))",
        "Yu et al. 2016, arXiv 1608.01471",
        range=(0, math.inf),
        on_empty="log(1 + sum(p)): 0 for the empty prediction; every pixel is pushed down",
        symmetric=True,
        monotone=True,
    ),
    "jaccard_metric": Loss(
        jaccard_metric_loss,
        "region",
        "2 D / (sum(p) + sum(g) + D), D = sum|p - g|",
        "Wang et al. 2023, arXiv 2302.05666",
        range=(0, 1),
        on_empty="sum(p) / (sum(p) + 1): 0 for the empty prediction; every pixel is pushed down",
        symmetric=True,
        monotone=True,
        piecewise=True,
    ),
}
