"""Losses that weight pixels by their distance to the boundary of the masks, computed inside the loss or passed in."""

import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from jaxunet.distance import boundary_distance, signed_distance
from jaxunet.losses.distribution.cross_entropy import entropy
from jaxunet.losses.entry import register
from jaxunet.losses.morphology import erode
from jaxunet.losses.reduction import Empty, Inputs, Reduce, prepare, ratio
from jaxunet.losses.region.overlap import difference, overlap, smooth_where_empty

__all__ = [
    "boundary_dou_loss",
    "boundary_loss",
    "distance_bce_loss",
    "distance_dice_loss",
    "hausdorff_dt_loss",
    "hausdorff_er_loss",
    "log_hausdorff_dt_loss",
]


@register(
    "boundary",
    range=(-math.inf, math.inf),
    on_empty="mean(p), phi being 1: 0 for the empty prediction; every pixel is pushed down",
    perfect="lowest",
    positional=True,
    monotone=True,
)
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
    """The boundary loss, of either sign: each predicted pixel costs its signed distance to the mask's rim.

    `phi` is positive outside the mask, zero on its outermost pixels and negative inside. Alone it hardly moves a
    prediction that is far off; the paper adds it to a region loss with a growing weight, as `dice_boundary_loss` does.
    In an empty mask every pixel counts as one pixel outside. The authors' program uses zero there, which has no
    gradient; `distances=signed_distance(masks)` reproduces it. Pixels without weight are background in the map.

    Formula: `mean(p phi), phi: signed distance to the rim of g`

    Options:
      distances: `phi`, `[B, H, W, K]` like the masks, in any unit; None computes it, in pixels.

    Source: Kervadec et al. 2019, arXiv 1812.07032.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return x.mean(x.probs * map_of(x, level_set, distances))


@register(
    "boundary",
    range=(0, 1),
    on_empty="sum(p^2) / (sum(p^2) + 1): 0 for the empty prediction; every pixel is pushed down",
    positional=True,
    monotone=True,
)
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
    """Boundary difference over union, in [0, 1].

    `C` is the number of true pixels at the rim (with a false or no neighbour) and `S` that of all true pixels, both of
    the whole group. For a large mask `a` is near 1, and the difference counts relative to a band along the boundary
    rather than to the whole region.

    Formula: `sum((p - g)^2) / (sum(p^2) + sum(g^2) - (1 + a) sum(pg) + smooth), a = min(1 - 2 C / S, alpha_max)`

    Options:
      alpha_max: upper limit of `a`, in [0, 1].
      smooth: raised to at least 1 where all masks of a group are empty. The authors' program adds it to the numerator
        as well: there a perfect prediction costs more than 0, and an empty mask costs 1 whatever is predicted.

    Source: Sun et al. 2023, Boundary Difference Over Union Loss for Medical Image Segmentation (MICCAI).
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    true = (x.masks > 0.5).astype(x.masks.dtype)
    rim = true - erode(true, outside=0.0)
    share = ratio(x.total(x.weight * rim), x.total(x.weight * true))
    errors = x.total(x.weight * difference(x) ** 2)
    common = x.total(x.weight * x.probs * x.masks)
    smoothing = smooth_where_empty(x.total(x.weight * x.masks), smooth)
    return ratio(errors, errors + jnp.maximum(2 * share, 1 - alpha_max) * common + smoothing)  # 1 - a = 2 C / S


@register(
    "boundary",
    range=(0, math.inf),
    on_empty="plain cross-entropy: 0 for the empty prediction; every pixel is pushed down",
    positional=True,
    monotone=True,
)
def distance_bce_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    distances: Array | None = None,
) -> Array:
    """Cross-entropy with a penalty near the boundary, at least 0.

    `f` is the distance to the other side of the mask, inverted and scaled on each side separately. Without a boundary
    it is 0, and the loss is plain cross-entropy. Pixels without weight are background in the map.

    Formula: `mean((1 + f) (-g log p - (1 - g) log(1 - p))), f: 1 next to the boundary of g, 0 farthest from it`

    Options:
      distances: `f`, `[B, H, W, K]` like the masks, at least -1; None computes it.

    Source: Caliva et al. 2019, Distance Map Loss Penalty Term for Semantic Segmentation, arXiv 1908.03679.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return x.mean((1 + map_of(x, proximity, distances)) * entropy(x))


@register(
    "boundary",
    range=(0, 1),
    on_empty="plain Dice: 0 for the empty prediction; every pixel is pushed down",
    positional=True,
    monotone=True,
)
def distance_dice_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    distances: Array | None = None,
    smooth: float | Array = 1.0,
) -> Array:
    """Soft Dice loss with a larger weight near the boundary, in [0, 1].

    The weight is in all three sums; in the overlap alone, as in other programs, it makes the loss negative.

    Formula: `1 - (2 sum(w p g) + smooth) / (sum(w p) + sum(w g) + smooth), w = 1 + f of distance_bce`

    Options:
      distances: as in `distance_bce_loss`.
      smooth: as in `dice_loss`.

    Source: after Caliva et al. 2019, arXiv 1908.03679: `dice_loss` with its penalty.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    pixel = x.weight * (1 + map_of(x, proximity, distances))
    found = overlap(x._replace(weight=pixel))
    return ratio(found.errors, 2 * found.true_positive + found.errors + smooth)


