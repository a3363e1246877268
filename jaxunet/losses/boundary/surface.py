"""Losses that measure how far a prediction's boundary lies from the mask's."""

import math

import jax.numpy as jnp
from jax import Array

from jaxunet.losses.boundary.maps import level_set, map_of
from jaxunet.losses.entry import Loss
from jaxunet.losses.morphology import erode
from jaxunet.losses.reduction import Empty, Reduce, prepare, ratio
from jaxunet.losses.region.overlap import difference, smooth_where_empty


def boundary_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    distances: Array | None = None,
) -> Array:
    """The boundary loss, the mean of `p phi`: each pixel predicted costs its signed distance to the mask's rim.

    `phi` is positive outside the mask, zero on its outermost pixels and negative inside (`jaxunet.distance.
    signed_distance`). Alone it hardly moves a prediction that is far off; the paper adds it to a loss of regions with a
    growing weight, as `dice_boundary_loss` does. In an empty mask every pixel counts as one pixel outside. The authors'
    program has zero there, and so no gradient: for that give `distances=signed_distance(masks)`.

    Pixels without weight count as background in the map. Other arguments and errors: see `jaxunet.losses`.

    Options:
      distances: `phi`, `[B, H, W, K]` like the masks, in any unit; None computes it, in pixels.

    Returns:
      The loss, of either sign; the mean of `g phi` at best.

    Source: Kervadec et al. 2019, arXiv 1812.07032.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return x.mean(x.probs * map_of(x, level_set, distances))


def boundary_dou_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha_max: float | Array = 0.8,
    smooth: float | Array = 0.0,
) -> Array:
    """Boundary difference over union, `(|G or P| - |G and P|) / (|G or P| - a |G and P| + s)`.

    With soft sets, `sum((p - g)^2) / (sum(p^2) + sum(g^2) - (1 + a) sum(pg) + s)`. `a = 1 - 2 C / S` is near 1 for a
    large mask, where the difference then counts against a band along the boundary rather than the whole region. `S` is
    the number of true pixels and `C` that of those with a false or no neighbour, both of the whole group. Other
    arguments and errors: see `jaxunet.losses`.

    Options:
      alpha_max: `a` at most, in [0, 1].
      smooth: `s`; at least 1 where the masks of a group are all empty. The authors' program adds it to the numerator
        as well, so that a perfect prediction costs more than nothing and an empty mask 1 whatever is predicted.

    Returns:
      The loss, in [0, 1].

    Source: Sun et al. 2023, Boundary Difference Over Union Loss for Medical Image Segmentation (MICCAI).
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    true = (x.masks > 0.5).astype(x.masks.dtype)
    rim = true - erode(true, outside=0.0)
    share = ratio(x.total(x.weight * rim), x.total(x.weight * true))
    errors = x.total(x.weight * difference(x) ** 2)
    overlap = x.total(x.weight * x.probs * x.masks)
    smoothing = smooth_where_empty(x.total(x.weight * x.masks), smooth)
    return ratio(errors, errors + jnp.maximum(2 * share, 1 - alpha_max) * overlap + smoothing)  # 1 - a = 2 C / S


ENTRIES = {
    "boundary": Loss(
        boundary_loss,
        "boundary",
        "mean(p phi), phi: signed distance to the rim of g",
        "Kervadec et al. 2019, arXiv 1812.07032",
        range=(-math.inf, math.inf),
        on_empty="mean(p), phi being 1: 0 for the empty prediction; every pixel is pushed down",
        perfect="lowest",
        positional=True,
        monotone=True,
    ),
    "boundary_dou": Loss(
        boundary_dou_loss,
        "boundary",
        "sum((p - g)^2) / (sum(p^2) + sum(g^2) - (1 + a) sum(pg)), a = min(1 - 2 C / S, 0.8) of the rim and size of g",
        "Sun et al. 2023 (MICCAI), Boundary Difference Over Union Loss",
        range=(0, 1),
        on_empty="sum(p^2) / (sum(p^2) + 1): 0 for the empty prediction; every pixel is pushed down",
        positional=True,
        monotone=True,
    ),
}
