"""Dice coefficients: twice the overlap over both sizes."""

import math

import jax.numpy as jnp
from jax import Array

from jaxunet.losses.entry import Loss
from jaxunet.losses.logistic import probabilities
from jaxunet.losses.reduction import Empty, Reduce, prepare, ratio
from jaxunet.losses.region.overlap import difference, overlap, smooth_where_empty


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
    """Dice loss with squares below, `1 - (2 sum(pg) + s) / (sum(p^2) + sum(g^2) + s)`.

    Computed as `(sum((p - g)^2)) / (sum(p^2) + sum(g^2) + s)`. Other arguments and errors: see `jaxunet.losses`.

    Options:
      smooth: added above and below.

    Returns:
      The loss, in [0, 1].

    Source: Milletari et al. 2016, V-Net, arXiv 1606.04797, section 3.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    squares = x.total(x.weight * (probabilities(x.logits)[0] ** 2 + x.masks**2))
    return ratio(x.total(x.weight * difference(x) ** 2), squares + smooth)


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
    """Logarithm of the Dice coefficient, `-log((2 sum(pg) + s) / (sum(p) + sum(g) + s))`.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      smooth: added above and below, greater than 0: the logarithm of no overlap at all is infinite.

    Returns:
      The loss, at least 0.

    Source: Wong et al. 2018, arXiv 1809.00076, eq. 2, without the exponent.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    found = overlap(x)
    return jnp.log1p(ratio(found.errors, 2 * found.true_positive + smooth))


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
    """Logarithm of the hyperbolic cosine of the Dice loss, `log cosh(1 - D)`: quadratic near the optimum.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      smooth: as in `dice_loss`.

    Returns:
      The loss, in [0, 0.434].

    Source: Jadon 2020, arXiv 2006.14822, section II-N.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    found = overlap(x)
    loss = ratio(found.errors, 2 * found.true_positive + found.errors + smooth)
    return jnp.log1p(2 * jnp.sinh(loss / 2) ** 2)  # cosh(a) - 1 without its cancellation


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
    """Dice loss that is a semimetric for soft labels, `sum|p - g| / (sum(p) + sum(g) + s)`.

    The overlap is `(sum(p) + sum(g) - sum|p - g|) / 2` in place of `sum(pg)`: the loss of a soft mask is 0 where the
    probability equals it. For binary masks it is `dice_loss`. Other arguments and errors: see `jaxunet.losses`.

    Options:
      smooth: added to overlap and sizes.

    Returns:
      The loss, in [0, 1].

    Source: Wang et al. 2023, Dice Semimetric Losses, arXiv 2303.16296, eq. 7 (DML1).
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return ratio(
        x.total(x.weight * jnp.abs(difference(x))), x.total(x.weight * (probabilities(x.logits)[0] + x.masks)) + smooth
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
    """Generalised Wasserstein Dice loss of background and tumour at distance 1, `E / (2 sum(g (1 - e)) + E + s)`.

    `e = |p - g|` is the Wasserstein distance of the pixel's two distributions over the two labels and `E` its sum. For
    binary masks it is Dice without smoothing. Other arguments and errors: see `jaxunet.losses`.

    Options:
      smooth: added below; at least 1 where the masks of a group are all empty.

    Returns:
      The loss, in [0, 1].

    Source: Fidon et al. 2017, arXiv 1707.00478, eq. 5, with the distance matrix [[0, 1], [1, 0]].
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    error = jnp.abs(difference(x))
    errors, hits = x.total(x.weight * error), x.total(x.weight * x.masks * (1 - error))
    smoothing = smooth_where_empty(x.total(x.weight * x.masks), smooth)
    return ratio(errors, 2 * hits + errors + smoothing)


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
    "squared_dice": Loss(
        squared_dice_loss,
        "region",
        "1 - (2 sum(pg) + 1) / (sum(p^2) + sum(g^2) + 1)",
        "Milletari et al. 2016, arXiv 1606.04797",
        range=(0, 1),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        symmetric=True,
        monotone=True,
    ),
    "log_dice": Loss(
        log_dice_loss,
        "region",
        "-log((2 sum(pg) + 1) / (sum(p) + sum(g) + 1))",
        "Wong et al. 2018, arXiv 1809.00076",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        symmetric=True,
        monotone=True,
    ),
    "log_cosh_dice": Loss(
        log_cosh_dice_loss,
        "region",
        "log cosh(1 - (2 sum(pg) + 1) / (sum(p) + sum(g) + 1))",
        "Jadon 2020, arXiv 2006.14822",
        range=(0, math.log(math.cosh(1))),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        symmetric=True,
        monotone=True,
    ),
    "dice_metric": Loss(
        dice_metric_loss,
        "region",
        "sum|p - g| / (sum(p) + sum(g) + 1)",
        "Wang et al. 2023, arXiv 2303.16296",
        range=(0, 1),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        symmetric=True,
        monotone=True,
        piecewise=True,
    ),
    "wasserstein_dice": Loss(
        wasserstein_dice_loss,
        "region",
        "sum(e) / (2 sum(g (1 - e)) + sum(e)), e = |p - g|",
        "Fidon et al. 2017, arXiv 1707.00478",
        range=(0, 1),
        on_empty="sum(p) / (sum(p) + 1): 0 for the empty prediction; every pixel is pushed down",
        monotone=True,
        piecewise=True,
    ),
}