@register(
    "boundary",
    range=(0, math.inf),
    on_empty="mean(p^2 (d_p^2 + 1)): 0 for the empty prediction; every pixel is pushed down",
    symmetric=True,
    positional=True,
    piecewise=True,
)
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
    """Errors weighted by their distance from both boundaries, at least 0, in pixels to the power `alpha`.

    `d` is the distance to the nearest pixel of the other kind, at least 1, and 1 where there is no boundary, so an
    empty mask has a gradient; other programs use zero there. `d_p` is computed at each step and is a constant of the
    gradient. Pixels without weight are background.

    Formula: `mean((p - g)^2 (d_p^alpha + d_g^alpha)), d: distance to the boundary of p > 0.5, and of g`

    Options:
      alpha: above 0; how much more a distant error counts than a near one.
      distances: `d_g`, `[B, H, W, K]` like the masks, at least 0; None computes it, in pixels. `d_p` is in pixels.

    Source: Karimi and Salcudean 2019, arXiv 1904.10030.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    of_masks = map_of(x, distance_field, distances)
    of_prediction = distance_field(x.logits > 0).astype(of_masks.dtype)
    return x.mean(difference(x) ** 2 * (of_prediction**alpha + of_masks**alpha))


@register("boundary", range=(0, math.inf), symmetric=True, positional=True, piecewise=True)
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
    """Logarithm of one plus `hausdorff_dt_loss`, at least 0: a few distant errors do not outweigh everything else.

    Formula: `log(1 + hausdorff_dt)`

    Options:
      alpha: as in `hausdorff_dt_loss`.
      distances: as in `hausdorff_dt_loss`.

    Source: Karimi and Salcudean 2019, arXiv 1904.10030; the logarithm is MONAI's.
    """
    loss = partial(hausdorff_dt_loss, alpha=alpha, distances=distances)
    return jnp.log1p(loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty))


@register(
    "boundary",
    range=(0, 385),
    on_empty="0 for the empty prediction; false regions at least three pixels wide are pushed down",
    symmetric=True,
    positional=True,
    monotone=True,
    piecewise=True,
)
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
    """Errors weighted by how many erosions they survive, in [0, the sum of `k^alpha`]; at most 385 by default.

    An erosion by a cross takes the smallest of each pixel and its four neighbours, so hard errors survive k erosions
    where they are k pixels deep. Errors narrower than three pixels cost nothing. The authors' program replaces the
    erosion by a convolution and a threshold at 0.5, below which value and gradient are zero: a uniform prediction of
    one half would not change. Outside the image, and where pixels have no weight, there are no errors.

    Formula: `mean(sum(k^alpha E_k, k <= erosions)), E_k: (p - g)^2 after k erosions`

    Options:
      alpha: how much more a deep error counts than a shallow one.
      erosions: at least 1; deeper errors count no more.

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


def level_set(masks: Array) -> Array:
    """Signed distance to the rim of the mask in pixels: positive outside, zero on the rim, negative inside.

    An empty mask has no rim: each of its pixels counts as one pixel outside.
    """
    empty = ~jnp.any(masks > 0.5, axis=(1, 2), keepdims=True)
    return jnp.where(empty, 1, signed_distance(masks))


def distance_field(masks: Array) -> Array:
    """Distance to the nearest pixel of the other kind in pixels, at least 1, and 1 where there is no other kind."""
    return jnp.maximum(boundary_distance(masks), 1)


def proximity(masks: Array) -> Array:
    """One next to the boundary, 0 at the pixel farthest from it, on each side; 0 without a boundary."""
    distance = boundary_distance(masks)
    true = masks > 0.5
    farthest = jnp.where(true, _largest(distance * true), _largest(distance * ~true))
    return jnp.where(distance > 0, 1 - ratio(distance - 1, farthest - 1), 0)


def map_of(x: Inputs, compute: Callable[[Array], Array], distances: Array | None) -> Array:
    """The map given by the caller, or the one computed from the masks, in the dtype of the masks.

    Raises:
      ValueError: the shape is not that of the masks.
    """
    if distances is None:
        return compute(x.masks).astype(x.masks.dtype)
    distances = jnp.asarray(distances, x.masks.dtype)
    if distances.shape != x.masks.shape:
        raise ValueError(f"distances {distances.shape} must be [B, H, W, K] = {x.masks.shape}")
    return jnp.where(x.weight != 0, distances, 0)  # zero times NaN is NaN


def _largest(values: Array) -> Array:
    return jnp.max(values, axis=(1, 2), keepdims=True)
