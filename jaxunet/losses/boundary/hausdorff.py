"""Losses that estimate the Hausdorff distance: how far the worst errors reach."""

import math
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from jaxunet.losses.boundary.maps import distance_field, map_of
from jaxunet.losses.entry import Loss
from jaxunet.losses.morphology import erode
from jaxunet.losses.reduction import Empty, Reduce, prepare
from jaxunet.losses.region.overlap import difference


def hausdorff_dt_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha: float | Array = 2.0,
    distances: Array | None = None,
) -> Array:
    """Errors by their distance from both boundaries, the mean of `(p - g)^2 (d_p^a + d_g^a)`.

    `d_g` is the distance of a pixel to the nearest one of the other kind, and `d_p` the same of the prediction, cut at
    0.5: a constant of the gradient, computed anew at each step. Both are at least one pixel, and one pixel throughout
    where there is no boundary, so that an empty mask teaches; elsewhere they are zero there. Pixels without weight
    count as background. Other arguments and errors: see `jaxunet.losses`.

    Options:
      alpha: `a`, above 0; how much more a distant error weighs than a near one.
      distances: `d_g`, `[B, H, W, K]` like the masks, at least 0; None computes it, in pixels. `d_p` is in pixels.

    Returns:
      The loss, at least 0, in pixels to the power `a`.

    Source: Karimi and Salcudean 2019, arXiv 1904.10030.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    of_masks = map_of(x, distance_field, distances)
    of_prediction = distance_field(x.logits > 0).astype(of_masks.dtype)
    return x.mean(difference(x) ** 2 * (of_prediction**alpha + of_masks**alpha))


def log_hausdorff_dt_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha: float | Array = 2.0,
    distances: Array | None = None,
) -> Array:
    """Logarithm of one plus `hausdorff_dt_loss`, which keeps a few distant errors from outweighing everything else.

    Options, other arguments and errors as there: `alpha`, `distances`.

    Returns:
      The loss, at least 0.

    Source: Karimi and Salcudean 2019, arXiv 1904.10030; the logarithm is MONAI's.
    """
    loss = partial(hausdorff_dt_loss, alpha=alpha, distances=distances)
    return jnp.log1p(loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty))


def hausdorff_er_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha: float | Array = 2.0,
    erosions: int = 10,
) -> Array:
    """Errors by how many erosions they outlast, the mean of `sum(k^a E_k)` for k from 1 to `erosions`.

    `E_k` is the map of `(p - g)^2` after k grey-scale erosions by a cross: the smallest of each pixel and its four
    neighbours. What is wrong in hard labels outlasts k erosions where it is k pixels deep, so the sum grows with the
    depth of the errors. Errors narrower than three pixels cost nothing. The authors' program replaces the erosion by a
    convolution and a threshold at 0.5, below which there is neither value nor gradient: an even prediction of one half
    would stay as it is.

    There are no errors outside the image, nor where pixels have no weight. Other arguments and errors: see
    `jaxunet.losses`.

    Options:
      alpha: `a`; how much more a deep error weighs than a shallow one.
      erosions: how many, at least 1; deeper errors weigh no more.

    Returns:
      The loss, in [0, the sum of `k^a`]; 385 by default.

    Source: Karimi and Salcudean 2019, arXiv 1904.10030.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    errors = jnp.where(x.weight != 0, difference(x) ** 2, 0)

    def erode_once(carry: tuple[Array, Array], factor: Array) -> tuple[tuple[Array, Array], None]:
        errors, cost = carry
        errors = erode(errors, outside=0.0)
        return (errors, cost + factor * errors), None

    factors = jnp.arange(1, erosions + 1, dtype=errors.dtype) ** alpha
    (_, cost), _ = lax.scan(erode_once, (errors, jnp.zeros_like(errors)), factors)
    return x.mean(cost)


ENTRIES = {
    "hausdorff_dt": Loss(
        hausdorff_dt_loss,
        "boundary",
        "mean((p - g)^2 (d_p^2 + d_g^2)), d: distance to the boundary of p > 0.5, and of g",
        "Karimi and Salcudean 2019, arXiv 1904.10030",
        range=(0, math.inf),
        on_empty="mean(p^2 (d_p^2 + 1)): 0 for the empty prediction; every pixel is pushed down",
        symmetric=True,
        positional=True,
        piecewise=True,
    ),
    "log_hausdorff_dt": Loss(
        log_hausdorff_dt_loss,
        "boundary",
        "log(1 + hausdorff_dt)",
        "Karimi and Salcudean 2019, arXiv 1904.10030; MONAI",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        symmetric=True,
        positional=True,
        piecewise=True,
    ),
    "hausdorff_er": Loss(
        hausdorff_er_loss,
        "boundary",
        "mean(sum(k^2 E_k, k <= 10)), E_k: (p - g)^2 after k erosions",
        "Karimi and Salcudean 2019, arXiv 1904.10030",
        range=(0, 385),
        on_empty="0 for the empty prediction; false regions at least three pixels wide are pushed down",
        symmetric=True,
        positional=True,
        monotone=True,
        piecewise=True,
    ),
}
