"""Cross-entropy and Dice in which pixels near the mask's boundary weigh more."""

import math

from jax import Array

from jaxunet.losses.boundary.maps import map_of, proximity
from jaxunet.losses.distribution import entropy
from jaxunet.losses.entry import Loss
from jaxunet.losses.reduction import Empty, Reduce, prepare, ratio
from jaxunet.losses.region.overlap import overlap


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
    """Cross-entropy with a penalty near the boundary, the mean of `(1 + f) (-g log p - (1 - g) log(1 - p))`.

    `f` is the distance to the other side of the mask, inverted and scaled on each side by itself: 1 beside the
    boundary, 0 at the pixel farthest from it. Without a boundary it is 0, and the loss plain cross-entropy. Pixels
    without weight count as background in the map. Other arguments and errors: see `jaxunet.losses`.

    Options:
      distances: `f`, `[B, H, W, K]` like the masks, at least -1; None computes it.

    Returns:
      The loss, at least 0.

    Source: Caliva et al. 2019, Distance Map Loss Penalty Term for Semantic Segmentation, arXiv 1908.03679.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return x.mean((1 + map_of(x, proximity, distances)) * entropy(x))


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
    """Soft Dice loss of pixels that weigh `w = 1 + f`, `1 - (2 sum(w p g) + s) / (sum(w p) + sum(w g) + s)`.

    `f` as in `distance_bce_loss`. It stands in all three sums; in the overlap alone, as elsewhere, it takes the loss
    below zero. Other arguments and errors: see `jaxunet.losses`.

    Options:
      distances: `f`, `[B, H, W, K]` like the masks, at least -1; None computes it.
      smooth: `s`, added above and below; keeps the loss of an empty mask finite and its gradient useful.

    Returns:
      The loss, in [0, 1].

    Source: `dice_loss` with the penalty of Caliva et al. 2019, arXiv 1908.03679.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    pixel = x.weight * (1 + map_of(x, proximity, distances))
    found = overlap(x._replace(weight=pixel))
    return ratio(found.errors, 2 * found.true_positive + found.errors + smooth)


ENTRIES = {
    "distance_bce": Loss(
        distance_bce_loss,
        "boundary",
        "mean((1 + f) (-g log p - (1 - g) log(1 - p))), f: 1 beside the boundary of g, 0 farthest from it",
        "Caliva et al. 2019, arXiv 1908.03679",
        range=(0, math.inf),
        on_empty="plain cross-entropy: 0 for the empty prediction; every pixel is pushed down",
        positional=True,
        monotone=True,
    ),
    "distance_dice": Loss(
        distance_dice_loss,
        "boundary",
        "1 - (2 sum(w p g) + 1) / (sum(w p) + sum(w g) + 1), w = 1 + f of distance_bce",
        "after Caliva et al. 2019, arXiv 1908.03679",
        range=(0, 1),
        on_empty="plain Dice: 0 for the empty prediction; every pixel is pushed down",
        positional=True,
        monotone=True,
    ),
}
