"""Dice coefficients: twice the overlap over the sum of both sizes."""

import math

import jax.numpy as jnp
from jax import Array

from jaxunet.losses.entry import register
from jaxunet.losses.logistic import probabilities
from jaxunet.losses.reduction import Empty, Reduce, prepare, ratio
from jaxunet.losses.region.overlap import difference, overlap, smooth_where_empty

__all__ = [
    "dice_loss",
    "dice_metric_loss",
    "log_cosh_dice_loss",
    "log_dice_loss",
    "squared_dice_loss",
    "wasserstein_dice_loss",
]


@register("region", range=(0, 1), symmetric=True, monotone=True)
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
    """One minus the soft Dice coefficient, in [0, 1].

    Formula: `1 - (2 sum(pg) + smooth) / (sum(p) + sum(g) + smooth)`

    Options:
      smooth: keeps the loss of an empty mask finite and its gradient useful.

    Source: Drozdzal et al. 2016, arXiv 1608.04117, eq. 2.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    overlap = x.total(x.weight * x.probs * x.masks)
    both = x.total(x.weight * (x.probs + x.masks))
    return 1 - ratio(2 * overlap + smooth, both + smooth)


@register("region", range=(0, 1), symmetric=True, monotone=True)
def squared_dice_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    smooth: float | Array = 1.0,
) -> Array:
    """Dice loss with squares in the denominator, in [0, 1].

    Formula: `1 - (2 sum(pg) + smooth) / (sum(p^2) + sum(g^2) + smooth)`

    Options:
      smooth: as in `dice_loss`.

    Source: Milletari et al. 2016, V-Net, arXiv 1606.04797, section 3.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    squares = x.total(x.weight * (probabilities(x.logits)[0] ** 2 + x.masks**2))
    return ratio(x.total(x.weight * difference(x) ** 2), squares + smooth)  # the numerator of the formula, simplified


@register("region", range=(0, math.inf), symmetric=True, monotone=True)
def log_dice_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    smooth: float | Array = 1.0,
) -> Array:
    """Negative logarithm of the Dice coefficient, at least 0.

    Formula: `-log((2 sum(pg) + smooth) / (sum(p) + sum(g) + smooth))`

    Options:
      smooth: above 0, because the logarithm is infinite without overlap.

    Source: Wong et al. 2018, arXiv 1809.00076, eq. 2, without the exponent.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    found = overlap(x)
    return jnp.log1p(ratio(found.errors, 2 * found.true_positive + smooth))


@register("region", range=(0, math.log(math.cosh(1))), symmetric=True, monotone=True)
def log_cosh_dice_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    smooth: float | Array = 1.0,
) -> Array:
    """Logarithm of the hyperbolic cosine of the Dice loss, in [0, 0.434]: quadratic near the optimum.

    Formula: `log cosh(1 - (2 sum(pg) + smooth) / (sum(p) + sum(g) + smooth))`

    Options:
      smooth: as in `dice_loss`.

    Source: Jadon 2020, arXiv 2006.14822, section II-N.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    found = overlap(x)
    loss = ratio(found.errors, 2 * found.true_positive + found.errors + smooth)
    return jnp.log1p(2 * jnp.sinh(loss / 2) ** 2)  # cosh(a) - 1 without its cancellation


@register("region", range=(0, 1), symmetric=True, monotone=True, piecewise=True)
def dice_metric_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    smooth: float | Array = 1.0,
) -> Array:
    """Dice loss that is a semimetric for soft labels, in [0, 1]; for binary masks it is `dice_loss`.

    The overlap is `(sum(p) + sum(g) - sum|p - g|) / 2` instead of `sum(pg)`, so the loss of a soft mask is 0 where the
    probability equals it.

    Formula: `sum|p - g| / (sum(p) + sum(g) + smooth)`

    Options:
      smooth: added to overlap and sizes.

    Source: Wang et al. 2023, Dice Semimetric Losses, arXiv 2303.16296, eq. 7 (DML1).
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return ratio(
        x.total(x.weight * jnp.abs(difference(x))), x.total(x.weight * (probabilities(x.logits)[0] + x.masks)) + smooth
    )


@register(
    "region",
    range=(0, 1),
    on_empty="sum(p) / (sum(p) + 1): 0 for the empty prediction; every pixel is pushed down",
    monotone=True,
    piecewise=True,
)
def wasserstein_dice_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    smooth: float | Array = 0.0,
) -> Array:
    """Generalised Wasserstein Dice loss of background and tumour at distance 1, in [0, 1].

    `e` is the Wasserstein distance between a pixel's two distributions over the labels. For binary masks the loss is
    Dice without smoothing.

    Formula: `sum(e) / (2 sum(g (1 - e)) + sum(e) + smooth), e = |p - g|`

    Options:
      smooth: raised to at least 1 where all masks of a group are empty.

    Source: Fidon et al. 2017, arXiv 1707.00478, eq. 5, with the distance matrix [[0, 1], [1, 0]].
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    error = jnp.abs(difference(x))
    errors, hits = x.total(x.weight * error), x.total(x.weight * x.masks * (1 - error))
    smoothing = smooth_where_empty(x.total(x.weight * x.masks), smooth)
    return ratio(errors, 2 * hits + errors + smoothing)
